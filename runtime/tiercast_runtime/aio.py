"""Random reads of rows from a file, past the page cache, many at once.

Linux native AIO does it with a handful of system calls per lookup and no Python work per row; ctypes lets go of the
interpreter lock inside each call. Where AIO is not available a pool of threads reads with ``preadv``; where the file
system refuses direct I/O the reads go through the page cache. ``mode`` says which, so that a record can. A memory map
is the other arm, for comparison: it is taken only when it is asked for.
"""

import errno
import mmap
import os
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import BadInput, FileProblem, MissingCapability
from tiercast_runtime.kernel_aio import Int64Array, MappedFile, NativeAio, PreadPool, ShortRead, SingleReads

ReadMode = Literal["aio_direct", "pread_direct", "pread_buffered", "mmap"]
READ_MODES: tuple[ReadMode, ...] = ("aio_direct", "pread_direct", "pread_buffered")  # the best first

# Reads in flight. On a virtual NVMe drive 32 gave 38,500 rows/s, 128 48,300, 512 56,000, 1024 53,100.
DEFAULT_DEPTH = 256
_PREAD_THREADS = 16


class RowReader:
    """Reads rows of one file at random offsets.

    ``depth`` reads are in flight at most. ``mode`` forces one way to read; by default it is the best this machine has,
    which at a depth of 1 is a ``pread`` per read. ``polls`` has AIO keep the core while it waits
    (:mod:`tiercast_runtime.polling`); the other ways sleep. ``granularity_bytes`` is the block a direct read is rounded
    to, 1 for reads through the page cache. One thread at a time.

    Raises:
        FileProblem: the file is missing or cannot be read.
        MissingCapability: the forced mode is not available here.
    """

    def __init__(
        self, path: Path, *, depth: int = DEFAULT_DEPTH, mode: ReadMode | None = None, polls: bool = False
    ) -> None:
        if depth < 1:
            raise BadInput(f"depth={depth}; must be at least 1")
        self.path = path
        self.depth, self.polls = depth, polls
        self.num_reads = 0
        self.num_bytes_read = 0
        self._aio: NativeAio | None = None
        self._pool: PreadPool | MappedFile | SingleReads | None = None
        self._map = mmap.mmap(-1, 1 << 20)
        wanted = READ_MODES if mode is None else (mode,)
        self._descriptor, self.granularity_bytes = self._open(wanted)
        self._size_bytes = os.fstat(self._descriptor).st_size
        self.mode: ReadMode = "pread_buffered"
        if self.granularity_bytes > 1:
            self.mode = "pread_direct"
            if "aio_direct" in wanted and (depth > 1 or mode is not None):
                try:
                    self._aio = NativeAio(depth, polls=polls)
                    self.mode = "aio_direct"
                except OSError as error:
                    if mode is not None:
                        os.close(self._descriptor)
                        raise MissingCapability(f"no native AIO here ({error.strerror}); use pread_direct") from None
        if mode == "mmap":
            self.mode = mode
            try:
                self._pool = MappedFile(self._descriptor, depth)
            except OSError as error:
                os.close(self._descriptor)
                raise MissingCapability(f"{path}: cannot be mapped ({error.strerror}); use pread_buffered") from None
        elif self._aio is None and depth == 1:
            self._pool = SingleReads()
        elif self._aio is None:
            self._pool = PreadPool(min(depth, _PREAD_THREADS))
        self._is_open = True

    def _open(self, wanted: tuple[ReadMode, ...]) -> tuple[int, int]:
        """Descriptor and read granularity: the smallest block that direct I/O accepts on this file."""
        try:
            is_cached = wanted in {("pread_buffered",), ("mmap",)}
            if not is_cached and hasattr(os, "O_DIRECT"):
                granularity = self._probe_direct()
                if granularity:
                    return os.open(self.path, os.O_RDONLY | os.O_DIRECT), granularity
            if not is_cached and "pread_buffered" not in wanted:
                raise MissingCapability(f"{self.path}: its file system refuses direct I/O; use pread_buffered")
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise FileProblem(f"{self.path}: cannot be read ({error.strerror or error})") from None
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead: the next row is elsewhere
        return descriptor, 1

    def _probe_direct(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return 0
            raise
        try:
            for granularity in (512, 4096):
                try:
                    # the odd offset tells a 512-byte block from a 4096-byte one
                    os.preadv(descriptor, [memoryview(self._map)[:granularity]], granularity)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                else:
                    return granularity
        finally:
            os.close(descriptor)
        return 0

    @property
    def bypasses_page_cache(self) -> bool:
        """Whether reads come from the drive itself."""
        return self.granularity_bytes > 1

    def read_rows(self, offsets: Int64Array, out: npt.NDArray[np.uint8]) -> None:
        """Read ``out.shape[1]`` bytes at each of the ascending ``offsets`` into the rows of ``out``.

        Blocks that touch are read once.

        Raises:
            FileProblem: a read failed or the file ends too early; names file and offset; ``out`` is void.
        """
        width, num_rows = out.shape[1], len(offsets)
        assert len(out) == num_rows, "one row of out per offset"
        if num_rows == 0:
            return
        assert (offsets[1:] >= offsets[:-1]).all(), "offsets must ascend"
        # A lookup after a step of compute finds its code out of the caches, and each function of NumPy's that is
        # written in Python then costs tens of microseconds: methods and ufuncs only.
        block = self.granularity_bytes  # a power of two
        starts = offsets & -block
        ends = (offsets + (width + block - 1)) & -block
        is_first = np.empty(num_rows, dtype=np.bool_)
        is_first[0] = True
        # buffered reads (block 1) merge only what touches; direct ones also what shares a block
        np.greater(starts[1:], ends[:-1], out=is_first[1:])
        is_last = np.empty(num_rows, dtype=np.bool_)
        is_last[-1] = True
        is_last[:-1] = is_first[1:]
        span_starts = starts[is_first]
        lengths = ends[is_last] - span_starts
        span_places = lengths.cumsum() - lengths
        memory = self._memory(int(span_places[-1] + lengths[-1]))
        self._read(span_starts, lengths, memory)
        places = (span_places - span_starts)[is_first.cumsum() - 1] + offsets
        windows: npt.NDArray[np.uint8] = np.ndarray((len(memory) - width + 1, width), np.uint8, memory, 0, (1, 1))
        out[...] = windows[places]

    def read_blocks(self, offsets: Int64Array, size: int) -> None:
        """Read blocks of ``size`` bytes at ``offsets`` into memory of this reader and leave them there.

        What the drive delivers, without the copies that make rows of it. With a depth of 1 every block goes to the same
        place. Offsets and size are multiples of ``granularity_bytes``; blocks lie inside the file.

        Raises:
            FileProblem: a read failed or the file ends too early; names file and offset.
        """
        if self.depth > 1:
            lengths = np.full(len(offsets), size, dtype=np.int64)
            self._read(offsets, lengths, self._memory(len(offsets) * size))
            return
        target = [self._memory(size).data]
        for offset in offsets.tolist():
            try:
                result = os.preadv(self._descriptor, target, offset)
            except OSError as error:
                raise FileProblem(
                    f"{self.path}: read at offset {offset:,} failed ({error.strerror or error})"
                ) from None
            if result < size:
                raise FileProblem(f"{self.path}: ends too early: offset {offset:,} gave {result:,} of {size:,} bytes")
        self.num_reads += len(offsets)
        self.num_bytes_read += len(offsets) * size

    def _memory(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        if num_bytes > len(self._map):
            self._map = mmap.mmap(-1, 1 << (num_bytes - 1).bit_length())  # page-aligned, as direct I/O needs
        return np.frombuffer(self._map, dtype=np.uint8)[:num_bytes]

    def _read(self, starts: Int64Array, lengths: Int64Array, memory: npt.NDArray[np.uint8]) -> None:
        wanted = np.minimum(lengths, self._size_bytes - starts)  # the last block of a file is a part of one
        try:
            if wanted[-1] <= 0:
                raise ShortRead(len(wanted) - 1, 0)
            if self._pool is not None:
                self._pool.read(self._descriptor, starts, lengths, wanted, memory.data)
            elif self._aio is not None:
                self._aio.read(self._descriptor, starts, lengths, wanted, int(memory.ctypes.data))
        except ShortRead as short:
            offset = int(starts[short.index])
            if short.result < 0:
                raise FileProblem(
                    f"{self.path}: read at offset {offset:,} failed ({os.strerror(-short.result)})"
                ) from None
            raise FileProblem(
                f"{self.path}: ends too early: offset {offset:,} gave {short.result:,} of "
                f"{int(wanted[short.index]):,} bytes; the file was truncated: "
                "delete a table file to have it written anew, fetch a checkpoint again"
            ) from None
        except OSError as error:
            raise FileProblem(f"{self.path}: reads cannot be submitted ({error.strerror or error})") from None
        self.num_reads += len(starts)
        self.num_bytes_read += int(lengths.sum())

    def close(self) -> None:
        """Close the file and the kernel context; a second call does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        if self._aio is not None:
            self._aio.close()
        if self._pool is not None:
            self._pool.close()
        os.close(self._descriptor)
