"""What sets one family of n-gram memories apart from another, as data: every switch in the code reads this table.

``demo`` and ``v41`` are described in full by what was published (arXiv 2601.07372, ``engram_demo_v1.py``; vLLM
docs/features/engram.md). Of ``qwen4exp`` (Qwen3.8-Flash-Next, "n-gram PLE") the orders, heads, layer, base size, row
width and the presence of a convolution are published; hash multipliers, blocking and bias are taken from the demo and
are assumed (Assumption A31). Of ``longcat`` (arXiv 2601.21204) the sizes are published, and that a polynomial rolling
hash is used; its constants are not known here, so it can be sized and simulated but not hashed.
"""

from dataclasses import dataclass
from typing import Literal

Dialect = Literal["demo", "v41", "qwen4exp", "longcat"]


@dataclass(frozen=True, slots=True)
class DialectRules:
    """The rules of one dialect.

    ``hash_evidence``: how well the hash is known; ``unknown`` means it is refused. ``blocks_farther``: a missing
    look-back blocks every farther one too. ``table_row_multiple``: a table is filled up with rows no hash names.
    """

    hash_evidence: Literal["published", "assumed", "unknown"]
    blocks_farther: bool
    has_prime_sizes: bool
    has_gate: bool
    has_bias: bool
    has_convolution: bool
    rounds_to_bf16: bool
    table_row_multiple: int = 1


RULES: dict[Dialect, DialectRules] = {
    "demo": DialectRules(
        hash_evidence="published",
        blocks_farther=False,
        has_prime_sizes=True,
        has_gate=True,
        has_bias=True,
        has_convolution=True,
        rounds_to_bf16=False,
    ),
    "v41": DialectRules(
        hash_evidence="published",
        blocks_farther=True,
        has_prime_sizes=True,
        has_gate=True,
        has_bias=False,
        has_convolution=False,
        rounds_to_bf16=True,
    ),
    # 16 primes from 20,000,000 on add up to 320,001,446; the published 320,001,536 is the next multiple of 128 (and of
    # 256 and 512), so the table is taken to be filled up to that.
    "qwen4exp": DialectRules(
        hash_evidence="assumed",
        blocks_farther=False,
        has_prime_sizes=True,
        has_gate=True,
        has_bias=True,
        has_convolution=True,
        rounds_to_bf16=False,
        table_row_multiple=128,
    ),
    "longcat": DialectRules(
        hash_evidence="unknown",
        blocks_farther=False,
        has_prime_sizes=False,
        has_gate=False,
        has_bias=False,
        has_convolution=False,
        rounds_to_bf16=False,
    ),
}
