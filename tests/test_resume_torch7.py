"""Training goes on from a folder that the original program wrote after epoch 3."""

import gzip
import os
import re
import shutil

import numpy as np
import pytest
import torch
from support.torch7 import fill, targets

import checkpoints
import dataloader
import main
import models
from formats import model_files, t7
from models.resnet import resnet
from storage import atomic

REFERENCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference", "checkpoints")
STRIDE = 14  # of the stored samples


class Fixed:
    """The batches of the recorded run: two of eight an epoch to train, one to test."""

    crops = 1

    def __init__(self, split):
        self.split, self.dataset = split, self

    def input_spec(self):
        return None

    def size(self):
        return 2 if self.split == "train" else 1

    def report_wait(self, epoch, seconds, waited):
        """No worker is waited for."""

    def run(self, epoch, start):
        if self.split == "val":
            yield batch(8001, 8101)
            return
        for i in (1, 2)[start:]:
            yield batch(6000 + 10 * epoch + i, 7000 + 10 * epoch + i)


def batch(input_seed, target_seed):
    input, target = fill((8, 3, 32, 32), input_seed, 0, 3**0.5), targets(8, target_seed, 10)
    return dataloader.Batch(input, target, [[8]])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder as Torch7 left it, and a loader that gives the recorded batches."""
    stored = os.path.join(REFERENCE, "resnet20_epoch3")
    os.mkdir(tmp_path / "epoch3")
    for name in os.listdir(stored):
        opener = gzip.open if name.endswith(".gz") else open
        target = tmp_path / "epoch3" / name.removesuffix(".gz")
        with opener(os.path.join(stored, name), "rb") as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataloader, "create", lambda opt, device: (Fixed("train"), Fixed("val")))


# In double: at this point of its training the net is so sensitive that our own float32 run ends 5 %
# from our float64 run in momentum, while the recorded run (float32, on another machine) is near it.
COMMAND = "-netType resnet -dataset cifar10 -LR 0.01 -nEpochs 5 -batchSize 8 -precision double"


def test_epochs_4_and_5(folder, capsys):
    main.main((COMMAND + " -resume epoch3 -save ours").split())
    captured = capsys.readouterr()
    ours = (captured.err + captured.out).splitlines()
    assert any(
        "-weightDecay 0.0005" in line for line in ours if line.startswith("=> from the checkpoint:")
    )
    with open(os.path.join(REFERENCE, "resnet20_stdout_resumed.txt")) as file:
        theirs = file.read().splitlines()
    new = ("CUDA", "=> from the checkpoint", "input spec")
    ours = [line for line in ours if not any(words in line for words in new)]
    assert [plain(line) for line in ours] == [plain(line) for line in theirs]
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-4)  # the last digit printed

    arrays = np.load(os.path.join(REFERENCE, "resnet20_params.npz"))
    # the reference's own sensitivity to a 1e-6 change: 4e-5 at epoch 4, 3e-4 at epoch 5
    for epoch, parameters, gradients in ((4, 1e-7, 1e-5), (5, 1e-5, 3e-3)):
        model = atomic.load(f"ours/model_{epoch}.pth")["model"]
        momentum = atomic.load(f"ours/optimState_{epoch}.pth")["momentum"]
        flat = torch.cat([model[name].flatten() for name in momentum])[::STRIDE]
        assert distance(flat, arrays[f"epoch{epoch}_params"]) < parameters
        flat = torch.cat([tensor.flatten() for tensor in momentum.values()])[::STRIDE]
        assert distance(flat, arrays[f"epoch{epoch}_momentum_sample"]) < gradients
        for which in ("mean", "var"):
            found = [v for k, v in model.items() if k.endswith(f"running_{which}")]
            assert distance(torch.cat(found), arrays[f"epoch{epoch}_bn_running_{which}"]) < 1e-5


def plain(line):
    """A line without its times and its loss."""
    return re.sub(r"(Time|Data|Err) +[\d.]+", r"\1", line)


def losses(lines):
    return [float(number) for line in lines for number in re.findall(r"Err ([\d.]+)", line)]


def distance(ours, theirs):
    theirs = torch.from_numpy(theirs)
    return float((ours - theirs).norm() / theirs.norm())


def test_options_that_the_command_line_gives_win(folder, capsys):
    main.main((COMMAND + " -resume epoch3 -save ours -weightDecay 1e-4").split())
    captured = capsys.readouterr()
    lines = (captured.err + captured.out).splitlines()
    assert "=> -weightDecay 0.0001 as given, in place of the checkpoint's 0.0005" in lines


@pytest.fixture
def trained(tmp_path):
    """A net in files of each kind, and the momentum of each parameter, also as Torch7's vector."""
    net = resnet(8, 10, "cifar", "B")
    net.classes = net.input_spec = None
    for extension in model_files.EXTENSIONS:
        model_files.write(str(tmp_path / "net") + extension, models.pack(net))
    momentum = {name: torch.randn(tensor.shape) for name, tensor in net.named_parameters()}
    flat = torch.cat([tensor.flatten() for tensor in momentum.values()])
    t7.save(str(tmp_path / "state.t7"), {"dfdx": flat, "momentum": 0.9, "weightDecay": 1e-4})
    return momentum


def state(folder, extension, without=()):
    """The momentum that -optimState state.t7 gives to the net in one of the files."""
    paths = {"optimState": str(folder / "state.t7"), "retrain": str(folder / "net") + extension}
    found = checkpoints.optim_state(paths["optimState"], paths["retrain"], without)
    return found["momentum"]


@pytest.mark.parametrize("extension", model_files.EXTENSIONS)
def test_each_parameter_has_its_own_momentum(trained, extension, tmp_path):
    """In whatever order a file has its entries: that of .safetensors is by name."""
    found = state(tmp_path, extension)
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.items())


def test_a_new_classifier_begins_without_momentum(trained, tmp_path):
    found = state(tmp_path, ".t7", without=("fc",))
    assert trained.keys() - found.keys() == {"fc.weight", "fc.bias"}
