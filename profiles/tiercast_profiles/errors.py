"""Every error Tiercast raises on purpose, and the exit code each one gives a shell.

::

    TiercastError                     exit 1
    ├── CheckFailed                   exit 1   a result does not pass a check the user asked for
    ├── BadInput                      exit 2   a file, name or value is wrong
    │   ├── UnknownName               exit 2   no shipped hardware, model or price book of that name
    │   │   ├── UnknownHardware
    │   │   ├── UnknownModel
    │   │   └── UnknownPrices
    │   │       └── NoDevicePrice     exit 2   the price book has no price for this hardware
    │   └── FileProblem               exit 2   missing, unreadable, truncated, or the disk is full
    ├── InfeasibleScenario            exit 3   well formed, but it does not fit
    └── MissingCapability             exit 4   this machine or this install lacks what is needed

A message says what was given, what is allowed and what to do, in one line.
"""

from collections.abc import Iterable

MAX_SHOWN = 60


def shown(value: object) -> str:
    """A given value as a message shows it: as Python writes it, cut to ``MAX_SHOWN`` characters."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


class TiercastError(Exception):
    """Base of all deliberate errors; ``exit_code`` is what the command line returns."""

    exit_code = 1


class CheckFailed(TiercastError):
    """A result does not pass a check that was asked for."""

    exit_code = 1


class BadInput(TiercastError):
    """A file, a name or a value is not acceptable."""

    exit_code = 2


class UnknownName(BadInput):
    """Nothing of that name is shipped; carries the names that are."""

    noun = "name"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(
            f"unknown {self.noun} {shown(name)}; known: {', '.join(self.known)}; or give the path of a {self.noun} file"
        )


class UnknownHardware(UnknownName):
    """No shipped hardware profile has that name. Never answered with a default."""

    noun = "hardware"


class UnknownModel(UnknownName):
    """No shipped model has that name."""

    noun = "model"


class UnknownPrices(UnknownName):
    """No shipped price book has that name, or the book has no price for what was asked."""

    noun = "price book"


class UnknownCase(UnknownName):
    """No published case of that name is shipped."""

    noun = "published case"


class NoDevicePrice(UnknownPrices):
    """The price book has no device price for this hardware. A price is never derived from another machine's."""

    def __init__(self, hardware_name: str, book_name: str, known: Iterable[str]) -> None:
        super().__init__(hardware_name, known)
        self.args = (
            f"price book {book_name!r} has no device price for hardware {hardware_name!r}; "
            f"it has: {', '.join(self.known) or 'none'}; add one under devices and give the file with --prices",
        )


class FileProblem(BadInput):
    """A file is missing, unreadable, truncated or cannot be written."""


class InfeasibleScenario(TiercastError):
    """The scenario is well formed but does not fit; ``shortfall_bytes`` says by how much where memory is the reason."""

    exit_code = 3

    def __init__(self, message: str, shortfall_bytes: int = 0) -> None:
        self.shortfall_bytes = shortfall_bytes
        super().__init__(message)


class MissingCapability(TiercastError):
    """This machine, or this installation, lacks something the request needs."""

    exit_code = 4
