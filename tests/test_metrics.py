"""Numbers that come an iteration or two late, as on a GPU: the same lines, results and stops."""

import dataclasses
import multiprocessing
import os
import re
import signal
import socket

import pytest
import torch
from support.runs import NET, results, same

import dataloader
import main
import opts
import train
from detection.trainer import DetectionMetrics
from engine import loop, metrics
from engine.metrics import MetricQueue, Metrics
from evaluation import ensemble, scores
from models.resnet import resnet
from parallel import group
from parallel.group import split
from parallel.signals import Interrupted, Interrupts
from runtime.errors import InputError
from storage import atomic, schema

RUN = NET + " -manualSeed 3 -nGPU 3 -nEpochs 2"
CPU = torch.device("cpu")


def late(lag):
    """What makes the metrics of a trainer, `lag` iterations late."""

    def make(*arguments):
        made = MetricQueue(*arguments)
        made.lag = lag
        return made

    return make


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, cifar):
    """run(command, lag): the lines of main's results without their times."""
    monkeypatch.chdir(tmp_path)

    def run(command, lag):
        monkeypatch.setattr(loop, "MetricQueue", late(lag))
        main.main([*command.split(), "-data", cifar])
        lines = capsys.readouterr().out.splitlines()
        lines = [re.sub(r"(Time|Data) +[\d.]+", r"\1", line) for line in lines]
        return [line for line in lines if line.startswith((" | Epoch", " | Test", " *"))]

    return run


@pytest.mark.parametrize("lag", [1, 9])
def test_lines_and_results_do_not_depend_on_the_lag(run, lag):
    expected = run(RUN + " -save prompt", 0)
    assert len(expected) >= 16 + 2 + 1
    assert run(RUN + " -save late", lag) == expected
    same(results("prompt", 2), results("late", 2))


def test_what_is_saved_has_all_its_lines(run, monkeypatch, capsys):
    """Signals in every iteration, whose metrics are pending: the chain is the straight run."""
    run(RUN + " -save straight", 0)
    signals = [signal.SIGTERM]
    count_errors = train.scores.count_errors

    def signalled(inner):
        def outer(*args):
            for signum in signals:
                os.kill(os.getpid(), signum)
            return inner(*args)

        return outer

    monkeypatch.setattr(train.scores, "count_errors", signalled(count_errors))
    stops = []
    for _ in range(16):
        with pytest.raises(Interrupted) as stop:
            run(RUN + " -save chain -resume chain", 1)
        stops.append(re.search(r"(test of )?epoch (\d) after \w+ (\d)", str(stop.value)).groups())
        last = [line for line in capsys.readouterr().out.splitlines() if "Time" in line][-1]
        assert re.search(r"\[(\d)\]\[(\d)/", last).groups() == stops[-1][1:]
        position = atomic.load("chain/inside_epoch.pth")["position"]
        assert position["test" if stops[-1][0] else "train"]["done"] == int(stops[-1][2])
    expected = [(None, n) for n in "12345"] + [("test of ", n) for n in "123"]
    assert stops == [(part, epoch, n) for epoch in "12" for part, n in expected]
    signals.clear()
    run(RUN + " -save chain -resume chain", 1)
    same(results("straight", 2), results("chain", 2))


def trainer(lag, monkeypatch, interrupts=None):
    opt = opts.parse("-netType resnet -dataset cifar10 -depth 8 -batchSize 4 -LR 0.01".split())
    torch.manual_seed(1)
    monkeypatch.setattr(loop, "MetricQueue", late(lag))
    net = resnet(8, 10, "cifar", "A")
    return train.setup(opt, net, CPU, interrupts=interrupts)


class Batches:
    """Six batches of four random images; those of `poisoned` hold what is no number."""

    crops = 1

    def __init__(self, *poisoned):
        self.poisoned = poisoned

    def size(self):
        return 6

    def run(self, epoch, start):
        generator = torch.Generator().manual_seed(epoch)
        for n in range(1, 7):
            images = torch.randn(4, 3, 32, 32, generator=generator)
            shares = split(4, group.world_size())
            mine = shares[group.rank()]
            images[0, 0, 0, 0] += torch.nan if n in self.poisoned else 0
            if n > start:
                slices = [[share.stop - share.start] for share in shares]
                yield dataloader.Batch(images[mine], torch.arange(4)[mine], slices)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_nothing_poisoned_is_saved(lag, capsys, monkeypatch):
    """With a save after each iteration: the loss is told, and ends the run, before its state."""
    saved = []

    def save(final):
        assert all(parameter.isfinite().all() for parameter in ours.model.parameters())
        saved.append(ours.position.train.done)

    interrupts = Interrupts(minutes=1e-9)
    interrupts.save = save
    ours = trainer(lag, monkeypatch, interrupts)
    with pytest.raises(InputError, match="the loss is nan at epoch 1, iteration 4 of 6"):
        ours.train(1, Batches(4, 5))
    assert saved == {0: [1, 2, 3], 1: [2, 3], 2: [3]}[lag]
    assert capsys.readouterr().out.count(" | Epoch") == 3


