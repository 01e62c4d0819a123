"""Which rows a ``static_hot`` cache holds: those a warm-up asks for most often."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tiercast_profiles.model import ModelSpec
from tiercast_profiles.text import TokenText
from tiercast_profiles.workload import Request, warm_up_requests
from tiercast_runtime.hashing import NumpyHasher
from tiercast_runtime.tokens import prepare_tokens

_CHUNK_TOKENS = 1 << 16


def hot_row_ids(
    requests: Sequence[Request], text: TokenText, model: ModelSpec, seed: int
) -> list[npt.NDArray[np.int64]]:
    """Per Engram layer, the rows that the warm-up of a run asks for (Assumption A80), the most frequent first.

    Of equally frequent rows the lowest id comes first.
    """
    hasher = NumpyHasher(model.engram)
    warm_up, max_order = warm_up_requests(requests), model.engram.ngram_orders[-1]
    tokens = prepare_tokens(warm_up, text, model, seed)
    windows = np.concatenate(
        [tokens.windows(each, 0, each.prompt_tokens + each.output_tokens, max_order) for each in warm_up]
    )
    chunks: list[list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]] = [[] for _ in model.engram.layer_ids]
    for first in range(0, len(windows), _CHUNK_TOKENS):
        row_ids = hasher.row_ids(windows[first : first + _CHUNK_TOKENS])
        for found, layer_ids in zip(chunks, row_ids, strict=True):
            found.append(np.unique(layer_ids, return_counts=True))
    return [_by_frequency(found) for found in chunks]


def _by_frequency(found: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]) -> npt.NDArray[np.int64]:
    row_ids, inverse = np.unique(np.concatenate([ids for ids, _ in found]), return_inverse=True)
    counts = np.bincount(inverse, weights=np.concatenate([counts for _, counts in found]))
    hottest: npt.NDArray[np.int64] = row_ids[np.argsort(-counts, kind="stable")]
    return hottest
