"""How long ``tiercast plan`` takes, and what its screening by closed forms costs in answers.

Timed: the whole command in a fresh process, start-up included, median of five. Beside it the alternative without closed
forms: every option that fits and that arithmetic serves, simulated at the load the closed form chose for it; in the
same run, in one process. Said: how far the closed forms are from those simulations, and whether both choose the same.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tiercast_cli import inputs, planning
from tiercast_plan.estimate import Estimate
from tiercast_plan.search import best_estimate, search, usd_per_mtok
from tiercast_plan.sensitivity import label
from tiercast_plan.steady import is_by_events, steady_state
from write_record import write_record

MACHINES = "h100,h200,b200,gb200,mi355x"
LIMITS = planning.Limits(slo_ttft_ms=2000, slo_tpot_ms=50)
COMMAND = (
    *("plan", "--model", "deepseek-v4.1-flash", "--hardware", MACHINES),
    *("--slo-ttft-ms", "2000", "--slo-tpot-ms", "50", "--json"),
)
REPEATS = 5


def whole_command_s() -> list[float]:
    """Seconds of the command, fresh process each time."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tiercast_cli.main", *COMMAND], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure, print, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path)
    record = parser.parse_args().record
    question = planning.question(
        model="deepseek-v4.1-flash",
        hardware=inputs.hardware_names(MACHINES),
        prices="default",
        lengths=("100..1024", "100..1024"),
        text="random",
        engine_limits=(1024, 8192),
        seed=0,
        limits=LIMITS,
        cache_gib=None,
    )
    start = time.perf_counter()
    found = search(question)
    search_s = time.perf_counter() - start
    start = time.perf_counter()
    costs, errors = {}, []
    for family in found.families:
        best = best_estimate(question, family)
        if not isinstance(best, Estimate) or is_by_events(family.resolved):
            continue
        steady = steady_state(family.resolved, question.percentile, best.concurrency_per_replica)
        errors.append(best.total_tokens_per_s / steady.total_tokens_per_s - 1)
        if steady.tpot_ms <= 50 and steady.ttft_ms <= 2000:
            cost = usd_per_mtok(question, family.usd_per_host_hour, steady.total_tokens_per_s)
            costs[label(family)] = min(cost, costs.get(label(family), cost))
    every_s = time.perf_counter() - start
    chosen = found.plans[0].resolved
    ours = f"{chosen.hardware.name} TP{chosen.scenario.parallel.tensor} {chosen.placement.tier}"
    cheapest = min(costs, key=lambda name: costs[name])
    command_s = whole_command_s()
    figures = {
        "plan_command_median_s": round(statistics.median(command_s), 2),
        "plan_command_max_s": round(max(command_s), 2),
        "search_s": round(search_s, 2),
        "num_options": found.num_options,
        "num_simulated": found.num_simulated,
        "every_option_simulated_s": round(every_s, 2),
        "num_every_option_simulated": len(errors),
        "closed_form_median_error_ratio": round(statistics.median(abs(error) for error in errors), 4),
        "closed_form_max_error_ratio": round(max(abs(error) for error in errors), 4),
        "same_answer": int(ours == cheapest),
    }
    for name, value in figures.items():
        print(f"{name:36} {value:g}")
    print(f"chosen: {ours}; cheapest of all that were simulated: {cheapest}")
    if record is not None:
        write_record(record, figures)


if __name__ == "__main__":
    main()
