"""What is asked of a serving engine: how requests arrive, how long they are, what text they carry."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Discriminator, Field, Tag, model_validator

from tiercast_profiles.arrivals import gaps_ns, switched
from tiercast_profiles.document import Grown, Strict, canonical_sha256
from tiercast_profiles.rng import stream
from tiercast_profiles.trace_file import file_stamp, read_trace, trace_sha256

MAX_REQUESTS = 10_000_000
MAX_TOKENS = 10_000_000
MAX_ARRIVALS_S = 1e9
MAX_SPELLS = 10_000_000


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


_LENGTHS = frozenset({"num_requests", "prompt_tokens", "output_tokens"})


class OnOff(Strict):
    """A source that sends only while it is on; both spells are exponential with these means."""

    mean_on_s: float = Field(gt=0, le=1e6)
    mean_off_s: float = Field(gt=0, le=1e6)


class Workload(Grown):
    """The workload section of a scenario.

    ``requests_per_s`` is the mean rate over all time: with ``on_off`` requests come faster while the source is on.
    """

    added_fields = frozenset({"burstiness", "on_off", "file", "trace_speedup", "shared_prefix_tokens"})
    _of_kind: ClassVar[dict[str, tuple[frozenset[str], frozenset[str]]]] = {
        # needed, and allowed beside these and text
        "closed_loop": (_LENGTHS | {"concurrency"}, frozenset({"shared_prefix_tokens"})),
        "poisson": (_LENGTHS | {"requests_per_s"}, frozenset({"burstiness", "on_off", "shared_prefix_tokens"})),
        "trace": (frozenset({"file"}), frozenset({"trace_speedup", "num_requests"})),
    }

    kind: Literal["closed_loop", "poisson", "trace"]
    concurrency: int | None = Field(default=None, gt=0, le=1_000_000)
    requests_per_s: float | None = Field(default=None, ge=1e-6, le=1e6)
    burstiness: float = Field(default=1.0, ge=0.001, le=1000)
    on_off: OnOff | None = None
    file: str | None = Field(default=None, min_length=1)
    trace_speedup: float = Field(default=1.0, ge=1e-6, le=1e6)
    num_requests: int | None = Field(default=None, gt=0, le=MAX_REQUESTS)
    prompt_tokens: Lengths | None = None
    output_tokens: Lengths | None = None
    shared_prefix_tokens: int = Field(default=0, ge=0, le=MAX_TOKENS)
    text: str = Field(default="random", min_length=1)

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        needed, allowed = self._of_kind[self.kind]
        every = {name for names in self._of_kind.values() for part in names for name in part}
        given = {name for name in every if getattr(self, name) != type(self).model_fields[name].default}
        missing, other = sorted(needed - given), sorted(given - needed - allowed)
        if missing or other:
            also = f" and no {' or '.join(other)}" if other else ""
            raise ValueError(f"{self.kind} needs {', '.join(missing or sorted(needed))}{also}")
        return self

    @model_validator(mode="after")
    def _arrivals_end(self) -> Self:
        if self.num_requests is None or self.requests_per_s is None:
            return self
        lasts_s = self.num_requests / self.requests_per_s
        if lasts_s > MAX_ARRIVALS_S:
            raise ValueError(
                f"{self.num_requests} requests at requests_per_s={self.requests_per_s:g} take {lasts_s:g} s to arrive; "
                f"at most {MAX_ARRIVALS_S:g} s; raise the rate or lower num_requests"
            )
        if self.on_off is not None and lasts_s / (self.on_off.mean_on_s + self.on_off.mean_off_s) > MAX_SPELLS:
            raise ValueError(
                f"on_off switches more than {MAX_SPELLS} times in {lasts_s:g} s of arrivals; lengthen its spells"
            )
        return self

    def stamp(self) -> tuple[int, int] | None:
        """Changes when a trace file does; None where no file is read."""
        return None if self.file is None else file_stamp(self.file)

    def identity(self) -> dict[str, Any]:  # Any: any field
        """What decides the requests: a trace counts by what it holds, not by where its file lies."""
        data = self.model_dump(mode="json")
        if self.file is not None:
            data["file"] = trace_sha256(self.file, self.num_requests)
        return data


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it may start and how long it is.

    ``arrival_ns`` is relative to run start; 0 for ``closed_loop``, where a request starts when an earlier one of its
    concurrency slot ends. ``hash_ids`` are those of a trace, empty elsewhere. The first ``shared_prefix_tokens`` are
    the same in every request that has so many.
    """

    request_id: int
    arrival_ns: int
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    shared_prefix_tokens: int = 0


