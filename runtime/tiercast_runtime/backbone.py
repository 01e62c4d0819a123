"""The decoder around the Engram layers: grouped-query attention with rotary positions, SwiGLU, a static KV cache.

Assumption A35: with ``num_branches`` > 1 the residual stream is widened in a simple form: each sub-layer reads the mean
of the branches and adds its output to every branch. Learned branch mixing (hyper-connections) has the same traffic
and more small multiplications, which are not modelled.

Weights are random from a seed: speed, memory and equality of paths are what is studied here, not language.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional

from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.model import Backbone as BackboneSpec
from tiercast_profiles.model import ModelSpec
from tiercast_runtime.batch import BatchPlan, DecodePart, IndexedDecode, aligned_context
from tiercast_runtime.decode_attention import attend_decode, decoder_kernels

NORM_EPS = 1e-6


def compute_dtype(device: torch.device) -> torch.dtype:
    """The compute type on a device: bf16 on a GPU, fp32 on a CPU, which multiplies bf16 slower than fp32."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def settle_attention(device: torch.device) -> None:
    """Leave chunks of prompts on a GPU to the flash kernel alone, also where torch would prefer cuDNN's.

    cuDNN plans anew for every length of a chunk and its context, which takes longer than the attention of the chunk;
    and chunks at the start of a sequence would run another kernel than those behind it. It holds for the process.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def check_runnable(model: ModelSpec) -> None:
    """Raise unless this backbone can compute the model.

    Raises:
        MissingCapability: naming what the model has that the backbone lacks.
    """
    spec = model.backbone
    lacking = [
        text
        for is_lacking, text in (
            (spec.moe is not None, "mixture-of-experts layers"),
            (spec.attention_window_tokens is not None, "sliding-window attention"),
            (spec.num_prefill_layers != spec.num_layers, "a prefill that runs fewer layers than decode"),
            (spec.head_dim % 2 != 0, "an odd head_dim, which rotary positions cannot pair"),
        )
        if is_lacking
    ]
    if lacking or not spec.is_runnable:
        reason = f"has {' and '.join(lacking)}" if lacking else "is marked is_runnable: false"
        raise MissingCapability(
            f"model {model.name!r} {reason}; the runtime runs dense decoders only (such as 'tiny'); simulate this one"
        )


def kv_bytes_per_token(spec: BackboneSpec, dtype: torch.dtype) -> int:
    """Bytes one token occupies in this runtime's KV cache."""
    return spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim * dtype.itemsize


@dataclass(frozen=True, slots=True)
class _LayerWeights:
    """Matrices stored ``[inputs, outputs]``, which a few rows multiply fastest; norm weights are folded into them."""

    qkv: torch.Tensor
    attention_out: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Weights:
    """``embedding [vocabulary, hidden]``, the layers, ``head [hidden, vocabulary]``."""

    embedding: torch.Tensor
    layers: list[_LayerWeights]
    head: torch.Tensor


def _random_weights(
    spec: BackboneSpec, qkv_width: int, device: torch.device, dtype: torch.dtype, seed: int
) -> _Weights:
    generator = torch.Generator(device=device).manual_seed(seed)
    hidden, inner, q_width = spec.hidden_size, spec.intermediate_size, spec.num_attention_heads * spec.head_dim

    def matrix(rows: int, columns: int, scale: float) -> torch.Tensor:
        return torch.empty(rows, columns, dtype=dtype, device=device).normal_(0.0, scale, generator=generator)

    embedding = matrix(spec.vocab_size, hidden, 1.0)
    layers = [
        _LayerWeights(
            qkv=matrix(hidden, qkv_width, hidden**-0.5),
            attention_out=matrix(q_width, hidden, q_width**-0.5),
            gate_up=matrix(hidden, 2 * inner, hidden**-0.5),
            down=matrix(inner, hidden, inner**-0.5),
        )
        for _ in range(spec.num_layers)
    ]
    return _Weights(embedding, layers, matrix(hidden, spec.vocab_size, hidden**-0.5))


