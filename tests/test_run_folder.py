"""The folder of a run: it resumes at any instant, full or read-only disks and kills included."""

import contextlib
import errno
import json
import math
import os
import re
import resource
import shutil
import signal
import threading
import time

import pytest
import torch
from support.tiny import entered, step_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import checkpoints
from runtime.errors import InputError
from storage import atomic
from storage.run_folder import RunFolder


def newest(folder, lines=None):
    keep = (lines if lines is not None else []).append
    return checkpoints.newest(str(folder), keep, keep)[0]


def die_at(count):
    """From now on, end this process as by kill -9 at the count-th operation on files."""
    left = [count]

    def dying(operation):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return call

    for name in ("replace", "remove", "fsync"):
        setattr(os, name, dying(getattr(os, name)))


def in_child(action):
    """Call the action in a fork of this process; returns the status that it ended with."""
    child = os.fork()
    if not child:
        os.fsync = lambda _: None  # takes time, and no power is cut here
        with contextlib.suppress(BaseException):
            action()
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_operation(tmp_path, stride):
    """Two epochs with saves inside them; from whatever is there the rest is done, too."""

    def work(folder, count=None):
        checkpoint = newest(folder)
        with entered(folder, "-resume", str(folder), checkpoint=checkpoint) as run:
            if count:
                die_at(count)
            done = step_of(checkpoint) if checkpoint else 0
            for n in (1, 2):
                if done < n - 0.5:
                    run.inside(n)
                if done < n:
                    run.epoch(n, best=n < 2)

    count, before, undisturbed = 0, 0, 0
    while True:
        count += stride
        folder = tmp_path / str(count)
        status = in_child(lambda: work(folder, count))  # noqa: B023
        if status == 0:
            break
        assert status == -signal.SIGKILL
        checkpoint = newest(folder)
        step = step_of(checkpoint) if checkpoint else 0
        assert step >= before  # later kills lose less
        before = step
        assert in_child(lambda: work(folder)) == 0  # noqa: B023
        assert step_of(newest(folder)) == 2
        names = [f"{kind}_{n}.pth" for kind in ("model", "optimState") for n in (1, 2)]
        names += ["latest.pth", "log.jsonl", "model_best.pth"]
        aside = {name for name in os.listdir(folder) if name.startswith("earlier-")}
        assert {*os.listdir(folder)} - aside == {*names}  # no temporary file, no lock
        undisturbed += not aside
        best = atomic.load(folder / "model_best.pth")["model"]["weight"]
        assert (best == 1).all()
    assert before == 2 and count > 30
    assert (
        undisturbed * stride > count // 4
    )  # else a save was cut off, so that its files are set aside


def test_damage_anywhere_is_noticed(tmp_path):
    """Bytes changed and files cut, at 120 places: what is read is what was written, or older."""
    with entered(tmp_path) as run:
        for n in (1, 2, 3):
            run.epoch(n)
        run.inside(4)
    random = torch.Generator().manual_seed(0)
    fell_back = 0
    for name, older in (
        ("latest.pth", 3.5),
        ("inside_epoch.pth", 3),
        ("model_3.pth", 2),
        ("optimState_3.pth", 2),
    ):
        path = tmp_path / name
        if name == "model_3.pth":  # as if the run had ended there
            os.remove(tmp_path / "inside_epoch.pth")
            pointer = {"epoch": 3, "modelFile": name, "optimFile": "optimState_3.pth"}
            atomic.save(tmp_path / "latest.pth", pointer)
        whole = path.read_bytes()
        newer = step_of(newest(tmp_path))
        for place in torch.randint(0, len(whole), (30,), generator=random).tolist():
            changed = bytearray(whole)
            changed[place] ^= 1 << place % 8
            for content in (bytes(changed), whole[:place]):
                path.write_bytes(content)
                lines = []
                step = step_of(newest(tmp_path, lines))
                if len(content) < len(whole):
                    assert step == older
                assert step in (newer, older)
                if step != newer or name == "latest.pth":
                    told = [line for line in lines if "going on from" in line]
                    assert len(told) <= 1 and all(str(path) in line for line in told)
                    fell_back += len(told)
        path.write_bytes(whole)
    assert fell_back > 150  # of 240; the rest are bytes without a meaning, such as padding


@pytest.mark.parametrize("name", ["latest.pth", "model_2.pth", "optimState_2.pth"])
def test_a_missing_file(tmp_path, name):
    with entered(tmp_path) as run:
        run.epoch(1)
        run.epoch(2)
    os.remove(tmp_path / name)
    lines = []
    assert step_of(newest(tmp_path, lines)) == (2 if name == "latest.pth" else 1)
    assert lines[-1].startswith(f"=> File not found: {tmp_path / name}: going on from")


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    """A folder without the right to read its names, as another user's."""

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(InputError, match=f"^cannot list {tmp_path}: Permission denied$"):
        checkpoints.newest(str(tmp_path))


