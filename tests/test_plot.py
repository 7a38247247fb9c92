"""plot.py: what it draws and prints from logs that are written here, and bad logs."""

import itertools
import json
import math
import os
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from support.runs import ROOT

import opts
import plot
from runtime import command
from runtime.errors import InputError, visible
from storage import curves

WORDS = "-dataset cifar10 -depth 29 -cardinality 8 -baseWidth 64 -nEpochs 4"


def run(argv):
    """The command, as a user starts it."""
    command.run(lambda: plot.main(argv))


@pytest.fixture
def log(tmp_path):
    """log(name, options, val errors...) writes a log in today's form; returns its folder."""

    def write(name, words, *val, parameters=1000, train=None, first=None, lists=False, final=None):
        (tmp_path / name).mkdir()
        opt = dict(opts.parse(f"{WORDS} {words} -save {name}".split()).values)
        lines = [first or {"options": opt, "parameters": parameters}]
        for epoch, error in enumerate(val, 1):
            ours = train[epoch - 1] if train else error / 2
            line = {"train": {"loss": 0.1, "top1": ours}, "test": {"top5": 1.0, "top1": error}}
            if lists:  # as earlier versions wrote them
                line = {"train": [ours, 1.0, 0.1], "test": [error, 1.0]}
            lines.append({"epoch": epoch, **line})
        lines += [{"final": {"top1": final, "top5": 0.0, "images": 9}}] if final else []
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "log.jsonl").write_text(text)
        return str(tmp_path / name)

    return write


def together(*paths):
    return curves.group([curves.read_log(path) for path in paths])


def draw(how, drawn):
    axes = Figure().subplots()
    how(axes, drawn)
    return axes


def test_folds_become_their_mean_and_the_best_models_test_a_column(log):
    finals = [9.0, 10.0, 14.0]
    folds = [
        log(f"{k}", f"-fold {k}/3", 20.0, 8.0 + k, final=final) for k, final in enumerate(finals, 1)
    ]
    [curve] = together(*folds)
    error = math.sqrt(np.var(finals, ddof=1) / 3)
    assert curve.final() == pytest.approx((11, error)) and curve.last()[0] == 10
    head, row = plot.table([curve]).splitlines()
    assert head.endswith("lowest   best on test") and row.endswith(f"11.00 +- {error:.2f}")
    alone = together(log("alone", "-valShare 0.2", 20.0))
    assert len(together(*folds, log("share", "-valShare 0.2", 20.0))) == 2
    assert "test" not in plot.table(alone).splitlines()[0]


def test_logs_with_names_and_with_lists_are_read_alike(log):
    named, listed = (curves.read_log(log(n, "", 8.0, 4.0, lists=n == "b")) for n in "ab")
    assert named.train == listed.train == {1: 4, 2: 2} and named.val == listed.val == {1: 8, 2: 4}
    assert not named.detects and not listed.detects


def test_one_run_is_drawn_as_it_is(log, capsys):
    drawn = together(log("a", "", 80.0, 40.0, 20.0, 10.0, train=[90.0, 30.0, 12.0, 4.0]))
    axes = draw(plot.draw_curves, drawn)
    train, val = axes.get_lines()
    assert list(train.get_ydata()) == [90, 30, 12, 4] and train.get_linestyle() == "--"
    assert list(val.get_ydata()) == [80, 40, 20, 10] and val.get_linestyle() == "-"
    assert train.get_color() == val.get_color() and list(val.get_xdata()) == [1, 2, 3, 4]
    assert axes.get_xlabel() == "epoch" and axes.get_ylabel() == "top-1 error (%)"
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["ResNeXt-29 8x64d", "train", "val"]
    assert capsys.readouterr().err == ""


def test_seeds_are_a_mean_with_its_standard_error(log):
    rng = np.random.default_rng(0)
    errors = rng.uniform(1, 90, (4, 3))
    # which decide nothing
    places = ["-nThreads 1 -accumulate true", "-data elsewhere", "-gen x", "-keep 3"]
    paths = [
        log(str(i), f"-manualSeed {i} {places[i]}", *errors[i].tolist(), parameters=7)
        for i in range(4)
    ]
    (curve,) = together(*paths)
    epochs, means, spread = curve.mean("val")
    assert epochs == [1, 2, 3]
    np.testing.assert_allclose(means, errors.mean(0), rtol=1e-14)
    np.testing.assert_allclose(spread, errors.std(0, ddof=1) / 2, rtol=1e-12)
    lowest = errors.min(1)
    printed = plot.table([curve]).splitlines()[1].split()
    mean, last = errors.mean(0)[-1], errors[:, -1].std(ddof=1) / 2
    assert (
        printed[2:]
        == (
            f"4 3 7 {mean:.2f} +- {last:.2f} {lowest.mean():.2f} +- {lowest.std(ddof=1) / 2:.2f}"
        ).split()
    )
    axes = draw(plot.draw_curves, [curve])
    band = axes.collections[1].get_paths()[0].vertices  # after that of train
    np.testing.assert_allclose(band[:, 1].max(), max(np.add(means, spread)), rtol=1e-12)
    assert axes.get_legend().get_texts()[0].get_text() == "ResNeXt-29 8x64d (mean of 4)"


