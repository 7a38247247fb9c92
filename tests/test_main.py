"""Whole runs of main.py on small data: text, resuming, retraining, bad input."""

import json
import os
import re
import shutil
import signal
import time

import pytest
import torch
from support import nets
from support.evaluations import TORCH7
from support.runs import NET, ROOT, errors, results, same, start

import evaluate
import main
import models
import opts
import train
from formats import model_files
from models.resnet import resnet
from runtime.errors import InputError
from storage import atomic

HERE = os.path.dirname(os.path.abspath(__file__))
SMALL = "-dataset cifar10 -depth 11 -baseWidth 8 -cardinality 4 -batchSize 8 -manualSeed 1"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, cifar):
    """run("-option value ...") runs main in an empty folder; returns the lines it printed."""
    monkeypatch.chdir(tmp_path)

    def run(command, data=cifar):
        main.main([*command.split(), "-data", data])
        captured = capsys.readouterr()
        return (captured.err + captured.out).splitlines()

    return run


def shape(lines):
    """Lines with every number of results and times replaced, blanks kept."""
    out = []
    for line in lines:
        line = re.sub(r"(Time|Data) +\d+\.\d+", r"\1 T", line)
        line = re.sub(r"Err \d+\.\d{4}\b", "Err E", line)
        line = re.sub(r"(?<= )[ \d]{3}\.\d{3}", "PPP.PPP", line)
        line = re.sub(r"\(( {0,2}\d+\.\d{3}|PPP\.PPP)\)", "(PPP.PPP)", line)
        out.append(re.sub(r"\t[\d.]+\t[\d.]+$", "\tB\tB", line))
    return out


def test_the_lines_are_the_originals(run):
    with open(os.path.join(HERE, "reference", "mainrun", "resnext_cifar10_2epochs.txt")) as file:
        theirs = shape(file.read().splitlines())
    ours = shape(run(SMALL + " -weightDecay 5e-4 -nEpochs 2"))
    # what must differ: the file of the net, the source of the data, the name of its cache
    theirs = [line for line in theirs if "ownloading" not in line and "gen/" not in line]
    ours = [line for line in ours if "gen/" not in line and "No CUDA" not in line]
    assert [line.replace(".lua", ".py") for line in theirs] == ours


def test_a_resumed_run_is_the_straight_run(run):
    options = NET + " -LRSteps 2,4 -manualSeed 3 -nGPU 2 "
    run(options + "-nEpochs 4 -save straight")
    run(options + "-nEpochs 4 -save stopped -nThreads 0")
    for name in os.listdir("stopped"):  # as after a kill at the end of epoch 2
        if name.endswith(("_3.pth", "_4.pth")):
            os.remove(os.path.join("stopped", name))
    atomic.save(
        os.path.join("stopped", "latest.pth"),
        {"epoch": 2, "modelFile": "model_2.pth", "optimFile": "optimState_2.pth"},
    )
    lines = run("-dataset cifar10 -resume stopped -save stopped -nThreads 1")
    assert any("-LR 0.01" in line for line in lines if line.startswith("=> from the checkpoint:"))
    same(results("straight", 4), results("stopped", 4))


