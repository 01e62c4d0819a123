"""One step as tensors: what the scheduler decided, turned into the arrays the backbone reads.

Rows of a step are its tokens: decoding sequences first, one row each and one for each draft behind it, then the chunks
of prompts. All integers of a step are assembled in one host array and reach the device in one copy.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention.bias import causal_lower_right

from tiercast_profiles.model import ModelSpec
from tiercast_runtime.decode_attention import has_kernels
from tiercast_runtime.history import Ids, NgramHistory
from tiercast_runtime.scheduler import PrefillChunk, PromptPart, Sequence, StepPlan
from tiercast_runtime.tokens import TokenStore

# Decode attention walks the cache up to the longest context of the batch, rounded up to this many tokens: aligned mask
# rows are what fused kernels ask for, and the cost moves in small steps instead of with every token.
CONTEXT_ALIGNMENT_TOKENS = 16
ROPE_BASE = 10_000.0


def aligned_context(num_tokens: int) -> int:
    """``num_tokens`` rounded up to what the KV cache and the decode mask are cut in."""
    return -(-num_tokens // CONTEXT_ALIGNMENT_TOKENS) * CONTEXT_ALIGNMENT_TOKENS


@dataclass(frozen=True, slots=True)
class DecodePart:
    """The decoding rows of a step and the piece of KV cache they attend to.

    ``count`` rows decode, ``tokens_per_sequence`` of each sequence behind one another. The cache is read in place over
    the slots ``first_slot … first_slot + num_slots − 1``. Where that range has slots that do not decode, ``rows``
    ``[num_sequences] int64`` says which of its slots do; where it is more than twice as long as the batch, ``gather``
    ``[num_sequences] int64`` names the slots to copy together instead.
    ``mask`` ``[num_slots, 1, 1, context]`` is 0 or −inf. With several tokens per sequence it is ``[num_slots, 1,
    tokens_per_sequence × heads that share a key, context]``, because each token sees one more than the one before it.
    """

    count: int
    tokens_per_sequence: int
    first_slot: int
    num_slots: int
    rows: torch.Tensor | None
    gather: torch.Tensor | None
    context: int
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class IndexedDecode:
    """The decoding rows of a step where a kernel finds each one's tokens by itself: slot and length lie on the device.

    A draft is a row like any other, in its sequence's slot and one token longer than the row before it. ``slots``,
    ``lengths``: ``[count] int64``. ``context`` is the longest of the lengths; nothing computes with it.
    """

    count: int
    slots: torch.Tensor
    lengths: torch.Tensor
    context: int


@dataclass(frozen=True, slots=True)
class ChunkPart:
    """One chunk of a prompt: its rows in the step, its slot, and the context before it.

    ``mask`` is what attention takes beside ``is_causal``: None for a chunk at the start of its sequence.
    """

    slot: int
    start: int
    count: int
    first_row: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """A step on the device.

    ``token_ids``, ``positions``, ``slots``: ``[num_tokens] int64``. ``windows``: ``[num_tokens, max_order] int64`` of
    folded ids, for the hash. ``rope``: ``[num_tokens, 1, head_dim / 2] complex64``. ``sample_rows``: ``[num_samples]
    int64``, the rows whose next token is sampled, in the order of ``sampling``.

    With drafts every fed token is sampled, which is how they are verified; ``kept`` says which of the samples follow
    accepted tokens, and ``sampling`` names the sequences of those. It is None where all samples count.
    """

    num_tokens: int
    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    windows: torch.Tensor
    rope: torch.Tensor
    sample_rows: torch.Tensor
    decode: DecodePart | IndexedDecode | None
    chunks: tuple[ChunkPart, ...]
    sampling: tuple[Sequence, ...]
    kept: list[int] | None = None

    @property
    def num_decodes(self) -> int:
        """Rows that are decode tokens, drafts included; they come first."""
        return 0 if self.decode is None else self.decode.count


class BatchBuilder:
    """Builds the :class:`BatchPlan` of each step for one backbone geometry.

    Args:
        model: gives the head size and the longest n-gram.
        device: where the plan's tensors live.
        dtype: compute type; the masks have it.
        max_context_tokens: length of a slot in the KV cache.
        num_draft_tokens: most drafts that a sequence feeds in a step.
    """

    def __init__(
        self,
        model: ModelSpec,
        device: torch.device,
        dtype: torch.dtype,
        *,
        max_context_tokens: int,
        num_draft_tokens: int = 0,
    ) -> None:
        self._device = device
        self._dtype = dtype
        length = aligned_context(max_context_tokens)
        self._group = model.backbone.num_attention_heads // model.backbone.num_kv_heads
        self._indexes_cache = has_kernels(device)
        self.rope_table = _rope_table(model.backbone.head_dim, length, device)
        self._mask_table = _mask_table(length, device, dtype)
        self.history = NgramHistory(model.engram.ngram_orders[-1], num_draft_tokens)

    @property
    def reads_slots_in_place(self) -> bool:
        """Whether decode attention costs less where the slots of its sequences lie side by side."""
        return not self._indexes_cache

    def build(self, plan: StepPlan, tokens: TokenStore) -> BatchPlan:
        """The tensors of a step; they stay valid when the next step is built.

        Steps are built in the order they run in, each once: what a step feeds is the past of the next one.
        """
        # In slot order the decoding rows line up with the cache, so that it can be read without a copy.
        decodes = sorted(plan.decodes, key=_slot)
        count, total, num_drafts = plan.num_decode_tokens, plan.num_tokens, plan.num_draft_tokens
        decode_slots = [sequence.slot for sequence in decodes]
        decode_positions = [sequence.decode_position for sequence in decodes]
        offsets = tokens.offsets
        index, positions, slots = np.empty(total, np.int64), np.empty(total, np.int64), np.empty(total, np.int64)
        sampling, sample_rows = decodes, list(range(count))
        kept: list[int] | None = None
        if num_drafts == 0:
            index[:count] = [offsets[s.request.request_id] + p for s, p in zip(decodes, decode_positions, strict=True)]
            positions[:count] = decode_positions
            slots[:count] = decode_slots
        else:
            index[:count], positions[:count] = _fed_rows(decodes, decode_positions, num_drafts, tokens)
            slots[:count] = np.repeat(decode_slots, 1 + num_drafts)
            sampling, kept = _kept_samples(decodes, num_drafts)
        chunks, row = [], count
        for chunk in plan.chunks:
            sequence, start, stop = chunk.sequence, chunk.start, row + chunk.count
            first = offsets[sequence.request.request_id] + start
            index[row:stop] = np.arange(first, first + chunk.count)
            positions[row:stop] = np.arange(start, start + chunk.count)
            slots[row:stop] = sequence.slot
            chunks.append(self._chunk_part(chunk, row))
            if chunk.completes_prompt:
                if kept is not None:
                    kept.append(len(sample_rows))
                sampling.append(sequence)
                sample_rows.append(stop - 1)
            row = stop
        used = None
        if not self._indexes_cache:
            used = _UsedSlots.of(decode_slots, decode_positions, len(self.rope_table))
            if num_drafts:
                used = used.with_drafts(num_drafts, self._group)
        on_device = self._to_device(
            {
                "token_ids": tokens.token_ids[index],
                "positions": positions,
                "slots": slots,
                "windows": self._windows(plan, tokens.folded_ids[index], slots, positions),
                "sample_rows": np.array(sample_rows, np.int64),
                **({"lengths": positions[:count] + 1} if used is None else used.arrays),
            }
        )
        return BatchPlan(
            num_tokens=total,
            token_ids=on_device["token_ids"],
            positions=on_device["positions"],
            slots=on_device["slots"],
            windows=on_device["windows"],
            rope=self.rope_table.index_select(0, on_device["positions"]).unsqueeze_(1),
            sample_rows=on_device["sample_rows"],
            decode=self._decode_part(plan, used, max(decode_positions) + 1, on_device) if count else None,
            chunks=tuple(chunks),
            sampling=tuple(sampling),
            kept=kept,
        )

    def windows(self, parts: tuple[PromptPart, ...], tokens: TokenStore) -> torch.Tensor:
        """N-gram windows ``[num_tokens, max_order] int64`` of prompt tokens."""
        max_order = self.history.max_order
        pieces = [tokens.windows(part.request, part.start, part.count, max_order) for part in parts]
        return self._to_device({"windows": np.concatenate(pieces)})["windows"]

    def _windows(self, plan: StepPlan, folded_ids: Ids, slots: Ids, positions: Ids) -> Ids:
        """Windows ``[num_tokens, max_order]`` of a step's rows, whose ids become part of the history."""
        count, per_sequence, max_order = plan.num_decode_tokens, 1 + plan.num_draft_tokens, self.history.max_order
        parts = []
        if count:
            firsts, fed = slice(0, count, per_sequence), folded_ids[:count].reshape(-1, per_sequence)
            parts.append(self.history.append(slots[firsts], positions[firsts], fed).reshape(-1, max_order))
        for chunk in plan.chunks:
            rows, first = slice(count, count + chunk.count), slice(count, count + 1)
            parts.append(self.history.append(slots[first], positions[first], folded_ids[None, rows])[0])
            count += chunk.count
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _decode_part(
        self, plan: StepPlan, used: "_UsedSlots | None", longest: int, on_device: dict[str, torch.Tensor]
    ) -> DecodePart | IndexedDecode:
        count, longest = plan.num_decode_tokens, longest + plan.num_draft_tokens
        if used is None:
            return IndexedDecode(count, on_device["slots"][:count], on_device["lengths"], longest)
        context = aligned_context(longest)
        mask = self._mask_table[:, :context].index_select(0, on_device["hidden"])
        return DecodePart(
            count=count,
            tokens_per_sequence=1 + plan.num_draft_tokens,
            first_slot=used.first,
            num_slots=used.count,
            rows=on_device.get("rows"),
            gather=on_device.get("gather"),
            context=context,
            mask=mask.view(used.count, 1, -1, context),
        )

    def _chunk_part(self, chunk: PrefillChunk, first_row: int) -> ChunkPart:
        mask: torch.Tensor | None = None
        if chunk.start > 0:
            shape = (chunk.count, chunk.start + chunk.count)
            if self._device.type == "cuda":
                mask = causal_lower_right(*shape)  # a marker, not a matrix: picks the fused kernel's own offset
            else:
                mask = torch.full(shape, -torch.inf, dtype=self._dtype).triu_(chunk.start + 1)
        return ChunkPart(chunk.sequence.slot, chunk.start, chunk.count, first_row, mask)

    def _to_device(self, arrays: dict[str, Ids]) -> dict[str, torch.Tensor]:
        if self._device.type == "cpu":
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
        # One copy for all. torch gives a pinned block out again only when the copy from it has finished.
        host = torch.empty(sum(array.size for array in arrays.values()), dtype=torch.int64, pin_memory=True)
        np.concatenate([array.reshape(-1) for array in arrays.values()], out=host.numpy())
        flat = host.to(self._device, non_blocking=True)
        pieces, first = {}, 0
        for name, array in arrays.items():
            pieces[name] = flat[first : first + array.size].view(array.shape)
            first += array.size
        return pieces


