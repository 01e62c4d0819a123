"""Sections about the runs: penalty, price, where the time went, what is hidden, the timeline, what placement buys."""

from collections.abc import Iterator, Sequence

from tiercast_cli import answer_views, render
from tiercast_cli.pricing_views import usd
from tiercast_cli.report import charts
from tiercast_cli.report.gather import Entry
from tiercast_cli.report.parts import Chart, Section, Table
from tiercast_plan.bill import LineName
from tiercast_profiles.record import Metric, RunRecord, Span
from tiercast_profiles.units import NS_PER_MS, format_bytes

BASELINES = {"no_engram": "no Engram", "hbm": "tables in HBM", "moe_offload": "the same bytes as experts"}
TIMELINE_STEPS = 3
MAX_LANES = 24


def run_sections(entries: Sequence[Entry]) -> Iterator[Section]:
    """Each section for which some run has the data."""
    for make in (penalties, prices, time_spent, hidden, timelines, kv_chains, start_ups):
        section = make(entries)
        if section is not None:
            yield section


def penalties(entries: Sequence[Entry]) -> Section | None:
    """Throughput lost against each baseline."""
    series = []
    for key, name in BASELINES.items():
        items = [
            charts.bar_of(entry.name, penalty, 100)
            for entry in entries
            if (penalty := _penalty(entry.record, key)) is not None
        ]
        if items:
            series.append((name, items))
    if not series:
        return None
    rows = tuple(
        (entry.name, *(render.percent_with_interval(_penalty(entry.record, key)) for key in BASELINES))
        for entry in entries
        if entry.record.metrics.penalty_ratio
    )
    chart = Chart(
        "Throughput lost against each baseline, in percent; lines are the bands of the inputs.",
        charts.bars(series, "throughput lost, %"),
        Table("throughput lost against", ("run", *BASELINES.values()), rows),
    )
    text = "Below zero: faster than the baseline, most often because offloading leaves more room for KV."
    return Section("penalty", "What the tables cost in speed", (text,), (chart,))


def _penalty(record: RunRecord, key: str) -> Metric | None:
    return next((metric for name, metric in record.metrics.penalty_ratio.items() if name == key), None)


def prices(entries: Sequence[Entry]) -> Section | None:
    """The bill of each run per million tokens, and what its lines are."""
    priced = [(entry.name, entry.cost) for entry in entries if entry.cost is not None]
    if not priced:
        return None
    names: list[LineName] = list(
        dict.fromkeys(line.name for _, cost in priced for line in cost.lines if line.usd_per_hour)
    )
    stack: list[tuple[str, list[charts.Bar]]] = [
        (name, [(run, float(cost.line(name).usd_per_mtok["total"]), None, None) for run, cost in priced])
        for name in names
    ]
    mtok = [
        (
            run,
            float(cost.usd_per_mtok["total"].value),
            None if cost.usd_per_mtok["total"].low is None else float(cost.usd_per_mtok["total"].low),
            None if cost.usd_per_mtok["total"].high is None else float(cost.usd_per_mtok["total"].high),
        )
        for run, cost in priced
    ]
    rows = tuple(
        (
            run,
            *(usd(cost.line(name).usd_per_hour) for name in names),
            usd(cost.usd_per_hour),
            usd(cost.usd_per_mtok["total"].value),
        )
        for run, cost in priced
    )
    columns = ("run", *(f"{name}, USD/h" for name in names), "sum, USD/h", "USD/Mtok")
    first = priced[0][1]
    text = [
        f"Price book {first.price_book}: {first.offer}; in use {render.percent(first.utilization_ratio)} of the time."
    ]
    text += dict.fromkeys(warning for _, cost in priced for warning in cost.warnings)
    return Section(
        "cost",
        "What it costs",
        tuple(text),
        (
            Chart(
                "US dollars per million tokens, input and output; lines are the interval of the throughput.",
                charts.bars([("USD per million tokens", mtok)], "USD per million tokens"),
                None,
            ),
            Chart(
                "The same by line of the bill.",
                charts.bars(stack, "USD per million tokens", is_stacked=True),
                Table("the bill", columns, rows),
            ),
        ),
    )


def time_spent(entries: Sequence[Entry]) -> Section | None:
    """The mean step of each run by part."""
    known = [(entry.name, entry.record.metrics.time_spent) for entry in entries]
    spent = [(name, found) for name, found in known if found is not None]
    if not spent:
        return None
    parts = list(dict.fromkeys(part.name for _, found in spent for part in found.parts))
    values = {
        (name, part.name): part.total_ns / found.num_steps / NS_PER_MS for name, found in spent for part in found.parts
    }
    stack = [(part, [(name, values.get((name, part), 0.0), None, None) for name, _ in spent]) for part in parts]
    rows = tuple((part, *(render.number(values.get((name, part))) for name, _ in spent)) for part in parts)
    whole = tuple(render.number(found.total_ns / found.num_steps / NS_PER_MS) for _, found in spent)
    table = Table("ms per step", ("part", *(name for name, _ in spent)), (*rows, ("mean step", *whole)))
    chart = Chart("The mean step by part, in ms.", charts.bars(stack, "ms per step", is_stacked=True), table)
    return Section("time", "Where the time goes", (), (chart,))


