"""tiercast plan on a made-up machine and a small model: what it prints, refuses, and says when nothing fits."""

import datetime
import json
from decimal import Decimal

import pytest

from tiercast_cli import pricing

QUICK = ("--max-num-seqs", 8, "--max-num-batched-tokens", 64, "--prompt-tokens", "4..24", "--output-tokens", "2..12")


@pytest.fixture
def plan(run, files, monkeypatch):
    """``tiercast plan`` over the small machine, on a fixed day."""
    monkeypatch.setattr(pricing, "today", lambda: datetime.date(2026, 11, 23))
    names = ("--model", files.folder / "model.yaml", "--hardware", files.hardware)
    prices = ("--prices", files.folder / "prices.yaml")

    def invoke(*args: object, width: int = 80):
        return run("plan", *names, *prices, *QUICK, *args, width=width)

    return invoke


@pytest.mark.parametrize("width", [80, 120])
def test_the_answer_is_as_committed(plan, golden, width):
    result = plan("--slo-ttft-ms", 500, "--slo-tpot-ms", 100, width=width)
    assert result.exit_code == 0, result.output
    golden(f"plan.{width}.txt", result.stdout)


def test_json_is_as_committed_and_money_is_text(plan, golden):
    result = plan("--slo-tpot-ms", 100, "--demand-tokens-per-day", "1e9", "--json")
    assert result.exit_code == 0
    golden("plan.json", result.stdout)
    report = json.loads(result.stdout)
    best = report["plans"][0]
    assert isinstance(best["fleet"]["usd_per_hour"], str)
    lines = sum(Decimal(line["usd_per_hour"]) for line in best["cost"]["lines"])
    assert lines == Decimal(best["cost"]["usd_per_hour"])
    assert Decimal(best["fleet"]["usd_per_hour"]) == best["num_hosts"] * lines
    assert best["fleet"]["tokens_per_day"] >= 10**9
    assert report == json.loads(plan("--slo-tpot-ms", 100, "--demand-tokens-per-day", "1e9", "--json").stdout)


def test_nothing_is_fast_enough(plan):
    result = plan("--slo-tpot-ms", 0.01)
    assert result.exit_code == 3
    assert "no option meets what was asked; nearest: test-cpu" in result.stderr
    assert "asked: TPOT 0.01 ms" in result.stderr
    assert "Why not" in result.stdout


def test_a_budget_that_is_too_small(plan):
    result = plan("--budget-usd-per-hour", "0.01")
    assert result.exit_code == 3
    assert "the budget is 0.01" in result.stderr


def test_the_file_is_the_json(plan, files):
    output = files.folder / "plan.json"
    result = plan("--json", "-o", output)
    assert output.read_text(encoding="utf-8") == result.stdout


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--demand-tokens-per-day", "many"), "give a number above 0, as in 250 or 1e12"),
        (("--demand-tokens-per-day", "1e20"), "from 1 to 10^15"),
        (("--budget-usd-per-hour", "-1"), "--budget-usd-per-hour"),
        (("--prompt-tokens", "9..2"), "--prompt-tokens '9..2'"),
        (("--output-tokens", "few"), "--output-tokens 'few'"),
        (("--cache-gib", "1,x"), "--cache-gib 'x'"),
        (("--prices", "nowhere"), "unknown price book"),
    ],
)
def test_wrong_values_are_one_line(plan, args, text):
    result = plan(*args)
    assert result.exit_code == 2
    assert text in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "found"),
    [("H200", "h200-sxm"), ("gb200", "gb200"), ("H100", "h100-sxm"), ("mi355x", "mi355x"), ("B200-SXM", "b200-sxm")],
)
def test_bare_device_names_find_their_machine(given, found):
    from tiercast_cli.inputs import hardware_names

    assert hardware_names(given) == [found]


@pytest.mark.parametrize(
    ("given", "text"),
    [("gh200", "fits several machines: gh200-144, gh200-96"), ("h200,", "an empty name"), ("h200,H200", "named twice")],
)
def test_names_that_do_not_tell_are_refused(fails, given, text):
    line = fails(2, "plan", "--model", "tiny", "--hardware", given)
    assert text in line
