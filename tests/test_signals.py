"""A run that is stopped and resumed is the straight run, to the last bit, wherever it stopped."""

import contextlib
import errno
import functools
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import types

import pytest
import torch
from support.runs import NET, errors, finish, nobody_left, results, same, start

import dataloader
import main
import opts
import train
from datasets import workers
from engine import batchnorm, metrics
from models import fold
from parallel import guard, signals
from runtime import command, process
from runtime.errors import InputError
from storage import atomic

STATUSES = {"INT": 130, "TERM": 143, "HUP": 129, "USR1": 138, "USR2": 140, "XCPU": 152}
SIGNALS = [getattr(signal, f"SIG{name}") for name in STATUSES]
RUN = NET + " -LRSteps 2 -manualSeed 3 -nGPU 3 -nEpochs 2"


CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def handlers():
    """Of signals, as they were; a run whose process ends with it leaves them ignored."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, cifar):
    """run(command, when): main, to which `when(n)` may do something in the n-th iteration."""
    monkeypatch.chdir(tmp_path)
    push = metrics.MetricQueue.push

    def run(command, when=lambda n: None):
        count = 0

        def counting(*args):
            nonlocal count
            count += 1
            when(count)
            return push(*args)

        monkeypatch.setattr(metrics.MetricQueue, "push", counting)
        main.main([*command.split(), "-data", cifar])
        captured = capsys.readouterr()
        return (captured.err + captured.out).splitlines()

    return run


def stop_at(place, signum=signal.SIGTERM):
    return lambda n: os.kill(os.getpid(), signum) if n == place else None


def test_stopped_at_every_iteration(run):
    """A chain of 16 stops: five batches and three test batches, twice."""
    run(RUN + " -save straight")
    for n in range(16):
        signum = SIGNALS[n % len(SIGNALS)]
        with pytest.raises(signals.Interrupted) as stop:
            run(RUN + " -save chain -resume chain", stop_at(1, signum))
        assert stop.value.status == list(STATUSES.values())[n % len(SIGNALS)]
        where = "in the test of epoch" if n % 8 > 4 else "in epoch"
        assert f"interrupted by {signal.Signals(signum).name} {where} {n // 8 + 1}" in str(
            stop.value
        )
        assert str(stop.value).endswith("; to go on: python main.py -resume chain")
    run(RUN + " -save chain -resume chain")
    same(results("straight", 2), results("chain", 2))
    straight, chain = (atomic.load(f"{name}/model_best.pth") for name in ("straight", "chain"))
    assert all((straight["model"][name] == chain["model"][name]).all() for name in chain["model"])
    assert sorted(os.listdir("straight")) == sorted(os.listdir("chain"))


class Killed(Exception):
    pass


@pytest.mark.parametrize("place", [3, 7, 10])
def test_saved_now_and_then(run, place):
    """-saveEvery, here after each iteration: a kill loses only the iteration it falls into."""

    def kill(n):
        if n == place:
            raise Killed

    run(RUN + " -save straight")
    with pytest.raises(Killed):
        run(RUN + " -save killed -saveEvery 1e-9", kill)
    latest = atomic.load("killed/latest.pth")
    assert latest["modelFile"] == latest["optimFile"] == "inside_epoch.pth"
    lines = run("-dataset cifar10 -resume killed -save killed")
    same(results("straight", 2), results("killed", 2))
    assert sum(line.startswith(" | ") for line in lines) >= 16 - place
    assert not os.path.exists("killed/inside_epoch.pth")


def test_an_error_of_the_loader_loses_no_iteration(run, monkeypatch, capsys):
    """A chain of runs whose loaders fail, and the run that ends it, are the straight run."""
    run(RUN + " -save straight")
    load, done = dataloader.DataLoader._from_memory, 0
    for place, where in (
        (3, "in epoch 1 after iteration 2 of 5"),
        (4, "in the test of epoch 1"),  # before its first batch
        (2, "in the test of epoch 1 after batch 1 of 3"),
        (3, None),  # before the first iteration of epoch 2: its checkpoint is that of epoch 1
        (8, "in the test of epoch 2 after batch 2 of 3"),
    ):
        count = 0

        def failing(loader, *arguments, place=place):
            nonlocal count
            for batch in load(loader, *arguments):
                count += 1
                if count == place:
                    raise InputError("cannot read the image")
                yield batch

        monkeypatch.setattr(dataloader.DataLoader, "_from_memory", failing)
        with pytest.raises(InputError, match="cannot read the image"):
            run(RUN + " -save chain -resume chain")
        done += place - 1
        said = capsys.readouterr().err
        if where:
            line = f"=> an error {where}: saved what was done; to go on: "
            assert line + "python main.py -resume chain" in said
        else:
            assert "=> an error" not in said
        file = atomic.load("chain/latest.pth")["modelFile"]
        assert file == ("inside_epoch.pth" if where else "model_1.pth")
        sums = atomic.load("chain/" + file.replace("model_", "optimState_"))["position"]
        assert sums["train"]["done"] + sums["test"]["done"] + 8 * (sums["epoch"] - 1) == done
    monkeypatch.setattr(dataloader.DataLoader, "_from_memory", load)
    run(RUN + " -save chain -resume chain")
    same(results("straight", 2), results("chain", 2))


def failing_net(error, model, mixed):
    """The net of a test; it raises the error at its second batch."""
    batches, net = iter(range(9)), fold.folded(model, mixed)

    def forward(x):
        if next(batches) == 1:
            raise error
        return net(x)

    return forward


def adding(estimate, input, sizes):
    if estimate.count:
        raise MemoryError
    estimate.count += 1


def test_an_error_in_the_test_does_not_lose_the_training(run, monkeypatch, capsys):
    """Whatever the error: it is raised as it is, and the run that goes on is the straight one."""
    command = RUN + " -recomputeBN 2 -resume chain -save "
    run(command + "straight")
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
    full = OSError(errno.ENOSPC, "No space left", "/dev/shm/1")
    for error in (MemoryError(), full, cuda):
        with monkeypatch.context() as patch:
            if isinstance(error, MemoryError):
                patch.setattr(batchnorm.Estimate, "add", adding)
            else:
                patch.setattr(train, "folded", functools.partial(failing_net, error))
            # InputError: out of memory in a sentence
            with pytest.raises((InputError, type(error))):
                run(command + "chain")
        assert "=> an error in the test of epoch" in capsys.readouterr().err
    run(command + "chain")
    same(results("straight", 2), results("chain", 2))


def test_an_error_in_an_iteration_saves_nothing(run, monkeypatch, capsys):
    """The batch norms may have seen its images: the state would be of no iteration."""
    count, forward = iter(range(9)), torch.nn.CrossEntropyLoss.forward

    def failing(*arguments):
        if next(count) == 2:
            raise OSError("in the third iteration")
        return forward(*arguments)

    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", failing)
    with pytest.raises(OSError, match="in the third iteration"):
        run(RUN)
    assert "saved" not in capsys.readouterr().err
    assert os.listdir("checkpoints") == ["log.jsonl"]


def test_the_end_of_an_epoch_is_not_saved_twice(run):
    lines = run(RUN + " -saveEvery 1000")
    assert lines[-1].startswith(" * Finished")
    assert atomic.load("checkpoints/latest.pth")["modelFile"] == "model_2.pth"


def test_other_batches_inside_an_epoch_begin_it_again(run, capsys):
    with pytest.raises(signals.Interrupted):
        run(RUN, stop_at(10))  # in the second epoch
    capsys.readouterr()
    lines = run(RUN + " -resume checkpoints -batchSize 10")
    begins = "=> epoch 2 begins again, because -batchSize changed"
    assert begins in lines
    assert sum(line.startswith(" | Epoch: [2]") for line in lines) == 4
    assert [line["epoch"] for line in results("checkpoints", 2)[2]] == [1, 2]


def test_a_test_alone_does_not_go_on_inside_an_epoch(run, capsys):
    with pytest.raises(signals.Interrupted):
        run(RUN, stop_at(10))  # in the second epoch
    capsys.readouterr()
    lines = run(RUN + " -resume checkpoints -batchSize 10 -testOnly true")
    assert not any("begins again" in line for line in lines)
    assert lines[-1].startswith(" * Results")


def test_the_state_of_a_stopped_run_can_start_another(run, capsys):
    with pytest.raises(signals.Interrupted):
        run(RUN, stop_at(2))
    capsys.readouterr()
    command = NET + " -nEpochs 1 -save other -optimState checkpoints/inside_epoch.pth"
    lines = run(command + " -retrain checkpoints/inside_epoch.pth")
    assert sum(line.startswith(" | Epoch: [1]") for line in lines) == 5  # from the first batch


def stop_and_resume(command, photos, folder, delay, signum=signal.SIGTERM):
    """Start a run with workers, signal its group after the delay; returns whether it ended."""
    process = start(command + " -resume run", photos, folder)
    for line in process.stdout:
        if line.startswith(("=> Training", " | Test")):
            break
    time.sleep(delay)
    os.killpg(process.pid, signum)
    error = errors(process.communicate(timeout=60)[1])
    assert nobody_left(process.pid)
    if process.returncode == 0:
        return True
    assert process.returncode == 128 + signum, error
    assert error.startswith("main.py: interrupted by") and error.count("\n") == 1
    return False


PHOTOS = "-netType resnet -depth 18 -batchSize 4 -trainCrop 64 -LR 0.001 -nGPU 2 -nThreads 2"


@pytest.mark.slow
def test_the_scheduler_signals_the_whole_group(photos, tmp_path, monkeypatch):
    """The workers get the signal, too: nothing of theirs is lost, and they are gone at the end."""
    monkeypatch.chdir(tmp_path)
    command = PHOTOS + " -nEpochs 1 -save "
    main.main([*(command + "straight").split(), "-data", photos])
    assert not stop_and_resume(command + "run", photos, tmp_path, 0.0)
    finish(start(command + "run -resume run -nThreads 0", photos, tmp_path))  # whatever nThreads
    same(results(tmp_path / "straight", 1), results(tmp_path / "run", 1))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_signals_at_random_moments(photos, tmp_path, processes):
    """Some twenty stops of one run with workers, in training and testing."""
    random.seed(processes)
    command = f"{PHOTOS} -nProcs {processes} -nEpochs 20 -save "
    finish(start(command + "straight", photos, tmp_path), timeout=600)
    stops = 0
    while not stop_and_resume(
        command + "run", photos, tmp_path, random.random() * 1.5, random.choice(SIGNALS)
    ):
        stops += 1
    assert stops >= 10
    print(f"{stops} stops")
    same(results(tmp_path / "straight", 20), results(tmp_path / "run", 20))


@pytest.mark.parametrize("ignored", SIGNALS)
def test_what_is_ignored_at_the_start_stays_ignored(ignored):
    """SIGHUP under nohup. A script's shell ignores SIGINT for what it starts with &."""
    signal.signal(ignored, signal.SIG_IGN)
    with signals.Interrupts() as interrupts:
        for signum in SIGNALS:
            os.kill(os.getpid(), signum)
    assert signal.getsignal(ignored) == signal.SIG_IGN
    lost = signals.SIGNALS.index(ignored) if ignored != signal.SIGINT else None
    assert interrupts.received == [index != lost for index in range(len(SIGNALS))]


