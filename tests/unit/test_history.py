"""The running history of sequences: chunks, drafts written over, used slots, slots that change."""

import subprocess
import sys

import numpy as np
import pytest

from tiercast_profiles.errors import BadInput
from tiercast_runtime.history import NgramHistory


def append(history, slot, start, ids):
    return history.append(np.array([slot]), np.array([start]), np.array([ids], dtype=np.int64))[0].tolist()


def test_a_draft_is_written_over_and_the_accepted_token_sees_the_right_past():
    history = NgramHistory(4, num_draft_tokens=3)
    assert append(history, 0, 0, [10, 11]) == [[10, -1, -1, -1], [11, 10, -1, -1]]
    assert append(history, 0, 2, [12, 90, 91, 92])[-1] == [92, 91, 90, 12]
    assert append(history, 0, 3, [13]) == [[13, 12, 11, 10]]


def test_several_sequences_at_once_keep_to_themselves():
    history = NgramHistory(3, num_draft_tokens=1)
    append(history, 5, 0, [50, 51, 52])
    append(history, 2, 0, [20])
    windows = history.append(np.array([2, 5]), np.array([1, 3]), np.array([[21, 22], [53, 54]]))
    assert windows.tolist() == [[[21, 20, -1], [22, 21, 20]], [[53, 52, 51], [54, 53, 52]]]


def test_a_new_sequence_does_not_see_the_one_before_in_its_slot():
    history = NgramHistory(3)
    append(history, 0, 0, [5, 6, 7, 8])
    assert append(history, 0, 4, [9]) == [[9, 8, 7]]
    assert append(history, 0, 0, []) == []
    assert append(history, 0, 0, [9, -1, 4]) == [[9, -1, -1], [-1, 9, -1], [4, -1, 9]]


def test_a_sequence_takes_its_past_to_another_slot():
    history = NgramHistory(3)
    append(history, 0, 0, [1, 2])
    append(history, 4, 0, [7, 8, 9])
    history.move(4, 0)
    assert append(history, 0, 3, [3]) == [[3, 9, 8]]
    history.move(0, 40)
    assert append(history, 40, 4, [5]) == [[5, 3, 9]]


def test_a_step_without_sequences_has_no_windows():
    none = np.empty(0, np.int64)
    assert NgramHistory(3).append(none, none, np.empty((0, 2), np.int64)).shape == (0, 2, 3)


@pytest.mark.parametrize("sizes", [(0, 0), (3, -1)])
def test_sizes_are_checked(sizes):
    with pytest.raises(BadInput, match=rf"max_order={sizes[0]}, num_draft_tokens={sizes[1]}; must be at least 1"):
        NgramHistory(*sizes)


def test_the_history_needs_no_torch():
    code = "import sys, tiercast_runtime.history; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
