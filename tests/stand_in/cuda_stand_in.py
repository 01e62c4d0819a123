"""A stand-in for one CUDA GPU on a machine without any: the code for GPUs runs, on the CPU, with its order checked.

``install`` changes torch for the rest of a process, so it belongs into a process of its own. It gives

- tensors that say they are on ``cuda:0`` and refuse to be mixed with tensors of the host, as those of a GPU do;
- streams and events with a happens-before relation (vector clocks): work that reads or writes memory which another
  stream wrote or reads, without an event between the two, is a fault, and so is memory given back while another stream
  still uses it (``record_stream``) or unpinned while a kernel may still read it;
- asynchronous copies that happen as late as the order allows: one to the host delivers when the host has waited for
  it, and one out of pinned memory reads that memory only when something needs the result;
- captures that compute nothing and leave garbage behind, and replays that run the same work on the same memory;
- Triton kernels in Triton's interpreter, which read and write only memory of the device and pinned host memory.

It says nothing of speed, and does nothing at the same time: times are those of the CPU. Not seen are the host's own
reads and writes of pinned memory (but for the late copies) and order between threads of the host, which are taken for
one that does everything in turn; complaints that a kernel leaves in host memory are there at once. Order is by block
of memory, not by byte. Nothing is pinned, so no limit of locked memory shows.
"""

import ctypes
import inspect
import itertools
import operator
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_flatten, tree_map

CUDA, HOST = torch.device("cuda", 0), torch.device("cpu")
FREE_BYTES, TOTAL_BYTES = 6 << 30, 8 << 30
NUM_UNITS = 4
GARBAGE = 0x5A  # in memory of a capture that has not been replayed

# What each of our kernels writes; the rest it only reads. Interpreted code does not say so by itself.
KERNEL_WRITES = {
    "_gather_rows": {"out", "complaints"},
    "_hash_windows": {"out"},
    "_look_up": {"stamps", "out", "missing", "num_missing"},
    "_chase": {"place"},
    "_rms_norm": {"out"},
    "_rotate_and_store": {"qkv", "cache"},
    "_silu_mul": {"out"},
    "_attend_splits": {"sums", "weights"},
    "_join_splits": {"out"},
}
METADATA_ONLY = ("empty_like", "new_empty", "new_empty_strided", "new_zeros", "zeros_like", "ones_like", "full_like")
MIXES_DEVICES = ("copy_", "_to_copy", "index", "index_put_", "_index_put_impl_")
CHANGES_SHAPE = ("resize_", "set_", "t_", "squeeze_", "unsqueeze_", "transpose_")

Clock = dict["Stream", int]
Tensors = list[torch.Tensor]


class Fault(AssertionError):
    """The code asked for something a GPU would answer with wrong bytes now and then."""


