"""The tokens of a whole run, prepared before it starts: real text, folded ids and n-gram windows per position."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercast_profiles.model import ModelSpec
from tiercast_profiles.text import TokenText, fold, request_token_ids
from tiercast_profiles.workload import Request
from tiercast_runtime.hashing import build_windows


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Ids of all requests back to back.

    ``token_ids``: ``[num_tokens] int64``. ``windows``: ``[num_tokens, max_order] int64`` of folded ids, −1 before a
    request's first token. Position ``p`` of a request is entry ``offsets[request_id] + p``.
    """

    token_ids: npt.NDArray[np.int64]
    windows: npt.NDArray[np.int64]
    offsets: dict[int, int]


def prepare_tokens(requests: tuple[Request, ...], text: TokenText, model: ModelSpec, seed: int) -> TokenStore:
    """Token ids and windows of every request, prompt and forced output alike."""
    max_order = model.engram.ngram_orders[-1]
    ids, windows, offsets, total = [], [], {}, 0
    for request in requests:
        request_ids = request_token_ids(text, model, request, seed)
        folded = fold(request_ids, text, model)
        ids.append(request_ids)
        windows.append(build_windows(folded, 0, len(folded), max_order))
        offsets[request.request_id] = total
        total += len(request_ids)
    return TokenStore(np.concatenate(ids), np.concatenate(windows), offsets)