def test_nothing_whole_is_not_a_fresh_start(tmp_path):
    with entered(tmp_path) as run:
        run.epoch(1)
    os.truncate(tmp_path / "model_1.pth", 100)
    with pytest.raises(InputError, match="no checkpoint .* is intact: .*model_1.pth is damaged"):
        newest(tmp_path)
    os.remove(tmp_path / "latest.pth")
    with pytest.raises(InputError, match="latest.pth; .*model_1.pth is damaged"):
        newest(tmp_path)
    os.remove(tmp_path / "optimState_1.pth")
    assert newest(tmp_path) is None  # a first save that was cut off


def test_files_that_do_not_belong_together(tmp_path):
    with entered(tmp_path) as run:
        run.epoch(1)
        run.epoch(2)
    atomic.copy(tmp_path / "model_1.pth", tmp_path / "model_2.pth")
    lines = []
    assert step_of(newest(tmp_path, lines)) == 1
    assert "model_2.pth is not the model that" in lines[-1]


def test_an_earlier_run_is_set_aside_whole(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("not of a run")
    for count in (1, 2, 3):
        with entered(tmp_path) as run:
            for n in range(1, 6 - count):
                run.epoch(n, best=n == 1)
    assert step_of(newest(tmp_path)) == 2
    for number, steps in ((1, 4), (2, 3)):
        earlier = tmp_path / f"earlier-{number}"
        assert step_of(newest(earlier)) == steps
        assert {"model_best.pth", "log.jsonl", f"optimState_{steps}.pth"} <= set(
            os.listdir(earlier)
        )
        assert f"which are now in {earlier}" in capsys.readouterr().err or number == 2
    assert (tmp_path / "mine.txt").exists() and "model_3.pth" not in os.listdir(tmp_path)


OTHERS = ["model_best.pth", "model_1.pth", "optimState_4.pth", "log.jsonl", "events"]
OTHERS += ["detections.json", "detections.png"]


@pytest.fixture(scope="module")
def another_run(tmp_path_factory):
    """The folder of a run with all files that there are."""
    folder = tmp_path_factory.mktemp("another")
    with entered(folder, "-tensorboard", "true") as run:
        for n in (1, 2, 3, 4):
            run.folder.save(n, *run.trainer.saved(70 + n), True, {"seconds": 70 + n})
        run.folder.wait()
        run.inside(80)
    for name in ("detections.json", "detections.png"):
        (folder / name).write_text(name)
    return folder


def put(another_run, names, folder):
    """Copy files of another run into a folder; returns their contents."""
    folder.mkdir(exist_ok=True)
    contents = []
    for name in names:
        [path] = another_run.glob(f"{name}*")
        shutil.copy(path, folder)
        contents.append(path.read_bytes())
    return contents


@pytest.mark.parametrize(
    "resume, names",
    [*(("here", [name]) for name in OTHERS if name != "events"), ("here", ["log.jsonl", "events"])]
    + [(resume, OTHERS) for resume in ("none", "elsewhere", "torch7")]
    + [("inside", OTHERS), ("epoch 2", [n for n in OTHERS if n != "model_1.pth"])]
    + [("epoch 2", ["inside_epoch.pth"])],
)
def test_what_another_run_wrote_is_kept(tmp_path, another_run, names, resume, capsys):
    """Whatever the run begins from: files of others are neither overwritten nor removed."""
    folder, source, checkpoint = tmp_path / "run", tmp_path / "run", None
    words = ["-tensorboard", "true", "-keep", "1"]
    if resume == "elsewhere":
        source = tmp_path / "source"
    if resume in ("elsewhere", "inside", "epoch 2"):
        with entered(source, *words) as run:
            if resume == "inside":
                run.inside(1)
            else:
                run.epoch(1)
                run.epoch(2, best=True)
        checkpoint = newest(source)
    elif resume == "torch7":
        paths = {key: str(folder / f"{key}_2.t7") for key in ("modelFile", "file")}
        checkpoint = {"epoch": 2, "best": (9.0, 1.0), **paths}
    elif resume == "none":
        source = "none"
    contents = put(another_run, names, folder)
    with entered(folder, *words, "-resume", str(source), checkpoint=checkpoint) as run:
        for n in range(checkpoint["epoch"] + 1 if checkpoint else 1, 6):
            run.inside(n)
            run.epoch(n, best=True)
    found = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert all(content in found for content in contents)
    earlier = folder / "earlier-1"
    line = capsys.readouterr().err.splitlines()[0]
    assert line == f"=> {folder} had files of an earlier run, which are now in {earlier}"
    assert (folder / "model_5.pth").exists()
    shown = EventAccumulator(str(folder))  # of the run's own events
    shown.Reload()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()[1:]]
    seconds = [(line["epoch"], line["seconds"]) for line in lines]
    assert [(event.step, event.value) for event in shown.Scalars("seconds")] == seconds


