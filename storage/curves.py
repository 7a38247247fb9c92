"""Reads the logs of runs and groups them into the curves of plot.py. Does not import torch.

Runs are one curve, their mean and its standard error, if all options that decide the result are
equal but for the seed.
"""

import json
import math
import os
from typing import NamedTuple

from runtime import regular_files
from runtime.errors import InputError, shown, visible
from runtime.options import EXACT

# Options that do not decide the result, and the seed.
IGNORED = {
    *("manualSeed", "save", "gen", "resume", "nThreads", "nProcs", "saveEvery", "keep", "progress"),
    *("tensorboard", "testOnly", "backend", "cudnn", "shareGradInput", "optnet", "epochNumber"),
    *("accumulate", "stem", "drops"),
}
SIZE = ("depth", "cardinality", "baseWidth")
LARGEST = 1 << 28  # bytes of a log; one of 100,000 epochs has 30 million
# {field of "net" in the log: option}
NET_OPTIONS = {
    **{"net": "netType", "depth": "depth", "cardinality": "cardinality"},
    **{"base_width": "baseWidth", "bottleneck": "bottleneckType", "shortcut": "shortcutType"},
}
NAMES = {"resnet": "ResNet", "resnext": "ResNeXt", "preresnet": "pre-activated ResNet"}
NAMES["preresnext"] = "pre-activated ResNeXt"


class Run(NamedTuple):
    """One log; `train` and `val` hold one error for each epoch.

    A detector's hold AP50 and AP, which are no errors, and `detects` is true.
    """

    path: str
    options: dict
    parameters: int | None
    epochs: list
    train: list  # top-1 error %
    val: list
    detects: bool = False


class Curve(NamedTuple):
    """Runs with equal options."""

    name: str  # of the net: ResNeXt-29 8x64d
    label: str  # the name, with the options that tell it from other curves of that name
    family: str  # like label, for the name without the net's size: ResNeXt
    size: str  # the rest of the name: 29 8x64d
    options: str  # all that differ from those of another curve
    runs: list

    def mean(self, what):
        """(epochs, mean, standard error) of "train" or "val", for the epochs that all runs have."""
        found = [dict(zip(run.epochs, getattr(run, what))) for run in self.runs]
        epochs = sorted(set.intersection(*map(set, found)))
        pairs = [_mean_and_error([errors[epoch] for errors in found]) for epoch in epochs]
        return epochs, [mean for mean, _ in pairs], [error for _, error in pairs]

    def last(self):
        """(mean, standard error) of the test error after the last epoch that all runs have."""
        _, means, errors = self.mean("val")
        return means[-1], errors[-1]

    def data(self):
        """The dataset; for imagenet the name of the folder of images."""
        return _data(self.runs[0].options)

    def best(self):
        """(mean, standard error) of each run's lowest test error, or highest AP."""
        best = max if self.detects else min
        found = [best((e for e in run.val if e == e), default=math.nan) for run in self.runs]
        return _mean_and_error(found)

    @property
    def detects(self):
        """Whether the runs are a detector's."""
        return self.runs[0].detects

    def parameters(self):
        """The number of parameters, None if the log is too old to have it."""
        return next((run.parameters for run in self.runs if run.parameters), None)


def read(path, defaults, warn):
    """The Run in a log file or run folder.

    defaults: {option: default}, for older logs. warn(text): called for what is left out.
    """
    if os.path.isdir(path):
        path = os.path.join(path, "log.jsonl")
    try:
        text = regular_files.read_bytes(path, LARGEST).decode()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a -save folder") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no log of this program: it is not text") from None
    lines = text.splitlines()
    parsed = [_parse(line) for line in lines]
    if len(parsed) > 1 and parsed[-1] is None:
        warn(f"{path}: its last line is cut short and left out")
        parsed.pop()
    if not parsed:
        raise InputError(f"{path} is empty: no run has begun there")
    if not isinstance(parsed[0] and parsed[0].get("options"), dict):
        raise InputError(f"{path} is no log of this program: its first line holds no options")
    parsed[1:] = [line and named(line) for line in parsed[1:]]
    rows, before = [], 0
    for number, line in enumerate(parsed[1:], 2):
        epoch = line and line.get("epoch")
        errors = line and _errors(line)
        if type(epoch) is not int or not before < epoch < EXACT or None in errors:
            raise InputError(
                f"{path}, line {number} is not that of a next epoch with its errors: "
                f"{lines[number - 1]!r:.60}"
            )
        rows.append((epoch, *errors))
        before = epoch
    if not rows:
        raise InputError(f"{path} has no finished epoch yet")
    parameters = parsed[0].get("parameters")
    parameters = parameters if type(parameters) is int and 0 < parameters < EXACT else None
    epochs, train, val = (list(column) for column in zip(*rows))
    detects = any(map(_is_detectors, parsed[1:]))
    options = _options(path, parsed[0], defaults)
    return Run(path, options, parameters, epochs, train, val, detects)


