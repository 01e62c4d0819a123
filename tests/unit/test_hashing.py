"""Row ids: the fast hashers against the oracle, and the oracle against published numbers."""

import subprocess
import sys

import numpy as np
import pytest

from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.head_sizes import head_sizes
from tiercast_profiles.store import load_model
from tiercast_runtime import hashing, reference

# Published for DeepSeek-V4.1-Flash, Engram layers 1 and 14 (vLLM engram module, llama.cpp #28696)
PUBLISHED_ROWS = [384_006_168, 384_016_682]
PUBLISHED_PRIME_RANGES = [(16_000_057, 16_000_463), (16_000_477, 16_000_889)]
PUBLISHED_MULTIPLIERS = [
    [76632096046245, 4839876093313, 35959672319349, 73987337458391],
    [67716810739261, 51510806800915, 30921347202721, 82619226485591],
]


@pytest.fixture(scope="module")
def v41():
    return load_model("deepseek-v4.1-flash").engram


def windows_of(engram, num_tokens, seed=0):
    ids = np.random.default_rng(seed).integers(0, engram.compressed_vocab_size, num_tokens)
    return hashing.build_windows(ids, 0, num_tokens, engram.ngram_orders[-1])


def test_the_oracle_finds_the_published_table_sizes(v41):
    assert [sum(map(sum, layer)) for layer in reference.moduli(v41)] == PUBLISHED_ROWS
    ranges = [(min(map(min, layer)), max(map(max, layer))) for layer in reference.moduli(v41)]
    assert ranges == PUBLISHED_PRIME_RANGES


def test_both_prime_searches_agree(v41, mini_model):
    for engram in (v41, mini_model("v41").engram, mini_model("demo").engram):
        assert [[list(heads) for heads in layer] for layer in head_sizes(engram)] == reference.moduli(engram)


def test_multipliers_are_the_published_ones(v41):
    assert reference.multipliers(v41) == PUBLISHED_MULTIPLIERS
    assert hashing.hash_multipliers(v41).tolist() == PUBLISHED_MULTIPLIERS


def test_row_ids_of_the_published_model_equal_the_oracle(v41):
    windows = windows_of(v41, 9)
    windows[5, 2] = hashing.DEAD
    expected = reference.row_ids(v41, windows)
    assert np.array_equal(hashing.numpy_row_ids(v41, windows), expected)
    assert expected.shape == (2, 9, 24)
    assert all(ids.min() >= 0 and ids.max() < rows for ids, rows in zip(expected, PUBLISHED_ROWS, strict=True))


def test_a_hash_worked_out_by_hand(mini_model):
    engram = mini_model("v41").engram
    (m0, m1, m2, m3), _ = reference.multipliers(engram)
    ((p0, p1), (p2, p3), (p4, p5)), _ = reference.moduli(engram)
    bigram = 7 * m0 ^ 5 * m1
    trigram = bigram ^ 11 * m2
    fourgram = trigram ^ 2 * m3  # the fourth slot is dead: the pad id 2
    tops = np.cumsum([0, p0, p1, p2, p3, p4]).tolist()
    mixes = [bigram, bigram, trigram, trigram, fourgram, fourgram]
    expected = [top + mix % p for top, mix, p in zip(tops, mixes, [p0, p1, p2, p3, p4, p5], strict=True)]
    assert hashing.numpy_row_ids(engram, np.array([[7, 5, 11, -1]]))[0, 0].tolist() == expected


def test_a_dead_slot_blocks_every_farther_one_in_v41_and_only_itself_in_the_demo(mini_model):
    dead_in_the_middle, all_dead_beyond = np.array([[9, -1, 4, 8]]), np.array([[9, -1, -1, -1]])
    v41 = mini_model("v41").engram
    same = np.array_equal(hashing.numpy_row_ids(v41, dead_in_the_middle), hashing.numpy_row_ids(v41, all_dead_beyond))
    assert same
    demo = mini_model("demo").engram
    one, other = np.array([[9, -1, 4]]), np.array([[9, -1, -1]])
    assert not np.array_equal(hashing.numpy_row_ids(demo, one), hashing.numpy_row_ids(demo, other))
    assert np.array_equal(hashing.numpy_row_ids(demo, one), hashing.numpy_row_ids(demo, np.array([[9, 2, 4]])))


def test_the_folded_pad_id_can_be_given(mini_model):
    engram = mini_model("v41").engram
    at_start = hashing.build_windows(np.array([5]), 0, 1, 4)
    padded_by_hand = np.array([[5, 33, 33, 33]])
    expected = hashing.numpy_row_ids(engram, padded_by_hand)
    assert np.array_equal(hashing.numpy_row_ids(engram, at_start, folded_pad_id=33), expected)
    assert np.array_equal(reference.row_ids(engram, at_start, folded_pad_id=33), expected)


