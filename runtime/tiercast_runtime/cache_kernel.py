"""A lookup in the device's row cache as one kernel. Importing this module needs triton.

In tensor operations the same takes some twenty launches. Written for Triton's interpreter as well, so its logic is
tested where there is no GPU.
"""

# A launch takes plain numbers where the kernel's signature says constexpr; triton's types do not know that.
# pyright: reportArgumentType=false

from typing import TYPE_CHECKING

import torch
import triton  # pyright: ignore[reportMissingImports]  # comes with torch for CUDA
import triton.language as tl  # pyright: ignore[reportMissingImports]

from tiercast_runtime.cache import HASH_FACTOR, ONE_USE
from tiercast_runtime.cache_torch import SKIP_ROW
from tiercast_runtime.paths.uva import as_words

if TYPE_CHECKING:
    from tiercast_runtime.cache_torch import TorchRowCache

_IDS_PER_PROGRAM = 16


# Numbers that change from step to step are not specialised on: a lookup must never meet a compilation in mid-run.
@triton.jit(do_not_specialize=["num_ids", "now"])  # type: ignore[untyped-decorator]  # triton ships no types
def _look_up(  # type: ignore[no-untyped-def]  # noqa: PLR0917  # a kernel's arguments are its wires
    tags,
    stamps,
    rows,
    ids,
    out,
    missing,
    num_missing,
    num_ids,
    now,
    num_sets,
    row_stride,
    out_stride,
    NUM_WORDS: tl.constexpr,  # noqa: N803  # capitals: compile-time constants, as triton code has them
    PADDED_WORDS: tl.constexpr,  # noqa: N803
    WAYS: tl.constexpr,  # noqa: N803
    PADDED_WAYS: tl.constexpr,  # noqa: N803
    FACTOR: tl.constexpr,  # noqa: N803
    SKIP: tl.constexpr,  # noqa: N803
    ONE: tl.constexpr,  # noqa: N803
    IS_STATIC: tl.constexpr,  # noqa: N803
    IDS: tl.constexpr,  # noqa: N803
):
    """Each program looks for IDS ids: all ways of a set at once, then the words of the rows that are here."""
    place = tl.program_id(0).to(tl.int64) * IDS + tl.arange(0, IDS)
    is_asked = place < num_ids
    row = tl.load(ids + place, mask=is_asked, other=0)
    member = ((row * FACTOR >> 32) & 0xFFFFFFFF) % num_sets
    way = tl.arange(0, PADDED_WAYS)
    slots = member[:, None] * WAYS + way[None, :]
    is_way = is_asked[:, None] & (way < WAYS)[None, :]
    is_match = tl.load(tags + slots, mask=is_way, other=0) == (row + 1)[:, None]
    is_match = is_match & is_way & (row >= 0)[:, None]  # an empty way's tag is 0, as that of id -1 would be
    slot = tl.max(tl.where(is_match, slots, -1), axis=1)
    is_hit = slot >= 0
    slot = tl.where(is_hit, slot, 0)
    if not IS_STATIC:
        # an id that comes twice: whichever program is last, the later use counts
        tl.atomic_max(stamps + slot, now + place + ONE, mask=is_hit)
    word = tl.arange(0, PADDED_WORDS)
    is_copied = is_hit[:, None] & (word < NUM_WORDS)[None, :]
    words = tl.load(rows + slot[:, None] * row_stride + word[None, :], mask=is_copied)
    tl.store(out + place[:, None] * out_stride + word[None, :], words, mask=is_copied)
    tl.store(missing + place, tl.where(is_hit, SKIP, row), mask=is_asked)
    tl.atomic_add(num_missing, tl.sum((is_asked & (is_hit == 0)).to(tl.int64), axis=0))


def launch_lookup(cache: "TorchRowCache", ids: torch.Tensor, out: torch.Tensor, now: int) -> torch.Tensor:
    """Enqueue ``TorchRowCache.lookup`` on the current stream; ``now`` is the cache's clock."""
    missing = torch.empty_like(ids)
    if not ids.numel():
        return missing
    source, target = as_words(cache.rows), as_words(out)
    if source.dtype != target.dtype:  # the narrower of the two fits both
        narrow = min(source.dtype, target.dtype, key=lambda dtype: dtype.itemsize)
        source, target = cache.rows.view(narrow), out.view(narrow)
    num_words = source.shape[1]
    _look_up[(triton.cdiv(ids.numel(), _IDS_PER_PROGRAM),)](  # pyright: ignore[reportIndexIssue]  # a launcher
        cache.tags,
        cache.stamps,
        source,
        ids,
        target,
        missing,
        cache.num_missing,
        ids.numel(),
        now,
        cache.num_sets,
        source.stride(0),
        target.stride(0),
        NUM_WORDS=num_words,
        PADDED_WORDS=triton.next_power_of_2(num_words),
        WAYS=cache.num_ways,
        PADDED_WAYS=triton.next_power_of_2(cache.num_ways),
        FACTOR=HASH_FACTOR,
        SKIP=SKIP_ROW,
        ONE=ONE_USE,
        IS_STATIC=cache.policy == "static_hot",
        IDS=_IDS_PER_PROGRAM,
    )
    return missing
