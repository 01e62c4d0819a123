"""Which drafts are accepted under speculative decoding: drawn once, by one function, for the runtime and the simulator.

Outputs are forced, so no draft is accepted or rejected by what a model thinks of it.
"""

import numpy as np

from tiercast_profiles.rng import stream
from tiercast_profiles.scenario import Speculative
from tiercast_profiles.workload import Request


def accepted_drafts(request: Request, speculative: Speculative, seed: int) -> tuple[int, ...]:
    """Accepted drafts in each decode step a request can have: drafts are accepted in turn until one fails.

    One stream per request, so that the draw does not depend on when the request runs (Assumption A15).
    """
    generator = stream(seed, f"acceptance/{request.request_id}")
    draws = generator.random((request.output_tokens, speculative.draft_tokens)) < speculative.acceptance_ratio
    return tuple(int(n) for n in np.cumprod(draws, axis=1).sum(axis=1))