class Gpu:
    """The one device: its streams, what the host has waited for, copies under way, and the faults found."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.local = threading.local()
        self.host: Clock = {}
        self.default = Stream.__new__(Stream)
        self.default.start("default")
        self.deliveries: list[tuple[Stream, int, Callable[[], object]]] = []
        self.pinned: dict[int, _PinnedRange] = {}
        self.pinned_by_torch: list[torch.Tensor] = []
        self.capture: Capture | None = None
        self.faults: list[str] = []
        self.log: list[tuple[str, str]] = []  # stream, operation or kernel
        self.launched: list[Launch] | None = None  # every piece of work with its order, where a test asks for it

    def current(self) -> "Stream":
        return getattr(self.local, "stream", self.default)

    def fault(self, message: str) -> Fault:
        """Kept as well as raised: what is raised may be caught as one more refusal of a GPU."""
        self.faults.append(message)
        return Fault(message)

    def host_waits(self, clock: Clock) -> None:
        """The host knows that everything in ``clock`` is done."""
        self.refuse_in_capture("a wait of the host")
        _merge(self.host, clock)
        ready = [entry for entry in self.deliveries if self.host.get(entry[0], 0) >= entry[1]]
        self.deliveries = [entry for entry in self.deliveries if self.host.get(entry[0], 0) < entry[1]]
        for _, _, deliver in ready:
            deliver()

    def synchronize(self, device: object = None) -> None:
        with self.lock:
            for stream in list(Stream.all):
                self.host_waits(stream.clock)

    def refuse_in_capture(self, what: str) -> None:
        if self.capture is not None and self.capture.thread is threading.current_thread():
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")

    def pin(self, address: int, num_bytes: int, flags: int = 0) -> int:
        self.pinned[address] = _PinnedRange(num_bytes)
        return 0

    def unpin(self, address: int) -> int:
        if address not in self.pinned:
            return 1
        for stream, count in self.pinned.pop(address).uses.items():
            if self.host.get(stream, 0) < count:
                raise self.fault("host memory is unpinned while a kernel may still read it")
        return 0

    def pinned_range(self, tensor: torch.Tensor) -> "_PinnedRange | None":
        """The pinned memory a tensor of the host lies in; None where it is pageable."""
        address = tensor.data_ptr()
        for first, pinned in self.pinned.items():
            if first <= address < first + pinned.num_bytes:
                return pinned
        return None


class Launch(NamedTuple):
    """One piece of work: where it stands in its stream, and what is done before it starts."""

    stream: "Stream"
    what: str
    count: int
    clock: Clock

    def is_after(self, other: "Launch") -> bool:
        """Whether ``other`` is done by then, whatever the device does: by its stream, by events or by the host."""
        return self.clock.get(other.stream, 0) >= other.count


class _PinnedRange:
    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.uses: Clock = {}


def _merge(clock: Clock, other: Clock) -> None:
    for stream, count in other.items():
        clock[stream] = max(count, clock.get(stream, 0))


class Stream:
    """Work in order; ``clock`` says how much of every stream is done before what comes next in this one."""

    all: "weakref.WeakSet[Stream]" = weakref.WeakSet()
    numbers = itertools.count(1)

    def __init__(self, device: object = None, priority: int = 0, **_: object) -> None:
        assert torch.device(device or CUDA) == CUDA, "there is one GPU"
        self.start(f"stream {next(self.numbers)}")

    def start(self, name: str) -> None:
        self.name, self.clock, self.count = name, {}, 0
        Stream.all.add(self)

    def launch(self) -> int:
        """One more piece of work, after everything the host knows to be done."""
        _merge(self.clock, GPU.host)
        self.count += 1
        self.clock[self] = self.count
        return self.count

    def wait_event(self, event: "Event") -> None:
        with GPU.lock:
            if event.clock is None:
                raise GPU.fault(f"{self.name} waits for an event that nothing has recorded")
            _merge(self.clock, event.clock)
            if GPU.capture is not None and event.capture is GPU.capture:
                GPU.capture.streams.add(self)

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(other.record_event())

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = Event() if event is None else event
        event.record(self)
        return event

    def synchronize(self) -> None:
        with GPU.lock:
            GPU.host_waits(self.clock)

    def query(self) -> bool:
        return GPU.host.get(self, 0) >= self.count


class Event:
    """A point in a stream. Its time can be taken only where it was asked for, and once the host knows it is past."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, external: bool = False, **_: object):
        self.is_timed, self.is_external = enable_timing, external
        self.clock: Clock | None = None
        self.stream: Stream | None = None
        self.capture: Capture | None = None
        self.at_ns = 0

    def record(self, stream: "Stream | None" = None) -> None:
        with GPU.lock:
            stream = GPU.current() if stream is None else stream
            capture = GPU.capture if GPU.capture is not None and stream in GPU.capture.streams else None
            self.capture = capture
            self._pass(stream)
            if capture is not None and self.is_external:
                capture.steps.append(self._pass)

    def _pass(self, stream: Stream) -> None:
        stream.launch()
        self.clock, self.stream, self.at_ns = dict(stream.clock), stream, time.perf_counter_ns()
        GPU.log.append((stream.name, "event"))

    def wait(self, stream: "Stream | None" = None) -> None:
        (GPU.current() if stream is None else stream).wait_event(self)

    def synchronize(self) -> None:
        with GPU.lock:
            GPU.refuse_in_capture("a wait for an event")
            if self.clock is None:
                raise GPU.fault("the host waits for an event that nothing has recorded")
            GPU.host_waits(self.clock)

    def query(self) -> bool:
        return self.clock is None or self._is_past()

    def _is_past(self) -> bool:
        assert self.clock is not None
        assert self.stream is not None
        return GPU.host.get(self.stream, 0) >= self.clock[self.stream]

    def elapsed_time(self, other: "Event") -> float:
        with GPU.lock:
            for event in (self, other):
                if not event.is_timed or event.clock is None or (event.capture is not None and not event.is_external):
                    raise RuntimeError("CUDA error: invalid resource handle (an event without a time)")
                if not event._is_past():
                    raise GPU.fault("CUDA error: device not ready (nobody waited for an event whose time is read)")
            return (other.at_ns - self.at_ns) / 1e6


