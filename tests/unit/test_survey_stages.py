"""What a stage of the survey that fails costs: itself, on a GPU; a fault of the CPU's code is not hidden."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_runtime.probes import survey  # noqa: E402
from tiercast_runtime.probes.block_content import WrongRows  # noqa: E402
from tiercast_runtime.probes.survey import _Survey  # noqa: E402
from tiercast_runtime.probes.telemetry import Telemetry  # noqa: E402


def attempt(device, error):
    """Probes of a stage that raises."""
    freed = []
    survey = SimpleNamespace(_device=torch.device(device), _telemetry=Telemetry(), _free=lambda: freed.append(1))
    found = SimpleNamespace(curves=[], interference=[], probes=[])

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


@pytest.mark.parametrize(
    ("judgements", "path", "num_curves", "num_runs"),
    [
        (["invalid", "ok"], "uva", 1, 2),
        (["invalid", "invalid"], "uva", 0, 2),
        (["ok"], "uva", 1, 1),
        (["invalid"], "device", 1, 1),
    ],
)
def test_a_stage_whose_link_was_disturbed_is_run_once_more(monkeypatch, judgements, path, num_curves, num_runs):
    given = iter(judgements)

    @contextmanager
    def watched(_telemetry, _name, _probes, **_loads):
        judgement = next(given)
        yield SimpleNamespace(judgement=lambda: (judgement, ""))

    monkeypatch.setattr(survey, "watched", watched)
    running = SimpleNamespace(_device=torch.device("cuda"), _telemetry=Telemetry(), _free=lambda: None)
    found, runs = SimpleNamespace(curves=["before"], interference=["before"], probes=["before"]), []

    def stage():
        runs.append("run")
        for kept in (found.curves, found.interference, found.probes):
            kept.append("new")

    _Survey._attempt(running, found, "lookup.dram.uva", stage, path)
    assert len(runs) == num_runs
    assert found.curves == ["before", *["new"] * num_curves]
    assert found.interference == found.probes == ["before", "new"]
    assert next(given, None) is None
