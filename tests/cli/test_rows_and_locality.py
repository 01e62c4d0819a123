"""rows and locality: what a sequence looks up, and how often a text repeats it."""

import base64
import json

import numpy as np
import pytest
import yaml

from tiercast_profiles.store import load_model
from tiercast_runtime.hashing import build_windows, numpy_row_ids

TINY_FOLDED = load_model("tiny").engram.compressed_vocab_size


@pytest.mark.parametrize("width", [80, 120])
def test_rows_are_as_committed(run, golden, width):
    result = run("rows", "--model", "tiny", "--layer", "4", "--token-ids", "5,17,400", "--folded", width=width)
    assert result.exit_code == 0
    golden(f"rows.{width}.txt", result.stdout)


def test_rows_of_the_large_model_are_those_of_the_hash(run, golden):
    args = (
        "rows",
        "--model",
        "deepseek-v4.1-flash",
        "--layer",
        "14",
        "--token-ids",
        "5,17,99000",
        "--folded",
        "--json",
    )
    result = run(*args)
    golden("rows-v41.json", result.stdout)
    shown = json.loads(result.stdout)
    engram = load_model("deepseek-v4.1-flash").engram
    expected = numpy_row_ids(engram, build_windows(np.array([5, 17, 99000]), 0, 3, 4))[1]
    for position, row_ids in zip(shown["positions"], expected, strict=True):
        assert [row for order in position["orders"] for row in order["row_ids"]] == row_ids.tolist()
    assert shown["num_table_rows"] == 384_016_682


def test_a_boundary_blocks_the_ngram(run):
    ids = ("rows", "--model", "tiny", "--layer", "8", "--folded", "--json", "--token-ids")
    whole, cut = (json.loads(run(*ids, text).stdout) for text in ("9", "7,-1,9"))
    assert whole["positions"][0]["orders"][0]["row_ids"] == cut["positions"][2]["orders"][0]["row_ids"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        (["--model", "tiny", "--layer", "5", "--token-ids", "1"], 2, "--layer 5: model 'tiny' has Engram layers 4, 8"),
        (
            ["--model", "tiny", "--layer", "4", "--token-ids", "8192"],
            2,
            "--token-ids holds 8192; token ids are 0 to 8191",
        ),
        (
            ["--model", "tiny", "--layer", "4", "--token-ids", "-2", "--folded"],
            2,
            f"-1 to {TINY_FOLDED - 1}",
        ),
        (
            ["--model", "deepseek-v4.1-flash", "--layer", "1", "--token-ids", "1"],
            4,
            "give its file with --tokenizer, or fold them yourself and give --folded",
        ),
        (
            ["--model", "longcat-flash-lite", "--layer", "0", "--token-ids", "1", "--folded"],
            4,
            "longcat dialect's hash are not known here",
        ),
        (["--model", "nope", "--layer", "1", "--token-ids", "1"], 2, "unknown model 'nope'"),
    ],
)
def test_rows_refuses_what_it_cannot_look_up(fails, arguments, exit_code, text):
    assert text in fails(exit_code, "rows", *arguments)


def test_rows_of_an_assumed_hash_say_so(run):
    args = ("rows", "--model", "qwen3.8-flash-next", "--layer", "2", "--token-ids", "5,17", "--folded")
    assert "assumed, not published" in run(*args).stdout.replace("\n", " ")
    shown = json.loads(run(*args, "--json").stdout)
    assert (shown["hash_evidence"], shown["num_table_rows"]) == ("assumed", 320_001_536)


@pytest.mark.parametrize(("model", "tensor"), [("qwen3.8-flash-next", 4), ("longcat-flash-lite", 2)])
def test_models_that_do_not_run_here_are_simulated(run, files, model, tensor):
    path = files.change(
        hardware="h200-sxm", prices="default", model=model, parallel={"tensor": tensor}, placement={"tier": "dram"}
    )
    record = json.loads(run("simulate", path, "--json").stdout)
    assert record["metrics"]["output_tokens_per_s"]["value"] > 0


def test_ids_that_are_no_numbers_are_a_usage_error(run):
    result = run("rows", "--model", "tiny", "--layer", "4", "--token-ids", "5,x")
    assert result.exit_code == 2
    assert "whole numbers separated by commas" in result.stderr


def test_a_tokenizer_file_folds_and_a_wrong_one_is_refused(run, fails, files, tmp_path):
    ranks = tmp_path / "ranks.tiktoken"
    lines = (f"{base64.b64encode(bytes([byte])).decode()} {byte - 32}" for byte in range(32, 97))
    ranks.write_text("\n".join(lines), encoding="utf-8")  # blank to backquote: no letter has its other case
    model = yaml.safe_load((files.folder / "model.yaml").read_text(encoding="utf-8"))
    args = ("--layer", "1", "--token-ids", "33,34", "--tokenizer", ranks)
    message = fails(2, "rows", "--model", files.folder / "model.yaml", *args)
    assert "65 tokens folded to 65 ids" in message
    assert "compressed_vocab_size=61" in message
    model["engram"]["compressed_vocab_size"] = 65
    (files.folder / "model.yaml").write_text(yaml.safe_dump(model), encoding="utf-8")
    result = run("rows", "--model", files.folder / "model.yaml", *args, width=200)
    assert "to 65 ids, as many as the model states" in result.stdout
    base = ("rows", "--model", files.folder / "model.yaml", "--layer", "1", "--token-ids", "33,34", "--json")
    by_hand, by_file = (json.loads(run(*base, *extra).stdout) for extra in (("--folded",), ("--tokenizer", ranks)))
    assert by_file["positions"] == by_hand["positions"]
    assert by_file["num_folded_ids"] == 65
    assert "give one of the two" in fails(2, *base, "--folded", "--tokenizer", ranks)


@pytest.fixture
def repeating_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the same words come again and again\n" * 40, encoding="utf-8")
    return path


def test_locality_of_a_repeating_text(run, repeating_text):
    args = ("locality", repeating_text, "--model", "tiny", "--cache-gib", "0.001,0.01", "--streams", "1,4", "--json")
    result = json.loads(run(*args).stdout)
    assert max(result["reuse"]["distinct_ratio_by_order"].values()) < 0.1
    assert len(result["reuse"]["caches"]) == 4
    assert all(point["lru_hit_ratio"] > 0.8 for point in result["reuse"]["caches"])
    for point in result["reuse"]["caches"]:
        assert point["optimal_hit_ratio"] >= max(point["lru_hit_ratio"], point["lfu_hit_ratio"])
    shown = run(*args[:-1]).stdout
    assert "LRU" in shown
    assert "optimal" in shown


def test_locality_of_real_text_has_a_law(run):
    args = ("locality", "docs", "--model", "tiny", "--cache-gib", "0.001", "--streams", "1")
    (law,) = json.loads(run(*args, "--json").stdout)["reuse"]["laws"]
    assert 0.5 < law["exponent"] < 1
    assert law["residual_ratio"] < 0.15
    assert "the law of reuse" in run(*args).stdout


@pytest.mark.parametrize(
    ("text", "extra", "message"),
    [
        ("missing.txt", [], "no such file"),
        ("random", [], "has no n-grams to repeat"),
        ("TEXT", ["--cache-gib", "-1"], "cache_gib=-1; must be > 0"),
        ("TEXT", ["--streams", "0"], "streams=0; must be > 0"),
    ],
)
def test_locality_refuses_what_it_cannot_measure(fails, repeating_text, text, extra, message):
    name = repeating_text if text == "TEXT" else text
    assert message in fails(2, "locality", name, "--model", "tiny", "--cache-gib", "0.01", "--streams", "1", *extra)
