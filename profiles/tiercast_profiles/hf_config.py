"""A Hugging Face ``config.json`` with Engram fields, read as a model file.

Every number is either a field of the config (mark V) or arithmetic on such fields (mark D). Nothing is guessed: what
is neither there nor derivable is an error that names the missing key. Accepted names, first one preferred::

    hidden_size, num_hidden_layers, vocab_size, num_attention_heads, torch_dtype | dtype
    num_encoder_layers | num_prefill_layers             needed when is_encoder_decoder is true, else every layer
    num_key_value_heads, head_dim                       else one per head, else hidden_size / num_attention_heads
    q_lora_rank, kv_lora_rank, qk_rope_head_dim, o_lora_rank, o_groups          low-rank attention
    sliding_window | window_size, index_topk            what a query attends to
    hc_mult                                             else 1 (no hyper-connections)
    n_routed_experts | num_experts, num_experts_per_tok, n_shared_experts, moe_intermediate_size, first_k_dense_replace
    intermediate_size                                   where there are layers without experts
    quantization_config.quant_method, expert_dtype      else torch_dtype

Engram fields carry the prefix ``engram_`` at top level, or stand without it inside ``engram_config``; names after the
prefix are those of the official demo::

    layer_ids, vocab_size (a number, or one per order), max_ngram_size, n_head_per_ngram | num_heads
    n_embed_per_ngram (all heads of an order) | head_dim
    pad_id | pad_token_id, seed                         else 2 and 0, as in the demo and in V4.1
    kernel_size                                         its presence means the demo dialect, else V4.1
    compressed_vocab_size                               else 99,092 for the 129,280-token vocabulary
    dtype                                               else as the rest of the model is quantised
    num_embeddings                                      optional; checked against the prime search
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tiercast_profiles.errors import BadInput
from tiercast_profiles.head_sizes import table_rows
from tiercast_profiles.hf_fields import DTYPE_BYTES, HfFields
from tiercast_profiles.model import Engram

MAX_NGRAM_SIZE = 64  # far above any published Engram; a typing error must not start an endless prime search
MAX_HEADS = 1024
DEEPSEEK_VOCAB_SIZE = 129_280
DEEPSEEK_COMPRESSED_VOCAB_SIZE = 99_092  # published: llama.cpp PR 28696, vLLM docs/features/engram.md
_FP4_SCALE_BYTES_PER_VALUE = 1 / 32  # one E8M0 byte per block of 32: 18.8 MB per V4.1 expert, as published


def is_hf_config(data: Mapping[str, Any]) -> bool:  # Any: raw JSON
    """True when the mapping looks like a Hugging Face model config."""
    return "model_type" in data or "architectures" in data


@dataclass(frozen=True, slots=True)
class _Dtypes:
    dense: str  # embeddings, head, norms
    linear: str  # attention and dense MLP weights
    experts: str


def model_from_hf_config(data: Mapping[str, Any], label: str) -> dict[str, Any]:  # Any: raw JSON in, a mapping out
    """The mapping ``ModelSpec`` validates, from a Hugging Face config.

    Raises:
        BadInput: a key is missing and not derivable, has the wrong type, or contradicts the prime search.
    """
    config = HfFields(data, label)
    engram = _engram(config)
    backbone = _backbone(config)
    deepseek = backbone["vocab_size"] == DEEPSEEK_VOCAB_SIZE
    derived = (
        "active_params_prefill",
        "active_params_decode",
        "weight_bytes",
        "replicated_weight_bytes",
        "kv_bytes_per_token",
        "moe.expert_bytes",
        "moe.expert_params",
        "attention_window_tokens",
    )
    # A config carries no date and a file date would make the hash depend on the clone; the epoch says "not dated".
    undated = "1970-01-01"
    return {
        "schema_version": 1,
        "name": _name(config),
        "description": f"Read from the Hugging Face config {label}.",
        "sources": {
            "config": {"kind": "published", "mark": "V", "source": f"config {label} (undated)", "date": undated},
            "arithmetic": {
                "kind": "derived",
                "mark": "D",
                "source": f"arithmetic on config {label}: matrix shapes and dtypes; weights counted as split over all "
                "ranks; the KV cache as if no layer compressed it",
                "date": undated,
            },
        },
        "evidence": {"": "config", **{f"backbone.{key}": "arithmetic" for key in derived}},
        "tokenizer": "deepseek-v3" if deepseek else "unknown",
        "published_table_rows": _checked_rows(config, engram),
        "backbone": backbone,
        "engram": engram,
    }


def _name(config: HfFields) -> str:
    path = Path(config.label)
    raw = config.get("_name_or_path") or (path.parent.name if path.name == "config.json" else path.stem)
    slug = re.sub(r"[^a-z0-9._-]+", "-", str(raw).rsplit("/", 1)[-1].lower()).lstrip("._-")
    return slug or "hf-config"


def _engram_config(config: HfFields) -> HfFields:
    nested = config.get("engram_config")
    if nested is not None and not isinstance(nested, Mapping):
        raise BadInput(f"{config.label}: engram_config={nested!r} must be a mapping")
    plain = nested or {}
    prefixed = {k: v for k, v in config.data.items() if k.startswith("engram_") and k != "engram_config"}
    return HfFields({**{f"engram_{key}": value for key, value in plain.items()}, **prefixed}, config.label)


def _quantised(config: HfFields) -> str | None:
    quantisation = config.get("quantization_config")
    method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else None
    if method not in (None, "fp8", "fp4"):
        raise BadInput(f"{config.label}: quantization_config.quant_method={method!r} is not known; known: fp8, fp4")
    return method


def _engram(config: HfFields) -> dict[str, Any]:
    fields = _engram_config(config)
    layer_ids = fields.integers("engram_layer_ids")
    num_orders = fields.integer("engram_max_ngram_size", minimum=2, maximum=MAX_NGRAM_SIZE) - 1
    num_heads = fields.integer("engram_n_head_per_ngram", "engram_num_heads", maximum=MAX_HEADS)
    per_order = fields.get("engram_vocab_size")
    if isinstance(per_order, list):
        rows_per_head = fields.integers("engram_vocab_size")
    else:
        rows_per_head = [fields.integer("engram_vocab_size")] * num_orders
    width = fields.get("engram_head_dim")
    if width is None:
        values = fields.integer("engram_n_embed_per_ngram", "engram_head_dim")
        if values % num_heads:
            raise BadInput(
                f"{config.label}: engram_n_embed_per_ngram={values} is not a multiple of {num_heads} heads per order"
            )
        width = values // num_heads
    vocab_size = config.integer("vocab_size")
    known = DEEPSEEK_COMPRESSED_VOCAB_SIZE if vocab_size == DEEPSEEK_VOCAB_SIZE else None
    dtype = fields.dtype("engram_dtype", default=_quantised(config) or config.dtype("torch_dtype", "dtype"))
    if dtype not in ("fp8", "bfloat16"):
        raise BadInput(f"{config.label}: engram_dtype={dtype!r} has no row format; known: fp8, bfloat16")
    kernel = fields.get("engram_kernel_size")
    return {
        "dialect": "v41" if kernel is None else "demo",
        "layer_ids": layer_ids,
        "ngram_orders": list(range(2, 2 + num_orders)),
        "num_heads_per_order": num_heads,
        "rows_per_head": rows_per_head,
        "row_values": width,
        "row_format": "fp8_block32" if dtype == "fp8" else "bf16",
        "compressed_vocab_size": fields.integer("engram_compressed_vocab_size", default=known, minimum=2),
        "pad_token_id": fields.integer("engram_pad_id", "engram_pad_token_id", default=2, minimum=0),
        "hash_seed": fields.integer("engram_seed", default=0, minimum=0),
        "conv_kernel_size": kernel,
    }


def _checked_rows(config: HfFields, engram: dict[str, Any]) -> list[int] | None:
    """``engram_num_embeddings`` (per layer, or their sum) must be what the prime search gives."""
    stated = _engram_config(config).get("engram_num_embeddings")
    if stated is None:
        return None
    try:
        found = table_rows(Engram.model_validate(engram))
    except ValidationError:
        return None  # the schema will complain about the engram section itself, with its own text
    if stated not in (list(found), sum(found)):
        raise BadInput(
            f"{config.label}: engram_num_embeddings={stated!r}; the prime search from engram_vocab_size gives "
            f"{list(found)}, {sum(found)} in all"
        )
    return list(found)


def _attention_params(config: HfFields, hidden: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Weights of one layer's attention; low-rank forms where the config has their ranks.

    With V4.1's 64 heads x 512, query rank 1,280 and 8 output groups of rank 1,024 this is the published 126.6 M.
    """
    query_rank = config.get("q_lora_rank")
    wide = heads * head_dim
    query = hidden * wide if query_rank is None else config.integer("q_lora_rank") * (hidden + wide)
    latent = _kv_values(config, kv_heads, head_dim)
    key_value = hidden * latent
    if config.get("kv_lora_rank") is not None:
        key_value += config.integer("kv_lora_rank") * 2 * wide
    output_rank = config.get("o_lora_rank")
    if output_rank is None:
        return query + key_value + wide * hidden
    groups = config.integer("o_groups")
    return query + key_value + config.integer("o_lora_rank") * (wide + groups * hidden)