@dataclass(frozen=True, slots=True)
class _UsedSlots:
    """The slots decode attention reads.

    ``arrays``: ``hidden`` ``[count] int64``, how many of a slot's last positions the mask must hide; then ``rows`` or
    ``gather`` where :class:`DecodePart` needs them.
    """

    first: int
    count: int
    arrays: dict[str, Ids]

    @classmethod
    def of(cls, slots: list[int], positions: list[int], slot_tokens: int) -> "_UsedSlots":
        """Choose for ascending ``slots`` whose new tokens are at ``positions``."""
        if not slots:
            return cls(0, 0, {})
        hidden = np.array([slot_tokens - 1 - position for position in positions], np.int64)
        span = slots[-1] - slots[0] + 1
        if span == len(slots):
            return cls(slots[0], span, {"hidden": hidden})
        numbers = np.array(slots, np.int64)
        if span > 2 * len(slots):
            return cls(0, len(slots), {"hidden": hidden, "gather": numbers})
        rows = numbers - slots[0]
        spread = np.full(span, slot_tokens - 1)  # a slot that does not decode attends to one old token; it is dropped
        spread[rows] = hidden
        return cls(slots[0], span, {"hidden": spread, "rows": rows})

    def with_drafts(self, num_drafts: int, group: int) -> "_UsedSlots":
        """The same where each sequence feeds drafts too: what is hidden from every token and head of a slot.

        ``group`` heads share a key; they lie side by side behind their token.
        """
        if not self.count:
            return self
        ahead = np.repeat(np.arange(1 + num_drafts), group)
        return _UsedSlots(
            self.first, self.count, self.arrays | {"hidden": (self.arrays["hidden"][:, None] - ahead).reshape(-1)}
        )


