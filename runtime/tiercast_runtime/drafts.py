"""Tokens that speculative decoding feeds: in each decode step a sequence's last token and the drafts behind it.

The runtime has no draft model. What a step accepts is drawn (``tiercast_profiles.drafts``), and outputs are forced, so
all tokens a run will feed are known before it starts: an accepted draft is the text's own next token, a rejected one is
another token of the vocabulary. Their lookups, their verification and what follows a rejection are real.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercast_profiles.drafts import accepted_drafts
from tiercast_profiles.errors import BadInput
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.rng import stream
from tiercast_profiles.scenario import Speculative
from tiercast_profiles.text import TokenText, fold, model_vocabulary
from tiercast_profiles.workload import Request

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FedTokens:
    """What one request feeds while it decodes.

    ``accepted``: drafts accepted, per decode step. ``token_ids``: ``[num_steps, 1 + num_drafts] int64``, in order of
    position. ``folded_ids``: the same folded.
    """

    accepted: tuple[int, ...]
    token_ids: Ids
    folded_ids: Ids


def fed_tokens(
    request: Request, request_ids: Ids, text: TokenText, model: ModelSpec, speculative: Speculative, *, seed: int
) -> FedTokens:
    """The tokens of all decode steps of a request whose prompt and forced output are ``request_ids``.

    A draft past the request's last output has no text to agree with and is any other token.

    Raises:
        BadInput: the vocabulary has one token, so that no draft can be wrong.
    """
    num_drafts, last = speculative.draft_tokens, len(request_ids) - 1
    accepted = accepted_drafts(request, speculative, seed)
    starts = _starts(request, accepted)
    places = starts[:, None] + np.arange(1 + num_drafts)
    right = request_ids[np.minimum(places, last)]
    is_right = np.arange(1 + num_drafts) <= np.array(accepted[: len(starts)], np.int64)[:, None]
    is_right &= places <= last
    token_ids = np.where(is_right, right, _wrong(right, request, text, model, seed))
    return FedTokens(accepted, token_ids, fold(token_ids.reshape(-1), text, model).reshape(token_ids.shape))


def _starts(request: Request, accepted: tuple[int, ...]) -> Ids:
    """Position of the first token of each decode step until the request has its last output, ``[num_steps] int64``."""
    behind = request.prompt_tokens + np.cumsum([0, *(1 + count for count in accepted)], dtype=np.int64)
    starts: Ids = behind[behind < request.prompt_tokens + request.output_tokens - 1]
    return starts


def _wrong(right: Ids, request: Request, text: TokenText, model: ModelSpec, seed: int) -> Ids:
    """Another token for each of these, every other one equally likely; from one stream per request."""
    num_ids = model.backbone.vocab_size
    if text.name != "random":
        num_ids = min(num_ids, len(model_vocabulary(model).folding))
    if num_ids < 2:
        raise BadInput(f"model {model.name!r} has a vocabulary of one token; no draft can be rejected in it")
    away = stream(seed, f"rejected-drafts/{request.request_id}").integers(1, num_ids, size=right.shape, dtype=np.int64)
    return (right + away) % num_ids
