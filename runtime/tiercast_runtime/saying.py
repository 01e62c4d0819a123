"""Lines of JSON from a process to the one that started it."""

import json
import os
import sys
from collections.abc import Callable

Say = Callable[[dict[str, object]], None]


def say_on_stdout() -> Say:
    """What writes a message to standard output, where nothing else does from now on.

    Libraries print there too (NCCL its version); what they do goes to standard error.
    """
    said = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(message: dict[str, object]) -> None:
        said.write(json.dumps(message) + "\n")
        said.flush()

    return say