@pytest.mark.parametrize("damaged", [None, "latest.pth", "optimState_3.pth"])
def test_a_resume_goes_on_with_its_own_files(tmp_path, damaged, capsys):
    """Nothing is set aside but what lies beyond the checkpoint."""
    words = ["-tensorboard", "true", "-resume", str(tmp_path)]
    scores = {"seconds": 1, "test": {"AP": 1.5}}
    with entered(tmp_path, *words) as run:
        for n in (1, 2, 3):
            run.folder.save(n, *run.trainer.saved(n), n == 2, scores)
    for name in ("detections.json", "detections.png"):
        (tmp_path / name).write_text(name)
    if damaged:
        os.truncate(tmp_path / damaged, 40)
    for done in (2 if damaged == "optimState_3.pth" else 3, 4):
        checkpoint = newest(tmp_path)
        assert step_of(checkpoint) == done
        with entered(tmp_path, *words, checkpoint=checkpoint) as run:
            for n in range(done + 1, 5):
                run.folder.save(n, *run.trainer.saved(n), False, scores)
    aside = [path.name for path in tmp_path.glob("earlier-*/*")]
    if damaged == "optimState_3.pth":
        assert {*aside} == {"model_3.pth", damaged, "log.jsonl"}
    else:
        assert not aside and not capsys.readouterr().err
    assert (tmp_path / "detections.json").exists()
    assert (atomic.load(tmp_path / "model_best.pth")["model"]["weight"] == 2).all()


def test_only_temporary_files_of_ours_are_removed(tmp_path):
    others = {"data.csv.20240131.tmp", "notes.1.tmp", "model_1.pth.1.tmp.bak", "7.tmp"}
    ours = {"model_1.pth", "latest.pth", "log.jsonl", "detections.json", "lock.owner"}
    for name in {*others, *(f"{name}.123.tmp" for name in ours)}:
        (tmp_path / name).write_text("of a user, or of a killed run")
    with RunFolder(str(tmp_path)):
        assert set(os.listdir(tmp_path)) == {*others, "lock", "lock.owner"}


def test_a_folder_that_is_removed_is_made_again(tmp_path, capsys):
    folder = tmp_path / "run"
    with entered(folder) as run:
        run.epoch(1)
        run.folder.wait()
        shutil.rmtree(folder)
        run.epoch(2)
        run.folder.wait()
        assert f"=> {folder} was removed, and is made again" in capsys.readouterr().err
        with pytest.raises(InputError, match="another run"), RunFolder(run.folder.path):
            pass
    assert step_of(newest(folder)) == 2


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 500 bytes; the kernel says so as it does of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(tmp_path, capsys):
    """It is said in one line, the older checkpoint stays, the next save has it all."""
    with entered(tmp_path) as run:
        run.epoch(1, best=True)
        run.folder.wait()
        with full_disk():
            run.epoch(2, best=True)
            run.folder.wait()
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert said[0].startswith("=> epoch 2 could not be saved: File too large; ")
        assert f"{tmp_path} still holds epoch 1, training goes on" in said[0]
        assert step_of(newest(tmp_path)) == 1
        assert not atomic.left_over(tmp_path)
        run.epoch(3)
    assert step_of(newest(tmp_path)) == 3
    best = atomic.load(tmp_path / "model_best.pth")["model"]
    assert (best["weight"] == 2).all() and (best["bias"] == 2.1).all()


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["weights", "momentum"])
@pytest.mark.parametrize("best", [False, True])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, capsys, number, where, best):
    """It could not be read again: what was saved before stays the newest."""
    with entered(tmp_path) as run:
        run.epoch(1, best=True)
        for epoch in (2, None):
            content, state = run.trainer.saved(2)
            spoiled = content["model"] if where == "weights" else state["momentum"]
            spoiled["weight"].view(-1)[3] = number
            if epoch:
                run.folder.save(epoch, content, state, best, {"seconds": 2})
                run.folder.wait()
                line = "=> epoch 2 could not be saved: weight has a value that is not finite"
                assert line in capsys.readouterr().err
                continue
            state["position"] = {"epoch": 3}
            with pytest.raises(InputError, match="interrupted run could not be saved: weight has"):
                run.folder.save_inside(content, state, final=True)
    assert step_of(newest(tmp_path)) == 1
    names = ["latest.pth", "log.jsonl", "model_1.pth", "model_best.pth", "optimState_1.pth"]
    assert sorted(os.listdir(tmp_path)) == names


