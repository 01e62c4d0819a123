"""Folding and text: the published chain, and the same ids for both producers."""

import numpy as np
import pytest

from tiercast_profiles import store
from tiercast_profiles.errors import BadInput, FileProblem
from tiercast_profiles.folding import folding_table, normalise
from tiercast_profiles.text import fold, load_text, request_token_ids, tekken
from tiercast_profiles.workload import Request

pytest.importorskip("mistral_common", reason="the text extra is not installed")


@pytest.mark.parametrize(
    ("raw", "folded"),
    [
        (" The", "the"),
        ("THE", "the"),
        ("é", "e"),
        ("ﬁ", "fi"),  # compatibility ligature
        (" ", " "),  # a lone space survives
        ("\t\n ", " "),  # any run of blanks is one space
        ("Å", "a"),
        ("ΟΔΟΣ", "οδοσ"),  # no final-sigma rule
        ("कि", "क"),  # a spacing mark (Mc) goes as an accent does
        ("\x1cx", "\x1cx"),  # not white space
        ("", ""),
    ],
)
def test_normaliser_chain(raw: str, folded: str) -> None:
    assert normalise(raw) == folded


def test_ids_are_handed_out_in_order_of_first_appearance() -> None:
    table = folding_table([b"a", b"A", b"b", b" a", b"\xff", b"\xfe", b"\xff"])
    assert table.tolist() == [0, 0, 1, 0, 2, 3, 2]


def test_folding_reduces_the_whole_vocabulary_by_about_a_quarter() -> None:
    vocabulary = tekken(None)
    reduction_ratio = 1 - vocabulary.num_folded / len(vocabulary.tokens)
    assert 0.2 < reduction_ratio < 0.35  # the paper reports 23 % for another 128k vocabulary


def test_tiny_states_its_own_vocabulary() -> None:
    model = store.load_model("tiny")
    vocabulary = tekken(model.tokenizer_num_ranks)
    assert (len(vocabulary.tokens), vocabulary.num_folded) == (
        model.backbone.vocab_size,
        model.engram.compressed_vocab_size,
    )


def test_a_vocabulary_that_is_not_the_models_is_refused() -> None:
    model = store.load_model("tiny")
    other = model.model_copy(update={"engram": model.engram.model_copy(update={"compressed_vocab_size": 6000})})
    with pytest.raises(BadInput, match="folded to 6000"):
        load_text("docs", other)


def test_round_trip_of_a_truncated_vocabulary() -> None:
    vocabulary = tekken(4096)
    text = "Where should the table live? def f(x): return x² + 1\n"
    ids = vocabulary.encoding.encode_ordinary(text)
    assert b"".join(vocabulary.tokens[i] for i in ids).decode() == text
    assert max(ids) < 4096


def test_requests_read_contiguous_text_and_repeat_exactly() -> None:
    model = store.load_model("tiny")
    text = load_text("docs", model)
    request = Request(request_id=3, arrival_ns=0, prompt_tokens=20, output_tokens=12)
    ids = request_token_ids(text, model, request, seed=7)
    assert ids.shape == (32,)
    assert np.array_equal(ids, request_token_ids(text, model, request, seed=7))
    assert not np.array_equal(ids, request_token_ids(text, model, request, seed=8))
    joined = ",".join(map(str, np.concatenate([text.token_ids, text.token_ids[:64]]).tolist()))
    assert ",".join(map(str, ids.tolist())) in joined
    assert int(fold(ids, text, model).max()) < model.engram.compressed_vocab_size


def test_random_text_stays_inside_the_vocabulary() -> None:
    model = store.load_model("tiny")
    text = load_text("random", model)
    ids = request_token_ids(text, model, Request(0, 0, 500, 500), seed=1)
    assert ids.min() >= 0
    assert ids.max() < model.backbone.vocab_size
    assert len(np.unique(ids)) > 900


@pytest.mark.parametrize(("name", "words"), [("no/such/file.txt", "no such file")])
def test_a_missing_text_is_one_clear_line(name: str, words: str) -> None:
    with pytest.raises(FileProblem, match=words):
        load_text(name, store.load_model("tiny"))


def test_requests_that_share_a_prefix_read_it_from_one_place(mini_model):
    model = mini_model()
    text = load_text("random", model)

    def ids(*arguments):
        return request_token_ids(text, model, Request(*arguments), 0).tolist()

    one, two, alone = ids(0, 0, 9, 3, (), 5), ids(1, 0, 9, 3, (), 5), ids(0, 0, 9, 3)
    assert one[:5] == two[:5]
    assert one[5:] == alone[5:] != two[5:]
    first, second = ids(0, 0, 600, 1, (7, 8)), ids(1, 0, 700, 1, (7, 9))
    assert first[:512] == second[:512]
    assert first[512:600] != second[512:600]
    assert len(first) == 601
