"""What records and comparisons look like."""

from typing import TYPE_CHECKING

from tiercast_cli import answer_views, render
from tiercast_profiles.compare import EXPECTED_DIFFERENCES, Comparison, flat_metrics
from tiercast_profiles.units import format_bytes

if TYPE_CHECKING:
    from tiercast_profiles.record import RunRecord
    from tiercast_profiles.scenario import ResolvedPlacement

BASIS = {
    "spread": "quartiles of the repeats",
    "band": "the simulation at both ends of the bands of its inputs",
    "point": "none",
}
RATIOS = ("hidden_ratio", "unique_row_ratio", "cache_hit_ratio")
TABLES_OF_THEIR_OWN = ("layers.", "memory_bytes.")
SETTLED_BY_THE_SCENARIO = ("rows_per_token",)
WARNING_SIGN = "warning: "


def placement_words(placement: "ResolvedPlacement") -> str:
    """A placement in a few words: ``nvme by disk, prefetch step_entry``."""
    if placement.tier == "none":
        return "no Engram"
    cache = f", cache {placement.cache_gib:g} GiB" if placement.cache_gib else ""
    return f"{placement.tier} by {placement.path}, prefetch {placement.prefetch}{cache}"


def record(result: "RunRecord") -> None:
    """One run: what it was, every metric, each Engram layer's window, memory by tier, warnings."""
    provenance = result.provenance
    render.heading(f"{result.kind} run: {provenance.model_name} on {provenance.hardware_name}")
    parallel = result.scenario.parallel
    render.line(f"placement: {placement_words(result.placement)}; graph mode {result.placement.graph_mode}")
    prefill = f" decoding, {parallel.prefill} prefilling" if parallel.prefill else ""
    render.line(f"ranks: tensor {parallel.tensor} x data {parallel.data}{prefill}; seed {result.scenario.seed}")
    if result.kind == "simulated":
        render.line(f"hardware numbers: {calibration(provenance.hardware_calibration)}")
    render.line(f"tokens: {tokens(provenance.vocabulary)}")
    rows, bases = [], []
    for name, (unit, metric) in flat_metrics(result.metrics).items():
        if name.startswith(TABLES_OF_THEIR_OWN):
            continue
        if metric.low is not None:
            bases.append(BASIS[metric.basis])
        if unit == "ratio":
            rows.append([name, render.percent(metric.value).removesuffix(" %"), "%", render.percent_interval(metric)])
        else:
            rows.append([name, render.value(metric), unit, render.interval(metric)])
    render.table("", ["metric", "value", "unit", "interval"], rows)
    for basis in dict.fromkeys(bases):
        render.line(f"interval: {basis}")
    layers(result)
    answer_views.answers(result.metrics)
    memory = [[tier, format_bytes(size)] for tier, size in result.metrics.memory_bytes.items()]
    if memory:
        render.table("", ["memory", "used"], memory)
    for warning in provenance.warnings:
        render.line(WARNING_SIGN + warning)


def layers(result: "RunRecord") -> None:
    """Each Engram layer of a median decode step: the time it leaves a lookup, and the time the lookup takes."""
    if not result.metrics.layers:
        return
    rows = [
        [
            str(layer.layer_id),
            render.value(layer.window_us),
            render.value(layer.lookup_us),
            render.value(layer.stall_us),
            render.value(layer.required_gb_per_s),
        ]
        for layer in result.metrics.layers
    ]
    columns = ["Engram layer", "window us", "lookup us", "stall us", "needs GB/s"]
    render.table("", columns, rows)
    render.line("a median decode step; lookup us with the wait for earlier lookups, GB/s of one rank")


def tokens(vocabulary: str) -> str:
    """Where the token ids come from, in words."""
    source, _, size = vocabulary.rpartition("/")
    return f"random ids below {int(size):,}" if source == "uniform" else f"text in the vocabulary {vocabulary}"


def calibration(kind: str) -> str:
    """Whether the numbers of a hardware profile were measured, in words."""
    return "measured by probes" if kind == "measured" else "uncalibrated (datasheet and published numbers)"


def comparison(name: str, result: Comparison) -> None:
    """Measured, predicted and error of one scenario."""
    rows = []
    for metric in result.metrics:
        if metric.name.startswith(TABLES_OF_THEIR_OWN) or metric.name in SETTLED_BY_THE_SCENARIO:
            continue
        if metric.unit == "ratio":
            points = 100 * metric.difference
            cells = [render.percent(metric.measured.value), render.percent(metric.predicted.value), f"{points:+.1f} pt"]
        else:
            cells = [
                render.with_interval(metric.measured),
                render.with_interval(metric.predicted),
                render.percent(metric.error_ratio, signed=True),
            ]
        rows.append([metric.name, *cells])
    render.table(name, ["metric", "measured", "predicted", "error"], rows)
    inputs = [item for item in result.differing_inputs if item.path not in EXPECTED_DIFFERENCES]
    if inputs:
        render.line("inputs that differ: " + ", ".join(f"{i.path} ({i.measured} / {i.predicted})" for i in inputs))
