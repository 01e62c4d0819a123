"""What the pages say of the GPU run: tables from its committed summary, or that nothing was measured yet."""

import json
from pathlib import Path
from typing import Any

NOT_YET = "Not measured yet: no run on a GPU is committed. `make gpu` makes one."
ARMS = ("no_engram", "hbm", "uva", "uva-off", "cpu_gather", "cpu_gather-off")
Json = dict[str, Any]  # Any: what a summary holds is read key by key


def gpu_places(folder: Path) -> dict[str, str]:
    """Places by marker name, from a folder that holds ``summary.json`` and, where it was reached, ``table-4.json``."""
    path = folder / "summary.json"
    if not path.exists():
        return {"gpu-headline": NOT_YET, "gpu-arms": NOT_YET, "gpu-checks": NOT_YET, "gpu-table-4": NOT_YET}
    summary: Json = json.loads(path.read_text(encoding="utf-8"))
    table_4 = folder / "table-4.json"
    published = json.loads(table_4.read_text(encoding="utf-8")) if table_4.exists() else None
    return {
        "gpu-headline": headline(summary),
        "gpu-arms": arms(summary),
        "gpu-checks": checks(summary),
        "gpu-table-4": NOT_YET if published is None else paper(published),
    }


def headline(summary: Json) -> str:
    """Penalty of the table in host memory with prefetch, by work, against both baselines."""
    rows = []
    for work in works(summary):
        lost = summary["penalties"].get(f"{work}/uva")
        if lost is None:
            continue
        cells = [_percent(lost.get(baseline)) for baseline in ("hbm", "no_engram")]
        spread = _spread(_numbers(summary, f"arms/{work}/uva"))
        rows.append(f"| {work} | {cells[0]} | {cells[1]} | {spread} |")
    if not rows:
        return NOT_YET
    size = _numbers(summary, "environment/machine")
    machine = "" if size is None else f"{size['device']}, table of {size['table_bytes'] / 1e9:.1f} GB.\n\n"
    head = "| work | lost against HBM | lost against no Engram | quartiles of the repeats |\n|---|---|---|---|\n"
    return machine + head + "\n".join(rows)


def arms(summary: Json) -> str:
    """Output tokens per second of every arm that ran, by work; all tokens where the work only prefills."""
    found = []
    for work in works(summary):
        cells = []
        for arm in ARMS:
            numbers = _numbers(summary, f"arms/{work}/{arm}")
            unit = "total_tokens_per_s" if work.startswith("prefill") else "output_tokens_per_s"
            cells.append("–" if numbers is None else f"{numbers[unit]:,.0f}")
        found.append(f"| {work} | {' | '.join(cells)} |")
    if not found:
        return NOT_YET
    return f"| work | {' | '.join(ARMS)} |\n|---|{'---|' * len(ARMS)}\n" + "\n".join(found)


def checks(summary: Json) -> str:
    """What the run was to show, beside what it found; a number that is missing was not measured."""
    streaming = _numbers(summary, "lookups/uva-against-streaming")
    slower = _numbers(summary, "lookups/uva-against-host-gather")
    overheads = _numbers(summary, "lookups/overheads")
    floor = _numbers(summary, "lookups/decode-floor")
    rows = [
        ("rows of 256 B over a streaming read, at least 0.9", streaming, "ratio"),
        (
            "tokens where the GPU's gather is not faster than the host's with a copy",
            slower,
            "tokens_where_uva_is_slower",
        ),
        ("hash and launch for 256 tokens, at most 10 us", overheads, "hash_and_launch_host_us_256_tokens"),
        ("decode step at batch 64 over its memory floor, at most 1.3", floor, "ratio"),
    ]
    lines = [f"| {what} | {'not measured' if numbers is None else numbers[key]} |" for what, numbers, key in rows]
    for work in works(summary):
        again = summary["penalties"].get(f"{work}/no_engram-again", {}).get("no_engram")
        if again is not None:
            lines.append(f"| {work}: no Engram again, behind the others, lost against itself | {_percent(again)} |")
    for name in ("median", "worst"):
        error = summary[f"throughput_error_{name}"]
        lines.append(f"| throughput error of the predictions, {name} | {_percent(error)} |")
    for name in ("median", "worst"):
        points = summary.get(f"penalty_error_{name}")
        shown = "–" if points is None else f"{100 * points:.2f} pt"
        lines.append(f"| error of the predicted loss against no Engram, {name} | {shown} |")
    lines.append(f"| cases failed, lacking | {summary['num_failed']}, {summary['num_lacking']} |")
    return "| what | found |\n|---|---|\n" + "\n".join(lines)


def paper(rows: list[Json]) -> str:
    """The paper's Table 4 beside the prediction from the measured profile with an H800's numbers."""
    lines = [
        f"| {row['what']} | {row['published']:.4f} | {row['predicted']:.4f} | {row['low']:.4f} .. {row['high']:.4f} "
        f"| {'inside' if row['is_inside'] else 'outside'} |"
        for row in rows
    ]
    return "| what | published | predicted | band | published lies |\n|---|---|---|---|---|\n" + "\n".join(lines)


def works(summary: Json) -> list[str]:
    """Works of the arms, decode batches in order and then the others."""
    names = {key.split("/")[1] for key in summary["cases"] if key.startswith("arms/") and key.count("/") == 2}
    decodes = sorted((name for name in names if name.startswith("decode-")), key=lambda name: int(name.split("-")[1]))
    return [*decodes, *sorted(name for name in names if not name.startswith("decode-"))]


def _numbers(summary: Json, key: str) -> Json | None:
    entry = summary["cases"].get(key)
    return entry["numbers"] if entry is not None and entry["status"] == "done" else None


def _percent(ratio: float | None) -> str:
    return "–" if ratio is None else f"{100 * ratio:.2f} %"


def _spread(numbers: Json | None) -> str:
    if numbers is None or numbers["low"] is None or numbers["high"] is None:
        return "–"
    half = (numbers["high"] - numbers["low"]) / 2 / numbers["output_tokens_per_s"]
    return f"± {100 * half:.2f} %"
