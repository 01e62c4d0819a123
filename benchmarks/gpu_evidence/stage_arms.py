"""Stages ``arms`` and ``disk``: the same work with no Engram, in device memory, in host memory and on the drive.

All arms of one process share one table in host memory; the copy in device memory is made from it.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gpu_evidence.context import Context, preset_of
from gpu_evidence.plan import Case
from gpu_evidence.stage_sweep import table_case
from tiercast_profiles.errors import BadInput
from tiercast_profiles.hardware import HardwareProfile
from tiercast_profiles.scenario import Engine, Placement, ResolvedScenario, Scenario, combine
from tiercast_profiles.store import load_prices
from tiercast_profiles.timeline import chrome_trace
from tiercast_profiles.workload import Workload
from tiercast_runtime.bench import bench
from tiercast_runtime.paths import open_path
from tiercast_runtime.table import FileTable, HostTable, Table, expected_rows

SAMPLED_ROWS = 100_000
ASSUMED_FILE_BYTES_PER_S = 0.12e9  # rows computed, written and synced by one thread
TRACED = "decode-64"
PROMPT_TOKENS, MOST_ANSWER_TOKENS, CACHED_TOKENS = 64, 384, 160 * 512


@dataclass(frozen=True, slots=True)
class Arm:
    """A placement by a short name."""

    name: str
    placement: dict[str, Any]


NO_ENGRAM = Arm("no_engram", {"tier": "none"})
HBM = Arm("hbm", {"tier": "hbm", "path": "device"})
UVA = Arm("uva", {"tier": "dram", "path": "uva", "prefetch": "step_entry"})
AGAIN = Arm("no_engram-again", NO_ENGRAM.placement)  # behind the others: what differs is the machine
OTHERS = (
    Arm("uva-off", {"tier": "dram", "path": "uva", "prefetch": "off"}),
    Arm("cpu_gather", {"tier": "dram", "path": "cpu_gather", "prefetch": "step_entry"}),
    Arm("cpu_gather-off", {"tier": "dram", "path": "cpu_gather", "prefetch": "off"}),
)
# Both kinds of component times are checked: what runs as graphs by default, and single calls.
EAGER = (
    Arm("no_engram-eager", {"tier": "none", "graph_mode": "eager"}),
    Arm("hbm-eager", {**HBM.placement, "graph_mode": "eager"}),
    Arm("uva-eager", {**UVA.placement, "graph_mode": "eager"}),
)
DISK = (
    Arm("disk", {"tier": "nvme", "path": "disk", "prefetch": "step_entry"}),
    Arm("disk-off", {"tier": "nvme", "path": "disk", "prefetch": "off"}),
)
BY_NAME = {arm.name: arm for arm in (NO_ENGRAM, HBM, UVA, AGAIN, *OTHERS, *EAGER, *DISK)}


@dataclass(frozen=True, slots=True)
class Work:
    """A workload by a short name, with the seconds a run of it takes on an H200 and the repeats to make."""

    name: str
    workload: dict[str, Any]
    seconds: float
    repeats: int = 3


def _closed(concurrency: int, count: int, lengths: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "closed_loop", "concurrency": concurrency, "num_requests": count, "text": "random", **lengths}


def decode_work(batch: int) -> Work:
    """Short prompts and long answers, twice as many requests as run at once: a decode batch of this size nearly always.

    Prompts run as single calls, one after another, and are not what these works are about. Beside the table in device
    memory there is cache for some 82,000 tokens: the largest batches have shorter answers.
    """
    answer = min(MOST_ANSWER_TOKENS, CACHED_TOKENS // batch - PROMPT_TOKENS)
    lengths = {"prompt_tokens": {"fixed": PROMPT_TOKENS}, "output_tokens": {"fixed": answer}}
    return Work(f"decode-{batch}", _closed(batch, 2 * batch, lengths), 25 + batch / 20)


PAPER = Work(
    "paper-512",
    {
        "kind": "closed_loop",
        "concurrency": 512,
        "num_requests": 512,
        "prompt_tokens": {"uniform": [100, 1024]},
        "output_tokens": {"uniform": [100, 1024]},
        "text": "random",
    },
    110,
    repeats=2,
)
PREFILL = Work(
    "prefill-8192",
    {
        "kind": "closed_loop",
        "concurrency": 1,
        "num_requests": 12,
        "prompt_tokens": {"fixed": 8192},
        "output_tokens": {"fixed": 1},
        "text": "random",
    },
    30,
)
TINY = Work("tiny-2", {**PAPER.workload, "concurrency": 2, "num_requests": 4}, 5, repeats=2)
WORKS = {work.name: work for work in (PAPER, PREFILL, *map(decode_work, (1, 8, 32, 64, 128, 256, 512)))}


def arm_cases(context: Context) -> list[Case]:
    """Arms by workload, what matters most first; then the rows of the table are checked.

    None before there is a profile, which their scenarios are resolved on: the tables would be filled for nothing.
    """
    if context.is_rehearsal:
        rehearsed = (NO_ENGRAM, HBM, BY_NAME["cpu_gather"], UVA)
        checks = [make_tables_case(), Case("arms", "rows", 5, check_rows, needs_tables=True), table_case()]
        return [*(_case("arms", arm, rehearsal_work()) for arm in rehearsed), *checks]
    if context.profile_name is None:
        return []
    order: list[tuple[Work, tuple[Arm, ...]]] = [
        (WORKS["decode-64"], (NO_ENGRAM, HBM, UVA, AGAIN, *OTHERS, *EAGER)),
        (WORKS["decode-32"], (NO_ENGRAM, HBM, UVA)),
        (WORKS["decode-256"], (NO_ENGRAM, HBM, UVA, *OTHERS)),
        (PREFILL, (NO_ENGRAM, HBM, UVA, AGAIN, *OTHERS)),
        (WORKS["decode-1"], (NO_ENGRAM, HBM, UVA, *OTHERS)),
        (PAPER, (NO_ENGRAM, UVA, HBM)),
        *((WORKS[f"decode-{batch}"], (NO_ENGRAM, HBM, UVA)) for batch in (8, 128, 512)),
        *((WORKS[f"decode-{batch}"], EAGER) for batch in (32, 256, 1)),
        (PAPER, OTHERS),
        *((WORKS[f"decode-{batch}"], OTHERS) for batch in (32, 512, 8, 128)),
    ]
    cases = [_case("arms", arm, work) for work, arms in order for arm in arms]
    rows = Case("arms", "rows", 10, check_rows, needs_tables=True)
    return [make_tables_case(), *cases[:6], rows, table_case(), *cases[6:]]


def disk_cases(context: Context) -> list[Case]:
    """The drive's arms beside a baseline with the same model; their table is smaller where the drive is."""
    if context.is_rehearsal:
        return [_case("disk", arm, rehearsal_work(), is_disk=True) for arm in DISK]
    if context.profile_name is None:
        return []
    if not list(context.tables_folder.glob("*.safetensors")):
        context.state.forget("disk/table-file")  # done on a machine that is gone
    file = Case("disk", "table-file", context.disk_table_bytes / ASSUMED_FILE_BYTES_PER_S, make_files)
    # A chunk of 8,192 tokens reads 131,072 rows a layer, whatever the drive: last, and given time.
    prefill = replace(PREFILL, seconds=4 * PREFILL.seconds)
    works = (WORKS["decode-64"], WORKS["decode-1"], *(WORKS[f"decode-{batch}"] for batch in (256, 8, 32)), prefill)
    return [file, *(_case("disk", arm, work, is_disk=True) for work in works for arm in DISK)]


