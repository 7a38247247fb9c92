"""Options against the original's own help and the commands of its documentation."""

import os
import re
import subprocess
import sys
import types

import pytest

import complexity
import convert
import detect
import evaluate
import main
import opts
import plot
import train
from datasets import prepare_imagenet
from pretrained import classify, extract_features
from runtime import options
from runtime.errors import InputError

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


@pytest.fixture
def photos(tmp_path):
    """A folder of the layout that -dataset imagenet wants."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
    return str(tmp_path)


def refused(capsys, *argv):
    """The sentence with which the command line is refused."""
    with pytest.raises(SystemExit) as stop:
        opts.parse(argv)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def original_help(file):
    """{name: default} as the Lua's --help printed them."""
    with open(os.path.join(HERE, "reference", "mainrun", file)) as lines:
        rows = re.findall(r"^  -(\w+) .*\[(.*)\]$", lines.read(), re.MULTILINE)
    return dict(rows)


@pytest.mark.parametrize("file, count", [("help_resnext.txt", 31), ("help_fbresnet.txt", 28)])
def test_every_option_of_the_original_has_its_default(file, count):
    original = original_help(file)
    assert len(original) == count
    ours = dict(
        re.findall(
            r"^  -(\w+) .*\[(.*)\]$", options.help_text(opts.HEAD, opts.OPTIONS), re.MULTILINE
        )
    )
    # one program for both: which it is follows from the other options (test_published_commands.py)
    assert original.pop("netType") == file.split("_")[1].removesuffix(".txt").replace("fb", "")
    assert {name: ours.get(name) for name in original} == original


@pytest.mark.parametrize(
    "net, dataset, recipe",
    [
        # the two repositories' opts.lua
        ("resnext", "imagenet", (100, "B")),
        ("resnext", "cifar10", (300, "B")),
        ("preresnext", "cifar100", (300, "B")),
        ("resnet", "imagenet", (90, "B")),
        ("resnet", "cifar10", (164, "A")),
        ("preresnet", "cifar100", (164, "A")),
    ],
)
def test_recipes(net, dataset, recipe, photos):
    depth = {"imagenet": "50"}.get(dataset, "29" if "resnext" in net else "20")
    opt = opts.parse(["-netType", net, "-dataset", dataset, "-depth", depth, "-data", photos])
    assert (opt.nEpochs, opt.shortcutType) == recipe


