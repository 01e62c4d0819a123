"""What is asked of a serving engine: how requests arrive, how long they are, what text they carry."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Discriminator, Field, Tag, model_validator

from tiercast_profiles.document import Strict, canonical_sha256
from tiercast_profiles.errors import BadInput
from tiercast_profiles.rng import stream
from tiercast_profiles.units import NS_PER_S

MAX_REQUESTS = 10_000_000
MAX_TOKENS = 10_000_000


class Fixed(Strict):
    """Every request has the same length."""

    fixed: Annotated[int, Field(gt=0, le=MAX_TOKENS)]


class Uniform(Strict):
    """Lengths drawn from the integers low … high, both included."""

    uniform: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0, le=MAX_TOKENS)]]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.uniform[0] > self.uniform[1]:
            raise ValueError(f"uniform {list(self.uniform)}: the first number must not exceed the second")
        return self


class Lognormal(Strict):
    """Lengths drawn from a log-normal law with the given median and sigma of the logarithm."""

    lognormal: tuple[Annotated[float, Field(gt=0, le=MAX_TOKENS)], Annotated[float, Field(ge=0, le=4)]]


def _law(data: object) -> str | None:
    """Name of the law a mapping gives, so that a mistake in it is told about that law and not about the others."""
    keys = data if isinstance(data, dict) else getattr(type(data), "model_fields", ())
    return next((name for name in ("fixed", "uniform", "lognormal") if name in keys), None)


Lengths = Annotated[
    Annotated[Fixed, Tag("fixed")] | Annotated[Uniform, Tag("uniform")] | Annotated[Lognormal, Tag("lognormal")],
    Discriminator(
        _law,
        custom_error_type="unknown_law",
        custom_error_message="must be {fixed: n}, {uniform: [low, high]} or {lognormal: [median, sigma]}",
    ),
]


class Workload(Strict):
    """The workload section of a scenario."""

    kind: Literal["closed_loop", "poisson"]
    concurrency: int | None = Field(default=None, gt=0, le=1_000_000)
    requests_per_s: float | None = Field(default=None, gt=0, le=1e9)
    num_requests: int = Field(gt=0, le=MAX_REQUESTS)
    prompt_tokens: Lengths
    output_tokens: Lengths
    text: str = Field(default="random", min_length=1)

    @model_validator(mode="after")
    def _kind_has_its_rate(self) -> Self:
        if self.kind == "closed_loop" and (self.concurrency is None or self.requests_per_s is not None):
            raise ValueError("closed_loop needs concurrency and no requests_per_s")
        if self.kind == "poisson" and (self.requests_per_s is None or self.concurrency is not None):
            raise ValueError("poisson needs requests_per_s and no concurrency")
        return self


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it may start and how long it is.

    ``arrival_ns`` is relative to run start for ``poisson``; 0 for ``closed_loop``, where a request starts when an
    earlier one of its concurrency slot ends.
    """

    request_id: int
    arrival_ns: int
    prompt_tokens: int
    output_tokens: int


def draw_lengths(lengths: Lengths, count: int, generator: np.random.Generator) -> list[int]:
    """``count`` positive lengths from the law."""
    if isinstance(lengths, Fixed):
        return [lengths.fixed] * count
    if isinstance(lengths, Uniform):
        low, high = lengths.uniform
        return [int(n) for n in generator.integers(low, high, size=count, endpoint=True)]
    median, sigma = lengths.lognormal
    drawn = median * np.exp(sigma * generator.standard_normal(count))
    return [int(n) for n in np.clip(np.rint(drawn), 1, MAX_TOKENS)]


def draw_requests(workload: Workload, seed: int) -> tuple[Request, ...]:
    """All requests of a workload, in arrival order: the same list for the runtime and for the simulator."""
    count = workload.num_requests
    prompts = draw_lengths(workload.prompt_tokens, count, stream(seed, "prompt-tokens"))
    outputs = draw_lengths(workload.output_tokens, count, stream(seed, "output-tokens"))
    arrivals = [0] * count
    if workload.kind == "poisson":
        if workload.requests_per_s is None:
            raise BadInput("poisson needs requests_per_s")
        gaps = stream(seed, "arrivals").exponential(NS_PER_S / workload.requests_per_s, size=count)
        arrivals = [int(t) for t in np.cumsum(gaps)]
    return tuple(Request(i, arrivals[i], prompts[i], outputs[i]) for i in range(count))


def workload_sha256(workload: Workload, seed: int, vocabulary: str, text_sha256: str) -> str:
    """Identity of the work itself: two records may be compared only when this is equal."""
    return canonical_sha256(
        {
            "workload": workload.model_dump(mode="json"),
            "seed": seed,
            "vocabulary": vocabulary,
            "text_sha256": text_sha256,
        }
    )
