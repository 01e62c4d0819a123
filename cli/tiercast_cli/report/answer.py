"""The answer in a sentence, and the table beside it."""

from collections.abc import Sequence

from tiercast_cli import render
from tiercast_cli.pricing_views import money, usd
from tiercast_cli.report.gather import Entry
from tiercast_cli.report.parts import Section, Table
from tiercast_cli.views import calibration, placement_words
from tiercast_plan.difference import Difference, Side, difference
from tiercast_profiles.record import Metric, Percentiles


def sentence(entries: Sequence[Entry]) -> str:
    """Which run is best: one sentence for each model and workload, since only those compare."""
    if not entries:
        return "No run is in this report; it shows sweeps and texts alone."
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.record.provenance.model_name, entry.record.workload_sha256), []).append(entry)
    return " ".join(_best_of(group) for group in groups.values())


def _best_of(entries: Sequence[Entry]) -> str:
    """The best by price where all have one, by throughput otherwise, and whether the bands agree."""
    order = ranked(entries)
    best = order[0]
    provenance, metrics = best.record.provenance, best.record.metrics
    penalty = metrics.penalty_ratio.get("no_engram")
    facts = [f"{render.number(metrics.output_tokens_per_s.value)} output tokens/s"]
    if best.cost is not None:
        facts.append(f"{usd(best.cost.usd_per_mtok['total'].value)} USD per million tokens")
    if penalty is not None:
        facts.append(f"{render.percent(penalty.value)} below the same model without Engram")
    subject = f"{provenance.model_name} on {provenance.hardware_name}"
    words = f"{best.name} ({placement_words(best.record.placement)}): {', '.join(facts)}"
    if len(order) == 1:
        return f"{subject}, {words}."
    how = "cheapest" if _all_priced(entries) else "fastest"
    return f"{subject}: the {how} of {len(order)} runs is {words}. {_next(best, order[1])}"


def ranked(entries: Sequence[Entry]) -> list[Entry]:
    """Best first."""
    if _all_priced(entries):
        return sorted(entries, key=lambda entry: entry.cost.usd_per_mtok["total"].value if entry.cost else 0)
    return sorted(entries, key=lambda entry: -entry.record.metrics.output_tokens_per_s.value)


def _all_priced(entries: Sequence[Entry]) -> bool:
    return all(entry.cost is not None for entry in entries)


def _next(best: Entry, second: Entry) -> str:
    found = between(best, second)
    change = next((metric for metric in found.metrics if metric.name == "output_tokens_per_s"), None)
    if change is None or change.change_ratio is None:
        return f"Next is {second.name}."
    size = f"{render.percent(change.change_ratio, signed=True)} throughput"
    if second.cost is not None and best.cost is not None:
        ratio = float(second.cost.usd_per_mtok["total"].value / best.cost.usd_per_mtok["total"].value) - 1
        size += f", {render.percent(ratio, signed=True)} per million tokens"
    doubt = "; the bands of the inputs do not decide which is faster" if change.verdict == "undecided" else ""
    return f"Next is {second.name}: {size}{doubt}."


def between(one: Entry, other: Entry) -> Difference:
    """What changes from one entry to the other."""
    sides = (Side(entry.name, entry.record, entry.cost, entry.resolved, entry.cost_problem) for entry in (one, other))
    return difference(*sides)


def overview(entries: Sequence[Entry]) -> Section:
    """Every run with its speed, latency, room and price."""
    rows = []
    for entry in ranked(entries):
        metrics = entry.record.metrics
        penalty = metrics.penalty_ratio.get("no_engram")
        mtok = (render.UNKNOWN, render.UNKNOWN) if entry.cost is None else money(entry.cost.usd_per_mtok["total"])
        rows.append(
            (
                entry.name,
                f"{entry.record.kind}: {placement_words(entry.record.placement)}",
                _ends(metrics.output_tokens_per_s),
                render.percent_with_interval(penalty),
                _p50(metrics.ttft_ms),
                _p50(metrics.tpot_ms),
                render.value(metrics.kv_capacity_tokens),
                mtok[0],
                mtok[1],
            )
        )
    columns = (
        "run",
        "what",
        "output tokens/s",
        "below no Engram",
        "TTFT p50, ms",
        "TPOT p50, ms",
        "KV room, tokens",
        "USD/Mtok",
        "interval",
    )
    text = [f"{entry.name}: {entry.cost_problem}" for entry in entries if entry.cost_problem is not None]
    for words in dict.fromkeys(calibration(entry.record.provenance.hardware_calibration) for entry in entries):
        text.append(f"hardware numbers: {words}")
    return Section("overview", "The runs", tuple(text), tables=(Table("", columns, tuple(rows), left=2),))


def _p50(percentiles: Percentiles | None) -> str:
    return render.UNKNOWN if percentiles is None else _ends(percentiles.p50)


def _ends(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return render.value(metric)
    return f"{render.value(metric)} [{render.interval(metric)}]"
