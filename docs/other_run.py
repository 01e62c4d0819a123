"""Keep what a run of the suite gave at another time than the committed one, a line per case, beside it.

``python docs/other_run.py FOLDER MACHINE NAME LACKS`` reads the ``suite.json`` that ``tiercast validate --suite
--folder`` left and writes ``validation/MACHINE/other-runs/NAME.json``, of which ``generate.py`` makes a row of the
pages. LACKS says what the next newer run has and this one has not. The records of the runs, some megabytes, are not
kept.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from tiercast_cli.case_scores import AT_PACE
from tiercast_cli.suite_result import Order, SuiteResult
from tiercast_profiles import store
from tiercast_profiles.document import Strict
from tiercast_profiles.errors import TiercastError
from tiercast_profiles.quantiles import median
from tiercast_profiles.scores import Score

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("output_tokens_per_s", "penalty")


class OtherRun(Strict):
    """Scores over all cases, as they are and at the machine's pace.

    ``pace`` is the median over the cases of how long reference steps took around the runs beside the profile, and
    ``throughput_errors`` are predicted ÷ measured − 1 by case. ``orders`` are those in which the measurement decided a
    pair; runs that were kept before they were have none. ``recorded`` is when it was kept, in UTC, of the oldest when
    the next one was; ``lacks`` what the next newer run has and this one has not.
    """

    recorded: str = Field(pattern=r"^\d{4}-\d\d-\d\d \d\d:\d\d$")
    lacks: str
    hardware_name: str
    profile_sha256: str
    repeats: int
    num_failed: int
    pace: float
    scores: dict[str, tuple[Score, ...]]
    throughput_errors: dict[str, float]
    orders: tuple[Order, ...] = ()

    def score_of(self, metric: str, group: str) -> Score:
        """The score of one metric over the cases as they are (``all``) or ``at pace``."""
        return next(found for found in self.scores[group] if found.metric == metric)


def files(machine: str) -> list[Path]:
    """What is kept of a machine, the latest first."""
    kept = ROOT.glob(f"validation/{machine}/other-runs/*.json")
    return sorted(kept, key=lambda file: load(file).recorded, reverse=True)


def load(file: Path) -> OtherRun:
    """One of them."""
    return store.parse(OtherRun, store.read_mapping(file), str(file))


def shortened(result: SuiteResult, recorded: str, lacks: str) -> OtherRun:
    """What is kept of a result."""
    found = {case.name: case.metrics["output_tokens_per_s"] for case in result.cases}
    errors = {name: pair.predicted.value / pair.measured.value - 1 for name, pair in found.items()}
    return OtherRun(
        recorded=recorded,
        lacks=lacks,
        hardware_name=result.hardware_name,
        profile_sha256=result.profile_sha256,
        repeats=result.repeats,
        num_failed=len(result.failures),
        pace=round(median([case.pace for case in result.cases if case.pace is not None]), 4),
        scores={
            group: tuple(score for score in result.scores[group] if score.metric in METRICS)
            for group in ("all", AT_PACE)
        },
        throughput_errors={name: round(error, 4) for name, error in errors.items()},
        orders=tuple(order for order in result.orders if order.num_decided),
    )


def main() -> None:
    """Write the file, or say in one line why not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the suite's run")
    parser.add_argument("machine", help="a folder of validation/")
    parser.add_argument("name", help="of the run, such as its day")
    parser.add_argument("lacks", help="what the next newer run has and this one has not")
    options = parser.parse_args()
    source, target = options.folder / "suite.json", ROOT / "validation" / options.machine / "other-runs"
    try:
        result = store.parse(SuiteResult, store.read_mapping(source), str(source))
    except TiercastError as error:
        sys.exit(str(error))
    if AT_PACE not in result.scores:
        sys.exit(f"{source}: no pace was timed around its runs, which is what such a row is for")
    target.mkdir(exist_ok=True)
    recorded = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    text = json.dumps(shortened(result, recorded, options.lacks).model_dump(mode="json"), indent=1)
    store.write_text(target / f"{options.name}.json", text + "\n")


if __name__ == "__main__":
    main()
