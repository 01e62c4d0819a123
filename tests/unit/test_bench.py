"""The bench: a whole measured record from a mini model, and every knob it lacks refused by name."""

import itertools

import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import BadInput, FileProblem, InfeasibleScenario, MissingCapability  # noqa: E402
from tiercast_profiles.record import RunRecord  # noqa: E402
from tiercast_profiles.stats import SampleStatistics  # noqa: E402
from tiercast_runtime import bench as bench_module  # noqa: E402
from tiercast_runtime import together, turns  # noqa: E402
from tiercast_runtime.bench import (  # noqa: E402
    bench,
    bench_groups,
    bench_in_rounds,
)
from tiercast_runtime.measured_record import git_commit  # noqa: E402
from tiercast_runtime.table_folders import default_table_folder  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_compute_thread")
STEADY = {
    "kind": "closed_loop",
    "concurrency": 2,
    "num_requests": 4,
    "prompt_tokens": {"fixed": 9},
    "output_tokens": {"fixed": 6},
    "text": "random",
}


def test_a_measured_record_is_whole_and_survives_its_file(mini_scenario, tmp_path):
    resolved = mini_scenario({"tier": "nvme"}, workload=STEADY)
    seen = []
    threads = torch.get_num_threads()
    record = bench(resolved, repeats=3, folder=tmp_path / "tables", progress=seen.append)
    assert torch.get_num_threads() == threads
    assert RunRecord.model_validate_json(record.to_json()) == record
    assert record.kind == "measured"
    assert record.scenario_sha256 == resolved.sha256
    assert seen == sorted(seen)
    assert seen[-1] == 1.0

    metrics = record.metrics
    assert metrics.output_tokens_per_s.basis == "spread"
    assert metrics.output_tokens_per_s.low <= metrics.output_tokens_per_s.value <= metrics.output_tokens_per_s.high
    assert metrics.rows_per_token == 2 * resolved.model.engram.num_rows_per_token
    assert 0 < metrics.unique_row_ratio < 1
    assert 0 <= metrics.hidden_ratio.value <= 1
    assert metrics.kv_capacity_tokens.value > 100_000
    engram = resolved.model.engram
    assert metrics.memory_bytes["nvme"] >= 2 * 600 * engram.row_bytes
    assert metrics.memory_bytes["hbm"] > 0
    assert [layer.layer_id for layer in metrics.layers] == [1, 3]
    assert metrics.layers[0].window_us.value < metrics.layers[1].window_us.value
    assert metrics.layers[0].required_gb_per_s.value > metrics.layers[1].required_gb_per_s.value > 0

    facts = record.provenance.facts
    assert facts["graph_mode_run"] == "eager"
    assert facts["repeats"] == 3
    assert facts["warm_up_steps"] > 0
    assert facts["torch_version"] == torch.__version__
    assert facts["steps"] == len(record.samples.steps.start_ns)


def test_samples_are_those_of_the_repeat_with_the_median_throughput(mini_scenario, tmp_path):
    record = bench(mini_scenario({"tier": "none"}, workload=STEADY), repeats=3, folder=tmp_path)
    statistics = SampleStatistics(record.samples)
    assert statistics.output_tokens_per_s == pytest.approx(record.metrics.output_tokens_per_s.value)


def test_figures_taken_between_runs_are_averaged_and_those_once_missing_left_out(mini_scenario, tmp_path):
    taken = [{"pace_a": 1.0, "pace_b": 5.0}, {"pace_a": 2.0}, {"pace_a": 4.0, "pace_b": 5.0}]
    (record,) = bench_in_rounds(
        [mini_scenario({"tier": "none"}, workload=STEADY)], repeats=2, folder=tmp_path, between=lambda: taken.pop(0)
    )
    facts = record.provenance.facts
    assert facts["pace_a"] == round((1.0 + 2.0 + 4.0) / 3, 4), "before the rounds, between them and at the end"
    assert "pace_b" not in facts
    assert "turns" not in facts, "it ran alone"
    assert taken == []


def test_scenarios_run_in_turns_and_each_record_is_as_of_a_run_alone(mini_scenario, tmp_path):
    scenarios = [mini_scenario({"tier": tier}, workload=STEADY) for tier in ("none", "dram", "nvme")]
    records = bench_in_rounds(scenarios, repeats=2, folder=tmp_path)
    for resolved, record in zip(scenarios, records, strict=True):
        alone = bench(resolved, folder=tmp_path)
        assert record.scenario_sha256 == resolved.sha256
        assert record.samples.steps.decode_sequences == alone.samples.steps.decode_sequences
        assert record.samples.steps.rows_read == alone.samples.steps.rows_read
        assert record.metrics.memory_bytes == alone.metrics.memory_bytes
        assert len(record.metrics.runs_output_tokens_per_s) == 2
        assert record.provenance.facts["turns"] >= 2
        assert "turns" not in alone.provenance.facts


