"""What one layer of a measured model takes, part by part: the layer times of a profile as a person reads them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tiercast_profiles.hardware import Component, ComputePoint, ComputeTable, HardwareProfile
from tiercast_profiles.quantiles import capped_mean, median


@dataclass(frozen=True, slots=True)
class LayerParts:
    """Times in µs of one decoder layer and one Engram module in one step; None: not measured.

    ``num_tokens`` are sequences that decode one token each, or the tokens of a chunk (``is_chunk``); ``context_tokens``
    is what a sequence sees, or what lies before the chunk. ``linear_us`` is the layer without its attention, and
    ``mlp_us`` a part of it.
    """

    model_name: str
    graph_mode: str
    is_chunk: bool
    num_tokens: int
    context_tokens: int
    linear_us: float
    mlp_us: float | None
    attention_us: float
    engram_module_us: float | None


def layer_parts(profile: HardwareProfile) -> list[LayerParts]:
    """Of each model with its Engram layers the smallest and the largest decode batch and the largest chunk.

    Batches stand at the middle one of the contexts they were timed at, chunks at the start of a sequence. Piecewise
    graphs are left out: their decoder layers take what those of whole graphs take.
    """
    return [
        parts
        for table in profile.compute
        if table.engram_sha256 is not None and table.graph_mode != "piecewise"
        for parts in _of_table(profile, table)
    ]


def _of_table(profile: HardwareProfile, table: ComputeTable) -> Iterator[LayerParts]:
    linear, module = (_by_tokens(table, name) for name in ("linear", "engram_module"))
    mlp = _mlp_us(profile, table)
    for point, is_chunk in _steps(table):
        count = point.num_tokens
        if count in linear:
            yield LayerParts(
                model_name=table.model_name,
                graph_mode=table.graph_mode,
                is_chunk=is_chunk,
                num_tokens=count,
                context_tokens=point.context_tokens,
                linear_us=linear[count],
                mlp_us=mlp.get(count),
                attention_us=point.time_us,
                engram_module_us=module.get(count),
            )


def _steps(table: ComputeTable) -> Iterator[tuple[ComputePoint, bool]]:
    """Attention of the steps to show, and whether each is a chunk; chunks run by single calls in every mode."""
    decodes = table.components.get("attention_decode", ())
    counts = sorted({point.num_tokens for point in decodes})
    for count in sorted({*counts[:1], *counts[-1:]}):
        by_context = _by_context(decodes, count)
        yield by_context[(len(by_context) - 1) // 2], False
    chunks = table.components.get("attention_prefill", ())
    if chunks and table.graph_mode == "eager":
        yield _by_context(chunks, max(point.num_tokens for point in chunks))[0], True


def _by_context(points: Sequence[ComputePoint], num_tokens: int) -> list[ComputePoint]:
    return sorted((p for p in points if p.num_tokens == num_tokens), key=lambda point: point.context_tokens)


def _by_tokens(table: ComputeTable, component: Component) -> dict[int, float]:
    return {point.num_tokens: point.time_us for point in table.components.get(component, ())}


def _mlp_us(profile: HardwareProfile, table: ComputeTable) -> dict[int, float]:
    """By tokens; of a graph, by the sequences that decode in it. A mean or a median as the table's own times are."""
    is_eager = table.graph_mode == "eager"
    name, size = ("layers.mlp", "tokens") if is_eager else ("layers.graph.mlp", "sequences")
    found = {}
    for probe in profile.probes:
        count = probe.parameters.get(size)
        if (probe.name, probe.parameters.get("model")) != (name, table.model_name) or not probe.samples:
            continue
        if isinstance(count, int):
            found[count] = capped_mean(probe.samples) if is_eager else median(probe.samples)
    return found