def test_resnets_block_has_one_path(log):
    """Whatever -cardinality says, which it does without."""
    words = "-bottleneckType resnet -cardinality {0} -manualSeed {0}"
    paths = [log(f"{n}", words.format(n), 9.0) for n in (8, 4)]
    (curve,) = together(*paths)
    assert curve.label == "ResNet-29 1x64d" and len(curve.runs) == 2


def test_the_legend_tells_what_differs(log):
    drawn = together(
        log("a", "", 9.0),
        log("b", "-LR 0.05 -LRSteps 2,3", 8.0),
        log("c", "-cardinality 16", 7.0),
        log("d", "-cardinality 1", 6.0),
        log("e", "-netType resnet -depth 20", 5.0),
    )
    labels = [curve.label for curve in drawn]
    assert labels[:2] == [
        "ResNeXt-29 8x64d -LR 0.1 -LRSteps none",
        "ResNeXt-29 8x64d -LR 0.05 -LRSteps 2,3",
    ]
    assert labels[2:] == ["ResNeXt-29 16x64d", "ResNet-29 1x64d", "ResNet-20"]  # as in the paper
    drawn = together(log("f", "", 9.0), log("g", "-dataset cifar100", 20.0))
    assert [c.label for c in drawn] == ["cifar10 ResNeXt-29 8x64d", "cifar100 ResNeXt-29 8x64d"]


def test_a_net_from_a_file_is_that_of_the_file(log, tmp_path):
    net = {"net": "resnet", "depth": 56, "shortcut": "A"}
    options = {"dataset": "cifar10", "netType": "resnext", "depth": 34}
    path = log("a", "", 5.0, first={"options": options, "net": net, "parameters": 3})
    (curve,) = together(path)
    assert curve.label == "ResNet-56"


def test_error_against_parameters(log):
    rows = [("a", "-cardinality 2", 6.0, 5_000_000), ("b", "-cardinality 8", 5.0, 34_000_000)]
    rows += [("c", "-cardinality 1 -baseWidth 128", 7.0, 9_000_000)]
    paths = [log(name, words, 50.0, error, parameters=n) for name, words, error, n in rows]
    paths.append(log("d", "-cardinality 8 -manualSeed 1", 50.0, 6.0, parameters=34_000_000))
    axes = draw(plot.draw_parameters, together(*paths))
    joined, single = [c.lines[0] for c in axes.containers]
    assert list(joined.get_xdata()) == [5, 34] and list(joined.get_ydata()) == [6, 5.5]
    assert (list(single.get_xdata()), list(single.get_ydata())) == ([9], [7])
    assert [text.get_text() for text in axes.texts] == ["29 2x64d", "29 8x64d", "29 1x128d"]
    assert axes.get_legend().get_texts()[1].get_text() == "ResNet, cardinality 1"
    assert axes.get_xscale() == "log" and joined.get_linestyle() == "-"
    # widths and cardinalities together are no curve
    other = log("e", "-cardinality 16 -baseWidth 4", 50.0, 6.0, parameters=6_000_000)
    axes = draw(plot.draw_parameters, together(*paths, other))
    assert axes.containers[0].lines[0].get_linestyle() == "None"


@pytest.mark.parametrize("kind", ["curves", "parameters"])
@pytest.mark.parametrize(
    "val", [[50.0], [50.0, math.nan, 30.0], [math.nan] * 3, [0.0, 0.0], [50.0, math.inf]]
)
def test_pictures_of_odd_logs(log, tmp_path, kind, val, capsys):
    for suffix in ("png", "svg"):
        plot.main(["-kind", kind, "-out", str(tmp_path / f"out.{suffix}"), log(suffix, "", *val)])
    with Image.open(tmp_path / "out.png") as image:
        assert min(image.size) > 700 and len(set(image.convert("L").tobytes())) > 10
    assert (tmp_path / "out.svg").read_text().rstrip().endswith("</svg>")
    assert f"=> {tmp_path / 'out.png'}" in capsys.readouterr().out