class Backbone:
    """A decoder whose parts can be called one by one, by the engine in order and by a probe apart.

    Args:
        model: must pass :func:`check_runnable`.
        device: where weights and cache live.
        dtype: compute type.
        num_slots: sequences the KV cache holds at once.
        max_context_tokens: most tokens of one sequence.
        max_step_tokens: most tokens of one step; decides the size of the work buffers.
        seed: decides the random weights.
        weights_of: a backbone of the same model, device, type and seed, whose weights this one uses too.

    The hidden state is ``[num_tokens, num_branches, hidden_size]``; :meth:`layer` updates it in place.

    Raises:
        MissingCapability: the model is not a dense decoder marked runnable.
    """

    weights: _Weights

    def __init__(
        self,
        model: ModelSpec,
        device: torch.device,
        dtype: torch.dtype,
        *,
        num_slots: int,
        max_context_tokens: int,
        max_step_tokens: int,
        seed: int = 0,
        weights_of: "Backbone | None" = None,
    ) -> None:
        check_runnable(model)
        settle_attention(device)
        spec = model.backbone
        self._spec = spec
        self._dtype = dtype
        self._kernels = decoder_kernels(device)
        self._num_heads, self._num_kv_heads = spec.num_attention_heads, spec.num_kv_heads
        self._group, self._head_dim = spec.num_attention_heads // spec.num_kv_heads, spec.head_dim
        self._hidden, self._inner = spec.hidden_size, spec.intermediate_size
        self._q_width = self._num_heads * self._head_dim
        self._rotated_width = self._q_width + self._num_kv_heads * self._head_dim
        qkv_width = self._q_width + 2 * self._num_kv_heads * self._head_dim
        made = _random_weights(spec, qkv_width, device, dtype, seed) if weights_of is None else weights_of.weights
        self.weights = made
        self._embedding, self._layers, self._head = made.embedding, made.layers, made.head
        # Keys and values of a layer share one tensor so that one write stores both. Zeros, not empty: a masked
        # position still meets its value with weight 0, and 0 × NaN would spread.
        kv_shape = (spec.num_layers, num_slots, 2 * self._num_kv_heads, aligned_context(max_context_tokens))
        self._kv = torch.zeros((*kv_shape, self._head_dim), dtype=dtype, device=device)
        self._kv_reads = [self._kv[i] for i in range(spec.num_layers)]
        self._kv_writes = [
            layer.transpose(1, 2) for layer in self._kv_reads
        ]  # [slots, context, 2 × kv_heads, head_dim]

        def buffer(width: int) -> torch.Tensor:
            return torch.zeros(max_step_tokens, width, dtype=dtype, device=device)

        self._input_buffer, self._output_buffer = buffer(self._hidden), buffer(self._hidden)
        self._qkv_buffer, self._attention_buffer = buffer(qkv_width), buffer(self._q_width)
        self._gate_up_buffer, self._inner_buffer = buffer(2 * self._inner), buffer(self._inner)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        layers = sum(t.nbytes for w in self._layers for t in (w.qkv, w.attention_out, w.gate_up, w.down))
        return self._embedding.nbytes + self._head.nbytes + layers

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache as allocated."""
        return self._kv.nbytes

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the work buffers."""
        buffers = (self._input_buffer, self._output_buffer, self._qkv_buffer, self._attention_buffer)
        return sum(t.nbytes for t in (*buffers, self._gate_up_buffer, self._inner_buffer))

    def empty_hidden(self, num_tokens: int) -> torch.Tensor:
        """Memory for a hidden state of ``num_tokens`` tokens."""
        shape = (num_tokens, self._spec.num_branches, self._hidden)
        return torch.zeros(shape, dtype=self._dtype, device=self._embedding.device)

    def embed(self, plan: BatchPlan) -> torch.Tensor:
        """Hidden state ``[num_tokens, num_branches, hidden_size]`` of the step's tokens, equal in all branches."""
        rows = self._embedding.index_select(0, plan.token_ids)
        return rows.unsqueeze(1).repeat(1, self._spec.num_branches, 1)

    def layer(self, index: int, hidden: torch.Tensor, plan: BatchPlan) -> torch.Tensor:
        """One decoder layer; updates ``hidden`` in place and returns it."""
        self._project(index, hidden, plan)
        self.attention_only(index, plan)
        self._add_attention(index, hidden, plan)
        return self.mlp_only(index, hidden)

    def linear_only(self, index: int, hidden: torch.Tensor, plan: BatchPlan) -> torch.Tensor:
        """The layer without its attention: :meth:`projections_only` and :meth:`mlp_only`; for probes."""
        self.projections_only(index, hidden, plan)
        return self.mlp_only(index, hidden)

    def projections_only(self, index: int, hidden: torch.Tensor, plan: BatchPlan) -> None:
        """What a layer computes around its attention: norm, projections, rotation, KV write, residual; for probes.

        Updates ``hidden`` in place; the attention output it adds is whatever the buffer holds.
        """
        self._project(index, hidden, plan)
        self._add_attention(index, hidden, plan)

    def mlp_only(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """The second half of a layer: norm, MLP and its residual; updates ``hidden`` in place and returns it."""
        num_tokens, weights = hidden.shape[0], self._layers[index]
        gate_up = self._gate_up_buffer[:num_tokens]
        torch.mm(self._normed_input(hidden), weights.gate_up, out=gate_up)
        inner = self._inner_buffer[:num_tokens]
        if self._kernels is not None:
            self._kernels.silu_mul(gate_up, inner)
        else:
            torch.mul(functional.silu(gate_up[:, : self._inner]), gate_up[:, self._inner :], out=inner)
        self._add_product(hidden, inner, weights.down)
        return hidden

    def attention_only(self, index: int, plan: BatchPlan) -> torch.Tensor:
        """Attention of one layer over queries already projected; ``[num_tokens, heads × head_dim]``.

        Decoding rows attend to the cache up to the longest context among them; each chunk to its own sequence.
        """
        cache = self._kv_reads[index]
        queries = self._qkv_buffer[: plan.num_tokens, : self._q_width]
        output = self._attention_buffer[: plan.num_tokens]
        if isinstance(plan.decode, IndexedDecode):
            part, count = plan.decode, plan.decode.count
            attend_decode(queries[:count], cache, part.slots, part.lengths, output[:count])
        elif plan.decode is not None:
            self._attend_decode(cache, queries[: plan.decode.count], plan.decode, output[: plan.decode.count])
        kv_heads, group, head_dim = self._num_kv_heads, self._group, self._head_dim
        for chunk in plan.chunks:
            rows = slice(chunk.first_row, chunk.first_row + chunk.count)
            length = chunk.start + chunk.count
            # Heads that share keys form one batch entry: [kv_heads, group, count, head_dim].
            query = queries[rows].view(chunk.count, kv_heads, group, head_dim).permute(1, 2, 0, 3)
            shape = (kv_heads, group, length, head_dim)
            key = cache[chunk.slot, :kv_heads, :length].unsqueeze(1).expand(shape)
            value = cache[chunk.slot, kv_heads:, :length].unsqueeze(1).expand(shape)
            attended = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=chunk.mask, is_causal=chunk.mask is None
            )
            output[rows].view(chunk.count, kv_heads, group, head_dim).copy_(attended.permute(2, 0, 1, 3))
        return output

    def move_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the keys and values of a slot's first ``num_tokens`` tokens to another slot, in every layer."""
        self._kv[:, target, :, :num_tokens].copy_(self._kv[:, source, :, :num_tokens])

    def head(self, hidden: torch.Tensor, plan: BatchPlan) -> torch.Tensor:
        """Greedy next token of every sampling row, ``[num_samples] int64``: final norm, projection, argmax."""
        return self.logits(hidden, plan).argmax(-1)

    def logits(self, hidden: torch.Tensor, plan: BatchPlan) -> torch.Tensor:
        """Logits of every sampling row, ``[num_samples, vocab_size]``."""
        return self._normed_input(hidden.index_select(0, plan.sample_rows)) @ self._head

    def _attend_decode(
        self, cache: torch.Tensor, queries: torch.Tensor, part: DecodePart, output: torch.Tensor
    ) -> None:
        if part.gather is None:
            used = cache[part.first_slot : part.first_slot + part.num_slots, :, : part.context]
        else:
            used = cache[:, :, : part.context].index_select(0, part.gather)
        per_sequence, shape = part.tokens_per_sequence, (self._num_kv_heads, self._group, self._head_dim)
        if per_sequence == 1:
            grouped = queries.view(part.count, *shape)
        else:
            by_token = queries.view(-1, per_sequence, *shape).transpose(1, 2)
            shape = (self._num_kv_heads, per_sequence * self._group, self._head_dim)
            grouped = by_token.reshape(-1, *shape)
        if part.rows is not None:
            grouped = grouped.new_zeros(part.num_slots, *shape).index_copy_(0, part.rows, grouped)
        # The heads that share keys, of one token and of its drafts, take the place of query positions, so keys are read
        # once per group.
        attended = functional.scaled_dot_product_attention(
            grouped, used[:, : self._num_kv_heads], used[:, self._num_kv_heads :], attn_mask=part.mask
        )
        if part.rows is not None:
            attended = attended.index_select(0, part.rows)
        if per_sequence == 1:
            output.view(part.count, *shape).copy_(attended)
        else:
            by_head = attended.view(-1, self._num_kv_heads, per_sequence, self._group, self._head_dim)
            by_token = by_head.transpose(1, 2)
            output.view(by_token.shape).copy_(by_token)

    def _project(self, index: int, hidden: torch.Tensor, plan: BatchPlan) -> None:
        """Norm, fused q/k/v projection, rotation of q and k in place, and the write of k and v into the cache."""
        normed = self._normed_input(hidden)
        qkv = self._qkv_buffer[: plan.num_tokens]
        torch.mm(normed, self._layers[index].qkv, out=qkv)
        if self._kernels is not None:
            cache = self._kv_reads[index]
            self._kernels.rotate_and_store(qkv, plan.rope, cache, plan.slots, plan.positions, self._num_heads)
            return
        rotated = qkv[:, : self._rotated_width].view(plan.num_tokens, -1, self._head_dim // 2, 2)
        if self._dtype == torch.float32:
            torch.view_as_complex(rotated).mul_(plan.rope)
        else:
            rotated.copy_(torch.view_as_real(torch.view_as_complex(rotated.float()).mul_(plan.rope)))
        fresh = qkv[:, self._q_width :].view(plan.num_tokens, -1, self._head_dim)
        self._kv_writes[index].index_put_((plan.slots, plan.positions), fresh)

    def _add_attention(self, index: int, hidden: torch.Tensor, plan: BatchPlan) -> None:
        """Attention output projection and its residual addition."""
        self._add_product(hidden, self._attention_buffer[: plan.num_tokens], self._layers[index].attention_out)

    def _add_product(self, hidden: torch.Tensor, inputs: torch.Tensor, weights: torch.Tensor) -> None:
        """Add ``inputs @ weights`` to every branch; with one branch on a GPU the product itself adds."""
        if self._kernels is not None and hidden.shape[1] == 1:
            hidden[:, 0].addmm_(inputs, weights)
            return
        output = self._output_buffer[: hidden.shape[0]]
        torch.mm(inputs, weights, out=output)
        hidden.add_(output.unsqueeze(1))

    def _normed_input(self, hidden: torch.Tensor) -> torch.Tensor:
        """What a sub-layer reads: the normed mean of the branches."""
        num_branches = hidden.shape[1]
        if self._kernels is not None:
            normed: torch.Tensor = self._kernels.rms_norm(hidden, NORM_EPS)
            return normed
        if num_branches == 1:
            return rms_norm(hidden[:, 0], NORM_EPS)
        # The norm does not see the scale of its input, eps aside: a sum serves for a mean, which costs one call more.
        total = torch.sum(hidden, 1, out=self._input_buffer[: hidden.shape[0]])
        return rms_norm(total, NORM_EPS * num_branches**2)


def rms_norm(values: torch.Tensor, eps: float) -> torch.Tensor:
    """``values`` over the root of their mean square along the last dimension, without a weight."""
    if values.is_cuda:
        return functional.rms_norm(values, values.shape[-1:], None, eps)  # one fused kernel
    # On a CPU rms_norm is five small calls; this form takes half the time at 8 rows.
    return torch.mul(values, inverse_rms(values, eps))


def inverse_rms(values: torch.Tensor, eps: float) -> torch.Tensor:
    """One over the root mean square along the last dimension, which is kept: ``[…, 1] float32``."""
    norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.addcmul(_epsilon(eps, values.device), norm, norm, value=1 / values.shape[-1]).rsqrt_()


@cache
def _epsilon(eps: float, device: torch.device) -> torch.Tensor:
    """A constant as a tensor: torch wraps and converts a Python number anew on every call."""
    with torch.inference_mode(False):
        return torch.full((1,), eps, dtype=torch.float32, device=device)
