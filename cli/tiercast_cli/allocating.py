"""From the options of ``tiercast allocate`` to the splits, and the splits as a table."""

from tiercast_cli import inputs, render
from tiercast_cli.planning import amount
from tiercast_cli.pricing_views import usd
from tiercast_plan import allocation
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput
from tiercast_profiles.units import GIB, gb_to_bytes

MAX_PARAMS = 10**15


def allocate(*, model: str, hardware: str, sparse_params: str, prices: str | None) -> allocation.Allocation:
    """Load what the options name and split.

    Raises:
        BadInput: a name or the number cannot be used.
    """
    count = amount(sparse_params, "--sparse-params")
    names = inputs.hardware_names(hardware)
    if len(names) != 1 or count > MAX_PARAMS:
        raise BadInput(f"--hardware {hardware!r} --sparse-params {sparse_params!r}: give one machine, at most 1e15")
    machine = store.load_hardware(names[0])
    device_bytes = gb_to_bytes(machine.device.memory_capacity_gb.value)
    book = store.load_prices(prices or "default")
    return allocation.allocate(store.load_model(model), book, machine.name, device_bytes, int(count))


def show(result: allocation.Allocation) -> None:
    """Experts alone, then the two ends of the published range."""
    rows = [
        [
            f"{100 * split.expert_ratio:.0f} %",
            render.number(split.num_experts_per_layer),
            f"{split.engram_rows / 1e6:,.1f}",
            f"{split.expert_bytes / GIB:,.1f}",
            f"{split.engram_bytes / GIB:,.1f}",
            usd(split.experts_usd_per_hour),
            usd(split.engram_usd_per_hour),
            usd(split.usd_per_hour),
        ]
        for split in result.splits
    ]
    columns = [
        "to\nexperts",
        "experts\n/layer",
        "million\nrows",
        "experts\nGiB",
        "tables\nGiB",
        "experts\nUSD/h",
        "tables\nUSD/h",
        "both\nUSD/h",
    ]
    title = f"{result.sparse_params:,} sparse parameters of {result.model_name} on {result.hardware_name}"
    render.table(title, columns, rows)
    render.line("experts: their share of device memory at the device's rental; tables: host memory of one host, bought")
    for gain in result.published_gains:
        render.line(f"published: {gain}")
    render.line(f"{result.source}; {result.range_note}")
