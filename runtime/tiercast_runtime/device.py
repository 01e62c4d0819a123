"""Which device computes, with how many threads, and what to call it."""

import os
from pathlib import Path

import torch


def pick_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def num_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def num_compute_threads() -> int:
    """Compute threads: one core is left to the lookup worker, where there is more than one."""
    return max(1, num_cores() - 1)


def set_compute_threads(count: int | None = None) -> int:
    """Give torch ``count`` compute threads (default: all cores but one) and return the count."""
    threads = num_compute_threads() if count is None else count
    torch.set_num_threads(threads)
    return threads


def describe(device: torch.device) -> str:
    """Product name of the device: the GPU's, or the CPU's as the kernel reports it."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "CPU"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, "CPU")