@pytest.fixture
def groups(mini_scenario):
    """Two works, each in two arms."""
    works = {"few": STEADY, "many": {**STEADY, "num_requests": 9}}
    return {
        name: [mini_scenario({"tier": tier}, workload=work) for tier in ("none", "nvme")]
        for name, work in works.items()
    }


def test_groups_go_on_after_each_other_and_keep_their_own_turns_and_figures(groups, tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "STOP_EVERY_NS", 0)  # stops behind every lap
    looks, served, shares, made = itertools.count(), [], [], together.Engine

    class Watched(made):
        def steps(self, progress=None):
            going = super().steps(progress)
            while True:
                served.append(self.resolved.scenario.workload.num_requests)
                try:
                    next(going)
                except StopIteration as end:
                    return end.value
                yield

    def between():
        return {"pace_a": float(next(looks))}

    monkeypatch.setattr(together, "Engine", Watched)

    found = bench_groups(groups, folder=tmp_path, progress=shares.append, between=between)
    assert list(found) == ["few", "many"]
    turned = [count for count, _ in itertools.groupby(served)]
    assert turned[:4] == [4, 9, 4, 9], "a stretch of one, a stretch of the other"
    paces = set()
    for name, records in found.items():
        for resolved, record in zip(groups[name], records, strict=True):
            alone = bench(resolved, folder=tmp_path)
            assert record.scenario_sha256 == resolved.sha256
            assert record.samples.steps.rows_read == alone.samples.steps.rows_read
        facts = [record.provenance.facts for record in records]
        assert facts[0]["pace_a"] == facts[1]["pace_a"]
        assert facts[0]["turns"] == facts[1]["turns"] >= 2
        paces.add(facts[0]["pace_a"])
    assert len(paces) == 2, "each has the figures of its own stretches"
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_group_that_cannot_run_is_given_back_as_its_error(groups, tmp_path, monkeypatch):
    made = together.Engine

    def engine(resolved, *given, **named):
        if resolved.scenario.workload.num_requests != 9 and resolved.placement.tier == "nvme":
            raise InfeasibleScenario("no room")
        return made(resolved, *given, **named)

    monkeypatch.setattr(together, "Engine", engine)
    found = bench_groups(groups, folder=tmp_path)
    assert str(found["few"]) == "no room"
    assert [record.placement.tier for record in found["many"]] == ["none", "nvme"]


def test_a_group_that_has_no_room_beside_others_comes_after_them(groups, tmp_path, monkeypatch):
    opened, made = [], together.Engine

    class Crowded(made):
        def __init__(self, resolved, *given, others, **named) -> None:
            if any(other.resolved.scenario.workload != resolved.scenario.workload for other in others):
                raise InfeasibleScenario("no room beside others")
            super().__init__(resolved, *given, others=others, **named)
            opened.append(resolved.scenario.workload.num_requests)

    monkeypatch.setattr(together, "Engine", Crowded)
    found = bench_groups(groups, folder=tmp_path)
    assert opened == [4, 4, 9, 9]
    assert [len(records) for records in found.values()] == [2, 2]


def test_where_half_of_memory_is_taken_groups_follow_one_another(groups, tmp_path, monkeypatch):
    free = iter((100, 49))
    monkeypatch.setattr(bench_module, "available_host_bytes", lambda: next(free))
    opened, made = [], together.Engine

    class Watched(made):
        def __init__(self, resolved, *given, **named) -> None:
            super().__init__(resolved, *given, **named)
            opened.append(("open", resolved.scenario.workload.num_requests))

        def close(self) -> None:
            opened.append(("close", self.resolved.scenario.workload.num_requests))
            super().close()

    monkeypatch.setattr(together, "Engine", Watched)
    found = bench_groups(groups, folder=tmp_path)
    assert [len(records) for records in found.values()] == [2, 2]
    few = STEADY["num_requests"]
    assert opened[:4] == 2 * [("open", few)] + 2 * [("close", few)], "closed before the next is opened"


def test_without_tables_a_record_has_no_lookup_metrics(mini_scenario, tmp_path):
    metrics = bench(mini_scenario({"tier": "none"}, workload=STEADY), folder=tmp_path).metrics
    assert metrics.hidden_ratio is None
    assert metrics.unique_row_ratio is None
    assert metrics.rows_per_token == 0
    assert metrics.layers == ()
    assert set(metrics.memory_bytes) == {"hbm"}
    assert metrics.output_tokens_per_s.basis == "point"


