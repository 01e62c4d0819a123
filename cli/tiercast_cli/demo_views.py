"""What the demo prints: one part at a time while it runs, and the whole page for the file."""

from pathlib import Path
from typing import TYPE_CHECKING

from tiercast_cli import catalogue_views, pricing_views, render, text_locality, validation_views, views

if TYPE_CHECKING:
    from tiercast_cli.demo_job import DemoResult


def show(part: str, result: "DemoResult") -> None:
    """Print one part as soon as it is done."""
    {"profile": profile, "locality": locality, "validation": validation, "prediction": prediction}[part](result)


def page(result: "DemoResult") -> None:
    """Every part, in order."""
    for part in (profile, locality, validation, prediction):
        part(result)


def profile(result: "DemoResult") -> None:
    """What the probes found before anything ran."""
    if result.first is not None:
        render.heading("1. This machine, as its probes found it")
        catalogue_views.profile_summary(result.first)


def locality(result: "DemoResult") -> None:
    """How often rows repeat in real English and real code."""
    render.heading("2. Real text: how often do rows repeat?")
    for item in result.localities:
        text_locality.view(item)


def validation(result: "DemoResult") -> None:
    """Measured, predicted and error of every arm."""
    render.heading("3. The same work, measured by the runtime and predicted by the simulator from the probes alone")
    for case in result.cases:
        render.line(f"{case.name}: {views.placement_words(case.measured.placement)}")
    validation_views.summary(result.cases)
    penalty_table(result)
    validation_views.ranking(result.cases)
    prefetch_verdict(result)
    predicted_from(result)


def penalty_table(result: "DemoResult") -> None:
    """Throughput lost against the arm without Engram."""
    from tiercast_cli.demo_job import penalties

    rows = []
    for name, (measured, predicted) in penalties(result).items():
        points = "" if predicted is None else f"{100 * (predicted.value - measured.value):+.1f} pt"
        rows.append([name, render.percent_with_interval(measured), render.percent_with_interval(predicted), points])
    render.table("throughput lost against no Engram", ["arm", "measured", "predicted", "error"], rows)


def prefetch_verdict(result: "DemoResult") -> None:
    """What prefetch bought, measured and predicted, in one line."""
    by_name = {case.name: case for case in result.cases}
    with_it, without = by_name.get("demo-prefetch"), by_name.get("demo-no-prefetch")
    if with_it is None or without is None:
        return
    gains = [
        fast.metrics.output_tokens_per_s.value / slow.metrics.output_tokens_per_s.value - 1
        for fast, slow in ((with_it.measured, without.measured), (with_it.predicted, without.predicted))
    ]
    render.line(
        f"prefetch against no prefetch: {render.percent(gains[0], signed=True)} throughput measured, "
        f"{render.percent(gains[1], signed=True)} predicted"
    )


def predicted_from(result: "DemoResult") -> None:
    """Which profile the arms are predicted from, in one line."""
    if result.profile is None:
        return
    is_gpu = result.profile.device.kind != "cpu"  # layers cannot be timed beside engines there
    when = "probed right before the runs" if is_gpu else "probed in turns with the runs, and neither sees the other"
    render.line(f"predicted from profile.yaml, {when}; the profile of part 1 is profile-before.yaml")


def prediction(result: "DemoResult") -> None:
    """The large model by tier: throughput, penalty, KV room, cost, and what each Engram layer leaves a lookup."""
    render.heading("4. Predicted: DeepSeek-V4.1-Flash on 8 x H200, the tables in three tiers")
    pricing_views.comparison(result.priced)
    rows = [
        [
            row.name,
            str(layer.layer_id),
            render.value(layer.window_us),
            render.value(layer.lookup_us),
            render.value(layer.stall_us),
            render.value(layer.required_gb_per_s),
        ]
        for row in result.priced
        if row.metrics is not None
        for layer in row.metrics.layers
    ]
    if rows:
        columns = ["placement", "layer", "window us", "lookup us", "stall us", "needs GB/s"]
        render.table("each Engram layer in a median decode step", columns, rows)
    pricing_views.bill(result.priced)


def closing(folder: Path, result: "DemoResult") -> None:
    """Where everything is, and how long it took."""
    parts = ", ".join(f"{name} {seconds:g} s" for name, seconds in result.elapsed_s.items())
    render.line()
    render.line(f"took {sum(result.elapsed_s.values()):.0f} s: {parts}")
    render.line(f"all records are under {folder}; the page above is {folder / 'output.txt'}")


def error_table_markdown(result: "DemoResult") -> str:
    """The error table of the README, as Markdown."""
    columns = ["arm", "metric", "measured", "predicted", "error"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for case in result.cases:
        for name, title in validation_views.SUMMARY:
            cells = validation_views.row(case, name)[1:4]
            if cells[0] != render.UNKNOWN:
                lines.append(f"| {case.name} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
