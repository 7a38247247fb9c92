"""Whole runs of detect.py on small data: both kinds of training, resuming, replicas, pictures."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from PIL import Image
from support.detectors import classifier, detector, write_classifier, write_coco
from support.runs import ROOT, difference, log, results, same

import detect
from detection import annotations, coco, net, schedule, scores, show
from detection.images import Images
from detection.trainer import Trainer
from engine import metrics
from parallel import signals
from runtime.errors import InputError
from storage import atomic

SMALL = "-data data -scale 40 -largest 48 -anchors 8,16 -regions 8 -nThreads 0 -nGPU 2 -freeze 0"
SMALL += " -batchSize 2 -LR 0.01 -iterations 2,4 -epochSize 2 -manualSeed 3 -precision double"
TWO_STEPS = SMALL + " -rpnBatchSize 4 -rpnLR 0.01 -rpnIterations 1,3"
SHARED = SMALL + " -shared true -warmup 2"
NEW = " -retrain classifier.pth"
TEST = "classifier.pth -data data -testOnly true "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detect")
    write_coco(folder / "data", "train2017", 6)
    write_coco(folder / "data", "val2017", 3, seed=1)
    write_classifier(folder / "classifier.pth")
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """run(command, when): detect.main, to which `when(n)` may do something in iteration n."""
    monkeypatch.chdir(folder)
    push = metrics.MetricQueue.push

    def run(command, when=lambda n: None):
        count = 0

        def counting(*args):
            nonlocal count
            count += 1
            when(count)
            return push(*args)

        monkeypatch.setattr(metrics.MetricQueue, "push", counting)
        detect.main(command.split())
        out, notes = capsys.readouterr()
        return notes.splitlines() + out.splitlines()

    return run


def stop_at(place):
    return lambda n: os.kill(os.getpid(), signal.SIGTERM) if n == place else None


@pytest.fixture(scope="module")
def straight(folder):
    """Both kinds of training without a stop; their lines."""
    said = {}
    for name, command in (("two", TWO_STEPS), ("one", SHARED)):
        process = start(command + NEW + f" -save {name}", folder)
        said[name] = process.communicate(timeout=600)[0].splitlines()
        assert process.returncode == 0, said[name]
    return said


def start(command, folder):
    return subprocess.Popen(
        [sys.executable, os.path.join(ROOT, "detect.py"), *command.split()],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_the_two_steps(straight, folder):
    lines = straight["two"]
    boxes = "6 training images, 0 of them without boxes; 12 boxes (square 6, tall 6), 0 left out"
    assert f"=> {boxes}; 4 epochs of 2 iterations" in lines
    begun = [line for line in lines if line.startswith("=> Training")]
    names = ["rpn", "rpn", "fast", "fast"]
    assert begun == [f"=> Training epoch # {e} ({name})" for e, name in enumerate(names, 1)]
    found = log(folder / "two")
    assert [line["rate"] for line in found] == pytest.approx([1e-3, 1e-3, 1e-2, 1e-3])
    assert set(found[0]["train"]) == {"loss", "objectness", "proposal"}
    assert set(found[3]["train"]) == {"loss", "classifier", "box"}
    assert 0 <= found[1]["test"]["recall"] <= 100 and "AP50" in found[3]["test"]
    for name, value in found[3]["test"]["classes"].items():
        assert lines.count(f" | AP {value:7.3f}  {name}") and name in ("square", "tall")
    assert lines[-2].startswith(" * Finished AP: ") and lines[-1] == "=> two/detections.png"
    assert all(line["skipped"] == line["odd"] == 0 for line in found)
    assert Image.open(folder / "two" / "detections.png").size[0] > 100
    for entry in json.loads((folder / "two" / "detections.json").read_text()):
        assert entry["image_id"] in (10, 11, 12) and entry["category_id"] in (3, 90)
    # the RPN's net does not move in the second step, the other one not in the first
    nets = [atomic.load(folder / "two" / f"model_{n}.pth")["model"] for n in (1, 2, 4)]
    for name, tensor in nets[1].items():
        rpn = name.startswith("rpn")
        assert (tensor == nets[2 if rpn else 0][name]).all(), name
    moved = [name for name in nets[0] if (nets[1][name] != nets[2][name]).any()]
    assert any("layer1" in name for name in moved) and any("layer3" in name for name in moved)
    assert not any("bn" in name for name in moved)


def test_the_shared_net(straight, folder):
    found = log(folder / "one")
    assert [line["step"] for line in found] == ["shared", "shared"]
    assert [line["rate"] for line in found] == pytest.approx([5e-3, 1e-3])
    assert set(found[0]["train"]) == {"loss", "objectness", "proposal", "classifier", "box"}


@pytest.mark.parametrize("place", (1, 5, 12))  # of the 15 batches of training and test
def test_stopped_and_resumed(run, straight, folder, place):
    name = f"stopped{place}"
    with pytest.raises(signals.Interrupted) as stop:
        run(TWO_STEPS + NEW + f" -cudnn deterministic -save {name}", stop_at(place))
    command = str(stop.value).partition("; to go on: python detect.py ")[2]
    assert stop.value.status == 143 and command == f"-resume {name} -nThreads 0"
    lines = run(command)
    (adopted,) = (line for line in lines if line.startswith("=> from the checkpoint: "))
    assert " -rpnIterations 1,3 " in adopted + " " and torch.backends.cudnn.deterministic
    same(results(folder / "two", 4), results(folder / name, 4))


def test_its_workers_end_with_the_run(run):
    """At once. If the garbage collector has to find them, torch waits 5 s for each."""
    before = multiprocessing.active_children()  # of other tests
    run(TWO_STEPS.replace("-nThreads 0", "-nThreads 1") + NEW + " -save workers")
    assert set(multiprocessing.active_children()) <= set(before)


def test_the_place_on_a_resume(run, straight, folder):
    """The step at hand may change its length; never so that iterations are skipped or repeated."""
    with pytest.raises(signals.Interrupted):  # in the first epoch of the RPN step
        run(TWO_STEPS + NEW + " -rpnIterations 1,4 -save place", stop_at(2))
    with pytest.raises(InputError, match="rpn step would have .* 1 in all; .* has .* 4 in all"):
        run("-resume place -rpnIterations 1")
    lines = run("-resume place -rpnIterations 1,2 -iterations 3")
    found = log(folder / "place")
    assert [line["step"] for line in found] == ["rpn", "fast", "fast"]
    assert sum(line.startswith(" | Epoch: ") for line in lines) == 5  # with those before the stop
    # the last epoch had one iteration of two: the second one can be had no more
    with pytest.raises(InputError, match="step would have .* 6 in all; .* has .* 3 in all"):
        run("-resume place -iterations 6")
    shutil.copytree(folder / "one", folder / "longer")
    run("-resume longer -iterations 2,6")
    assert [line["epoch"] for line in log(folder / "longer")] == [1, 2, 3]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("batch", [2, 8, 16])
@pytest.mark.parametrize("images", [1, 30, 640, 12345, 58632, 58633, 117266])
def test_the_schedule_follows_the_number_of_images(shared, batch, images):
    """24 passes, as COCO's recipe makes over half of COCO; from there on the recipe's numbers."""
    given = {"shared": shared, "batchSize": batch, "rpnBatchSize": batch}
    recipe = detect.settle({"shared": shared})
    opt = schedule.fitted(detect.settle(given), images)
    names = ("iterations",) if shared else ("iterations", "rpnIterations")
    for name in names:
        own, coco = getattr(opt, name), getattr(recipe, name)
        assert list(own) == sorted(set(own)) and own[0] > 0
        if images > 58632:
            assert own == coco and (opt.epochSize, opt.warmup) == (0, recipe.warmup)
            continue
        full = recipe.rpnBatchSize if name == "rpnIterations" else recipe.batchSize
        passes = coco[-1] * full / 58633
        assert own[-1] * batch / images == pytest.approx(passes, abs=5 * batch / images)
        assert own[0] / own[-1] == pytest.approx(coco[0] / coco[-1], abs=4 / own[-1])
    if 640 <= images < 58633:
        assert 11 <= opt.iterations[-1] / opt.epochSize <= 12
        assert opt.warmup == min(1000, opt.iterations[-1] // 10)


def test_a_schedule_that_is_given_stays():
    given = {"iterations": (2, 4), "shared": True, "warmup": 1}
    assert schedule.fitted(detect.settle(given), 30).values == detect.settle(given).values
    opt = schedule.fitted(detect.settle({"shared": True, "epochSize": 3, "warmup": 5}), 640)
    assert (opt.epochSize, opt.warmup) == (3, 5) and opt.iterations[-1] < 2000
    saved = {"options": dict(opt.values)}  # a resumed run keeps it, whatever the images are now
    assert schedule.fitted(detect.settle({}, saved), 99).iterations == opt.iterations
    digits = {"dataset": "digits"}
    assert schedule.fitted(detect.settle(digits), 30).values == detect.settle(digits).values


@pytest.mark.parametrize("dataset", ["coco", "digits"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("images", [30, 117266])
def test_a_warm_up_ends_before_its_step(dataset, shared, images):
    for last in (1, 2, 60, 5000):
        for name in ("iterations",) if shared else ("iterations", "rpnIterations"):
            given = {"dataset": dataset, "shared": shared, name: (last,)}
            opt = schedule.fitted(detect.settle(given), images)
            assert opt.warmup <= last / 2
            with pytest.raises(InputError, match=f"-warmup {last} is too long: a step has"):
                schedule.fitted(detect.settle({**given, "warmup": last}), images)


def test_frozen_and_free_again():
    """A checkpoint with all momenta goes on frozen, and one without them goes on free."""
    step = schedule.Step("shared", 0.1, (4,), 2, 0, None, 2)

    def trainer(freeze, state=None):
        model = detector(net=classifier(8, 2, "cifar", "A"))
        model.backbone.freeze_first(freeze)
        found = Trainer(model, torch.device("cpu"), [step])
        if state:
            found.load_state(state)
        return found

    def state(trainer, freeze):
        trainer.begin_step(step)
        for tensor in trainer.state()["momentum"].values():
            tensor.fill_(1)
        return {**trainer.state(), "epoch": 1, "options": {"freeze": freeze}}

    whole = state(trainer(0), 0)
    frozen = trainer(2, whole).state()["momentum"]
    still = {n for n in whole["momentum"] if n.startswith(("backbone.conv1", "backbone.layer1"))}
    assert still and frozen.keys() == whole["momentum"].keys() - still
    assert all((tensor == 1).all() for tensor in frozen.values())
    free = trainer(0, state(trainer(2), 2)).state()["momentum"]
    assert all((tensor == (name not in still)).all() for name, tensor in free.items())
    del whole["momentum"]["rpn.head.cls_logits.bias"]
    with pytest.raises(InputError, match="its momentum lacks rpn.head.cls_logits.bias"):
        trainer(0, whole)


@pytest.mark.slow
def test_killed_in_either_step(straight, folder):
    """kill -9 inside an epoch of each step; what is left resumes to the straight run."""
    command = TWO_STEPS + NEW + " -save killed -resume killed -saveEvery 1e-9"
    inside = folder / "killed" / "inside_epoch.pth"
    for step, epoch in (("rpn", 1), ("fast", 3)):
        process = start(command, folder)
        while f"[{epoch}][1/2]" not in (line := process.stdout.readline()):
            assert line, f"ended before {step}"
        while not inside.exists():
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        state = atomic.load(inside)
        assert (state["step"], state["epoch"]) == (step, epoch - 1)
    process = start(command, folder)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    same(results(folder / "two", 4), results(folder / "killed", 4))


@pytest.mark.slow
def test_two_processes_train_the_same_detector(straight, folder):
    process = start(TWO_STEPS + NEW + " -save processes -nProcs 2", folder)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0 and "=> 2 processes on cpu" in said, said
    one, other = results(folder / "two", 4), results(folder / "processes", 4)
    assert difference(one, other) < 1e-9
    for mine, theirs in zip(one[2], other[2]):
        classes = [line["test"].pop("classes", {}) for line in (mine, theirs)]
        assert classes[0] == pytest.approx(classes[1], abs=1e-6)
        assert mine["test"] == pytest.approx(theirs["test"], abs=1e-6)
        assert mine["train"] == pytest.approx(theirs["train"], rel=1e-9)


def test_test_only_and_show(run, straight, folder):
    lines = run(
        "one/model_2.pth -data data -testOnly true -nThreads 0 -precision double -out r.json"
    )
    (again,) = (line for line in lines if line.startswith(" * Finished epoch"))
    first = [line for line in straight["one"] if line.startswith(" * Finished epoch")][-1]
    assert again.split("AP:")[1] == first.split("AP:")[1]
    last = (folder / "one" / "detections.json").read_text()
    assert json.loads((folder / "r.json").read_text()) == json.loads(last)
    lines = run("one/model_2.pth -show data/val2017/11.png -out found.png -minScore 0")
    assert lines[-1] == "=> found.png"
    picture = np.asarray(Image.open("found.png"))
    assert picture.shape == (40 * 10, 48 * 10, 3)  # small images are drawn larger
    plain = np.asarray(Image.open("data/val2017/11.png")).repeat(10, 0).repeat(10, 1)
    assert (picture != plain).any(2).mean() > 0.01 and len(lines) > 1


def test_images_without_an_object(run, straight, folder):
    """No score, no best model, no division by zero: in a test alone, the RPN step, the other."""
    content = write_coco(folder / "bare", "val2017", 3, seed=1)
    content["annotations"] = []
    path = folder / "bare" / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content))
    lines = run("one/model_2.pth -data bare -testOnly true -nThreads 0 -out bare.json")
    assert " * Finished epoch # 0     no objects" in lines
    assert isinstance(json.loads((folder / "bare.json").read_text()), list)
    own = f"-val {path} -valImages bare/val2017 -rpnIterations 1 -iterations 1 -save bare_run"
    lines = run(f"{TWO_STEPS} {own}{NEW}")
    assert [line["test"] for line in log(folder / "bare_run")] == [{}, {}]
    assert sum("recall   0.000 (  0.000)" in line for line in lines) == 2  # of batches of 2 and 1
    assert sum("no objects" in line for line in lines) == 2
    assert not any("Best model" in line or "Finished AP" in line for line in lines)


def test_the_picture_shows_the_first_images_that_could_be_read(tmp_path):
    write_coco(tmp_path, "val2017", 9)
    images = Images(coco.open_split(str(tmp_path), "val2017", ""), False, False)
    nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
    opt = types.SimpleNamespace(save=str(tmp_path), minScore=0.5)
    model = types.SimpleNamespace(classes=["square", "tall"])
    show.sheet_of([(i, *nothing) for i in (8, 7)], images, model, opt)
    page = np.asarray(Image.open(tmp_path / "detections.png"))
    for place, i in enumerate((7, 8)):
        expected = images.source.pixels(i).transpose(1, 2, 0).repeat(10, 0).repeat(10, 1)
        part = page[:, 480 * place : 480 * (place + 1)]
        changed = (part != expected).any(2)
        left, top, right, bottom = images.source.objects(i).boxes[0].astype(int) * 10
        assert (
            changed[top + 1, left : right + 1].all() and changed[top : bottom + 1, left + 1].all()
        )
        assert (part[changed] == 255).all()  # the true boxes


@pytest.mark.parametrize("size", [(6000, 4000), (300, 5000), (64, 48)])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_sheet_is_no_larger_than_a_screen(tmp_path, size, count):
    source = types.SimpleNamespace(
        ids=list(range(count)),
        pixels=lambda i: np.zeros((3, size[1] // 4, size[0] // 4), np.uint8),
        objects=lambda i: annotations.Objects(np.ones((1, 4)), np.ones(1, int), np.zeros((0, 4))),
    )
    nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
    opt = types.SimpleNamespace(save=str(tmp_path), minScore=0.5)
    model = types.SimpleNamespace(classes=["square"])
    found = [(i, *nothing) for i in range(count)]
    show.sheet_of(found, Images(source, False, False), model, opt)
    assert max(Image.open(tmp_path / "detections.png").size) <= 2000


@pytest.mark.parametrize(
    "command, words",
    [
        ("classifier.pth -testOnly true -data data", "is a classifier: -testOnly needs a detector"),
        ("classifier.pth -show data/val2017/11.png", "is not a detector of this program"),
        ("one/model_2.pth -data data", "-shared false: the detector was trained with -shared true"),
        ("-retrain classifier.pth -data data -train train2014", "missing annotations"),
        ("-retrain classifier.pth -data nowhere", "missing annotations 'nowhere/annotations/"),
        (f"one/model_2.pth {SHARED} -anchors 8,32", "-anchors 8,32 is only for a run that starts"),
        (
            "one -data data -shared true -recomputeBN 3 -bnData data",
            "-recomputeBN 3 is only for a run",
        ),
        ("-resume one -anchors 8", "-anchors 8 is only for a run that starts from a classifier"),
        (
            "-resume one -recomputeBN 3",
            "-recomputeBN 3 is only for a run that starts from a classifier",
        ),
        ("-resume two -batchSize 1", "fast step would have 1 images .* the checkpoint has 2 im"),
        ("-resume two -rpnBatchSize 2", "rpn step would have 2 images .* the checkpoint has 4"),
        ("-resume two -epochSize 3", "would have .* 3 iterations an .* the checkpoint has .* 2 it"),
        ("-resume two -rpnIterations 1,5", "would have .* 5 in all; the checkpoint .* 3 in all"),
        (
            SHARED + NEW + " -freeze 4",
            "-freeze 4: give at most 3, the first layers and 2 stages before",
        ),
        ("one/model_2.pth -data data -testOnly true -val other.json", "missing annotations"),
    ],
)
def test_what_is_refused(run, straight, command, words):
    with pytest.raises(InputError, match=words):
        run(command)


@pytest.mark.parametrize(
    "command, words",
    [
        ("", "give the classifier to start from: -retrain"),
        ("-retrain nowhere.pth", "File not found: nowhere.pth"),
        ("classifier.pth -retrain classifier.pth", "not both"),
        ("classifier.pth other", "unexpected word 'other'"),
        ("classifier.pth -show nowhere.jpg", "File not found: nowhere.jpg"),
        ("-retrain classifier.pth -iterations 9,5", "invalid value '9,5'"),
        ("-dataset voc", "unknown dataset 'voc'"),
        ("-rpnlr 0.1", "did you mean -rpnLR"),
        ("-retrain classifier.pth -warmup -5", "-warmup: should be at least -1"),
        ("-retrain classifier.pth -freeze -2", "-freeze: should be at least -1"),
        ("-retrain classifier.pth -data data -regions 3", "-regions 3: give 4 or more"),
        ("-retrain classifier.pth -data data -anchors 1,8", "-anchors 1: give 2 or more"),
        ("-retrain classifier.pth -scale 20000", "-scale: should be 0 to 16384"),
        ("-retrain classifier.pth -data data -momentum 0", "-momentum 0: a run without momentum"),
        ("-retrain none.pth", "File not found: none.pth (-retrain)"),
        ("-retrain none:5", "File not found: none:5 (-retrain)"),
        ("-retrain classifier.pth -out a.json", "-out is for -testOnly true or -show"),
        ("-retrain classifier.pth -data data -recomputeBN 3", "missing ImageNet data directory"),
        ("-retrain classifier.pth -data data -recomputeBN 3", "'imagenet': give -bnData DIR; it"),
        (
            "-retrain classifier.pth -data data -recomputeBN 3 -bnData data/annotations",
            "`train` directory: data/annotations/train; -bnData must hold",
        ),
        ("-retrain classifier.pth -bnData data", "-bnData only goes with -recomputeBN N"),
        (TEST + "-out r.csv", "-out r.csv should end in .json"),
        (TEST + "-out nowhere/r.json", "the folder 'nowhere' does not exist"),
        ("classifier.pth -show classifier.pth -out a.txt", "-out a.txt should end in .png or .jpg"),
        ("classifier.pth -show data/val2017/11.png -minScore 50", "-minScore 50: should be 0 to 1"),
        ("-retrain classifier.pth -data data -nms 1.5", "-nms 1.5: should be 0 to 1"),
        ("-retrain classifier.pth -data data -leastScore 5", "-leastScore 5: should be 0 to 1"),
        ("classifier.pth -show data/val2017 -out data/val2017", "give another folder than -show's"),
        ("classifier.pth -dataset digits -show \u00b2", "File not found: \u00b2 (-show)"),
    ],
)
def test_bad_options(folder, monkeypatch, capsys, command, words):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stop:
        detect.parse(command.split())
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_damaged_images(run, folder, monkeypatch):
    """An image of either split is torn, another has only three bytes too many in its header."""
    write_coco(folder / "torn", "train2017", 6)
    write_coco(folder / "torn", "val2017", 3, seed=1)
    torn, odd = (folder / "torn" / "train2017" / f"{n}.png" for n in (11, 12))
    for path in (torn, folder / "torn" / "val2017" / "10.png"):
        path.write_bytes(path.read_bytes()[:900])
    jpeg = io.BytesIO()
    Image.open(odd).save(jpeg, "JPEG")
    odd.write_bytes(jpeg.getvalue()[:20] + bytes(3) + jpeg.getvalue()[20:])
    command = SHARED.replace("-data data", "-data torn").replace("-epochSize 2", "-epochSize 3")
    command += NEW + " -save torn_run -iterations 3"
    with pytest.raises(InputError, match="11.png.*repair or remove it, or give -skipCorrupt true"):
        run(command)
    tested, evaluate = [], scores.evaluate

    def noting(source, found):
        tested.extend(source.ids[place] for place, *_ in found)
        return evaluate(source, found)

    monkeypatch.setattr(scores, "evaluate", noting)
    lines = run(command + " -skipCorrupt true")
    assert tested == [11, 12]  # the objects of the others do not count as missed
    assert sum("skipped" in line and "train2017/11.png" in line for line in lines) == 1
    assert sum("damaged, but all pixels" in line and "12.png" in line for line in lines) == 1
    (line,) = log(folder / "torn_run")
    assert (line["skipped"], line["odd"]) == (2, 1)


@pytest.mark.parametrize(
    "owner, name, call, where",
    [
        # of four iterations, each with two slices, and six test images
        (net.Detector, "losses", 2, "in epoch 1 after iteration 1 of 2"),
        (coco.Coco, "pixels", 5, "in the test of epoch 1"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (coco.Coco, "pixels", 3, "in epoch 1 after iteration 1 of 2"),
                (scores, "evaluate", 1, "in the test of epoch 2"),
                (net.Detector, "detections", 4, "in the test of epoch 2"),
            )
        ),
    ],
)
def test_an_error_loses_no_iteration(
    run, straight, folder, monkeypatch, capsys, owner, name, call, where
):
    """In an iteration, too: until the step, nothing has changed. The end is the straight run's."""
    original, count = getattr(owner, name), iter(range(99))

    def failing(*arguments):
        if next(count) == call:
            raise MemoryError
        return original(*arguments)

    save = f"{name}{call}"
    with monkeypatch.context() as patch, pytest.raises((MemoryError, InputError)):
        patch.setattr(owner, name, failing)
        run(f"{SHARED}{NEW} -save {save}")
    line = f"=> an error {where}: saved what was done; to go on: python detect.py -resume {save}"
    assert line in capsys.readouterr().err
    run(f"-resume {save} -nThreads 0")
    same(results(folder / "one", 2), results(folder / save, 2))


