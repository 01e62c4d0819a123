"""Fill the generated places of the pages from the committed records, from the duel on them and from the ledger.

``python docs/generate.py`` rewrites them; ``--check`` changes nothing and exits 1 when a page is stale. The demo's
record is made by ``tiercast demo --folder validation/<machine>``, that of the suite by ``make validation``, and both
are committed; ``other_run.py`` keeps what the suite gave at other times. The ledger is what ``tiercast published``
prints.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import other_run
from gpu_page import gpu_places
from other_profiles import FILE, OWN
from simulator_page import simulator_places

from tiercast_cli import duel, published_views, render, suite_markdown
from tiercast_cli.case_scores import AT_PACE
from tiercast_cli.suite_result import SuiteResult
from tiercast_plan.ledger import ledger
from tiercast_profiles import store
from tiercast_profiles.scores import Score

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "validation" / "two-core-epyc-avx2"  # the demo of the present code
BENCHMARK_RECORDS = ROOT / "benchmarks" / "records"
GPU_RECORD = ROOT / "validation" / "h200-sxm"
PAGE_WIDTH = 110
FIRST_SHOWN = "3. The same work"  # README leaves out what the probes found and the row reuse of the texts


def record_places(record: Path) -> dict[str, str]:
    """Places of README.md that show the committed record of the demo, by marker name."""
    page = (record / "output.txt").read_text(encoding="utf-8").strip("\n")
    return {"demo-output": f"```\n{page[page.index(FIRST_SHOWN) :]}\n```"}


NO_SUITE = "No record of the suite is committed; `make validation` makes one."


def suites() -> dict[str, Path]:
    """Folders of the committed suites by machine."""
    return {file.parents[1].name: file.parent for file in sorted(ROOT.glob("validation/*/suite/suite.json"))}


def load(file: Path) -> SuiteResult:
    """One result of a suite."""
    return store.parse(SuiteResult, store.read_mapping(file), str(file))


def suite_page(machine: str, folder: Path) -> str:
    """Everything docs/validation.md says of one machine's suite."""
    result = load(folder / "suite.json")
    others = store.read_mapping(folder / FILE)
    beside = {OWN: result.scores["all"]} | {
        title: tuple(store.parse(Score, found, title) for found in scores) for title, scores in others.items()
    }
    paced = []
    if AT_PACE in result.scores:
        title = "### Scores of all cases at the pace of the machine around each run"
        paced.append(f"{title}\n\n{suite_markdown.score_table(result, AT_PACE)}")
    parts = [
        f"## {machine}",
        f"{result.hardware_name}, {len(result.cases)} cases, {result.repeats} runs each.",
        *(
            f"### Scores of {group} cases\n\n{suite_markdown.score_table(result, group)}"
            for group in ("all", "open", "held out")
        ),
        *paced,
        *filter(None, [other_runs(machine)]),
        f"### Order, failures, pace\n\n{suite_markdown.notes(result)}",
        f"### Every case\n\nErrors; `*`: inside the machine's own spread.\n\n{suite_markdown.case_table(result)}",
        "### The same records from other profiles\n\n"
        "A profile that is wrong must show, and another machine's numbers are another machine's.\n\n"
        f"{suite_markdown.beside_table(beside)}",
    ]
    return "\n\n".join(parts)


def other_runs(machine: str) -> str:
    """What the suite gave on a machine at other times: that a machine moves belongs beside its scores."""
    rows = []
    for file in other_run.files(machine):
        found = other_run.load(file)
        scores = [found.score_of(metric, group) for group in ("all", AT_PACE) for metric in other_run.METRICS]
        errors = [" / ".join(suite_markdown.errors(score)) for score in scores]
        rows.append([file.stem, found.recorded[-5:], f"{found.pace:.2f}", *errors, found.lacks])
    if not rows:
        return ""
    head = ("run", "kept at (UTC)", "reference steps around the runs, times the profile's", "throughput", "penalty")
    lacks = "what the next newer run has and this one has not"
    columns = (*head, *(f"{name} {AT_PACE}" for name in head[3:]), lacks)
    intro = "The same suite there at other times, each from its own probes (median / p90 / worst), the latest first:"
    return f"{intro}\n\n{suite_markdown.table(columns, rows)}"


def other_runs_line(machine: str) -> str:
    """The same in a line: the medians from the best to the worst."""
    kept = [other_run.load(file) for file in other_run.files(machine)]
    if not kept:
        return ""
    ends = []
    for metric in other_run.METRICS:
        scores = [found.score_of(metric, "all") for found in kept]
        medians = [suite_markdown.errors(score)[0] for score in sorted(scores, key=lambda score: score.median_absolute)]
        ends.append(" to ".join(dict.fromkeys((medians[0], medians[-1]))))
    times = "one other time" if len(kept) == 1 else f"{len(kept)} other times"
    return (
        f"The same suite there at {times}, with the code of then: throughput {ends[0]} and penalty {ends[1]} in the "
        "median ([each, and what it lacked](docs/validation.md))."
    )