def test_a_full_disk_at_the_end_is_an_error(tmp_path):
    with (
        pytest.raises(InputError, match="at the end .*File too large; .* still holds nothing"),
        entered(tmp_path / "a") as run,
        full_disk(),
    ):
        run.epoch(1)
        run.folder.wait()
    with entered(tmp_path / "b") as run:
        run.epoch(1)
        run.folder.wait()
        with (
            full_disk(),
            pytest.raises(InputError, match="interrupted .*still holds epoch 1"),
        ):
            run.inside(2, stop=True)
    assert step_of(newest(tmp_path / "b")) == 1


def test_the_training_goes_on_while_it_is_saved(tmp_path, monkeypatch):
    """What is written is the state as it was; a second save waits for the first."""
    may, written, save = threading.Event(), [], atomic.save

    def waiting(path, value):
        may.wait(20)
        written.append(os.path.basename(path))
        save(path, value)

    monkeypatch.setattr(atomic, "save", waiting)
    with entered(tmp_path) as run:
        run.epoch(1)
        run.trainer.at(77)
        assert not written
        threading.Timer(0.3, may.set).start()
        run.epoch(2)
        assert written[:3] == ["model_1.pth", "optimState_1.pth", "latest.pth"]
        run.trainer.at(78)
    assert step_of(newest(tmp_path)) == 2
    os.remove(tmp_path / "model_2.pth")
    assert step_of(newest(tmp_path)) == 1


def test_keep(tmp_path):
    with entered(tmp_path, "-keep", "1") as run:
        for n in (1, 2, 3):
            run.epoch(n, best=n == 1)
    kept = ["model_3.pth", "model_best.pth", "optimState_3.pth"]
    assert sorted(os.listdir(tmp_path)) == ["latest.pth", "log.jsonl", *kept]
    assert step_of(newest(tmp_path)) == 3


def test_keep_spares_what_is_newest_while_the_disk_is_full(tmp_path):
    with pytest.raises(InputError, match="at the end"), entered(tmp_path, "-keep", "1") as run:
        run.epoch(1)
        run.folder.wait()
        with full_disk():
            for n in (2, 3, 4):
                run.epoch(n)
                run.folder.wait()
    assert step_of(newest(tmp_path)) == 1


@contextlib.contextmanager
def disk(folder, size):
    """A disk of `size` bytes, whose kernel notices when a file is flushed."""

    def check(file):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        if sum(map(os.path.getsize, paths)) > size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fsync, os.fsync = os.fsync, check
    try:
        yield
    finally:
        os.fsync = fsync


