"""How long a run takes to begin, against what it cannot do without: `import torch`, and `find`.

Every start is a process of its own. The tree of images is made of empty files, classes of the size
of ImageNet's; give its place a quick file system.
"""

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import project  # noqa: F401  before all else: sets the path, names a missing package

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TRAIN, VAL = 1281, 50  # images of a class
INDEX = """
import contextlib, io, sys, time, types
sys.path.insert(0, {root!r})
from datasets import cache
opt = types.SimpleNamespace(data={data!r}, gen={gen!r}, dataset="imagenet")
opt.testOnly, opt.classOrder, opt.skipCorrupt = False, "text", False
began = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    found = cache.info(opt)
print(time.perf_counter() - began, len(found["train_paths"]))
"""


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--classes", type=int, default=160, help="of the tree; ImageNet has 1000; 0: none"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    if not importlib.util.find_spec("torch"):
        raise ModuleNotFoundError(name="torch")  # not imported here: the processes do
    with tempfile.TemporaryDirectory() as folder:
        starts(folder, given.repetitions)
        if given.classes:
            index(folder, given.classes, given.repetitions)


def starts(folder, repetitions):
    """Commands from their start to their end, or to a line."""
    main = [sys.executable, os.path.join(ROOT, "main.py")]
    run = [*main, *"-dataset digits -depth 11 -cardinality 2 -baseWidth 4 -save s".split()]
    ways = {
        'python -c ""': ([sys.executable, "-c", ""], None),
        "import torch": ([sys.executable, "-c", "import torch"], None),
        "main.py -help": ([*main, "-help"], None),
        "main.py -dept 29 (an error)": ([*main, "-dept", "29"], None),
        "to the first iteration": ([*run, "-nEpochs", "2"], " | Epoch"),
        "the same, resumed": ([*run, "-nEpochs", "3", "-resume", "s"], " | Epoch"),
    }
    subprocess.run([*run, "-nEpochs", "1"], cwd=folder, capture_output=True, check=True)
    times = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, (command, line) in ways.items():
            times[name].append(until(command, line, folder, keep="resumed" in name))
    torch = statistics.median(times["import torch"])
    rows = [
        (name, f"{statistics.median(found):.3f}", f"{statistics.median(found) / torch:.2f}")
        for name, found in times.items()
    ]
    show(("what", "seconds", "of import torch"), rows, on_cuda=True)


def until(command, line, folder, keep):
    """Seconds until a process ends, or prints a line that begins so, whereupon it is ended."""
    saved = os.path.join(folder, "s")
    where = folder if keep or not line else os.path.join(folder, "afresh")
    if where != folder:  # it shares only the prepared data
        shutil.rmtree(where, ignore_errors=True)
        os.mkdir(where)
        shutil.copytree(os.path.join(folder, "gen"), os.path.join(where, "gen"))
    assert not keep or os.path.exists(os.path.join(saved, "latest.pth"))
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for text in process.stdout:
        if line and text.startswith(line):
            break
    else:
        assert line is None, f"{command}: no line that begins with {line!r}"
    seconds = time.perf_counter() - began if line else None
    process.kill() if line else None
    process.wait()
    return seconds or time.perf_counter() - began


def index(folder, classes, repetitions):
    """The list of a tree's images, made and read again, in turn with `find`."""
    data, gen = os.path.join(folder, "tree"), os.path.join(folder, "gen")
    make_tree(data, classes)
    program = INDEX.format(root=ROOT, data=data, gen=gen)
    times = {"find -type f": [], "the list, made": [], "the list, read again": []}
    for _ in range(repetitions):
        began = time.perf_counter()
        subprocess.run(["find", data, "-type", "f"], stdout=subprocess.DEVNULL, check=True)
        times["find -type f"].append(time.perf_counter() - began)
        shutil.rmtree(gen, ignore_errors=True)
        for name in ("the list, made", "the list, read again"):
            found = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True
            ).stdout.split()
            assert int(found[1]) == classes * TRAIN, found
            times[name].append(float(found[0]))
    find = times["find -type f"]
    rows = [
        (
            name,
            f"{statistics.median(found):.3f}",
            f"{statistics.median(a / b for a, b in zip(found, find)):.2f}",
        )
        for name, found in times.items()
    ]
    print(f"{classes * (TRAIN + VAL):,} files in {2 * classes} folders")
    show(("what", "seconds", "of find"), rows)


def make_tree(data, classes):
    """Empty files under ImageNet's kind of names."""
    for split, count in (("train", TRAIN), ("val", VAL)):
        for n in range(classes):
            folder = os.path.join(data, split, f"n{n:08d}")
            os.makedirs(folder)
            at = os.open(folder, os.O_RDONLY)
            for i in range(count):
                os.close(os.open(f"n{n:08d}_{i}.JPEG", os.O_CREAT | os.O_WRONLY, dir_fd=at))
            os.close(at)


def show(heads, rows, on_cuda=False):
    """timing.table, which needs torch; it is loaded when all is measured.

    on_cuda: whether a GPU, if there is one, took part.
    """
    import torch
    from timing import table

    device = "cuda" if on_cuda and torch.cuda.is_available() else "cpu"
    table(heads, rows, precision="", layout="", device=device)


if __name__ == "__main__":
    main()
