"""Logs of runs, read and brought together: the curves that plot.py draws. Imports nothing heavy.

No Lua file. Runs whose options are equal but for the seed, and for what decides no result, are one
curve: their mean and its standard error.
"""

import json
import math
import os
from typing import NamedTuple

from runtime.errors import InputError

# Options that decide no result, or that are a matter of chance.
FREE = {
    *("manualSeed", "save", "gen", "resume", "nThreads", "nProcs", "saveEvery", "keep", "progress"),
    *("tensorboard", "testOnly", "backend", "cudnn", "shareGradInput", "optnet", "epochNumber"),
    *("stem", "drops"),
}
SIZE = ("depth", "cardinality", "baseWidth")
# what the log says of the net, under the names of the options
NET = {
    **{"net": "netType", "depth": "depth", "cardinality": "cardinality"},
    **{"base_width": "baseWidth", "bottleneck": "bottleneckType", "shortcut": "shortcutType"},
}
NAMES = {"resnet": "ResNet", "resnext": "ResNeXt", "preresnet": "pre-activated ResNet"}
NAMES["preresnext"] = "pre-activated ResNeXt"


class Run(NamedTuple):
    """One log: errors are lists of per cent, an epoch each.

    Of a detector `train` is AP50 and `val` is AP, and they are no errors: `finds` is true.
    """

    path: str
    options: dict
    parameters: int | None
    epochs: list
    train: list  # top-1 error %
    val: list
    finds: bool = False


class Curve(NamedTuple):
    """Runs that are alike."""

    name: str  # of the net: ResNeXt-29 8x64d
    label: str  # the name, and options where it alone does not tell which
    family: str  # the same without the net's size, of which `size` is what is left
    size: str
    options: str  # all those that differ from some other curve's
    runs: list

    def mean(self, what):
        """(epochs, mean, standard error) of "train" or "val", for the epochs that all runs have."""
        found = [dict(zip(run.epochs, getattr(run, what))) for run in self.runs]
        epochs = sorted(set.intersection(*map(set, found)))
        pairs = [_mean([errors[epoch] for errors in found]) for epoch in epochs]
        return epochs, [mean for mean, _ in pairs], [error for _, error in pairs]

    def last(self):
        """(mean, standard error) of the test error after the last epoch that all runs have."""
        _, means, errors = self.mean("val")
        return means[-1], errors[-1]

    def data(self):
        """The dataset, or the folder of images."""
        return _data(self.runs[0].options)

    def best(self):
        """(mean, standard error) of each run's lowest test error, or highest AP."""
        best = max if self.finds else min
        return _mean([best((e for e in run.val if e == e), default=math.nan) for run in self.runs])

    @property
    def finds(self):
        """Whether the runs are a detector's."""
        return self.runs[0].finds

    def parameters(self):
        """How many numbers the net has, or None where an older log does not say."""
        return next((run.parameters for run in self.runs if run.parameters), None)


def read(path, defaults, warn):
    """The Run of a log, or of the run folder that holds it.

    defaults: of every option that there is, for older logs. warn(text): what is left out.
    """
    if os.path.isdir(path):
        path = os.path.join(path, "log.jsonl")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a -save folder") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no log of this program: it is not text") from None
    lines = text.splitlines()
    parsed = [_line(line) for line in lines]
    if len(parsed) > 1 and parsed[-1] is None:
        warn(f"{path}: its last line is cut short and left out")
        parsed.pop()
    if not parsed:
        raise InputError(f"{path} is empty: no run has begun there")
    if not isinstance(parsed[0] and parsed[0].get("options"), dict):
        raise InputError(f"{path} is no log of this program: its first line holds no options")
    rows, before = [], 0
    for number, line in enumerate(parsed[1:], 2):
        epoch = line and line.get("epoch")
        errors = line and _errors(line)
        if type(epoch) is not int or epoch <= before or None in errors:
            raise InputError(
                f"{path}, line {number} is not that of a next epoch with its errors: "
                f"{lines[number - 1]!r:.60}"
            )
        rows.append((epoch, *errors))
        before = epoch
    if not rows:
        raise InputError(f"{path} tells of no finished epoch yet")
    parameters = parsed[0].get("parameters")
    parameters = parameters if type(parameters) is int and parameters > 0 else None
    epochs, train, val = (list(column) for column in zip(*rows))
    finds = any(isinstance(line.get("test"), dict) for line in parsed[1:])
    return Run(path, _options(parsed[0], defaults), parameters, epochs, train, val, finds)