def used(folder):
    return sum(os.path.getsize(path) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keep_makes_room_on_a_full_disk(tmp_path, keep, capsys):
    """What it would remove after the save goes before."""
    with entered(tmp_path) as run:
        for n in range(1, 6):
            run.epoch(n, best=n == 2)
    words = ["-keep", str(keep), "-resume", str(tmp_path)]
    with (
        disk(tmp_path, used(tmp_path) + 1000),
        entered(tmp_path, *words, checkpoint=newest(tmp_path)) as run,
    ):
        for n in range(6, 10):
            for save, step in ((run.inside, n - 0.5), (run.epoch, n)):
                save(n)
                run.folder.wait()
                assert step_of(newest(tmp_path)) == step
    assert "could not be saved" not in capsys.readouterr().err
    models = {f"model_{n}.pth" for n in range(10 - keep, 10)}
    assert {path.name for path in tmp_path.glob("model_*.pth")} == {*models, "model_best.pth"}
    assert (atomic.load(tmp_path / "model_best.pth")["model"]["weight"] == 2).all()


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_the_last_whole_checkpoint_and_the_best_stay_on_a_full_disk(tmp_path, keep):
    """However long no save fits."""
    with entered(tmp_path) as run:
        for n in range(1, 4):
            run.epoch(n, best=n == 2)
    own = [path for path in tmp_path.iterdir() if not re.search("_[12].pth", path.name)]
    words = ["-keep", str(keep), "-resume", str(tmp_path)]
    with (
        pytest.raises(InputError, match="No space left on device; .* still holds epoch 3"),
        disk(tmp_path, sum(map(os.path.getsize, own)) + 1000),
        entered(tmp_path, *words, checkpoint=newest(tmp_path)) as run,
    ):
        for n in range(4, 8):
            run.epoch(n, best=n == 5)
            run.folder.wait()
            assert step_of(newest(tmp_path)) == 3
            assert (atomic.load(tmp_path / "model_best.pth")["model"]["weight"] == 2).all()
    assert (tmp_path / "model_1.pth").exists() == (keep == 0)
    with entered(tmp_path, *words, checkpoint=newest(tmp_path)) as run:
        run.epoch(4)
    assert step_of(newest(tmp_path)) == 4


def test_two_runs_on_one_folder(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException), entered(tmp_path):
            os.write(writing, b".")
            time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    with (
        pytest.raises(InputError, match=f"another run writes to .*: process {child} on .*-save"),
        entered(tmp_path),
    ):
        pass
    os.kill(child, signal.SIGKILL)
    with entered(tmp_path):  # the lock has died with it
        os.waitpid(child, 0)
    assert os.listdir(tmp_path) == ["log.jsonl"]


def test_an_empty_folder_is_not_left_behind(tmp_path):
    with contextlib.suppress(ZeroDivisionError), RunFolder(str(tmp_path / "new")):
        raise ZeroDivisionError
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("harm", ["changed", "older", "missing"])
@pytest.mark.parametrize("keep, detects", [(0, False), (0, True), (1, False)])
def test_the_best_model_is_the_checkpoints(tmp_path, capsys, harm, keep, detects):
    """Its file is verified on a resume; if it is not that, it is made again, or named."""
    path = tmp_path / "model_best.pth"
    with entered(tmp_path, "-keep", str(keep)) as run:
        run.epoch(1, best=True)
        run.folder.wait()
        older = path.read_bytes()
        run.epoch(2, best=True)
        run.folder.wait()
        whole = path.read_bytes()
        run.epoch(3)
    checkpoint = newest(tmp_path)
    for line in checkpoint["log"][1:]:
        error = 9.0 - min(line["epoch"], 2)
        line["best"] = {"AP": 100 - error} if detects else (error, 1.0)  # as either program's log
    checkpoint["best"] = (7.0, 1.0)  # of epoch 2
    if harm == "missing":
        path.unlink()
    else:
        content = older if harm == "older" else whole[:300] + b"!" + whole[301:]
        path.write_bytes(content)
    with entered(tmp_path, "-resume", str(tmp_path), checkpoint=checkpoint):
        pass
    said = capsys.readouterr().err.splitlines()[-1]
    source = tmp_path / "model_2.pth"
    if keep:
        assert said.startswith("=> ") and str(path) in said
        assert harm != "older" or (tmp_path / "earlier-1" / path.name).read_bytes() == older
        assert said.endswith(f", and {source} cannot replace it")
    else:
        assert said.endswith(f"; the file is made again from {source}") and str(path) in said
        assert (atomic.load(path)["model"]["weight"] == 2).all()


def test_a_copy_whose_latest_is_older_than_all_else(tmp_path):
    """As when a folder was copied while a run wrote and removed older epochs (-keep)."""
    with entered(tmp_path, "-keep", "1") as run:
        run.epoch(1)
        run.folder.wait()
        pointer = (tmp_path / "latest.pth").read_bytes()
        run.epoch(2)
    (tmp_path / "latest.pth").write_bytes(pointer)
    lines = []
    assert step_of(newest(tmp_path, lines)) == 2
    assert "optimState_1.pth: going on from" in lines[-1]


@pytest.mark.parametrize("place, value, word", [(38, 16, "folder"), (24, 1, "compressed")])
def test_what_only_pytorchs_zip_reader_sees(tmp_path, place, value, word):
    """One bit of a zip entry makes it a folder: torch.load then leaves its tensor uninitialised."""
    path = tmp_path / "a.pth"
    atomic.save(path, {"a": torch.arange(9.0)})
    content = path.read_bytes()
    record = content.index(b"archive/data/0", content.index(b"PK\x01\x02")) - 46
    changed = bytearray(content)
    changed[record + place] ^= value
    path.write_bytes(changed)
    with pytest.raises(atomic.Damaged, match=word):
        atomic.load(path)


def test_what_prevents_the_beginning_is_named(tmp_path):
    """The folder only where it is the fault, else the file in it."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=f"unable to create checkpoint directory {path}: "):
            RunFolder(str(path)).__enter__()
    folder = tmp_path / "run"
    (folder / "lock").mkdir(parents=True)
    with pytest.raises(
        InputError, match=f"cannot save to {folder}: Is a directory: {folder}/lock$"
    ):
        RunFolder(str(folder)).__enter__()