def test_the_best_model_of_the_held_out_images_is_tested_once_at_the_end(run):
    """Bit for bit over a resume, whatever the threads; the test is that of -testOnly."""
    words = NET + " -LRSteps 2,3 -nGPU 2 -valShare 0.3 "
    straight = run(words + "-nEpochs 3 -save straight -nThreads 2")
    run(words + "-nEpochs 3 -save stopped -nThreads 0")
    for name in ("model_3.pth", "optimState_3.pth", "latest.pth"):
        os.remove(os.path.join("stopped", name))
    lines = run("-dataset cifar10 -resume stopped")
    one, other = results("straight", 3), results("stopped", 3)
    assert one[2].pop() == other[2].pop() == {"final": {"images": 21, **score(straight[-1])}}
    same(one, other)
    assert lines[-1] == straight[-1] and "=> testing the best model on the 21 test images" in lines
    again = "-dataset cifar10 -testOnly true -retrain straight/model_best.pth"
    assert run(again)[-1] == straight[-1]
    best = min(line["test"]["top1"] for line in one[2])
    assert score(run(again + " -valShare 0.3")[-1])["top1"] == pytest.approx(best, abs=1e-3)
    # a finished run has its test measured again and nothing moved
    before = sorted(os.listdir("straight"))
    assert run("-dataset cifar10 -resume straight")[-1] == straight[-1]
    assert sorted(os.listdir("straight")) == before
    for changed in ("-valShare 0", "-valShare 0.2", "-manualSeed 4", "-valShare 0 -fold 1/3"):
        with pytest.raises(
            InputError, match="differ from the checkpoint, so val would have images"
        ):
            run(f"-dataset cifar10 -resume straight -nEpochs 4 {changed}")


def score(line):
    """The errors in the last line of a test."""
    top1, top5 = re.fullmatch(r" \* Results top1: +([\d.]+)  top5: +([\d.]+)", line).groups()
    return {
        "top1": pytest.approx(float(top1), abs=6e-4),
        "top5": pytest.approx(float(top5), abs=6e-4),
    }


def test_the_best_error_survives_a_resume(run):
    run(NET + " -nEpochs 1")
    state = atomic.load("checkpoints/optimState_1.pth")
    state["best"] = (0.5, 0.25)  # better than noise can be learned
    atomic.save("checkpoints/optimState_1.pth", state)
    lines = run(NET + " -nEpochs 2 -resume checkpoints")
    assert not any("Best model" in line for line in lines)
    assert lines[-1] == " * Finished top1:  0.500  top5:  0.250"


def test_given_options_win_over_the_checkpoint(run):
    run(NET + " -nEpochs 1")
    lines = run(NET + " -nEpochs 2 -resume checkpoints -LR 0.02 -momentum 0.8 -weightDecay 0")
    for name, ours, theirs in (("LR", "0.02", "0.01"), ("momentum", "0.8", "0.9")):
        assert f"=> -{name} {ours} as given, in place of the checkpoint's {theirs}" in lines
    assert any(line.startswith("=> -weightDecay 0.0 as given") for line in lines)
    assert atomic.load("checkpoints/optimState_2.pth")["options"]["momentum"] == 0.8


def test_the_net_is_named_once_if_another_is_asked_for(run):
    run("-dataset cifar10 -depth 11 -cardinality 4 -baseWidth 4 -batchSize 8 -nEpochs 1 -LR 0.01")
    lines = run("-resume checkpoints -cardinality 8 -nEpochs 1")
    named = [line for line in lines if "-cardinality 8" in line or "in place of" in line]
    assert named == ["=> -cardinality 4 as the model has, in place of 8 as given"]


def test_an_earlier_run_stays_where_no_epoch_would_be_trained(run):
    run(NET + " -nEpochs 1")
    before = sorted(os.listdir("checkpoints"))
    words = "-dataset cifar10 -nEpochs 2 -epochNumber 3 -retrain checkpoints/model_1.pth"
    with pytest.raises(InputError, match="-epochNumber 3 is above -nEpochs 2"):
        run(words)
    assert sorted(os.listdir("checkpoints")) == before
    assert run(words + " -testOnly true")[-1].startswith(" * Results")


def test_a_folder_without_a_checkpoint_starts_afresh(run):
    lines = run(NET + " -nEpochs 1 -resume nowhere")
    assert "=> No checkpoint in nowhere: starting afresh" in lines
    assert lines[-1].startswith(" * Finished")


