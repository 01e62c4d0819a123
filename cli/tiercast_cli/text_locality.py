"""Row reuse of one text under one model's tables, and what that looks like."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from tiercast_cli import render
from tiercast_profiles.errors import BadInput
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.text import load_text
from tiercast_sim.locality import Locality, locality


@dataclass(frozen=True, slots=True)
class TextLocality:
    """Reuse of a text, with what identifies the text and its tokens.

    ``is_stand_in`` is true when another real vocabulary was used because the model's own is not at hand.
    """

    text: str
    text_sha256: str
    num_text_bytes: int
    model: str
    vocabulary: str
    is_stand_in: bool
    is_cut: bool
    reuse: Locality


def measure(
    text: str,
    model: ModelSpec,
    *,
    cache_gib: Sequence[float],
    num_streams: Sequence[int],
    max_tokens: int | None = None,
    report: Callable[[str, float], None] = lambda _what, _ratio: None,
) -> TextLocality:
    """Tokenise a text with the model's vocabulary, or a declared stand-in, and measure its reuse.

    Raises:
        BadInput: ``random``, which has no text; or a size or count that is not positive.
        FileProblem: the text cannot be read.
        MissingCapability: the text extra is not installed.
    """
    if text == "random":
        raise BadInput("text 'random' has no n-grams to repeat; use docs, code or the path of a text file")
    tokens = load_text(text, model)
    folded = tokens.folded_ids if max_tokens is None else tokens.folded_ids[:max_tokens]
    num_done = count(1)
    total = len(cache_gib) * len(num_streams)
    reuse = locality(
        folded,
        model.engram,
        pad_id=model.engram.pad_token_id,
        cache_gib=cache_gib,
        num_streams=num_streams,
        progress=lambda: report("", next(num_done) / total),
    )
    return TextLocality(
        text=text,
        text_sha256=tokens.sha256,
        num_text_bytes=tokens.num_text_bytes,
        model=model.name,
        vocabulary=tokens.vocabulary,
        is_stand_in=tokens.is_stand_in,
        is_cut=len(folded) < len(tokens.folded_ids),
        reuse=reuse,
    )


def view(result: TextLocality) -> None:
    """Distinct n-grams by window, then hit ratios by cache size and number of streams."""
    reuse = result.reuse
    cut = "the first " if result.is_cut else ""
    render.heading(f"row reuse of {result.text}: {cut}{reuse.num_tokens:,} tokens of {result.vocabulary}")
    if result.is_stand_in:
        render.line(f"The vocabulary stands in for that of {result.model}, which is not shipped.")
    windows = sorted({share.window_tokens for share in reuse.windows})
    by_order = {(share.order, share.window_tokens): share.unique_ratio for share in reuse.windows}
    rows = [
        [
            f"{order}-grams",
            *(render.percent(by_order.get((order, window))) for window in windows),
            render.percent(reuse.distinct_ratio_by_order[order]),
        ]
        for order in sorted(reuse.distinct_ratio_by_order)
    ]
    columns = ["", *(f"in {window:,}\ntokens" for window in windows), "in all"]
    render.table("distinct n-grams, as a share of the tokens", columns, rows)
    if reuse.caches:
        _caches(reuse)
    if reuse.laws:
        _laws(reuse)


def _caches(reuse: Locality) -> None:
    points = [
        [
            f"{point.cache_gib:g}",
            f"{point.num_entries_per_layer:,}",
            str(point.num_streams),
            render.percent(point.lru_hit_ratio),
            render.percent(point.lfu_hit_ratio),
            render.percent(point.static_hot_hit_ratio),
            render.percent(point.optimal_hit_ratio),
            render.percent(point.static_hit_ratio),
            render.percent(point.law_hit_ratio),
        ]
        for point in reuse.caches
    ]
    columns = ["GiB", "n-grams\nper layer", "streams", "LRU", "LFU", "static\nhot", "optimal", "best\nfixed", "law"]
    render.table("row reads that a cache in front of the tables serves", columns, points, left=0)
    render.line("LRU, LFU and optimal (Belady) start empty: first reads miss whatever the size.")
    render.line("Static hot is chosen on the first half of the text and scored on the second.")
    render.line("The best fixed set is chosen with this very text in hand; no other fixed choice does better.")
    if reuse.laws:
        render.line("The law tells what a full LRU cache serves on an endless text of this kind.")


def _laws(reuse: Locality) -> None:
    rows = [
        [
            str(law.num_streams),
            f"{law.scale:.3f} x w^{law.exponent:.4f}",
            f"{law.shortest_window:,} .. {law.longest_window:,}",
            render.percent(law.distinct_residual_ratio),
            f"{100 * law.residual_ratio:.1f} pt",
        ]
        for law in reuse.laws
    ]
    columns = [
        "streams",
        "distinct n-grams\nin w reads",
        "fitted for w of",
        "largest error\nof the count",
        "of LRU hits",
    ]
    render.table("the law of reuse", columns, rows, left=0)
