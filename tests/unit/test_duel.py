"""The formulas by hand, and the duel on the committed records."""

from pathlib import Path

import pytest

from tiercast_cli.duel import OURS, Guess, duel, ranking, table
from tiercast_sim.peer_formulas import (
    FORMULAS,
    PlainStep,
    block_overlap,
    bytes_over_link,
    perfect_overlap,
    torchrec_planner,
)

RECORD = Path(__file__).resolve().parents[2] / "validation" / "two-core-xeon"


def step(moved_bytes=3000, *, is_prefetched=True):
    """1 GB/s is a byte a nanosecond."""
    return PlainStep(1000, moved_bytes, 1e9, num_engram_layers=2, num_layers=10, is_prefetched=is_prefetched)


def test_formulas_by_hand():
    assert bytes_over_link(step()) == 3000
    assert torchrec_planner(step()) == 3000
    assert torchrec_planner(step(is_prefetched=False)) == 30_000
    assert perfect_overlap(step()) == 2000
    assert perfect_overlap(step(900)) == 0
    assert block_overlap(step()) == 2 * (1500 - 100)
    assert block_overlap(step(200)) == 0


@pytest.mark.parametrize("formula", FORMULAS.values())
def test_no_bytes_no_stall(formula):
    assert formula(step(0)) == 0


def test_the_ranking_follows_the_errors():
    """Whoever is closest comes first, ours or not."""
    guesses = [Guess("a", OURS, 5.0, 1.0, 10.0, 8.0), Guess("a", "other", 5.0, 6.0, 10.0, 11.0)]
    assert ranking(guesses) == [("other", 1.0, pytest.approx(0.1)), (OURS, 4.0, pytest.approx(0.2))]
    assert table(guesses).endswith("Closest in the stall: other.")


def test_the_duel_takes_every_arm_that_reads_a_drive():
    guesses = duel(RECORD)
    assert {guess.arm for guess in guesses} == {"demo-prefetch", "demo-no-prefetch"}
    assert {guess.name for guess in guesses} == {OURS, *FORMULAS}
    assert len({(guess.arm, guess.measured_stall_ms, guess.measured_step_ms) for guess in guesses}) == 2
    assert ranking(guesses)[0][0] == OURS
