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


@pytest.mark.parametrize("width", [80, 100])
def test_names_break_behind_a_dot_or_an_underscore_and_keep_their_unit(width):
    names = ["device.memory_bandwidth_gb_per_s", "lookups.dram/cpu_gather.read_granularity_bytes", "host.num_cores"]
    rows = [[name, "4,800.0 [4,000.0 .. 5,000.0]", "published: a-source-with-a-name"] for name in names]
    text = render.to_text(lambda: render.table("", ["what", "value", "evidence"], rows, left=3), width)
    firsts = [line.split(" ")[0] for line in text.splitlines()[2:]]
    assert "".join(firsts).endswith("".join(names))
    assert any(line.endswith("memory_bandwidth_gb_per_s") for line in firsts)
    assert all(line == "" or line[-1] in "._" or any(name.endswith(line) for name in names) for line in firsts[1:])
    assert max(map(len, text.splitlines())) <= width


def test_a_long_path_as_a_name_leaves_room_for_the_rest():
    path = "/tmp/a-folder-of-a-very-long-name/" + "x" * 60 + "/changed.yaml"
    columns = ["placement", "tokens/s", "interval", "penalty", "interval", "KV room"]
    rows = [[path, "14,196", "7,348 .. 19,367", "1.9 %", "1.9 .. 2.3", "does not fit"]]
    lines = render.to_text(lambda: render.table("", columns, rows), 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "does not fit" in "".join(lines)
    assert "".join(line.split("  ")[0].strip() for line in lines[3:]) == path


def test_numbers_are_whole_beside_names_that_break():
    cells = ["14,196", "1,700,288", "-35.8 %", "-28.5 M .. -947,040", "the same"]
    columns = ["what it did", "A", "B", "change", "between", "verdict"]
    rows = [["penalty_ratio.no_engram", *cells], ["output_tokens_per_s", *cells]]
    text = render.to_text(lambda: render.table("", columns, rows), 80)
    assert all(text.count(cell) == 2 for cell in cells)
    assert "tokens_per_s" in text


def test_a_line_to_type_is_never_wrapped():
    typed = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled; echo advise > /sys/kernel/mm/and/so/on"
    assert render.to_text(lambda: render.command(typed), 40) == typed + "\n"


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
