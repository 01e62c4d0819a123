"""Tokenizer files of three formats give the tokens they hold and one folding table."""

import base64
import json

import numpy as np
import pytest

from tiercast_profiles.errors import BadInput, FileProblem
from tiercast_profiles.tokenizer_files import _spelled, read_tokenizer

TOKENS = [
    *(bytes([byte]) for byte in range(256)),
    b" The",
    b"the",
    "é".encode(),
    "£".encode(),
    b"\xe2\x82",
    b"  ",
    b"E",
]
LLAMA_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


@pytest.fixture
def write(tmp_path):
    def make(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return make


def hf_json(tokens, added=(), decoder=None):
    vocab = {_spelled(token): index for index, token in enumerate(tokens)}
    return {
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
        "added_tokens": [{"id": len(tokens) + i, "content": text, "special": True} for i, text in enumerate(added)],
        "decoder": decoder or {"type": "ByteLevel"},
    }


def ranks(tokens):
    return "".join(f"{base64.b64encode(token).decode()} {index}\n" for index, token in enumerate(tokens))


def test_the_hugging_face_and_the_tiktoken_form_of_a_vocabulary_fold_alike(write):
    tokens = list(dict.fromkeys(TOKENS))
    by_ranks, by_json = (
        read_tokenizer(write("a.tiktoken", ranks(tokens))),
        read_tokenizer(write("tokenizer.json", hf_json(tokens))),
    )
    assert by_ranks.tokens == by_json.tokens == tuple(tokens)
    assert np.array_equal(by_ranks.folding, by_json.folding)
    assert (by_ranks.format, by_json.format) == ("tiktoken", "hf-json")
    ids = dict(zip(tokens, by_json.folding.tolist(), strict=True))
    assert ids[b" The"] == ids[b"the"]
    assert ids["é".encode()] == ids[b"E"] == ids[b"e"]
    assert ids[b"  "] == ids[b" "] == ids[b"\t"]
    assert ids[b"\xe2\x82"] != ids[b"\xe2"]


def test_a_broken_token_shares_its_key_with_a_text_that_is_spelled_like_it(write):
    """The reference puts raw token strings and normalised texts in one table: byte A3 is spelled as the pound sign."""
    found = read_tokenizer(write("tokenizer.json", hf_json([b"\xa3", "£".encode(), b"\xa4"])))
    assert found.folding.tolist() == [0, 0, 1]


def test_added_tokens_decode_to_their_content(write):
    found = read_tokenizer(write("tokenizer.json", hf_json([b"a", b"b"], added=["<|end|>", "<|END|>"])))
    assert found.tokens == (b"a", b"b", b"<|end|>", b"<|END|>")
    assert found.folding.tolist() == [0, 1, 2, 2]
    assert found.num_folded == 3


def test_sentencepiece_tokens_with_byte_fallback(write):
    pieces = ["<unk>", "<0x41>", "<0xE2>", "▁the", "The", "a", "▁▁"]
    data = {
        "model": {"type": "BPE", "vocab": {piece: index for index, piece in enumerate(pieces)}, "byte_fallback": True},
        "decoder": LLAMA_DECODER,
    }
    found = read_tokenizer(write("tokenizer.json", data))
    assert found.tokens == (b"<unk>", b"A", b"\xe2", b"the", b"The", b"a", b" ")
    assert found.folding.tolist() == [0, 1, 2, 3, 3, 1, 4]


def test_the_installed_tekken_file_is_the_built_in_vocabulary():
    mistral_common = pytest.importorskip("mistral_common", reason="the text extra is not installed")
    from importlib import resources

    from tiercast_profiles.text import TEKKEN_FILE, tekken

    with resources.as_file(resources.files(mistral_common) / "data" / TEKKEN_FILE) as path:
        found = read_tokenizer(path)
    assert found.format == "tekken"
    assert found.tokens == tekken(None).tokens
    assert np.array_equal(found.folding, tekken(None).folding)


def test_a_hole_and_other_bad_files_are_one_clear_line(write, tmp_path):
    for content, message in (
        ("YQ== 0\nYg== 2\n", "no token has id 1"),
        ("YQ== 0\nYg== 0\n", "two tokens have id 0"),
        ("YQ== 0\nnot base64 at all\n", "line 2 is not 'base64 rank'"),
        ("YQ== -1\n", "token id -1"),
        ("", "holds no tokens"),
        ({"a": 1}, "no tokenizer file"),
        ({"model": {"type": "Unigram", "vocab": []}}, "'Unigram' cannot be folded"),
        (hf_json([b"a"], decoder={"type": "Metaspace"}), "decoder Metaspace is not known"),
        ({"model": {"type": "BPE", "vocab": {"€": 0}}, "decoder": {"type": "ByteLevel"}}, "stands for no byte"),
        ({"model": {"type": "BPE", "vocab": {"a": "x"}}, "decoder": {"type": "ByteLevel"}}, "token id 'x'"),
        ({"vocab": [{"rank": 0}], "config": {}}, "damaged"),
        ({"model": {"type": "BPE", "vocab": {}}, "decoder": {"type": "Sequence", "decoders": [3]}}, "damaged"),
    ):
        with pytest.raises(BadInput, match=message) as caught:
            read_tokenizer(write("file", content))
        assert "\n" not in str(caught.value)
    with pytest.raises(FileProblem, match="not whole JSON"):
        read_tokenizer(write("file", '{"model": '))
    with pytest.raises(FileProblem, match="no such file"):
        read_tokenizer(tmp_path / "none")
