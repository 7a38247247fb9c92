"""Draws the paper's figures from the logs of runs: python plot.py RUN...

Training curves as in figure 5, or error against parameters as in figure 7. Prints the final errors.
Runs that differ only in their seed become a mean with its standard error.
"""

import functools
import io
import os
import sys
import textwrap
import warnings

import opts
from runtime import command, options, output_files
from runtime.errors import InputError, cut, visible
from runtime.terminal import complain
from storage import atomic, curves

KINDS = ("curves", "parameters")
FORMATS = (".png", ".svg")
LONGEST = 200  # characters of a label

HEAD = """Usage: plot.py RUN... [options]

RUN  a folder that main.py or detect.py saved to (-save), or its log.jsonl

curves: top-1 error against epoch, train dashed, val solid; of detectors AP50 dashed, AP solid.
parameters: top-1 error on val, or AP, after the last epoch against the net's parameters. Runs whose
options are equal but for -manualSeed are drawn and printed as mean and standard error. Needs
matplotlib: pip install matplotlib

Options:"""
OPTIONS = (
    ("kind", KINDS[0], str, KINDS, ""),
    ("out", "", str, None, f"The picture, {' or '.join(FORMATS)} (none: KIND.png)"),
)

# Okabe and Ito's colours for colour-blind readers, without yellow, too light for a line
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINE_STYLES = (("--", "train"), ("-", "val"))
DETECTOR_STYLES = (("--", "AP50"), ("-", "AP"))  # a Curve has these under the same two names
STYLE = {
    **{"font.size": 11, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.grid": True, "grid.color": "#E5E5E5", "axes.axisbelow": True},
    **{"legend.frameon": False, "legend.fontsize": 9.5, "axes.titlesize": 12},
    "text.parse_math": False,  # a dollar in a name is no formula
}


def main(argv=None):
    """Draw what the command line asks for. Exit status 1 for an error, 2 for one in the options."""
    kind, out, paths = parse(sys.argv[1:] if argv is None else list(argv))
    with command.one_sentence("plot.py"):
        plot(kind, out, paths)


def parse(argv):
    """(kind, out, paths); exits after -help or an error in the options."""
    paths = []
    check = functools.partial(_check, paths)
    return options.parse(argv, "plot.py", HEAD, OPTIONS, check, paths)


def _check(paths, given):
    opt = options.Options(given=given, default=options.defaults(OPTIONS))
    out = opt.out or opt.kind + FORMATS[0]
    if not paths:
        raise InputError("give the folder of a run or more, plot.py RUN... (-help says more)")
    logs = [os.path.join(path, "log.jsonl") if os.path.isdir(path) else path for path in paths]
    output_files.check([("-out", out, FORMATS)], logs)
    return opt.kind, out, paths


def plot(kind, out, paths):
    """Draw the runs at these paths into the file `out`, and print their final errors."""
    Figure = _figure()
    defaults = {row[0]: row[1] for row in opts.OPTIONS}
    runs = [curves.read(path, defaults, _warn) for path in paths]
    real = [os.path.realpath(run.path) for run in runs]
    for path in real:
        if real.count(path) > 1:
            raise InputError(f"{path} is given more than once")
    if len({run.detects for run in runs}) > 1:
        raise InputError("a detector's AP and a classifier's error do not go into one picture")
    notes = []
    drawn = curves.group_runs(runs, notes.append)
    for curve in drawn:
        if not curve.mean("val")[0]:
            paths = ", ".join(run.path for run in curve.runs)
            raise InputError(f"these runs have no epoch in common, so no mean: {paths}")
    for text in notes:
        _warn(text)
    print(table(drawn))

    import matplotlib
    from matplotlib.transforms import Bbox

    with matplotlib.rc_context(STYLE), warnings.catch_warnings(record=True) as caught:
        figure = Figure(figsize=(7.5, 5), dpi=150, layout="constrained")
        axes = figure.subplots()
        axes.set_title(_title(drawn), loc="left")
        (draw_curves if kind == "curves" else draw_parameters)(axes, drawn)
        figure.draw_without_rendering()  # which lays the axes out, for all but the legend
        figure.set_layout_engine("none")
        axes.get_legend().set_in_layout(True)
        whole = Bbox.union([Bbox([(0, 0), figure.get_size_inches()]), figure.get_tightbbox()])
        buffer, suffix = io.BytesIO(), os.path.splitext(out)[1][1:].lower()
        figure.savefig(buffer, format=suffix, bbox_inches=whole)
    for warning in caught[:1]:  # one for each character that the font does not have
        _warn(str(warning.message))
    try:
        with atomic.replacing(out) as file:
            file.write(buffer.getvalue())
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from None
    print(f"=> {out}")


def _figure():
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            "the pictures need matplotlib, which is not installed: pip install matplotlib"
        ) from None
    return Figure


def _warn(text):
    complain(f"plot.py: warning: {visible(text)}")