def hidden(entries: Sequence[Entry]) -> Section | None:
    """Lookup time under compute and in front of it, for each Engram layer of a median decode step."""
    covered, exposed, rows = [], [], []
    for entry in entries:
        for layer in entry.record.metrics.layers:
            label = f"{entry.name}, layer {layer.layer_id}"
            stall = min(layer.stall_us.value, layer.lookup_us.value)
            covered.append((label, layer.lookup_us.value - stall, None, None))
            exposed.append((label, stall, None, None))
            cells = (layer.window_us, layer.lookup_us, layer.stall_us, layer.required_gb_per_s, layer.given_gb_per_s)
            rows.append((label, *(render.with_interval(cell) for cell in cells)))
    if not rows:
        return None
    columns = ("layer", "window, us", "lookup, us", "stall, us", "needs, GB/s", "gets, GB/s")
    chart = Chart(
        "Time of each layer's lookup in a median decode step: hidden by compute, and exposed as a stall.",
        charts.bars([("hidden", covered), ("exposed", exposed)], "us", is_stacked=True),
        Table("lookups of a median decode step", columns, tuple(rows)),
    )
    offers = tuple(_offers(entries))
    return Section("hidden", "What is hidden", (), (chart,), offers)


def _offers(entries: Sequence[Entry]) -> Iterator[Table]:
    for entry in entries:
        rows = tuple(
            (
                f"{offer.tier} by {offer.path}",
                render.with_interval(offer.lookup_us),
                render.with_interval(offer.given_gb_per_s),
                ", ".join(map(str, offer.hidden_layer_ids)) or "none",
            )
            for offer in entry.record.metrics.offers
        )
        if rows:
            columns = ("tier and path", "lookup, us", "GB/s", "hidden at layers")
            title = f"{entry.name}: the same lookup from every tier of the machine"
            yield Table(title, columns, rows, is_folded=True)


def timelines(entries: Sequence[Entry]) -> Section | None:
    """A few steps of each run that kept its spans."""
    found = tuple(chart for entry in entries if (chart := _timeline(entry)) is not None)
    return Section("timeline", "Steps on a timeline", (), found) if found else None


def _timeline(entry: Entry) -> Chart | None:
    """The last of the steps whose spans the record has: decoding is what a run does most of the time."""
    steps = [span for span in entry.record.spans if span.lane.split()[-1] in ("step", "steps")]
    if not steps:
        return None
    shown = steps[-TIMELINE_STEPS:]
    start_ns, end_ns = shown[0].start_ns, max(span.start_ns + span.duration_ns for span in shown)
    inside = [span for span in entry.record.spans if span.start_ns >= start_ns and _end(span) <= end_ns]
    lanes = list(dict.fromkeys(span.lane for span in inside))[:MAX_LANES]
    slices = [
        (span.lane, span.name, (span.start_ns - start_ns) / NS_PER_MS, span.duration_ns / NS_PER_MS)
        for span in inside
        if span.lane in lanes
    ]
    rows = tuple((lane, what, render.number(start), render.number(length)) for lane, what, start, length in slices)
    return Chart(
        f"{entry.name} ({entry.record.kind}): {len(shown)} steps from {start_ns / NS_PER_MS:,.1f} ms on, in ms.",
        charts.timeline(lanes, slices, "ms"),
        Table("spans", ("lane", "what", "from, ms", "for, ms"), rows, left=2),
    )


def _end(span: Span) -> int:
    return span.start_ns + span.duration_ns


def kv_chains(entries: Sequence[Entry]) -> Section | None:
    """Placement, memory freed, KV room, sequences at once, throughput, beside tables in HBM."""
    known = [(entry.name, entry.record.metrics.kv_chain) for entry in entries]
    chains = [(name, chain) for name, chain in known if chain is not None]
    if not chains:
        return None
    rows = [("HBM freed by the placement", *(format_bytes(chain.hbm_freed_bytes) for _, chain in chains))]
    for label, field in answer_views.KV_LINKS:
        rows.append((label, *(render.number(getattr(chain.here, field)) for _, chain in chains)))
        in_hbm = (None if chain.in_hbm is None else getattr(chain.in_hbm, field) for _, chain in chains)
        rows.append((f"… with tables in HBM: {label}", *(render.number(value) for value in in_hbm)))
    room = [(name, float(chain.here.kv_capacity_tokens), None, None) for name, chain in chains]
    chart = Chart("Room for KV, in tokens.", charts.bars([("KV room", room)], "tokens"), None)
    table = Table("", ("what the placement buys", *(name for name, _ in chains)), tuple(rows))
    return Section("kv", "What the placement buys", (), (chart,), (table,))


def start_ups(entries: Sequence[Entry]) -> Section | None:
    """How long a host takes to come up."""
    rows = [
        (entry.name, part.name, part.note, format_bytes(part.size_bytes), render.with_interval(part.time_s))
        for entry in entries
        if entry.record.metrics.start_up is not None
        for part in entry.record.metrics.start_up.parts
    ]
    if not rows:
        return None
    table = Table("", ("run", "part", "note", "bytes", "s"), tuple(rows), left=3)
    return Section("start-up", "Until a host serves", (), (), (table,))
