"""What a GPU would run, on fake tensors of a CUDA device: nothing may be left on the CPU.

No GPU is needed. A fake tensor has a shape, a dtype and a device but no numbers. An operation on
two devices fails as it would on a GPU. Backward passes need a real device.
"""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import opts
from dataloader import LAYOUT, DataLoader, settings
from datasets import cifar10, digits
from engine.batchnorm import Estimate
from evaluation import scores
from models.blocks import set_recompute, set_slices
from models.preresnet import preresnet
from models.preresnext import preresnext
from models.resnet import resnet
from models.resnext import resnext
from runtime.precision import Precision
from train import criterion

CUDA = torch.device("cuda", 0)
NETS = {
    "resnet": lambda: resnet(8, 10, "cifar", "A"),
    "preresnet": lambda: preresnet(8, 10, "cifar", "A"),
    "resnext_A": lambda: resnext(11, 2, 4, 10, "cifar", "B", "resnext_A"),
    "preresnext": lambda: preresnext(11, 2, 4, 10, "cifar", "C"),
    "imagenet": lambda: resnet(18, 10),
}


@pytest.fixture
def fake():
    with FakeTensorMode() as mode:
        yield mode


def net(name):
    with torch.device(CUDA):
        return NETS[name]()


def images(count=6):
    return torch.empty(count, 3, 64, 64, device=CUDA).contiguous(memory_format=LAYOUT)


def on_cuda(*tensors):
    return all(tensor.device == CUDA for tensor in tensors)


def test_a_tensor_left_on_the_cpu_is_found(fake):
    with pytest.raises(RuntimeError, match="[Dd]evice"):
        images() * torch.empty(64)


@pytest.mark.parametrize("name", NETS)
def test_forward_and_loss(fake, name):
    """As one slice; in slices, one of them of one sample, and recomputed; in a test."""
    model = net(name)
    target = torch.zeros(6, dtype=torch.int64, device=CUDA)
    for recompute, slices in ((False, None), (True, [3, 2, 1])):
        set_recompute(model.train(), recompute)
        set_slices(model, slices)
        output = model(images())
        assert output.shape == (6, 10) and on_cuda(output, criterion()(output, target))
    output = model.eval()(images())
    assert on_cuda(output, *scores.count_errors(output, target).values())
    assert on_cuda(*model.buffers(), model.features(images()))


def test_forward_in_half_precision(fake, monkeypatch):
    # autocast switches itself off where there is no GPU
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    model, target = net("resnet").train(), torch.zeros(6, dtype=torch.int64, device=CUDA)
    set_slices(model, [3, 2, 1])
    with Precision("half", CUDA).autocast():
        output = model(images())
        loss = criterion()(output, target)
    assert (output.dtype, loss.dtype) == (torch.float16, torch.float32) and on_cuda(output, loss)


def test_scores(fake):
    output = torch.empty(20, 10, device=CUDA)
    assert on_cuda(scores.sum_crops(output, 10), scores.averages(output.view(2, 10, 10)))
    model = net("resnet")
    assert on_cuda(scores.dense(model.maps(images()), model.fc, 8))


@pytest.mark.parametrize("dataset", [cifar10, digits])
def test_batches_of_a_dataset_on_the_device(fake, monkeypatch, dataset):
    """The loader's own way: order, random numbers, augmentation, targets; train and test."""
    side = dataset.side
    info = {"mean": (1.0, 1.0, 1.0), "std": (1.0, 1.0, 1.0)}
    for split in ("train", "val"):
        info[f"{split}_images"] = np.zeros((7, 3, side, side), np.uint8)
        info[f"{split}_labels"] = np.zeros(7, np.int64)
    # copies between CPU and GPU are as they are; only the pinning wants a driver
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    opt = opts.parse("-dataset cifar10 -depth 20 -batchSize 4 -nGPU 2".split())
    for split in ("train", "val"):
        loader = DataLoader(
            dataset.create(info, opt, split),
            CUDA,
            training=split == "train",
            batch_size=opt.batchSize,
            **settings(opt, CUDA),
        )
        found = list(loader.run(1))
        assert [batch.count for batch in found] == [4, 3]
        assert on_cuda(*(tensor for batch in found for tensor in (batch.input, batch.target)))


@pytest.mark.parametrize("name", ["resnet", "preresnext"])
def test_batch_norm_is_re_estimated_on_the_device(fake, name, monkeypatch):
    model = net(name).train()
    estimate = Estimate(model)
    estimate.add(images(), [3, 2, 1])
    assert estimate.count == 2 and on_cuda(*estimate.sums)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda count: True)  # a fake count has no value
    estimate.apply()
    assert on_cuda(*model.buffers())
