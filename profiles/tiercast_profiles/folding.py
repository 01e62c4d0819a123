"""Token folding: many token ids become one before they are hashed.

The published chain (arXiv 2601.07372 App. C; reference ``CompressedTokenizer``): NFKC → NFD → strip accents → lower
case → runs of blank, tab, CR, LF become one space → a lone space is kept by a sentinel → strip. New ids are handed out
in order of first appearance. The reference runs the chain in the Hugging Face ``tokenizers`` library, whose steps
differ from Python's string methods in three places; each is marked below.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Unicode White_Space, which is what that library strips; Python's strip() also takes U+001C … U+001F.
_WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_BLANKS = re.compile(r"[ \t\r\n]+")
_SENTINEL = "\ue000"
_REPLACEMENT = "\ufffd"


def normalise(text: str) -> str:
    """The published normaliser chain applied to one decoded token."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    # "Accents" are all marks (Mn, Mc, Me); lower case is taken character by character, without the final-sigma rule.
    text = "".join(character.lower() for character in text if unicodedata.category(character)[0] != "M")
    text = _BLANKS.sub(" ", text)
    if text == " ":
        text = _SENTINEL
    return text.strip(_WHITE_SPACE).replace(_SENTINEL, " ")


def folding_key(token: bytes) -> str:
    """What decides which tokens fold together: the normalised text, the raw text if that is empty.

    A token that is not whole UTF-8 keeps its raw bytes as key, so partial characters never merge.
    """
    text = token.decode("utf-8", errors="replace")
    if _REPLACEMENT in text:
        return "bytes:" + token.hex()
    return "text:" + (normalise(text) or text)


def folding_table(tokens: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Folded id of every token id, ``[len(tokens)] int64``; ids are dense and start at 0."""
    ids: dict[str, int] = {}
    return np.array([ids.setdefault(folding_key(token), len(ids)) for token in tokens], dtype=np.int64)