COMMANDS = [
    # ResNeXt's README
    "-dataset imagenet -bottleneckType resnext_C -depth 50 -baseWidth 4 -cardinality 32 "
    "-batchSize 256 -nGPU 8 -nThreads 8 -shareGradInput true -data DIR",
    "-dataset cifar10 -bottleneckType resnext_C -depth 29 -baseWidth 64 -cardinality 16 "
    "-weightDecay 5e-4 -batchSize 128 -nGPU 8 -nThreads 8 -shareGradInput true",
    "-dataset cifar10 -bottleneckType resnext_C -depth 29 -baseWidth 64 -cardinality 16 "
    "-weightDecay 5e-4 -batchSize 64 -nGPU 4 -LR 0.05 -nThreads 8 -shareGradInput true",
    "-dataset cifar10 -bottleneckType resnext_C -depth 29 -baseWidth 64 -cardinality 16 "
    "-weightDecay 5e-4 -batchSize 32 -nGPU 2 -LR 0.025 -nThreads 8 -shareGradInput true",
    "-dataset imagenet -depth 50 -baseWidth 4 -cardinality 32 -nGPU 8 -data DIR",
    "-dataset cifar10 -depth 29 -cardinality 16 -baseWidth 64 -resume checkpoints",
    # fb.resnet.torch's TRAINING.md
    "-dataset cifar10 -nGPU 2 -batchSize 128 -depth 20",
    "-dataset cifar10 -nGPU 2 -batchSize 128 -depth 1202 -shareGradInput true",
    "-depth 18 -nGPU 4 -nThreads 8 -batchSize 256 -data DIR",
    "-depth 152 -nGPU 8 -nThreads 12 -batchSize 256 -shareGradInput true -data DIR",
    "-netType preresnet -depth 200 -nGPU 8 -batchSize 256 -data DIR -testOnly true -tenCrop true",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands(command, photos):
    words = [photos if word == "DIR" else word for word in command.split()]
    opt = opts.parse(words)
    for name, text in zip(words[::2], words[1::2]):
        value = getattr(opt, name[1:])
        assert str(value).lower() == text.lower() or float(value) == float(text)
    doubled = opts.parse([w if i % 2 else "-" + w for i, w in enumerate(words)])
    assert dict(doubled.values) == dict(opt.values)


def test_the_last_of_two_wins_and_given_names_are_known():
    opt = opts.parse("-dataset cifar10 -depth 20 -LR 0.5 -depth 32".split())
    assert opt.depth == 32
    assert set(opt.given) == {"dataset", "depth", "LR"}


@pytest.mark.parametrize(
    "argv, words",
    [
        ("-foo 1", ["unknown option -foo"]),
        ("-dep 20", ["unknown option -dep", "-depth"]),  # argparse would take it for -depth
        ("-batchsize 5", ["-batchSize"]),
        ("-dataset", ["missing argument for option -dataset"]),
        ("-depth -dataset cifar10", ["missing argument for option -depth"]),
        ("cifar10", ["cifar10"]),
        ("-depth abc", ["-depth", "abc", "whole number"]),
        ("-depth 20.5", ["-depth", "20.5", "whole number"]),
        ("-LR nan", ["-LR", "nan", "number"]),
        ("-LR -1", ["-LR", "-1", "at least 0"]),
        ("-testOnly yes", ["-testOnly", "yes", "true or false"]),
        ("-LRSteps 5,3", ["-LRSteps", "5,3", "ascending"]),
        ("-LRSteps 30_60", ["-LRSteps", "30_60", "ascending"]),
        ("-dataset mnist", ["mnist", "cifar10, cifar100, digits, imagenet"]),
        ("-dataset cifar10 -precision quad", ["quad", "single, double, half, bfloat16, tf32"]),
        ("-dataset cifar10 -depth 29 -bottleneckType foo", ["foo", "resnext_B", "resnext_C"]),
        ("-netType vgg", ["vgg", "preresnext"]),
        (
            "-dataset cifar10 -depth 30 -cardinality 2",
            ["should be one of 29, 38, 47, 56, 101", "30"],
        ),
        (
            "-dataset cifar10 -depth 29",
            ["should be one of 20, 32", "-netType resnext or preresnext has it"],
        ),
        (
            "-dataset cifar10 -depth 32 -baseWidth 4",
            ["should be one of 29,", "-netType resnet or preresnet has it"],
        ),
        ("-dataset cifar10 -netType resnet -depth 21", ["depth should be one of 20, 32, 44, 56"]),
        ("-dataset cifar10 -depth 20 -shareGradInput true -optnet true", ["-shareGradInput"]),
        ("-dataset cifar10 -depth 20 -momentum 0", ["Nesterov momentum requires a momentum"]),
        ("-dataset cifar10 -depth 20 -tenCrop true", ["-tenCrop", "imagenet"]),
        ("-dataset cifar10 -retrain nowhere.pth", ["File not found: nowhere.pth"]),
        ("-depth 50 -data nowhere", ["missing ImageNet data directory", "train/<class>/<image>"]),
        ("-", ["unknown option - (-help lists all)"]),
        ("-dataset cifar10 -depth 20 -save none", ["-save none", "-save ./none"]),
        (
            "-dataset cifar10 -depth 20 -nEpochs 2 -epochNumber 3",
            ["-epochNumber 3 is above -nEpochs 2: no epoch would be trained"],
        ),
        ("-dataset cifar10 -depth 20 -epochNumber 165", ["is above -nEpochs 164"]),
        (
            f"-dataset cifar10 -depth 20 -optimState {__file__}",
            ["-optimState needs the net it belongs to: give -retrain FILE"],
        ),
        ("-depth 50 -data PHOTOS -testCrop 300", ["-testCrop 300", "-testScale 256"]),
        (
            "-data PHOTOS -cardinality 32",
            ["Invalid depth: 34", "50, 101 or 152", "-netType resnet or preresnet has it"],
        ),
        ("-data PHOTOS -depth 51", ["Invalid depth: 51", "18, 34, 50, 101 or 152"]),
    ],
)
def test_a_bad_command_is_refused_in_one_sentence(argv, words, capsys, photos):
    error = refused(capsys, *argv.replace("PHOTOS", photos).split())
    assert all(word in error for word in words), error


def test_imagenet_without_a_validation_folder(capsys, tmp_path):
    (tmp_path / "train").mkdir()
    assert "val" in refused(capsys, "-depth", "50", "-data", str(tmp_path))


def test_imagenet_is_looked_for_beside_the_program(monkeypatch, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "imagenet" / split).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert opts.parse(["-depth", "50"]).data == "imagenet"


@pytest.mark.parametrize("argv", [["-help"], ["-h"], ["--help"], ["-depth", "abc"]])
def test_help_and_errors_do_not_wait_for_torch(argv):
    code = (
        "import sys, main\n"
        "try: main.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True
    )
    assert result.stdout.splitlines()[-1] == "False False"


def test_help_starts_like_the_original():
    lines = options.help_text(opts.HEAD, opts.OPTIONS).splitlines()
    assert lines[0] == "Usage: main.py [options]"
    assert "  -data            Path to dataset []" in lines
    assert all(len(line) < 100 for line in lines)


@pytest.mark.parametrize("started", ["main.py", "../program/main.py", "/program/main.py"])
def test_the_command_to_go_on_names_the_program_as_it_was_started(started, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    command = opts.resume_command("-dataset cifar10 -nThreads 3".split(), "my run")
    assert command == f"python {started} -resume 'my run' -nThreads 3"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])  # another program called main()
    assert opts.resume_command([], "run", "detect.py", ()) == "python detect.py -resume run"


