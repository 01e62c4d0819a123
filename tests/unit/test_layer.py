"""The Engram module against a float64 reference from the published formulae, in every dialect that has it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import MissingCapability  # noqa: E402
from tiercast_profiles.workload import Request  # noqa: E402
from tiercast_runtime.batch import BatchBuilder  # noqa: E402
from tiercast_runtime.layer import EngramLayer  # noqa: E402
from tiercast_runtime.paths.base import StagedRows  # noqa: E402
from tiercast_runtime.rows import decode_rows  # noqa: E402
from tiercast_runtime.scheduler import PrefillChunk, Sequence, StepPlan  # noqa: E402
from tiercast_runtime.synthetic import random_tokens  # noqa: E402

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_compute_thread")
SHAPE = {"num_slots": 4, "max_context_tokens": 64, "max_step_tokens": 128}


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def make_layer(model):
    generator = torch.Generator().manual_seed(5)
    return EngramLayer(model, 0, CPU, torch.float32, generator, num_slots=SHAPE["num_slots"])


def random_rows(model, count, seed=0):
    """Packed rows of ``count`` tokens, with plain values in the model's format."""
    engram, generator = model.engram, np.random.default_rng(seed)
    shape = (count * engram.num_rows_per_token, engram.row_values)
    if engram.row_format == "bf16":
        return torch.from_numpy(generator.standard_normal(shape).astype(np.float32)).bfloat16().view(torch.uint8)
    codes = generator.integers(0, 0x7F, size=shape, dtype=np.uint8) | (generator.integers(0, 2, shape) << 7)
    scales = generator.integers(120, 124, size=(shape[0], engram.scale_bytes))
    return torch.from_numpy(np.concatenate([codes, scales], axis=1).astype(np.uint8))


def test_a_dialect_without_a_gated_module_is_refused(mini_model):
    with pytest.raises(MissingCapability, match="no such module"):
        make_layer(mini_model("longcat"))


def staged(model, rows):
    count = len(rows)
    return StagedRows(rows=rows, inverse=None, num_rows=count, num_rows_read=count)


def plan_of(model, requests, decodes, chunks):
    builder = BatchBuilder(model, CPU, torch.float32, max_context_tokens=SHAPE["max_context_tokens"])
    return builder.build(StepPlan(decodes, chunks), random_tokens(model, requests, seed=0))


def random_hidden(model, count, seed=1):
    shape = (count, model.backbone.num_branches, model.backbone.hidden_size)
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def reference(layer, model, hidden, rows):
    """The module over one whole sequence, straight from arXiv 2601.07372 §2.3-2.5, in float64."""
    spec, engram = model.backbone, model.engram
    count, branches, width = hidden.shape
    hidden = hidden.double().numpy()
    values = decode_rows(engram, rows).double().numpy().reshape(count, engram.embedding_values)
    projection = layer.projection.double().numpy()
    bias = np.zeros(projection.shape[1]) if layer.bias is None else layer.bias.double().numpy()

    def norm(array, eps):
        return array / np.sqrt((array**2).mean(-1, keepdims=True) + eps)

    out = np.empty_like(hidden)
    value = values @ projection[:, branches * width :] + bias[branches * width :]
    q_weight, k_weight = layer.q_weight.double().numpy(), layer.k_weight.double().numpy()
    for branch in range(branches):
        columns = slice(branch * width, (branch + 1) * width)
        key = values @ projection[:, columns] + bias[columns]
        score = (norm(hidden[:, branch], 1e-6) * q_weight[branch] * norm(key, 1e-6) * k_weight[branch]).sum(-1)
        score = score * width**-0.5
        score = np.sign(score) * np.sqrt(np.maximum(np.abs(score), 1e-6))
        out[:, branch] = value / (1 + np.exp(-score))[:, None]
    if engram.conv_kernel_size is not None:
        kernel = layer.convolution.kernel.double().numpy()
        weight = layer.convolution.norm_weight.double().numpy()
        inputs, dilation, taps = norm(out, 1e-5) * weight, engram.ngram_orders[-1], len(kernel)
        mixed = np.zeros_like(inputs)
        for tap in range(taps):
            back = (taps - 1 - tap) * dilation
            mixed[back:] += kernel[tap] * inputs[: count - back] if back < count else 0
        out = out + mixed / (1 + np.exp(-mixed))
    assert spec.num_branches == branches
    return hidden + out


@pytest.mark.parametrize("dialect", ["v41", "demo", "qwen4exp"])
@pytest.mark.parametrize("branches", [1, 4])
def test_a_whole_prompt_equals_the_float64_reference(mini_model, dialect, branches):
    model = mini_model(dialect, backbone={"num_branches": branches})
    layer, rows, hidden = make_layer(model), random_rows(model, 23), random_hidden(model, 23)
    request = Request(0, 0, 23, 1)
    plan = plan_of(model, [request], [], [PrefillChunk(Sequence(request, 2, 0), 0, 23)])
    expected = reference(layer, model, hidden, rows)
    result = layer.forward(hidden.clone(), staged(model, rows), plan)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected - hidden.double().numpy()).max() > 0.1, "the module must do something"


