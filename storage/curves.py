"""Reads the logs of runs and groups them into the curves of plot.py. Does not import torch."""

import json
import math
import os
from typing import NamedTuple

from runtime import regular_files
from runtime.errors import InputError, shown, visible
from runtime.options import EXACT, value_text
from runtime.terminal import note

LARGEST = 1 << 29  # bytes of a log; a detector's of 90,000 epochs and 80 classes has 300 million
_LONGEST = 1 << 20  # bytes of a line; parsed JSON takes up to 30 times its size
_MOST = 1_000_000  # epochs
# Options that do not decide the result, and those over which a mean is taken
IGNORED = {
    *("manualSeed", "fold", "save", "gen", "resume", "nThreads", "nProcs", "saveEvery", "keep"),
    *("progress", "printEvery"),
    *("tensorboard", "testOnly", "backend", "cudnn", "shareGradInput", "optnet", "epochNumber"),
    *("accumulate", "stem", "drops"),
}
# {field of a net's configuration: option}
OF_THE_NET = {
    **{"net": "netType", "depth": "depth", "cardinality": "cardinality"},
    **{"base_width": "baseWidth", "bottleneck": "bottleneckType", "shortcut": "shortcutType"},
}
SIZE = ("-depth", "-cardinality", "-baseWidth")
NAMES = {"resnet": "ResNet", "resnext": "ResNeXt", "preresnet": "pre-activated ResNet"}
NAMES["preresnext"] = "pre-activated ResNeXt"


class Run(NamedTuple):
    """One log. Its errors are top-1 errors in %; a detector's AP50 and AP stand in their place."""

    path: str
    data: str  # the dataset; for imagenet the name of the folder of images
    family: str  # of the net, as the paper names it: ResNeXt
    size: str  # 29 8x64d
    name: str  # ResNeXt-29 8x64d
    options: dict  # what decides the result, as text: {"-netType": "resnet", "-LR": "0.1", ...}
    seed: str  # and the fold
    code: tuple
    parameters: int | None
    detects: bool
    train: dict  # {epoch: error}
    val: dict
    final: float  # the best model's error on the test images of -valShare or -fold; else NaN


class Curve(NamedTuple):
    """Runs whose net, options and code are equal: their mean over the seeds and folds."""

    runs: list
    label: str  # the net's name, and what tells it from other curves of that name
    family: str  # likewise without the net's size

    def mean(self, what):
        """(epochs, mean, standard error) of "train" or "val", for the epochs that all runs have."""
        found = [getattr(run, what) for run in self.runs]
        epochs = sorted(set.intersection(*map(set, found)))
        pairs = [_mean_and_error([errors[epoch] for errors in found]) for epoch in epochs]
        return epochs, *([pair[i] for pair in pairs] for i in (0, 1))

    def last(self):
        """(mean, standard error) of the test error after the last epoch that all runs have."""
        return tuple(column[-1] for column in self.mean("val")[1:])

    def best(self):
        """(mean, standard error) of each run's lowest test error, or highest AP."""
        best = max if self.runs[0].detects else min
        known = ([e for e in run.val.values() if e == e] for run in self.runs)
        return _mean_and_error([best(errors, default=math.nan) for errors in known])

    def final(self):
        """(mean, standard error) of the best models' errors on the test images."""
        return _mean_and_error([run.final for run in self.runs])