class Memory:
    """One block of the device: who wrote it last, who has read it since, and whose pool it goes back to."""

    def __init__(self, stream: Stream, capture: "Capture | None") -> None:
        self.home, self.capture = stream, capture
        self.written: tuple[Stream, int] | None = None
        self.read: Clock = {}
        self.recorded: set[Stream] = set()
        self.coming: list[Callable[[], object]] = []  # copies from pinned memory that have not read it yet

    def use(self, stream: Stream, count: int, *, writes: bool, what: str) -> None:
        before: list[tuple[Stream, int]] = [] if self.written is None else [self.written]
        if writes:
            before += self.read.items()
        for other, number in before:
            if other is not stream and stream.clock.get(other, 0) < number:
                done = "writes" if writes else "reads"
                raise GPU.fault(f"{what} in {stream.name} {done} memory that {other.name} uses: no event between them")
        self.arrive()
        if writes:
            self.written, self.read = (stream, count), {}
        else:
            self.read[stream] = count

    def arrive(self) -> None:
        coming, self.coming = self.coming, []
        for copy in coming:
            copy()

    def __del__(self) -> None:
        uses = [*self.read.items(), *([] if self.written is None else [self.written])]
        for stream, count in uses if self.capture is None else ():
            is_over = max(self.home.clock.get(stream, 0), GPU.host.get(stream, 0)) >= count
            if stream is not self.home and stream not in self.recorded and not is_over:
                GPU.fault(f"memory of {self.home.name} is given back while {stream.name} uses it: no record_stream")


