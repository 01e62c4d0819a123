"""The tokens of a whole run, prepared before it starts: real text and its folded ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tiercast_profiles.model import ModelSpec
from tiercast_profiles.scenario import Speculative
from tiercast_profiles.text import TokenText, fold, request_token_ids
from tiercast_profiles.workload import Request
from tiercast_runtime.drafts import fed_tokens
from tiercast_runtime.hashing import build_windows

NO_DRAFTS = Speculative()


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Ids of all requests back to back.

    ``token_ids``, ``folded_ids``: ``[num_tokens] int64``. Position ``p`` of a request is entry
    ``offsets[request_id] + p``.

    With drafts, token ``j`` that decode step ``i`` of a request feeds is entry ``fed_offsets[request_id] + i × (1 +
    draft tokens) + j``, and ``accepted`` has by request id how many drafts each step accepts; both are empty without.
    """

    token_ids: npt.NDArray[np.int64]
    folded_ids: npt.NDArray[np.int64]
    offsets: dict[int, int]
    fed_offsets: Mapping[int, int] = field(default_factory=dict)
    accepted: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def windows(self, request: Request, start: int, count: int, max_order: int) -> npt.NDArray[np.int64]:
        """Windows ``[count, max_order] int64`` of the positions of a request from ``start`` on, whatever step it is in.

        For tokens that are known before their step; a step itself asks its ``NgramHistory``.
        """
        first = self.offsets[request.request_id]
        return build_windows(self.folded_ids[first : first + start + count], start, count, max_order)


def prepare_tokens(
    requests: tuple[Request, ...], text: TokenText, model: ModelSpec, seed: int, speculative: Speculative = NO_DRAFTS
) -> TokenStore:
    """Token ids, raw and folded, of every request, prompt and forced output alike, and of the drafts.

    Raises:
        BadInput: drafts are asked for and the vocabulary has one token.
    """
    ids, folded_ids, offsets, total = [], [], {}, 0
    fed_offsets, accepted = {}, {}
    for request in requests:
        request_ids = request_token_ids(text, model, request, seed)
        ids.append(request_ids)
        folded_ids.append(fold(request_ids, text, model))
        offsets[request.request_id] = total
        total += len(request_ids)
        if speculative.draft_tokens:
            fed = fed_tokens(request, request_ids, text, model, speculative, seed=seed)
            ids.append(fed.token_ids.reshape(-1))
            folded_ids.append(fed.folded_ids.reshape(-1))
            fed_offsets[request.request_id], accepted[request.request_id] = total, fed.accepted
            total += fed.token_ids.size
    return TokenStore(np.concatenate(ids), np.concatenate(folded_ids), offsets, fed_offsets, accepted)