@pytest.mark.parametrize("dialect", ["v41", "demo", "qwen4exp"])
@pytest.mark.parametrize("cuts", [(11, 12), (1, 2, 20), (10, 9, 3, 1), (1,) * 23])
def test_a_chunked_prompt_equals_a_whole_one(mini_model, dialect, cuts):
    model = mini_model(dialect)
    layer, rows, hidden = make_layer(model), random_rows(model, 23), random_hidden(model, 23)
    expected = reference(layer, model, hidden, rows)
    request, start, per_token = Request(0, 0, 23, 1), 0, model.engram.num_rows_per_token
    for count in cuts:
        plan = plan_of(model, [request], [], [PrefillChunk(Sequence(request, 1, 0), start, count)])
        piece = rows[start * per_token : (start + count) * per_token]
        result = layer.forward(hidden[start : start + count].clone(), staged(model, piece), plan)
        np.testing.assert_allclose(result.numpy(), expected[start : start + count], rtol=1e-4, atol=1e-4)
        start += count


@pytest.mark.parametrize("dialect", ["v41", "demo", "qwen4exp"])
@pytest.mark.parametrize("prompt", [2, 9, 13])
def test_decode_continues_the_prompt_beside_another_sequence(mini_model, dialect, prompt):
    """Two sequences, prefilled in one step and decoded together, each equal to itself alone."""
    model, total = mini_model(dialect), 21
    layer, per_token = make_layer(model), model.engram.num_rows_per_token
    rows = [random_rows(model, total, seed=s) for s in (0, 1)]
    hidden = [random_hidden(model, total, seed=s) for s in (2, 3)]
    expected = [reference(layer, model, hidden[i], rows[i]) for i in (0, 1)]
    requests = [Request(i, 0, prompt, total - prompt + 1) for i in (0, 1)]
    chunks = [PrefillChunk(Sequence(requests[i], slot, 0), 0, prompt) for i, slot in ((0, 3), (1, 0))]
    plan = plan_of(model, requests, [], chunks)
    both = torch.cat([hidden[0][:prompt], hidden[1][:prompt]])
    packed = torch.cat([rows[0][: prompt * per_token], rows[1][: prompt * per_token]])
    result = layer.forward(both, staged(model, packed), plan)
    np.testing.assert_allclose(result[:prompt].numpy(), expected[0][:prompt], rtol=1e-4, atol=1e-4)
    for position in range(prompt, total):
        decodes = [
            Sequence(requests[i], slot, 0, num_prefilled=prompt, num_outputs=position - prompt + 1)
            for i, slot in ((0, 3), (1, 0))
        ]
        plan = plan_of(model, requests, decodes, [])  # rows come in slot order: request 1 lies in slot 0
        now = slice(position * per_token, (position + 1) * per_token)
        both = torch.stack([hidden[1][position], hidden[0][position]])
        result = layer.forward(both, staged(model, torch.cat([rows[1][now], rows[0][now]])), plan)
        for row, i in enumerate((1, 0)):
            np.testing.assert_allclose(result[row].numpy(), expected[i][position], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dialect", ["v41", "demo", "qwen4exp"])
def test_a_slot_taken_over_by_a_new_sequence_forgets_the_old_one(mini_model, dialect):
    model = mini_model(dialect)
    layer, request = make_layer(model), Request(0, 0, 12, 1)
    for seed in (0, 1):
        rows, hidden = random_rows(model, 12, seed), random_hidden(model, 12, seed + 5)
        plan = plan_of(model, [request], [], [PrefillChunk(Sequence(request, 0, 0), 0, 12)])
        expected = reference(layer, model, hidden, rows)
        result = layer.forward(hidden.clone(), staged(model, rows), plan)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_rows_read_once_and_spread_by_an_inverse_give_the_same(mini_model):
    model = mini_model()
    layer, per_token, request = make_layer(model), model.engram.num_rows_per_token, Request(0, 0, 5, 1)
    plan = plan_of(model, [request], [], [PrefillChunk(Sequence(request, 0, 0), 0, 5)])
    unique = random_rows(model, 2)
    inverse = torch.from_numpy(np.random.default_rng(0).integers(0, len(unique), size=(5, per_token)))
    hidden = random_hidden(model, 5)
    spread = layer.forward(hidden.clone(), staged(model, unique[inverse.reshape(-1)]), plan)
    once = StagedRows(rows=unique, inverse=inverse, num_rows=5 * per_token, num_rows_read=len(unique))
    assert torch.equal(layer.forward(hidden.clone(), once, plan), spread)
