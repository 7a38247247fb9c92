"""Tests that test_pretended_gpu.py runs on the pretended GPU, see gpu.py."""

import copy

import gpu
import pytest
import torch
from support.detectors import classifier, detector, write_classifier, write_coco
from support.runs import NET

import dataloader
import detect
import evaluate
import main
import opts
from dataloader import LAYOUT, Batch, DataLoader, settings
from datasets import cifar10
from detection import schedule
from detection.trainer import Trainer
from engine.batchnorm import Estimate
from evaluation import scores
from evaluation.predictions import Predictions
from models.preresnet import preresnet
from models.preresnext import preresnext
from models.resnet import resnet
from models.resnext import resnext
from train import setup

pytestmark = pytest.mark.cuda
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
NETS = {
    "preresnet": lambda: preresnet(8, 10, "cifar", "A"),
    "resnext_A": lambda: resnext(11, 2, 4, 10, "cifar", "B", "resnext_A"),
    "preresnext": lambda: preresnext(11, 2, 4, 10, "cifar", "C"),
}
LOOP = "-netType resnet -dataset cifar10 -depth 8 -LR 0.01 "


@pytest.fixture
def waits():
    """waits(place): how often the host has waited for the GPU there; all of it, without a place."""
    gpu.WAITS.clear()

    def count(place=""):
        return sum(n for (_, where), n in gpu.WAITS.items() if place in where)

    return count


def images():
    """CIFAR's form: 32 training and 8 test images of random bytes."""
    generator = torch.Generator().manual_seed(1)
    info = {"mean": (125.0, 123.0, 114.0), "std": (63.0, 62.0, 67.0)}
    for split, count in (("train", 32), ("val", 8)):
        bytes_ = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        info[f"{split}_images"] = bytes_.numpy()
        info[f"{split}_labels"] = (torch.arange(count) % 10).numpy()
    return info


def run(precision, device, replicas=2, more=""):
    """A trainer and the loaders of both splits; two images a replica."""
    words = f"-precision {precision} -nGPU {replicas} -batchSize {2 * replicas} {more}"
    opt = opts.parse((LOOP + words).split())
    torch.manual_seed(1)
    dtype = torch.float64 if opt.precision == "double" else torch.float32
    model = resnet(8, 10, "cifar", "A").to(device, dtype, memory_format=LAYOUT)
    both = {"batch_size": opt.batchSize, **settings(opt, device)}
    loaders = [
        DataLoader(cifar10.create(images(), opt, split), device, training=split == "train", **both)
        for split in ("train", "val")
    ]
    return setup(opt, model, device), *loaders


@pytest.mark.parametrize("precision", ["single", "half", "bfloat16"])
def test_the_loop_waits_once_an_iteration(precision, waits):
    trainer, train, val = run(precision, GPU)
    trainer.train(1, train)
    trainer.test(1, val)
    gpu.WAITS.clear()
    trainer.train(2, train)
    assert waits() == waits("_report") == train.size() == 8
    trainer.test(2, val)
    assert waits() - 8 == waits("_report") - 8 == val.size() == 2


def recorded():
    event = torch.cuda.Event()
    event.record()
    return event


LARGE = torch.zeros(2**15)
WAITING = [  # each waits once
    lambda x: x[0, 0].item(),
    lambda x: bool(x[0, 0] > 1e9),
    lambda x: x.tolist(),
    lambda x: x.cpu(),
    lambda x: x.to("cpu", non_blocking=True),
    lambda x: torch.tensor([1.0], device=x.device),
    lambda x: LARGE.to(x.device, non_blocking=True),
    lambda x: x.nonzero(),
    lambda x: x[x > 0],
    lambda x: x.clone().__setitem__(x > 0, x[0, :1]),
    lambda x: x.unique(),
    lambda x: x[0].repeat_interleave(torch.ones_like(x[0], dtype=torch.int64)),
    lambda x: torch.equal(x, x),
    lambda x: torch.cuda.synchronize(),
    lambda x: torch.cuda.current_stream().synchronize(),
    lambda x: recorded().synchronize(),
]


