"""results.csv: what a benchmark prints is appended to it, one cell a line, with where it ran."""

import csv
import sys
from pathlib import Path

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