def validation_places(record: Path) -> dict[str, str]:
    """Places of docs/validation.md, by marker name."""
    return {
        "suites": "\n\n".join(suite_page(machine, folder) for machine, folder in suites().items()) or NO_SUITE,
        "error-table": (record / "error-table.md").read_text(encoding="utf-8").strip("\n"),
    }


def accuracy() -> str:
    """The table of README: per machine and metric, all cases and those held out."""
    parts = []
    for machine, folder in suites().items():
        result = load(folder / "suite.json")
        title = f"{machine} ({len(result.cases)} cases, {result.repeats} runs each, from its probes alone):"
        parts += [f"{title}\n\n{suite_markdown.short_table(result)}", *filter(None, [other_runs_line(machine)])]
    return "\n\n".join(parts) or NO_SUITE


def ledger_places() -> dict[str, str]:
    """Places of docs/published.md and README.md that show the ledger, by marker name."""
    found = ledger()
    page = render.to_text(lambda: published_views.show(found), PAGE_WIDTH).strip("\n")
    return {"ledger": f"```\n{page}\n```", "ledger-score": published_views.score(found) + "."}


def benchmark_places(records: Path) -> dict[str, str]:
    """Place of benchmarks/README.md: ours beside the best alternative in every committed record that has both."""
    pieces = []
    for path in sorted(records.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "title" in record:
            pieces.append(benchmark_table(path.name, record))
    return {"records": "\n\n".join(pieces)}


def benchmark_table(name: str, record: dict[str, Any]) -> str:
    """One record as a table; a target that is missed says so."""
    versions = ", ".join(f"{library} {version}" for library, version in record["libraries"].items())
    lines = [
        f"**{record['title']}** ([record](records/{name}), {record['date']}, {record['cpu_model']}, "
        f"{record['num_cores']} cores, numpy {record['numpy']}, {versions})",
        "",
        *(f"{note}.  " for note in record["notes"]),
        *([""] if record["notes"] else []),
        "| case | ours | best alternative | times better | target |",
        "|---|---|---|---|---|",
    ]
    for case, found in record["figures"].items():
        mine, other = (found["ways"][way]["median"] for way in (found["ours"], found["best_other"]))
        target = found["target_ratio"]
        verdict = "–" if target is None else f"{target:g}" if found["ratio"] >= target else f"{target:g}, **missed**"
        lines.append(
            f"| {case} | {mine:,.4g} {found['unit']} | {found['best_other']}: {other:,.4g} {found['unit']} "
            f"| {found['ratio']:.3g} | {verdict} |"
        )
    return "\n".join(lines)


def cache_places(record: Path) -> dict[str, str]:
    """Place of benchmarks/README.md: hits the runtime's cache had beside those predicted."""
    found = json.loads(record.read_text(encoding="utf-8"))
    lines = ["| text | policy | cache MiB | measured | predicted | difference |", "|---|---|---|---|---|---|"]
    for one in found["figures"]["cache_hit_ratio"]:
        points = 100 * (one["predicted"] - one["measured"])
        lines.append(
            f"| {one['text']} | {one['policy']} | {one['cache_gib'] * 1024:.2f} | {one['measured']:.1%} "
            f"| {one['predicted']:.1%} | {points:+.1f} points |"
        )
    return {"cache-hits": "\n".join(lines)}


def filled(text: str, places: dict[str, str]) -> str:
    """``text`` with every ``<!-- name:begin --> … <!-- name:end -->`` filled.

    Raises:
        ValueError: a place is not marked in the text.
    """
    for name, block in places.items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"no place named {name} is marked")
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
    return text


def main() -> int:
    """Rewrite, or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a page is stale")
    arguments = parser.parse_args()
    ledger_text, gpu = ledger_places(), gpu_places(GPU_RECORD)
    headline = {"gpu-headline": gpu.pop("gpu-headline")}
    pages = {
        "README.md": record_places(RECORD)
        | {"accuracy": accuracy(), "ledger-score": ledger_text["ledger-score"]}
        | headline,
        "docs/validation.md": validation_places(RECORD),
        "docs/published.md": {"ledger": ledger_text["ledger"]},
        "docs/gpu.md": headline | gpu,
        "benchmarks/README.md": benchmark_places(BENCHMARK_RECORDS)
        | cache_places(BENCHMARK_RECORDS / "cache-two-core.json")
        | simulator_places(),
        "docs/duel.md": {"duel": duel.table(duel.duel(RECORD))},
    }
    stale = []
    for name, places in pages.items():
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        wanted = filled(text, places)
        if wanted != text:
            stale.append(name)
            if not arguments.check:
                page.write_text(wanted, encoding="utf-8")
    if stale and arguments.check:
        sys.stderr.write(f"{', '.join(stale)} stale; run make docs\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