@pytest.mark.parametrize("dialect", ["v41", "demo", "qwen4exp"])
def test_torch_equals_the_oracle(mini_model, dialect):
    torch = pytest.importorskip("torch", reason="the runtime extra is not installed")
    engram = mini_model(dialect).engram
    hasher = hashing.EngramHasher(engram, torch.device("cpu"))
    for num_tokens in (0, 1, 2, 40):
        windows = windows_of(engram, num_tokens)
        windows[num_tokens // 2 :: 5, 1] = hashing.DEAD
        expected = reference.row_ids(engram, windows)
        for result in (hasher.row_ids(torch.from_numpy(windows)), hasher.torch_row_ids(torch.from_numpy(windows))):
            assert result.dtype == torch.int64
            assert np.array_equal(result.numpy(), expected)


def test_ids_beyond_the_vocabulary_wrap_as_int64_does(mini_model):
    """The guard of numpy_row_ids never lets such ids in; on a GPU nothing looks, so the arithmetic must agree."""
    torch = pytest.importorskip("torch", reason="the runtime extra is not installed")
    engram = mini_model("v41").engram
    windows = np.array([[2**62, 2**61 + 3, 12345678901234567, 60]])
    result = hashing.EngramHasher(engram, torch.device("cpu")).torch_row_ids(torch.from_numpy(windows))
    assert np.array_equal(result.numpy(), reference.row_ids(engram, windows))


def test_windows_of_a_chunk_see_the_tokens_before_it():
    ids = np.array([10, 11, 12, 13, 14])
    assert hashing.build_windows(ids, 2, 2, 4).tolist() == [[12, 11, 10, -1], [13, 12, 11, 10]]
    assert hashing.build_windows(ids, 0, 2, 3).tolist() == [[10, -1, -1], [11, 10, -1]]
    assert hashing.build_windows(ids, 5, 0, 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (np.zeros((2, 3), dtype=np.int64), r"must be int64 \[tokens, 4\]"),
        (np.zeros((2, 4), dtype=np.int32), "int32"),
        (np.full((1, 4), 61), "61; allowed are -1"),
        (np.full((1, 4), -2), "-2 … -2; allowed"),
    ],
)
def test_bad_windows_are_refused(mini_model, windows, message):
    with pytest.raises(BadInput, match=message):
        hashing.numpy_row_ids(mini_model("v41").engram, windows)


@pytest.mark.parametrize("dialect", ["v41", "demo"])
def test_an_image_span_stands_between_n_grams_as_the_oracle_has_it(mini_model, dialect):
    engram = mini_model(dialect).engram
    max_order = engram.ngram_orders[-1]
    ids = np.array([5, 6, 7, hashing.DEAD, hashing.DEAD, 8, 9, 5, 6, 7], dtype=np.int64)
    windows = hashing.build_windows(ids, 0, len(ids), max_order)
    found = hashing.numpy_row_ids(engram, windows)
    assert np.array_equal(found, reference.row_ids(engram, windows))
    if dialect == "v41":
        # the first token behind the span sees what the first token of a sequence sees
        alone = hashing.build_windows(np.array([8], dtype=np.int64), 0, 1, max_order)
        assert np.array_equal(found[:, 5], hashing.numpy_row_ids(engram, alone)[:, 0])


def test_positions_outside_the_sequence_are_refused():
    with pytest.raises(BadInput, match="not in a sequence of 3 tokens"):
        hashing.build_windows(np.arange(3), 2, 2, 4)


def test_row_ids_need_no_torch():
    code = "import sys, tiercast_runtime.hashing, tiercast_runtime.reference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_dialect_whose_hash_is_not_known_is_refused_everywhere(mini_model):
    engram = mini_model("longcat").engram
    windows = windows_of(engram, 3)
    for hash_rows in (hashing.numpy_row_ids, reference.row_ids):
        with pytest.raises(MissingCapability, match="longcat"):
            hash_rows(engram, windows)
    with pytest.raises(MissingCapability, match="longcat"):
        reference.moduli(engram)
    torch = pytest.importorskip("torch", reason="the runtime extra is not installed")
    with pytest.raises(MissingCapability, match="size it, price it or simulate it"):
        hashing.EngramHasher(engram, torch.device("cpu"))


def test_the_assumed_hash_of_qwen4exp_is_that_of_the_demo(mini_model):
    qwen, demo = mini_model("qwen4exp").engram, mini_model("demo").engram
    windows = windows_of(demo, 12)
    windows[4, 1] = hashing.DEAD
    assert np.array_equal(hashing.numpy_row_ids(qwen, windows), hashing.numpy_row_ids(demo, windows))


@pytest.mark.parametrize("num_tokens", [1, 32, 33, 256, 257, 600])
def test_every_size_takes_its_own_way_to_the_oracle_s_rows(v41, num_tokens):
    windows = windows_of(v41, num_tokens)
    windows[num_tokens // 2 :: 7, 2] = hashing.DEAD
    assert np.array_equal(hashing.NumpyHasher(v41).row_ids(windows), reference.row_ids(v41, windows))


def test_a_pad_id_beyond_the_vocabulary_wraps_as_int64_does(mini_model):
    engram = mini_model("v41").engram
    windows = np.array([[7, -1, -1, -1], [3, 4, 5, 6]])
    for pad in (2**62, -5):
        found = hashing.numpy_row_ids(engram, windows, folded_pad_id=pad)
        assert np.array_equal(found, reference.row_ids(engram, windows, folded_pad_id=pad))
