"""What the answers beside the metrics look like: time by part, windows, tiers, shared things, the KV chain, seeds."""

import re
from typing import TYPE_CHECKING

from tiercast_cli import render
from tiercast_profiles.units import NS_PER_MS, format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiercast_profiles.record import KvChain, Metrics, PageCacheUse, Replicates, ResourceUse, StartUp, TimeSpent

KV_LINKS = (
    ("KV room, tokens", "kv_capacity_tokens"),
    ("requests the KV room holds", "num_requests_in_kv"),
    ("sequences decoding at once", "num_decoding_mean"),
    ("output tokens/s", "output_tokens_per_s"),
)
NUMBERED = re.compile(r"(.*?\S) (\d+)( .*|)")  # "link 3 of host 0": the first number is what neighbours differ in
NOT_SHOWN_OVER_SEEDS = ("layers.", "penalty_ratio.", "memory_bytes.")


def answers(metrics: "Metrics") -> None:
    """Every answer the record has."""
    if metrics.time_spent is not None:
        time_spent(metrics.time_spent)
    required(metrics)
    if metrics.kv_chain is not None:
        kv_chain(metrics.kv_chain)
    if metrics.resources:
        render.table("", ["shared thing", "busy"], shared_things(metrics.resources))
    if metrics.start_up is not None:
        start_up(metrics.start_up)
    if metrics.page_cache is not None:
        page_cache(metrics.page_cache)
    if metrics.replicates is not None:
        replicates(metrics.replicates)


def time_spent(spent: "TimeSpent") -> None:
    """The mean step by part; the last line is the step itself, and the parts sum to it."""
    rows = [
        [part.name, render.value(part.mean_ms_per_step), render.percent(part.total_ns / max(1, spent.total_ns))]
        for part in spent.parts
    ]
    rows.append(["mean step", render.number(spent.total_ns / spent.num_steps / NS_PER_MS), "100.0 %"])
    render.table("", ["where the time went", "ms/step", "share"], rows)


def required(metrics: "Metrics") -> None:
    """What each Engram layer needs to be hidden, beside what it got, and what other tiers of the machine give."""
    if any(layer.required_latency_us is not None for layer in metrics.layers):
        rows = [
            [
                str(layer.layer_id),
                render.value(layer.required_latency_us),
                render.value(layer.service_us),
                render.value(layer.required_gb_per_s),
                render.value(layer.given_gb_per_s),
            ]
            for layer in metrics.layers
        ]
        columns = ["to hide\nEngram layer", "needs us\nat most", "takes us", "needs GB/s\nat least", "gets GB/s"]
        render.table("", columns, rows)
    if metrics.offers:
        rows = [
            [
                f"{offer.tier} by {offer.path}",
                render.value(offer.lookup_us),
                render.value(offer.given_gb_per_s),
                ", ".join(str(layer_id) for layer_id in offer.hidden_layer_ids) or "none",
            ]
            for offer in metrics.offers
        ]
        render.table("", ["tiers of this machine,\nalone", "lookup us", "GB/s", "hidden at layers"], rows)


def kv_chain(chain: "KvChain") -> None:
    """Placement → HBM freed → KV room → concurrency → throughput, beside tables in HBM."""
    rows = [["HBM freed by the placement", format_bytes(chain.hbm_freed_bytes), "0 B"]]
    for name, field in KV_LINKS:
        in_hbm = None if chain.in_hbm is None else getattr(chain.in_hbm, field)
        rows.append([name, render.number(getattr(chain.here, field)), render.number(in_hbm)])
    render.table("", ["what the placement buys", "here", "tables in HBM"], rows)


def shared_things(uses: "Sequence[ResourceUse]") -> list[list[str]]:
    """One line per shared thing; neighbours that differ only in their number and are equally busy share a line."""
    lines: list[tuple[str, str, list[str]]] = []
    for use in uses:
        busy = render.percent(use.busy_ratio.value)
        numbered = NUMBERED.fullmatch(use.name)
        shape = NUMBERED.sub(r"\1 #\3", use.name)
        if numbered and lines and lines[-1][:2] == (shape, busy):
            lines[-1][2].append(numbered[2])
        else:
            lines.append((shape, busy, [numbered[2]] if numbered else []))
    return [[shape.replace("#", _span(numbers)) if numbers else shape, busy] for shape, busy, numbers in lines]


def _span(numbers: list[str]) -> str:
    return numbers[0] if len(numbers) == 1 else f"{numbers[0]}..{numbers[-1]}"


def start_up(found: "StartUp") -> None:
    """How long the fullest host takes to come up, part by part."""
    rows = [[part.name, format_bytes(part.size_bytes), render.value(part.time_s)] for part in found.parts]
    rows.append(["start-up", "", render.value(found.total_s)])
    render.table("", ["start-up of a host", "bytes", "s"], rows)
    for part in found.parts:
        if part.note:
            render.line(f"{part.name}: not known; {part.note}")


def page_cache(found: "PageCacheUse") -> None:
    """Cold beside warm, and how long it takes from one to the other."""
    rows = [
        ["output tokens/s, cold", render.with_interval(found.cold_output_tokens_per_s)],
        ["output tokens/s, warm", render.with_interval(found.warm_output_tokens_per_s)],
        ["resident, of each host", format_bytes(found.host_resident_bytes)],
        ["s to read it ahead", render.with_interval(found.read_ahead_s)],
        [
            "s until serving brought it in",
            "never quite" if found.by_traffic_s is None else render.with_interval(found.by_traffic_s),
        ],
    ]
    render.table("", [f"page cache, {render.percent(found.residency_ratio)} of the rows", ""], rows)


def replicates(found: "Replicates") -> None:
    """Each metric over seeds, and the band of the inputs with that interval added."""
    rows = []
    for name, metric in found.metrics.items():
        if not name.startswith(NOT_SHOWN_OVER_SEEDS):
            show = render.percent if name.endswith("_ratio") else render.number
            seeds = f"{show(metric.low)} .. {show(metric.high)}"
            with_band = f"{show(metric.combined_low)} .. {show(metric.combined_high)}"
            rows.append([name, show(metric.mean), seeds, with_band])
    percent = f"{100 * found.confidence_ratio:.0f} %"
    columns = [
        f"over {found.num_seeds} seeds",
        "mean",
        f"{percent} interval\nof the mean",
        "with the band\nof the inputs",
    ]
    render.table("", columns, rows)
    render.line("over seeds: chance alone, nominal inputs (Student t); with the band: uncertain inputs as well")
