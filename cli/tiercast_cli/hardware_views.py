"""Hardware parts as tables."""

from collections.abc import Mapping, Sequence

from tiercast_cli import render
from tiercast_profiles import store, transfer
from tiercast_profiles.anchors import Anchor
from tiercast_profiles.document import Quantity
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.machine_import import Report


def part_rows() -> list[dict[str, object]]:
    """The shipped parts: kind, name, what each is, and the marks its own sources carry."""
    return [
        {
            "kind": part.kind,
            "name": part.name,
            "marks": sorted({str(source["mark"]) for source in part.sources.values()}),
            "description": part.description,
        }
        for part in store.shipped_parts()
    ]


def show_parts(rows: Sequence[Mapping[str, object]]) -> None:
    """The parts as a table, a kind after the other."""
    cells = [[str(row["kind"]), str(row["name"]), str(row["description"])] for row in rows]
    render.table("", ["kind", "name", "what it is"], cells, left=3)
    render.line("docs/hardware.md says how to put a machine of your own together from them.")


def show_import(profile: HardwareProfile, reports: Sequence[Report]) -> None:
    """What came from which file; the rest is the base's."""
    cells = [
        [item.path, item.value if isinstance(item.value, str) else render.number(item.value), item.what, report.path]
        for report in reports
        for item in report.stated
    ]
    render.table("", ["what", "value", "as the tool calls it", "file"], cells, left=4)
    render.line(f"{profile.name}: everything else is the base's, with the base's sources.")
    priors = [f"{curve.tier} by {curve.path}" for curve in profile.lookups if not curve.is_calibrated]
    if priors:
        render.line(f"uncalibrated lookup curves, which no tool of these measures: {', '.join(priors)}")


def show_transfer(profile: HardwareProfile, preset: HardwareProfile) -> None:
    """Every number that was carried over, beside what the preset says itself."""
    cells = []
    for path, source in profile.evidence.items():
        if source != transfer.SOURCE:
            continue
        mine, theirs = _at(profile, path), _at(preset, path)
        cells.append([path, _number(mine), _number(theirs)])
    render.table(profile.name, ["what", "carried over", preset.name], cells, left=1)
    render.line(f"{profile.name}: everything else is {preset.name}'s; nothing of it was measured there.")


def _at(profile: HardwareProfile, path: str) -> object:
    place: object = profile
    for part in path.split("."):
        if isinstance(place, Mapping):
            place = place.get(part)
        elif isinstance(place, tuple):
            place = place[int(part)]
        else:
            place = getattr(place, part)
    return place


def _number(value: object) -> str:
    if isinstance(value, Quantity):
        band = "" if value.low is None or value.high is None else f" [{value.low:g} .. {value.high:g}]"
        return f"{value.value:g}{band}"
    return render.UNKNOWN if value is None else f"{value}"


def show_anchors(measured: HardwareProfile, preset: HardwareProfile, rows: Sequence[Anchor]) -> None:
    """Measured beside stated; where the preset has a band, whether the machine lies in it."""
    words = {True: "inside", False: "outside", None: render.UNKNOWN}
    cells = [
        [
            row.what,
            row.unit,
            render.number(row.measured),
            render.number(row.anchor),
            render.percent(row.of_anchor_ratio),
            words[row.is_in_band],
        ]
        for row in rows
    ]
    render.table(
        f"{measured.name} beside {preset.name}",
        ["what", "unit", "measured", "preset", "of anchor", "band of\npreset"],
        cells,
        left=2,
    )
    render.line("us: more than 100 % is slower. All others: more than 100 % is more than the preset states.")
    if not any(curve.is_calibrated for curve in preset.lookups):
        render.line(f"lookup curves of {preset.name} are uncalibrated priors, not anchors to reach.")