def stopped_in_a_group(rank, port, answers):
    """The second of two processes gets a signal in iteration 2; only the first saves, each time."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    group.join()
    saved = []

    def save(final):
        saved.append((ours.position.train.done, final))

    interrupts = Interrupts(minutes=0 if rank else 1e-9, folder="F", command="C")
    interrupts.save = save
    ours = trainer(1, pytest.MonkeyPatch(), interrupts)
    step = ours._step

    def signalled(batch):
        interrupts.received[1] += rank == 1 and len(seen) == 1
        seen.append(batch)
        return step(batch)

    ours._step, seen = signalled, []
    try:
        ours.train(1, Batches())
    except Interrupted as stop:
        answers.put((rank, str(stop), saved))


def test_processes_stop_in_the_same_iteration():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    processes = [
        spawn.Process(target=stopped_in_a_group, args=(rank, port, answers), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = sorted(answers.get(timeout=100) for _ in processes)
    for process in processes:
        process.join(100)
    where = "interrupted by SIGTERM in epoch 1 after iteration 3 of 6; to go on: C"
    # the first has told iteration 2 early, for the save, and still stops with the other
    assert found == [(0, where, [(2, False), (3, True)]), (1, where, [(3, True)])]


@pytest.mark.parametrize("lag", [0, 1])
def test_seconds_count_from_the_report_before(lag, monkeypatch):
    now, reported = [10.0], []
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    queue = late(lag)(CPU)
    queue.start(reported.append)
    for n, moment in enumerate((10.5, 12.5, 13.5), 1):
        now[0] = moment
        queue.push(metrics.Metrics(done=n, seen=1), {"loss": torch.tensor(1.0)})
        queue.poll("")
    now[0] = 17.5
    queue.poll("", lag=0)
    expected = {0: [0.5, 2.0, 1.0], 1: [2.5, 1.0, 4.0]}[lag]
    assert [m.seconds for m in reported] == expected


@dataclasses.dataclass
class More(Metrics):
    """With metrics of one's own, as a newcomer adds them; one is no count, and below 0."""

    hits: int = 0
    margin: float = 0.0


def more(output, target):
    """What More adds, before the counts of scores.count_errors and after."""
    right = output.argmax(1) == target
    errors = COUNT_ERRORS(output, target)
    return {"margin": -output.amax(1).sum(), **errors, "hits": right.sum()}


COUNT_ERRORS = scores.count_errors


def test_a_new_metric_is_summed_saved_and_resumed(monkeypatch):
    monkeypatch.setattr(train.Trainer, "METRICS", More)
    monkeypatch.setattr(scores, "count_errors", more)
    ours, theirs = trainer(0, monkeypatch), trainer(0, monkeypatch)
    ours.train(1, Batches())
    total = ours.position.train
    assert total.hits + total.wrong1 == total.seen == 24 and total.margin < 0
    assert schema._is_position({**ours.state()["position"], "epoch": 1})
    theirs.load_position(ours.state(), "-batchSize")
    assert dataclasses.asdict(theirs.position.train) == dataclasses.asdict(total)


@pytest.mark.parametrize("count_errors", [COUNT_ERRORS, more])
def test_two_averages_are_counted_by_name(count_errors, monkeypatch):
    """Each class of Metrics gets the counts of its own names, whatever else is counted."""
    monkeypatch.setattr(scores, "count_errors", count_errors)
    averages = torch.randn(2, 40, 7, generator=torch.Generator().manual_seed(1))
    target = torch.arange(40) % 7
    found = ensemble._count_errors(averages, target)
    for kind, output in zip(("wrong", "soft"), averages.tolist()):
        places = [sorted(row, reverse=True).index(row[t]) for row, t in zip(output, target)]
        for n in (1, 5):
            assert found[f"{kind}{n}"] == sum(place >= n for place in places)


SUMS = {"done": 1, "seen": 8, "wrong1": 3, "wrong5": 1, "loss": 1.0}


@pytest.mark.parametrize("kind", [Metrics, DetectionMetrics, More])
def test_metrics_are_restored_by_name(kind):
    assert kind.restored(SUMS, "FILE") == kind(**SUMS)  # also those that a new field is not in
    reversed_names = dict(reversed(dataclasses.asdict(kind(**SUMS)).items()))
    assert kind.restored(reversed_names, "FILE") == kind(**SUMS)
    for changed, words in (
        ({"sharpness": 1.0}, "its position has sharpness 1.0"),
        ({"seen": 8.5}, "its position has seen 8.5"),
        ({"wrong5": -1}, "its position has wrong5 -1"),
        ({"wrong5": 4}, "its position has wrong1 3, wrong5 4, seen 8"),
        ({"odd": 0.5}, "its position has odd 0.5"),
    ):
        with pytest.raises(InputError, match=f"FILE is not a checkpoint of this program: {words}"):
            kind.restored({**SUMS, **changed}, "FILE")
