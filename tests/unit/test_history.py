"""The running history of a sequence: chunks, prefix hits, drafts taken back, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest

from tiercast_profiles.errors import BadInput
from tiercast_runtime.history import NgramHistory


def test_a_draft_is_taken_back_and_the_accepted_token_sees_the_right_past():
    history = NgramHistory(1, 4, max_rollback_tokens=3)
    assert history.append(0, [10, 11]).tolist() == [[10, -1, -1, -1], [11, 10, -1, -1]]
    assert history.append(0, [12, 90, 91, 92]).tolist()[-1] == [92, 91, 90, 12]
    history.rollback(0, 3)
    assert history.append(0, [13]).tolist() == [[13, 12, 11, 10]]


def test_a_prefix_hit_gives_the_past_of_the_first_new_token():
    history = NgramHistory(1, 3)
    history.reset(0, [5, 6, 7, 8])
    assert history.append(0, [9]).tolist() == [[9, 8, 7]]
    history.reset(0)
    assert history.append(0, []).shape == (0, 3)
    assert history.append(0, [9, -1, 4]).tolist() == [[9, -1, -1], [-1, 9, -1], [4, -1, 9]]


def test_more_than_was_kept_is_not_taken_back():
    history = NgramHistory(1, 3, max_rollback_tokens=2)
    history.append(0, [1, 2, 3, 4, 5])
    with pytest.raises(BadInput, match=r"rollback of 3 tokens in slot 0; 0 … 2 can be taken back"):
        history.rollback(0, 3)
    history.rollback(0, 1)
    with pytest.raises(BadInput, match=r"0 … 1 can be taken back"):
        history.rollback(0, 2)
    assert history.append(0, [6]).tolist() == [[6, 4, 3]], "a refused rollback forgets nothing"
    history.reset(0, [1, 2, 3])
    with pytest.raises(BadInput, match=r"0 … 0 can be taken back"):
        history.rollback(0, 1)
    with pytest.raises(BadInput, match="rollback of -1 tokens"):
        history.rollback(0, -1)


@pytest.mark.parametrize("ids", [[[1, 2]], [1.5], [-2], 7, ["a"]])
def test_ids_that_are_none_are_refused(ids):
    with pytest.raises(BadInput, match="one row of whole numbers from -1 up"):
        NgramHistory(1, 3).append(0, np.array(ids))


def test_slots_and_sizes_are_checked():
    for call in (lambda h: h.append(2, [1]), lambda h: h.rollback(-1, 0), lambda h: h.reset(2)):
        with pytest.raises(BadInput, match="slots are 0 … 1"):
            call(NgramHistory(2, 3))
    for sizes in ((0, 3, 0), (1, 0, 0), (1, 3, -1)):
        with pytest.raises(BadInput, match="must be at least"):
            NgramHistory(*sizes)


def test_the_history_needs_no_torch():
    code = "import sys, tiercast_runtime.history; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