RESNEXT = {"net": "resnext", "depth": 29, "cardinality": 2, "base_width": 4, "shortcut": "B"}


@pytest.mark.parametrize(
    "config, words, notes",
    [
        (
            {"net": "resnet", "depth": 20, "shortcut": "A"},
            "-netType resnet -depth 20 -cardinality 8 -bottleneckType resnext_B",
            [
                "-bottleneckType resnext_B has no effect: a resnet has none",
                "-cardinality 8 has no effect: a resnet has none",
            ],
        ),
        (
            {**RESNEXT, "bottleneck": "resnet"},
            "-depth 29 -bottleneckType resnet -baseWidth 8",
            [
                "-baseWidth 8 has no effect: -bottleneckType resnet is ResNet's block, which has "
                "one path"
            ],
        ),
        (
            {**RESNEXT, "bottleneck": "resnext_C"},
            "-depth 29 -cardinality 8 -baseWidth 4 -testScale 300 -testCrop 224",
            [
                "-testCrop 224 has no effect: images of cifar10 are taken as they are",
                "-testScale 300 has no effect: images of cifar10 are taken as they are",
                "-cardinality 2 as the model has, in place of 8 as given",
            ],
        ),
        (
            {"net": "mine"},  # it may have read any option
            "-netType resnet -depth 20",
            ["-netType resnet chooses the recipe alone: the model is a mine"],
        ),
    ],
)
def test_options_that_change_nothing_are_named(config, words, notes, capsys):
    opt = opts.parse(["-dataset", "cifar10", *words.split()])
    opt = opts.settle(opt.given, None, config)
    opts.report(opt, config)
    assert capsys.readouterr() == ("", "".join(f"=> {note}\n" for note in notes))


SAVED = {"netType": "resnet", "depth": 20, "shortcutType": "A", "LRSteps": (), "fold": ""}
SAVED |= {"testCrop": 224, "momentum": 0.9}


@pytest.mark.parametrize(
    "words, note",
    [
        ("-momentum 0.8", "-momentum 0.8 as given, in place of the checkpoint's 0.9"),
        ("-LRSteps 7", "-LRSteps 7 as given, in place of the checkpoint's none"),
        ("-fold 1/5", "-fold 1/5 as given, in place of the checkpoint's none"),
        ("-testCrop 9", "-testCrop 9 has no effect: images of cifar10 are taken as they are"),
        ("-depth 8", "-depth 20 as the model has, in place of 8 as given"),
        ("-netType resnext", "-netType resnext chooses the recipe alone: the model is a resnet"),
    ]
    + [
        (words, f"{words} has no effect: the run resumes from its checkpoint")
        for words in ("-epochNumber 2", "-retrain a.pth", "-optimState a", "-resetClassifier true")
    ]
    + [("-epochNumber 1 -gen b -nThreads 1 -nEpochs 0", None)],
)
def test_a_changed_option_of_a_resumed_run_has_one_line(words, note, capsys):
    config = {"net": "resnet", "depth": 20, "shortcut": "A"}
    given = options.read_words(f"-dataset cifar10 {words}".split(), opts.OPTIONS)
    opts.report(opts.settle(given, {"options": SAVED, "file": "a.pth"}, config), config)
    *lines, last = sorted(capsys.readouterr().err.splitlines())
    assert lines == ([f"=> {note}"] if note else []) and last.startswith("=> from the checkpoint")