def test_retrain_and_test_only(run):
    trained = run(NET + " -nEpochs 1")
    tested = run("-dataset cifar10 -batchSize 8 -testOnly true -retrain checkpoints/model_1.pth")
    assert "Loading model from file: checkpoints/model_1.pth" in tested
    # the net in the file, not the default -depth 34; the same errors as after training it
    finished = next(line for line in trained if line.startswith(" * Finished epoch"))
    again = next(line for line in tested if line.startswith(" * Finished epoch"))
    assert again.split("top1")[1] == finished.split("top1")[1]
    assert tested[-1].startswith(" * Results top1: ")
    assert run("-dataset cifar10 -batchSize 8 -testOnly true -retrain checkpoints")[-1].startswith(
        " * Results top1: "
    )
    untrained = run(NET + " -testOnly true")
    assert "=> neither -retrain nor -resume is given, so this net is untrained" in untrained


def test_fine_tuning(run, photos):
    run(NET + " -nEpochs 1")
    options = "-retrain checkpoints/model_1.pth -save tuned -nEpochs 1 -batchSize 6 -nThreads 0 "
    with pytest.raises(
        InputError, match="model has 10 classes, but the data has 2.*-resetClassifier true"
    ):
        run(options, photos)
    with pytest.raises(InputError, match="is above -nEpochs 1: no epoch would be trained"):
        run(options + "-nClasses 10 -epochNumber 2", photos)
    assert run(options + "-nClasses 10", photos)[-1].startswith(" * Finished")
    lines = run(options + "-resetClassifier true -optimState checkpoints/optimState_1.pth", photos)
    assert " => Replacing classifier with 2-way classifier" in lines
    saved = atomic.load("tuned/model_1.pth")
    assert saved["config"]["classes"] == 2 and saved["classes"] == ["plain", "striped"]
    assert saved["model"]["fc.weight"].shape == (2, 64)


def test_a_net_of_other_classes(run, photos):
    """An output may not be taken for a class whose name another output bears."""

    def words(names, more=""):
        model_files.write("other.pth", models.pack(nets.ours(resnet(18, 2), names, TORCH7)))
        return f"-retrain other.pth -save other -batchSize 4 -nThreads 0{more}"

    for names, stop, more in (
        (["striped", "plain"], "has 'plain' as its class 2, the data as class 1: a test", ""),
        (["striped", "fox"], "has 'striped' as its class 1, the data as class 2", ""),
        (["striped", "fox"], "has 'striped' as its class 1", " -testOnly true"),
    ):
        with pytest.raises(InputError, match=stop):
            run(words(names, more), photos)
    lines = run(words(["fox", "cat"], " -testOnly true"), photos)
    note = "=> the class names of other.pth are not those of the data, so the classes are matched "
    assert note + "by order" in lines and lines[-1].startswith(" * Results")


def test_an_imagenet_net_on_two_of_its_classes(run, photos, tmp_path, capsys):
    """Every image is taken for a tench, which half of them are."""
    for split in ("train", "val"):
        os.makedirs(tmp_path / "two" / split)
        for wnid, name in (("n03888257", "plain"), ("n01440764", "striped")):
            os.symlink(os.path.join(photos, split, name), tmp_path / "two" / split / wnid)
    net = resnet(18, 1000)
    net.fc.weight.data[:], net.fc.bias.data[:] = 0, -torch.arange(1000.0)
    torch.save(net.state_dict(), "net.pth")
    data = str(tmp_path / "two")
    for more in ("", " -nClasses 1000"):
        lines = run(f"-retrain net.pth -testOnly true -batchSize 4 -nThreads 0{more}", data)
        assert lines[-1] == " * Results top1: 50.000  top5: 50.000"
    capsys.readouterr()
    evaluate.main(f"net.pth -data {data} -nThreads 0 -batchSize 4".split())
    assert " * Results top1: 50.000  top5: 50.000" in capsys.readouterr().out
    with pytest.raises(InputError, match="the model has 1000 classes, but the data has 2") as error:
        run("-retrain net.pth -nThreads 0", data)
    assert "-nClasses" not in str(error.value)


