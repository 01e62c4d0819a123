"""Batch sizes at which decoding steps are captured as graphs; a batch in between is padded to the next one."""

from collections.abc import Sequence

MAX_GRAPH_ROWS = 1024  # a larger decode batch keeps the GPU busy for longer than its launches take
# Up to 64 rows in steps of 8, up to 256 of 16, up to 512 of 32, then of 64: few captures, little padding.
_STEPS = ((64, 8), (256, 16), (512, 32), (MAX_GRAPH_ROWS, 64))


def bucket_sizes(max_rows: int) -> tuple[int, ...]:
    """Batch sizes to capture for batches of up to ``max_rows``, ascending; the largest batch has one of its own."""
    sizes = {1, 2, 4}
    first = 0
    for last, step in _STEPS:
        sizes.update(range(first + step, last + 1, step))
        first = last
    largest = min(max_rows, MAX_GRAPH_ROWS)
    return tuple(sorted({size for size in sizes if size < largest} | {largest}))


def bucket_for(num_rows: int, sizes: Sequence[int]) -> int | None:
    """The smallest captured size that holds a batch; None when all are too small."""
    return next((size for size in sizes if size >= num_rows), None)
