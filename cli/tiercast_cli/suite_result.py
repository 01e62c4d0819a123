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
APART_RATIO = 0.01


class SuiteCase(ScoredCase):
    """One case of the suite; its penalty is against the baseline arm of its work."""

    is_held_out: bool


class Order(Strict):
    """Which of two cases has more of a metric, over all pairs of a group.

    ``group`` is a work, whose arms are compared, or an arm, compared over the works. A pair is decided where the
    measured intervals do not overlap; ``wrong`` are the decided pairs, the larger measured one first, that the
    prediction does not put in that order. ``num_apart`` of the decided pairs are as far apart as a person would care
    for: by a hundredth of the throughput, of the step that stalls, or of the lookups' time; ``wrong_apart`` are the
    wrong ones of these. None, in results of earlier versions: not counted.
    """

    metric: str
    group: str
    num_pairs: int
    num_decided: int
    wrong: tuple[tuple[str, str], ...]
    num_apart: int | None = None
    wrong_apart: tuple[tuple[str, str], ...] = ()


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
    known = [case for case in cases if metric in case.metrics]
    pairs = list(combinations(known, 2))
    decided = [pair for pair in pairs if not overlap(*(case.metrics[metric].measured for case in pair))]
    apart = [pair for pair in decided if _are_apart(metric, *pair)]
    return Order(
        metric=metric,
        group=group,
        num_pairs=len(pairs),
        num_decided=len(decided),
        wrong=_wrong(metric, decided),
        num_apart=len(apart),
        wrong_apart=_wrong(metric, apart),
    )


def _wrong(metric: str, pairs: Sequence[tuple[SuiteCase, SuiteCase]]) -> tuple[tuple[str, str], ...]:
    found = []
    for pair in pairs:
        more, less = sorted(pair, key=lambda case: -case.metrics[metric].measured.value)
        if more.metrics[metric].predicted.value <= less.metrics[metric].predicted.value:
            found.append((more.name, less.name))
    return tuple(found)


def _are_apart(metric: str, one: SuiteCase, other: SuiteCase) -> bool:
    """Whether the measured values differ by a hundredth or more of what they are a part of."""
    values = [case.metrics[metric].measured.value for case in (one, other)]
    whole = {
        "output_tokens_per_s": min(values),
        "stall_ms_per_step": min(case.metrics["step_ms.p50"].measured.value for case in (one, other)),
        "hidden_ratio": 1.0,
    }[metric]
    return abs(values[0] - values[1]) >= APART_RATIO * whole
