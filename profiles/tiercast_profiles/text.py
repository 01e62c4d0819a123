"""Real token ids for a workload: a real byte-pair vocabulary over real text, both found inside installed packages.

``docs`` is the Python manual as shipped in ``pydoc_data``; ``code`` is the source of the standard library; a path is
the user's own text. ``random`` is uniform token ids, whose n-grams hardly ever repeat.
"""

import base64
import hashlib
import json
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import BadInput, FileProblem, MissingCapability
from tiercast_profiles.folding import folding_table
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.rng import stream
from tiercast_profiles.trace_file import HASH_BLOCK_TOKENS
from tiercast_profiles.workload import Request

if TYPE_CHECKING:
    import tiktoken

TEKKEN_FILE = "tekken_240911.json"
MAX_TEXT_BYTES = 24 << 20
_TEXT_EXTRA = "install the text extra: pip install 'tiercast[text]'"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-pair vocabulary: its name, the bytes of each token and the folded id of each token."""

    name: str
    tokens: tuple[bytes, ...]
    folding: npt.NDArray[np.int64]
    encoding: "tiktoken.Encoding"

    @property
    def num_folded(self) -> int:
        """Distinct ids after folding."""
        return int(self.folding.max()) + 1


@lru_cache(maxsize=4)
def tekken(num_ranks: int | None = None) -> Vocabulary:
    """The tekken vocabulary, or its first ``num_ranks`` merges (itself a byte-pair vocabulary, trained shorter).

    Raises:
        MissingCapability: the text extra is not installed.
        BadInput: more ranks asked for than there are.
    """
    try:
        import tiktoken

        raw = (resources.files("mistral_common") / "data" / TEKKEN_FILE).read_bytes()
    except (ImportError, FileNotFoundError):
        raise MissingCapability(f"a real vocabulary is needed and none is installed; {_TEXT_EXTRA}") from None
    data = json.loads(raw)
    limit = data["config"]["default_vocab_size"] - data["config"]["default_num_special_tokens"]
    if num_ranks is not None and not 256 <= num_ranks <= limit:
        raise BadInput(f"tokenizer_num_ranks={num_ranks}; tekken has 256 to {limit}")
    count = num_ranks or limit
    tokens = tuple(base64.b64decode(entry["token_bytes"]) for entry in data["vocab"][:count])
    encoding = tiktoken.Encoding(
        "tekken",
        pat_str=data["config"]["pattern"],
        mergeable_ranks={t: i for i, t in enumerate(tokens)},
        special_tokens={},
    )
    name = f"{Path(TEKKEN_FILE).stem}/{count}"
    return Vocabulary(name=name, tokens=tokens, folding=folding_table(tokens), encoding=encoding)


@dataclass(frozen=True, slots=True)
class TokenText:
    """Token ids of a whole text, ``[n] int64``, with the vocabulary and a hash that identify them.

    ``is_stand_in`` is true when the model's own vocabulary is not at hand and tekken was used instead: reuse figures
    are then those of similar, not identical, tokens.
    """

    name: str
    vocabulary: str
    sha256: str
    token_ids: npt.NDArray[np.int64]
    folded_ids: npt.NDArray[np.int64]
    num_text_bytes: int
    is_stand_in: bool


def read_text(name: str) -> str:
    """The characters behind a text name: ``docs``, ``code`` or a path.

    Raises:
        FileProblem: the path cannot be read as UTF-8 text or is empty.
    """
    if name == "docs":
        from pydoc_data.topics import topics

        return "\n\n".join(f"{key}\n{topics[key]}" for key in sorted(topics))
    if name == "code":
        root = Path(sysconfig.get_paths()["stdlib"])
        parts, size = [], 0
        for path in sorted(root.glob("*.py")) + sorted(root.glob("*/*.py")):
            if "site-packages" in path.parts or "test" in path.parts:
                continue
            parts.append(path.read_text(encoding="utf-8", errors="ignore"))
            size += len(parts[-1])
            if size > MAX_TEXT_BYTES // 4:
                break
        return "\n".join(parts)
    path = Path(name)
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise FileProblem(f"{path}: larger than {MAX_TEXT_BYTES >> 20} MiB; give a shorter sample of the text")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileProblem(f"text {name!r}: no such file; use random, docs, code or the path of a text file") from None
    except UnicodeDecodeError:
        raise FileProblem(f"text {name!r}: not UTF-8 text") from None
    except OSError as error:
        raise FileProblem(f"text {name!r}: cannot be read ({error.strerror or error})") from None
    if not text.strip():
        raise FileProblem(f"text {name!r}: empty")
    return text


@lru_cache(maxsize=8)
def _tokenise(name: str, num_ranks: int | None) -> tuple[npt.NDArray[np.int64], int]:
    text = read_text(name)
    token_ids = np.array(tekken(num_ranks).encoding.encode_ordinary(text), dtype=np.int64)
    token_ids.setflags(write=False)
    return token_ids, len(text.encode("utf-8"))


def load_text(name: str, model: ModelSpec) -> TokenText:
    """Tokenise a text with the model's vocabulary, or with tekken as a declared stand-in.

    ``random`` has no fixed ids: its ``token_ids`` are empty and :func:`request_token_ids` draws them.

    Raises:
        FileProblem: the text cannot be read.
        MissingCapability: the text extra is not installed.
        BadInput: the vocabulary does not match what the model file states.
    """
    empty = np.zeros(0, dtype=np.int64)
    if name == "random":
        label = f"uniform/{model.backbone.vocab_size}"
        return TokenText(name, label, hashlib.sha256(label.encode()).hexdigest(), empty, empty, 0, False)
    vocabulary = model_vocabulary(model)
    token_ids, num_text_bytes = _tokenise(name, model.tokenizer_num_ranks if model.tokenizer == "tekken" else None)
    return TokenText(
        name=name,
        vocabulary=vocabulary.name,
        sha256=hashlib.sha256(token_ids.tobytes()).hexdigest(),
        token_ids=token_ids,
        folded_ids=np.take(vocabulary.folding, token_ids),
        num_text_bytes=num_text_bytes,
        is_stand_in=model.tokenizer != "tekken",
    )


def model_vocabulary(model: ModelSpec) -> Vocabulary:
    """The model's vocabulary where it is at hand, tekken otherwise.

    Raises:
        BadInput: the model file states another vocabulary or folded size than the vocabulary has.
    """
    if model.tokenizer != "tekken":
        return tekken(None)
    vocabulary = tekken(model.tokenizer_num_ranks)
    if (len(vocabulary.tokens), vocabulary.num_folded) != (
        model.backbone.vocab_size,
        model.engram.compressed_vocab_size,
    ):
        raise BadInput(
            f"model {model.name!r} states {model.backbone.vocab_size} tokens folded to "
            f"{model.engram.compressed_vocab_size}; its vocabulary has {len(vocabulary.tokens)} folded to "
            f"{vocabulary.num_folded}"
        )
    return vocabulary


def request_token_ids(text: TokenText, model: ModelSpec, request: Request, seed: int) -> npt.NDArray[np.int64]:
    """Prompt and output ids of one request, ``[prompt + output] int64``.

    A request reads a contiguous slice of the text from a random start (wrapping at the end), so that what it
    generates continues what it was prompted with; the runtime feeds these ids back in place of its own samples.
    Where requests share a prefix, by ``shared_prefix_tokens`` or by the ids of a trace, they read it from one place.
    """
    ids = _slice(text, model, request.prompt_tokens + request.output_tokens, str(request.request_id), seed)
    if request.shared_prefix_tokens:
        ids[: request.shared_prefix_tokens] = _slice(text, model, request.shared_prefix_tokens, "shared", seed)
    for index, hash_id in enumerate(request.hash_ids):
        start, stop = index * HASH_BLOCK_TOKENS, min((index + 1) * HASH_BLOCK_TOKENS, request.prompt_tokens)
        ids[start:stop] = _slice(text, model, HASH_BLOCK_TOKENS, f"hash/{hash_id}", seed)[: stop - start]
    return ids


def _slice(text: TokenText, model: ModelSpec, count: int, name: str, seed: int) -> npt.NDArray[np.int64]:
    """``count`` ids of the text from a random start that ``name`` decides, or as many random ids."""
    if text.name == "random":
        generator = stream(seed, f"random-text/{name}")
        return generator.integers(0, model.backbone.vocab_size, size=count, dtype=np.int64)
    start = int(stream(seed, f"text-start/{name}").integers(0, len(text.token_ids)))
    return np.take(text.token_ids, np.arange(start, start + count), mode="wrap")


def fold(token_ids: npt.NDArray[np.int64], text: TokenText, model: ModelSpec) -> npt.NDArray[np.int64]:
    """Folded ids of token ids under the text's vocabulary.

    ``random`` ids of a model whose vocabulary is not at hand are folded by ``id mod compressed_vocab_size``, which
    keeps the number of distinct ids right and is the only thing uniform ids ask for (Assumption A3).
    """
    if text.name == "random" and model.tokenizer != "tekken":
        return token_ids % model.engram.compressed_vocab_size
    return np.take(model_vocabulary(model).folding, token_ids)
