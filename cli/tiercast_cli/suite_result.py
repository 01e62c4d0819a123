"""What a run of the validation suite says: scores of all, open and held-out cases, the order of arms, failures."""

from collections.abc import Sequence
from itertools import combinations

from tiercast_cli import case_scores
from tiercast_cli.case_scores import AT_PACE, Failure, ScoredCase, scored_case
from tiercast_cli.validation_case import Case
from tiercast_profiles.compare import overlap
from tiercast_profiles.document import Strict
from tiercast_profiles.scores import Score
from tiercast_profiles.suite import Suite

ORDERED = ("output_tokens_per_s", "stall_ms_per_step", "hidden_ratio")


class SuiteCase(ScoredCase):
    """One case of the suite; its penalty is against the baseline arm of its work."""

    is_held_out: bool


class Order(Strict):
    """Which of two cases has more of a metric, over all pairs of a group.

    ``group`` is a work, whose arms are compared, or an arm, compared over the works. A pair is decided where the
    measured intervals do not overlap; ``wrong`` are the decided pairs, the larger measured one first, that the
    prediction does not put in that order.
    """

    metric: str
    group: str
    num_pairs: int
    num_decided: int
    wrong: tuple[tuple[str, str], ...]


class SuiteResult(Strict):
    """Everything a page about the suite needs.

    ``profile_sha256`` is that of the machine the cases ran on, ``predicted_from_sha256`` that of the profile they were
    predicted from; the two differ where another profile was put to the test.
    """

    schema_version: int = 1
    hardware_name: str
    profile_sha256: str
    predicted_from: str
    predicted_from_sha256: str
    held_out_declared: str
    repeats: int
    cases: tuple[SuiteCase, ...]
    failures: tuple[Failure, ...]
    scores: dict[str, tuple[Score, ...]]
    orders: tuple[Order, ...]

    def score_of(self, metric: str, group: str = "all") -> Score:
        """The score of one metric over a group of cases: ``all``, ``open``, ``held out`` or ``at pace``."""
        return next(found for found in self.scores[group] if found.metric == metric)


def suite_cases(suite: Suite, held_out: Sequence[str], cases: Sequence[Case]) -> tuple[SuiteCase, ...]:
    """The cases reduced to what is scored, penalties against the baseline arm of the same work included."""
    by_name = {case.name: case for case in cases}
    found = []
    for case in cases:
        baseline = by_name.get(f"{case.name.split('/')[0]}/{suite.baseline}")
        fields = dict(scored_case(case, baseline))
        found.append(SuiteCase(**fields, is_held_out=case.name in held_out))
    return tuple(found)


def grouped_scores(
    cases: Sequence[SuiteCase], failures: Sequence[Failure], held_out: Sequence[str]
) -> dict[str, tuple[Score, ...]]:
    """Scores of all cases, of those a constant may have been chosen on, and of those held out.

    Group ``at pace`` is all cases again, the predictions taken to the speed the machine had around each run.
    """
    groups = {
        "all": list(cases),
        "open": [case for case in cases if not case.is_held_out],
        "held out": [case for case in cases if case.is_held_out],
    }
    scores = {}
    for group, members in groups.items():
        failed = [one for one in failures if group == "all" or (one.case in held_out) == (group == "held out")]
        scores[group] = case_scores.scores(members, len(failed))
    if any(case.pace is not None for case in cases):
        scores[AT_PACE] = case_scores.scores(cases, len(failures), is_at_pace=True)
    return scores


def orders(cases: Sequence[SuiteCase]) -> tuple[Order, ...]:
    """Of each metric that is ranked: the arms of every work, and every arm over the works."""
    works: dict[str, list[SuiteCase]] = {}
    arms: dict[str, list[SuiteCase]] = {}
    for case in cases:
        work, arm = case.name.split("/")
        works.setdefault(work, []).append(case)
        arms.setdefault(arm, []).append(case)
    groups = [(f"work {name}", members) for name, members in works.items()]
    groups += [(f"arm {name}", members) for name, members in arms.items()]
    found = (_order(metric, group, members) for metric in ORDERED for group, members in groups)
    return tuple(order for order in found if order.num_pairs)


def _order(metric: str, group: str, cases: Sequence[SuiteCase]) -> Order:
    known = [(case.name, case.metrics[metric]) for case in cases if metric in case.metrics]
    num_pairs = num_decided = 0
    wrong = []
    for one, other in combinations(known, 2):
        num_pairs += 1
        if overlap(one[1].measured, other[1].measured):
            continue
        num_decided += 1
        more, less = sorted((one, other), key=lambda item: -item[1].measured.value)
        if more[1].predicted.value <= less[1].predicted.value:
            wrong.append((more[0], less[0]))
    return Order(metric=metric, group=group, num_pairs=num_pairs, num_decided=num_decided, wrong=tuple(wrong))
