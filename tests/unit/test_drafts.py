"""Speculative decoding in the real runtime: the same tokens with and without drafts, and the simulator's own steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.compare import compare  # noqa: E402
from tiercast_profiles.drafts import accepted_drafts  # noqa: E402
from tiercast_profiles.errors import BadInput, MissingCapability  # noqa: E402
from tiercast_profiles.scenario import Speculative  # noqa: E402
from tiercast_profiles.text import fold, load_text, request_token_ids  # noqa: E402
from tiercast_profiles.workload import Request  # noqa: E402
from tiercast_runtime import measured_record  # noqa: E402
from tiercast_runtime.batch import BatchBuilder  # noqa: E402
from tiercast_runtime.bench import bench  # noqa: E402
from tiercast_runtime.drafts import fed_tokens  # noqa: E402
from tiercast_runtime.engine import Engine  # noqa: E402
from tiercast_runtime.graph_plan import graph_mode_here  # noqa: E402
from tiercast_runtime.hashing import build_windows  # noqa: E402
from tiercast_runtime.history import NgramHistory  # noqa: E402
from tiercast_runtime.layer import ShortConvolution  # noqa: E402
from tiercast_runtime.tokens import prepare_tokens  # noqa: E402
from tiercast_sim.simulate import simulate  # noqa: E402

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_compute_thread")
DRAFTS = {"draft_tokens": 3, "acceptance_ratio": 0.6}
LONG = {
    "kind": "closed_loop",
    "concurrency": 3,
    "num_requests": 8,
    "prompt_tokens": {"uniform": [3, 25]},
    "output_tokens": {"uniform": [1, 24]},
    "text": "random",
}


def run(resolved, folder):
    with Engine(resolved, CPU, folder) as engine:
        return engine.run()


def drafted(model, request, speculative, seed=0):
    text = load_text("random", model)
    ids = request_token_ids(text, model, request, seed)
    return ids, fold(ids, text, model), fed_tokens(request, ids, text, model, speculative, seed=seed)


@pytest.mark.parametrize("dialect", ["v41", "demo"])
def test_greedy_choices_are_those_of_a_run_without_drafts(mini_scenario, mini_model, tmp_path, dialect):
    """Every placement and prefetch mode, with prompts in chunks beside the steps that verify drafts."""
    model = mini_model(dialect)

    def tokens(placement, **speculative):
        return run(mini_scenario(placement, model=model, workload=LONG, speculative=speculative), tmp_path)

    plain = tokens({"tier": "hbm"})
    expected = plain.token_ids
    for ratio in (0.0, 0.6, 1.0):
        steps = set()
        for tier, prefetch in (
            ("hbm", "step_entry"),
            ("dram", "off"),
            ("dram", "step_entry"),
            ("dram", "prev_step"),
            ("nvme", "off"),
            ("nvme", "step_entry"),
            ("nvme", "prev_step"),
        ):
            result = tokens({"tier": tier, "prefetch": prefetch}, draft_tokens=3, acceptance_ratio=ratio)
            assert result.token_ids == expected, (tier, prefetch, ratio)
            steps.add(len(result.overhead_ns))
        assert len(steps) == 1
        if ratio > 0:
            assert steps.pop() < len(plain.overhead_ns)


def test_a_draft_that_left_a_trace_would_show(mini_scenario, mini_model, tmp_path, monkeypatch):
    """A ring without room for drafts forgets what the next token looks back at: the test above can fail."""
    model = mini_model("demo")
    resolved = mini_scenario({"tier": "hbm"}, model=model, workload=LONG, speculative=DRAFTS)
    expected = run(resolved, tmp_path).token_ids
    made = ShortConvolution.__init__

    def without_room(self, **options):
        made(self, **(options | {"num_draft_tokens": 0}))

    monkeypatch.setattr(ShortConvolution, "__init__", without_room)
    assert run(resolved, tmp_path).token_ids != expected


@pytest.mark.parametrize("reads_in_place", [True, False])
def test_every_step_sees_the_windows_of_the_finished_text(mini_scenario, tmp_path, monkeypatch, reads_in_place):
    """Across chunks, in slots used before and after a move to another slot."""
    monkeypatch.setattr(BatchBuilder, "reads_slots_in_place", reads_in_place)
    resolved = mini_scenario({"tier": "hbm"}, workload=LONG)
    max_order, build, num_seen = resolved.model.engram.ngram_orders[-1], BatchBuilder.build, 0

    def checked(self, plan, tokens):
        nonlocal num_seen
        batch = build(self, plan, tokens)
        decodes = sorted(plan.decodes, key=lambda sequence: sequence.slot)
        parts = [(sequence.request, sequence.decode_position, 1) for sequence in decodes]
        parts += [(chunk.sequence.request, chunk.start, chunk.count) for chunk in plan.chunks]
        expected = np.concatenate([tokens.windows(*part, max_order) for part in parts])
        assert np.array_equal(batch.windows.numpy(), expected)
        num_seen += len(expected)
        return batch

    monkeypatch.setattr(BatchBuilder, "build", checked)
    run(resolved, tmp_path)
    assert num_seen > 200


def test_a_history_without_room_for_drafts_would_show(mini_scenario, mini_model, tmp_path, monkeypatch):
    """Rejected drafts then lie where the next token looks back at: the windows, hence the rows, are other ones."""
    speculative = {"draft_tokens": 6, "acceptance_ratio": 0.3}
    resolved = mini_scenario({"tier": "hbm"}, model=mini_model(), workload=LONG, speculative=speculative)
    expected = run(resolved, tmp_path).token_ids
    made = NgramHistory.__init__
    monkeypatch.setattr(NgramHistory, "__init__", lambda self, max_order, _: made(self, max_order, 0))
    assert run(resolved, tmp_path).token_ids != expected


@given(
    prompt=st.integers(1, 9),
    output=st.integers(1, 14),
    drafts=st.integers(1, 5),
    ratio=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    number=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_accepted_drafts_are_the_text_and_rejected_ones_are_not(mini_model, prompt, output, drafts, ratio, number):
    """And the history sees behind each step what was accepted, and in it what is fed."""
    model, request = mini_model(), Request(number, 0, prompt, output)
    speculative = Speculative(draft_tokens=drafts, acceptance_ratio=ratio)
    ids, folded, fed = drafted(model, request, speculative)
    text, max_order, slot = load_text("random", model), model.engram.ngram_orders[-1], np.array([2])
    history = NgramHistory(max_order, drafts)
    history.append(slot, np.array([0]), folded[None, :prompt])
    position, last = prompt, prompt + output - 1
    assert fed.accepted == accepted_drafts(request, speculative, 0)
    for accepted, tokens, fed_ids in zip(fed.accepted, fed.token_ids, fed.folded_ids, strict=False):
        assert position < last
        for ahead, token in enumerate(tokens.tolist()):
            if position + ahead <= last:
                assert (token == ids[position + ahead]) == (ahead <= accepted)
            assert 0 <= token < model.backbone.vocab_size
        assert np.array_equal(fed_ids, fold(tokens, text, model))
        whole = build_windows(np.concatenate((folded[:position], fed_ids)), position, 1 + drafts, max_order)
        assert np.array_equal(history.append(slot, np.array([position]), fed_ids[None])[0], whole)
        position += 1 + accepted
    assert position >= last, "the steps reach the last output"


def test_drafts_of_a_real_text_stay_in_its_vocabulary(mini_scenario, mini_model):
    pytest.importorskip("tiktoken", reason="the text extra is not installed")
    model = mini_model(backbone={"vocab_size": 131_072}, engram={"compressed_vocab_size": 110_000})
    request, speculative = Request(0, 0, 30, 200), Speculative(draft_tokens=4, acceptance_ratio=0.5)
    text = load_text("docs", model)
    store = prepare_tokens((request,), text, model, 0, speculative)
    num_fed = len(store.token_ids) - 230
    assert num_fed > 0
    assert num_fed % 5 == 0
    assert store.fed_offsets == {0: 230}


def test_a_vocabulary_of_one_token_has_no_wrong_draft(mini_model):
    with pytest.raises(BadInput, match="vocabulary of one token"):
        drafted(mini_model(backbone={"vocab_size": 1}), Request(0, 0, 3, 4), Speculative(draft_tokens=1))


@given(
    cuts=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    prompt=st.integers(1, 15),
    kernel_size=st.integers(2, 4),
    dilation=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_the_convolution_forgets_rejected_drafts(cuts, prompt, kernel_size, dilation):
    """Any number accepted of four drafts in each step: outputs are bit for bit those of one token per step.

    A token is as wide as two vectors of any CPU or more: of what is left over torch takes SiLU in another way.
    """
    shape, drafts, slot = (2, 32), 4, 1
    generator = torch.Generator().manual_seed(0)
    weights = {
        "norm_weight": torch.randn(shape, generator=generator),
        "kernel": torch.randn((kernel_size, *shape), generator=generator),
        "dilation": dilation,
        "num_slots": 2,
    }
    plain, speculative = ShortConvolution(**weights), ShortConvolution(**weights, num_draft_tokens=drafts)
    total = prompt + sum(1 + accepted for accepted in cuts)
    inputs = torch.randn((total, *shape), generator=generator)
    expected, found = [], []
    chunk = _step(slot, 0, prompt, is_chunk=True)
    expected.append(plain.forward(inputs[:prompt].clone(), chunk))
    found.append(speculative.forward(inputs[:prompt].clone(), chunk))
    for position in range(prompt, total):
        expected.append(plain.forward(inputs[position : position + 1].clone(), _step(slot, position, 1)))
    position = prompt
    for accepted in cuts:
        wrong = torch.randn((drafts - accepted, *shape), generator=generator)
        fed = torch.cat((inputs[position : position + 1 + accepted], wrong))
        found.append(speculative.forward(fed, _step(slot, position, 1 + drafts))[: 1 + accepted])
        position += 1 + accepted
    assert torch.equal(torch.cat(found), torch.cat(expected))


class _step:  # noqa: N801 - what ShortConvolution reads of a plan
    def __init__(self, slot, start, count, *, is_chunk=False):
        self.num_decodes = 0 if is_chunk else count
        self.chunks = ()
        self.slots, self.positions = torch.full((count,), slot), torch.arange(start, start + count)
        if is_chunk:
            self.chunks = (type("Chunk", (), {"first_row": 0, "count": count, "slot": slot, "start": start}),)


@pytest.mark.parametrize("budget", [4, 7, 16, 200])
def test_steps_and_waste_are_those_the_simulator_predicts(mini_scenario, tmp_path, budget):
    engine = {"max_num_batched_tokens": budget, "max_num_seqs": 3, "kv_block_tokens": 4}
    resolved = mini_scenario({"tier": "dram"}, workload=LONG, speculative=DRAFTS, engine=engine)
    measured, predicted = bench(resolved, folder=tmp_path), simulate(resolved)
    compared = compare(measured, predicted)
    assert compared.steps is not None
    assert compared.steps.is_identical
    steps = measured.samples.steps
    num_tokens = [p + 4 * d for p, d in zip(steps.prefill_tokens, steps.decode_sequences, strict=True)]
    assert max(num_tokens) <= budget
    assert list(steps.rows) == [n * 2 * resolved.model.engram.num_rows_per_token for n in num_tokens]
    assert steps.rows == predicted.samples.steps.rows
    wasted = compared.metric("wasted_row_ratio")
    assert wasted is not None
    assert wasted.measured.value == pytest.approx(wasted.predicted.value)
    assert 0 < wasted.measured.value < 1


def test_drafts_behind_the_last_output_have_a_place_in_the_cache(mini_scenario, tmp_path):
    """A request that fills its slot to the last token, and more drafts than the alignment of a slot leaves over."""
    workload = {**LONG, "prompt_tokens": {"fixed": 28}, "output_tokens": {"fixed": 4}}
    resolved = mini_scenario({"tier": "dram"}, workload=workload, speculative={**DRAFTS, "draft_tokens": 15})
    plain = mini_scenario({"tier": "dram"}, workload=workload)
    assert run(resolved, tmp_path).token_ids == run(plain, tmp_path).token_ids


def test_a_record_says_what_drafts_cost_and_what_not(mini_scenario, tmp_path):
    record = bench(mini_scenario({"tier": "dram"}, workload=LONG, speculative=DRAFTS), folder=tmp_path)
    assert record.provenance.facts["drafts"] == measured_record.DRAFTS_ARE
    assert measured_record.FREE_DRAFTS in record.provenance.warnings
    stated = bench(
        mini_scenario({"tier": "none"}, workload=LONG, speculative={**DRAFTS, "draft_step_us": 0.0}), folder=tmp_path
    )
    assert measured_record.FREE_DRAFTS not in stated.provenance.warnings
    assert stated.metrics.wasted_row_ratio is None
    without = bench(mini_scenario({"tier": "dram"}, workload=LONG), folder=tmp_path)
    assert "drafts" not in without.provenance.facts
    assert without.metrics.wasted_row_ratio is None


def test_a_draft_model_that_takes_time_is_refused(mini_scenario, tmp_path):
    with pytest.raises(MissingCapability) as caught:
        bench(mini_scenario({"tier": "hbm"}, speculative={**DRAFTS, "draft_step_us": 50.0}), folder=tmp_path)
    assert "speculative.draft_step_us=50" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_steps_with_drafts_run_eagerly_and_say_so(sim_scenario):
    placement = sim_scenario({"tier": "dram", "path": "uva", "graph_mode": "full"}).placement
    mode, reason = graph_mode_here(placement, CPU, has_backend=True, has_drafts=True)
    assert mode == "eager"
    assert "drafts" in reason
    assert graph_mode_here(placement, CPU, has_backend=True)[0] == "full"


def test_token_stores_without_drafts_have_none(mini_model):
    model = mini_model()
    store = prepare_tokens((Request(0, 0, 5, 4),), load_text("random", model), model, 0)
    assert (store.fed_offsets, store.accepted, len(store.token_ids)) == ({}, {}, 9)
    assert np.array_equal(store.folded_ids, fold(store.token_ids, load_text("random", model), model))