Column = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RequestShapes:
    """When each request arrives (as :class:`Request`) and how long it is, ``[num_requests] int64`` each."""

    arrival_ns: Column
    prompt_tokens: Column
    output_tokens: Column


def warm_up_requests(requests: Sequence[Request]) -> tuple[Request, ...]:
    """Requests of a warm-up that decides what a ``static_hot`` cache holds.

    Assumption A80: as many requests of the same lengths from the same text, at starts of their own.
    """
    after = max((request.request_id for request in requests), default=-1) + 1
    return tuple(replace(request, request_id=after + request.request_id) for request in requests)


def draw_lengths(lengths: Lengths, count: int, generator: np.random.Generator) -> Column:
    """``count`` positive lengths from the law."""
    if isinstance(lengths, Fixed):
        return np.full(count, lengths.fixed, dtype=np.int64)
    if isinstance(lengths, Uniform):
        low, high = lengths.uniform
        return generator.integers(low, high, size=count, endpoint=True, dtype=np.int64)
    median, sigma = lengths.lognormal
    drawn = median * np.exp(sigma * generator.standard_normal(count))
    return np.clip(np.rint(drawn), 1, MAX_TOKENS).astype(np.int64)


def draw_shapes(workload: Workload, seed: int) -> RequestShapes:
    """Arrivals and lengths of :func:`draw_requests` as columns: 24 bytes a request.

    Raises:
        FileProblem: a trace cannot be read.
        BadInput: a line of a trace is not a request.
    """
    if workload.file is not None:
        requests = draw_requests(workload, seed)
        columns = zip(*((r.arrival_ns, r.prompt_tokens, r.output_tokens) for r in requests), strict=True)
        return RequestShapes(*(np.array(column, dtype=np.int64) for column in columns))
    count = workload.num_requests
    assert count is not None, "validated"
    assert workload.prompt_tokens is not None, "validated"
    assert workload.output_tokens is not None, "validated"
    prompts = draw_lengths(workload.prompt_tokens, count, stream(seed, "prompt-tokens"))
    outputs = draw_lengths(workload.output_tokens, count, stream(seed, "output-tokens"))
    arrivals = np.zeros(count, dtype=np.int64)
    if workload.requests_per_s is not None:
        arrivals = _drawn_arrivals(workload, workload.requests_per_s, count, seed)
    return RequestShapes(arrivals, prompts, outputs)


def draw_requests(workload: Workload, seed: int) -> tuple[Request, ...]:
    """All requests of a workload, in arrival order: the same list for the runtime and for the simulator.

    Raises:
        FileProblem: a trace cannot be read.
        BadInput: a line of a trace is not a request.
    """
    if workload.file is not None:
        lines = read_trace(workload.file, workload.num_requests)
        speedup = workload.trace_speedup
        return tuple(
            Request(i, round(line.arrival_ns / speedup), line.prompt_tokens, line.output_tokens, line.hash_ids)
            for i, line in enumerate(lines)
        )
    shapes = draw_shapes(workload, seed)
    columns = zip(shapes.arrival_ns.tolist(), shapes.prompt_tokens.tolist(), shapes.output_tokens.tolist(), strict=True)
    shared = workload.shared_prefix_tokens
    return tuple(
        Request(i, arrival_ns, prompt, output, (), min(shared, prompt))
        for i, (arrival_ns, prompt, output) in enumerate(columns)
    )


def _drawn_arrivals(workload: Workload, requests_per_s: float, count: int, seed: int) -> Column:
    on_off = workload.on_off
    if on_off is None:
        return np.cumsum(gaps_ns(count, requests_per_s, workload.burstiness, seed)).astype(np.int64)
    rate_on = requests_per_s * (on_off.mean_on_s + on_off.mean_off_s) / on_off.mean_on_s
    busy_ns = np.cumsum(gaps_ns(count, rate_on, workload.burstiness, seed))
    return switched(busy_ns, on_off.mean_on_s, on_off.mean_off_s, seed).astype(np.int64)


def workload_sha256(workload: Workload, seed: int, vocabulary: str, text_sha256: str) -> str:
    """Identity of the work itself: two records may be compared only when this is equal."""
    return canonical_sha256(
        {
            "workload": workload.identity(),
            "seed": seed,
            "vocabulary": vocabulary,
            "text_sha256": text_sha256,
        }
    )
