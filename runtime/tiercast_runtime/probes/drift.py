"""How fast this machine is right now, by one fixed piece of work: so that a drift between probes and runs can be seen.

Nothing is corrected by it. A machine that others share can be a tenth faster or slower a minute later, and a reader of
a prediction error should know how much of it the machine alone would explain.
"""

import time

import torch

from tiercast_profiles.model import ModelSpec
from tiercast_profiles.record import Metric
from tiercast_profiles.stats import spread_metric
from tiercast_profiles.units import ns_to_ms
from tiercast_runtime.device import pick_device, set_compute_threads
from tiercast_runtime.probes.step_bench import Geometry, StepBench
from tiercast_runtime.probes.timing import Clock

SEQUENCES, CONTEXT_TOKENS = 8, 128
NUM_WARM_UPS, NUM_SAMPLES = 5, 40


def decode_step_ms(model: ModelSpec, clock: Clock = time.perf_counter_ns) -> Metric:
    """Time of one decode step of 8 sequences with its rows staged beforehand: median and quartiles, in ms.

    Raises:
        MissingCapability: the runtime cannot compute this model.
    """
    device = pick_device()
    set_compute_threads()
    with StepBench(model, device, Geometry(SEQUENCES, 2 * CONTEXT_TOKENS, SEQUENCES), clock) as bench:
        step = bench.step([CONTEXT_TOKENS] * SEQUENCES, [])
        with torch.inference_mode():
            samples = [ns_to_ms(bench.whole(step)) for _ in range(NUM_WARM_UPS + NUM_SAMPLES)]
    return spread_metric(samples[NUM_WARM_UPS:])
