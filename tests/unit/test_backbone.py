"""The decoder: chunks and batches change nothing, and unsupported models are refused by name."""

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import MissingCapability  # noqa: E402
from tiercast_profiles.workload import Request  # noqa: E402
from tiercast_runtime.backbone import Backbone, kv_bytes_per_token  # noqa: E402
from tiercast_runtime.batch import BatchBuilder  # noqa: E402
from tiercast_runtime.scheduler import PrefillChunk, Sequence, StepPlan  # noqa: E402
from tiercast_runtime.synthetic import random_tokens, synthetic_step  # noqa: E402

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_compute_thread")
SHAPE = {"num_slots": 6, "max_context_tokens": 64, "max_step_tokens": 128}


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


class Runner:
    """One backbone and the requests it serves, stepped by hand."""

    def __init__(self, model, requests):
        self.model = model
        self.tokens = random_tokens(model, requests, seed=3)
        self.backbone = Backbone(model, CPU, torch.float32, seed=1, **SHAPE)
        self.builder = BatchBuilder(model, CPU, torch.float32, max_context_tokens=SHAPE["max_context_tokens"])

    def logits(self, decodes, chunks, num_draft_tokens=0):
        plan = self.builder.build(StepPlan(decodes, chunks, num_draft_tokens), self.tokens)
        hidden = self.backbone.embed(plan)
        for index in range(self.model.backbone.num_layers):
            self.backbone.layer(index, hidden, plan)
        return self.backbone.logits(hidden, plan)


