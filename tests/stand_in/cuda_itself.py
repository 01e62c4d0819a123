"""The stand-in itself: it finds what it is there to find, and lets pass what is in order."""

import cuda_stand_in
import pytest
import torch
from cuda_stand_in import CUDA, GPU, Fault

from tiercast_profiles.errors import MissingCapability
from tiercast_runtime.graph_backend import CudaGraphs
from tiercast_runtime.memory import HostBlock
from tiercast_runtime.paths.uva import device_address
from tiercast_runtime.paths.uva_kernel import launch_gather


def found():
    """The faults so far, which then fail no test."""
    faults, GPU.faults = GPU.faults, []
    return faults


def test_tensors_of_the_device_do_not_mix_with_those_of_the_host():
    ours, theirs = torch.arange(6, device=CUDA), torch.arange(6)
    assert (ours.device, ours.is_cuda, theirs.to(CUDA).is_cuda) == (CUDA, True, True)
    assert torch.equal((ours * 2)[2:4].cpu(), theirs[2:4] * 2)
    with pytest.raises(RuntimeError, match="same device"):
        ours + theirs
    with pytest.raises((TypeError, RuntimeError), match="numpy"):
        ours.numpy()
    ours[1:3] = theirs[:2]
    assert ours.tolist() == [0, 0, 1, 3, 4, 5]


def test_work_of_two_streams_needs_an_event_between():
    side, values = torch.cuda.Stream(), torch.zeros(4, device=CUDA)
    event = torch.cuda.Event()
    with torch.cuda.stream(side), pytest.raises(Fault, match="no event between"):
        values.add_(1)
    found()
    event.record()
    with torch.cuda.stream(side):
        side.wait_event(event)
        values.add_(1)
    with pytest.raises(Fault, match="no event between"):
        values + 1
    found()
    torch.cuda.current_stream().wait_stream(side)
    assert (values + 1).tolist() == [2] * 4
    with pytest.raises(Fault, match="nothing has recorded"):
        side.wait_event(torch.cuda.Event())
    found()


def test_the_host_orders_streams_only_where_it_waits():
    side, values = torch.cuda.Stream(), torch.zeros(4, device=CUDA)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        values.add_(1)
    side.synchronize()
    assert values.sum().item() == 4


def test_a_time_is_read_only_of_an_event_that_was_waited_for():
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    end.record()
    with pytest.raises(Fault, match="not ready"):
        begin.elapsed_time(end)
    found()
    end.synchronize()
    assert begin.elapsed_time(end) > 0
    with pytest.raises(RuntimeError, match="without a time"):
        begin.elapsed_time(torch.cuda.Event())


def test_memory_that_goes_back_while_another_stream_uses_it_is_found():
    side = torch.cuda.Stream()
    for is_recorded in (False, True):
        values, event = torch.zeros(4, device=CUDA), torch.cuda.Event()
        event.record()
        side.wait_event(event)
        with torch.cuda.stream(side):
            values.add_(1)
        if is_recorded:
            values.record_stream(side)
        del values
        assert ("no record_stream" in str(found())) == (not is_recorded)


def test_a_copy_reads_and_delivers_as_late_as_it_may():
    slot, event = torch.zeros(3, pin_memory=True), torch.cuda.Event()
    slot[:] = 1
    early = slot.to(CUDA, non_blocking=True)
    slot[:] = 2  # nobody waited: the copy may not have read it yet
    assert early.tolist() == [2] * 3
    slot[:] = 3
    ordered = slot.to(CUDA, non_blocking=True)
    event.record()
    event.synchronize()
    slot[:] = 4
    assert ordered.tolist() == [3] * 3
    back = torch.zeros(3, pin_memory=True)
    back.copy_(ordered, non_blocking=True)
    assert back.tolist() == [0] * 3
    torch.cuda.synchronize()
    assert back.tolist() == [3] * 3


def test_a_kernel_reads_pinned_host_memory_and_no_other():
    block = HostBlock(1 << 16)
    block.array[:] = 7
    table = torch.from_numpy(block.array).view(-1, 64)
    ids, out = torch.zeros(3, dtype=torch.int64, device=CUDA), torch.zeros((3, 64), dtype=torch.uint8, device=CUDA)
    complaints = torch.zeros(1, dtype=torch.int32, pin_memory=True)
    with pytest.raises(Fault, match="not pinned"):
        launch_gather(table, ids, out, complaints, 4)
    found()
    with pytest.raises(MissingCapability, match="not pinned"):
        device_address(table.data_ptr())
    block.pin()
    launch_gather(table, ids, out, complaints, 4)
    assert (out.cpu() == 7).all()
    launch_gather(table, ids, out, complaints, 4)
    with pytest.raises(Fault, match="may still read it"):
        block.close()
    found()


def test_a_capture_computes_nothing_and_a_replay_does_it_all():
    backend = CudaGraphs(CUDA, lambda: 0)
    source, total = torch.ones(4, device=CUDA), torch.zeros(4, device=CUDA)
    made = []

    def work():
        made.append(source * 2)
        total.add_(made[-1])

    graph = backend.capture(work)
    torch.cuda.synchronize()
    assert total.tolist() == [2] * 4  # of the run before the capture
    assert made[-1].tolist() != [2] * 4
    source.fill_(5)
    graph.replay()
    assert (made[-1].tolist(), total.tolist()) == ([10] * 4, [12] * 4)


@pytest.mark.parametrize("what", ["a wait", "a value", "a branch left behind", "pageable memory"])
def test_a_capture_refuses_what_cuda_refuses(what):
    backend = CudaGraphs(CUDA, lambda: 0)
    values, fork = torch.ones(4, device=CUDA), backend.edge()

    def work():
        if what == "a branch left behind":
            fork.record()
            backend.side_waits(fork)
            with backend.side():
                values.mul(2)
        elif cuda_stand_in.GPU.capture is not None:
            {
                "a wait": torch.cuda.synchronize,
                "a value": values[0].item,
                "pageable memory": lambda: values.copy_(torch.zeros(4)),
            }[what]()

    with pytest.raises(RuntimeError, match=r"capturing|unjoined"):
        backend.capture(work)
    assert cuda_stand_in.GPU.capture is None
    assert cuda_stand_in.GPU.current() is cuda_stand_in.GPU.default, "what comes next runs where it ran before"
