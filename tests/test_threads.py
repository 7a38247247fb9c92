"""OpenMP gets to know how its threads shall wait, unless the user has said it."""

import math
import os
import re
import subprocess
import sys
from unittest import mock

import pytest
import torch

import models
from parallel import group
from pretrained import inference
from runtime import command, process

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


@pytest.mark.parametrize(
    "groups, files, cores",
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 50000"}, 4),
        ("0::/of/the/host\n", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/a\n", {}, math.inf),
        (
            "5:memory:/m\n4:cpu,cpuacct:/d/1\n0::/\n",
            {"cpu/d/1/cpu.cfs_quota_us": "300000", "cpu/d/1/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            "4:cpu:/of/the/host\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            math.inf,
        ),
        ("4:cpuacct,cpuset:/\n", {"cpu.max": "100000 100000"}, math.inf),
    ],
)
def test_the_quota_of_a_container(tmp_path, groups, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "cgroup").write_text(groups)
    assert process.quota(tmp_path / "cgroup", tmp_path) == cores


def test_commands_of_one_process_spin_briefly_too(monkeypatch):
    monkeypatch.setattr(command, "begin", lambda: None)
    with mock.patch.dict(os.environ):
        os.environ.pop("OMP_WAIT_POLICY", None)
        with pytest.raises(SystemExit) as ended:
            command.run(lambda: os.environ["OMP_WAIT_POLICY"])
    assert ended.value.code == "PASSIVE"


@pytest.mark.parametrize("begin", [group.join, lambda: inference.load_folded("net.pth")])
@pytest.mark.parametrize(
    "quota, given, threads", [(1.5, None, 1), (0.5, None, 1), (math.inf, None, 2), (1, "2", 2)]
)
def test_a_quota_limits_the_default_threads(monkeypatch, quota, given, threads, begin):
    monkeypatch.setattr(models, "load", lambda *_: torch.nn.Linear(1, 1))
    monkeypatch.setattr(process, "quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    found = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: found[-1])
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    begin()
    assert found[-1] == threads