def _fed_rows(decodes: list[Sequence], positions: list[int], num_drafts: int, tokens: TokenStore) -> tuple[Ids, Ids]:
    """Entries in the token store, and positions, of what each sequence feeds: its last token, then its drafts."""
    ahead, per_step = np.arange(1 + num_drafts), 1 + num_drafts
    fed = tokens.fed_offsets
    firsts = np.array([fed[s.request.request_id] + s.num_decode_steps * per_step for s in decodes], np.int64)
    starts = np.array(positions, np.int64)
    return (firsts[:, None] + ahead).reshape(-1), (starts[:, None] + ahead).reshape(-1)


def _kept_samples(decodes: list[Sequence], num_drafts: int) -> tuple[list[Sequence], list[int]]:
    """The samples that become outputs, by their sequence and by their place: those that follow accepted tokens."""
    sampling: list[Sequence] = []
    kept: list[int] = []
    for row, sequence in enumerate(decodes):
        num_gained, first = sequence.num_gained, row * (1 + num_drafts)
        sampling += [sequence] * num_gained
        kept += range(first, first + num_gained)
    return sampling, kept


def _slot(sequence: Sequence) -> int:
    return sequence.slot


def _rope_table(head_dim: int, num_positions: int, device: torch.device) -> torch.Tensor:
    """Rotations ``[num_positions, head_dim / 2] complex64``: neighbouring values form the rotated pairs."""
    frequencies = ROPE_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float64), frequencies)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64).to(device)


def _mask_table(num_tokens: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Decode masks ``[num_tokens + 1, num_tokens]``: row h hides the last h positions (0 where seen, −inf where not).

    The rows are overlapping windows of one vector, so the table costs two rows of memory.
    """
    vector = torch.zeros(2 * num_tokens, dtype=dtype, device=device)
    vector[num_tokens:] = -torch.inf
    return vector.as_strided((num_tokens + 1, num_tokens), (1, 1))
