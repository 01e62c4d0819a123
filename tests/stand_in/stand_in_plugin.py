"""A plugin of pytest for the child process of ``tests/unit/test_cuda_code.py``: first of all, the stand-in."""

import gc

import cuda_stand_in
import pytest

cuda_stand_in.install()


def pytest_collection_finish():
    gc.freeze()  # a collection before each group of probes goes through all of torch otherwise


@pytest.fixture(autouse=True)
def short_fill(monkeypatch):
    """The fill that hides a GPU's launches and empties its cache takes a CPU a second and hides nothing."""
    monkeypatch.setattr("tiercast_runtime.probes.device_timer.FILL_BYTES", 1 << 16)


@pytest.fixture(autouse=True)
def no_faults():
    """What the stand-in found fails the test, also where the code took it for a refusal of the GPU."""
    yield
    faults, cuda_stand_in.GPU.faults = cuda_stand_in.GPU.faults, []
    assert not faults, faults
