"""A budget of sparse parameters split between experts and Engram, and what either split takes to serve.

The split is the published law (arXiv 2601.07372 section 3): of the sparse, inactive parameters 75-80 % go to experts
and 20-25 % to Engram. The gains are quoted as published and never worked out for another model: the law was measured
at two compute budgets on models of about ten billion parameters with ten times as many parameters as active ones.
"""

from decimal import Decimal

from tiercast_plan.bill import HOURS_PER_YEAR, QUANTUM
from tiercast_profiles.document import Strict
from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.prices import PriceBook
from tiercast_profiles.units import GB

EXPERT_RATIO_LOW, EXPERT_RATIO_HIGH = Decimal("0.75"), Decimal("0.80")
LAW = "arXiv 2601.07372 section 3 [V], 2026"
# (compute budget, all parameters, active parameters) of the two curves the law was read from
MEASURED_AT = ((2e20, 5.7e9, 568e6), (6e20, 9.9e9, 993e6))
TOTAL_TO_ACTIVE = 10.0
PUBLISHED_GAINS = (
    "at 6e20 FLOPs and 9.9 B parameters: validation loss 1.7248 with experts alone, 1.7109 with about 80 % experts",
    "about 40 % experts still match experts alone, at the same budgets",
)


class Split(Strict):
    """One way to spend the budget. Prices are of the bytes alone, by the hour, where each kind would live.

    ``engram_usd_per_hour``: the tables in host memory of one host. ``experts_usd_per_hour``: the experts as a share of
    the device memory they take, at the device's rental.
    """

    expert_ratio: Decimal
    expert_params: int
    engram_params: int
    num_experts_per_layer: int
    engram_rows: int
    expert_bytes: int
    engram_bytes: int
    experts_usd_per_hour: Decimal
    engram_usd_per_hour: Decimal
    usd_per_hour: Decimal


class Allocation(Strict):
    """The published splits of a budget beside experts alone, and what is known of their quality."""

    model_name: str
    hardware_name: str
    sparse_params: int
    splits: tuple[Split, ...]
    published_gains: tuple[str, ...]
    source: str
    is_in_range: bool
    range_note: str


def allocate(
    model: ModelSpec, prices: PriceBook, hardware_name: str, device_bytes: int, sparse_params: int
) -> Allocation:
    """Split a budget of sparse parameters the published ways, with the model's own experts and rows.

    Raises:
        MissingCapability: the model has no experts, so there is nothing to split with.
        BadInput: the budget is smaller than one expert per layer and one row.
        NoDevicePrice: the book has no price for this hardware.
    """
    moe = model.backbone.moe
    if moe is None:
        raise MissingCapability(f"model {model.name!r} has no experts; the split is between experts and Engram")
    if sparse_params < moe.expert_params * model.backbone.num_layers + model.engram.row_values:
        raise BadInput(
            f"sparse_params={sparse_params} is less than one expert per layer "
            f"({moe.expert_params * model.backbone.num_layers}) and one row; give a larger budget"
        )
    key = prices.device_key(hardware_name, "")
    ratios = (Decimal(1), EXPERT_RATIO_HIGH, EXPERT_RATIO_LOW)
    active = model.backbone.active_params_decode
    total = active + sparse_params
    is_near = any(0.5 <= total / params <= 2 for _, params, _ in MEASURED_AT)
    is_alike = 0.5 <= total / active / TOTAL_TO_ACTIVE <= 2
    return Allocation(
        model_name=model.name,
        hardware_name=hardware_name,
        sparse_params=sparse_params,
        splits=tuple(
            _split(model, prices, key, device_bytes=device_bytes, sparse_params=sparse_params, expert_ratio=ratio)
            for ratio in ratios
        ),
        published_gains=PUBLISHED_GAINS,
        source=LAW,
        is_in_range=is_near and is_alike,
        range_note=(
            f"measured at 5.7 B and 9.9 B parameters, ten times the active ones; this is {total / 1e9:.1f} B, "
            f"{total / active:.1f} times: {'near them' if is_near and is_alike else 'outside, so nothing is promised'}"
        ),
    )


def _split(
    model: ModelSpec, prices: PriceBook, key: str, *, device_bytes: int, sparse_params: int, expert_ratio: Decimal
) -> Split:
    moe, engram = model.backbone.moe, model.engram
    assert moe is not None, "allocate has checked"
    layers = model.backbone.num_layers
    wanted = int(sparse_params * expert_ratio)
    # Whole experts on every layer; what is left over of them goes to rows, or nowhere where rows get nothing.
    per_layer = wanted // (moe.expert_params * layers)
    expert_params = per_layer * moe.expert_params * layers
    rows = 0 if expert_ratio == 1 else (sparse_params - expert_params) // engram.row_values
    expert_bytes, engram_bytes = per_layer * layers * moe.expert_bytes, rows * engram.row_bytes
    device_hour = prices.devices[key].usd_per_device_hour
    experts = (device_hour * expert_bytes / device_bytes).quantize(QUANTUM)
    hours = prices.amortisation_years * HOURS_PER_YEAR
    tables = (Decimal(engram_bytes) / GB * prices.dram_usd_per_gb / hours).quantize(QUANTUM)
    return Split(
        expert_ratio=expert_ratio,
        expert_params=expert_params,
        engram_params=rows * engram.row_values,
        num_experts_per_layer=per_layer,
        engram_rows=rows,
        expert_bytes=expert_bytes,
        engram_bytes=engram_bytes,
        experts_usd_per_hour=experts,
        engram_usd_per_hour=tables,
        usd_per_hour=experts + tables,
    )
