"""The folding table of any tokenizer, from the file it is published as.

Three formats are read directly: a Hugging Face ``tokenizer.json`` of type BPE (byte-level, or SentencePiece-like with
byte fallback), a tekken JSON, and a tiktoken ranks file (``base64 rank`` per line). Every id from 0 on must have a
token: a file with a hole is refused, because the new ids are handed out in order of first appearance.

The reference (``CompressedTokenizer``) decodes each id and keys a token whose text holds U+FFFD by its raw token
string, among the same keys as the normalised texts. A tiktoken file has no token strings: the byte alphabet of
byte-level BPE spells them, as the Hugging Face form of the same ranks does. A tekken file folds as the built-in
vocabulary does, which keeps such tokens apart from all texts.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import BadInput, FileProblem
from tiercast_profiles.folding import folding_table, normalise
from tiercast_profiles.model import ModelSpec

MAX_TOKENIZER_BYTES = 256 << 20
MAX_TOKENS = 1 << 24  # far above any vocabulary; a typing error must not fill the memory
_REPLACEMENT = "\ufffd"
_BLANK = "▁"
Token = TypeVar("Token")
TokenizerFormat = Literal["hf-json", "tekken", "tiktoken"]


@dataclass(frozen=True, slots=True)
class FileVocabulary:
    """Bytes of every token by id, as the tokenizer decodes it alone, and the folded id of each, ``[n] int64``."""

    path: str
    format: TokenizerFormat
    tokens: tuple[bytes, ...]
    folding: npt.NDArray[np.int64]

    @property
    def num_folded(self) -> int:
        """Distinct ids after folding."""
        return int(self.folding.max()) + 1

    def check_model(self, model: ModelSpec) -> None:
        """Refuse a tokenizer that is not the model's: its rows would be wrong without a sign of it.

        Raises:
            BadInput: the number of folded ids is not the model's, or there are more tokens than the model has.
        """
        vocab_size, folded_size = model.backbone.vocab_size, model.engram.compressed_vocab_size
        if self.num_folded != folded_size or len(self.tokens) > vocab_size:
            raise BadInput(
                f"{self.path}: {len(self.tokens)} tokens folded to {self.num_folded} ids; model {model.name!r} states "
                f"at most {vocab_size} tokens and compressed_vocab_size={folded_size}: not the tokenizer of this model"
            )


def read_tokenizer(path: str | Path) -> FileVocabulary:
    """Read a tokenizer file of any of the three formats.

    Raises:
        FileProblem: the file cannot be read.
        BadInput: it is of no known format, of a kind whose tokens cannot be decoded rightly, or has holes.
    """
    label = str(path)
    text = _read(Path(path))
    if not text.lstrip().startswith("{"):
        tokens = _in_order(_tiktoken_tokens(text, label), label)
        raw = [_spelled(token) for token in tokens]
        return FileVocabulary(label, "tiktoken", tuple(tokens), _fold(tokens, raw))
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise FileProblem(f"{label}: not whole JSON; fetch the tokenizer file again") from None
    try:
        if isinstance(data.get("model"), Mapping):
            pairs = _in_order(_hf_tokens(data, label), label)
            tokens = [token for token, _ in pairs]
            return FileVocabulary(label, "hf-json", tuple(tokens), _fold(tokens, [raw for _, raw in pairs]))
        if isinstance(data.get("vocab"), list) and isinstance(data.get("config"), Mapping):
            tokens = _in_order(_tekken_tokens(data, label), label)
            return FileVocabulary(label, "tekken", tuple(tokens), folding_table(tokens))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{label}: a token entry is damaged ({type(error).__name__}: {error})") from None
    raise BadInput(f"{label}: no tokenizer file; give a Hugging Face tokenizer.json, a tekken JSON or a tiktoken file")


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise FileProblem(f"{path}: larger than {MAX_TOKENIZER_BYTES >> 20} MiB; no tokenizer file is")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileProblem(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise FileProblem(f"{path}: not text; give a tokenizer.json, a tekken JSON or a tiktoken ranks file") from None
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({error.strerror or error})") from None


def _fold(tokens: Sequence[bytes], raw: Sequence[str]) -> npt.NDArray[np.int64]:
    ids: dict[str, int] = {}
    folded = np.empty(len(tokens), dtype=np.int64)
    for index, token in enumerate(tokens):
        text = token.decode("utf-8", errors="replace")
        key = raw[index] if _REPLACEMENT in text else (normalise(text) or text)
        folded[index] = ids.setdefault(key, len(ids))
    return folded


def _in_order(by_id: dict[int, Token], label: str) -> list[Token]:
    if not by_id:
        raise BadInput(f"{label}: holds no tokens")
    if min(by_id) < 0 or max(by_id) != len(by_id) - 1:
        hole = next((index for index in range(len(by_id)) if index not in by_id), min(by_id))
        raise BadInput(f"{label}: no token has id {hole}; folding needs every id from 0 to {max(by_id)}")
    return [by_id[index] for index in range(len(by_id))]


def _byte_alphabet() -> dict[int, str]:
    """The character byte-level BPE writes for each byte: printable Latin-1 as itself, the rest from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(0x100 + i) for i, byte in enumerate(rest)}}