def test_keep(run):
    run(NET + " -nEpochs 3 -keep 2")
    assert sorted(os.listdir("checkpoints")) == sorted(
        ["latest.pth", "log.jsonl", "model_2.pth", "model_3.pth", "model_best.pth"]
        + ["optimState_2.pth", "optimState_3.pth"]
    )


def test_ten_crops(run, photos):
    run(
        "-netType resnet -depth 18 -batchSize 4 -trainCrop 64 -nEpochs 1 -LR 0.001 -nThreads 1",
        photos,
    )
    options = "-retrain checkpoints/model_1.pth -testOnly true -nThreads 1"
    small = options + " -tenCrop true -testScale 72 -testCrop 64"
    for size, batches in ((20, 4), (5, 8)):  # 8 images, two at a time, then one
        lines = run(f"{small} -batchSize {size}", photos)
        assert sum(line.startswith(" | Test") for line in lines) == batches
    assert run(options + " -testScale 320 -testCrop 320", photos)[-1].startswith(" * Results")


def test_an_unreadable_image(run, photos, tmp_path):
    data = str(tmp_path / "broken")
    shutil.copytree(photos, data)
    broken = os.path.join(data, "train", "plain", "0.jpg")
    with open(broken, "wb") as file:
        file.write(b"not a picture")
    options = (
        "-netType resnet -depth 18 -batchSize 4 -trainCrop 64 -nEpochs 1 -LR 0.001 -nThreads 1"
    )
    with pytest.raises(InputError, match=re.escape(broken)) as stop:
        run(options, data)
    assert "-skipCorrupt true" in str(stop.value)
    lines = run(options + " -skipCorrupt true", data)
    assert [line for line in lines if "skipped" in line and broken in line and "(1 so far)" in line]
    assert lines[-1].startswith(" * Finished")


