"""Shipped documents as lists, single pages and differences."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from tiercast_cli import inputs, render
from tiercast_cli.views import WARNING_SIGN
from tiercast_profiles import store
from tiercast_profiles.document import Document, Quantity, Source
from tiercast_profiles.head_sizes import table_rows
from tiercast_profiles.layer_parts import LayerParts, layer_parts
from tiercast_profiles.units import format_bytes

if TYPE_CHECKING:
    from tiercast_profiles.gather import GatherSweep
    from tiercast_profiles.hardware import HardwareProfile, HostCachePoint
    from tiercast_profiles.model import ModelSpec
    from tiercast_profiles.prices import PriceBook

LOADERS = {"hardware": store.load_hardware, "models": store.load_model, "prices": store.load_prices}
MARKS = "marks: V read in the source, V2 in a secondary source, M measured, D derived, R recalled, ? ambiguous"
HEADINGS = {
    "name": "name",
    "device": "device",
    "tiers": "tiers",
    "calibration": "numbers",
    "num_per_host": "per\nhost",
    "device_memory_gb": "GB per\ndevice",
    "host_memory_gb": "host\nGB",
    "dialect": "dialect",
    "layer_ids": "layers",
    "rows_per_token": "rows per\ntoken",
    "row_bytes": "row\nbytes",
    "table_bytes": "tables",
    "is_runnable": "runs\nhere",
    "devices": "devices",
    "dram_usd_per_gb": "DRAM\nUSD/GB",
    "nvme_usd_per_gb": "NVMe\nUSD/GB",
    "energy_usd_per_kwh": "energy\nUSD/kWh",
}
PROBE_STATES = ("ok", "unstable", "invalid", "not_supported", "failed")
WORD_COLUMNS = {"hardware": 4, "models": 3, "prices": 2}
IDLE_NS = 500  # more than a miss of every cache and of the page's translation, which the first touch may have alone
IDLE_WARNING = (
    "the host of this machine takes idle memory away: rows of tables in DRAM that are seldom read will be slower than "
    "predicted"
)
# raw measurements are counted, not listed: they belong to the file, and a page of them tells a reader nothing
LONG_LISTS = ("points", "probes", "components", "host_cache", "spreads")


def load(kind: str, name: str) -> Document:
    """A document of a kind, by shipped name or path; a machine also by a bare device name."""
    return LOADERS[kind](inputs.hardware_name(name) if kind == "hardware" else name)


def listing(kind: str) -> list[dict[str, Any]]:  # Any: each kind has its own facts
    """The shipped documents of a kind, with what tells them apart."""
    names = store.shipped_names(kind)
    if kind == "hardware":
        return [_hardware_facts(store.load_hardware(name)) for name in names]
    if kind == "models":
        return [_model_facts(store.load_model(name)) for name in names]
    return [_price_facts(store.load_prices(name)) for name in names]


def show_listing(kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The list as a table."""
    keys = list(rows[0]) if rows else ["name"]
    cells = [[format_bytes(row[key]) if key == "table_bytes" else _cell(row[key]) for key in keys] for row in rows]
    render.table("", [HEADINGS[key] for key in keys], cells, left=WORD_COLUMNS[kind])
    if any(row.get("calibration") == "datasheet" for row in rows):
        render.line("datasheet: never measured; lookup curves are uncalibrated priors, and every prediction says so.")
    render.line(f"tiercast {kind} show NAME gives every number with its source.")


def show_document(document: Document) -> None:
    """Every number of a document with its band, the kind of its evidence and its source."""
    render.heading(document.name)
    render.line(document.description)
    priors = [f"{curve.tier} by {curve.path}" for curve in getattr(document, "lookups", ()) if not curve.is_calibrated]
    if priors:
        render.line(f"uncalibrated lookup curves, each a prior with a band: {', '.join(priors)}")
    rows = []
    sources: dict[str, Source] = {}
    for entry in _entries(document):
        path, shown = entry.name, entry.shown
        key = _evidence_key(document, entry.place)
        if key is not None:
            sources[key] = document.sources[key]
        rows.append([path, shown, "" if key is None else f"{document.sources[key].kind}: {key}"])
    render.table("", ["what", "value [low .. high]", "evidence"], rows, left=3)
    render.table(
        "sources",
        ["name", "mark", "date", "source"],
        [[key, source.mark, source.date.isoformat(), source.source] for key, source in sorted(sources.items())],
        left=4,
    )
    render.line(MARKS)