def rehearsal_work() -> Work:
    """A few short requests."""
    lengths = {"prompt_tokens": {"uniform": [16, 48]}, "output_tokens": {"uniform": [4, 12]}}
    return Work(TINY.name, {**TINY.workload, **lengths}, TINY.seconds, TINY.repeats)


def resolve(
    context: Context,
    arm: Arm,
    work: Work,
    *,
    is_disk: bool,
    max_num_seqs: int | None = None,
    hardware: HardwareProfile | None = None,
) -> ResolvedScenario:
    """The scenario of one case on the profile measured here, or on ``hardware``.

    ``max_num_seqs`` where the work would run more at once.
    """
    engine = Engine()
    if max_num_seqs is not None and max_num_seqs < work.workload["concurrency"]:
        engine = engine.model_copy(update={"max_num_seqs": max_num_seqs})
    model = context.disk_model() if is_disk else context.model()
    scenario = Scenario(
        schema_version=1,
        hardware="measured-here",
        model=model.name,
        placement=Placement.model_validate(arm.placement),
        workload=Workload.model_validate(work.workload),
        engine=engine,
    )
    return combine(scenario, hardware or context.profile(), model, load_prices("default"))


def with_every_curve(profile: HardwareProfile) -> HardwareProfile:
    """The profile with the curves it lacks out of the datasheet's: what is measured is not to wait for a prediction.

    A probe whose link made an error, or whose clocks were held down, leaves no curve; the arm is measured all the same,
    and its prediction says that the curve is lacking.
    """
    try:
        preset = preset_of(profile)
    except BadInput:  # of a CPU, or a GPU that no preset is of
        return profile
    known = {(curve.tier, curve.path) for curve in profile.lookups}
    lacking = tuple(curve for curve in preset.lookups if (curve.tier, curve.path) not in known)
    return profile.model_copy(update={"lookups": (*profile.lookups, *lacking)}) if lacking else profile


