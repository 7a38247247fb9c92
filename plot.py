"""Draws the paper's figures from the logs of runs: python plot.py RUN...

Training curves as in figure 5, or error against parameters as in figure 7. Prints the final errors.
Runs that differ only in their seed become a mean with its standard error.
"""

import os
import sys
import textwrap

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # for python -P and -I

from runtime import command, options, regular_files
from runtime.errors import InputError, cut
from runtime.terminal import note
from storage import curves, pictures

KINDS = ("curves", "parameters")
LONGEST = 200  # characters of a label

HEAD = """Usage: plot.py RUN... [options]

RUN  a folder that main.py or detect.py saved to (-save), or its log.jsonl

curves: top-1 error against epoch, train dashed, val solid; of detectors AP50 dashed, AP solid.
parameters: top-1 error on val, or AP, after the last epoch against the net's parameters. Runs whose
options and code are equal but for -manualSeed and -fold are drawn and printed as mean and standard
error.
Needs matplotlib: pip install matplotlib

Options:"""
OPTIONS = (
    ("kind", KINDS[0], str, KINDS, ""),
    ("out", "", str, None, f"The picture, {' or '.join(pictures.FORMATS)} (default: KIND.png)"),
)

# Okabe and Ito's colours for colour-blind readers, without yellow, too light for a line
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLE = {
    **{"font.size": 11, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.grid": True, "grid.color": "#E5E5E5", "axes.axisbelow": True},
    **{"legend.frameon": False, "legend.fontsize": 9.5, "axes.titlesize": 12},
}


def main(argv=None):
    """Draw what the command line asks for. Exit status 1 for an error, 2 for one in the options."""
    plot(*parse(sys.argv[1:] if argv is None else list(argv)))


def parse(argv):
    """(kind, out, paths); exits after -help or an error in the options."""
    paths = []
    with options.parsed(argv, "plot.py", HEAD, OPTIONS, paths) as given:
        kind = given.get("kind", KINDS[0])
        out = given.get("out") or kind + pictures.FORMATS[0]
        if not paths:
            raise InputError("give one or more run folders: plot.py RUN... (see -help)")
        logs = [os.path.join(path, "log.jsonl") if os.path.isdir(path) else path for path in paths]
        regular_files.check_outputs([("-out", out, pictures.FORMATS)], logs)
        pictures.check_drawing(out)
        return kind, out, paths


def plot(kind, out, paths):
    """Draw the runs at these paths into the file `out`, and print their final errors."""
    runs = [curves.read_log(path) for path in paths]
    if len({run.detects for run in runs}) > 1:
        raise InputError("a detector's AP and a classifier's error cannot be drawn in one picture")
    drawn = curves.group(runs)
    print(table(drawn))
    with pictures.drawing(out, (8.6, 5.3), STYLE) as figure:
        axes = figure.subplots()
        shared = ({curve.runs[0].data for curve in drawn}, {curve.runs[0].name for curve in drawn})
        axes.set_title(", ".join(cut(*s, 40) for s in shared if len(s) == 1), loc="left")
        (draw_curves if kind == "curves" else draw_parameters)(axes, drawn)
    print(f"=> {out}")


def table(drawn):
    """The val errors as text: after the last epoch, and the lowest, as mean +- standard error."""
    measure = ("val AP %", "highest") if drawn[0].runs[0].detects else ("val top-1 %", "lowest")
    tested = any(curve.final()[0] == curve.final()[0] for curve in drawn)
    measure += ("best on test",) * tested
    rows = [("", "runs", "epochs", "parameters", *measure)]
    for curve in drawn:
        count, epochs = curve.runs[0].parameters, curve.mean("val")[0]
        error = "{:.2f} +- {:.2f}" if len(curve.runs) > 1 else "{:.2f}"
        numbers = str(len(curve.runs)), str(epochs[-1]), f"{count:,}" if count else "not logged"
        errors = [error.format(*pair) for pair in (curve.last(), curve.best(), curve.final())]
        rows.append((cut(curve.label, LONGEST), *numbers, *errors[: len(measure)]))
    first, *widths = (max(map(len, column)) for column in zip(*rows))
    lines = ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _colours(count):
    """`count` colours: COLOURS, or as many as needed from a scale that is readable in grey."""
    import matplotlib

    scale = matplotlib.colormaps["viridis"].resampled(count + 1)  # the last is too light
    return COLOURS if count <= len(COLOURS) else [scale(i) for i in range(count)]


def draw_curves(axes, drawn):
    """Figure 5: top-1 error against epoch; a band is the standard error."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    detects = drawn[0].runs[0].detects
    key, seen = [], []
    for curve, colour in zip(drawn, _colours(len(drawn))):
        for what, style, width in (("train", "--", 1.3), ("val", "-", 1.8)):
            epochs, means, errors = curve.mean(what)
            marker = "o" if len(epochs) == 1 else None
            axes.plot(epochs, means, style, color=colour, linewidth=width, marker=marker)
            low, high = ([m + s * e for m, e in zip(means, errors)] for s in (-1, 1))
            if len(curve.runs) > 1:
                axes.fill_between(epochs, low, high, color=colour, alpha=0.2, lw=0)
            start = len(epochs) // 10  # a net starts at chance, which would flatten the rest
            seen += [y for y in (*low[start:], *high[start:]) if y == y]
        mean = f" (mean of {len(curve.runs)})" if len(curve.runs) > 1 else ""
        key.append((Line2D([], [], color=colour), curve.label + mean))
    low, high = min(seen, default=0), max(seen, default=100)
    margin = 0.05 * (high - low) or 1
    axes.set_ylim(0 if low < 0.25 * high else max(0, low - margin), high + margin)
    axes.set_xlabel("epoch")
    axes.set_ylabel("AP (%)" if detects else "top-1 error (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for style, name in zip(("--", "-"), ("AP50", "AP") if detects else ("train", "val")):
        key.append((Line2D([], [], color="#666666", linestyle=style), name))
    _legend(axes, *zip(*key), "lower right" if detects else "upper right")  # where no curve ends


def draw_parameters(axes, drawn):
    """Figure 7: the error on val after the last epoch against millions of parameters."""
    from matplotlib.ticker import LogLocator, NullFormatter

    families, size = {}, lambda curve: curve.runs[0].parameters
    for curve in drawn:
        if size(curve):
            families.setdefault(curve.family, []).append(curve)
        else:
            path = curve.runs[0].path
            note(f"=> {path} is left out, because its log does not say how large the net is")
    if not families:
        raise InputError("no log says how large the net is; logs of older versions do not")
    for (family, members), colour in zip(families.items(), _colours(len(families))):
        members.sort(key=size)
        x, y, errors = zip(*((size(curve) / 1e6, *curve.last()) for curve in members))
        lengths = [{curve.runs[0].options.get(n) for curve in members} for n in curves.SIZE]
        one_varies = sum(len(found) > 1 for found in lengths) < 2  # then a line may join the points
        line = {"linestyle": "-" if one_varies else "none", "marker": "o", "color": colour}
        axes.errorbar(x, y, errors if any(errors) else None, capsize=3, label=family, **line)
        for point, curve in zip(zip(x, y), members):
            offset = {"xytext": (6, 6), "textcoords": "offset points"}
            axes.annotate(cut(curve.runs[0].size, 30), point, fontsize=9, color=colour, **offset)
    low, high = axes.dataLim.intervalx
    if high > 5 * low:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.15, 0.15)
    axes.set_xlabel("parameters (millions)")
    axes.set_ylabel("AP on val (%)" if drawn[0].runs[0].detects else "top-1 error on val (%)")
    _legend(axes, *axes.get_legend_handles_labels(), "best")


def _legend(axes, handles, labels, place):
    """A legend at a place in the axes; below these if it would hide the curves."""
    hides = max(map(len, labels)) > 70 or len(labels) > 12
    where = {"loc": "upper left", "bbox_to_anchor": (0, -0.12)} if hides else {"loc": place}
    axes.legend(handles, [textwrap.fill(cut(label, LONGEST), 100) for label in labels], **where)


if __name__ == "__main__":
    command.run(main)
