"""Many reads of one file at once: Linux native AIO by its system calls, a pool of threads, or a memory map."""

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import numpy as np
import numpy.typing as npt

from tiercast_runtime.polling import polling_ends_ns
from tiercast_runtime.threads import submit_all

# io_setup, io_destroy, io_getevents, io_submit: Linux kernel, arch/*/include/…/unistd
_SYSCALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}

# "data" comes back as it was given. Here it numbers the read, signed as what indexes an array.
_IOCB = np.dtype(  # struct iocb of linux/aio_abi.h, little-endian; opcode 0 is IOCB_CMD_PREAD
    [
        ("data", "i8"), ("key", "u4"), ("rw_flags", "u4"), ("opcode", "u2"), ("priority", "i2"),
        ("descriptor", "u4"), ("buffer", "u8"), ("num_bytes", "u8"), ("offset", "i8"), ("reserved", "u8"),
        ("flags", "u4"), ("event_fd", "u4"),
    ]
)  # fmt: skip
_IO_EVENT = np.dtype([("data", "i8"), ("iocb", "u8"), ("result", "i8"), ("result_2", "i8")])

# The kernel starts reads that come in one call only when it has prepared the last of them, and a drive with little in
# flight waits for that. So reads go over in pieces: a few, then each time as many as are in flight. On a virtual drive
# 32 reads in one call ran at 0.78 of fio's rate, in pieces of 1 to 8 at 0.93 to 1.03 of it.
_FIRST_PIECE = 4

Int64Array = npt.NDArray[np.int64]


class ShortRead(Exception):
    """A read that failed or ended early: its index, and a negative error number or the bytes that came."""

    def __init__(self, index: int, result: int) -> None:
        super().__init__(index, result)
        self.index = index
        self.result = result


