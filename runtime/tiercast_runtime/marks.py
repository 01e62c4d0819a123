"""Points in the compute stream, and the time between two of them."""

import torch

from tiercast_profiles.units import NS_PER_MS


class Mark:
    """A point in the compute stream: a host clock reading, and on a GPU an event, which says when it was reached."""

    __slots__ = ("_event", "_host_ns")

    def __init__(self, device: torch.device, host_ns: int) -> None:
        self._host_ns = host_ns
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # as torch ships it
            self._event.record()

    def since_ns(self, earlier: "Mark") -> int:
        """Time between two marks; on a GPU only once the stream has passed both."""
        if self._event is None or earlier._event is None:
            return self._host_ns - earlier._host_ns
        elapsed_ms: float = earlier._event.elapsed_time(self._event)
        return round(elapsed_ms * NS_PER_MS)