def reference_logits(backbone, model, token_ids):
    """Last-token logits of one sequence, all at once, in float64 NumPy."""
    spec = model.backbone
    heads, kv_heads, dim = spec.num_attention_heads, spec.num_kv_heads, spec.head_dim

    def norm(values):
        return values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-6)

    def rotate(values):  # [tokens, heads, dim]: neighbouring pairs turn by position × frequency
        angle = np.arange(len(values))[:, None] * 10_000.0 ** (-np.arange(0, dim, 2) / dim)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        even, odd = values[..., 0::2], values[..., 1::2]
        turned = np.empty_like(values)
        turned[..., 0::2], turned[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
        return turned

    count = len(token_ids)
    hidden = np.repeat(backbone._embedding.double().numpy()[token_ids][:, None], spec.num_branches, axis=1)
    causal = np.where(np.tril(np.ones((count, count))) > 0, 0.0, -np.inf)
    for weights in backbone._layers:
        qkv = norm(hidden.mean(1)) @ weights.qkv.double().numpy()
        query = rotate(qkv[:, : heads * dim].reshape(count, heads, dim))
        key = rotate(qkv[:, heads * dim : (heads + kv_heads) * dim].reshape(count, kv_heads, dim))
        value = qkv[:, (heads + kv_heads) * dim :].reshape(count, kv_heads, dim)
        attended = np.empty_like(query)
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = query[:, head] @ key[:, shared].T / math.sqrt(dim) + causal
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            attended[:, head] = weight / weight.sum(-1, keepdims=True) @ value[:, shared]
        hidden = hidden + (attended.reshape(count, -1) @ weights.attention_out.double().numpy())[:, None]
        gate_up = norm(hidden.mean(1)) @ weights.gate_up.double().numpy()
        gate, up = gate_up[:, : spec.intermediate_size], gate_up[:, spec.intermediate_size :]
        hidden = hidden + ((gate / (1 + np.exp(-gate)) * up) @ weights.down.double().numpy())[:, None]
    return norm(hidden[-1].mean(0)) @ backbone._head.double().numpy()


@pytest.mark.parametrize("branches", [1, 2, 4])
def test_a_prompt_equals_the_float64_reference(mini_model, branches):
    model = mini_model(backbone={"num_branches": branches})
    request = Request(0, 0, 21, 1)
    runner = Runner(model, [request])
    logits = runner.logits([], [PrefillChunk(Sequence(request, 2, 0), 0, 21)])
    expected = reference_logits(runner.backbone, model, runner.tokens.token_ids[:21])
    np.testing.assert_allclose(logits[0].numpy(), expected, rtol=2e-4, atol=2e-4)


def test_decode_continues_a_prompt_as_the_reference_does(mini_model):
    model, request = mini_model(), Request(0, 0, 9, 5)
    runner = Runner(model, [request])
    sequence = Sequence(request, 1, 0)
    runner.logits([], [PrefillChunk(sequence, 0, 9)])
    for step in range(4):
        decoding = Sequence(request, 1, 0, num_prefilled=9, num_outputs=step + 1)
        logits = runner.logits([decoding], [])
        expected = reference_logits(runner.backbone, model, runner.tokens.token_ids[: 10 + step])
        np.testing.assert_allclose(logits[0].numpy(), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("cuts", [(7, 14), (1, 20), (5, 5, 11), (1,) * 21])
def test_a_chunked_prompt_equals_a_whole_one(mini_model, cuts):
    request = Request(0, 0, 21, 1)
    whole = Runner(mini_model(), [request])
    expected = whole.logits([], [PrefillChunk(Sequence(request, 0, 0), 0, 21)])
    chunked, start = Runner(mini_model(), [request]), 0
    for count in cuts:
        logits = chunked.logits([], [PrefillChunk(Sequence(request, 0, 0), start, count)])
        start += count
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "slots",
    [(0, 1, 2), (3, 1, 2), (0, 2, 3), (0, 2, 5), (0, 5)],
    ids=["dense", "unordered", "one hole", "holes", "gathered"],
)
def test_a_batch_equals_each_sequence_alone_wherever_its_slots_lie(mini_model, slots):
    model = mini_model()
    requests = [Request(i, 0, 4 + 9 * i, 3) for i in range(len(slots))]
    together, alone = Runner(model, requests), Runner(model, requests)
    for request, slot in zip(requests, slots, strict=True):
        for runner in (together, alone):
            runner.logits([], [PrefillChunk(Sequence(request, slot, 0), 0, request.prompt_tokens)])
    decoding = [
        Sequence(request, slot, 0, num_prefilled=request.prompt_tokens, num_outputs=1)
        for request, slot in zip(requests, slots, strict=True)
    ]
    batch = together.logits(decoding, [])
    order = sorted(range(len(slots)), key=lambda i: slots[i])
    for row, i in enumerate(order):
        torch.testing.assert_close(batch[row : row + 1], alone.logits([decoding[i]], []), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_indexed", [False, True])
@pytest.mark.parametrize("slots", [(0, 1, 2), (0, 2, 3), (0, 5)], ids=["dense", "one hole", "gathered"])
def test_drafts_see_what_one_token_after_the_other_sees(mini_model, monkeypatch, slots, is_indexed):
    """Each fed token sees its own sequence up to itself, in the form of a CPU and in that of a GPU's kernel."""
    monkeypatch.setattr("tiercast_runtime.batch.has_kernels", lambda device: is_indexed)
    model, drafts = mini_model(), 3
    requests = [Request(i, 0, 4 + 9 * i, 6) for i in range(len(slots))]
    together, alone = Runner(model, requests), Runner(model, requests)
    for request, slot in zip(requests, slots, strict=True):
        for runner in (together, alone):
            runner.logits([], [PrefillChunk(Sequence(request, slot, 0), 0, request.prompt_tokens)])

    def decoding(i, num_outputs):
        request = requests[i]
        return Sequence(request, slots[i], 0, request.prompt_tokens, num_outputs, accepted=(drafts,))

    tokens = together.tokens
    # All drafts right: what is fed are the text's own tokens, which the store has at the positions themselves.
    fed = {r.request_id: tokens.offsets[r.request_id] + r.prompt_tokens for r in requests}
    together.tokens = replace(tokens, fed_offsets=fed)
    batch = together.logits([decoding(i, 1) for i in range(len(slots))], [], drafts)
    expected = [alone.logits([decoding(i, 1 + ahead)], []) for i in range(len(slots)) for ahead in range(1 + drafts)]
    torch.testing.assert_close(batch, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_decodes_and_chunks_of_one_step_do_not_mix(mini_model):
    model = mini_model()
    requests = [Request(0, 0, 6, 4), Request(1, 0, 17, 2), Request(2, 0, 8, 1)]
    mixed, apart = Runner(model, requests), Runner(model, requests)
    for runner in (mixed, apart):
        runner.logits([], [PrefillChunk(Sequence(requests[0], 0, 0), 0, 6)])
        runner.logits([], [PrefillChunk(Sequence(requests[1], 1, 0), 0, 5)])
    decoding = Sequence(requests[0], 0, 0, num_prefilled=6, num_outputs=1)
    second = PrefillChunk(Sequence(requests[1], 1, 0, num_prefilled=5), 5, 12)
    third = PrefillChunk(Sequence(requests[2], 2, 0), 0, 8)
    logits = mixed.logits([decoding], [second, third])
    expected = [apart.logits([decoding], []), apart.logits([], [second]), apart.logits([], [third])]
    torch.testing.assert_close(logits, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_a_chunk_that_does_not_end_its_prompt_samples_nothing(mini_model):
    request = Request(0, 0, 21, 1)
    runner = Runner(mini_model(), [request])
    assert runner.logits([], [PrefillChunk(Sequence(request, 0, 0), 0, 20)]).shape == (0, 97)


def test_parts_of_a_layer_add_up_to_the_layer(mini_model):
    model = mini_model()
    backbone = Backbone(model, CPU, torch.float32, **SHAPE)
    builder = BatchBuilder(model, CPU, torch.float32, max_context_tokens=SHAPE["max_context_tokens"])
    plan = builder.build(*synthetic_step(model, [12, 30], [(0, 7), (8, 5)]))
    whole = backbone.layer(0, backbone.embed(plan), plan)
    # linear_only leaves the queries behind; with attention over them the second pass has all it needs.
    backbone.linear_only(0, backbone.embed(plan), plan)
    backbone.attention_only(0, plan)
    second = backbone.linear_only(0, backbone.embed(plan), plan)
    torch.testing.assert_close(second, whole)
    halves = backbone.embed(plan)
    backbone.projections_only(0, halves, plan)
    assert not torch.allclose(halves, whole)
    assert torch.equal(backbone.mlp_only(0, halves), second)


def test_weights_follow_the_seed_and_bytes_are_counted(mini_model):
    model = mini_model()
    one, same, other = (Backbone(model, CPU, torch.float32, seed=seed, **SHAPE) for seed in (1, 1, 2))
    assert torch.equal(one._head, same._head)
    assert not torch.equal(one._head, other._head)
    assert one.kv_bytes == kv_bytes_per_token(model.backbone, torch.float32) * 6 * 64
    per_layer = 32 * (32 + 2 * 16) + 32 * 32 + 32 * 96 + 48 * 32
    assert one.weight_bytes == 4 * (2 * 97 * 32 + 6 * per_layer)


def test_two_backbones_share_weights_and_nothing_else(mini_model):
    model = mini_model()
    one = Backbone(model, CPU, torch.float32, seed=1, **SHAPE)
    two = Backbone(model, CPU, torch.float32, seed=1, weights_of=one, **SHAPE)
    assert two.weights is one.weights
    assert two.weight_bytes == one.weight_bytes, "as many as it would have alone"
    assert two._kv.data_ptr() != one._kv.data_ptr()
    assert two._qkv_buffer.data_ptr() != one._qkv_buffer.data_ptr()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"is_runnable": False}, "is_runnable: false"),
        ({"attention_window_tokens": 8}, "sliding-window attention"),
        ({"num_prefill_layers": 3}, "runs fewer layers"),
        (
            {
                "moe": {
                    "num_routed_experts": 4,
                    "num_active_experts": 2,
                    "num_shared_experts": 0,
                    "expert_bytes": 10,
                    "expert_params": 10,
                }
            },
            "mixture-of-experts",
        ),
    ],
)
def test_a_model_it_cannot_compute_is_refused_by_name(mini_model, changes, words):
    with pytest.raises(MissingCapability, match=words) as caught:
        Backbone(mini_model(backbone=changes), CPU, torch.float32, **SHAPE)
    assert "mini-v41" in str(caught.value)