@pytest.mark.parametrize(
    "times, counted",
    [
        ([0], 1),
        ([0, 0], 1),  # GNU timeout: to the process, and to its group
        ([0, 0.4], 1),
        ([0, 0.3, 0.45, 0.6], 2),  # copies of the first one only
        ([0, 0.6], 2),
        ([0, 5, 5], 3),
    ],
)
def test_two_sigint_at_once_are_one(monkeypatch, times, counted):
    seconds = iter(times)
    monkeypatch.setattr(signals.time, "monotonic", lambda: 1000 + next(seconds))
    is_copy = signals.Copies()
    assert [is_copy(signal.SIGINT) for _ in times].count(False) == counted
    assert not any(is_copy(signum) for signum in SIGNALS if signum != signal.SIGINT)


@pytest.mark.parametrize("end", [None, lambda error: None])
def test_the_two_sigint_of_timeout_save(end):
    """Neither a KeyboardInterrupt nor an end at once, of a program that goes on or ends."""
    saved = []
    with signals.Interrupts(end=end) as interrupts:
        interrupts.save = lambda final: saved.append(final)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # the watchdog sees both
        with pytest.raises(signals.Interrupted) as stop:
            interrupts.poll(interrupts.received, "here")
    assert saved == [True] and stop.value.status == 130


