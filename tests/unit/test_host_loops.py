"""The compiled loops of the host and their NumPy form: the same rows, the same refusals."""

import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

import tiercast_runtime  # noqa: E402
from tiercast_profiles.errors import BadInput  # noqa: E402
from tiercast_runtime import compiled_hash, hashing, host_loops, reference, table  # noqa: E402
from tiercast_runtime.paths.cpu_gather import CpuGatherPath  # noqa: E402

CPU = torch.device("cpu")
NUM_ROWS = 301


@pytest.fixture(params=["compiled", "numpy"])
def form(request, monkeypatch):
    """Each test below runs with numba and as on a machine that has none."""
    host_loops.compiled_loops.cache_clear()
    if request.param == "numpy":
        monkeypatch.setitem(sys.modules, "tiercast_runtime.compiled", None)
        monkeypatch.delattr(tiercast_runtime, "compiled", raising=False)
    else:
        pytest.importorskip("numba", reason="numba is not installed")
    yield request.param
    host_loops.compiled_loops.cache_clear()


def parts_of(widths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (NUM_ROWS, width), dtype=np.uint8) for width in widths]


@pytest.mark.parametrize(
    ("widths", "row_bytes"),
    [((264,), 264), ((256, 8), 264), ((320,), 264), ((1,), 1), ((33,), 33), ((64, 1), 65), ((4096,), 4096)],
)
@pytest.mark.parametrize("count", [0, 1, 2, 31, 33, 700])
def test_a_gather_puts_the_parts_of_a_row_side_by_side(form, widths, row_bytes, count):
    parts = parts_of(widths)
    ids = np.random.default_rng(count).integers(0, NUM_ROWS, count)
    ids[: count // 2] = np.arange(count // 2) % 2 * (NUM_ROWS - 1)  # first and last row, again and again
    gather = host_loops.RowGather(parts, row_bytes)
    assert gather.is_compiled is (form == "compiled")
    guarded = np.full((count + 2, row_bytes), 7, dtype=np.uint8)
    gather.gather(ids, guarded[1:-1])
    assert np.array_equal(guarded[1:-1], np.concatenate([part[ids] for part in parts], axis=1)[:, :row_bytes])
    assert (guarded[[0, -1]] == 7).all(), "nothing beside the target is written"


@pytest.mark.usefixtures("form")
def test_a_buffer_takes_the_row_ids_of_one_step_after_the_other(mini_model):
    engram = mini_model("v41").engram
    hasher = hashing.EngramHasher(engram, CPU)
    buffer, generator = hasher.buffer(3), np.random.default_rng(0)
    for _ in range(3):
        windows = generator.integers(-1, engram.compressed_vocab_size, (3, engram.ngram_orders[-1]))
        found = hasher.row_ids(torch.from_numpy(windows), buffer)
        assert found is buffer.row_ids
        assert np.array_equal(found.numpy(), reference.row_ids(engram, windows))
    for count in (0, 2, 4):
        other = torch.zeros((count, engram.ngram_orders[-1]), dtype=torch.int64)
        with pytest.raises(BadInput, match=f"room for the row ids of 3 tokens; windows has {count}"):
            hasher.row_ids(other, buffer)
    assert np.array_equal(found.numpy(), reference.row_ids(engram, windows)), "a refused step writes nothing"


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("bad", [-1, NUM_ROWS, 2**62, -(2**63)])
@pytest.mark.parametrize("place", [0, 39])
def test_an_id_outside_the_table_is_refused_and_nothing_is_written(bad, place):
    ids, target = np.arange(40), np.full((40, 264), 7, dtype=np.uint8)
    ids[place] = bad
    outside = rf"row id {bad} \(number {place} of the lookup\) lies outside the table: the table has rows 0 … 300"
    with pytest.raises(BadInput, match=outside):
        host_loops.RowGather(parts_of((256, 8)), 264).gather(ids, target)
    assert (target == 7).all()


@pytest.mark.usefixtures("form")
def test_ids_and_targets_that_are_not_contiguous_are_served_all_the_same():
    parts = parts_of((264,))
    ids, target = np.arange(40)[::2], np.zeros((20, 300), dtype=np.uint8)[:, :264]
    host_loops.RowGather(parts, 264).gather(ids, target)
    assert np.array_equal(target, parts[0][ids])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_path_serves_alike_in_both_forms(form, mini_model, num_threads):
    engram = mini_model("v41").engram
    for layout in ("packed", "split", "padded"):
        path = CpuGatherPath([table.ResidentTable(engram, 0, layout, CPU)], CPU, num_threads)
        assert path.facts["gather_is_compiled"] is (form == "compiled")
        whole = torch.from_numpy(np.random.default_rng(1).integers(0, 100, (1700, engram.num_rows_per_token)))
        for ids in (whole[:1], whole[:, ::2], whole.T, whole[:0], whole):
            staged = path.fetch(0, ids)
            assert np.array_equal(staged.rows.numpy(), table.expected_rows(engram, 0, ids.reshape(-1).numpy()))
            assert staged.num_rows == staged.num_rows_read == ids.numel()
        late = whole.clone()
        late[-1, -1] = -1  # in the last thread's share
        with pytest.raises(BadInput, match="the table has rows 0 …"):
            path.fetch(0, late)
        with pytest.raises(BadInput, match="must be int64"):
            path.fetch(0, whole.int())
        path.close()


def test_a_lookup_of_another_size_leaves_the_one_before_untouched(mini_model):
    engram = mini_model("v41").engram
    path = CpuGatherPath([table.ResidentTable(engram, 0, "packed", CPU)], CPU)
    kept = []
    for count in (3, 5, 3, 4, 700, 3, 700):
        ids = torch.randint(0, 100, (count, 2), generator=torch.Generator().manual_seed(count))
        kept.append((path.fetch(0, ids), ids))
        for staged, asked in kept[-2:]:
            assert staged.num_rows == asked.numel() == len(staged.rows)
            assert np.array_equal(staged.rows.numpy(), table.expected_rows(engram, 0, asked.reshape(-1).numpy()))
    path.close()


@pytest.mark.parametrize("dialect", ["v41", "demo"])
def test_the_hash_is_the_oracles_in_both_forms(form, mini_model, dialect):
    engram = mini_model(dialect).engram
    hasher = hashing.EngramHasher(engram, CPU)
    assert (hasher._compiled is not None) is (form == "compiled")
    generator = np.random.default_rng(0)
    for count in (0, 1, 2, 33, 300):
        windows = generator.integers(-1, engram.compressed_vocab_size, (count, engram.ngram_orders[-1]))
        windows[: count // 2] = abs(windows[: count // 2])
        expected = reference.row_ids(engram, windows)
        assert np.array_equal(hasher.row_ids(torch.from_numpy(windows)).numpy(), expected)
        turned = torch.from_numpy(np.asfortranarray(windows))
        assert np.array_equal(hasher.row_ids(turned).numpy(), expected)


@pytest.mark.usefixtures("form")
def test_row_ids_stay_what_they_were_while_later_steps_are_hashed(mini_model):
    engram = mini_model("v41").engram
    hasher = hashing.EngramHasher(engram, CPU)
    generator = np.random.default_rng(0)
    kept = []
    for number in range(80):
        windows = generator.integers(0, engram.compressed_vocab_size, (1 + number % 3, engram.ngram_orders[-1]))
        with torch.inference_mode(mode=number % 2 == 0):
            kept.append((hasher.row_ids(torch.from_numpy(windows)), windows))
    assert all(np.array_equal(found.numpy(), reference.row_ids(engram, windows)) for found, windows in kept)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("bad", [-2, -(2**63), "vocabulary", 2**62])
def test_an_id_outside_the_vocabulary_is_refused(mini_model, bad):
    engram = mini_model("v41").engram
    windows = torch.zeros((9, engram.ngram_orders[-1]), dtype=torch.int64)
    windows[8, -1] = engram.compressed_vocab_size if bad == "vocabulary" else bad
    hasher = hashing.EngramHasher(engram, CPU)
    with pytest.raises(BadInput, match="allowed are -1"):
        hasher.row_ids(windows)
    with pytest.raises(BadInput, match="must be int64"):
        hasher.row_ids(windows.int())
    with pytest.raises(BadInput, match="must be int64"):
        hasher.row_ids(windows[:, 1:])


def test_a_pad_id_outside_the_vocabulary_is_left_to_numpy(mini_model):
    engram = mini_model("v41").engram
    pad = 2**62 + 12345
    assert compiled_hash.CompiledHasher.find(engram, pad) is None
    windows = np.full((3, engram.ngram_orders[-1]), -1)
    hasher = hashing.EngramHasher(engram, CPU, pad)
    assert np.array_equal(hasher.row_ids(torch.from_numpy(windows)).numpy(), reference.row_ids(engram, windows, pad))
