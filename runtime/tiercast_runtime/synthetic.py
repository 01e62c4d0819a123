"""Steps made up for a measurement: any mix of decoding sequences and prompt chunks, built by the engine's own code."""

from collections.abc import Sequence as Series
from dataclasses import replace

import numpy as np

from tiercast_profiles.model import ModelSpec
from tiercast_profiles.rng import stream
from tiercast_profiles.workload import Request
from tiercast_runtime.scheduler import PrefillChunk, Sequence, StepPlan
from tiercast_runtime.tokens import TokenStore


def synthetic_step(
    model: ModelSpec,
    decode_contexts: Series[int],
    chunks: Series[tuple[int, int]],
    seed: int = 0,
    *,
    num_draft_tokens: int = 0,
) -> tuple[StepPlan, TokenStore]:
    """A step plan and the tokens it reads, for :meth:`tiercast_runtime.batch.BatchBuilder.build`.

    Args:
        model: gives the vocabulary.
        decode_contexts: per decoding sequence, the tokens its first new one attends to, itself included (at least 2).
        chunks: per prompt chunk, the tokens before it and the tokens in it; each chunk ends its prompt.
        seed: decides the token ids.
        num_draft_tokens: drafts each decoding sequence feeds behind its new token, all of them right.

    Sequences take slots 0, 1, … in order. Token ids are uniform, so their n-grams hardly ever repeat. No
    step went before: the first n-grams look back at nothing, or at what another made-up step left.
    """
    decodes: list[Sequence] = []
    prefills: list[PrefillChunk] = []
    requests: list[Request] = []
    for context in decode_contexts:
        request = Request(len(requests), 0, context - 1, 2 + num_draft_tokens)
        sequence = Sequence(request, len(requests), 0, num_prefilled=context - 1, num_outputs=1)
        sequence.accepted = (num_draft_tokens,)
        decodes.append(sequence)
        requests.append(request)
    for start, count in chunks:
        request = Request(len(requests), 0, start + count, 1)
        prefills.append(PrefillChunk(Sequence(request, len(requests), 0, num_prefilled=start), start, count))
        requests.append(request)
    tokens = random_tokens(model, requests, seed)
    if num_draft_tokens:
        # Right drafts are the text itself: what the one decode step feeds lies at the positions it is fed at.
        fed = {s.request.request_id: tokens.offsets[s.request.request_id] + s.decode_position for s in decodes}
        tokens = replace(tokens, fed_offsets=fed)
    return StepPlan(decodes, prefills, num_draft_tokens), tokens


def random_tokens(model: ModelSpec, requests: Series[Request], seed: int) -> TokenStore:
    """Uniform token ids and uniform folded ids for requests, without a vocabulary."""
    generator = stream(seed, "synthetic-tokens")
    ids, folded_ids, offsets, total = [], [], {}, 0
    for request in requests:
        count = request.prompt_tokens + request.output_tokens
        ids.append(generator.integers(0, model.backbone.vocab_size, size=count, dtype=np.int64))
        folded_ids.append(generator.integers(0, model.engram.compressed_vocab_size, size=count, dtype=np.int64))
        offsets[request.request_id] = total
        total += count
    return TokenStore(np.concatenate(ids), np.concatenate(folded_ids), offsets)