def differences(left: Document, right: Document) -> list[dict[str, object]]:
    """Paths whose values differ between two documents."""
    first, second = flatten(left), flatten(right)
    paths = [*first, *(path for path in second if path not in first)]
    return [
        {"what": path, "first": first.get(path), "second": second.get(path)}
        for path in paths
        if first.get(path) != second.get(path)
    ]


def show_differences(left: Document, right: Document, rows: Sequence[Mapping[str, object]]) -> None:
    """The differences as a table."""
    if not rows:
        render.line(f"{left.name} and {right.name} state the same values")
        return
    cells = [[_cell(row["what"]), _cell(row["first"]), _cell(row["second"])] for row in rows]
    render.table("", ["what", left.name, right.name], cells, left=3)


def flatten(document: Document) -> dict[str, str]:
    """Every value of a document by dotted path; a banded number is one entry, a list of plain values too.

    An item of a list with one curve for each tier and path is named by these, as ``--set`` takes it, so that two
    machines are compared curve by curve: ``lookups.dram/uva.fixed_us``.
    """
    return {entry.name: entry.shown for entry in _entries(document)}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A value of a document: its name, its place with list items by number, as evidence has it, and the text."""

    name: str
    place: str
    shown: str


def _entries(document: Document) -> list[_Entry]:
    body = document.model_dump(
        mode="json", exclude={"schema_version", "name", "description", "sources", "evidence"}, exclude_none=True
    )
    return list(_flatten(body, (), ()))


def profile_summary(profile: "HardwareProfile") -> None:
    """What the probes found: the machine, each lookup curve, each compute table, and what could not be measured."""
    render.heading(f"{profile.name}: {profile.description}")
    device, host = profile.device, profile.host
    render.table(
        "",
        ["what", "value"],
        [
            ["device", f"{device.product_name} ({device.kind}), {device.num_per_host} per host"],
            ["host", f"{host.cpu_model}, {host.num_cores} cores, {host.num_numa_nodes} NUMA nodes"],
            [
                "host memory",
                f"{_quantity(host.memory_capacity_gb)} GB, {_quantity(host.memory_bandwidth_gb_per_s)} GB/s",
            ],
            ["huge pages", host.huge_pages],
        ],
        left=2,
    )
    curves = [
        [
            f"{curve.tier} by {curve.path}",
            "measured" if curve.is_calibrated else "uncalibrated",
            _quantity(curve.fixed_us),
            _quantity(curve.row_ns),
        ]
        for curve in profile.lookups
    ]
    render.table("lookups", ["tier and path", "state", "fixed us", "row ns"], curves, left=2)
    sweeps = [
        [
            f"{sweep.path}, {sweep.pages}, {sweep.order}, {sweep.place}",
            "-" if sweep.num_threads is None else str(sweep.num_threads),
            str(len(sweep.points)),
            "-" if sweep.round_trip_ns is None else f"{sweep.round_trip_ns:.0f}",
            _score_cell(sweep),
        ]
        for sweep in profile.gather_sweeps
    ]
    if sweeps:
        columns = ["gather: path, pages, order, memory", "threads", "points", "trip ns", "held-out error"]
        render.table("gather sweeps", columns, sweeps, left=1)
    tables = [
        [
            table.model_name if table.engram_sha256 is not None else f"{table.model_name}, no Engram",
            table.graph_mode,
            str(len(table.components)),
            str(sum(map(len, table.components.values()))),
        ]
        for table in profile.compute
    ]
    render.table("layer times", ["model", "graph mode", "components", "points"], tables, left=2)
    layers = [_layer_row(parts) for parts in layer_parts(profile)]
    if layers:
        columns = ["model, graph mode", "step", "without\nattention", "of it\nMLP", "attention", "Engram\nmodule"]
        render.table("one layer, us", columns, layers, left=2)
    _lookup_overheads(profile)
    cached = [
        [f"{point.num_rows:,}", str(point.row_bytes), *(render.number(time.value) for time in _cache_times_of(point))]
        for point in profile.host_cache
    ]
    if cached:
        columns = ["rows", "bytes", "looking,\nall missing", "keeping\nthem", "all there"]
        render.table("what a cache in host memory takes of a lookup, us", columns, cached, left=0)
    _idle_memory(profile)
    render.line()
    # an envelope is no case of its own: what speaks against its stage is already in the stage's probes
    cases = [probe for probe in profile.probes if not probe.name.startswith("telemetry.")]
    counts: Counter[str] = Counter(probe.status for probe in cases)
    states = ", ".join(f"{counts[status]} {status}" for status in PROBE_STATES if counts[status])
    render.line(f"cases measured: {len(cases)} ({states})")
    groups = Counter((probe.status, probe.name, probe.reason) for probe in cases if probe.status != "ok")
    for (status, name, reason), count in groups.items():
        if status != "unstable":
            render.line(f"  {status}: {name}{f' x {count}' if count > 1 else ''}{f', {reason}' if reason else ''}")
    unstable = Counter(probe.name for probe in cases if probe.status == "unstable")
    if unstable:
        names = ", ".join(f"{name} x {count}" if count > 1 else name for name, count in unstable.items())
        render.line(f"  unstable (quartiles too far apart): {names}")


def _idle_memory(profile: "HardwareProfile") -> None:
    """Whether memory that nothing reads stays where it is."""
    found = {probe.name: mean(probe.samples) for probe in profile.probes if probe.name.startswith("memory.idle.")}
    if not found:
        return
    first, again = found["memory.idle.first"], found["memory.idle.again"]
    render.line(
        f"memory that stood still for {found['memory.idle.stood']:.0f} s: {render.number(first)} ns a page at first "
        f"touch, {render.number(again)} at the second"
    )
    if first - again > IDLE_NS:
        render.line(WARNING_SIGN + IDLE_WARNING)


def _lookup_overheads(profile: "HardwareProfile") -> None:
    """What lookups take from compute, and what the worker takes to begin them, by path and rows."""
    of_compute, of_worker = [], []
    for entry in profile.interference:
        if entry.overhead is None:
            continue
        for point in entry.overhead.by_rows():
            name = [f"{entry.tier} by {entry.path}", str(point.num_rows) if entry.overhead.points else "any"]
            taken = (point.issue_us, point.beside_us, point.inline_us, point.after_us)
            of_compute.append([*name, *(render.number(time.value) for time in taken)])
            waits = [time.value for time in (point.wake_us, point.turn_us, point.behind_us) if time is not None]
            if waits:
                of_worker.append([*name, *map(render.number, waits)])
    if of_compute:
        columns = [
            "tier and path",
            "rows",
            "hand-over\nof a step",
            "beside\nlayers",
            "made inline",
            "layers\nbehind it",
        ]
        render.table("what lookups take beside their time, us", columns, of_compute, left=1)
    if of_worker:
        columns = ["tier and path", "rows", "wakes up in", "turns to the\nnext in", "which takes\nless by"]
        render.table("the worker that makes them, us", columns, of_worker, left=1)


def _cache_times_of(point: "HostCachePoint") -> tuple[Quantity, ...]:
    return point.find_us, point.keep_us, point.hit_us


def _layer_row(parts: LayerParts) -> list[str]:
    count, context = parts.num_tokens, parts.context_tokens
    step = f"chunk of {count:,}" if parts.is_chunk else f"{count:,} at context {context:,}"
    times = (parts.linear_us, parts.mlp_us, parts.attention_us, parts.engram_module_us)
    return [f"{parts.model_name}, {parts.graph_mode}", step, *map(render.number, times)]


def _score_cell(sweep: "GatherSweep") -> str:
    """Median and 90th percentile of the model's error on the points it was not fitted to."""
    score = sweep.score
    if score is None or score.held_out_median_ratio is None or score.held_out_p90_ratio is None:
        return "not fitted"
    errors = f"{100 * score.held_out_median_ratio:.1f}, p90 {100 * score.held_out_p90_ratio:.1f} %"
    return f"{errors}, unstable" if score.is_unstable else errors