_CHARACTERS = _byte_alphabet()
_BYTES = {character: byte for byte, character in _CHARACTERS.items()}


def _spelled(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)


def _tiktoken_tokens(text: str, label: str) -> dict[int, bytes]:
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            encoded, rank_text = line.split()
            rank, token = int(rank_text), base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise BadInput(f"{label}: line {number} is not 'base64 rank', as in a tiktoken ranks file") from None
        _add(tokens, rank, token, label)
    return tokens


def _tekken_tokens(data: Mapping[str, Any], label: str) -> dict[int, bytes]:  # Any: raw JSON
    """The ranks a model uses: the vocabulary less its special tokens, which the built-in tekken leaves out too."""
    limit = data["config"]["default_vocab_size"] - data["config"]["default_num_special_tokens"]
    tokens: dict[int, bytes] = {}
    for entry in data["vocab"][:limit]:
        _add(tokens, entry["rank"], base64.b64decode(entry["token_bytes"], validate=True), label)
    return tokens


def _hf_tokens(data: Mapping[str, Any], label: str) -> dict[int, tuple[bytes, str]]:  # Any: raw JSON
    """Decoded bytes and raw string of every token; added tokens decode to their content."""
    model = data["model"]
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), Mapping):
        raise BadInput(f"{label}: model type {model.get('type')!r} cannot be folded; only BPE vocabularies can")
    added = {entry["id"]: entry["content"] for entry in data.get("added_tokens") or []}
    is_byte_level, num_stripped = _decoder(data.get("decoder"), label)
    tokens: dict[int, tuple[bytes, str]] = {}
    for text, token_id in model["vocab"].items():
        if token_id in added:
            continue
        decoded = _byte_level(text, token_id, label) if is_byte_level else _with_fallback(text, num_stripped)
        _add(tokens, token_id, (decoded, text), label)
    for token_id, content in added.items():
        _add(tokens, token_id, (content.encode("utf-8"), content), label)
    return tokens


def _decoder(decoder: Any, label: str) -> tuple[bool, int]:  # Any: raw JSON
    """Whether the decoder is byte-level; else how many leading blanks it takes from a text.

    Raises:
        BadInput: a decoder whose single-token texts are not known here.
    """
    steps = decoder.get("decoders", [decoder]) if isinstance(decoder, Mapping) else []
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return True, 0
    replaces = any(
        step.get("type") == "Replace" and step.get("pattern") == {"String": _BLANK} and step.get("content") == " "
        for step in steps
    )
    strips = [step for step in steps if step.get("type") == "Strip"]
    is_plain = all(step.get("content") == " " and step.get("stop") == 0 for step in strips)
    known = {"Replace", "ByteFallback", "Fuse", "Strip"}
    if replaces and "ByteFallback" in kinds and set(kinds) <= known and kinds.count("Replace") == 1 and is_plain:
        return False, sum(int(step["start"]) for step in strips)
    shown = ", ".join(str(kind) for kind in kinds) or "none"
    raise BadInput(f"{label}: decoder {shown} is not known; known: ByteLevel, or Replace of {_BLANK} with ByteFallback")


def _byte_level(text: str, token_id: int, label: str) -> bytes:
    try:
        return bytes(_BYTES[character] for character in text)
    except KeyError as error:
        raise BadInput(f"{label}: token {token_id} holds {error.args[0]!r}, which stands for no byte") from None


def _with_fallback(text: str, num_stripped: int) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        decoded = bytes([int(text[3:5], 16)])
    else:
        decoded = text.replace(_BLANK, " ").encode("utf-8")
    num_blanks = len(decoded) - len(decoded.lstrip(b" "))
    return decoded[min(num_stripped, num_blanks) :]


def _add(tokens: dict[int, Token], token_id: Any, token: Token, label: str) -> None:  # Any: raw JSON
    if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < MAX_TOKENS:
        raise BadInput(f"{label}: token id {token_id!r}; must be a whole number from 0 to {MAX_TOKENS - 1}")
    if token_id in tokens:
        raise BadInput(f"{label}: two tokens have id {token_id}")
    tokens[token_id] = token