@pytest.mark.parametrize("backward", [False, True])
def test_a_second_wait_is_found(backward, waits):
    """Of every kind, in a step or in its backward pass, which runs in a thread of autograd."""
    trainer, train, _ = run("single", GPU)
    criterion, kinds, found = trainer.criterion, iter(WAITING), []

    def wait(x):
        before = waits()
        next(kinds)(x)
        found.append(waits() - before)

    def curious(output, target):
        output.register_hook(wait) if backward else wait(output.detach())
        return criterion(output, target)

    trainer.train(1, train)
    trainer.criterion = curious
    gpu.WAITS.clear()
    for epoch in (2, 3):
        trainer.train(epoch, train)
    assert found == [1] * len(WAITING) and waits() == 2 * len(WAITING)


def test_a_wait_of_autograds_own_is_found(waits):
    """The gradient of what a mask selects is put by the mask, which waits in no line of ours."""
    x = torch.ones(4, device=GPU, requires_grad=True)
    x[x > 0].sum().backward()
    assert waits() == 2


@pytest.mark.parametrize(
    "words", ["single", "half", "bfloat16 -accumulate true", "double -LRSteps 2"]
)
def test_a_cuda_graph(words, waits):
    """The bits of plain steps: one of two full batches is replayed, the last batch is smaller."""
    found, operations = [], []
    for more in ("", "-cudaGraph true"):
        trainer, train, _ = run(words, GPU, 5, more)
        losses = [trainer.train(1, train).mean_loss]
        gpu.OPERATIONS.clear()
        gpu.WAITS.clear()
        losses.append(trainer.train(2, train).mean_loss)
        assert waits() == waits("_report") == train.size() == 4
        operations.append(gpu.OPERATIONS.total())
        tensors = [*trainer.model.state_dict().values(), *trainer.state()["momentum"].values()]
        found.append((losses, trainer.scaler.state_dict(), tensors))
    assert found[0][:2] == found[1][:2]
    assert all(map(torch.equal, found[0][2], found[1][2]))
    assert 0.7 < operations[1] / operations[0] < 0.85  # three of four steps start their kernels


@pytest.mark.parametrize("replicas", [2, 4])  # from 4 on, a GPU normalises slices together
def test_what_the_cpu_trains_and_tests(replicas):
    numbers = []
    for device in (GPU, CPU):
        trainer, train, val = run("double", device, replicas)
        done, tested = trainer.train(1, train), trainer.test(1, val)
        numbers.append([done.top1, done.mean_loss, tested.top1, tested.top5])
        numbers.append([*trainer.model.state_dict().values()])
    assert numbers[0] == pytest.approx(numbers[2], rel=1e-12)
    for one, other in zip(numbers[1], numbers[3]):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-9, atol=1e-12)


def test_a_resume():
    """A second epoch after the state of the first, in a new trainer."""
    trainer, train, _ = run("single", GPU)
    trainer.train(1, train)
    state = copy.deepcopy([trainer.model.state_dict(), trainer.state()])
    trainer.train(2, train)
    resumed, train, _ = run("single", GPU)
    resumed.model.load_state_dict(state[0])
    resumed.load_state({**state[1], "epoch": 1})
    resumed.train(2, train)
    for one, other in zip(*(t.model.state_dict().values() for t in (trainer, resumed))):
        assert torch.equal(one, other)


def failing_once(criterion):
    fails = iter([True])

    def failing(*arguments):
        if next(fails, False):
            raise RuntimeError("FIND was unable to find an engine to execute this computation")
        return criterion(*arguments)

    return failing


