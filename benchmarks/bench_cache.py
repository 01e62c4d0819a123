"""Hits of the runtime's row cache beside the simulator's, by policy and size, over the same requests.

Hits do not depend on time, so this needs no quiet machine. ``--record FILE`` keeps the figures.
"""

import argparse
import tempfile
from pathlib import Path

from tiercast_profiles.scenario import ResolvedScenario, Scenario, combine
from tiercast_profiles.store import load_hardware, load_model, load_prices
from tiercast_runtime.bench import bench
from tiercast_sim.simulate import simulate
from write_record import write_record

PROFILE = Path(__file__).parents[1] / "validation" / "two-core-epyc" / "profile.yaml"
CACHE_GIB = (0.0005, 0.002, 0.008)
POLICIES = ("lru", "lfu", "static_hot")


def scenario(text: str, cache_gib: float, policy: str) -> ResolvedScenario:
    wanted = Scenario.model_validate(
        {
            "schema_version": 1,
            "hardware": str(PROFILE),
            "model": "tiny",
            "placement": {"tier": "dram", "cache_gib": cache_gib, "cache_policy": policy},
            "workload": {
                "kind": "closed_loop",
                "concurrency": 8,
                "num_requests": 32,
                "prompt_tokens": {"uniform": [64, 192]},
                "output_tokens": {"uniform": [8, 24]},
                "text": text,
            },
            "engine": {"max_num_seqs": 8, "max_num_batched_tokens": 256},
        }
    )
    return combine(wanted, load_hardware(str(PROFILE)), load_model("tiny"), load_prices("default"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    rows = []
    print("text  policy       cache MiB   measured  predicted   difference")
    with tempfile.TemporaryDirectory() as folder:
        for text in ("docs", "code"):
            for policy in POLICIES:
                for cache_gib in CACHE_GIB:
                    resolved = scenario(text, cache_gib, policy)
                    measured = bench(resolved, folder=Path(folder)).metrics.cache_hit_ratio
                    predicted = simulate(resolved).metrics.cache_hit_ratio
                    assert measured is not None, "a record of a run with a cache has its hits"
                    assert predicted is not None, "a record of a run with a cache has its hits"
                    rows.append(
                        {
                            "text": text,
                            "policy": policy,
                            "cache_gib": cache_gib,
                            "measured": round(measured, 4),
                            "predicted": round(predicted, 4),
                        }
                    )
                    print(
                        f"{text:5} {policy:11} {cache_gib * 1024:10.2f}   {measured:8.1%}   {predicted:8.1%}   "
                        f"{100 * (predicted - measured):+7.1f} pt",
                        flush=True,
                    )
    if options.record is not None:
        write_record(options.record, {"cache_hit_ratio": rows}, model="tiny", placement="tier dram by cpu_gather")


if __name__ == "__main__":
    main()
