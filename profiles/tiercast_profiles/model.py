"""What a model is, as far as memory and time are concerned: a backbone and its Engram tables."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tiercast_profiles.dialects import RULES, Dialect, DialectRules
from tiercast_profiles.document import Document, Quantity, Strict, canonical_sha256
from tiercast_profiles.errors import MissingCapability

RowFormat = Literal["fp8_block32", "bf16", "int8_block32"]
RowLayout = Literal["packed", "split", "padded"]
Precision = Literal["fp32", "bf16", "fp8", "fp4"]

SCALE_BLOCK_VALUES = 32
PADDED_ROW_ALIGNMENT_BYTES = 64
MAX_HEADS_PER_ORDER = 1024  # each head's size is a prime of its own, searched for one by one
MAX_TOKEN_ID = 2**31 - 1

BYTES_PER_VALUE: dict[Precision, float] = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "fp4": 0.5}


class Moe(Strict):
    """Mixture-of-experts part of every decoder layer."""

    num_routed_experts: int = Field(gt=0)
    num_active_experts: int = Field(gt=0)
    num_shared_experts: int = Field(ge=0)
    expert_bytes: int = Field(gt=0)
    expert_params: int = Field(gt=0)


class Backbone(Strict):
    """The transformer around the tables.

    ``weight_bytes`` and ``replicated_weight_bytes`` are what a rank keeps resident without the tables:
    ``weight_bytes / tensor + replicated_weight_bytes``.
    ``active_params`` are those one token multiplies with, Engram projection excluded, embedding lookup excluded.
    """

    num_layers: int = Field(gt=0)
    num_prefill_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_branches: int = Field(default=1, gt=0)
    vocab_size: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    attention_window_tokens: int | None = Field(default=None, gt=0)
    moe: Moe | None = None
    compute_precision: Precision
    active_params_prefill: int = Field(gt=0)
    active_params_decode: int = Field(gt=0)
    weight_bytes: int = Field(gt=0)
    replicated_weight_bytes: int = Field(default=0, ge=0)
    kv_bytes_per_token: Quantity
    is_runnable: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_prefill_layers > self.num_layers:
            raise ValueError(f"num_prefill_layers={self.num_prefill_layers} exceeds num_layers={self.num_layers}")
        if self.num_attention_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        return self

    @property
    def shape_sha256(self) -> str:
        """Identifies the layer shape a layer-time table was measured for."""
        return canonical_sha256(
            self.model_dump(mode="json", exclude={"weight_bytes", "replicated_weight_bytes", "kv_bytes_per_token"})
        )


class Engram(Strict):
    """The conditional memory of one model: dialect, tables and where they attach.

    ``rows_per_head`` gives, for each order, the number from which the search for the next primes starts
    (``engram_vocab_size`` in the reference code), or the rows of every head where the dialect has no such search
    (``longcat``). Layer ids are 0-based; layer 0 is the input embedding, whose lookup no earlier layer can hide.
    Sources: arXiv 2601.07372 §2.2-2.5 (demo dialect); vLLM docs/features/engram.md (v41 dialect); ``dialects.py``.
    """

    dialect: Dialect
    layer_ids: tuple[int, ...] = Field(min_length=1)
    ngram_orders: tuple[int, ...] = Field(min_length=1)
    num_heads_per_order: int = Field(gt=0, le=MAX_HEADS_PER_ORDER)
    rows_per_head: tuple[Annotated[int, Field(gt=0, le=10**18)], ...] = Field(min_length=1)
    row_values: int = Field(gt=0)
    row_format: RowFormat
    compressed_vocab_size: int = Field(gt=1, le=MAX_TOKEN_ID)
    pad_token_id: int = Field(ge=0, le=MAX_TOKEN_ID)
    hash_seed: int = Field(ge=0)
    conv_kernel_size: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.ngram_orders) != list(range(2, 2 + len(self.ngram_orders))):
            raise ValueError(f"ngram_orders={list(self.ngram_orders)} must be 2, 3, … without gaps")
        if len(self.rows_per_head) != len(self.ngram_orders):
            raise ValueError(f"rows_per_head has {len(self.rows_per_head)} entries for {len(self.ngram_orders)} orders")
        if any(layer < 0 for layer in self.layer_ids) or list(self.layer_ids) != sorted(set(self.layer_ids)):
            raise ValueError(f"layer_ids={list(self.layer_ids)} must be ascending, distinct and not negative")
        if self.row_format != "bf16" and self.row_values % SCALE_BLOCK_VALUES:
            raise ValueError(f"row_values={self.row_values} is not a multiple of the scale block {SCALE_BLOCK_VALUES}")
        if self.rules.has_convolution != (self.conv_kernel_size is not None):
            raise ValueError(
                f"the {self.dialect} dialect has a convolution: give conv_kernel_size"
                if self.rules.has_convolution
                else f"the {self.dialect} dialect has no convolution: leave conv_kernel_size out"
            )
        return self

    @property
    def rules(self) -> DialectRules:
        """What this dialect does, as data."""
        return RULES[self.dialect]

    @property
    def sha256(self) -> str:
        """Identifies the Engram as a whole, tables and places included."""
        return canonical_sha256(self.model_dump(mode="json"))

    @property
    def shape_sha256(self) -> str:
        """Identifies what an Engram layer computes: how many rows there are and which ones it asks for change nothing.

        A module is handed rows, whatever table they come from; hashing takes a remainder, whatever the divisor.
        """
        elsewhere = {"layer_ids", "rows_per_head", "compressed_vocab_size", "pad_token_id", "hash_seed"}
        return canonical_sha256(self.model_dump(mode="json", exclude=elsewhere))

    def require_hash(self) -> None:
        """Refuse a dialect whose hash is not known.

        Raises:
            MissingCapability: row ids of this dialect cannot be computed.
        """
        if self.rules.hash_evidence == "unknown":
            raise MissingCapability(
                f"the constants of the {self.dialect} dialect's hash are not known here, so its row ids cannot be "
                "computed; size it, price it or simulate it instead"
            )

    @property
    def num_rows_per_token(self) -> int:
        """Rows one token looks up in one Engram layer: orders × heads."""
        return len(self.ngram_orders) * self.num_heads_per_order

    @property
    def value_bytes(self) -> int:
        """Bytes of the values of one row, scales excluded."""
        return self.row_values * (2 if self.row_format == "bf16" else 1)

    @property
    def scale_bytes(self) -> int:
        """Bytes of the block scales of one row: one E8M0 byte (fp8) or one fp32 (int8) per block of 32."""
        if self.row_format == "bf16":
            return 0
        return (self.row_values // SCALE_BLOCK_VALUES) * (1 if self.row_format == "fp8_block32" else 4)

    @property
    def row_bytes(self) -> int:
        """Bytes of one packed row: values followed by scales (264 for V4.1)."""
        return self.value_bytes + self.scale_bytes

    def stored_row_bytes(self, layout: RowLayout) -> int:
        """Bytes one row occupies in a table of the given layout; padded rows are multiples of 64 bytes."""
        if layout == "padded":
            return -(-self.row_bytes // PADDED_ROW_ALIGNMENT_BYTES) * PADDED_ROW_ALIGNMENT_BYTES
        return self.row_bytes

    @property
    def embedding_values(self) -> int:
        """Values the retrieved rows of one token concatenate to in one layer."""
        return self.num_rows_per_token * self.row_values

    def projection_outputs(self, backbone: Backbone) -> int:
        """Columns of the fused key/value projection: (one key per branch + one value) × hidden (paper §2.4).

        A dialect without a gate has no keys.
        """
        return ((backbone.num_branches if self.rules.has_gate else 0) + 1) * backbone.hidden_size


class ModelSpec(Document):
    """One model file.

    ``published_table_rows`` states the published number of rows per Engram layer where there is one; a test compares it
    with the prime search of ``head_sizes``. ``row_values_band`` is the band of a row width the source does not give.
    """

    backbone: Backbone
    engram: Engram
    tokenizer: Literal["tekken", "deepseek-v3", "unknown"] = "unknown"
    tokenizer_num_ranks: int | None = Field(default=None, gt=256)
    published_table_rows: tuple[int, ...] | None = None
    row_values_band: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        last = self.engram.layer_ids[-1]
        if last >= self.backbone.num_layers:
            raise ValueError(f"engram.layer_ids names layer {last}; the backbone has {self.backbone.num_layers} layers")
        return self