def table(drawn):
    """The val errors as text: after the last epoch, and the lowest, as mean +- standard error.

    The line below a curve has the options that differ from other curves'.
    """
    measure = ("val AP %", "highest") if drawn[0].detects else ("val top-1 %", "lowest")
    rows = [("", "runs", "epochs", "parameters", *measure)]
    for curve in drawn:
        epochs, count = curve.mean("val")[0], curve.parameters()
        rows.append(
            (
                *(cut(curve.label, LONGEST), str(len(curve.runs)), str(epochs[-1])),
                f"{count:,}" if count else "not logged",
                *(_with_error(curve, *pair) for pair in (curve.last(), curve.best())),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    lines = ["  ".join(line).rstrip() for line in lines]
    options = [f"\n    {cut(curve.options, 1000)}" if curve.options else "" for curve in drawn]
    return "\n".join(line + more for line, more in zip(lines, ["", *options]))


def _with_error(curve, mean, error):
    return f"{mean:.2f} +- {error:.2f}" if len(curve.runs) > 1 else f"{mean:.2f}"


def _title(drawn):
    """The dataset and the net's name, each if all curves share it."""
    data, nets = {curve.data() for curve in drawn}, {curve.name for curve in drawn}
    return ", ".join(cut(next(iter(n)), 40) for n in (data, nets) if len(n) == 1)


def _colours(names):
    """{name: colour}; for more names than COLOURS, from a scale that is readable in grey."""
    import matplotlib

    names = list(dict.fromkeys(names))
    if len(names) <= len(COLOURS):
        return dict(zip(names, COLOURS))
    scale = matplotlib.colormaps["viridis"]
    return {name: scale(0.95 * i / (len(names) - 1)) for i, name in enumerate(names)}


def draw_curves(axes, drawn):
    """Figure 5: top-1 error against epoch; a band is the standard error."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    colours = _colours(curve.label for curve in drawn)
    for curve in drawn:
        for style, what in LINE_STYLES:
            epochs, means, errors = curve.mean(what)
            marker = "o" if len(epochs) == 1 else None
            fill = "none" if what == "train" else None
            axes.plot(
                *(epochs, means, style),
                **{"color": colours[curve.label], "marker": marker, "markerfacecolor": fill},
                linewidth=1.8 if what == "val" else 1.3,
            )
            if len(curve.runs) > 1:
                low, high = ([m + s * e for m, e in zip(means, errors)] for s in (-1, 1))
                axes.fill_between(epochs, low, high, color=colours[curve.label], alpha=0.2, lw=0)
    axes.set_xlabel("epoch")
    detects = drawn[0].detects
    axes.set_ylabel("AP (%)" if detects else "top-1 error (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(*limits(drawn))
    if max(run.epochs[-1] for curve in drawn for run in curve.runs) == 1:
        axes.set_xlim(0, 2)
    key = [(Line2D([], [], color=colours[c.label]), _legend_label(c)) for c in drawn]
    names = DETECTOR_STYLES if detects else LINE_STYLES
    key += [(Line2D([], [], color="#666666", linestyle=s), w) for s, w in names]
    _legend(axes, *zip(*key), "lower right" if detects else "upper right")  # where no curve ends


def _legend(axes, handles, labels, place):
    """A legend at a place in the axes; below these if it would hide the curves.

    The layout leaves it out, and would else shrink the axes for it: the picture grows instead.
    """
    columns = 1 if len(labels) < 12 else 2
    if max(map(len, labels)) * columns > 70 or len(labels) > 24:
        where = {"loc": "upper left", "bbox_to_anchor": (0, -0.12)}
    else:
        where = {"loc": place, "ncols": columns}
    labels = [textwrap.fill(cut(label, LONGEST), 100) for label in labels]
    axes.legend(handles, labels, **where).set_in_layout(False)


def limits(drawn):
    """(low, high) of the y axis, without the first tenth of the epochs, which start at chance."""
    seen = []
    for curve in drawn:
        for what in ("train", "val"):
            epochs, means, errors = curve.mean(what)
            pairs = list(zip(means, errors))[len(epochs) // 10 :]
            seen += [m + s * e for m, e in pairs for s in (-1, 1) if m == m]
    low, high = min(seen, default=0), max(seen, default=100)
    margin = 0.05 * (high - low) or 1
    low = 0 if low < 0.25 * high else low - margin
    return max(0, low), high + margin


def draw_parameters(axes, drawn):
    """Figure 7: the error on val after the last epoch against millions of parameters."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for curve in drawn:
        if not curve.parameters():
            _warn(f"{curve.runs[0].path} has no number of parameters: left out")
    drawn = [curve for curve in drawn if curve.parameters()]
    if not drawn:
        raise InputError("no log has the number of parameters; logs of older versions do not")
    families = {}
    for curve in drawn:
        families.setdefault(curve.family, []).append(curve)
    colours = _colours(families)
    sizes = [curve.parameters() / 1e6 for curve in drawn]
    for family, members in families.items():
        members.sort(key=lambda curve: curve.parameters())
        x = [curve.parameters() / 1e6 for curve in members]
        y, errors = zip(*(curve.last() for curve in members))
        axes.errorbar(
            *(x, y),
            yerr=errors if any(errors) else None,
            capsize=3,
            marker="o",
            linestyle="-" if curves.one_size_varies(members) else "none",
            color=colours[family],
            label=family,
        )
        for point, curve in zip(zip(x, y), members):
            offset = {"xytext": (6, 6), "textcoords": "offset points"}
            axes.annotate(cut(curve.size, 30), point, fontsize=9, color=colours[family], **offset)
    if max(sizes) > 5 * min(sizes):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.15, 0.15)
    axes.set_xlabel("parameters (millions)")
    axes.set_ylabel("AP on val (%)" if drawn[0].detects else "top-1 error on val (%)")
    _legend(axes, *axes.get_legend_handles_labels(), "best")


def _legend_label(curve):
    """A curve's label, with the number of runs in its mean."""
    count = len(curve.runs)
    return f"{curve.label} (mean of {count})" if count > 1 else curve.label


if __name__ == "__main__":
    command.run(main)
