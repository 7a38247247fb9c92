"""OpenMP gets to know how its threads shall wait, unless the user has said it."""

import os
import re
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = "from runtime import process; process.spin_briefly(); import torch"


@pytest.mark.parametrize("given, spins", [({}, "3000"), ({"OMP_WAIT_POLICY": "passive"}, "0")])
def test_openmp_itself_says_how_it_waits(given, spins):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    environment.update(given, OMP_DISPLAY_ENV="verbose", PYTHONPATH=ROOT)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    said = done.stderr.replace(" ", "")
    assert "OMP_WAIT_POLICY='PASSIVE'" in said
    # GNU's OpenMP names this as well; LLVM's, which torch has on macOS, does not know it
    expected = [spins] if sys.platform == "linux" else []
    assert re.findall(r"GOMP_SPINCOUNT='(\d+)'", said) == expected
