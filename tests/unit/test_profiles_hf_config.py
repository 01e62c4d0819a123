import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercast_profiles.errors import BadInput
from tiercast_profiles.head_sizes import table_rows
from tiercast_profiles.hf_config import is_hf_config, model_from_hf_config
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.store import load_model, parse

CONFIG = Path(__file__).parent / "data" / "deepseek-v4.1-flash" / "config.json"


def _config() -> dict:
    return json.loads(CONFIG.read_text())


def _load(tmp_path: Path, data: dict):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    return load_model(str(path))


def test_v41_config_gives_the_shipped_engram():
    model, shipped = load_model(str(CONFIG)), load_model("deepseek-v4.1-flash")
    assert model.engram == shipped.engram
    assert model.published_table_rows == shipped.published_table_rows
    assert model.name == "deepseek-v4.1-flash"
    assert model.tokenizer == "deepseek-v3"


def test_v41_config_gives_the_published_sizes():
    backbone, shipped = load_model(str(CONFIG)).backbone, load_model("deepseek-v4.1-flash").backbone
    assert backbone.moe == shipped.moe
    same = ("num_layers", "num_prefill_layers", "hidden_size", "num_branches", "head_dim", "attention_window_tokens")
    assert [getattr(backbone, name) for name in same] == [getattr(shipped, name) for name in same]
    assert backbone.compute_precision == "fp8"
    # Arithmetic on the shape, against the published counts: norms and hyper-connections are the difference.
    assert backbone.active_params_prefill == pytest.approx(shipped.active_params_prefill, rel=0.01)
    assert backbone.active_params_decode == pytest.approx(shipped.active_params_decode, rel=0.01)
    stored = shipped.weight_bytes + shipped.replicated_weight_bytes
    assert backbone.weight_bytes == pytest.approx(stored, rel=0.02)
    assert not backbone.is_runnable


def test_derived_numbers_are_marked_and_name_the_config():
    model = load_model(str(CONFIG))
    for path in ("backbone.weight_bytes", "backbone.kv_bytes_per_token", "backbone.moe.expert_bytes"):
        source = model.source_of(path)
        assert source is not None
        assert source.mark == "D"
        assert str(CONFIG) in source.source
    read = model.source_of("engram.rows_per_head.0")
    assert read is not None
    assert read.mark == "V"


def test_demo_style_nested_engram_config_of_a_dense_model(tmp_path):
    model = _load(
        tmp_path,
        {
            "model_type": "engram_demo",
            "dtype": "bfloat16",
            "hidden_size": 1024,
            "hc_mult": 4,
            "vocab_size": 129280,
            "num_hidden_layers": 30,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "intermediate_size": 2816,
            "hidden_act": "silu",
            "engram_config": {
                "layer_ids": [1, 15],
                "vocab_size": [646400, 646400],
                "max_ngram_size": 3,
                "n_embed_per_ngram": 512,
                "n_head_per_ngram": 8,
                "pad_id": 2,
                "seed": 0,
                "kernel_size": 4,
            },
        },
    )
    engram = model.engram
    assert (engram.dialect, engram.row_values, engram.row_format, engram.conv_kernel_size) == ("demo", 64, "bf16", 4)
    assert engram.ngram_orders == (2, 3)
    assert engram.compressed_vocab_size == 99092
    # 16 sub-tables of about 646.4 k rows each (facts: about 10.3 M per layer)
    assert table_rows(engram) == pytest.approx([16 * 646_400] * 2, rel=1e-3)
    backbone = model.backbone
    assert backbone.is_runnable
    # 30 layers x 2 x 8 heads x 64 values x 2 B
    assert backbone.kv_bytes_per_token.value == 61440
    attention = 1024 * 1024 * 2 + 1024 * 2 * 8 * 64
    assert backbone.active_params_prefill == 30 * (attention + 3 * 1024 * 2816)
    assert backbone.active_params_decode - backbone.active_params_prefill == 129280 * 1024


def test_latent_attention_caches_its_latent(tmp_path):
    data = _config() | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert _load(tmp_path, data).backbone.kv_bytes_per_token.value == 40 * (512 + 64) * 2


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "num_hidden_layers",
        "num_encoder_layers",
        "num_attention_heads",
        "vocab_size",
        "torch_dtype",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "o_groups",
        "engram_layer_ids",
        "engram_vocab_size",
        "engram_max_ngram_size",
        "engram_n_head_per_ngram",
        "engram_head_dim",
    ],
)
def test_a_missing_key_is_named(tmp_path, key):
    data = _config()
    del data[key]
    with pytest.raises(BadInput, match=rf"missing key .*{key.removesuffix('_head_dim')}"):
        _load(tmp_path, data)


def test_an_unknown_vocabulary_needs_its_folded_size(tmp_path):
    data = _config() | {"vocab_size": 151936}
    del data["engram_compressed_vocab_size"]
    with pytest.raises(BadInput, match="missing key engram_compressed_vocab_size"):
        _load(tmp_path, data)


@pytest.mark.parametrize("stated", [[384006168, 384016683], 768022851, "many"])
def test_num_embeddings_must_be_what_the_prime_search_gives(tmp_path, stated):
    with pytest.raises(BadInput, match=r"engram_num_embeddings.*384006168.*768022850"):
        _load(tmp_path, _config() | {"engram_num_embeddings": stated})


def test_num_embeddings_may_be_the_sum_or_absent(tmp_path):
    assert _load(tmp_path, _config() | {"engram_num_embeddings": 768022850}).published_table_rows == (
        384006168,
        384016682,
    )
    data = _config()
    del data["engram_num_embeddings"]
    assert _load(tmp_path, data).published_table_rows is None


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("hidden_size", -5120, "at least 1"),
        ("hidden_size", "5120", "whole number"),
        ("hidden_size", True, "whole number"),
        ("engram_layer_ids", 1, "list of whole numbers"),
        ("engram_dtype", "int4", "not known"),
        ("engram_config", [1], "must be a mapping"),
        ("quantization_config", {"quant_method": "gptq"}, "quant_method"),
        ("engram_layer_ids", [1, 99], "99"),
    ],
)
def test_a_wrong_value_is_one_line(tmp_path, key, value, text):
    with pytest.raises(BadInput, match=text) as caught:
        _load(tmp_path, _config() | {key: value})
    assert "\n" not in str(caught.value)


def test_a_model_file_is_not_a_config():
    assert not is_hf_config({"schema_version": 1, "name": "x"})
    assert is_hf_config({"model_type": "deepseek_v41"})


SCALARS = st.none() | st.booleans() | st.integers(-5, 10**6) | st.floats(allow_nan=False) | st.text(max_size=5)
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=2)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(_config())), JSON)
def test_any_value_of_any_key_loads_or_is_bad_input(key, value):
    with contextlib.suppress(BadInput):
        parse(ModelSpec, model_from_hf_config(_config() | {key: value}, "config.json"), "config.json")