def _line(text):
    """A line as a dict, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _errors(line):
    """The two numbers of an epoch: top-1 errors; of a detector AP50 and AP, NaN in its RPN step."""
    test = line.get("test")
    if isinstance(test, dict):
        return [_first([test.get(name, math.nan)]) for name in ("AP50", "AP")]
    return [_first(line.get(name)) for name in ("train", "test")]


def _first(errors):
    """The first of a list of numbers, NaN if it is not finite; None if it is no such list."""
    if not isinstance(errors, list) or not errors or type(errors[0]) not in (int, float):
        return None
    return errors[0] if -math.inf < errors[0] < math.inf else math.nan


def _options(about, defaults):
    """What decides the result, every option at least with its default, as plain text."""
    found = defaults | about["options"]
    net = about.get("net")
    if isinstance(net, dict):
        net = net.get("backbone", net)  # of a detector
        found |= {ours: net[theirs] for theirs, ours in NET.items() if theirs in net}
    if found["dataset"] == "imagenet":  # any folder of images
        found["data"] = os.path.basename(os.path.normpath(str(found["data"])))
    else:
        del found["data"]
    if found["netType"] in ("resnet", "preresnet"):  # which do not know these
        for name in ("cardinality", "baseWidth", "bottleneckType"):
            del found[name]
    return {name: _shown(value) for name, value in found.items() if name not in FREE}


def _shown(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(_shown, value)) or "none"
    return str(value) or "none"


def together(runs, warn):
    """The runs as curves, in the order in which they were given."""
    groups = {}
    for run in runs:
        groups.setdefault(tuple(sorted(run.options.items())), []).append(run)
    options = [alike[0].options for alike in groups.values()]
    for alike in groups.values():
        if len({run.epochs[-1] for run in alike}) > 1:
            warn(f"{alike[0].path} and its like end at different epochs: the last that all have")
    return [
        Curve(
            net_name(alike[0].options),
            _told(alike[0].options, options, net_name),
            _told(alike[0].options, options, _family),
            net_name(alike[0].options).removeprefix(_kind(alike[0].options) + "-"),
            " ".join(_words(alike[0].options, options)),
            alike,
        )
        for alike in groups.values()
    ]


def net_name(options):
    """A net as the paper calls it: ResNeXt-29 8x64d, with one path ResNet-29 1x64d."""
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


def _told(mine, all, name):
    """A name, after it the options that tell it from others of that name and the same data."""
    same = [one for one in all if name(one) == name(mine) and _data(one) == _data(mine)]
    data = [_data(mine)] if len({_data(one) for one in all}) > 1 else []
    return " ".join([*data, name(mine), *_words(mine, same)])


def _data(options):
    return options.get("data", options["dataset"])


def _words(mine, all):
    """My options that differ somewhere in `all`, but for those that the net's name tells."""
    return [
        f"-{name} {value}"
        for name, value in mine.items()
        if name not in ("netType", *SIZE) and len({one.get(name, value) for one in all}) > 1
    ]


def one_way(members):
    """Whether curves differ in one of the net's sizes only: a line may then join them."""
    values = [{curve.runs[0].options.get(name) for curve in members} for name in SIZE]
    return sum(len(found) > 1 for found in values) < 2


def _mean(values):
    """(mean, standard error); one value has no error that could be told: 0."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