class CudaTensor(torch.Tensor):
    """Says it is on ``cuda:0``; its bytes are in ``host``, its block is ``memory``."""

    host: torch.Tensor
    memory: Memory
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor, memory: Memory) -> "CudaTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=CUDA,
        )
        made.host, made.memory = host, memory
        return made

    def __init__(self, host: torch.Tensor, memory: Memory) -> None:
        super().__init__()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        with GPU.lock:
            return _run(func, args, dict(kwargs or {}))

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"CudaTensor({self.host})"

    def __getitem__(self, index: Any) -> "CudaTensor":
        if not _tensors_in(index):
            return CudaTensor(self.host[index], self.memory)
        with GPU.lock:
            if any(one.dtype == torch.bool for one in _tensors_in(index)):
                GPU.refuse_in_capture("a choice by mask, whose size the host must know")
            return Work(operator.getitem, (self, index), {}, "index", _tensors_in((self, index)), []).first()

    def __setitem__(self, index: Any, value: Any) -> None:
        if not _tensors_in(index):
            target = self[index]
            target.copy_(value) if isinstance(value, torch.Tensor) else target.fill_(value)
            return
        with GPU.lock:
            if isinstance(value, torch.Tensor) and value.dim() and _is_on_host(value):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found cuda:0 and cpu (index_put_)"
                )
            Work(operator.setitem, (self, index, value), {}, "index_put_", _tensors_in((index, value)), [self]).first()

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> "CudaTensor":
        with GPU.lock:
            return _run(torch.ops.aten.copy_.default, (self, source, non_blocking), {})

    def unsqueeze_(self, dim: int) -> "CudaTensor":
        return CudaTensor(self.host.unsqueeze(dim), self.memory)  # whoever keeps the old name keeps the old shape

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def record_stream(self, stream: Stream) -> None:
        self.memory.recorded.add(stream)

    def is_pinned(self, device: object = None) -> bool:
        return False


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation with at least one tensor of the device in it, on the current stream."""
    name = func._schema.name.split("::")[1]
    if isinstance(func, torch._ops.OpOverload) and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    ):
        return func.decompose(*args, **kwargs)  # in inference mode torch has not taken it apart
    assert name not in CHANGES_SHAPE, f"{name} changes a tensor's shape, which this stand-in does not follow"
    if name == "_fused_sdp_choice":
        return 0  # the plain form, which is made of operations any device has
    if name == "copy_" and not kwargs.get("non_blocking") and len(args) > 2:
        args, kwargs = args[:2], {"non_blocking": args[2]}
    if name == "copy_" and _is_on_host(args[0]) != _is_on_host(args[1]):
        return _copy(args[0], args[1], is_async=bool(kwargs.get("non_blocking")))
    target = torch.device(kwargs.pop("device", None) or CUDA)
    if name == "_to_copy" and target.type == "cpu":
        made = torch.empty_like(args[0].host, dtype=kwargs.get("dtype"))
        return _copy(made, args[0], is_async=bool(kwargs.get("non_blocking")))
    if name in ("_local_scalar_dense", "equal", "nonzero", "masked_select", "is_nonzero") or (
        name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
    ):
        GPU.refuse_in_capture(name)  # the host must know the values, or how many there are
    if name not in MIXES_DEVICES and any(_is_on_host(one) and one.dim() for one in _tensors_in((args, kwargs))):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({name})")
    return Work(func, args, kwargs, name, *_uses(func, args, kwargs, name)).first()


def _tensors_in(value: Any) -> Tensors:
    return [one for one in tree_flatten(value)[0] if isinstance(one, torch.Tensor)]


def _is_on_host(tensor: torch.Tensor) -> bool:
    return not isinstance(tensor, CudaTensor)


def _on_device(tensors: Tensors) -> Tensors:
    return [one for one in tensors if isinstance(one, CudaTensor)]


def _bare(value: Any) -> Any:
    return value.host if isinstance(value, CudaTensor) else value


class Work:
    """An operation, and how to do it again on the same memory."""

    def __init__(self, func: Any, args: Any, kwargs: Any, name: str, reads: Tensors, writes: Tensors) -> None:
        self.func, self.args, self.kwargs, self.name = func, args, kwargs, name
        self.reads, self.writes = _on_device(reads), _on_device(writes)
        self.made: list[tuple[int, torch.Tensor]] = []

    def first(self) -> Any:
        stream = GPU.current()
        count = _start(stream, self.name, self.reads, self.writes)
        capture = _capture_of(stream)
        if capture is not None:
            capture.keep(self.writes)
        out = self.compute()
        given = {id(_bare(value)): value for value in tree_flatten((self.args, self.kwargs))[0]}
        blocks = {
            value.host.untyped_storage()._cdata: value.memory
            for value in given.values()
            if isinstance(value, CudaTensor)
        }
        flat, _ = tree_flatten(out)
        wrapped: dict[int, Any] = {}
        for place, value in enumerate(flat):
            if not isinstance(value, torch.Tensor):
                continue
            if id(value) in given:
                wrapped[id(value)] = given[id(value)]
                continue
            memory = blocks.get(value.untyped_storage()._cdata)
            if memory is None:
                memory = Memory(stream, capture)
                memory.written = (stream, count)
                if capture is not None:
                    capture.order[memory] = (None, {})
                self.made.append((place, value))
                if capture is not None:
                    capture.made.append(value)
            wrapped[id(value)] = CudaTensor(value, memory)
        if capture is not None:
            capture.steps.append(self.again)
        if self.name in ("_local_scalar_dense", "equal", "nonzero", "masked_select", "is_nonzero"):
            GPU.host_waits(stream.clock)
        return tree_map(lambda value: wrapped.get(id(value), value), out)

    def compute(self) -> Any:
        return self.func(*tree_map(_bare, self.args), **tree_map(_bare, self.kwargs))

    def again(self, stream: Stream) -> None:
        _start(stream, self.name, self.reads, self.writes)
        flat, _ = tree_flatten(self.compute())
        for place, value in self.made:
            value.copy_(flat[place])


def _uses(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> tuple[Tensors, Tensors]:
    """What an operation reads and writes, by its schema; a view does neither."""
    schema = func._schema
    aliases = [argument.alias_info for argument in schema.arguments]
    is_view = any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
    if is_view or name in METADATA_ONLY:
        return [], []
    reads: Tensors = []
    writes: Tensors = []
    given = [*args, *(kwargs.get(argument.name) for argument in schema.arguments[len(args) :])]
    for value, alias in zip(given, aliases, strict=False):
        (writes if alias is not None and alias.is_write else reads).extend(_tensors_in(value))
    return reads, writes


def _start(stream: Stream, what: str, reads: Iterable[CudaTensor], writes: Iterable[CudaTensor]) -> int:
    count = stream.launch()
    GPU.log.append((stream.name, what))
    if GPU.launched is not None:
        GPU.launched.append(Launch(stream, what, count, dict(stream.clock)))
    capture = _capture_of(stream)
    if capture is not None:
        capture.remember([*reads, *writes])
    for tensor in reads:
        tensor.memory.use(stream, count, writes=False, what=what)
    for tensor in writes:
        tensor.memory.use(stream, count, writes=True, what=what)
    return count


def _sleep(cycles: int) -> None:
    """A kernel that only waits: it takes no time here, and has its place in the stream."""
    with GPU.lock:
        _start(GPU.current(), "sleep", [], [])


def _copy(target: torch.Tensor, source: torch.Tensor, *, is_async: bool) -> torch.Tensor:
    """A copy over the link."""
    stream = GPU.current()
    if isinstance(target, CudaTensor):
        return _copy_in(stream, target, source, is_async=is_async)
    assert isinstance(source, CudaTensor)
    is_late = is_async and stream is not None
    if not is_late:
        GPU.refuse_in_capture("a copy to the host that is waited for")
    count = _start(stream, "copy to host", [source], [])
    capture = _capture_of(stream)
    if capture is not None:
        raise RuntimeError("this stand-in captures no copies to the host")
    values = source.host.clone()
    GPU.deliveries.append((stream, count, partial(target.copy_, values)))
    if not is_late:
        GPU.host_waits(stream.clock)
    return target


def _copy_in(stream: Stream, target: CudaTensor, source: torch.Tensor, *, is_async: bool) -> CudaTensor:
    is_pinned = GPU.pinned_range(source) is not None
    if not is_pinned and source.numel() > 1:
        GPU.refuse_in_capture("a copy out of pageable memory")
    if _capture_of(stream) is not None:
        raise RuntimeError("this stand-in captures no copies from the host")
    _start(stream, "copy from host", [], [target])
    host = target.host
    if is_async and is_pinned:
        memory = target.memory
        memory.coming.append(partial(host.copy_, source))
        GPU.deliveries.append((stream, stream.count, memory.arrive))
    else:
        host.copy_(source)
        if not is_async and is_pinned:
            GPU.host_waits(stream.clock)
    return target


class Capture:
    """Work that is being captured, on the streams that have joined it."""

    def __init__(self, stream: Stream) -> None:
        self.origin, self.streams, self.thread = stream, {stream}, threading.current_thread()
        self.steps: list[Callable[[Stream], None]] = []
        self.made: list[torch.Tensor] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.order: dict[Memory, tuple[tuple[Stream, int] | None, Clock]] = {}

    def remember(self, used: Iterable[torch.Tensor]) -> None:
        """What is captured has not run: who used memory before a capture is who used it before the first replay."""
        for tensor in used:
            memory = tensor.memory
            if memory not in self.order:
                self.order[memory] = (memory.written, dict(memory.read))

    def keep(self, written: Iterable[torch.Tensor]) -> None:
        """Nothing is computed while a graph is captured: what was there before comes back at the end."""
        for tensor in written:
            storage = _bare(tensor).untyped_storage()
            if storage._cdata not in self.before:
                octets = torch.empty(0, dtype=torch.uint8).set_(storage)
                self.before[storage._cdata] = (octets, octets.clone())

    def end(self) -> None:
        for stream in self.streams:
            if self.origin.clock.get(stream, 0) < stream.count:
                raise RuntimeError("CUDA error: capturing stream has unjoined work")
        for memory, (written, read) in self.order.items():
            memory.written, memory.read = (None, {}) if memory.capture is self else (written, read)
        self.order.clear()
        made = {tensor.untyped_storage()._cdata for tensor in self.made}
        for address, (octets, before) in self.before.items():
            if address not in made:
                octets.copy_(before)
        for tensor in self.made:
            torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(GARBAGE)


def _capture_of(stream: Stream) -> Capture | None:
    capture = GPU.capture
    if capture is None or capture.thread is not threading.current_thread():
        return None
    if stream not in capture.streams:
        raise GPU.fault(f"{stream.name} has not joined the capture that is under way")
    return capture


class CUDAGraph:
    """Captured work, which a replay runs anew on the same memory, in the current stream."""

    def __init__(self, *_: object, **__: object) -> None:
        self.steps: list[Callable[[Stream], None]] = []
        self.capture: Capture | None = None

    def replay(self) -> None:
        with GPU.lock:
            assert self.capture is not None, "a graph is captured before it is replayed"
            GPU.refuse_in_capture("a replay")
            for step in self.capture.steps:
                step(GPU.current())


@contextmanager
def _graph(graph: CUDAGraph, pool: object = None, stream: Stream | None = None, **_: object) -> Iterator[None]:
    """As torch's: a capture that cannot be ended leaves its stream the current one."""
    GPU.synchronize()
    before, stream = GPU.current(), Stream() if stream is None else stream
    _set_stream(stream)
    GPU.capture = graph.capture = Capture(stream)
    try:
        yield
        graph.capture.end()
    finally:
        GPU.capture = None
    _set_stream(before)


