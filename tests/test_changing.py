"""The changes of docs/changing.md, applied to a copy of the program, do what the page says."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


def copied(target):
    """A copy of the program without tests and documents."""
    for folder in (path.parent for path in ROOT.glob("*/__init__.py")):
        if folder.name != "tests":
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(folder, target / folder.name, ignore=ignored)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, target)
    return target


def apply(folder, text):
    """Apply the page's blocks of changes: a hunk's old lines must stand in the file just once."""
    for block in re.findall(r"^```diff\n(.*?)^```", text, re.S | re.M):
        for file, changes in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", block, re.S | re.M):
            path = folder / file
            for hunk in changes.split("@@\n"):
                lines = hunk.splitlines(keepends=True)
                old = "".join(line[1:] for line in lines if line[0] in " -")
                new = "".join(line[1:] for line in lines if line[0] in " +")
                assert path.read_text().count(old) == 1, old
                path.write_text(path.read_text().replace(old, new))


def add_examples(folder):
    """The net of models/README.md and the dataset of datasets/README.md."""
    net = re.search(r"`plain\.py`:\n\n```python\n(.*?)```", page("models/README.md"), re.S)[1]
    (folder / "models" / "plain.py").write_text(net)
    pattern = r"\(`(\w+\.py)`\):\n\n```python\n(.*?)```"
    for name, code in re.findall(pattern, page("datasets/README.md"), re.S):
        (folder / "datasets" / name).write_text(code)


def run(folder, words):
    words = [sys.executable, *words.split()[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_changes_do_what_the_page_says(tmp_path):
    text, folder = page("docs/changing.md"), copied(tmp_path)
    add_examples(folder)
    apply(folder, text)
    command = re.search(r"^    (python main\.py .*)$", text, re.M)[1]
    command = command.replace("digits", "stripes") + " -nThreads 0 -smoothing 0.2"
    result = run(folder, command)
    assert result.returncode == 0, result.stderr
    assert " | Plain-4 stripes" in result.stdout
    assert "=> this training transform has no fast path" in result.stderr
    header, *epochs = map(json.loads, (folder / "try" / "log.jsonl").read_text().splitlines())
    assert header["options"]["smoothing"] == 0.2
    rates = [
        float(rate) for rate in re.search(r"`try/log.jsonl`: ([\d., ]+)\.\n", text)[1].split(",")
    ]
    assert [round(line["rate"], 4) for line in epochs] == rates
    # with two classes the smoothed target is (0.9, 0.1): no smaller loss than its entropy
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    for line in epochs:
        assert line["train"]["loss"] > entropy
        assert line["train"]["top2"] == line["test"]["top2"] == 0  # of two classes
    refused = run(folder, "python main.py -dataset digits -smoothing 2")
    assert (refused.returncode, refused.stderr) == (
        2,
        "main.py: -smoothing 2.0: give a share below 1\n",
    )
