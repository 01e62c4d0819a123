"""How right predictions are over many cases: bias, mean, median, p90 and worst error, correlation, failures counted."""

from collections.abc import Mapping, Sequence

import numpy as np

from tiercast_profiles.document import Strict
from tiercast_profiles.stats import median, quantile


class Pair(Strict):
    """A metric of one case, measured and predicted.

    ``is_inside_spread``: the prediction lies within the machine's own spread over repeats, ``half_spread`` is half of
    that; None where there is none.
    """

    case: str
    measured: float
    predicted: float
    is_inside_spread: bool | None = None
    half_spread: float | None = None


class Score(Strict):
    """Errors of one metric over the cases.

    ``unit`` is ``ratio`` (predicted ÷ measured − 1) or that of the difference. ``num_cases`` counts failures too, and
    ``num_failed`` says how many have no error because they could not be run or predicted. ``correlation`` is Pearson's
    r of predicted and measured values; None below three cases or where one side does not vary. ``machine_spread`` is
    the median over the cases of half the spread between repeats, in the same unit: no prediction is better than that.
    """

    metric: str
    unit: str
    num_cases: int
    num_failed: int
    bias: float | None
    mean_absolute: float | None
    median_absolute: float | None
    p90_absolute: float | None
    worst_absolute: float | None
    worst_case: str
    correlation: float | None
    num_inside_spread: int
    machine_spread: float | None


def score(metric: str, unit: str, pairs: Sequence[Pair], *, num_failed: int = 0) -> Score:
    """Score the pairs of one metric: relative errors where ``unit`` is ``ratio``, else differences in ``unit``.

    Raises:
        ValueError: a relative error against a measured zero.
    """
    errors: Mapping[str, float] = {pair.case: _error(pair, unit) for pair in pairs}
    sizes = {case: abs(error) for case, error in errors.items()}
    worst = max(sizes, key=lambda case: sizes[case], default="")
    values = list(sizes.values())
    spreads = [
        pair.half_spread / (abs(pair.measured) if unit == "ratio" else 1.0)
        for pair in pairs
        if pair.half_spread is not None
    ]
    return Score(
        metric=metric,
        unit=unit,
        num_cases=len(pairs) + num_failed,
        num_failed=num_failed,
        bias=sum(errors.values()) / len(errors) if errors else None,
        mean_absolute=sum(values) / len(values) if values else None,
        median_absolute=median(values) if values else None,
        p90_absolute=quantile(values, 0.9) if values else None,
        worst_absolute=sizes[worst] if values else None,
        worst_case=worst,
        correlation=_correlation(pairs),
        num_inside_spread=sum(pair.is_inside_spread is True for pair in pairs),
        machine_spread=median(spreads) if spreads else None,
    )


def _error(pair: Pair, unit: str) -> float:
    if unit != "ratio":
        return pair.predicted - pair.measured
    if pair.measured == 0:
        raise ValueError(f"case {pair.case}: a relative error needs a measured value other than zero")
    return pair.predicted / pair.measured - 1


def _correlation(pairs: Sequence[Pair]) -> float | None:
    if len(pairs) < 3:
        return None
    measured, predicted = (np.asarray([getattr(pair, side) for pair in pairs]) for side in ("measured", "predicted"))
    if measured.std() == 0 or predicted.std() == 0:
        return None
    return float(np.corrcoef(measured, predicted)[0, 1])