def test_a_second_interrupt_ends_at_once(cifar, tmp_path):
    """A second Ctrl-C ends at once, whatever is saved stays whole."""
    process = start(NET + " -nEpochs 10000", cifar, tmp_path)
    for line in process.stdout:
        if line.startswith(" | Epoch: [3]"):  # so the save of epoch 1 is whole
            break
    os.kill(process.pid, signal.SIGINT)
    time.sleep(signals.COPY)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGINT)
    _, error = finish(process, 130)
    assert error.count("\n") == 1 and ("interrupted" in error or "interrupted by SIGINT" in error)
    assert atomic.load(tmp_path / "checkpoints" / "latest.pth")["epoch"] >= 1


@pytest.mark.parametrize("place", [0, 4, 5, 12])
def test_a_signal_ends_the_wait_for_a_batch_that_never_comes(run, monkeypatch, cifar, place):
    """What was done before is saved: the run that goes on is the straight one."""
    run(RUN + " -save straight")
    load, count = dataloader.DataLoader._from_memory, 0
    ends, ended = [], threading.Event()

    def end(error):  # of the process, which goes on here
        ends.append(error)
        ended.set()

    def stalling(loader, *arguments):
        nonlocal count
        for batch in load(loader, *arguments):
            if count == place:
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
                assert ended.wait(50)
                raise Killed
            count += 1
            yield batch

    monkeypatch.setattr(dataloader.DataLoader, "_from_memory", stalling)
    monkeypatch.setattr(main.guard, "end", end)
    monkeypatch.setattr("sys.argv", ["main.py", *RUN.split(), "-save", "stalled", "-data", cifar])
    with pytest.raises(Killed):
        main.main()
    [stop] = ends
    assert isinstance(stop, signals.Interrupted) and stop.status == 143
    monkeypatch.setattr(dataloader.DataLoader, "_from_memory", load)
    run(RUN + " -save stalled -resume stalled")
    same(results("straight", 2), results("stalled", 2))


