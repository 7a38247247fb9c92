"""CIFAR's facts and augmentation, against the batches that the original's trainer saw."""

import os

import numpy as np
import pytest
import torch
from support.torch7_random import Generator

import datasets
from datasets import cifar10, cifar100
from datasets.draws import Draws, table

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference", "mainrun")


class Torch7Draws:
    """The draws of a Lua worker, from Torch's generator."""

    def __init__(self, seed):
        self.generator = Generator(seed)

    def uniform(self):
        return self.generator.raw(1)[0]

    def random(self, low, high):
        return int(self.generator.raw(1)[0] * 2**32) % (high - low + 1) + low


class Recorded:
    """Hands out one image's draws as often as wished, and draws them from the source once."""

    def __init__(self, source):
        self.source, self.values = source, {}

    def again(self):
        self.count = 0
        return self

    def _draw(self, name, *args):
        self.count += 1
        if self.count not in self.values:
            self.values[self.count] = getattr(self.source, name)(*args)
        return self.values[self.count]

    def uniform(self):
        return self._draw("uniform")

    def random(self, low, high):
        return self._draw("random", low, high)


def test_batches_of_the_original():
    """Both epochs that the original's trainer saw, bit for bit."""
    with np.load(os.path.join(HERE, "cifar10_gen.npz")) as file:  # what cifar10-gen.lua stored
        splits = ("train", "val")
        info = {f"{split}_images": file[f"{split}_data"] for split in splits}
        info.update({f"{split}_labels": file[f"{split}_labels"] - 1 for split in splits})
    with np.load(os.path.join(HERE, "e2e_fbresnet20_cifar10.npz")) as file:
        seen = dict(file)
    draws = Torch7Draws(8)  # the only worker was seeded with manualSeed + 1
    for kind in ("train1", "train2", "test1", "test2"):
        dataset = cifar10.create(info, None, "train" if "train" in kind else "val")
        preprocess, found = dataset.transform(), []
        keys = [key for key in sorted(seen) if f"_{kind}_" in key]
        inputs = np.concatenate([seen[key] for key in keys if key.endswith("input")])
        targets = np.concatenate([seen[key] for key in keys if key.endswith("target")]) - 1
        for input, target in zip(inputs, targets):
            # the order came from another generator: of all images, one must fit these draws
            once, images = Recorded(draws), map(dataset.get, range(dataset.size()))
            same = [
                i
                for i, (image, label) in enumerate(images)
                if label == target and np.array_equal(preprocess(image, once.again()), input)
            ]
            assert len(same) == 1
            found += same
        assert sorted(found) == list(range(dataset.size()))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_augment_is_preprocess_by_the_batch(name):
    random = np.random.default_rng(0)
    info = {"signature": "", "train_images": random.integers(0, 256, (500, 3, 32, 32), np.uint8),
            "train_labels": np.zeros(500, np.int64)}  # fmt: skip
    info.update(val_images=info["train_images"], val_labels=info["train_labels"])
    for split in ("train", "val"):
        dataset = datasets.module(name).create(info, None, split)
        assert dataset.draws == 3
        indices = random.permutation(500)
        uniforms = torch.from_numpy(table(7, 2, indices, dataset.draws))
        uniforms = uniforms if split == "train" else None
        batch = dataset.augment(dataset.images[indices], uniforms, torch.float32)
        single = dataset.transform()
        for row, i in zip(batch, indices):
            assert np.array_equal(row, single(dataset.get(i)[0], Draws(7, 2, int(i))))


def test_all_81_shifts_and_both_sides_occur():
    """Of an image whose pixels tell their places; the border is the mean colour, which is 0."""
    image = np.zeros((3, 32, 32), np.uint8)
    image[0], image[1] = np.arange(32) * 8, np.arange(32)[:, None] * 8
    info = {"train_images": np.repeat(image[None], 4000, 0), "train_labels": np.zeros(4000, int)}
    dataset = cifar10.create(info, None, "train")
    uniforms = torch.from_numpy(table(1, 1, np.arange(4000), 3))
    batch = dataset.augment(dataset.images, uniforms, torch.float64)
    x, y, _ = (batch[:, :, 16, 16] * torch.tensor(dataset.std) + torch.tensor(dataset.mean)).T / 8
    left, right = batch[:, 0, 16, 8], batch[:, 0, 16, 24]
    mirrored = left > right
    places = {(round(float(a)), round(float(b)), bool(m)) for a, b, m in zip(x, y, mirrored)}
    upright = {(a, b, False) for a in range(12, 21) for b in range(12, 21)}
    assert places == upright | {(31 - a, b, True) for a, b, _ in upright}
    assert 0.46 < mirrored.double().mean() < 0.54  # four deviations of the mean of 4000


@pytest.mark.parametrize("module, count", [(cifar10, 10), (cifar100, 100)])
def test_facts(module, count):
    names = module.classes(None)
    assert module.stem == "cifar" and names == sorted(set(names)) and len(names) == count
    assert names[0] == {10: "airplane", 100: "apple"}[count]
    assert names[-1] == {10: "truck", 100: "worm"}[count]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "digits"])
def test_the_stated_preprocessing_is_what_val_does(name):
    side = {"digits": 8}.get(name, 32)
    white = np.full((1, 3, side, side), 255, np.uint8)
    info = {"val_images": white, "val_labels": np.zeros(1, int)}
    val = datasets.module(name).create(info, None, "val")
    stated = val.input_spec()
    assert stated["scale"] == stated["crop"] == side
    expected = (stated["largest"] - np.array(stated["mean"])) / np.array(stated["std"])
    # float32 rounds a difference and a quotient
    assert np.allclose(val.transform()(val.get(0)[0], None)[:, 0, 0], expected, rtol=3e-7)