def _set_stream(stream: Stream) -> None:
    GPU.local.stream = stream


@contextmanager
def _stream(stream: Stream | None) -> Iterator[None]:
    before = GPU.current()
    GPU.local.stream = before if stream is None else stream
    try:
        yield
    finally:
        GPU.local.stream = before


GPU = Gpu()


def _launch_interpreted(interpret: Callable[..., None]) -> Callable[..., None]:
    """Triton's interpreter over the bytes of device tensors, as work of the current stream."""

    def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
        with GPU.lock:
            name = executor.fn.__name__
            names = [*executor.arg_names[: len(args)], *kwargs]
            tensors = {
                given: value
                for given, value in zip(names, [*args, *kwargs.values()], strict=True)
                if isinstance(value, torch.Tensor)
            }
            if not any(isinstance(value, CudaTensor) for value in tensors.values()):
                return interpret(executor, *args, **kwargs)
            pinned = [_readable(value, name) for value in tensors.values() if _is_on_host(value)]
            reads = [value for given, value in tensors.items() if given not in KERNEL_WRITES[name]]
            writes = [value for given, value in tensors.items() if given in KERNEL_WRITES[name]]

            def run(stream: Stream) -> None:
                count = _start(stream, name, _on_device(reads), _on_device(writes))
                for memory in pinned:
                    memory.uses[stream] = count
                interpret(executor, *tree_map(_bare, args), **tree_map(_bare, kwargs))

            stream = GPU.current()
            capture = _capture_of(stream)
            if capture is not None:
                capture.keep(writes)
                capture.steps.append(run)
            return run(stream)

    return launch