def _tables(context: Context, arm: Arm, *, is_disk: bool) -> list[Table] | None:
    """The shared tables an arm reads; None where it makes its own (the drive) or has none."""
    tier = arm.placement["tier"]
    if tier != "hbm":
        context.drop_resident()
    if is_disk or tier == "none":
        return None
    return list(context.resident_tables() if tier == "hbm" else context.host_tables())


def _case(stage: str, arm: Arm, work: Work, *, is_disk: bool = False) -> Case:
    needs_tables = arm.placement["tier"] != "none" and not is_disk
    run = _run(arm, work, is_disk=is_disk)
    return Case(stage, f"{work.name}/{arm.name}", work.seconds, run, needs_tables=needs_tables)


def _run(arm: Arm, work: Work, *, is_disk: bool) -> Callable[[Context], dict[str, Any]]:
    def run(context: Context) -> dict[str, Any]:
        resolved = resolve(context, arm, work, is_disk=is_disk, hardware=with_every_curve(context.profile()))
        tables = _tables(context, arm, is_disk=is_disk)
        try:
            record = bench(resolved, repeats=work.repeats, folder=context.tables_folder, tables=tables)
        finally:
            context.free()
        name = f"{work.name}-{arm.name}"
        context.write(f"measured/{name}.json", record.to_json())
        if work.name in (TRACED, TINY.name):
            context.write(f"traces/{name}.json", chrome_trace([record]))
        metrics, facts = record.metrics, record.provenance.facts
        found: dict[str, Any] = {
            "output_tokens_per_s": metrics.output_tokens_per_s.value,
            "total_tokens_per_s": metrics.total_tokens_per_s.value,
            "low": metrics.output_tokens_per_s.low,
            "high": metrics.output_tokens_per_s.high,
            "step_ms": metrics.step_ms.p50.value,
            "stall_ms_per_step": metrics.stall_ms_per_step.value,
            "lookup_ms_per_step": metrics.lookup_ms_per_step.value,
            "kv_slots": facts["kv_slots"],
            "graph_mode": facts["graph_mode_run"],
        }
        if metrics.tpot_ms is not None:
            found["tpot_ms"] = metrics.tpot_ms.p50.value
        if "graph_mode_reason" in facts:
            found["graph_mode_reason"] = facts["graph_mode_reason"]
        return found

    return run


def make_tables_case() -> Case:
    """The tables that the arms of one process share, as a case of its own: they take minutes where they are large."""
    return Case("arms", "host-tables", 1, make_tables, needs_tables=True)


def make_tables(context: Context) -> dict[str, Any]:
    """Fill the tables in host memory and pin them; how long it took is what a later process expects it to take."""
    begin = time.monotonic()
    tables = context.host_tables()
    return {"seconds": time.monotonic() - begin, "table_bytes": sum(table.size_bytes for table in tables)}


def make_files(context: Context) -> dict[str, Any]:
    """Write the table of the drive's arms into its file, where it is not there yet: one thread computes its rows."""
    engram = context.disk_model().engram
    for index in range(len(engram.layer_ids)):
        FileTable(engram, index, "packed", context.tables_folder).close()
    return {"table_bytes": context.disk_table_bytes}


def check_rows(context: Context) -> dict[str, Any]:
    """Sampled rows of the shared table, as it lies in memory and as the GPU reads it, against what they must be.

    Raises:
        AssertionError: a row is not what was written.
    """
    generator = np.random.default_rng(1)
    checked = {}
    tables = [table for table in context.host_tables() if isinstance(table, HostTable)]
    for index, table in enumerate(tables):
        ids = generator.integers(0, table.num_rows, SAMPLED_ROWS, dtype=np.int64)
        ids[:2] = 0, table.num_rows - 1
        expected = expected_rows(table.engram, index, ids)
        rows = table.parts[0].index_select(0, torch.from_numpy(ids)).numpy()[:, : table.engram.row_bytes]
        assert np.array_equal(rows, expected), f"rows of table {index} in host memory are not what was written"
        checked[f"table_{index}_rows"] = len(ids)
        if context.device.type == "cuda":
            resolved = resolve(context, UVA, WORKS[TRACED], is_disk=False, hardware=with_every_curve(context.profile()))
            path = open_path(resolved, tables, context.device)
            staged = path.fetch(index, torch.from_numpy(ids)[None].to(context.device))
            torch.cuda.synchronize()
            path.check()
            assert np.array_equal(staged.rows.cpu().numpy(), expected), f"the GPU reads other rows of table {index}"
            path.close()
            checked[f"table_{index}_rows_by_gpu"] = len(ids)
    context.write("rows.json", json.dumps(checked))
    return checked
