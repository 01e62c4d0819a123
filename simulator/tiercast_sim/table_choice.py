"""Which of a profile's component tables price the steps of a scenario."""

from tiercast_profiles.graph_buckets import MAX_GRAPH_ROWS, bucket_sizes
from tiercast_profiles.hardware import Component, ComputeTable
from tiercast_profiles.model import Engram
from tiercast_profiles.scenario import ResolvedScenario

BACKBONE_COMPONENTS: tuple[Component, ...] = (
    "embed",
    "linear",
    "attention_decode",
    "attention_prefill",
    "head",
    "step_overhead",
)
ENGRAM_COMPONENTS: tuple[Component, ...] = ("engram_module", "hash", "lookup_issue")


def is_of_shape(table: ComputeTable, engram: Engram) -> bool:
    """Whether a component table was measured with an Engram layer that computes what this one does.

    Profiles of earlier versions name the whole Engram, tables included, instead of its shape.
    """
    return table.engram_sha256 in (engram.shape_sha256, engram.sha256)


def find_table(resolved: ResolvedScenario) -> tuple[ComputeTable | None, tuple[str, ...]]:
    """The component table that was measured for this backbone in this graph mode, and what to warn of."""
    mode = resolved.placement.graph_mode
    tables = _tables_of_shape(resolved)
    if not tables:
        return None, ()
    matching = [table for table in tables if table.graph_mode == mode]
    if not matching:
        modes = ", ".join(sorted({table.graph_mode for table in tables}))
        return None, (
            f"compute of {resolved.model.name} was measured in graph mode {modes} only; {mode} uses the roofline",
        )
    if resolved.scenario.parallel.tensor > 1:
        return None, ("compute was measured on one rank; tensor parallel uses the roofline",)
    return _best_of(resolved, matching), ()


def table_of_single_calls(resolved: ResolvedScenario, table: ComputeTable) -> ComputeTable:
    """The table that prices steps which run without a graph, where ``table`` is the one of the placement's graph mode.

    Assumption A92: steps with prompt tokens or drafts, and decode batches beyond the graphs, take what single calls
    take. A profile without such a table has its single calls in that of the graphs, beyond the largest batch.
    """
    single = [other for other in _tables_of_shape(resolved) if other.graph_mode == "eager"]
    return _best_of(resolved, single) if single else table


def _tables_of_shape(resolved: ResolvedScenario) -> list[ComputeTable]:
    shape = resolved.model.backbone.shape_sha256
    return [table for table in resolved.hardware.compute if table.shape_sha256 == shape]


def _best_of(resolved: ResolvedScenario, tables: list[ComputeTable]) -> ComputeTable:
    """The table whose Engram layers are those that run.

    Assumption A97: without Engram layers the decoder's own parts take what they take in a model that has none, where
    the profile holds such a table; with them, what they take between Engram layers, whose weights share the caches.
    """
    plain = [table for table in tables if table.engram_sha256 is None]
    exact = [table for table in tables if is_of_shape(table, resolved.model.engram)]
    others = [table for table in tables if table not in plain and table not in exact]
    has_engram = resolved.placement.tier != "none"
    return next(iter((*exact, *others, *plain) if has_engram else (*plain, *exact, *others)))


def table_of_way(resolved: ResolvedScenario) -> ComputeTable | None:
    """The table that says how long the way of a lookup by the host is beside its gather; None where none does."""
    engram = resolved.model.engram
    tables = [table for table in _tables_of_shape(resolved) if is_of_shape(table, engram)]
    return next((table for table in tables if table.components.get("lookup_way")), None)


def graph_sizes(resolved: ResolvedScenario) -> tuple[int, ...]:
    """Batch sizes that an engine captures, ascending.

    It has no more slots than the workload has requests at once, and decodes no more of them than a step has tokens.

    Larger batches, which are asked for where a load is only being estimated, have the sizes of a full engine.
    """
    engine, workload = resolved.scenario.engine, resolved.scenario.workload
    at_once = [count for count in (workload.concurrency, workload.num_requests) if count is not None]
    most = min((engine.max_num_seqs, engine.max_num_batched_tokens, MAX_GRAPH_ROWS, *at_once))
    return tuple(sorted({*bucket_sizes(engine.max_num_seqs), most}))


def measured_components(table: ComputeTable, engram: Engram) -> frozenset[Component]:
    """Components that a table has times of for a model with this Engram."""
    known = BACKBONE_COMPONENTS
    if table.engram_sha256 is None or is_of_shape(table, engram):
        known += (*ENGRAM_COMPONENTS, "engram_chunk")
    return frozenset(name for name in known if table.components.get(name))