def _hardware_facts(profile: "HardwareProfile") -> dict[str, Any]:
    device = profile.device
    return {
        "name": profile.name,
        "device": device.product_name,
        "tiers": " ".join(dict.fromkeys(curve.tier for curve in profile.lookups)),
        "calibration": profile.calibration,
        "num_per_host": device.num_per_host,
        "device_memory_gb": device.memory_capacity_gb.value,
        "host_memory_gb": profile.host.memory_capacity_gb.value,
    }


def _model_facts(model: "ModelSpec") -> dict[str, Any]:
    engram = model.engram
    return {
        "name": model.name,
        "dialect": engram.dialect,
        "layer_ids": " ".join(map(str, engram.layer_ids)),
        "rows_per_token": len(engram.layer_ids) * engram.num_rows_per_token,
        "row_bytes": engram.row_bytes,
        "table_bytes": sum(table_rows(engram)) * engram.row_bytes,
        "is_runnable": model.backbone.is_runnable,
    }


def _price_facts(book: "PriceBook") -> dict[str, Any]:
    return {
        "name": book.name,
        "devices": " ".join(sorted(book.devices)),
        "dram_usd_per_gb": str(book.dram_usd_per_gb),
        "nvme_usd_per_gb": str(book.nvme_usd_per_gb),
        "energy_usd_per_kwh": str(book.energy_usd_per_kwh),
    }


