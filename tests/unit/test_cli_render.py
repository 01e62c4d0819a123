"""Number formats, tables and JSON of the command line."""

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from tiercast_cli import answer_views, output, render
from tiercast_profiles.record import Metric, ResourceUse


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (0.0, "0"),
        (12, "12"),
        (1234567, "1,234,567"),
        (14195.7, "14,196"),
        (502.84, "502.8"),
        (0.080663, "0.08066"),
        (-0.5, "-0.5000"),
        (1234567.8, "1,234,568"),
        (0.00001234, "1.234e-05"),
    ],
)
def test_numbers_keep_four_digits_and_unknown_is_not_zero(value, shown):
    assert render.number(value) == shown


@pytest.mark.parametrize(("ratio", "shown"), [(0.0191, "1.9 %"), (-0.00001, "0.0 %"), (1, "100.0 %"), (None, "–")])
def test_percent_has_no_negative_zero(ratio, shown):
    assert render.percent(ratio) == shown


def test_percent_with_a_sign():
    assert render.percent(0.031, signed=True) == "+3.1 %"
    assert render.percent(-0.031, signed=True) == "-3.1 %"


def test_intervals_are_shown_only_where_they_are_known():
    known = Metric(value=10, low=9, high=12, basis="spread")
    assert render.with_interval(known) == "10 [9 .. 12]"
    assert render.with_interval(Metric(value=10)) == "10"
    assert render.interval(Metric(value=10)) == "–"
    assert render.percent_with_interval(Metric(value=0.1, low=0.05, high=0.2, basis="band")) == "10.0 % [5.0 .. 20.0]"
    assert render.with_interval(None) == "–"


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_stays_inside_the_page(width):
    rows = [["a name of several words that has to wrap somewhere", "12,345"] for _ in range(3)]
    text = render.to_text(lambda: render.table("title", ["what", "number"], rows), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("12,345") == 3


def test_brackets_in_cells_are_text_not_markup():
    text = render.to_text(lambda: render.table("", ["what"], [["[bold]x[/bold] [1 .. 2]"]]), 80)
    assert "[bold]x[/bold] [1 .. 2]" in text


def test_a_page_does_not_reach_stdout(capsys):
    assert "hello" in render.to_text(lambda: render.line("hello"), 40)
    assert capsys.readouterr().out == ""


@dataclass(frozen=True)
class _Row:
    money: Decimal
    where: Path
    metric: Metric
    counts: tuple[int, ...]


def test_json_keeps_money_exact_and_keys_sorted():
    row = _Row(Decimal("0.100000000000000005"), Path("a/b"), Metric(value=1), (1, 2))
    text = output.to_json({"row": row, "array": np.array([1, 2]), 3: np.float64(0.5)})
    data = json.loads(text)
    assert data["row"]["money"] == "0.100000000000000005"
    assert data["row"]["counts"] == [1, 2]
    assert data["array"] == [1, 2]
    assert data["3"] == 0.5
    assert list(data) == sorted(data)
    assert text == output.to_json(json.loads(text))


def test_json_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="Out of range"):
        output.to_json({"rate": float("inf")})


def test_neighbours_that_are_equally_busy_share_a_line():
    busy = {"link 0 of host 0": 0.1, "link 1 of host 0": 0.1, "link 2 of host 0": 0.2, "nvme of host 0": 0.2}
    uses = [
        ResourceUse(name=name, kind="bytes", capacity_per_s=1.0, busy_ratio=Metric(value=ratio))
        for name, ratio in busy.items()
    ]
    assert answer_views.shared_things(uses) == [
        ["link 0..1 of host 0", "10.0 %"],
        ["link 2 of host 0", "20.0 %"],
        ["nvme of host 0", "20.0 %"],
    ]