@pytest.mark.parametrize("precision", ["single", "half"])
def test_no_memory_as_cudnn_says_it(precision, capsys):
    """The first iteration goes on slice by slice, and its loss is that of the whole batch."""
    losses = []
    for fails in (False, True):
        trainer, train, _ = run(precision, GPU)
        if fails:
            trainer.criterion = failing_once(trainer.criterion)
        losses.append(trainer.train(1, train).mean_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert 'execute this computation" has another cause: ' in capsys.readouterr().err


def test_a_retry_is_no_capture():
    """It is the first step slice by slice, so cuDNN has yet to choose its kernels."""
    trainer, train, _ = run("single", GPU, 2, "-cudaGraph true")
    trainer.criterion = failing_once(trainer.criterion)
    trainer._step_that_fits(next(iter(train.run(1))))
    assert trainer.accumulates and trainer.captured.graph is None


def test_photos(photos):
    """Workers, pinned memory and a stream of its own: the batches are the CPU's."""
    opt = opts.parse(["-data", photos, "-batchSize", "5", "-nThreads", "2"])
    written = gpu.runtime().pretended_overwritten()
    found = []
    for device in (CPU, GPU):
        loaders = dataloader.create(opt, device)
        found.append([batch for loader in loaders for batch in loader.run(1)])
    assert len(found[0]) == len(found[1]) == 5
    for one, other in zip(*found):
        assert torch.equal(one.input, other.input.cpu())
        assert torch.equal(one.target, other.target.cpu())
    assert gpu.runtime().pretended_overwritten() == written


@pytest.mark.parametrize("name", NETS)
def test_nets(name):
    """Forward and backward pass, maps, the dense classifier and re-estimated batch norm."""
    torch.manual_seed(1)
    new, input = NETS[name]().double(), torch.randn(6, 3, 32, 32, dtype=torch.float64)
    found = []
    for device in (CPU, GPU):
        net = copy.deepcopy(new).to(device).train()
        net(input.to(device)).square().mean().backward()
        gradients = [p.grad.cpu().clone() for p in net.parameters()]
        net.eval()
        with torch.no_grad():
            dense = scores.dense(net.maps(input.to(device)), net.fc, 8)
        estimate = Estimate(net.train())
        estimate.add(input.to(device), [3, 2, 1])
        found.append([*gradients, dense.cpu(), *(total.cpu() for total in estimate.sums)])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_pinned_memory_that_is_written_during_a_copy_is_found():
    before = gpu.runtime().pretended_overwritten()
    pinned = torch.zeros(1000).pin_memory()
    pinned.to(GPU, non_blocking=True)
    pinned.fill_(1)
    torch.cuda.synchronize()
    assert gpu.runtime().pretended_overwritten() == before + 1


def test_predictions_are_kept_without_a_wait(waits):
    found, indices = Predictions(4, 10, GPU), torch.arange(2, device=GPU)
    gpu.WAITS.clear()
    found.add(indices, torch.rand(2, 2, 10, device=GPU), False)
    assert waits() == 0 and found.read.tolist() == [1, 1, 0, 0]


class Scenes:
    """Two images with a box each, as detection/images.py gives them."""

    def place(self, code):
        return code

    def target(self, code, width, dtype):
        boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]], dtype=dtype)
        return {"boxes": boxes, "labels": torch.tensor([1 + code])}


class Loader:
    dataset, report_wait = Scenes(), None

    def __init__(self, device, dtype):
        self.device, self.dtype = device, dtype

    def size(self):
        return 2

    def run(self, epoch, start=0, stop=None):
        for n in range(start, 2 if stop is None else stop):
            generator = torch.Generator().manual_seed(n)
            image = torch.rand(1, 3, 64, 64, generator=generator, dtype=torch.float64) * 255
            images = [image.to(self.device, self.dtype)] * 2
            yield Batch(images, torch.arange(2, device=self.device), [[1, 1]])