def _cell(item: object) -> str:
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, (int, float)):
        return render.number(item)
    return render.UNKNOWN if item is None else str(item)


def _exact(item: object) -> str:
    # a page that shows or compares a document must not round
    return f"{item:,}" if isinstance(item, (int, float)) and not isinstance(item, bool) else _cell(item)


def _quantity(quantity: object) -> str:
    low, high = getattr(quantity, "low", None), getattr(quantity, "high", None)
    shown = render.number(getattr(quantity, "value", None))
    return shown if low is None or high is None else f"{shown} [{render.number(low)} .. {render.number(high)}]"


def _flatten(body: object, name: tuple[str, ...], place: tuple[str, ...]) -> Iterator[_Entry]:
    if isinstance(body, Mapping) and set(body) != {"value", "low", "high"}:
        for key, item in body.items():
            if key in LONG_LISTS and item:
                yield _Entry(".".join((*name, key)), ".".join((*place, key)), f"{len(item)} entries")
            else:
                yield from _flatten(item, (*name, str(key)), (*place, str(key)))
    elif isinstance(body, (list, tuple)) and any(isinstance(item, (Mapping, list)) for item in body):
        for index, (called, item) in enumerate(zip(_item_names(body), body, strict=True)):
            yield from _flatten(item, (*name, called), (*place, str(index)))
    elif not isinstance(body, (list, tuple)) or body:
        yield _Entry(".".join(name), ".".join(place), _shown(body))


def _item_names(items: Sequence[object]) -> list[str]:
    """Tier and path of every item where they tell the items apart, else their numbers."""
    names = [
        f"{item['tier']}/{item['path']}"
        for item in items
        if isinstance(item, Mapping) and item.keys() >= {"tier", "path"}
    ]
    return names if len(set(names)) == len(items) else [str(index) for index in range(len(items))]


def _shown(body: object) -> str:
    if isinstance(body, Mapping):
        return f"{_exact(body['value'])} [{_exact(body['low'])} .. {_exact(body['high'])}]"
    return " ".join(_exact(item) for item in body) if isinstance(body, (list, tuple)) else _exact(body)


def _evidence_key(document: Document, path: str) -> str | None:
    parts = [*path.split("."), "value"]  # a banded number may name the source of its middle alone
    prefixes = (".".join(parts[:length]) for length in range(len(parts), -1, -1))
    return next((document.evidence[prefix] for prefix in prefixes if prefix in document.evidence), None)
