"""The probe of memory that stands still: what it touches, and what a page of the profile says of it."""

import itertools

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_cli import catalogue_views  # noqa: E402
from tiercast_profiles.gather import SMALL_PAGE_BYTES  # noqa: E402
from tiercast_profiles.hardware import ProbeResult  # noqa: E402
from tiercast_profiles.units import NS_PER_S  # noqa: E402
from tiercast_runtime.probes import memory_idle  # noqa: E402


def test_a_page_is_touched_once_in_each_pass_and_the_passes_are_apart():
    ticks = itertools.chain(
        [0, 90 * NS_PER_S],  # filled, and looked at
        *(
            (0, memory_idle.PAGES_OF_REGION * (900 if region == 3 else 100))
            for region in range(memory_idle.NUM_REGIONS)
        ),
        *((0, memory_idle.PAGES_OF_REGION * 50) for _ in range(memory_idle.NUM_REGIONS)),
    )
    stood, first, again = memory_idle.IdleMemory(clock=lambda: next(ticks)).look()
    assert (stood.name, stood.unit, stood.samples) == ("memory.idle.stood", "s", (90.0,))
    assert (first.name, first.unit) == ("memory.idle.first", "ns")
    assert first.samples == tuple(900.0 if region == 3 else 100.0 for region in range(memory_idle.NUM_REGIONS))
    assert again.samples == (50.0,) * memory_idle.NUM_REGIONS


def test_pages_are_different_ones_of_their_region(monkeypatch):
    asked = []
    block = memory_idle.IdleMemory()
    monkeypatch.setattr(block, "_pass", lambda pages: asked.append(pages) or [1.0])
    block.look()
    first, again = asked
    assert first is again, "the second pass touches what the first did"
    for region, places in enumerate(first):
        assert len(set(places.tolist())) == memory_idle.PAGES_OF_REGION
        assert {place // memory_idle.REGION_BYTES for place in places} == {region}
        assert not any(place % SMALL_PAGE_BYTES for place in places)


@pytest.mark.parametrize(("first_ns", "warns"), [(2000.0, True), (600.0, False), (160.0, False)])
def test_the_page_of_a_profile_warns_of_a_host_that_takes_memory_away(first_ns, warns, cpu_hardware, capsys):
    found = {"stood": 95.0, "first": first_ns, "again": 150.0}
    probes = [
        ProbeResult(name=f"memory.idle.{name}", unit="ns", samples=(x, x), status="ok") for name, x in found.items()
    ]
    catalogue_views.profile_summary(cpu_hardware.model_copy(update={"probes": tuple(probes)}))
    said = capsys.readouterr().out
    assert "memory that stood still for 95 s" in said
    assert ("takes idle memory away" in said) == warns
