"""What every record of a benchmark says of the machine, and writing it. No benchmark itself."""

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path

import numpy as np

from tiercast_runtime.device import num_cores
from tiercast_runtime.probes.host import read_host


def write_record(path: Path, figures: dict[str, object], **facts: object) -> None:
    """Write figures as JSON, with date, commit and machine."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=False
    ).stdout.strip()
    record = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "git_commit": commit + ("+changes" if changed else ""),
        "cpu_model": read_host().cpu_model,
        "num_cores": num_cores(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **facts,
        "figures": figures,
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")
