"""Predict a scenario: the simulation at its nominal inputs and at both ends of their bands, beside its baselines."""

from tiercast_profiles import __version__
from tiercast_profiles.document import BOUNDS, Bound
from tiercast_profiles.errors import InfeasibleScenario, MissingCapability
from tiercast_profiles.hardware import HOST_DRIVEN_PATHS
from tiercast_profiles.record import PageCacheUse, Provenance, RunRecord
from tiercast_profiles.scenario import ResolvedScenario
from tiercast_profiles.text import load_text
from tiercast_profiles.workload import workload_sha256
from tiercast_sim.answers import kv_chain, offers, resources, time_spent
from tiercast_sim.baselines import Baseline, baselines_of, with_baseline, with_cold_pages
from tiercast_sim.interference import interference_speeds, interference_warning
from tiercast_sim.metrics import at_each, metrics, spans
from tiercast_sim.run import RunResult, request_ngrams, run
from tiercast_sim.saturation import load_warnings
from tiercast_sim.startup import start_up
from tiercast_sim.warm_up import page_cache_use


def simulate(
    resolved: ResolvedScenario, *, with_baselines: bool = True, with_bounds: bool = True, keep_samples: bool = True
) -> RunRecord:
    """Predict what the scenario would do. The same scenario and seed give the same bytes.

    Intervals come from the simulation at the optimistic and the pessimistic end of every band at once
    (Assumption A18); a penalty compares a placement with its baseline at the same end.

    Raises:
        InfeasibleScenario: the scenario does not fit at its nominal inputs; ``shortfall_bytes`` says by how much.
        MissingCapability: the profile lacks a tier, a curve or a rate the scenario needs.
        BadInput: a number in the profile cannot be used.
    """
    scenario = resolved.scenario
    text = load_text(scenario.workload.text, resolved.model)
    runs, warnings = _runs(resolved, BOUNDS if with_bounds else ("nominal",))
    baselines: dict[Baseline, dict[Bound, float]] = {}
    in_hbm: RunResult | None = None
    if with_baselines:
        for name in baselines_of(resolved):
            others, notes = _baseline(resolved, name, tuple(runs))
            warnings += notes
            if others:
                baselines[name] = at_each(others, lambda result: result.summary.statistics.output_tokens_per_s)
                in_hbm = others["nominal"] if name == "hbm" else in_hbm
    page_cache: PageCacheUse | None = None
    if resolved.placement.page_cache_residency_ratio > 0:
        page_cache = page_cache_use(resolved, runs, _runs(with_cold_pages(resolved), tuple(runs))[0])
    nominal = runs["nominal"]
    shared = resources(runs)
    if text.is_stand_in:
        warnings.append(f"vocabulary of {resolved.model.name} is not at hand: tokens are those of {text.vocabulary}")
    provenance = Provenance(
        tool_version=__version__,
        hardware_name=resolved.hardware.name,
        hardware_sha256=resolved.hardware.sha256,
        hardware_calibration=resolved.hardware.calibration,
        model_name=resolved.model.name,
        model_sha256=resolved.model.sha256,
        prices_sha256=resolved.prices.sha256,
        vocabulary=text.vocabulary,
        text_sha256=text.sha256,
        facts={
            "compute": "measured" if nominal.compute.is_measured else "roofline",
            "num_hosts": nominal.memory.num_hosts,
            "num_steps": len(nominal.steps),
            "engine": nominal.engine,
            "kv_capacity_tokens_per_replica": nominal.memory.kv_capacity_tokens,
            "table_bytes": nominal.memory.table_bytes,
        },
        warnings=tuple(
            dict.fromkeys((*run_warnings(resolved, nominal), *load_warnings(resolved, nominal, shared), *warnings))
        ),
    )
    return RunRecord(
        kind="simulated",
        scenario=scenario,
        placement=resolved.placement,
        scenario_sha256=resolved.sha256,
        workload_sha256=workload_sha256(scenario.workload, scenario.seed, text.vocabulary, text.sha256),
        provenance=provenance,
        metrics=metrics(resolved, runs, baselines).model_copy(
            update={
                "offers": offers(resolved, runs),
                "time_spent": time_spent(resolved, runs),
                "kv_chain": kv_chain(resolved, nominal, in_hbm),
                "resources": shared,
                "start_up": start_up(resolved, runs),
                "page_cache": page_cache,
            }
        ),
        samples=nominal.samples if keep_samples else None,
        spans=spans(resolved, nominal.steps) if keep_samples else (),
    )


