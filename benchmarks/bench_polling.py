"""Waiting for a drive with the core kept, beside asleep: what each way of waiting leaves of throughput.

Two groups of the same arms, which differ in nothing but how they wait for rows, and an arm by itself that waits for
nothing. Groups go on two seconds at a time, so that all of them meet the same machine.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from figures import Figures
from tiercast_cli import suite
from tiercast_profiles import store
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_runtime import polling
from tiercast_runtime.device import set_compute_threads
from tiercast_runtime.engine import serving
from tiercast_runtime.probes.timing import Spread
from tiercast_runtime.together import Sources, Together

PROFILE = Path(__file__).parents[1] / "validation" / "two-core-epyc" / "suite" / "profile.yaml"  # only room counts here
WORKS, ROUNDS = ("one", "eight"), 12
ARMS = ("none", "nvme", "nvme-off")
LIMITS_NS = {"polling": polling.LIMIT_NS, "asleep": 0, "with none alone": 0}
Rates = dict[str, dict[str, float]]  # tokens/s by group and arm


def main() -> None:
    figures = Figures("Waiting for a drive with the core kept, beside asleep")
    threads = set_compute_threads()
    cases, _ = store.load_suite()
    ready = suite.scenarios(cases, str(PROFILE))
    figures.note(f"works of the suite, model tiny, {ROUNDS} rounds, groups in turns of two seconds")
    for work in WORKS:
        groups = {name: [ready[f"{work}/{arm}"] for arm in ARMS] for name in LIMITS_NS}
        del groups["with none alone"][1:]
        rounds = [_round(groups, threads) for _ in range(ROUNDS)]
        for arm in ARMS:
            spreads = {
                name: Spread(name, tuple(rates[name][arm] for rates in rounds))
                for name in groups
                if arm in rounds[0][name]
            }
            figures.compare(f"{work}/{arm}", spreads, unit="tokens/s", ours="polling", aside=("with none alone",))
            ratios = tuple(rates["polling"][arm] / rates["asleep"][arm] for rates in rounds)
            both = Spread("ratio", ratios)
            figures.note(
                f"{work}/{arm}: polling over asleep in the same round {both.value:.3f}, "
                f"quartiles {both.low:.3f} to {both.high:.3f}"
            )
    figures.finish()


def _round(groups: Mapping[str, Sequence[ResolvedScenario]], threads: int) -> Rates:
    """Serve every group once."""
    limit_ns = polling.LIMIT_NS
    with ExitStack() as stack, serving():
        stack.callback(setattr, polling, "LIMIT_NS", limit_ns)
        groups_open: dict[str, Together] = {}
        for name, scenarios in groups.items():
            others = [engine for each in groups_open.values() for engine in each.engines]
            groups_open[name] = stack.enter_context(Together(scenarios, Sources(), None, others))
        going = {name: group.round(lambda _share: None) for name, group in groups_open.items()}
        while going:
            for name, steps in list(going.items()):
                polling.LIMIT_NS = LIMITS_NS[name]
                try:
                    next(steps)
                except StopIteration:
                    del going[name]
        return {
            name: {
                arm: record.metrics.output_tokens_per_s.value
                for arm, record in zip(ARMS, group.records(threads), strict=False)
            }
            for name, group in groups_open.items()
        }


if __name__ == "__main__":
    main()
