"""What a stage of the survey that fails costs: itself, on a GPU; a fault of the CPU's code is not hidden."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_runtime.probes.block_content import WrongRows  # noqa: E402
from tiercast_runtime.probes.survey import _Survey  # noqa: E402
from tiercast_runtime.probes.telemetry import Telemetry  # noqa: E402


def attempt(device, error):
    """Probes of a stage that raises."""
    freed = []
    survey = SimpleNamespace(_device=torch.device(device), _telemetry=Telemetry(), _free=lambda: freed.append(1))
    found = SimpleNamespace(curves=[], probes=[])

    def stage():
        raise error

    _Survey._attempt(survey, found, "layers.x", stage)
    return [(probe.name, probe.status, probe.reason) for probe in found.probes], freed


@pytest.mark.parametrize(
    ("device", "error"),
    [
        ("cuda", RuntimeError("CUDA error: not supported\nmore")),
        ("cuda", torch.OutOfMemoryError("CUDA error: not supported")),
        ("cpu", torch.OutOfMemoryError("CUDA error: not supported")),
    ],
)
def test_a_refused_call_of_a_gpu_costs_its_own_stage(device, error):
    probes, freed = attempt(device, error)
    assert probes == [("layers.x", "failed", "CUDA error: not supported")]
    assert freed


@pytest.mark.parametrize(("device", "error"), [("cpu", RuntimeError("a fault")), ("cuda", WrongRows("other rows"))])
def test_faults_of_the_code_and_wrong_bytes_end_the_survey(device, error):
    with pytest.raises(type(error)):
        attempt(device, error)