def _runs(resolved: ResolvedScenario, bounds: tuple[Bound, ...]) -> tuple[dict[Bound, RunResult], list[str]]:
    ngrams = request_ngrams(resolved)
    runs: dict[Bound, RunResult] = {}
    warnings: list[str] = []
    for bound in bounds:
        try:
            runs[bound] = run(resolved, bound, ngrams)
        except InfeasibleScenario as error:
            if bound == "nominal":
                raise
            warnings.append(f"at the {bound} end of the bands it does not fit and is not in the intervals: {error}")
    return runs, warnings


def _baseline(
    resolved: ResolvedScenario, name: Baseline, bounds: tuple[Bound, ...]
) -> tuple[dict[Bound, RunResult], list[str]]:
    """The runs of a baseline at each bound, or nothing and the reason."""
    try:
        runs, warnings = _runs(with_baseline(resolved, name), bounds)
    except (InfeasibleScenario, MissingCapability) as error:
        return {}, [f"no penalty against {name}: {error}"]
    return runs, [f"baseline {name}: {warning}" for warning in warnings]


def run_warnings(resolved: ResolvedScenario, result: RunResult) -> list[str]:
    """What a reader must know before trusting the numbers of a run."""
    placement, hardware = resolved.placement, resolved.hardware
    warnings = list(result.compute.warnings)
    measured = result.compute.largest_measured_tokens()
    if measured is not None and result.compute.largest_step_tokens > measured:
        warnings.append(
            f"steps reach {result.compute.largest_step_tokens} tokens, compute was measured up to {measured:.0f}: "
            "extended in a straight line"
        )
    speculative = resolved.scenario.speculative
    if speculative.draft_tokens > 0 and speculative.draft_step_us is None:
        warnings.append("speculative.draft_step_us is not stated: drafts take no time, throughput is an upper bound")
    lookups = result.lookups
    if lookups is None:
        return warnings
    curve = lookups.curve
    if not curve.curve.is_calibrated:
        warnings.append(
            f"path {placement.path} of {hardware.name} is uncalibrated: its lookup times are a band, not a measurement"
        )
    if curve.largest_rows is not None and lookups.largest_rows_per_rank > curve.largest_rows:
        warnings.append(
            f"lookups reach {lookups.largest_rows_per_rank} rows, the {placement.path} curve was measured up to "
            f"{curve.largest_rows}: extended by its parameters"
        )
    num_ranks_on_host = min(resolved.num_ranks, resolved.hardware.device.num_per_host)
    is_host_driven = placement.path in HOST_DRIVEN_PATHS
    if is_host_driven and curve.curve.num_threads is None and num_ranks_on_host > 1:
        warnings.append(
            f"worker threads of the {placement.path} curve are not stated: lookups of {num_ranks_on_host} devices do "
            "not compete for host cores"
        )
    if placement.tier == "pool" and result.memory.num_hosts > 1 and "pool of all hosts" not in result.shared:
        warnings.append("pool.shared_bandwidth_gb_per_s is not stated: hosts do not hinder each other on the pool")
    footprint = curve.largest_footprint_bytes
    if footprint is not None and lookups.footprint_bytes > 2 * footprint:
        warnings.append(
            f"tables of {lookups.footprint_bytes} bytes per rank and layer, the {placement.path} curve was measured on "
            f"{footprint}: address translation may cost more"
        )
    if resolved.hardware.device.has_unified_memory and placement.tier == "dram":
        warnings.append("device and host share one memory: tables in dram free no room for KV")
    is_overlapped = placement.path != "device" and placement.prefetch != "off"
    if is_overlapped and not interference_speeds(resolved, "nominal")[2]:
        warnings.append(f"interference not measured for {placement.tier}/{placement.path}: taken as none")
    beside = interference_warning(resolved) if is_overlapped else None
    if beside is not None:
        warnings.append(beside)
    return warnings
