"""What comes back: a table for people, one JSON summary, and the records packed into a few files."""

import json
import shutil
import statistics
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_evidence.plan import Case
from gpu_evidence.state import State

BASELINES = ("no_engram", "hbm")
MEASURED, PREDICTED = "arms/", "predict/arms/"  # begin the keys of the arms
ALIKE_SLOTS = 0.98  # of the sequences that a cache holds, the fewer over the more
EAGER = "-eager"  # ends the names of arms that run as single calls
FOLDERS = ("measured", "simulated", "compared", "traces", "gathers", "sweep", "logs")
MAX_PACK_BYTES = 15 << 20  # of one packed file


def penalties(state: State, of: str = MEASURED) -> dict[str, dict[str, float]]:
    """What each arm loses against both baselines, per workload; only where both were measured, or predicted.

    Single calls are compared with single calls, and no two arms whose caches held different numbers of sequences: where
    the table takes the memory of the cache, that is another question.
    """
    found: dict[str, dict[str, float]] = {}
    for key in state.cases:
        work, _, arm = key.removeprefix(of).partition("/")
        if not key.startswith(of) or not arm:
            continue
        for baseline in BASELINES:
            twin = f"{baseline}{EAGER}" if arm.endswith(EAGER) else baseline
            mine, base = state.numbers(key), state.numbers(f"{of}{work}/{twin}")
            if mine is None or base is None or arm == twin or not _run_as_many(state, work, arm, twin):
                continue
            found.setdefault(f"{work}/{arm}", {})[baseline] = round(_lost(work, mine, base), 5)
    return found


def _lost(work: str, mine: dict[str, Any], base: dict[str, Any]) -> float:
    """Of work that decodes by the median step, which has no prompts; of work that only prefills by all its tokens."""
    if work.startswith("decode"):
        return float(1 - base["step_ms"] / mine["step_ms"])
    unit = "total_tokens_per_s" if work.startswith("prefill") else "output_tokens_per_s"
    return float(1 - mine[unit] / base[unit])


def _run_as_many(state: State, work: str, arm: str, twin: str) -> bool:
    """Whether both arms had about as many sequences at once."""
    slots = [(state.numbers(f"{MEASURED}{work}/{name}") or {}).get("kv_slots", 0) for name in (arm, twin)]
    return bool(min(slots) >= ALIKE_SLOTS * max(slots))


def as_data(state: State, cases: Sequence[Case], *, is_rehearsal: bool) -> dict[str, Any]:
    """The summary: counts, every case, penalties and how far the predictions are off."""
    keys = [case.key for case in cases]
    errors = [
        abs(numbers["throughput_error_ratio"])
        for key in state.cases
        if key.startswith("predict/")
        and (numbers := state.numbers(key)) is not None
        and numbers["throughput_error_ratio"] is not None
    ]
    points = penalty_errors(state)
    status = {key: entry["status"] for key, entry in state.cases.items()}
    return {
        "is_rehearsal": is_rehearsal,
        "num_done": sum(value == "done" for value in status.values()),
        "num_lacking": sum(value == "lacking" for value in status.values()),
        "num_failed": sum(value == "failed" for value in status.values()),
        "num_pending": sum(state.is_pending(key) for key in keys),
        "penalties": penalties(state),
        "throughput_error_median": statistics.median(errors) if errors else None,
        "throughput_error_worst": max(errors) if errors else None,
        "penalty_errors": points,
        "penalty_error_median": statistics.median(map(abs, points.values())) if points else None,
        "penalty_error_worst": max(map(abs, points.values())) if points else None,
        "cases": state.cases,
    }


def penalty_errors(state: State) -> dict[str, float]:
    """Predicted less measured loss against no Engram, by ``work/arm``."""
    measured, predicted = penalties(state), penalties(state, PREDICTED)
    return {
        name: round(predicted[name]["no_engram"] - lost["no_engram"], 5)
        for name, lost in measured.items()
        if "no_engram" in lost and "no_engram" in predicted.get(name, {})
    }


def lines(data: dict[str, Any]) -> list[str]:
    """A short table: every case with its first numbers or its reason."""
    found = []
    for key, entry in data["cases"].items():
        numbers = entry.get("numbers") or {}
        shown = "  ".join(f"{name}={value}" for name, value in list(numbers.items())[:4])
        found.append(f"{entry['status']:8} {key:44} {shown if entry['status'] == 'done' else entry['message']}")
    found += [f"penalty  {name:44} {values}" for name, values in data["penalties"].items()]
    return found


def pack(out: Path, data: dict[str, Any], target: Path) -> list[Path]:
    """Write the summary and the packed records to ``target``; returns the files, at most eight."""
    target.mkdir(parents=True, exist_ok=True)
    (target / "summary.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    written = [target / "summary.json"]
    # eight files at most come back from a machine; what is shipped may be of an earlier profile than the best
    shipped = [path.name for path in sorted(out.glob("*-measured.yaml"))[:1]]
    probed = [name for name in ("profile-full.yaml", "profile-quick.yaml") if (out / name).exists()][:1]
    for name in ("state.json", "environment.json", "table-4.json", *shipped, *probed):
        if (out / name).exists():
            written.append(Path(shutil.copy2(out / name, target / name)))
    packs: list[list[Path]] = [[]]
    size = 0
    for folder in FOLDERS:
        for path in sorted((out / folder).glob("*")) if (out / folder).is_dir() else ():
            # records shrink to a tenth or less
            if size + path.stat().st_size > 8 * MAX_PACK_BYTES:
                packs.append([])
                size = 0
            packs[-1].append(path)
            size += path.stat().st_size
    for number, paths in enumerate(pack for pack in packs if pack):
        archive = target / f"records-{number}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for path in paths:
                tar.add(path, arcname=str(path.relative_to(out)))
        written.append(archive)
    return written