def _mean_and_error(values):
    """(mean, standard error); the error of a single value is unknown and given as 0."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def read_log(path):
    """The Run in a log file or run folder."""
    file = os.path.join(path, "log.jsonl") if os.path.isdir(path) else path
    foreign = f"{file} is not a log of this program"
    try:
        with regular_files.opened(file, LARGEST) as log:
            # a line above _LONGEST comes in parts, which are no JSON
            texts = iter(lambda: log.readline(_LONGEST).decode(), "")
            header = parsed(next(texts, ""))
            if not isinstance(header.get("options"), dict):
                raise InputError(f"{foreign}: its first line has no options")
            train, val, detects, final = _epochs(texts, log, file)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; give a -save folder") from None
    except UnicodeDecodeError:
        raise InputError(f"{foreign}: it is not text") from None
    if not val:
        raise InputError(f"{file} has no finished epoch yet")
    options = {}
    for name, value in _options(header).items():
        parts = tuple(value) if isinstance(value, list) else (value,)
        if not all(isinstance(part, (str, int, float, type(None))) for part in parts):
            raise InputError(f"{foreign}: its option {shown(name[1:])} is {shown(value)}")
        text = value_text(parts if isinstance(value, list) else value)
        options[visible(name)] = visible(text) or "none"
    data = options.get("-data", options["-dataset"])
    code = shown(header.get("commit")), shown(header.get("changed"))
    if header.get("changed"):  # the log does not say how, so only copies of a run have equal code
        code += train[min(train)], val[min(val)]
    seed = " ".join(shown(header["options"].get(name)) for name in ("manualSeed", "fold"))
    count = header.get("parameters")
    count = count if type(count) is int and 0 < count <= EXACT else None
    return Run(path, data, *_names(options), options, seed, code, count, detects, train, val, final)


def _epochs(texts, log, file):
    """(training errors, test errors, whether a detector's, final error), from the other lines."""
    train, val, detects, final, before = {}, {}, False, math.nan, 0
    for number, text in enumerate(texts, 2):
        line = parsed(text)
        if not line and log.tell() == os.fstat(log.fileno()).st_size:
            note(f"=> {file}: its last line is cut short and left out")
            break
        if "final" in line:  # no epoch comes after
            tested = _percent(line["final"], "top1")
            final = math.nan if tested is None else tested
            break
        epoch, errors = line.get("epoch"), _errors(line)
        if type(epoch) is not int or not before < epoch <= EXACT or None in errors:
            fault = f"line {number} is not the line of the next epoch, with errors"
            raise InputError(f"{file}, {fault}: {text.rstrip()!r:.60}")
        if len(val) == _MOST:
            raise InputError(f"{file} has over {_MOST:,} epochs")
        train[epoch], val[epoch] = errors
        detects, before = detects or "top1" not in line["test"], epoch
    return train, val, detects, final


def parsed(text):
    """A JSON object as a dict with its errors by name, {} for any other text."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(line, dict):
        return {}
    # earlier versions wrote lists
    lists = {part: line[part] for part in ("train", "test") if isinstance(line.get(part), list)}
    named = {part: dict(zip(("top1", "top5", "loss"), found)) for part, found in lists.items()}
    return {**line, **named}


def _errors(line):
    """The two numbers of an epoch: top-1 errors; of a detector AP50 and AP, NaN in its RPN step."""
    test = line.get("test")
    if isinstance(test, dict) and "top1" not in test:
        return [_percent({name: math.nan, **test}, name) for name in ("AP50", "AP")]
    return [_percent(line.get(part), "top1") for part in ("train", "test")]


def _percent(errors, name):
    """The error of this name in per cent, NaN if it is not finite; None if there is none."""
    value = errors.get(name) if isinstance(errors, dict) else None
    if type(value) not in (int, float):
        return None
    if value != value or abs(value) == math.inf:
        return math.nan
    return value if 0 <= value <= 100 else None


def _options(header):
    """{-option: value} of what decides the result; the net's configuration says what the net is."""
    options, net = header["options"], header.get("net")
    net = net.get("backbone", net) if isinstance(net, dict) else None  # "backbone" of a detector
    if not isinstance(net, dict):  # a log of an older version
        net = {key: options[name] for key, name in OF_THE_NET.items() if name in options}
    net = {OF_THE_NET.get(k, k): v for k, v in net.items() if k not in ("classes", "stem")}
    if net.get("bottleneckType") == "resnet":  # a block of one path with 64 channels
        net |= {"cardinality": 1, "baseWidth": 64}
    rest = {n: v for n, v in options.items() if n not in {*IGNORED, *OF_THE_NET.values()}}
    found = {"dataset": "imagenet", **rest, "netType": "net", **net}
    data = found.pop("data", None) or "imagenet"
    if found["dataset"] == "imagenet":  # any folder of images
        is_path = isinstance(data, str)
        found["data"] = os.path.basename(os.path.normpath(data)) if is_path else data
    return {f"-{name}": value for name, value in found.items()}


def _names(options):
    """(family, size, name) of a net; in the paper a ResNeXt of cardinality 1 is a ResNet."""
    kind = family = NAMES.get(options["-netType"], options["-netType"])
    depth, paths, width = (options.get(name, "") for name in SIZE)
    if options["-netType"] in ("resnet", "preresnet"):  # older logs have ResNeXt's options as well
        paths = ""
    if paths == "1":
        kind = kind.replace("ResNeXt", "ResNet")
        family = f"{kind}, cardinality 1"  # ResNets of fb.resnet.torch are another family
    size = f"{depth} {paths}x{width}d" if paths else depth
    return family, size, "-".join(filter(None, (kind, size)))


def group(runs):
    """The runs as curves, in the order of their first runs. Says what is left out, and why."""
    groups = {}
    for run in runs:
        seeds = groups.setdefault((frozenset(run.options.items()), run.code), {})
        other = seeds.setdefault(run.seed, run)
        if other is not run:  # one is a copy of the other, or goes on from it elsewhere
            short, long = sorted((run, other), key=lambda one: (max(one.val), one is other))
            seeds[run.seed] = long
            reason = f"it has the options, -manualSeed, -fold and code of {long.path}"
            note(f"=> {short.path} is left out, because {reason}")
    groups = [list(seeds.values()) for seeds in groups.values()]
    firsts = [members[0] for members in groups]
    curves = []
    for own, members in zip(firsts, groups):
        if not set.intersection(*(set(run.val) for run in members)):
            paths = ", ".join(run.path for run in members)
            raise InputError(f"these runs have no epoch in common, so no mean: {paths}")
        if len({max(run.val) for run in members}) > 1:
            seeds = f"{own.path} and its other seeds"
            note(f"=> {seeds} end at different epochs, so they are drawn up to the last common one")
        equal = [run.path for run in firsts if run.options == own.options]
        if len(equal) > 1 and own.path == equal[0]:
            reason = "their code differs, or has uncommitted changes"
            note(f"=> no mean of {' and '.join(equal)}, whose options are equal, because {reason}")
        which = f"{own.path}: " if len(equal) > 1 else ""
        label, family = (which + _label(own, firsts, name) for name in ("name", "family"))
        curves.append(Curve(members, label, family))
    return curves


def _label(own, runs, name):
    """The dataset if there are several, the name, and what differs among equal names."""
    same = [r for r in runs if (getattr(r, name), r.data) == (getattr(own, name), own.data)]
    data = own.data if len({run.data for run in runs}) > 1 else ""
    differing = [
        f"{option} {value}"
        for option, value in own.options.items()
        if option not in ("-netType", *SIZE)
        and len({run.options.get(option, value) for run in same}) > 1
    ]
    return " ".join(filter(None, (data, getattr(own, name), *differing)))