@pytest.mark.parametrize("precision", ["double", "half"])
def test_a_detectors_step_and_test(precision, waits):
    """In half precision they run with few waits; in double precision the step is the CPU's."""
    found = {}
    for device in (CPU, GPU) if precision == "double" else (GPU,):
        torch.manual_seed(1)
        model = detector(net=classifier(8, 2, "cifar", "A"))
        dtype = torch.float64 if precision == "double" else torch.float32
        loader = Loader(device, dtype)
        model.to(device, dtype)
        step = schedule.Step("shared", 0.001, (2,), 2, 0, loader, 2)
        trainer = Trainer(model, device, [step], precision=precision)
        done = trainer.train(1, schedule.Epoch(step, 1))
        found[device] = done.mean_loss, done.losses["objectness"]
    gpu.WAITS.clear()
    trainer.train(2, schedule.Epoch(step, 1))
    # per slice: places drawn 2 + 2, large proposals, NMS, positive regions; per batch: its codes,
    # this loader's, the report
    assert waits() <= (7 * 2 + 3) * 2
    gpu.WAITS.clear()
    trainer.test(2, loader)
    # per image: proposals large enough, their NMS; boxes that score, are large enough, their
    # NMS, a number of torchvision's for it; the copy of what was found
    assert waits() <= (7 * 2 + 3) * 2
    if precision == "double":
        assert found[GPU] == pytest.approx(found[CPU], rel=1e-9)


@pytest.mark.parametrize(
    "generation, faster", [(9, "tf32 and bfloat16 should"), (7, "half should"), (6, None)]
)
def test_which_precisions_are_faster(generation, faster, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (generation, 0))
    opts.report_cuda(opts.parse(LOOP.split()), trains=False)
    said = capsys.readouterr().err
    assert f"; {faster} be faster on this GPU" in said if faster else said == ""


ROUNDING = "a resumed run is equal up to rounding"
IEEE = "=> -precision single is IEEE float32; tf32 and bfloat16 should be faster on this GPU"


@pytest.mark.parametrize(
    "command, words, cudnn, lines",
    [
        (main, "", "fastest", [IEEE, f"{ROUNDING}; give -cudnn deterministic for the same bits"]),
        (main, "-precision half", "deterministic", ["a resumed run has the same bits"]),
        (main, "-testOnly true", "fastest", [IEEE]),
        (detect, "", "default", [IEEE, f"{ROUNDING}, because RoIAlign adds in no fixed order"]),
        (detect, "-precision half", "deterministic", [f"{ROUNDING}, because RoIAlign adds in"]),
        (evaluate, "", "fastest", [IEEE]),
        (evaluate, "-precision tf32 -dense 40", "default", []),
    ],
)
def test_the_lines_at_the_start(command, words, cudnn, lines, cifar, tmp_path, monkeypatch, capsys):
    """And what they say is what PyTorch and the log were told."""
    seen = []

    class Begun(Exception):
        pass

    def begun(*arguments):
        seen.extend(getattr(a, "log", None) for a in arguments)
        raise Begun

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "train_epochs", begun)
    monkeypatch.setattr(detect, "train_epochs", begun)
    monkeypatch.setattr("train.Trainer.test", begun)
    monkeypatch.setattr("datasets.create_split", begun) if command is evaluate else None
    write_classifier(tmp_path / "net.pth")
    if command is main:
        words = f"{NET} -data {cifar} {words}"
    elif command is detect:
        write_coco(tmp_path / "data", "train2017", 2)
        write_coco(tmp_path / "data", "val2017", 1)
        words = f"-retrain net.pth -data data -scale 40 -largest 48 -nThreads 0 {words}"
    else:
        words = f"net.pth -dataset cifar10 -data {cifar} {words}"
    if cudnn == "deterministic":
        words += " -cudnn deterministic"
    with pytest.raises(Begun):
        command.main(words.split())
    said = capsys.readouterr().err.splitlines()
    starts = ("=> -precision", "=> -cudnn")
    said = [line for line in said if line.startswith(starts)]
    assert len(said) == len(lines) and all(map(str.__contains__, said, lines)), said
    assert all(f"-cudnn {cudnn}: " in line for line in said if "-cudnn" in line)
    assert torch.backends.cudnn.benchmark == (cudnn == "fastest")
    assert torch.backends.cudnn.deterministic == (cudnn == "deterministic")
    assert [log.header["options"]["cudnn"] for log in seen if log] in ([], [cudnn])
