"""The script for a GPU, tried on the CPU; results.csv.

What a benchmark prints is appended there, one cell a line, with where it ran.
"""

import contextlib
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import timing


def test_tables_are_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "results.csv")
    monkeypatch.setattr(sys, "argv", ["somewhere/step.py"])
    rows = [("ours", "1,234", "1.00"), ("timm NCHW", "617", "")]
    about = {"setting": 'batch 8, "single"', "precision": "bfloat16"}
    about["layout"] = lambda way: "NCHW" if "NCHW" in way else "channels_last"
    for _ in range(2):  # another run adds its lines
        timing.table(("what", "images/s", "ours: times as fast"), rows, **about)
    assert capsys.readouterr().out.count("| timm NCHW |") == 2
    with open(tmp_path / "results.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[:3] == lines[3:]
    keys = ("what", "measure", "value", "layout")
    assert [tuple(line[key] for key in keys) for line in lines[:3]] == [
        ("ours", "images/s", "1234", "channels_last"),
        ("ours", "ours: times as fast", "1.00", "channels_last"),
        ("timm NCHW", "images/s", "617", "NCHW"),
    ]
    for line in lines:
        assert (line["benchmark"], line["precision"]) == ("step.py", "bfloat16")
        assert line["setting"] == 'batch 8, "single"' and line["torch"] == torch.__version__
        assert line["device"] and line["cuda"] == "" and len(line["date"]) == 10


def test_stages_end_and_begin_in_time(tmp_path, monkeypatch, capsys):
    import gpu

    def slow(bench):
        time.sleep(0.1)
        with contextlib.suppress(Exception):
            bench.row("a", 1, "s")
        bench.row("b", 2, "s")

    def other(bench):
        raise AssertionError

    monkeypatch.setattr(gpu, "OUT", tmp_path)
    monkeypatch.setattr(gpu, "STAGES", {slow: 1, other: 1})
    monkeypatch.setattr(sys, "argv", "gpu.py --device cpu --tiny --until 0.05".split())
    gpu.main()
    said = capsys.readouterr().out
    assert "slow: out of time" in said and "no time is left for other" in said
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1


QUICK = {"limits", "headline", "layers", "inference"}
LONGER = {"profile", "replicas", "precisions", "compiled", "runs", "detector"}


@pytest.mark.parametrize(
    "stages",
    [
        QUICK,
        pytest.param(QUICK | LONGER, marks=pytest.mark.slow),
    ],
    ids=["quick", "all"],
)
def test_the_gpus_script_on_the_cpu(stages, tmp_path):
    """Every stage that needs no GPU ends, and its rows are there."""
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    words = [sys.executable, script, *"--device cpu --tiny --until 400 --stages".split(), *stages]
    env = {**os.environ, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stdout
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    found = {row["stage"] for row in rows if row["value"] > 0 and "error" not in row}
    assert found == stages


@pytest.mark.slow
def test_the_candidate_in_triton():
    """It computes what batch norm, sum and ReLU compute; without a GPU, Triton interprets it."""
    pytest.importorskip("triton", reason="only PyTorch's CUDA builds bring Triton")
    cases = Path(__file__).parent / "support" / "interpreted_triton.py"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "5 passed" in done.stdout, done.stdout