def _parse(text):
    """A JSON object as a dict, None for any other text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def named(line):
    """A line of a log with its errors by name: earlier versions wrote lists, top-1 first."""
    lists = {name: line.get(name) for name in ("train", "test", "best")}
    lists = {name: errors for name, errors in lists.items() if isinstance(errors, (list, tuple))}
    names = ("top1", "top5", "loss")
    return {**line, **{n: dict(zip(names, errors)) for n, errors in lists.items() if errors}}


def _is_detectors(line):
    test = line.get("test")
    return isinstance(test, dict) and "top1" not in test


def _errors(line):
    """The two numbers of an epoch: top-1 errors; of a detector AP50 and AP, NaN in its RPN step."""
    if _is_detectors(line):
        return [_percent(line["test"].get(name, math.nan)) for name in ("AP50", "AP")]
    parts = (line.get(name) for name in ("train", "test"))
    return [_percent(part.get("top1")) if isinstance(part, dict) else None for part in parts]


def _percent(value):
    """A number in per cent, NaN if it is not finite; None for anything else."""
    if type(value) not in (int, float):
        return None
    if not -math.inf < value < math.inf:
        return math.nan
    return value if 0 <= value <= 100 else None


def _options(path, header, defaults):
    """The options that decide the result, as text; those not in the header have their defaults."""
    found = defaults | header["options"]
    net = header.get("net")
    net = net.get("backbone", net) if isinstance(net, dict) else None  # "backbone" of a detector
    if isinstance(net, dict):
        found |= {option: net[field] for field, option in NET_OPTIONS.items() if field in net}
    for name, value in found.items():
        if not _is_plain(value):
            what = f"its option {shown(name)} is {shown(value)}"
            raise InputError(f"{path} is no log of this program: {what}")
    if found["dataset"] == "imagenet":  # which is any folder of images
        found["data"] = os.path.basename(os.path.normpath(str(found["data"])))
    else:
        del found["data"]
    if found["netType"] in ("resnet", "preresnet"):  # which ignore these
        for name in ("cardinality", "baseWidth", "bottleneckType"):
            del found[name]
    elif found.get("bottleneckType") == "resnet":  # whose block has one path, of 64 channels
        found |= {"cardinality": 1, "baseWidth": 64}
    return {visible(n): _text(value) for n, value in found.items() if n not in IGNORED}


def _is_plain(value, levels=9):
    if isinstance(value, (list, tuple)):
        return levels > 0 and all(_is_plain(part, levels - 1) for part in value)
    return isinstance(value, (str, int, float, type(None)))


def _text(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value)) or "none"
    return visible(str(value)) or "none"


def group_runs(runs, warn):
    """The runs as curves, in the order of their first runs."""
    groups = {}
    for run in runs:
        groups.setdefault(tuple(sorted(run.options.items())), []).append(run)
    options = [members[0].options for members in groups.values()]
    for members in groups.values():
        if len({run.epochs[-1] for run in members}) > 1:
            seeds = f"{members[0].path} and its other seeds"
            warn(f"{seeds} end at different epochs: drawn up to the last common one")
    return [
        Curve(
            net_name(own),
            _label(own, options, net_name),
            _label(own, options, _family),
            net_name(own).removeprefix(_kind(own) + "-"),
            " ".join(_differing(own, options)),
            members,
        )
        for own, members in zip(options, groups.values())
    ]


def net_name(options):
    """The paper's name of a net: ResNeXt-29 8x64d, with cardinality 1 ResNet-29 1x64d."""
    name = f"{_kind(options)}-{options['depth']}"
    if "cardinality" in options:
        name += f" {options['cardinality']}x{options['baseWidth']}d"
    return name


def _kind(options):
    name = NAMES.get(options["netType"], options["netType"])
    return name.replace("ResNeXt", "ResNet") if options.get("cardinality") == "1" else name


def _family(options):
    name = _kind(options)
    return f"{name}, cardinality 1" if options.get("cardinality") == "1" else name


def _label(own, all, name):
    """The dataset if there are several, name(own), and what differs among equal names."""
    same = [other for other in all if name(other) == name(own) and _data(other) == _data(own)]
    data = [_data(own)] if len({_data(other) for other in all}) > 1 else []
    return " ".join([*data, name(own), *_differing(own, same)])


def _data(options):
    return options.get("data", options["dataset"])


def _differing(own, all):
    """The options of `own` that differ within `all`, without those that the net's name has."""
    return [
        f"-{name} {value}"
        for name, value in own.items()
        if name not in ("netType", *SIZE) and len({other.get(name, value) for other in all}) > 1
    ]


def one_size_varies(members):
    """Whether curves differ in at most one of SIZE: then a line may join them."""
    values = [{curve.runs[0].options.get(name) for curve in members} for name in SIZE]
    return sum(len(found) > 1 for found in values) < 2


def _mean_and_error(values):
    """(mean, standard error); the error of a single value is unknown and given as 0."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