def test_those_that_the_checkpoint_gave_are_not_named(capsys):
    given = dict(opts.parse("-dataset cifar10 -netType resnet -depth 20".split()).given)
    checkpoint = {"options": {"cardinality": 8, "testCrop": 200}, "file": "optimState_1.pth"}
    config = {"net": "resnet", "depth": 20, "shortcut": "A"}
    opt = opts.settle(given, checkpoint, config)
    assert (opt.cardinality, opt.source("cardinality")) == (8, "checkpoint")
    opts.report(opt, config)
    assert capsys.readouterr().err == "=> from the checkpoint: -cardinality 8 -testCrop 200\n"


@pytest.mark.parametrize(
    "command",
    [
        *(main, detect, evaluate, complexity, convert, plot),
        *(classify, extract_features, prepare_imagenet),
    ],
)
def test_every_command_has_the_same_help_and_errors(command, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["net.pth", "-help"])
    out, err = capsys.readouterr()
    assert not stop.value.code and out.startswith("Usage") and err == ""
    with pytest.raises(SystemExit, match="2"):
        command.main(["-hlep", "1"])
    out, err = capsys.readouterr()
    assert out == "" and "unknown option -hlep; did you mean -help" in err and err.count("\n") == 1


def test_each_option_is_from_the_strongest_layer(photos):
    """Given, then the checkpoint's, the recipe's, the default; a net from a file is a fact."""
    given = {"data": photos, "LR": 0.3, "depth": 50, "nEpochs": 0}
    saved = {"LR": 0.2, "momentum": 0.8, "depth": 50, "shortcutType": "", "nGPU": 4}
    config = {"net": "preresnet", "depth": 18, "shortcut": "C"}
    opt = opts.settle(given, {"options": saved, "file": "optimState_1.pth"}, config)
    expected = {
        **{"LR": (0.3, "given"), "momentum": (0.8, "checkpoint"), "nGPU": (4, "checkpoint")},
        **{"depth": (18, "net"), "shortcutType": ("C", "net"), "batchSize": (32, "default")},
        **{"nEpochs": (90, "recipe"), "netType": ("preresnet", "recipe")},
    }
    found = {name: (getattr(opt, name), opt.source(name)) for name in expected}
    assert found == expected
    with pytest.raises(AttributeError, match="read-only"):
        opt.LR = 1.0
    changed = opt.replaced(LR=0.4)
    assert (changed.LR, opt.LR, changed.momentum) == (0.4, 0.3, 0.8)


@pytest.mark.parametrize("name", ["data", "save", "gen", "resume", "retrain"])
def test_the_home_folder_is_written_as_a_tilde(monkeypatch, name):
    monkeypatch.setenv("HOME", "/home/ada")
    for words in ([f"-{name}=~/photos"], [f"-{name}", "~/photos"]):
        assert options.read_words(words, opts.OPTIONS) == {name: "/home/ada/photos"}
    assert options.read_words([f"-{name}=a~/~"], opts.OPTIONS) == {name: "a~/~"}


@pytest.mark.parametrize(
    "words, sizes",
    [("", (224, 256, 224)), ("-trainCrop 448", (448, 512, 448)), ("-trainCrop 96", (96, 110, 96))]
    + [("-trainCrop 96 -testScale 128 -testCrop 112", (96, 128, 112))],
)
def test_a_test_follows_the_training_size(words, sizes, photos):
    opt = opts.parse(f"-depth 50 -data {photos} {words}".split())
    assert (opt.trainCrop, opt.testScale, opt.testCrop) == sizes


@pytest.mark.parametrize(
    "given, saved, sizes",
    [({}, None, (64, 320, 300)), ({"testScale": 330}, None, (64, 330, 300))]
    + [({"trainCrop": 96}, None, (96, 110, 96)), ({"testOnly": False}, None, (224, 256, 224))]
    + [({"dataset": "cifar10"}, None, (224, 256, 224))]
    + [({"trainCrop": 96}, {"trainCrop": 64, "testScale": 73, "testCrop": 64}, (96, 73, 64))],
)
def test_the_sizes_of_a_model(given, saved, sizes, capsys):
    """A test takes them from the file; a resumed run keeps its own tests."""
    config, saved = {"net": "resnet", "depth": 18}, saved and {"options": saved, "file": "a.pth"}
    spec = {"scale": 320, "crop": 300, "trained": 64, "pool": "global"}
    opt = opts.settle({"testOnly": True, **given}, saved, config, spec)
    assert (opt.trainCrop, opt.testScale, opt.testCrop) == sizes
    opts.report(opt, config)
    assert (opt.testPool == "global") == (300 in sizes)
    said = "-testCrop 300 -testPool global as the model's file says" in capsys.readouterr().err
    assert said == (300 in sizes)


