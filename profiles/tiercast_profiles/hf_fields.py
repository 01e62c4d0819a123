"""Fields of a Hugging Face config by name, each checked, each complaint naming the file and the key."""

from collections.abc import Mapping
from typing import Any

from tiercast_profiles.errors import BadInput

DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "fp4": 0.5}


class HfFields:
    """A config with its label, so that every complaint names the file and the key."""

    def __init__(self, data: Mapping[str, Any], label: str) -> None:
        self.data, self.label = data, label

    def get(self, *names: str) -> Any:  # Any: raw JSON value
        """The first of the names that is set, or None."""
        return next((self.data[name] for name in names if self.data.get(name) is not None), None)

    def integer(self, *names: str, default: int | None = None, minimum: int = 1, maximum: int = 10**12) -> int:
        """A whole number, or the default where none of the names is set."""
        value = self.get(*names)
        if value is None:
            if default is None:
                raise BadInput(
                    f"{self.label}: missing key {' or '.join(names)}; it is neither in the config nor derivable"
                )
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise BadInput(
                f"{self.label}: {names[0]}={value!r} must be a whole number of at least {minimum} and at most {maximum}"
            )
        return value

    def integers(self, *names: str) -> list[int]:
        """A list of whole numbers."""
        value = self.get(*names)
        if value is None:
            raise BadInput(f"{self.label}: missing key {' or '.join(names)}; it is neither in the config nor derivable")
        if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            raise BadInput(f"{self.label}: {names[0]}={value!r} must be a list of whole numbers")
        return value

    def dtype(self, *names: str, default: str | None = None) -> str:
        """A dtype by its Hugging Face name, or the default."""
        value = self.get(*names)
        value = default if value is None else value
        if value is None:
            raise BadInput(f"{self.label}: missing key {' or '.join(names)}; it is neither in the config nor derivable")
        if not isinstance(value, str) or value not in DTYPE_BYTES:
            raise BadInput(f"{self.label}: {names[0]}={value!r} is not known; known: {', '.join(DTYPE_BYTES)}")
        return value
