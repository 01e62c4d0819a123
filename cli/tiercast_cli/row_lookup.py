"""The rows each position of one sequence looks up in one Engram layer, and what that looks like."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiercast_cli import render
from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.head_sizes import table_rows
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.text import model_vocabulary
from tiercast_profiles.tokenizer_files import FileVocabulary, read_tokenizer
from tiercast_runtime.hashing import DEAD, build_windows, numpy_row_ids


@dataclass(frozen=True, slots=True)
class OrderRows:
    """The n-gram of one order, oldest id first (None where there is no token), and the row id of each head."""

    order: int
    ngram: tuple[int | None, ...]
    row_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PositionRows:
    """One position of the sequence."""

    position: int
    folded_id: int
    orders: tuple[OrderRows, ...]


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """All positions; row ids index the table of ``layer_id``, which has ``num_table_rows`` rows.

    ``hash_evidence`` tells a published hash from one that is assumed for the dialect. ``tokenizer`` is the file the ids
    were folded with, if one was given; ``num_folded_ids`` is the size of the folded vocabulary.
    """

    model: str
    layer_id: int
    num_table_rows: int
    hash_evidence: str
    tokenizer: str | None
    num_folded_ids: int
    positions: tuple[PositionRows, ...]


def look_up(
    model: ModelSpec, layer_id: int, token_ids: Sequence[int], *, is_folded: bool, tokenizer: str | None = None
) -> SequenceRows:
    """Row ids of every position of one sequence.

    With a tokenizer file the pad id is folded too, as the reference does; else the model's pad id counts as folded.

    Raises:
        BadInput: the model has no such Engram layer, an id lies outside the vocabulary, or the tokenizer is not the
            model's.
        FileProblem: the tokenizer file cannot be read.
        MissingCapability: the dialect's hash is not known, or raw ids of a model whose vocabulary is not at hand.
    """
    engram = model.engram
    if layer_id not in engram.layer_ids:
        known = ", ".join(str(known) for known in engram.layer_ids)
        raise BadInput(f"--layer {layer_id}: model {model.name!r} has Engram layers {known} (0-based)")
    engram.require_hash()
    index = engram.layer_ids.index(layer_id)
    vocabulary = None
    if tokenizer is not None:
        if is_folded:
            raise BadInput("--tokenizer folds ids and --folded says that they are folded; give one of the two")
        vocabulary = read_tokenizer(tokenizer)
        vocabulary.check_model(model)
    folded_pad_id = None
    if vocabulary is not None and engram.pad_token_id < len(vocabulary.tokens):
        folded_pad_id = int(vocabulary.folding[engram.pad_token_id])
    folded = _folded(model, token_ids, is_folded=is_folded, vocabulary=vocabulary)
    windows = build_windows(folded, 0, len(folded), engram.ngram_orders[-1])
    row_ids = numpy_row_ids(engram, windows, folded_pad_id)[index]
    heads = engram.num_heads_per_order
    positions = []
    for position, window in enumerate(windows):
        orders = []
        for order_index, order in enumerate(engram.ngram_orders):
            first = order_index * heads
            ngram = tuple(None if value == DEAD else int(value) for value in window[:order][::-1])
            orders.append(OrderRows(order, ngram, tuple(int(row) for row in row_ids[position, first : first + heads])))
        positions.append(PositionRows(position, int(folded[position]), tuple(orders)))
    return SequenceRows(
        model=model.name,
        layer_id=layer_id,
        num_table_rows=table_rows(engram)[index],
        hash_evidence=engram.rules.hash_evidence,
        tokenizer=tokenizer,
        num_folded_ids=engram.compressed_vocab_size,
        positions=tuple(positions),
    )


def view(result: SequenceRows) -> None:
    """One line per position and order."""
    render.heading(f"{result.model}, Engram layer {result.layer_id}: table of {result.num_table_rows:,} rows")
    rows = [
        [
            str(position.position) if index == 0 else "",
            " ".join("." if value is None else str(value) for value in order.ngram),
            " ".join(str(row) for row in order.row_ids),
        ]
        for position in result.positions
        for index, order in enumerate(position.orders)
    ]
    render.table("", ["position", "folded n-gram", "row ids, one per head"], rows, left=3)
    render.line("A dot stands for a place before the sequence or across a boundary; it is hashed as the pad id.")
    if result.tokenizer is not None:
        render.line(f"Folded with {result.tokenizer} to {result.num_folded_ids:,} ids, as many as the model states.")
    if result.hash_evidence == "assumed":
        render.line("The hash of this dialect is assumed, not published: do not check an engine against these row ids.")


def _folded(
    model: ModelSpec, token_ids: Sequence[int], *, is_folded: bool, vocabulary: FileVocabulary | None
) -> npt.NDArray[np.int64]:
    ids = np.array(token_ids, dtype=np.int64)
    if is_folded:
        _check_range(ids, DEAD, model.engram.compressed_vocab_size, "folded ids")
        return ids
    if vocabulary is not None:
        _check_range(ids, 0, len(vocabulary.tokens), "token ids")
        return np.take(vocabulary.folding, ids)
    if model.tokenizer != "tekken":
        raise MissingCapability(
            f"the vocabulary of model {model.name!r} is not shipped, so raw ids cannot be folded; "
            "give its file with --tokenizer, or fold them yourself and give --folded"
        )
    _check_range(ids, 0, model.backbone.vocab_size, "token ids")
    return np.take(model_vocabulary(model).folding, ids)


def _check_range(ids: npt.NDArray[np.int64], low: int, end: int, noun: str) -> None:
    wrong = [int(value) for value in ids if not low <= value < end]
    if wrong:
        raise BadInput(f"--token-ids holds {wrong[0]}; {noun} are {low} to {end - 1}")
