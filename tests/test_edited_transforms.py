"""Transforms that were edited: what is loaded, and the input spec, are what `transform` says."""

import copy
import types

import numpy as np
import pytest
import torch

import dataloader
import datasets
import opts
from datasets import in_memory
from datasets import transforms as t
from datasets.draws import Draws, permutation
from datasets.input_spec import InputTransform
from evaluation import ensemble
from runtime.errors import InputError

CPU = torch.device("cpu")
NORMALIZE = t.ColorNormalize([1, 2, 3], np.array([4, 5, 6]))


class Reversed(t.Compose):
    def __call__(self, image, draws=None):
        return super().__call__(image[:, ::-1], draws)


def doubled(n):
    """In place n, a class of one's own that extends the one there."""

    def edit(c):
        def call(self, image, draws=None):
            return 2 * original.__call__(self, image, draws)

        own, original = copy.copy(c[n]), type(c[n])
        object.__setattr__(own, "__class__", type("Own", (original,), {"__call__": call}))
        return replaced(n, own)(c)

    return edit


def replaced(n, new):
    return lambda c: [new if part is c[n] else part for part in c]


def without(n):
    return lambda c: [part for part in c if part is not c[n]]


def more_jitter(c):
    c[1].transforms.append(t.RandomOrder([t.Brightness(0.9)]))
    return c


def anything(image, draws):
    """A tensor, in double precision, of another size."""
    return torch.from_numpy(image)[:, 1:].double().flip(2) * draws.uniform()


# what is edited: the dataset, the split, the list of transforms; whether the fast path takes it
ALL, SMALL = ("folder", "cifar", "digits"), ("cifar", "digits")
CASES = [
    (ALL, ("train", "val"), lambda c: c, True),
    (ALL, ("train", "val"), lambda c: [lambda image, draws: image * 0, *c], False),
    (ALL, ("train", "val"), lambda c: [*c, t.Rotation(10)], False),
    (ALL, ("train", "val"), doubled(-1), False),
    (ALL, ("train", "val"), Reversed, False),
    (ALL, ("train", "val"), lambda c: [t.Compose(c), anything], False),
    (ALL, ("train",), lambda c: [*c[:-2], c[-1], c[-2]], False),
    (SMALL, ("train", "val"), lambda c: [], False),
    (SMALL, ("train", "val"), replaced(0, NORMALIZE), True),
    (SMALL, ("train",), lambda c: [c[0]], False),
    (SMALL, ("train",), lambda c: [c[0], t.HorizontalFlip(0.9), c[-1]], False),
    (("cifar",), ("train",), without(1), False),
    (("digits",), ("train",), lambda c: [c[0], t.HorizontalFlip(0.5), c[1]], False),
    (SMALL, ("train",), replaced(-1, t.RandomCrop(8, 3)), True),
    (SMALL, ("train",), replaced(-1, t.RandomCrop(8)), True),
    (SMALL, ("train",), replaced(-1, t.RandomCrop(8, -1)), False),
    (SMALL, ("train",), replaced(-1, t.RandomCrop(7, 2)), False),
    (SMALL, ("val",), lambda c: [*c, t.CenterCrop(5)], False),
    *[(("folder",), ("train",), doubled(n), False) for n in range(4)],
    *[(("folder",), ("train",), without(n), False) for n in (1, 2, 3, 4)],
    (("folder",), ("train",), replaced(0, t.RandomSizedCrop(33)), True),
    (("folder",), ("train",), replaced(1, t.ColorJitter(brightness=0.9)), True),
    (("folder",), ("train",), replaced(1, t.RandomOrder([t.Contrast(0.9)])), False),
    (("folder",), ("train",), more_jitter, False),
    (("folder",), ("train",), replaced(2, t.Lighting(0, (1, 2, 3), [[1, 2, 3]] * 3)), True),
    (("folder",), ("train",), replaced(2, t.Lighting(0.5, (1, 2, 3), [[1, 2, 3]] * 3)), True),
    (("folder",), ("train",), replaced(4, t.HorizontalFlip(0.9)), True),
    (("folder",), ("train",), replaced(3, NORMALIZE), True),
    (("folder",), ("val",), replaced(1, NORMALIZE), True),
    (("folder",), ("val",), replaced(0, t.Scale(50)), True),
    (("folder",), ("val",), replaced(0, t.Scale(50, "bilinear")), False),
    (("folder",), ("val",), replaced(2, t.CenterCrop(30)), True),
    (("folder",), ("val",), lambda c: [c[0], c[2], c[1]], False),
]