ODD = {
    "long words": "x " * 100_000,
    "a long word": "W" * 100_000,
    "lines": "a\nb\t\r\v" * 9,
    "an escape": "\x1b]0;owned\a\x1b[31m",
    "to the left": "\u202e\u2066",
    "surrogates": "\ud800 \udfff",
    "bytes of a file's name": "a\udc80",
    "a formula": "$\\frac{",
    "other letters": "\u732b\u72ac",
    "nothing": "",
    "null": None,
    "a list": [1, None, "\x1b"],
    "a whole number": 10**4000,
}


@pytest.mark.parametrize("kind", plot.KINDS)
@pytest.mark.parametrize("names", [ODD, ["a long word"]], ids=len)
def test_logs_with_odd_names(tmp_path, kind, names, capsys):
    """Nothing is drawn beyond the picture's edge, and no control character reaches a terminal."""
    paths, row = [], {"epoch": 1, "train": [9.0], "test": [8.0]}
    for odd, n in itertools.product(map(ODD.get, names), range(2)):
        options = {"dataset": "imagenet", "data": odd, "netType": odd, "momentum": n, f"{odd}": n}
        first = {"options": options, "net": {"backbone": 3, "depth": odd}, "parameters": 10**6 + n}
        paths.append(str(tmp_path / f"{len(paths)}.jsonl"))
        with open(paths[-1], "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in (first, row))
    start = time.process_time()
    plot.main(["-kind", kind, "-out", str(tmp_path / "x.png"), *paths])
    assert time.process_time() - start < 15
    out, error = capsys.readouterr()
    assert visible(out + error, "\n") == out + error and len(out) < 30_000
    assert error.count("\n") <= 1 and error.startswith(("", "=> ")[bool(error)])
    assert_whole(tmp_path / "x.png")


def assert_whole(path):
    with Image.open(path) as image:
        grey = np.array(image.convert("L"))
    edges = [grey[0], grey[-1], grey[:, 0], grey[:, -1]]
    assert all((edge == 255).all() for edge in edges) and min(grey.shape) > 700


@pytest.mark.parametrize("runs", [2, 14])
def test_a_legend_that_does_not_fit_stands_below_the_curves(log, tmp_path, runs):
    words = "-LRSteps {0},99 -weightDecay 0.0{0} -momentum 0.{0} -LR {0} -batchSize {0}"
    logs = [log(str(n), words.format(n + 2), 9.0, 8.0) for n in range(runs)]
    axes = draw(plot.draw_curves, together(*logs))
    axes.figure.draw_without_rendering()
    legend = axes.get_legend().get_window_extent()
    assert legend.y1 < axes.bbox.y0 and len(axes.get_legend().get_texts()) == runs + 2
    plot.plot("curves", str(tmp_path / "x.png"), logs)
    assert_whole(tmp_path / "x.png")


def test_the_fall_from_chance_does_not_flatten_the_rest(log):
    val = [90.0, 50.0, 30.0, *np.linspace(12, 10, 37).tolist()]
    axes = draw(plot.draw_curves, together(log("a", "", *val, train=val)))
    low, high = axes.get_ylim()
    assert low <= 10 and 12 <= high < 14


def test_logs_of_different_lengths(log, capsys):
    (curve,) = together(log("a", "", 9.0, 8.0, 7.0), log("b", "-manualSeed 1", 5.0, 4.0))
    notes = capsys.readouterr().err
    assert curve.last() == (6, 2) and notes.count("\n") == 1 and "different epochs" in notes


def test_seeds_without_a_common_epoch_are_refused(log, tmp_path, capsys):
    paths = [log("a", "", 9.0, 8.0), log("b", "-manualSeed 1", 5.0, 4.0)]
    file = tmp_path / "b" / "log.jsonl"
    moved = (
        file.read_text().replace('"epoch": 2,', '"epoch": 4,').replace('"epoch": 1,', '"epoch": 3,')
    )
    file.write_text(moved)
    for kind in plot.KINDS:
        with pytest.raises(SystemExit) as stop:
            run(["-kind", kind, "-out", str(tmp_path / "x.png"), *paths])
        out, error = capsys.readouterr()
        assert stop.value.code == 1 and out == "" and error.count("\n") == 1
        assert "no epoch in common" in error and all(path in error for path in paths)


def test_a_log_of_a_first_version(log, tmp_path):
    """Fewer options, no number of parameters: drawn with the defaults, left out of figure 7."""
    options = {"dataset": "cifar10", "netType": "resnet", "depth": 20, "LRSteps": [6, 8]}
    old = log("old", "", 43.7, 40.3, first={"options": options, "python": "3.11.7"})
    drawn = together(old)
    assert drawn[0].label == "ResNet-20" and "not logged" in plot.table(drawn)
    with pytest.raises(InputError, match="no log says how large the net is"):
        plot.plot("parameters", str(tmp_path / "out.png"), [old])
    plot.plot("parameters", str(tmp_path / "out.png"), [old, log("new", "", 30.0)])


def test_a_cut_last_line_is_left_out(log, tmp_path, capsys):
    path = log("a", "", 9.0, 8.0)
    with open(tmp_path / "a" / "log.jsonl", "a") as file:
        file.write('{"epoch": 3, "train": [4.')
    (curve,) = together(path)
    assert curve.mean("val")[1] == [9, 8]
    note = f"=> {path}/log.jsonl: its last line is cut short and left out\n"
    assert capsys.readouterr().err == note


GOOD = json.dumps({"options": {"dataset": "cifar10"}})
EPOCH = json.dumps({"epoch": 1, "train": [3.0, 1.0, 0.1], "test": [4.0, 1.0]})


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "its first line has no options"),
        ("garbage\n", "is not a log of this program"),
        ("[1, 2]\n", "is not a log of this program"),
        ('{"options": 3}\n', "is not a log of this program"),
        (GOOD.replace('"cifar10"', "[" * 500 + "]" * 500) + "\n" + EPOCH, "is [[[...]]]"),
        (GOOD.replace('"cifar10"', '{"a": [1]}') + "\n" + EPOCH, "its option 'dataset' is {'a': "),
        (f'{{"options": {{}}, "net": {{"depth": {{}}}}}}\n{EPOCH}', "its option 'depth' is {}"),
        (GOOD, "no finished epoch"),
        (f"{GOOD}\n{EPOCH}\nrubbish\n{EPOCH}\n", "line 3 is not"),
        (f"{GOOD}\n{EPOCH}\n{EPOCH}\n", "line 3 is not the line of the next epoch"),
        (f'{GOOD}\n{{"epoch": 1}}\n', "line 2 is not"),
        (f'{GOOD}\n{{"epoch": 1, "train": ["x"], "test": [1]}}\n', "line 2 is not"),
        (f'{GOOD}\n{{"epoch": "one", "train": [1], "test": [1]}}\n', "line 2 is not"),
        ("\xff\xfe", "not text"),
    ],
)
def test_bad_logs_are_refused_in_one_sentence(tmp_path, text, words, capsys):
    path = tmp_path / "log.jsonl"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(SystemExit) as stop:
        run(["-out", str(tmp_path / "x.png"), str(path)])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and words in error and str(path) in error
    assert error.count("\n") == 1 and not (tmp_path / "x.png").exists()


