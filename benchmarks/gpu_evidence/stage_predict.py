"""Stage ``predict``: every measured arm predicted from the profile alone, and put beside the measurement."""

from typing import Any

from gpu_evidence.context import Context
from gpu_evidence.plan import Case
from gpu_evidence.stage_arms import BY_NAME, WORKS, rehearsal_work, resolve
from tiercast_profiles.compare import EXPECTED_DIFFERENCES, compare
from tiercast_profiles.store import load_record
from tiercast_sim.simulate import simulate


def cases(context: Context) -> list[Case]:
    """One case per arm that was measured; what another profile predicted is predicted anew from the best."""
    state = context.state
    for key in [key for key in state.cases if key.startswith("predict/")]:
        numbers = state.numbers(key)
        if numbers is not None and numbers["profile"] != context.profile_name:
            state.forget(key)
    keys = [key for key in state.cases if key.startswith(("arms/", "disk/")) and key.count("/") == 2]
    return [Case("predict", key, 15, _predict(key)) for key in keys if state.numbers(key) is not None]


def _predict(key: str) -> Any:
    def run(context: Context) -> dict[str, Any]:
        stage, work_name, arm_name = key.split("/")
        work = rehearsal_work() if context.is_rehearsal else WORKS[work_name]
        numbers = context.state.numbers(key)
        assert numbers is not None, "only what was measured is predicted"
        # the runtime's cache is static: how many sequences it has room for at their longest is an input, not a result
        slots = numbers["kv_slots"]
        resolved = resolve(context, BY_NAME[arm_name], work, is_disk=stage == "disk", max_num_seqs=slots)
        measured = load_record(context.out / "measured" / f"{work_name}-{arm_name}.json")
        predicted = simulate(resolved, with_baselines=False)
        context.write(f"simulated/{work_name}-{arm_name}.json", predicted.to_json())
        comparison = compare(measured, predicted)
        context.write(f"compared/{work_name}-{arm_name}.json", comparison.model_dump_json(indent=1))
        differing = [each for each in comparison.differing_inputs if each.path not in EXPECTED_DIFFERENCES]
        throughput = comparison.metric("output_tokens_per_s")
        return {
            "throughput_error_ratio": None if throughput is None else throughput.error_ratio,
            "output_tokens_per_s": predicted.metrics.output_tokens_per_s.value,
            "total_tokens_per_s": predicted.metrics.total_tokens_per_s.value,
            "step_ms": predicted.metrics.step_ms.p50.value,
            "num_differing_inputs": len(differing),
            "compute": predicted.provenance.facts["compute"],
            "profile": context.profile_name,
        }

    return run