def test_an_idle_worker_does_not_answer(photos):
    """At the start of a pass torch waits for an answer of every worker; a signal ends that, too."""
    command = "-dataset imagenet -netType resnet -depth 18 -batchSize 6 -trainCrop 64 -nThreads 1"
    loader, _ = dataloader.create(opts.parse([*command.split(), "-data", photos]), CPU)
    assert len(list(loader.run(1))) == 2
    [worker] = loader.processes
    for signum in (signal.SIGTERM, signal.SIGINT):
        events = []

        def end(error, events=events):
            events.append(error.status)
            os.kill(worker.pid, signal.SIGCONT)  # this process goes on

        def save(final, events=events):
            events.append(final)

        with signals.Interrupts(end=end) as interrupts:
            interrupts.save = save
            os.kill(worker.pid, signal.SIGSTOP)
            threading.Timer(0.1, os.kill, (os.getpid(), signum)).start()
            batches = loader.run(2)
            assert interrupts.next(batches, "here") is not None
        assert events == [True, 128 + signum]
        assert len(list(batches)) == 1

    # in a program whose main thread alone takes signals, such as evaluate.py
    events = []

    def go_on(*arguments):
        events.append("in time" if arguments else "too late")
        os.kill(worker.pid, signal.SIGCONT)

    signal.signal(signal.SIGTERM, go_on)
    os.kill(worker.pid, signal.SIGSTOP)
    main_thread = threading.main_thread().ident
    threading.Timer(0.1, signal.pthread_kill, (main_thread, signal.SIGTERM)).start()
    late = threading.Timer(3, go_on)
    late.start()
    assert len(list(loader.run(3))) == 2
    late.cancel()
    assert events == ["in time"]


