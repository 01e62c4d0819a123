"""One Engram layer once its rows are there: dequantise, project, gate, convolve, add.

Three dialects (arXiv 2601.07372 §2.2-2.5; vLLM docs/features/engram.md):

- ``demo``: keys and value are linear maps with bias, and a short causal convolution follows the gate.
- ``v41``: no bias, no convolution, norm weights folded into one product.
- ``qwen4exp``: a convolution is published; the rest of the module is assumed to be that of ``demo``.

``longcat`` adds its rows to the input embedding without a gate; its module is not built here and is refused.

Assumption A36: V4.1 keeps the fused projection in FP8. Here it is held and multiplied in the compute type (bf16 on a
GPU, fp32 on a CPU), so its weight traffic is twice, or four times, that of the published kernel.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from tiercast_profiles.errors import MissingCapability
from tiercast_profiles.model import ModelSpec
from tiercast_runtime.backbone import inverse_rms, rms_norm
from tiercast_runtime.batch import BatchPlan
from tiercast_runtime.layer_weights import EngramWeights
from tiercast_runtime.paths.base import StagedRows
from tiercast_runtime.rows import decode_rows

GATE_NORM_EPS = 1e-6
CONV_NORM_EPS = 1e-5
MIN_GATE_SCORE = 1e-6


@dataclass(frozen=True, slots=True)
class _LayerWeights:
    """What a layer multiplies with; ``score_weight`` is both norms' weights and 1/√d folded into one product."""

    projection: torch.Tensor
    bias: torch.Tensor | None
    q_weight: torch.Tensor
    k_weight: torch.Tensor
    score_weight: torch.Tensor
    conv_norm: torch.Tensor | None
    conv_kernel: torch.Tensor | None


def _make_weights(
    model: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator,
    given: EngramWeights | None,
) -> _LayerWeights:
    engram, backbone = model.engram, model.backbone
    inputs, outputs = engram.embedding_values, engram.projection_outputs(backbone)

    def normal(shape: tuple[int, ...], mean: float, scale: float) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(mean, scale, generator=generator)

    # One matrix for the keys of all branches and the value (paper §2.4), stored [inputs, outputs].
    projection = normal((inputs, outputs), 0.0, inputs**-0.5)
    bias = normal((outputs,), 0.0, 0.02) if engram.rules.has_bias else None
    branch_shape = (backbone.num_branches, backbone.hidden_size)
    q_weight, k_weight = normal(branch_shape, 1.0, 0.1), normal(branch_shape, 1.0, 0.1)
    if given is not None:
        for mine, theirs in (
            (projection, given.projection),
            (q_weight, given.q_weight),
            (k_weight, given.k_weight),
        ):
            mine.copy_(theirs)
    # Both norms end in one dot product, so their weights and the 1/√d scale fold into one vector per branch.
    folded = q_weight.float() * k_weight.float() * backbone.hidden_size**-0.5
    has_convolution = engram.conv_kernel_size is not None
    taps = engram.conv_kernel_size or 0
    return _LayerWeights(
        projection=projection,
        bias=bias,
        q_weight=q_weight,
        k_weight=k_weight,
        score_weight=folded.to(dtype),
        conv_norm=normal(branch_shape, 1.0, 0.1) if has_convolution else None,
        conv_kernel=normal((taps, *branch_shape), 0.0, taps**-0.5) if has_convolution else None,
    )


