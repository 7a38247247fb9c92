"""How many cores there are, and how OpenMP threads wait for one another.

They spin for about 30 microseconds, then sleep.

By default they spin for milliseconds. When cores are shared with loading workers or other programs,
spinning threads starve each other: an iteration took 3.3 s instead of 0.44 s on two cores. Threads
that sleep at once make an iteration up to a tenth slower on an idle machine.
"""

import os


def cores():
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def spin_briefly():
    """Set the waiting policy in the environment. Call it before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for an OpenMP other than GNU's: sleep at once
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
