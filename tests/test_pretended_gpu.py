"""The CUDA path without a GPU: the tests of a GPU, and drills of their own, on a pretended one."""

import os
import re
import subprocess
import sys

import pytest
from support.pretended import gpu
from support.runs import ROOT, difference, results

pytestmark = pytest.mark.skipif(gpu.why_not() is not None, reason=str(gpu.why_not()))
RUNNER = os.path.join("tests", "support", "pretended", "gpu.py")
# of tests/test_cuda.py: those that run within seconds and need no NCCL and no compiler
QUICK = "(cpus_results and -3-resnet) or (precisions and false) or detections"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """start(words, folder, gpus, more): a process on pretended GPUs."""
    built = str(tmp_path_factory.mktemp("pretended"))
    gpu.environment(built)

    def start(words, folder=ROOT, gpus=1, **more):
        return subprocess.Popen(
            [sys.executable, os.path.join(ROOT, RUNNER), *words],
            cwd=folder,
            env={**gpu.environment(built, gpus), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.mark.parametrize(
    "file, chosen, count",
    [
        ("tests/support/pretended/drills.py", "test", 34),
        pytest.param("tests/test_cuda.py", QUICK, 6, marks=pytest.mark.slow),
    ],
)
def test_on_one_gpu(start, file, chosen, count):
    pytest_ = ["-m", "pytest", "--cuda", "-q", "-p", "no:cacheprovider", file, "-k", chosen]
    said, _ = start(pytest_).communicate(timeout=500)
    passed = re.search(r"^(\d+) passed", said, re.M)
    assert passed and int(passed[1]) >= count and " failed" not in said, said[-4000:]


@pytest.mark.slow
def test_two_gpus_train_what_one_process_trains(start, tmp_path):
    """Two ranks of one replica each, over gloo, and one process of two replicas on the CPU."""
    words = "-dataset digits -netType resnet -depth 8 -nEpochs 1 -nGPU 2 -batchSize 512"
    words = f"{words} -precision double -manualSeed 1 -cudnn deterministic -save".split()
    ranks = os.path.join(ROOT, "tests", "support", "pretended", "ranks.py")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [
        start([ranks, *words, "two"], tmp_path, 2, RANK=rank, LOCAL_RANK=rank, **place)
        for rank in "01"
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "=> 2 processes on cuda" in said[0]
    subprocess.run(
        [sys.executable, os.path.join(ROOT, "main.py"), *words, "one"], cwd=tmp_path, check=True
    )
    assert difference(results(tmp_path / "one", 1), results(tmp_path / "two", 1)) < 1e-12


def free_port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
