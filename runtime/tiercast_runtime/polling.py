"""How long the thread that computes asks for rows before it sleeps until they come.

A core that is given away while a drive reads comes back slower: its clock is down and, on a virtual machine, the
hypervisor has lent it to others. The layers behind the wait pay for that (benchmarks/bench_polling.py), so the thread
keeps its core and asks again and again, as storage stacks in user space do. It stops after ``LIMIT_NS``: a drive that
is stuck is not worth a core.
"""

import time

from tiercast_profiles.units import NS_PER_MS

# Longer than lookups of the largest chunks take on a virtual NVMe drive (3,072 rows of 264 B: 36 ms on two-core-epyc).
LIMIT_NS = 50 * NS_PER_MS


def polling_ends_ns(*, polls: bool) -> int:
    """When a wait that begins now stops asking, on the clock of ``perf_counter_ns``; 0 where it is not to ask at all.

    Args:
        polls: whether the waiting thread has a core that nothing else it waits for needs.
    """
    return time.perf_counter_ns() + LIMIT_NS if polls and LIMIT_NS else 0
