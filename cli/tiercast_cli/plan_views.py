"""What a plan looks like: the answer in a sentence, its rivals, the front, why not otherwise, and what to type."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tiercast_cli import render, views
from tiercast_cli.pricing_views import usd
from tiercast_profiles.units import format_bytes

if TYPE_CHECKING:
    from tiercast_plan.answer import PlanRow, Report
    from tiercast_plan.flags import LaunchFlags, Setting
    from tiercast_plan.search import ParetoPoint

FRONT_ROWS = 10
BAR_CELLS = 24


def show(report: "Report") -> None:
    """Everything, the answer first."""
    render.line(f"{report.model}: {report.num_options} options, {report.num_simulated} simulations; {_asked(report)}")
    if not report.plans:
        render.line("no option meets what was asked")
    else:
        _answer(report.plans[0])
        if report.plans[0].is_at_largest_load:
            render.line("no larger load was tried (--max-num-seqs); a larger one may be cheaper still")
        _ranking(report)
        _speeds(report.plans)
    _why_not(report)
    if report.plans:
        _front(report.pareto)
        _break_evens(report)
        _tornado(report)
        for flags in report.plans[0].flags:
            _flags(flags)
    uncalibrated = [row.hardware for row in report.plans if not row.is_calibrated]
    if uncalibrated:
        names = ", ".join(dict.fromkeys(uncalibrated))
        render.line(f"uncalibrated (datasheet and published numbers, never measured): {names}")
    for warning in report.warnings:
        render.line(views.WARNING_SIGN + warning)


def _asked(report: "Report") -> str:
    limits = [
        f"{name} at most {limit:g} ms"
        for name, limit in (("TTFT", report.slo_ttft_ms), ("TPOT", report.slo_tpot_ms))
        if limit is not None
    ]
    parts = [f"{' and '.join(limits)} at p{report.percentile}"] if limits else ["no latency limit"]
    if report.demand_tokens_per_day is not None:
        parts.append(f"{report.demand_tokens_per_day:,} tokens a day")
    if report.budget_usd_per_hour is not None:
        parts.append(f"at most {report.budget_usd_per_hour} USD an hour")
    return ", ".join(parts)


def _answer(best: "PlanRow") -> None:
    cost = best.cost.usd_per_mtok["total"]
    interval = "" if cost.low is None or cost.high is None else f" ({usd(cost.low)} .. {usd(cost.high)})"
    placement, fleet = best.placement, best.fleet
    render.line(
        f"answer: {best.num_hosts:,} x {best.num_devices // best.num_hosts} {best.hardware}, TP{best.tensor} x "
        f"DP{best.data_per_host} on each host, tables in {placement.tier} by {placement.path}, prefetch "
        f"{placement.prefetch}, {best.num_requests_per_replica} requests on each replica: {usd(cost.value)}{interval} "
        f"USD per million tokens, {usd(fleet.usd_per_hour)} USD an hour, {fleet.tokens_per_day:,} tokens a day"
    )


def _ranking(report: "Report") -> None:
    rows = [
        [
            _name(row),
            f"{row.num_devices:,}={row.num_hosts:,}x{row.data_per_host}x{row.tensor}",
            _where(row),
            usd(row.cost.usd_per_mtok["total"].value),
            usd(row.cost.usd_per_mtok["output"].value),
            usd(row.fleet.usd_per_hour),
        ]
        for row in report.plans
    ]
    columns = ["plan", "devices=\nhosts x DP x TP", "tables", "USD/Mtok\nall", "USD/Mtok\noutput", "USD/h"]
    render.table("Plans, best first", columns, rows, left=3)


def _name(row: "PlanRow") -> str:
    return f"{row.rank} {row.hardware}{' *' if row.is_at_event_limit else ''}"


def _where(row: "PlanRow") -> str:
    placement = row.placement
    parts = [f"{placement.tier}/{placement.path}"]
    if placement.tier != "hbm":
        parts.append(placement.prefetch)
        if placement.replication != "per_node":
            parts.append(placement.replication)
    if placement.cache_gib:
        parts.append(f"cache {placement.cache_gib:g} GiB")
    return " ".join(parts)


def _speeds(plans: "Sequence[PlanRow]") -> None:
    rows = [
        [
            _name(row),
            render.number(row.num_requests_per_replica),
            render.number(row.ttft_ms, 3),
            render.number(row.tpot_ms, 3),
            render.number(row.stall_ms_per_step, 3),
            render.number(round(row.total_tokens_per_s)),
            render.percent(row.estimate_error_ratio, signed=True),
        ]
        for row in plans
    ]
    columns = [
        "plan",
        "requests\nper replica",
        "TTFT\nms",
        "TPOT\nms",
        "stall\nms/step",
        "tokens/s\nper host",
        "closed\nform",
    ]
    render.table("", columns, rows)
    limited = sorted({row.num_requests_per_replica for row in plans if row.is_at_event_limit})
    if limited:
        render.line(
            f"* no more than {' or '.join(map(str, limited))} requests per replica were tried: its lookups are "
            "simulated one by one; a larger load, as others have here, may be cheaper"
        )
    render.line("closed form: how far its tokens/s, which chose the finalists, is from the simulation")


def _why_not(report: "Report") -> None:
    if not report.why_not:
        return
    rows = [
        [
            row.hardware,
            row.tier or "any",
            "\n".join(f"{count} {kind}" for kind, count in row.num_options_by_kind.items()),
            row.reason if row.tensor is None else f"TP{row.tensor}: {row.reason}",
            format_bytes(row.shortfall_bytes) if row.shortfall_bytes else render.UNKNOWN,
        ]
        for row in report.why_not
    ]
    render.table("Why not", ["machine", "tier", "options", "the nearest of them", "short of"], rows, left=4)


def _front(points: "Sequence[ParetoPoint]") -> None:
    """The front thinned to a few rows; the bar is the cost on a logarithmic scale."""
    step = max(1, -(-len(points) // FRONT_ROWS))
    chosen = [point for index, point in enumerate(points) if index % step == 0 or index == len(points) - 1]
    costs = [float(point.usd_per_mtok) for point in chosen]
    low, high = math.log(min(costs)), math.log(max(costs))
    rows = []
    for point, cost in zip(chosen, costs, strict=True):
        share = 1.0 if high == low else (math.log(cost) - low) / (high - low)
        rows.append(
            [
                f"{point.hardware} TP{point.tensor}",
                point.tier,
                f"{point.num_requests_per_replica}",
                render.number(point.tpot_ms, 3),
                usd(point.usd_per_mtok),
                "#" * max(1, round(share * BAR_CELLS)),
            ]
        )
    columns = ["machine", "tier", "requests\nper replica", "TPOT\nms", "USD/Mtok\nall", ""]
    title = f"Pareto front in closed form, limits not applied: {len(chosen)} of {len(points)} points"
    render.table(title, columns, [[*row[:2], *row[2:5], row[5]] for row in rows], left=2)


def _break_evens(report: "Report") -> None:
    rows = []
    for row in report.break_evens:
        current = f"{render.number(row.current, 3)} {row.unit}"
        if row.value is None:
            flips = f"not {row.direction}, as far as {render.number(row.searched_to, 3)} {row.unit}"
        else:
            flips = f"{row.direction} {render.number(row.value, 3)} {row.unit}: {row.winner}"
        rows.append([row.knob, current, flips])
    render.table("Where the answer flips, all else as it is (closed form)", ["", "now", "flips"], rows, left=3)


def _tornado(report: "Report") -> None:
    rows = [
        [
            row.name,
            f"{row.low} .. {row.high}",
            render.UNKNOWN if row.usd_per_mtok_at_low is None else usd(row.usd_per_mtok_at_low),
            render.UNKNOWN if row.usd_per_mtok_at_high is None else usd(row.usd_per_mtok_at_high),
            " / ".join(dict.fromkeys(name for name in (row.winner_at_low, row.winner_at_high) if name)) or "",
        ]
        for row in report.tornado
    ]
    columns = ["input", "from .. to", "USD/Mtok\nat from", "USD/Mtok\nat to", "wins instead"]
    render.table("What the answer is most sensitive to (closed form)", columns, rows, left=2)


def _flags(flags: "LaunchFlags") -> None:
    name = {"vllm": "vLLM", "sglang": "SGLang"}[flags.engine]
    state = "" if flags.is_supported else ": this plan has no released flag there"
    render.heading(f"{name}{state}")
    for setting in flags.settings:
        _setting(setting)
    if flags.engine == "vllm" and flags.host:
        render.heading("Host")
        for setting in flags.host:
            _setting(setting)
    for setting in flags.unsupported:
        render.line(f"  not there: {setting.text} [{setting.mark}: {setting.source}]")


def _setting(setting: "Setting") -> None:
    render.command(f"  {setting.text}")
    render.line(f"      {setting.purpose} [{setting.mark}: {setting.source}]")