class EngramLayer:
    """The Engram module of one layer.

    Args:
        model: the model whose Engram this is.
        layer_index: which of ``engram.layer_ids`` it serves (0 for the first).
        device: where weights and state live.
        dtype: compute type.
        generator: source of the random weights, on ``device``.
        num_slots: sequences whose convolution state is kept (dialects with one).
        num_draft_tokens: drafts a decoding sequence feeds in a step, which may be rejected.
        weights: those of a checkpoint; random ones without.
        weights_of: a layer made of the same arguments, whose weights this one uses too; its state stays its own.

    Raises:
        MissingCapability: the dialect has no gated module.
    """

    weights: _LayerWeights

    def __init__(
        self,
        model: ModelSpec,
        layer_index: int,
        device: torch.device,
        dtype: torch.dtype,
        generator: torch.Generator,
        *,
        num_slots: int,
        num_draft_tokens: int = 0,
        weights: EngramWeights | None = None,
        weights_of: "EngramLayer | None" = None,
    ) -> None:
        engram, backbone = model.engram, model.backbone
        if not engram.rules.has_gate:
            raise MissingCapability(
                f"the {engram.dialect} dialect adds its rows to the input embedding; this runtime has no such module; "
                "simulate it instead"
            )
        self._engram = engram
        self._dtype = dtype
        self.layer_id = engram.layer_ids[layer_index]
        self._num_branches, self._hidden = backbone.num_branches, backbone.hidden_size
        made = _make_weights(model, device, dtype, generator, weights) if weights_of is None else weights_of.weights
        self.weights = made
        self.projection, self.bias = made.projection, made.bias
        self.q_weight, self.k_weight, self._score_weight = made.q_weight, made.k_weight, made.score_weight
        self.convolution: ShortConvolution | None = None
        if made.conv_kernel is not None and made.conv_norm is not None:
            self.convolution = ShortConvolution(
                norm_weight=made.conv_norm,
                kernel=made.conv_kernel,
                dilation=engram.ngram_orders[-1],
                num_slots=num_slots,
                num_draft_tokens=num_draft_tokens,
            )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights and of the convolution state."""
        tensors = [self.projection, self.q_weight, self.k_weight, self._score_weight]
        if self.bias is not None:
            tensors.append(self.bias)
        num_bytes: int = sum(tensor.nbytes for tensor in tensors)
        return num_bytes + (0 if self.convolution is None else self.convolution.num_bytes)

    def forward(self, hidden: torch.Tensor, staged: StagedRows, plan: BatchPlan) -> torch.Tensor:
        """Add the memory's contribution to ``hidden`` ``[num_tokens, num_branches, hidden_size]`` in place."""
        num_tokens = hidden.shape[0]
        embeddings = self._embeddings(staged, num_tokens)
        if self.bias is None:
            projected = torch.mm(embeddings, self.projection)
        else:
            projected = torch.addmm(self.bias, embeddings, self.projection)
        split = self._num_branches * self._hidden
        keys = projected[:, :split].view(num_tokens, self._num_branches, self._hidden)
        value = projected[:, split:].unsqueeze(1)
        gate = self._gate(hidden, keys)
        if self.convolution is None:
            return hidden.addcmul_(gate, value)
        gated = gate * value
        return hidden.add_(gated).add_(self.convolution.forward(gated, plan))

    def _embeddings(self, staged: StagedRows, num_tokens: int) -> torch.Tensor:
        """Rows of each token side by side, ``[num_tokens, rows_per_token × row_values]``."""
        rows = decode_rows(self._engram, staged.rows, self._dtype)
        if staged.inverse is not None:
            rows = rows.index_select(0, staged.inverse.reshape(-1))
        return rows.view(num_tokens, self._engram.embedding_values)

    def _gate(self, hidden: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """``[num_tokens, num_branches, 1]``: sigmoid of the signed square root of the normed product."""
        scores = (hidden * self._score_weight).mul_(keys).sum(-1, keepdim=True, dtype=torch.float32)
        scores *= inverse_rms(hidden, GATE_NORM_EPS)
        scores *= inverse_rms(keys, GATE_NORM_EPS)
        gate: torch.Tensor = scores.abs().clamp_(min=MIN_GATE_SCORE).sqrt_().mul_(scores.sign()).sigmoid_()
        return gate.to(self._dtype)


class ShortConvolution:
    """Depthwise causal convolution along a sequence, with the last inputs of every slot kept between steps.

    Tap ``j`` reads ``(kernel_size − 1 − j) × dilation`` tokens back, up to the span. The inputs kept per slot form a
    ring: the value of position p lies in entry p mod its length. A sequence that starts at position 0 finds zeros
    before it.

    The ring holds the span, the token that follows and its drafts. So a decode step can write all it feeds before it
    reads, and what rejected drafts wrote has overwritten nothing that the next token looks back at: a rejection needs
    no undoing, the next step writes over it.

    Args:
        norm_weight: ``[num_branches, hidden_size]``.
        kernel: ``[kernel_size, num_branches, hidden_size]``.
        dilation: distance between taps, in tokens.
        num_slots: sequences kept at once.
        num_draft_tokens: drafts a decoding sequence feeds in a step.
    """

    def __init__(
        self,
        *,
        norm_weight: torch.Tensor,
        kernel: torch.Tensor,
        dilation: int,
        num_slots: int,
        num_draft_tokens: int = 0,
    ) -> None:
        self.norm_weight = norm_weight
        self.kernel = kernel
        self._dilation = dilation
        self._span = (kernel.shape[0] - 1) * dilation
        self._ring = self._span + 1 + num_draft_tokens
        self._state = kernel.new_zeros((num_slots, self._ring, *kernel.shape[1:]))
        taps_back = torch.arange(kernel.shape[0] - 1, 0, -1, device=kernel.device) * dilation
        self._taps_back = taps_back  # [kernel_size − 1]: distances of all taps but the current token's

    @property
    def num_bytes(self) -> int:
        """Bytes of weights and state."""
        return self.norm_weight.nbytes + self.kernel.nbytes + self._state.nbytes

    def forward(self, gated: torch.Tensor, plan: BatchPlan) -> torch.Tensor:
        """SiLU of the convolution of the normed ``gated`` ``[num_tokens, num_branches, hidden_size]``."""
        inputs = rms_norm(gated, CONV_NORM_EPS).mul_(self.norm_weight)
        output = inputs * self.kernel[-1]
        if self._span:
            if plan.num_decodes:
                self._decode(inputs[: plan.num_decodes], output[: plan.num_decodes], plan)
            for chunk in plan.chunks:
                rows = slice(chunk.first_row, chunk.first_row + chunk.count)
                self._prefill(inputs[rows], output[rows], chunk.slot, chunk.start)
        return functional.silu(output, inplace=True)

    def move_slot(self, source: int, target: int) -> None:
        """Copy what a slot keeps between steps to another slot."""
        self._state[target].copy_(self._state[source])

    def _decode(self, inputs: torch.Tensor, output: torch.Tensor, plan: BatchPlan) -> None:
        slots, positions = plan.slots[: plan.num_decodes], plan.positions[: plan.num_decodes]
        self._state[slots, positions % self._ring] = inputs
        entries = (positions.unsqueeze(1) - self._taps_back) % self._ring
        earlier = self._state[slots.unsqueeze(1), entries]  # [num_decodes, kernel_size − 1, branches, hidden]
        output += (earlier * self.kernel[:-1]).sum(1)

    def _prefill(self, inputs: torch.Tensor, output: torch.Tensor, slot: int, start: int) -> None:
        state, count, ring = self._state[slot], inputs.shape[0], self._ring
        if start == 0:
            state.zero_()
        # The ring in order of position, oldest first, then the chunk.
        history = torch.cat((state.roll(-(start % ring), 0), inputs))
        for tap in range(self.kernel.shape[0] - 1):
            first = ring - self._span + tap * self._dilation
            output.addcmul_(history[first : first + count], self.kernel[tap])
        # Keep the last values, each at its position mod the ring; history[i] is position start − ring + i.
        state.copy_(history[count : count + ring].roll((start + count) % ring, 0))
