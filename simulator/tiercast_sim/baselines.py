"""What a placement is compared with: no Engram, every table in HBM, the same bytes as experts, a cold page cache."""

from typing import Literal

from tiercast_profiles.document import Bound
from tiercast_profiles.scenario import Placement, ResolvedScenario

Baseline = Literal["no_engram", "hbm", "moe_offload"]


def baselines_of(resolved: ResolvedScenario) -> tuple[Baseline, ...]:
    """The baselines a placement has: none for a model without Engram, one for tables that are in HBM already.

    Without prefetch a placement is its own ``moe_offload``.
    """
    tier = resolved.placement.tier
    if tier == "none":
        return ()
    if tier == "hbm":
        return ("no_engram",)
    return ("no_engram", "hbm") if resolved.placement.prefetch == "off" else ("no_engram", "hbm", "moe_offload")


def with_baseline(resolved: ResolvedScenario, baseline: Baseline) -> ResolvedScenario:
    """The scenario of a baseline: same machine, model and workload.

    A graph mode the scenario asks for stays; one that the path imposed does not, because the downgrade is part of what
    the placement costs.

    Raises:
        MissingCapability: the machine has no curve for tables in HBM.
    """
    wanted = resolved.scenario.placement
    if baseline == "moe_offload":
        return as_experts(resolved)
    if baseline == "no_engram":
        placement = Placement(tier="none", graph_mode=wanted.graph_mode)
    else:
        placement = Placement(tier="hbm", graph_mode=wanted.graph_mode, row_layout=wanted.row_layout)
    return resolved.with_placement(placement)


def as_experts(resolved: ResolvedScenario) -> ResolvedScenario:
    """The same bytes as mixture-of-experts weights, in the same tier by the same path.

    Assumption A81: a router picks experts from the hidden state in front of their own layer, so that nothing can be
    fetched ahead, where Engram's addresses follow from token ids (arXiv 2601.07372, section 2.5). All else is alike:
    as many bytes in as many reads, as often the same ones, as much of a cache. Real experts are read in larger pieces
    and far more bytes a token, so this isolates what knowing early is worth.
    """
    return resolved.with_placement(resolved.scenario.placement.model_copy(update={"prefetch": "off"}))


def with_cold_pages(resolved: ResolvedScenario) -> ResolvedScenario:
    """The scenario with nothing of the tables in the page cache."""
    return resolved.with_placement(resolved.scenario.placement.model_copy(update={"page_cache_residency_ratio": 0.0}))


def at_row_width(resolved: ResolvedScenario, bound: Bound) -> ResolvedScenario:
    """The scenario at one end of the model's row-width band (Assumption A18).

    The number of parameters is what the source states, so narrower rows mean more of them.
    """
    band, engram = resolved.model.row_values_band, resolved.model.engram
    if band is None or bound == "nominal":
        return resolved
    row_values = band[0] if bound == "optimistic" else band[1]
    rows = tuple(max(2, round(rows * engram.row_values / row_values)) for rows in engram.rows_per_head)
    other = type(engram).model_validate({**engram.model_dump(), "row_values": row_values, "rows_per_head": rows})
    model = resolved.model.model_copy(update={"engram": other})
    return resolved.model_copy(update={"model": model})