@pytest.mark.parametrize("words", ["-testCrop 300", "-testScale 200"])
def test_a_size_is_compared_with_that_of_the_models_file(words, photos):
    common = f"-data {photos} -netType resnet -retrain {__file__} -testOnly true"
    opt = opts.parse(f"{common} {words}".split())
    for config in ({"net": "resnet", "depth": 18}, {"net": "mine"}):
        spec = {"scale": 320, "crop": 96}
        opts.check(opts.settle(opt.given, None, config, spec))
        with pytest.raises(InputError, match="-testCrop [0-9]+ is larger than -testScale"):
            opts.check(opts.settle(opt.given, None, config))


WARM = {"LR": 0.1, "warmup": 2, "nEpochs": 20, "drops": ("after", (0.49, 0.74))}


@pytest.mark.parametrize(
    "done, before, changes, rises",
    [
        *((done, 0.01, {}, None) for done in (1, 2)),  # inside and at the end of the warm-up
        (2, 0.01, {"nEpochs": 40}, None),
        (2, 0.01, {"LR": 0.3}, "0.01 to 0.3 in epoch 3"),
        (1, 0.01, {"warmup": 0}, "0.01 to 0.1 in epoch 2"),
        (1, 0.01, {"warmup": 1}, None),
        *((done, 0.1, {}, None) for done in (3, 9)),
        (10, 0.01, {}, None),
        (20, 0.001, {}, None),  # nothing is left to train
        (20, 0.001, {"nEpochs": 40}, "0.001 to 0.01 in epoch 21"),
        (12, 0.01, {"drops": ("at", (15,))}, "0.01 to 0.1 in epoch 13"),
    ],
)
def test_a_rate_that_rises_by_new_options_is_named(done, before, changes, rises, capsys):
    opt = types.SimpleNamespace(**{**WARM, **changes})
    train.note_rise(opt, done + 1, [{"rate": before}])
    said = capsys.readouterr().err
    assert (f"=> the rate rises from {rises}" in said) if rises else said == ""


def test_warm_up(capsys):
    opt = opts.parse("-dataset cifar10 -netType resnet -depth 110 -warmup 2".split())
    rates = [train.learning_rate(opt, epoch) for epoch in (1, 2, 3, 80, 81, 122)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01, 0.001])
    with pytest.raises(SystemExit):
        opts.parse("-dataset cifar10 -depth 110 -netType resnet -warmup 5 -nEpochs 5".split())
    assert "-warmup 5 should be less than -nEpochs 5" in capsys.readouterr().err


PROGRAMS = (opts, detect, evaluate, convert, plot, classify, extract_features)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_an_empty_value_is_named(program):
    """As of a variable of the shell that is not set."""
    table = program.OPTIONS
    for name, _, kind, allowed, _ in table:
        if kind in (options.series, options.flag) or isinstance(allowed, tuple):
            continue
        for words in ([f"-{name}", ""], [f"--{name}="]):
            with pytest.raises(InputError, match=f"the value of -{name} is empty"):
                options.read_words(words, table)
    with pytest.raises(InputError, match="an argument is empty"):
        options.read_words([""], table, [])


@pytest.mark.parametrize("program", (opts, detect), ids=lambda program: program.__name__)
def test_the_files_of_a_run_stand_for_its_folder(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("run")
    for name in opts.OF_A_RUN:
        for there in (False, True):
            for folder in ("run", "."):
                opt = program.settle({"resume": os.path.join(folder, name)})
                assert opt.resume == folder and opt.save == folder
                if there:
                    os.remove(os.path.join(folder, name))
                else:
                    open(os.path.join(folder, name), "w").close()
    assert program.settle({"resume": "latest.pth"}).resume == "."
    assert program.settle({"resume": "run/latest.pth/"}).resume == "run"
    os.symlink("run", "folder")
    assert program.settle({"resume": "folder/latest.pth"}).resume == "folder"
    os.symlink("run/latest.pth", "newest")
    assert program.settle({"resume": "newest"}).resume == os.path.realpath("run")
    os.mkdir("latest.pth")  # a strange name of a folder
    assert program.settle({"resume": "latest.pth"}).resume == "latest.pth"
    open("run/model_7.pth", "w").close()
    with pytest.raises(InputError, match="run/model_7.pth is a file: give its folder, run"):
        program.settle({"resume": "run/model_7.pth"})
