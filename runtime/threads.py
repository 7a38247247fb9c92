"""How OpenMP's threads wait for one another.

Nothing of the Lua. By default they spin for milliseconds, and starve each other once cores are
shared, with loading workers or another program: 3.3 s an iteration instead of 0.44 were seen on two
cores. Asleep at once, they take up to a tenth longer on a quiet machine. So they spin for some 30
microseconds and sleep then.
"""

import os


def spin_briefly():
    """Set this for a process that has not imported torch yet, and for its children."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for OpenMP that is not GNU's: asleep at once
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