def peak(read, path):
    """The most memory in bytes that reading a log takes."""
    tracemalloc.start()
    try:
        read(str(path))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_long_log_takes_little_memory(tmp_path):
    """A detector has 90,000 epochs on COCO, each with the AP of 80 classes."""
    path, classes = tmp_path / "log.jsonl", {f"category {n:02}": n / 7 for n in range(80)}
    means = dict.fromkeys(("rpnLabels", "rpnBoxes", "labels", "boxes", "loss"), 1 / 3)
    scores = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl", "AR"), 1 / 3)
    rest = {"train": means, "test": {**scores, "classes": classes}, "best": scores}
    with open(path, "w") as file:
        file.write(GOOD + "\n")
        for epoch in range(1, 1001):
            file.write(json.dumps({"epoch": epoch, **rest}) + "\n")
    assert 90 * os.path.getsize(path) < curves.LARGEST
    assert peak(curves.read_log, path) < 1e6


@pytest.mark.parametrize("part", ["{},", "[[", "1e9,", '"a"', " "])
@pytest.mark.parametrize("first", [True, False])
def test_a_hostile_line_takes_little_memory(tmp_path, part, first):
    path = tmp_path / "log.jsonl"
    line = '{"epoch": 1, "options": {}, "test": [' + part * (8_000_000 // len(part)) + "1]}\n"
    path.write_text(line if first else f"{GOOD}\n{line}{EPOCH}\n")

    def read(path):
        with pytest.raises(InputError, match="has no options" if first else "line 2 is not"):
            curves.read_log(path)

    assert peak(read, path) < 1e8


@pytest.mark.parametrize(
    "argv, words, status",
    [
        ([], "give one or more run folders", 2),
        (["-kind", "pie", "a"], "unknown kind 'pie': should be one of curves, parameters", 2),
        (["-out", "x.jpg", "a"], "-out x.jpg should end in .png or .svg", 2),
        (["-colour", "a"], "unknown option -colour", 2),
        (["a", "-out"], "missing argument for option -out", 2),
        (["nowhere"], "cannot read nowhere: No such file", 1),
    ],
)
def test_a_bad_command(argv, words, status, capsys):
    with pytest.raises(SystemExit) as stop:
        run(argv)
    error = capsys.readouterr().err
    assert stop.value.code == status and words in error and error.count("\n") == 1


def logged(commit, changed, seed=1):
    options = {"dataset": "cifar10", "netType": "resnet", "depth": 20, "manualSeed": seed}
    return {"options": options, "commit": commit, "changed": changed, "parameters": 3}


@pytest.mark.parametrize("code", [("a1", False), ("a1", True), (None, None)])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_a_copy_or_continuation_of_a_run_is_that_run(log, capsys, code, order):
    """The longer of two counts, wherever it stands, and a line names the other."""
    first = logged(*code)
    paths = [log("short", "", 9.0, 8.0, first=first), log("long", "", 9.0, 8.0, 7.0, first=first)]
    paths.append(paths[0] + "/log.jsonl")
    (curve,) = together(*(paths[i] for i in order))
    assert [run.path for run in curve.runs] == paths[1:2] and curve.last() == (7, 0)
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2 and all(
        "is left out, because it has the options" in line for line in notes
    )
    assert sorted(line.split()[1] for line in notes) == sorted([paths[0], paths[2]])


@pytest.mark.parametrize(
    "codes, curves_found",
    [
        ([("a1", False), ("a1", False), ("a1", False)], [3]),
        ([(None, None), (None, None)], [2]),  # outside of a clone
        ([("a1", False), ("b2", False), ("a1", False)], [2, 1]),
        ([("a1", False), ("a1", True), ("a1", False)], [2, 1]),
        ([("a1", True), ("a1", True)], [1, 1]),  # in what way, no log says
        ([("a1", False), (None, None)], [1, 1]),
    ],
)
@pytest.mark.parametrize("seeds", [[1, 2, 3], [1, 1, 3]])
def test_runs_of_other_code_are_no_seeds(log, capsys, codes, curves_found, seeds):
    """Nor copies, of whatever seed: each is drawn, under a name of its own."""
    paths = [
        log(f"{i}", "", 9.0 + i, 8.0, first=logged(*code, seed))
        for i, (code, seed) in enumerate(zip(codes, seeds))
    ]
    drawn = together(*paths)
    notes = [line for line in capsys.readouterr().err.splitlines() if "no mean of" in line]
    alike = seeds[0] == seeds[1] and codes[0] == codes[1] and not codes[0][1]
    assert [len(curve.runs) for curve in drawn] == [curves_found[0] - alike, *curves_found[1:]]
    assert len({curve.label for curve in drawn}) == len(drawn) == len(curves_found)
    assert len(notes) == (len(drawn) > 1)
    assert all(curve.runs[0].path in note for curve in drawn for note in notes)


def test_a_net_of_ones_own_has_its_own_name(log):
    """As plain.py of models/README.md, whose configuration has no cardinality or width."""
    nets = [
        {"net": "plain", "depth": 4, "classes": 10},
        {"net": "mlp", "classes": 10, "wide": True},
    ]
    options = logged("a", False)["options"] | {"cardinality": 1, "baseWidth": 64, "netType": "x"}
    drawn = together(*(log(n["net"], "", 9.0, first={"options": options, "net": n}) for n in nets))
    assert [curve.label for curve in drawn] == ["plain-4", "mlp"]
    assert [curve.family for curve in drawn] == ["plain", "mlp"]


def test_the_script_needs_neither_torch_nor_a_screen(log, tmp_path):
    """Nor what the settings of a notebook or of a user ask matplotlib for."""
    (tmp_path / "rc").write_text("text.usetex: True\n")
    settings = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MATPLOTLIBRC": str(tmp_path / "rc"),
    }
    settings |= {"PYTHONPATH": ROOT, "PATH": ""}  # where LaTeX would be
    code = "import sys; sys.modules['torch'] = None; import plot; plot.main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "-out", "x.png", log("a", "", 9.0, 8.0)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "DISPLAY"} | settings,
    )
    assert done.returncode == 0 and (tmp_path / "x.png").exists(), done.stderr
