"""N-grams of a token stream as dense numbers, and how many distinct rows a set of them asks for.

All heads of one order hash the same n-gram, so a repeated n-gram repeats all its rows together: reuse is counted in
n-grams, not in rows.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from tiercast_profiles.head_sizes import head_sizes
from tiercast_profiles.model import Engram, ModelSpec
from tiercast_profiles.text import TokenText, fold, request_token_ids
from tiercast_profiles.workload import Request, warm_up_requests
from tiercast_sim.work import RowCount

Keys = npt.NDArray[np.int64]


def ngram_keys(sequences: Sequence[npt.NDArray[np.int64]], engram: Engram, pad_id: int) -> list[Keys]:
    """Dense n-gram numbers of folded ids, one ``[num_orders, num_tokens] int64`` per sequence.

    Equal numbers of one order mean equal n-grams. A look-back before the start of a sequence reads the folded pad id,
    as the hash does (facts: V4.1 production dialect).
    """
    ids = np.concatenate(sequences) if sequences else np.zeros(0, dtype=np.int64)
    starts = np.concatenate([np.arange(len(sequence)) for sequence in sequences]) if sequences else ids
    base = int(ids.max(initial=pad_id)) + 1
    keys = np.empty((len(engram.ngram_orders), len(ids)), dtype=np.int64)
    longer = ids
    for index, order in enumerate(engram.ngram_orders):
        back = order - 1
        previous = np.roll(ids, back)
        previous[starts < back] = pad_id
        # Numbering the shorter n-gram first keeps number × base + id inside 64 bits for any order.
        _, longer = np.unique(longer * base + previous, return_inverse=True)
        longer = longer.reshape(-1).astype(np.int64)
        keys[index] = longer
    if not sequences:
        return []
    edges = np.cumsum([len(sequence) for sequence in sequences])[:-1]
    return [np.ascontiguousarray(part) for part in np.split(keys, edges, axis=1)]


class RequestNgrams:
    """N-grams of every token position of every request of a run, as numbers that also tell their order.

    An n-gram of the i-th order has number × orders + i. ``known_counts`` keeps what :mod:`row_counts` found for these
    tokens, so that further runs over them need not count again.

    With ``has_warm_up``, ``hottest`` are the n-grams of a warm-up (Assumption A80), the most frequent first.
    """

    def __init__(
        self,
        text: TokenText,
        model: ModelSpec,
        requests: Sequence[Request],
        seed: int,
        *,
        has_warm_up: bool = False,
    ) -> None:
        pad_ids = np.array([model.engram.pad_token_id], dtype=np.int64)
        folded_pad = int(fold(pad_ids, text, model)[0])
        earlier = warm_up_requests(requests) if has_warm_up else ()
        sequences = [fold(request_token_ids(text, model, r, seed), text, model) for r in (*requests, *earlier)]
        self._num_orders = len(model.engram.ngram_orders)
        orders = np.arange(self._num_orders, dtype=np.int64)
        numbers = [
            (part.T * self._num_orders + orders).reshape(-1) for part in ngram_keys(sequences, model.engram, folded_pad)
        ]
        self.hottest = by_frequency(numbers[len(requests) :])
        # Flat lists: a step picks a few positions of many requests, which NumPy does slowly.
        self._by_request: dict[int, list[int]] = {
            request.request_id: part.tolist() for request, part in zip(requests, numbers, strict=False)
        }
        self.known_counts: dict[object, tuple[object, RowCount]] = {}

    def between(self, request: Request, start: int, stop: int) -> list[int]:
        """N-grams of positions ``start`` to ``stop`` − 1, all orders of a position together."""
        return self._by_request[request.request_id][start * self._num_orders : stop * self._num_orders]


def by_frequency(accesses: Sequence[Keys]) -> list[int]:
    """Distinct n-grams of some accesses, the most frequent first; of equals the lowest number first."""
    if not accesses:
        return []
    keys, counts = np.unique(np.concatenate(accesses), return_counts=True)
    hottest: list[int] = keys[np.argsort(-counts, kind="stable")].tolist()
    return hottest


class DistinctRows:
    """Expected distinct rows of distinct n-grams: d of them hashed into P rows hit P (1 − (1 − 1/P)^d).

    Assumption A11: hashes are uniform; every layer sees the same n-grams, so all layers ask for equally many rows.
    """

    def __init__(self, engram: Engram) -> None:
        self._sizes = head_sizes(engram)[0]
        self._known: dict[tuple[int, int], float] = {}

    def of(self, num_ngrams_by_order: Iterable[int]) -> int:
        """Distinct rows of one layer for this many distinct n-grams of each order."""
        return round(sum(self._of_order(order, count) for order, count in enumerate(num_ngrams_by_order)))

    def _of_order(self, order: int, count: int) -> float:
        known = self._known.get((order, count))
        if known is None:
            # expm1/log1p: with 16 M rows a head the plain formula loses every digit of the few collisions.
            known = sum(-size * float(np.expm1(count * np.log1p(-1 / size))) for size in self._sizes[order])
            self._known[order, count] = known
        return known


def cache_entries_per_layer(cache_bytes: int, num_ranks: int, engram: Engram, row_bytes: int) -> int:
    """N-grams that the caches of all ranks hold for one layer (Assumption A12).

    Each rank caches its own heads; the room is shared evenly by the Engram layers, whose streams are the same.
    """
    per_ngram = engram.num_heads_per_order * row_bytes
    return cache_bytes * num_ranks // (per_ngram * len(engram.layer_ids))
