"""Tokens hashed as they come, with drafts written over, see the windows of the finished sequence hashed at once."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_runtime.hashing import DEAD, build_windows
from tiercast_runtime.history import NgramHistory

IDS = st.integers(DEAD, 60)


@given(st.data(), st.integers(1, 5), st.integers(0, 6), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_any_chunks_and_drafts_give_the_windows_of_the_final_sequences(data, max_order, depth, num_sequences):
    history = NgramHistory(max_order, depth)
    slots = np.array(data.draw(st.permutations(range(5)))[:num_sequences])
    history.append(np.arange(4), np.zeros(4, np.int64), np.full((4, 9), 7))  # what used slots hold leaves no trace
    sequences, windows = [[] for _ in slots], [[] for _ in slots]
    for _ in range(data.draw(st.integers(0, 12))):
        count = data.draw(st.integers(0, 9))
        kept = [max(0, len(ids) - data.draw(st.integers(0, depth))) for ids in sequences]  # the rest were rejected
        for number, length in enumerate(kept):
            del sequences[number][length:], windows[number][length:]
        ids = np.array(
            data.draw(st.lists(IDS, min_size=count * num_sequences, max_size=count * num_sequences)), np.int64
        )
        ids = ids.reshape(num_sequences, count)
        found = history.append(slots, np.array(kept), ids)
        for number in range(num_sequences):
            sequences[number] += ids[number].tolist()
            windows[number] += found[number].tolist()
        # Tokens can be taken back to what the last step's first token looked back at, not by steps on end.
        depth = data.draw(st.integers(0, min(depth, count)))
    for ids, seen in zip(sequences, windows, strict=True):
        assert seen == build_windows(np.array(ids, dtype=np.int64), 0, len(ids), max_order).tolist()
