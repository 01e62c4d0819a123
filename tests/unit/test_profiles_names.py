"""Every number of every schema says its unit in its name, counts with ``num_``, or is listed here with a reason."""

import types
import typing
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import BaseModel

from tiercast_plan.cost import CostReport
from tiercast_plan.sweep import SweepRow
from tiercast_profiles.compare import Comparison
from tiercast_profiles.document import Quantity
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.prices import PriceBook
from tiercast_profiles.record import Metric, Percentiles, RunRecord
from tiercast_profiles.scenario import ResolvedScenario, Scenario

ROOTS = (HardwareProfile, ModelSpec, PriceBook, Scenario, ResolvedScenario, RunRecord, Comparison, CostReport, SweepRow)
NUMERIC = (int, float, Decimal, Quantity, Metric, Percentiles)
SUFFIXES = (
    "_ns",
    "_us",
    "_ms",
    "_ms_per_step",
    "_s",
    "_years",
    "_bytes",
    "_gb",
    "_gib",
    "_gb_per_device",
    "_bytes_per_token",
    "_gb_per_s",
    "_per_s",
    "_tflops",
    "_tokens",
    "_values",
    "_params",
    "_params_prefill",
    "_params_decode",
    "_ratio",
    "_w",
    "_kw",
    "_per_gb",
    "_per_kwh",
    "_per_hour",
    "_per_device_hour",
    "_per_device",
    "_per_copy_hour",
    "_per_kw_month",
    "_per_port",
    "_per_mtok",
)
ALLOWED = {
    "schema_version": "the version of the format, not a quantity",
    "seed": "names a random stream",
    "hash_seed": "names a random stream",
    "value": "the unit is in the name of the field that holds the quantity, reading or metric",
    "low": "as value",
    "mean": "as value",
    "combined_low": "as value",
    "combined_high": "as value",
    "hidden_layer_ids": "names of layers",
    "time_ratios": "several of one ratio, by case",
    "high": "as value",
    "measured": "as value: a metric beside its unit field",
    "predicted": "as value: a metric beside its unit field",
    "difference": "in the unit field beside it",
    "amount": "in the unit field beside it",
    "samples": "in the unit field beside it",
    "parameters": "settings of a probe, each key with its own unit",
    "facts": "notes of the producer, each key with its own unit",
    "settings": "scenario values under their own dotted paths",
    "fixed": "a law of lengths: tokens, as the owning field prompt_tokens or output_tokens says",
    "uniform": "as fixed",
    "lognormal": "as fixed, and a sigma",
    "concurrency": "requests in flight, as load generators call it",
    "overlap_power": "the exponent of a power mean of two times",
    "preemptions_per_request": "a count over a count",
    "prefill": "replicas, beside data, as engines call the roles",
    "power_usage_effectiveness": "PUE, as data centres call it: at least 1",
    "burstiness": "the shape of a gamma law, as vLLM calls it",
    "trace_speedup": "a factor without unit, which may exceed 1",
    "tensor": "ranks, as serving engines call it",
    "data": "replicas, as serving engines call it",
    "max_num_seqs": "as vLLM calls it",
    "layer_id": "names a layer",
    "layer_ids": "names layers",
    "pad_token_id": "names a token",
    "first_difference": "names a step",
    "ngram_orders": "names the orders 2, 3, ...",
    "rows_per_head": "rows, as in the name",
    "rows_per_token": "rows, as in the name",
    "published_table_rows": "rows, as in the name",
    "row_values_band": "values per row, as row_values",
    "vocab_size": "tokens; the name every model config uses",
    "compressed_vocab_size": "as vocab_size",
    "hidden_size": "values; the name every model config uses",
    "head_dim": "values; the name every model config uses",
    "intermediate_size": "values; the name every model config uses",
    "conv_kernel_size": "positions; the name every model config uses",
    "prefill_tokens": "tokens, one entry per step",
    "decode_sequences": "sequences, one entry per step",
    "rows": "rows, one entry per step",
    "rows_read": "rows, one entry per step",
    "rows_hit": "rows, one entry per step",
    "tokenizer_num_ranks": "a count",
    "joules_per_token": "joules, as in the name",
}


def _parts(annotation: object) -> Iterator[object]:
    """The annotation itself and every type inside it; the keys of a mapping are names, not numbers."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        yield from _parts(arguments[1])
    elif origin is typing.Annotated:
        yield from _parts(arguments[0])
    elif origin in (tuple, list, typing.Union, types.UnionType):
        for argument in arguments:
            yield from _parts(argument)
    elif origin is typing.Literal:
        yield from {type(argument) for argument in arguments} - {str}
    else:
        yield annotation


def _schemas() -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    queue: list[type[BaseModel]] = list(ROOTS)
    while queue:
        schema = queue.pop()
        if schema in found:
            continue
        found.append(schema)
        for field in schema.model_fields.values():
            queue += [p for p in _parts(field.annotation) if isinstance(p, type) and issubclass(p, BaseModel)]
    return sorted(found, key=lambda schema: schema.__name__)


def _numeric_fields(schema: type[BaseModel]) -> list[str]:
    return [
        name
        for name, field in schema.model_fields.items()
        if any(isinstance(p, type) and p is not bool and issubclass(p, NUMERIC) for p in _parts(field.annotation))
    ]


def test_the_walk_reaches_every_schema():
    names = {schema.__name__ for schema in _schemas()}
    assert {"Device", "LookupCurve", "Moe", "Engram", "DevicePrice", "Uniform", "StepSamples", "CostLine"} <= names


@pytest.mark.parametrize("schema", _schemas(), ids=lambda schema: schema.__name__)
def test_numbers_carry_their_unit(schema):
    if schema is Percentiles:
        return  # p50, p90, p99 of the field that holds them
    bare = [
        name
        for name in _numeric_fields(schema)
        if not name.startswith("num_") and not name.endswith(SUFFIXES) and name not in ALLOWED
    ]
    assert bare == []


def test_the_list_of_exceptions_has_no_dead_entry():
    used = {name for schema in _schemas() for name in _numeric_fields(schema)}
    assert sorted(set(ALLOWED) - used) == []


def test_every_ending_is_explained_in_the_docs():
    text = (Path(__file__).parents[2] / "docs" / "units.md").read_text(encoding="utf-8")
    assert [ending for ending in SUFFIXES if f"`{ending}`" not in text] == []
