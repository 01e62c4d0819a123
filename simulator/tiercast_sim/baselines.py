"""What a placement is compared with: the same scenario without Engram, or with every table in HBM."""

from typing import Literal

from tiercast_profiles.document import Bound
from tiercast_profiles.scenario import Placement, ResolvedScenario

Baseline = Literal["no_engram", "hbm"]


def baselines_of(resolved: ResolvedScenario) -> tuple[Baseline, ...]:
    """The baselines a placement has: none for a model without Engram, one for tables that are in HBM already."""
    tier = resolved.placement.tier
    if tier == "none":
        return ()
    return ("no_engram",) if tier == "hbm" else ("no_engram", "hbm")


def with_baseline(resolved: ResolvedScenario, baseline: Baseline) -> ResolvedScenario:
    """The scenario of a baseline: same machine, model and workload.

    A graph mode the scenario asks for stays; one that the path imposed does not, because the downgrade is part of what
    the placement costs.

    Raises:
        MissingCapability: the machine has no curve for tables in HBM.
    """
    wanted = resolved.scenario.placement
    if baseline == "no_engram":
        placement = Placement(tier="none", graph_mode=wanted.graph_mode)
    else:
        placement = Placement(tier="hbm", graph_mode=wanted.graph_mode, row_layout=wanted.row_layout)
    return resolved.with_placement(placement)


def as_experts(resolved: ResolvedScenario) -> ResolvedScenario:
    """The same bytes as experts: which ones are needed is known only at their layer, too late to prefetch."""
    return resolved.with_placement(resolved.scenario.placement.model_copy(update={"prefetch": "off"}))


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