def _patch_once(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Triton's language stays patched for the interpreter, which patches it anew in every call and takes a third."""
    done: set[frozenset[str]] = set()

    def patched(kernel: Any) -> Any:
        modules = frozenset(str(value) for value in kernel.__globals__.values() if inspect.ismodule(value))
        if modules not in done:
            patch(kernel)
            done.add(modules)
        return SimpleNamespace(restore=lambda: None)

    return patched


def _readable(tensor: torch.Tensor, kernel: str) -> _PinnedRange:
    found = GPU.pinned_range(tensor)
    if found is None:
        raise GPU.fault(f"{kernel} is given host memory that is not pinned: an illegal memory access")
    return found


def _empty(size: Any, *, dtype: Any = None, **_: object) -> torch.Tensor:
    with GPU.lock:
        return CudaTensor(torch.empty(size, dtype=dtype, device=HOST), Memory(GPU.current(), _new_in()))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: object) -> torch.Tensor:
    with GPU.lock:
        made = torch.empty_strided(size, stride, dtype=dtype, device=HOST)
        return CudaTensor(made, Memory(GPU.current(), _new_in()))


def _new_in() -> Capture | None:
    return None if GPU.capture is None else _capture_of(GPU.current())


def _pinning(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A factory of torch whose ``pin_memory`` is noted; a machine without a driver cannot pin."""

    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        if pin_memory:
            storage = tensor.untyped_storage()
            GPU.pin(storage.data_ptr(), max(1, storage.nbytes()))
            GPU.pinned_by_torch.append(tensor)  # kept, as torch keeps it: else pageable memory gets its address
        return tensor

    return made


class Generator(torch.Generator):
    """Of the host's random numbers for either device: others than a GPU's, and as reproducible."""

    def __new__(cls, device: object = HOST) -> "Generator":
        return super().__new__(cls)


class _Driver:
    """What the runtime asks ``libcuda`` itself."""

    @staticmethod
    def cuPointerGetAttribute(found: Any, attribute: Any, address: Any) -> int:  # noqa: N802  # the driver's name
        inside = any(first <= address.value < first + one.num_bytes for first, one in GPU.pinned.items())
        found._obj.value = address.value
        return 0 if inside else 1


PROPERTIES = SimpleNamespace(
    name="Stand-in GPU",
    total_memory=TOTAL_BYTES,
    multi_processor_count=NUM_UNITS,
    major=9,
    minor=0,
    L2_cache_size=1 << 20,
    uuid="",
)


def install() -> None:
    """Put the stand-in in place of ``torch.cuda`` for the rest of this process. Triton must not be imported yet."""
    assert not torch.cuda.is_available(), "this machine has a GPU: test on that"
    torch._C._ensureCUDADeviceGuardSet()  # as torch's own fake tensors do it
    library = torch.library.Library("aten", "IMPL", "CUDA")
    library.impl("empty.memory_format", _empty, "CUDA")
    library.impl("empty_strided", _empty_strided, "CUDA")
    GPU.library = library  # registered as long as it lives
    for name in ("empty", "zeros"):
        setattr(torch, name, _pinning(getattr(torch, name)))
    replaced = {
        "_lazy_init": lambda: None,
        "_sleep": _sleep,
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": CUDAGraph,
        "graph": _graph,
        "graph_pool_handle": lambda: (0, 1),
        "stream": _stream,
        "current_stream": lambda device=None: GPU.current(),
        "set_stream": _set_stream,
        "default_stream": lambda device=None: GPU.default,
        "synchronize": GPU.synchronize,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_current_stream_capturing": lambda: GPU.capture is not None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device_of": lambda tensor: nullcontext(),
        "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: (FREE_BYTES, TOTAL_BYTES),
        "get_device_properties": lambda device=None: PROPERTIES,
        "get_device_name": lambda device=None: PROPERTIES.name,
        "get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
        "cudart": lambda: SimpleNamespace(cudaHostRegister=GPU.pin, cudaHostUnregister=GPU.unpin),
    }
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    torch.version.cuda = "12.8"
    torch.Generator = Generator
    load = ctypes.CDLL

    def load_library(name: Any, *args: Any, **kwargs: Any) -> Any:
        return _Driver if name == "libcuda.so.1" else load(name, *args, **kwargs)

    ctypes.CDLL = load_library
    from triton.runtime import interpreter

    interpreter._patch_lang = _patch_once(interpreter._patch_lang)
    interpreter.GridExecutor.__call__ = _launch_interpreted(interpreter.GridExecutor.__call__)
