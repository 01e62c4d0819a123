"""Sharded lookups between real processes over gloo, and the arithmetic of shards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import BadInput, FileProblem  # noqa: E402
from tiercast_profiles.head_sizes import head_sizes, table_rows  # noqa: E402
from tiercast_profiles.store import load_model  # noqa: E402
from tiercast_runtime import shard, table  # noqa: E402
from tiercast_runtime.content import expected_rows  # noqa: E402
from tiercast_runtime.rows import from_parts  # noqa: E402

CPU = torch.device("cpu")
LAYOUTS = ["packed", "split", "padded"]
needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="this torch has no gloo"
)


def run_ranks(num_ranks, folder, story):
    """What each rank printed last, read as JSON."""
    script = Path(__file__).with_name("sharded_rank.py")
    # loopback: a test machine's own name need not resolve
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(num_ranks), str(folder), story],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(num_ranks)
    ]
    try:
        ended = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * num_ranks, "\n".join(error for _, error in ended)
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


@needs_gloo
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_every_rank_has_the_rows_of_the_oracle(num_ranks, tmp_path):
    seen = run_ranks(num_ranks, tmp_path, "rows")
    expected = {"v41 cpu_gather": 12, "v41 disk": 12, "demo cpu_gather": 8, "demo disk": 8}
    assert seen == [{name: columns // num_ranks for name, columns in expected.items()}] * num_ranks


@needs_gloo
def test_ranks_that_disagree_fail_or_die_end_in_one_line_everywhere(tmp_path):
    first, second = run_ranks(2, tmp_path, "trouble")
    for texts in (first, second):
        assert "num_tokens by rank is 7, 6" in texts[0]
        assert "layer_index by rank is 0, 1" in texts[1]
        assert "num_tokens by rank is 7, 150" in texts[2]
        assert all("\n" not in text for text in texts)
    assert first[3].startswith("BadInput: row ids of columns 0 … 5 span")
    assert second[3] == "TiercastError: rank 0 could not fetch its columns of layer 4; its own message says why"
    assert "rank 0 of 2: another rank has ended or did not answer in time" in first[4]
    assert (len(first), len(second)) == (5, 4)


@given(st.integers(1, 3), st.integers(1, 8), st.integers(2, 500), st.data())
@settings(max_examples=60, deadline=None)
def test_every_row_and_column_belongs_to_exactly_one_rank(num_orders, num_heads, start, data):
    engram = load_model("tiny").engram.model_copy(
        update={
            "ngram_orders": tuple(range(2, 2 + num_orders)),
            "num_heads_per_order": num_heads,
            "rows_per_head": (start,) * num_orders,
        }
    )
    num_ranks = data.draw(st.sampled_from(shard.shard_counts(engram)))
    shards = [shard.HeadShard(engram, rank, num_ranks) for rank in range(num_ranks)]
    assert [column for one in shards for column in one.columns] == list(range(engram.num_rows_per_token))
    for layer, num_rows in enumerate(table_rows(engram)):
        ranges = [one.rows(layer) for one in shards]
        assert [row for rows in ranges for row in rows] == list(range(num_rows))
        sizes = [size for order in head_sizes(engram)[layer] for size in order]
        tops = np.cumsum(sizes)
        ids = torch.from_numpy(np.stack([tops - sizes, tops - 1]))  # first and last row of every head
        for one, rows in zip(shards, ranges, strict=True):
            local = one.local_ids(layer, ids)
            assert 0 <= int(local.min()) <= int(local.max()) == len(rows) - 1
            assert torch.equal(local + rows.start, ids[:, one.columns.start : one.columns.stop])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tier", ["hbm", "dram", "nvme"])
def test_the_parts_of_all_ranks_are_the_table(mini_model, tmp_path, tier, layout):
    engram = mini_model("v41").engram
    shards = [shard.HeadShard(engram, rank, 3) for rank in range(3)]
    made = [shard.build_shard_tables(one, tier, layout, CPU, tmp_path) for one in shards]
    for layer, num_rows in enumerate(table_rows(engram)):
        parts = [tables[layer] for tables in made]
        assert sum(part.size_bytes for part in parts) == num_rows * engram.stored_row_bytes(layout)
        assert [part.first_row for part in parts] == [one.rows(layer).start for one in shards]
        for part, one in zip(parts, shards, strict=True):
            ids = np.array(one.rows(layer))
            if tier == "nvme":
                body = np.fromfile(part.path, dtype=np.uint8)
                ends = np.array(part.file.part_offsets) + part.num_rows * np.array(part.part_widths)
                arrays = [body[at:end] for at, end in zip(part.file.part_offsets, ends, strict=True)]
                cut = zip(arrays, part.part_widths, strict=True)
                stored = tuple(torch.from_numpy(array.reshape(-1, width)) for array, width in cut)
            else:
                stored = part.parts
            assert np.array_equal(from_parts(engram, stored).numpy(), expected_rows(engram, layer, ids))


def test_a_part_of_another_range_is_not_taken_for_this_one(mini_model, tmp_path):
    engram = mini_model("v41").engram
    whole = table.FileTable(engram, 0, "packed", tmp_path, num_rows=50)
    part = table.FileTable(engram, 0, "packed", tmp_path, num_rows=50, first_row=7)
    assert whole.path != part.path
    assert "50 rows from row 7" in part.label
    assert table.FileTable(engram, 0, "packed", tmp_path, num_rows=50, first_row=7).file.was_reused
    part.path.replace(whole.path)
    with pytest.raises(FileProblem, match="first_row is '7', wanted None"):
        table.FileTable(engram, 0, "packed", tmp_path, num_rows=50)


def test_what_does_not_divide_is_refused(mini_model):
    engram = mini_model("v41").engram  # 6 columns
    with pytest.raises(BadInput, match=r"num_ranks=4: 6 columns .* allowed are 1, 2, 3, 6"):
        shard.HeadShard(engram, 0, 4)
    for count in (0, -2, 7):
        with pytest.raises(BadInput, match=f"num_ranks={count}"):
            shard.HeadShard(engram, 0, count)
    for rank in (-1, 2):
        with pytest.raises(BadInput, match=r"must be 0 … 1"):
            shard.HeadShard(engram, rank, 2)
    one = shard.HeadShard(engram, 1, 2)
    with pytest.raises(BadInput, match=r"must be int64 \[tokens, 6\]"):
        one.local_ids(0, torch.zeros((2, 3), dtype=torch.int64))
    with pytest.raises(BadInput, match="rank 1 of 2 has rows"):
        one.local_ids(0, torch.zeros((2, 6), dtype=torch.int64))