def test_table_files_are_kept_and_used_again(mini_scenario, tmp_path):
    resolved = mini_scenario({"tier": "nvme"}, workload=STEADY)
    bench(resolved, folder=tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert kept
    bench(resolved, folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == kept


@pytest.mark.parametrize(
    ("placement", "sections", "words"),
    [
        ({"tier": "hbm"}, {"speculative": {"draft_tokens": 2, "draft_step_us": 9}}, "speculative.draft_step_us=9"),
        ({"tier": "hbm"}, {"engine": {"kv_reservation": "on_demand"}}, "engine.kv_reservation 'on_demand'"),
        ({"tier": "hbm"}, {"engine": {"prefix_caching": True}}, "engine.prefix_caching true"),
        ({"tier": "hbm"}, {"parallel": {"data": 2}}, "data=2: the runtime serves one replica"),
        (
            {"tier": "hbm"},
            {"parallel": {"data": 4}},
            "set data to 1 and the load (concurrency or rate, num_requests) to 1/4",
        ),
        ({"tier": "nvme", "page_cache_residency_ratio": 0.5}, {}, "page_cache_residency_ratio=0.5"),
    ],
)
def test_a_knob_the_runtime_lacks_is_refused_not_ignored(mini_scenario, tmp_path, placement, sections, words):
    with pytest.raises(MissingCapability) as caught:
        bench(mini_scenario(placement, **sections), folder=tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_copies_per_numa_node_are_refused_where_there_are_several_nodes(mini_scenario, cpu_hardware, tmp_path):
    host = cpu_hardware.host.model_copy(update={"num_numa_nodes": 2})
    hardware = cpu_hardware.model_copy(update={"host": host})
    with pytest.raises(MissingCapability, match="per_numa"):
        bench(mini_scenario({"tier": "dram", "replication": "per_numa"}, hardware=hardware), folder=tmp_path)


def test_a_profile_of_another_kind_of_machine_is_refused(mini_scenario, cpu_hardware, tmp_path):
    device = cpu_hardware.device.model_copy(update={"kind": "rocm"})
    hardware = cpu_hardware.model_copy(update={"device": device})
    with pytest.raises(MissingCapability, match="rocm device"):
        bench(mini_scenario({"tier": "hbm", "graph_mode": "eager"}, hardware=hardware), folder=tmp_path)


def test_repeats_out_of_range_are_refused(mini_scenario, tmp_path):
    with pytest.raises(BadInput, match="repeats=0"):
        bench(mini_scenario({"tier": "none"}), repeats=0, folder=tmp_path)


def test_a_table_folder_that_cannot_be_made_is_one_clear_line(mini_scenario, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileProblem, match="cannot be made"):
        bench(mini_scenario({"tier": "nvme"}), folder=tmp_path / "file" / "tables")


def test_a_cache_with_fewer_slots_than_wanted_is_a_warning(mini_scenario, cpu_hardware, tmp_path):
    """Room for the cache of two sequences, and a workload that could run three."""
    resolved = mini_scenario({"tier": "none"}, engine={"max_num_batched_tokens": 16, "kv_block_tokens": 4})
    from tiercast_profiles.workload import draw_requests
    from tiercast_runtime.capacity import plan_kv

    requests = draw_requests(resolved.scenario.workload, 0)
    cpu = torch.device("cpu")
    whole = plan_kv(resolved, requests, cpu, torch.float32, 0)
    surplus = (whole.room_tokens - 2 * whole.max_context_tokens - 8) * whole.bytes_per_token
    capacity = cpu_hardware.device.memory_capacity_gb.value - surplus / 0.9 / 1e9
    device = cpu_hardware.device.model_copy(
        update={"memory_capacity_gb": type(cpu_hardware.device.memory_capacity_gb)(value=capacity)}
    )
    hardware = cpu_hardware.model_copy(update={"device": device})
    record = bench(
        mini_scenario({"tier": "none"}, hardware=hardware, engine={"max_num_batched_tokens": 16, "kv_block_tokens": 4}),
        folder=tmp_path,
    )
    assert record.provenance.facts["kv_slots"] == 2
    assert any("2 slots" in warning and "could use 3" in warning for warning in record.provenance.warnings)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_table_folder() == tmp_path / "tiercast" / "tables"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_table_folder() == tmp_path / ".cache" / "tiercast" / "tables"


def test_the_commit_is_read_from_the_checkout_or_unknown(tmp_path):
    assert git_commit(tmp_path) is None
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert git_commit(tmp_path) is None
    (git / "packed-refs").write_text("# pack-refs\nabc123 refs/heads/main\n")
    assert git_commit(tmp_path / "inside") == "abc123"
    (git / "refs" / "heads" / "main").write_text("def456\n")
    assert git_commit(tmp_path) == "def456"
    (git / "HEAD").write_text("0123abcd\n")
    assert git_commit(tmp_path) == "0123abcd"


def test_the_commit_of_a_worktree_is_that_of_its_own_branch(tmp_path):
    git, tree = tmp_path / "main" / ".git", tmp_path / "tree"
    own = git / "worktrees" / "tree"
    for folder in (own, git / "refs" / "heads", tree):
        folder.mkdir(parents=True)
    (git / "HEAD").write_text("0123abcd\n")
    (git / "refs" / "heads" / "side").write_text("def456\n")
    (own / "HEAD").write_text("ref: refs/heads/side\n")
    (own / "commondir").write_text("../..\n")
    (tree / ".git").write_text(f"gitdir: {own}\n")
    assert git_commit(tree) == "def456"
    (tree / ".git").write_text("gitdir: ../nowhere\n")
    assert git_commit(tree) is None