def test_an_image_that_goes_inside_an_epoch(run, folder):
    """The epoch begins again, and what changed is named."""
    content = write_coco(folder / "shrinks", "train2017", 6)
    write_coco(folder / "shrinks", "val2017", 3, seed=1)
    command = SHARED.replace("-data data", "-data shrinks") + " -save shrinks_run"
    with pytest.raises(signals.Interrupted):
        run(command + NEW, stop_at(1))
    content["images"].pop()
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 15]
    path = folder / "shrinks" / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(content))
    lines = run(command + " -resume shrinks_run")
    assert "=> epoch 1 begins again, because the images changed" in lines
    assert any("=> the images in -data have changed since the checkpoint" in x for x in lines)


def test_an_earlier_run_is_set_aside_and_a_removed_folder_made_again(run, straight, folder):
    shutil.copytree(folder / "one", folder / "again")
    lines = run(SHARED + NEW + " -save again", remove_at(3, folder / "again"))
    assert any("of an earlier run, which are now in again/earlier-1" in x for x in lines)
    assert "=> again was removed, and is made again" in lines
    same(results(folder / "one", 2), results(folder / "again", 2))
    assert json.loads((folder / "again" / "detections.json").read_text()) is not None


def remove_at(place, path):
    return lambda n: shutil.rmtree(path) if n == place else None


def test_resuming_what_is_no_detector(run, folder):
    options = {"LR": 0.1}
    state = {"momentum": {}, "epoch": 1, "best": (1.0, 1.0), "options": options}
    os.makedirs("other", exist_ok=True)
    atomic.save("other/model_1.pth", {"model": {}})
    atomic.save("other/optimState_1.pth", state)
    newest = {"epoch": 1, "modelFile": "model_1.pth", "optimFile": "optimState_1.pth"}
    atomic.save("other/latest.pth", newest)
    with pytest.raises(InputError, match="other/model_1.pth is not a detector of this program"):
        run(SHARED + " -resume other -save other")