@pytest.fixture
def loader(photos, tmp_path, monkeypatch):
    """A function: the loader of a split whose list of transforms is edited."""

    def make(name, split, edit):
        command = "-depth 50 -testScale 40 -testCrop 32 -batchSize 2 -manualSeed 4 -nThreads 0"
        opt = opts.parse([*command.split(), "-data", photos, "-gen", str(tmp_path)])
        if name == "folder":
            dataset = datasets.create(opt)[split == "val"]
        else:
            images = np.random.default_rng(3).integers(0, 256, (6, 3, 8, 8), np.uint8)
            info = {f"{split}_images": images, f"{split}_labels": np.arange(6)}
            mean, std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
            dataset = in_memory.Images(info, split, mean, std, 2, mirror=name == "cifar")
        original = type(dataset).transform

        def transform(self):
            chain = original(self)
            if self.split != split:
                return chain
            edited = edit(getattr(chain, "transforms", [chain]))
            return t.Compose(edited) if isinstance(edited, list) else edited

        monkeypatch.setattr(type(dataset), "transform", transform)
        settings = {**dataloader.settings(opt, CPU), "batch_size": opt.batchSize}
        return dataloader.DataLoader(dataset, CPU, training=split == "train", **settings)

    return make


def check_batch(loader, rtol):
    """A batch is what `get` and the transform give, image by image; rtol: of the largest value."""
    dataset, batch = loader.dataset, next(iter(loader.run(3)))
    order = permutation(4, 3, dataset.size()) if loader.training else range(2)
    for ours, i in zip(batch.input, order):
        expected = dataset.transform()(dataset.get(i)[0], Draws(4, 3, int(i)))
        expected = np.asarray(expected, np.float32)
        np.testing.assert_allclose(ours, expected, 0, rtol * np.abs(expected).max())


@pytest.mark.parametrize(
    "name, split, edit, fast",
    [(name, split, *rest) for names, splits, *rest in CASES for name in names for split in splits],
)
def test_an_edited_transform_runs_as_written(name, split, edit, fast, loader, capsys):
    """A known one fast, any other with one line. A test transform is its input spec, if any."""
    loader = loader(name, split, edit)
    kind, lines = "training" if split == "train" else "test", capsys.readouterr().err.split("\n")
    line = f"=> this {kind} transform has no fast path, so it runs as written, image by image"
    assert lines.count(line) == (not fast)
    check_batch(loader, 1e-5 if name == "folder" else 0)
    dataset = loader.dataset
    if split == "val":
        spec = dataset.input_spec()
        assert (spec is not None) == fast
        if fast:
            own, image = InputTransform(spec), dataset.get(0)[0]
            image = own.cropped(own.scaled(image, spec["scale"]), spec["crop"])
            np.testing.assert_array_equal(image, dataset.transform()(dataset.get(0)[0]))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ALL)
def test_the_fast_path_does_not_bypass_an_edited_get(name, split, loader):
    dataset = loader(name, split, lambda c: c).dataset

    class Own(type(dataset)):
        def get(self, i):
            image, target = super().get(i)
            return 1 - image, target

    dataset.__class__ = Own
    own = dataloader.DataLoader(dataset, CPU, training=split == "train", batch_size=2, seed=4)
    check_batch(own, 0)


@pytest.mark.parametrize("name", ALL)
def test_images_of_different_shapes_are_a_sentence(name, loader):
    """Not a traceback of a worker, and not a broadcast."""
    sizes = iter((1, 2))
    other = loader(name, "val", lambda c: [*c, lambda image, draws: image[:, :, : next(sizes)]])
    with pytest.raises(InputError, match=r"of different shapes: \(3, \d+, 1\) and \(3, \d+, 2\)"):
        list(other.run(1))


@pytest.mark.parametrize("name", ALL)
def test_evaluate_refuses_a_transform_that_no_spec_describes(name, loader):
    dataset = loader(name, "val", lambda c: [*c, t.Rotation(10)]).dataset
    net = types.SimpleNamespace(input_spec={"scale": 8, "crop": 8})
    with pytest.raises(InputError, match="no input spec describes"):
        ensemble.views(net, dataset, None)