def _system_call(library: ctypes.CDLL, number: int, *arguments: object) -> int:
    result = int(library.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class NativeAio:
    """One kernel AIO context.

    Args:
        depth: reads in flight at most.
        polls: whether a wait keeps its core and asks again and again (:mod:`tiercast_runtime.polling`).
    """

    def __init__(self, depth: int, *, polls: bool = False) -> None:
        if sys.platform != "linux" or sys.byteorder != "little" or platform.machine() not in _SYSCALLS:
            raise OSError(errno.ENOSYS, "native AIO is known here for Linux on x86_64 and aarch64")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc_keeping_lock = ctypes.PyDLL(None, use_errno=True)
        setup, self._destroy, self._getevents, self._submit = _SYSCALLS[platform.machine()]
        self._depth, self._polls = depth, polls
        self._events = np.zeros(depth, dtype=_IO_EVENT)
        self._make_room(depth)
        context = ctypes.c_ulong(0)
        _system_call(self._libc, setup, ctypes.c_long(depth), ctypes.byref(context))
        self._context: ctypes.c_ulong | None = context

    def read(self, descriptor: int, offsets: Int64Array, lengths: Int64Array, wanted: Int64Array, address: int) -> None:
        """Read every span to its place at ``address``; spans lie there one after the other.

        Raises:
            ShortRead: after the last read in flight has ended, so the memory may be freed.
            OSError: the kernel took no reads.
        """
        count, context = len(offsets), ctypes.c_ulong(self._context.value if self._context else 0)
        if count > len(self._control):
            self._make_room(1 << (count - 1).bit_length())
        control = self._control[:count]
        control["descriptor"] = descriptor
        control["buffer"] = address + lengths.cumsum() - lengths
        control["num_bytes"] = lengths
        control["offset"] = offsets
        num_submitted, num_done = 0, 0
        failure: Exception | None = None
        while num_done < (num_submitted if failure else count):
            num_free = min(self._depth - (num_submitted - num_done), count - num_submitted)
            if num_free > 0 and failure is None:
                end = num_submitted + num_free
                num_submitted, failure = self._submit_pieces(context, num_submitted, end, num_done)
                if failure is not None:
                    continue
            num_in_flight = num_submitted - num_done
            # Waiting for a quarter of the depth keeps the drive busy and wakes this thread a few times per lookup only.
            num_awaited = num_in_flight if num_submitted == count else max(1, num_in_flight // 4)
            num_done += (num_reaped := self._reap(context, num_awaited))
            events = self._events[:num_reaped]
            is_short = events["result"] < wanted[events["data"]]
            if is_short.any() and failure is None:
                first_short = int(is_short.argmax())
                failure = ShortRead(int(events["data"][first_short]), int(events["result"][first_short]))
        if failure is not None:
            raise failure

    def _submit_pieces(
        self, context: ctypes.c_ulong, first: int, end: int, num_done: int
    ) -> tuple[int, OSError | None]:
        """Hand reads ``first … end − 1`` to the kernel until it takes no more.

        Returns:
            The first read it did not take, and why it never will; None where it will, or took all.
        """
        while first < end:
            size = min(end - first, max(_FIRST_PIECE, first - num_done))
            # The last piece alone lets go of the interpreter lock: a thread that computes in Python would take it at
            # every piece and keep it for milliseconds.
            library = self._libc if size == end - first else self._libc_keeping_lock
            place = ctypes.c_void_p(self._pointers_address + 8 * first)
            try:
                num_taken = _system_call(library, self._submit, context, ctypes.c_long(size), place)
            except OSError as error:
                is_full = error.errno == errno.EAGAIN and first > num_done  # those in flight make room when they end
                return first, None if is_full else error
            first += num_taken
            if num_taken < size:
                break
        return first, None

    def _make_room(self, count: int) -> None:
        """Make control blocks for ``count`` reads, with what all reads have alike filled in, and pointers to them."""
        self._control = np.zeros(count, dtype=_IOCB)
        self._control["data"] = np.arange(count)
        addresses = np.arange(count, dtype=np.uint64) * np.uint64(_IOCB.itemsize)
        self._pointers = self._control.ctypes.data + addresses
        self._pointers_address = int(self._pointers.ctypes.data)

    def _reap(self, context: ctypes.c_ulong, num_awaited: int) -> int:
        """Wait for reads to end: for so many of them asleep, for any while polling; how many did."""
        polling_ends = polling_ends_ns(polls=self._polls)
        while time.perf_counter_ns() < polling_ends:
            if num_ended := self._ended(context, 0):
                return num_ended
        return self._ended(context, num_awaited)

    def _ended(self, context: ctypes.c_ulong, num_awaited: int) -> int:
        while True:
            try:
                return _system_call(
                    self._libc,
                    self._getevents,
                    context,
                    ctypes.c_long(num_awaited),
                    ctypes.c_long(self._depth),
                    ctypes.c_void_p(self._events.ctypes.data),
                    None,
                )
            except InterruptedError:
                continue

    def close(self) -> None:
        """Give the context back."""
        if self._context is not None:
            with contextlib.suppress(OSError):
                _system_call(self._libc, self._destroy, self._context)
            self._context = None


_Span = tuple[int, int, int, int]  # offset in the file, length, bytes that must come, place in memory


def _spans(offsets: Int64Array, lengths: Int64Array, wanted: Int64Array) -> list[_Span]:
    places = lengths.cumsum() - lengths
    return list(zip(offsets.tolist(), lengths.tolist(), wanted.tolist(), places.tolist(), strict=True))


def _read_span(descriptor: int, memory: memoryview, index: int, span: _Span) -> None:
    offset, length, least, place = span
    try:
        result = os.preadv(descriptor, [memory[place : place + length]], offset)
    except OSError as error:
        result = -(error.errno or errno.EIO)
    if result < least:
        raise ShortRead(index, result)


class SingleReads:
    """The same one at a time: a read is one system call that waits, where AIO takes two."""

    def read(
        self, descriptor: int, offsets: Int64Array, lengths: Int64Array, wanted: Int64Array, memory: memoryview
    ) -> None:
        """Read every span to its place in ``memory``; spans lie there one after the other.

        Raises:
            ShortRead: a read failed or ended early; later ones were not tried.
        """
        for index, span in enumerate(_spans(offsets, lengths, wanted)):
            _read_span(descriptor, memory, index, span)

    def close(self) -> None:
        """Nothing is held."""


class PreadPool:
    """The same with threads: a Python call per read, so slower where reads are many."""

    def __init__(self, num_threads: int) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tiercast-pread")
        self._num_threads = num_threads

    def read(
        self, descriptor: int, offsets: Int64Array, lengths: Int64Array, wanted: Int64Array, memory: memoryview
    ) -> None:
        """Read every span to its place in ``memory``; spans lie there one after the other.

        Raises:
            ShortRead: a read failed or ended early.
        """
        spans = _spans(offsets, lengths, wanted)

        def share(first: int) -> None:
            for index in range(first, len(spans), self._num_threads):
                _read_span(descriptor, memory, index, spans[index])

        calls = [partial(share, first) for first in range(min(self._num_threads, len(spans)))]
        pending = submit_all(self._pool, calls, "a read thread")
        wait(pending)  # no thread writes into the memory once this has returned or raised
        for done in pending:
            done.result()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


class MappedFile:
    """The same through a memory map and the page cache: pages are asked for ``depth`` spans ahead, then copied.

    A drive that cannot read a page ends the process here (SIGBUS), where the other ways report an error; and a file cut
    between the look at its size and the copy does the same. So this way is taken only when it is asked for.
    """

    def __init__(self, descriptor: int, depth: int) -> None:
        if not hasattr(mmap, "MADV_WILLNEED"):
            raise OSError(errno.ENOSYS, "mapped reads need madvise")
        self._depth = depth
        self._map: mmap.mmap | None = None
        if os.fstat(descriptor).st_size:
            self._map = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
            self._map.madvise(mmap.MADV_RANDOM)  # no read-ahead of the kernel's own: the next row is elsewhere

    def read(
        self, descriptor: int, offsets: Int64Array, lengths: Int64Array, wanted: Int64Array, memory: memoryview
    ) -> None:
        """Read every span to its place in ``memory``; spans lie there one after the other.

        Raises:
            ShortRead: the file ends before a span does.
        """
        size_bytes = os.fstat(descriptor).st_size
        short = np.flatnonzero(offsets + wanted > min(size_bytes, len(self._map or b"")))
        if short.size:
            first = int(short[0])
            raise ShortRead(first, max(0, size_bytes - int(offsets[first])))
        assert self._map is not None, "an empty file is too short for any span"
        starts = offsets // mmap.PAGESIZE * mmap.PAGESIZE
        pages = list(zip(starts.tolist(), (offsets + wanted - starts).tolist(), strict=True))
        for start, length in pages[: self._depth]:
            self._map.madvise(mmap.MADV_WILLNEED, start, length)
        place = 0
        source = memoryview(self._map)
        for index, (offset, length) in enumerate(zip(offsets.tolist(), wanted.tolist(), strict=True)):
            if index + self._depth < len(pages):
                self._map.madvise(mmap.MADV_WILLNEED, *pages[index + self._depth])
            memory[place : place + length] = source[offset : offset + length]
            place += int(lengths[index])
        source.release()

    def close(self) -> None:
        """Unmap the file."""
        if self._map is not None:
            self._map.close()
