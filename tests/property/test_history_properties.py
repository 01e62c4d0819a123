"""Tokens hashed as they come, with drafts taken back, see the same windows as the finished sequence hashed at once."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_runtime.hashing import DEAD, build_windows
from tiercast_runtime.history import NgramHistory

IDS = st.lists(st.integers(DEAD, 60), max_size=9)


@given(st.data(), st.integers(1, 5), st.integers(0, 6), IDS)
@settings(max_examples=150, deadline=None)
def test_any_appends_and_rollbacks_give_the_windows_of_the_final_sequence(data, max_order, depth, prefix):
    history = NgramHistory(2, max_order, depth)
    history.append(1, [7, 8, 9])  # a sequence before, and a neighbour, leave no trace
    history.append(0, [3, 4, 5])
    history.reset(1, prefix)
    sequence, windows, revocable = list(prefix), [], 0
    for _ in range(data.draw(st.integers(0, 12))):
        if data.draw(st.booleans()):
            ids = data.draw(IDS)
            windows += history.append(1, np.array(ids, dtype=np.int64)).tolist()
            sequence += ids
            revocable = min(revocable + len(ids), depth)
        else:
            count = data.draw(st.integers(0, revocable))
            history.rollback(1, count)
            del sequence[len(sequence) - count :], windows[len(windows) - count :]
            revocable -= count
    whole = build_windows(np.array(sequence, dtype=np.int64), len(prefix), len(windows), max_order)
    assert windows == whole.tolist()
    assert history.append(0, [6]).tolist() == build_windows(np.array([3, 4, 5, 6]), 3, 1, max_order).tolist()
