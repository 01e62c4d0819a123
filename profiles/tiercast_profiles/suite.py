"""A suite of scenarios that is measured and predicted as a whole, and the part of it that is held out."""

from typing import Any, Self

from pydantic import Field, model_validator

from tiercast_profiles.document import Strict

Settings = dict[str, Any]  # dotted scenario paths and their values; the scenario schema checks them


class Work(Strict):
    """One kind of work and the arms that do it; ``baseline`` is the arm that penalties are counted against."""

    settings: Settings
    arms: tuple[str, ...] = Field(min_length=2)


class Suite(Strict):
    """Works × arms over one base scenario. A case is named ``work/arm``.

    ``base`` lacks the hardware: a suite is run on the machine at hand, from its own profile.
    """

    schema_version: int = Field(ge=1, le=1)
    description: str = Field(min_length=1)
    base: Settings
    baseline: str
    arms: dict[str, Settings]
    works: dict[str, Work]

    @model_validator(mode="after")
    def _arms_are_known(self) -> Self:
        for name, work in self.works.items():
            unknown = sorted(set(work.arms) - set(self.arms))
            if unknown:
                raise ValueError(f"work {name!r} names unknown arms: {', '.join(unknown)}")
            if self.baseline not in work.arms:
                raise ValueError(f"work {name!r} lacks the baseline arm {self.baseline!r}")
        return self

    def case_names(self) -> tuple[str, ...]:
        """Every case, work by work."""
        return tuple(f"{name}/{arm}" for name, work in self.works.items() for arm in work.arms)


class HeldOut(Strict):
    """Cases that no constant of the model was chosen on; declared before they were run."""

    schema_version: int = Field(ge=1, le=1)
    declared: str = Field(min_length=8)
    cases: tuple[str, ...] = Field(min_length=1)