def test_damaged_and_odd_photos(run, photos, tmp_path):
    """A damaged one ends the run or is left out, an odd one with all its pixels is used."""
    data = str(tmp_path / "broken")
    shutil.copytree(photos, data)
    lost, odd = (os.path.join(data, "train", "plain", name) for name in ("0.jpg", "1.jpg"))
    with open(lost, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 2)
        file.write(bytes(size // 4))  # the end of the image is as before
    with open(odd, "rb") as file:
        whole = file.read()
    with open(odd, "wb") as file:
        file.write(whole[:20] + b"???" + whole[20:])  # behind the first segment
    options = "-netType resnet -depth 18 -batchSize 4 -trainCrop 64 -nEpochs 2 -LR 0.001 -nThreads "
    with pytest.raises(InputError, match=re.escape(lost) + "': its pixels are damaged or lost: "):
        run(options + "1", data)
    logs = []
    for threads in (0, 2):
        lines = run(f"{options}{threads} -skipCorrupt true -save {threads}", data)
        named = [line for line in lines if lost in line]
        assert len(named) == 2 and "(1 so far)" in named[0] and "(2 so far)" in named[1]
        (once,) = [line for line in lines if odd in line]
        assert (
            once.startswith(" | damaged, but all pixels are intact: ")
            and "3 extraneous bytes" in once
        )
        with open(f"{threads}/log.jsonl") as file:
            logs.append([json.loads(line) for line in file][1:])
        assert [(line["skipped"], line["odd"]) for line in logs[-1]] == [(1, 1)] * 2
    assert [line["train"] for line in logs[0]] == [line["train"] for line in logs[1]]
    same(results("0", 2), results("2", 2))  # whatever nThreads


def test_a_loss_that_is_not_finite(run):
    with pytest.raises(InputError, match="epoch 1, iteration"):
        run(NET + " -nEpochs 1 -LR 1e30")
    assert not os.path.exists("checkpoints/latest.pth")


def test_memory_options(run):
    lines = run(NET + " -nEpochs 1 -shareGradInput true")
    assert any(line.startswith("shareGradInput: not needed") for line in lines)
    plain = results("checkpoints", 1)
    run(NET + " -nEpochs 1 -optnet true -save recomputed")
    same(plain, results("recomputed", 1))


def test_a_damaged_checkpoint_is_named(run):
    run(NET + " -nEpochs 1")
    with open("checkpoints/model_1.pth", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match="checkpoints/model_1.pth"):
        run(NET + " -nEpochs 2 -resume checkpoints")


def test_interrupted_from_the_keyboard(cifar, tmp_path):
    process = start(NET + " -nEpochs 10000", cifar, tmp_path)
    for line in process.stdout:
        if line.startswith("=> Training epoch # 3"):
            break
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    error = errors(process.communicate(timeout=60)[1])
    assert process.returncode == 130
    program = re.escape(os.path.join(ROOT, "main.py"))  # as it was started
    assert re.fullmatch(
        r"main.py: interrupted by SIGINT in (the test of )?epoch \d+ after \w+ \d of \d; "
        rf"to go on: python {program} -resume checkpoints\n",
        error,
    )
    assert atomic.load(tmp_path / "checkpoints" / "latest.pth")["epoch"] >= 2


def test_an_error_is_one_line_without_a_traceback(cifar, tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    process = start(NET + " -nEpochs 1", cifar, tmp_path)
    error = errors(process.communicate(timeout=120)[1])
    assert process.returncode == 1
    assert error.startswith("main.py: unable to create checkpoint directory checkpoints")
    assert error.count("\n") == 1


NEW_NET = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.config = {"net": "tiny", "classes": classes}
        self.fc = nn.Linear(3072, classes)

    def forward(self, x):
        return self.fc(x.flatten(1))

def tiny(classes):
    return Tiny(classes)

def create(opt, classes):
    return tiny(classes)
"""


@pytest.mark.slow
def test_a_net_is_added_by_adding_a_file(cifar, tmp_path):
    root = tmp_path / "program"
    ignored = shutil.ignore_patterns(".*", "tests", "checkpoints", "gen")
    shutil.copytree(ROOT, root, ignore=ignored)  # with numba's cache
    (root / "models" / "tiny.py").write_text(NEW_NET)
    process = start("-netType tiny -dataset cifar10 -nEpochs 1 -LR 0.001", cifar, tmp_path, root)
    out, error = process.communicate(timeout=120)
    error = errors(error)
    assert process.returncode == 0, error
    assert "=> Creating model from file: models/tiny.py" in out
    process = start("-dataset cifar10 -resume checkpoints -nEpochs 2", cifar, tmp_path, root)
    out, error = process.communicate(timeout=120)
    error = errors(error)
    assert process.returncode == 0 and "=> Training epoch # 2" in out, error


def test_going_on_with_a_repeated_command(run):
    """Though the file of its -retrain is gone; what changes is said, and the log keeps both."""
    run(f"{NET} -nEpochs 1 -save old")
    os.rename("old/model_best.pth", "weights.pth")
    first = f"{NET} -nEpochs 1 -retrain weights.pth -save run -resume run/latest.pth"
    run(first)
    os.remove("weights.pth")
    line = "=> epoch 1 is done, and epoch 1 is the last one: nothing is left to train"
    assert line in run(first + " -optimState gone.pth")

    lines = run("-resume run/log.jsonl -nEpochs 2 -LR 0.02 -printEvery 3")
    assert any("=> the rate rises from 0.01 to 0.02 in epoch 2, by -nEpochs 2" in n for n in lines)
    shown = [line.split()[2:4] for line in lines if line.startswith((" | Epoch", " | Test"))]
    assert [place for place, _ in shown] == ["[2][3/5]", "[2][5/5]", "[2][3/3]"]
    run("-resume run -nEpochs 3 -LR 0.03")
    with open("run/log.jsonl") as file:
        header = json.loads(file.readline())
    assert header["options"]["LR"] == 0.03
    starts = [(start["epochs"], start["options"]["LR"]) for start in header["earlier"]]
    assert starts == [(1, 0.01), (2, 0.02)]
    assert any(
        "epoch 3 is done, and epoch 1 is the last one" in line
        for line in run("-resume run -nEpochs 1")
    )
    assert not any(name.startswith("earlier") for name in os.listdir("run"))

    os.mkdir("back")  # to epoch 2, as docs/files.md says
    for name in ("model_2.pth", "optimState_2.pth", "log.jsonl"):
        shutil.copy(f"run/{name}", "back")
    run("-resume back -nEpochs 3 -LR 0.03")
    assert atomic.digest("back/model_3.pth") == atomic.digest("run/model_3.pth")


def test_a_position_beyond_the_end_is_refused(run):
    """So is one of an epoch that is not the next."""
    run(f"{NET} -nEpochs 1 -save run")
    path = "run/optimState_1.pth"
    state = atomic.load(path)
    sums = {"done": 0, "seen": 8, "wrong1": 0, "wrong5": 0, "loss": 0.0}
    begun = {**state["position"], "epoch": 2, "train": sums, "test": sums, "trained": False}
    for position, sentence in (
        ({**begun, "epoch": 3}, "position is in epoch 3, but the last one done is 1"),
        ({**begun, "train": {**sums, "done": 6}}, "is 6 batches into the training of epoch 2"),
        ({**begun, "test": {**sums, "done": 4}, "trained": True}, "is 4 batches into the valid"),
    ):
        atomic.save(path, {**state, "position": position})
        with pytest.raises(InputError, match=sentence):
            run("-resume run -nEpochs 2")


@pytest.mark.parametrize("net, said", [("resnext", 1), ("preresnext", 1), ("resnet", 0)])
def test_share_grad_input_as_the_lua_prints_it(net, said, capsys):
    depth = 11 if "resnext" in net else 8
    words = f"-dataset cifar10 -netType {net} -depth {depth} -cardinality 2 -baseWidth 4"
    opt = opts.parse(f"{words} -shareGradInput true".split())
    models.setup(opt, None, None, [*"0123456789"], torch.device("cpu"))
    assert capsys.readouterr().out.splitlines().count("shareGradInput function") == said


@pytest.mark.parametrize(
    "words, each, few",
    [
        ("-nGPU 8 -batchSize 32", "8 replicas in 1 process, 4 images each", True),
        ("-nGPU 5 -batchSize 32", "5 replicas in 1 process, 6 or 7 images each", True),
        ("-nGPU 2 -batchSize 32", "2 replicas in 1 process, 16 images each", False),
        ("-nGPU 8 -batchSize 32 -LR 0.01", "8 replicas in 1 process, 4 images each", False),
        ("-batchSize 4", None, True),
        ("-batchSize 8", None, False),
        ("-batchSize 2 -testOnly true", None, False),
    ],
)
def test_replicas_of_few_images_are_named(words, each, few, capsys):
    opt = opts.parse(f"-dataset cifar10 -depth 8 {words}".split())
    net = models.build(opt, 10)
    train.setup(opt, net, torch.device("cpu"))
    lines = capsys.readouterr().err.splitlines()
    assert (each is not None) == any(line == f"=> {each}" for line in lines)
    assert few == any("may diverge: give a larger -batchSize" in line for line in lines)


@pytest.mark.parametrize(
    "given, said",
    [
        ({}, True),
        ({"netType": "preresnet", "depth": 18, "valShare": 0.2, "LR": 0.01}, True),
        ({"trainCrop": 64}, False),
        ({"retrain": "net.pth"}, False),
        ({"testOnly": True}, False),
        ({"dataset": "cifar10"}, False),
    ],
)
def test_few_photos_lead_to_the_readme(given, said, capsys):
    opt = opts.settle(given)
    main.report_few(opt, 2 * main.FEW, ["ant", "bee"])
    assert not capsys.readouterr().err
    main.report_few(opt, 240, ["ant", "bee"])
    assert (
        "240 photos are few for training a new net: see Few photos in" in capsys.readouterr().err
    ) == said