def _kv_values(config: HfFields, kv_heads: int, head_dim: int) -> int:
    """Values one layer caches per token: a latent, one head shared as key and value, or keys and values."""
    if config.get("kv_lora_rank") is not None:
        return config.integer("kv_lora_rank") + config.integer("qk_rope_head_dim")
    if config.get("q_lora_rank") is not None and kv_heads == 1:
        return head_dim
    return 2 * kv_heads * head_dim


def _backbone(config: HfFields) -> dict[str, Any]:
    layers, hidden = config.integer("num_hidden_layers"), config.integer("hidden_size")
    vocab, heads = config.integer("vocab_size"), config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", default=heads)
    head_dim = config.integer("head_dim", default=max(1, hidden // heads))
    every = None if config.get("is_encoder_decoder") else layers
    prefill_layers = config.integer("num_encoder_layers", "num_prefill_layers", default=every)
    dtype = config.dtype("torch_dtype", "dtype")
    linear = _quantised(config) or dtype
    dtypes = _Dtypes(dense=dtype, linear=linear, experts=config.dtype("expert_dtype", default=linear))
    moe, dense_width, dense_layers = _moe(config, hidden, layers, dtypes)

    attention = _attention_params(config, hidden, heads, kv_heads, head_dim)
    active = attention * layers + 3 * hidden * dense_width * dense_layers
    stored = active * DTYPE_BYTES[dtypes.linear]
    if moe is not None:
        expert_layers = layers - dense_layers
        router = hidden * moe["num_routed_experts"]
        multiplied = (moe["num_active_experts"] + moe["num_shared_experts"]) * moe["expert_params"] + router
        active += multiplied * expert_layers
        kept = moe["num_routed_experts"] + moe["num_shared_experts"]
        stored += (kept * moe["expert_bytes"] + router * DTYPE_BYTES[dtypes.dense]) * expert_layers
    head = vocab * hidden
    stored += (1 if config.get("tie_word_embeddings") else 2) * head * DTYPE_BYTES[dtypes.dense]
    selected = [config.integer(k) for k in ("index_topk",) if config.get(k) is not None]
    window = config.get("sliding_window", "window_size")
    is_low_rank = any(config.get(key) is not None for key in ("q_lora_rank", "kv_lora_rank", "o_lora_rank"))
    return {
        "num_layers": layers,
        "num_prefill_layers": prefill_layers,
        "hidden_size": hidden,
        "num_branches": config.integer("hc_mult", default=1),
        "vocab_size": vocab,
        "num_attention_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": dense_width if moe is None else config.integer("moe_intermediate_size"),
        "attention_window_tokens": None
        if window is None
        else config.integer("sliding_window", "window_size") + sum(selected),
        "moe": moe,
        "compute_precision": {"float32": "fp32", "fp8": "fp8", "fp4": "fp4"}.get(dtypes.linear, "bf16"),
        # Layers are alike, so prefill multiplies with their share; the head runs on sampled positions only.
        "active_params_prefill": active * prefill_layers // layers,
        "active_params_decode": active + head,
        "weight_bytes": round(stored),
        "kv_bytes_per_token": round(layers * _kv_values(config, kv_heads, head_dim) * DTYPE_BYTES[dtypes.dense]),
        "is_runnable": moe is None
        and window is None
        and not is_low_rank
        and config.get("hidden_act") in (None, "silu"),
    }


def _moe(
    config: HfFields, hidden: int, layers: int, dtypes: _Dtypes
) -> tuple[dict[str, int] | None, int, int]:  # experts, width of a dense MLP, number of dense layers
    if config.get("n_routed_experts", "num_experts") is None:
        return None, config.integer("intermediate_size"), layers
    params = 3 * hidden * config.integer("moe_intermediate_size")
    bytes_per_value = DTYPE_BYTES[dtypes.experts]
    if dtypes.experts == "fp4":
        bytes_per_value += _FP4_SCALE_BYTES_PER_VALUE
    dense_layers = config.integer("first_k_dense_replace", default=0, minimum=0)
    width = config.integer("intermediate_size") if dense_layers else 0
    moe = {
        "num_routed_experts": config.integer("n_routed_experts", "num_experts"),
        "num_active_experts": config.integer("num_experts_per_tok"),
        "num_shared_experts": config.integer("n_shared_experts", default=0, minimum=0),
        "expert_bytes": round(params * bytes_per_value),
        "expert_params": params,
    }
    return moe, width, dense_layers