def starts_late(parent, write):
    while os.getppid() == parent:
        time.sleep(0.01)
    workers.init_worker(0)
    os.write(write, b"lives")


def test_a_worker_that_starts_after_its_parent_has_ended():
    """It had no processor time before. It ends, and holds no pipe open."""
    read, write = os.pipe()
    parent = os.fork()
    if not parent:
        words = os.getpid(), write
        multiprocessing.get_context("fork").Process(target=starts_late, args=words).start()
        os._exit(0)
    os.close(write)
    os.waitpid(parent, 0)
    assert os.read(read, 9) == b""
    os.close(read)


@pytest.mark.parametrize("name", [n for n in STATUSES if n != "INT"])
@pytest.mark.parametrize("begin", [guard.guard, command.run])
def test_process_1_ends_on_a_signal(name, begin, monkeypatch, capfd):
    """In a container: the kernel drops what has no handler. A test alone has no other one."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(sys, "argv", ["pretrained/classify.py"])
    child = os.fork()
    if not child:
        signum = getattr(signal, f"SIG{name}")
        signal.signal(signum, signal.SIG_DFL)
        begin(lambda: signal.raise_signal(signum) or time.sleep(9))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == STATUSES[name]
    assert capfd.readouterr().err == f"classify.py: interrupted by SIG{name}\n"


def test_what_process_1_ignores_stays_ignored(monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process.begin()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.fixture
def notebook(monkeypatch):
    """%run main.py -depth 8 in IPython; the end of the process is an error."""
    shell = types.SimpleNamespace(get_ipython=object)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setattr(sys, "argv", ["main.py", "-depth", "8"])
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("the kernel was ended"))
    return shell


@pytest.mark.parametrize(
    "error, said",
    [
        (None, ""),
        (InputError("no such net"), "main.py: no such net\n"),
        (
            signals.Interrupted(signal.SIGINT, "in epoch 1", "main.py -resume x"),
            "main.py: interrupted by SIGINT in epoch 1; to go on: main.py -resume x\n",
        ),
    ],
    ids=str,
)
def test_a_notebook_goes_on_after_run(notebook, capsys, error, said):
    words = []

    def program(argv=None):
        words.append(argv)  # given, as by a caller in Python, for whom the process goes on
        if error:
            raise error

    guard.guard(program)
    assert words == [["-depth", "8"]] and capsys.readouterr().err == said


def test_a_bug_has_its_traceback_in_a_notebook(notebook):
    with pytest.raises(ZeroDivisionError):
        guard.guard(lambda argv: 1 / 0)


def test_ipython_that_is_only_imported_is_no_notebook(notebook):
    notebook.get_ipython = lambda: None
    assert not process.in_notebook()


def test_a_run_in_a_thread_says_that_signals_do_not_save_it(run):
    """Python handles signals in the main thread only."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    lines = []
    command = RUN.replace("-nEpochs 2", "-nEpochs 1") + " -save run"
    thread = threading.Thread(target=lambda: lines.extend(run(command)))
    thread.start()
    thread.join()
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == before
    note = "=> not in the main thread, so no signal saves this run; -saveEvery does"
    assert lines.count(note) == 1
    assert any(line.startswith(" * Finished top1") for line in lines)
