"""Times ways of doing the same work and prints them side by side: what every benchmark uses.

The ways take turns, so that what else the machine does hits all of them alike, and ratios are taken
within a round before their median is. The cells of each printed table are also appended to
results.csv ($OUT's, if that is set), one a line, so that other machines and versions add theirs.
"""

import csv
import datetime
import os
import platform
import statistics
import sys
import time
from importlib import metadata

import torch

from runtime import process

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(os.environ.get("OUT", HERE), "results.csv")
FIELDS = "date benchmark setting what measure value device threads precision layout torch cuda"


def compare(ways, repetitions=7, wait=None):
    """Time every way in turn, `repetitions` rounds: {name: seconds of each round}.

    ways: {name: function without arguments}; each is called once before, to warm up.
    wait: what ends a measurement, `torch.cuda.synchronize` for work on a GPU.
    """
    wait = wait or (lambda: None)
    names, times = list(ways), {name: [] for name in ways}
    for function in ways.values():
        function()
    for k in range(repetitions):
        for name in names[k % len(names) :] + names[: k % len(names)]:  # each comes first in turn
            wait()
            began = time.perf_counter()
            ways[name]()
            wait()
            times[name].append(time.perf_counter() - began)
    return times


def median(times, name):
    """Seconds that one call of a way took."""
    return statistics.median(times[name])


def ratio(times, ours, peer):
    """How many times as fast as `peer` `ours` is: the median over the rounds."""
    return statistics.median(p / o for o, p in zip(times[ours], times[peer]))


def rate_table(times, ours, count, unit, **about):
    """Print every way with its `unit` a second and how many times as fast `ours` is.

    count: how many of `unit` (images, say) one call works off. about: see `record`.
    """
    rows = [
        (name, f"{count / median(times, name):,.4g}", f"{ratio(times, ours, name):.2f}")
        for name in times
    ]
    table(("what", f"{unit}/s", f"{ours}: times as fast"), rows, **about)


def table(heads, rows, **about):
    """Print rows of strings as a Markdown table, all columns but the first to the right; `record`.

    about: what `record` says of them.
    """
    lines = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for k, (first, *rest) in enumerate(lines):
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:]))]
        print(f"| {' | '.join(cells)} |")
        if k == 0:
            marks = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
            print(f"| {' | '.join(marks)} |")
    print(flush=True)
    record(heads, lines[1:], **about)


def record(heads, rows, setting="", precision="single", layout="channels_last", device="cpu"):
    """Append the cells of a table to results.csv, one a line.

    setting: what the rows have in common, in words. layout: of the images in memory, or a function
    of a row's first cell.
    """
    cuda = torch.device(device).type == "cuda"
    common = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "benchmark": os.path.basename(sys.argv[0]),
        "setting": setting,
        "device": torch.cuda.get_device_name(device) if cuda else _cpu(),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else "",
    }
    new = not os.path.exists(RESULTS)
    with open(RESULTS, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS.split(), lineterminator="\n")
        if new:
            writer.writeheader()
        for what, *cells in rows:
            place = layout(what) if callable(layout) else layout
            for measure, value in zip(heads[1:], cells):
                line = {**common, "what": what, "layout": place, "measure": measure}
                if value:
                    writer.writerow({**line, "value": value.replace(",", "")})


def machine(*packages):
    """A line on the hardware, the threads and the versions of Python, torch and the packages."""
    parts = [f"{_cpu()}, {process.cores()} of {os.cpu_count()} cores"]
    parts.append(f"{torch.get_num_threads()} threads of torch")
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
        parts.append(f"cuDNN {torch.backends.cudnn.version()}")
    parts.append(f"Python {platform.python_version()}")
    parts += [f"{name} {metadata.version(name)}" for name in ("torch", *packages)]
    return ", ".join(parts)


def _cpu():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        return names[0]
    except (OSError, IndexError):  # no Linux, or a processor that has no such line
        return platform.processor() or platform.machine()
