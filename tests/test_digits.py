"""The digits: the split, the recorded statistics, and the augmentation."""

import sys
import types

import numpy as np
import pytest
import torch

import datasets
from datasets import digits
from datasets.draws import Draws, table
from runtime.errors import InputError


@pytest.fixture(scope="module")
def gen(tmp_path_factory):
    return str(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def splits(gen):
    return datasets.create(types.SimpleNamespace(dataset="digits", data="", gen=gen))


def test_every_digit_is_there_once(splits):
    from sklearn.datasets import load_digits

    source, (train, val) = load_digits(), splits
    assert (train.size(), val.size()) == (1501, 296)
    ours = [
        (image.numpy().tobytes(), int(label))
        for dataset in splits
        for image, label in zip(dataset.images, dataset.labels)
    ]
    bytes_of = [(255 * k + 8) // 16 for k in range(17)]  # to the nearest byte
    theirs = [
        (bytes(3 * [bytes_of[int(k)] for k in image.ravel()]), int(label))
        for image, label in zip(source.images, source.target)
    ]
    assert sorted(ours) == sorted(theirs)
    assert len(set(ours)) == 1797  # no image is in both parts
    for dataset in splits:
        share = dataset.labels.bincount(minlength=10) / dataset.size()
        assert share.min() > 0.096 and share.max() < 0.104  # the classes are as frequent in both


def test_the_split_is_the_same_every_time(splits, tmp_path):
    again = datasets.create(types.SimpleNamespace(dataset="digits", data="", gen=str(tmp_path)))
    for one, other in zip(splits, again):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_recorded_mean_and_std(splits):
    images = splits[0].images.double()
    for c in range(3):  # recorded with one decimal
        assert abs(images[:, c].mean() - digits.mean[c]) <= 0.05
        assert abs(images[:, c].std(correction=0) - digits.std[c]) <= 0.05


def test_augment_is_preprocess_by_the_batch(splits):
    for dataset in splits:
        assert dataset.draws == 2
        indices = np.random.default_rng(0).permutation(dataset.size())
        uniforms = torch.from_numpy(table(3, 5, indices, 2)) if dataset is splits[0] else None
        batch = dataset.augment(dataset.images[indices], uniforms, torch.float32)
        preprocess = dataset.transform()
        for row, i in zip(batch, indices):
            assert np.array_equal(row, preprocess(dataset.get(i)[0], Draws(3, 5, int(i))))


def test_digits_are_shifted_and_never_mirrored(splits):
    train = splits[0]
    image, _ = train.get(0)
    plain = (image - np.float32(77.8)) / np.float32(95.9)
    padded = np.pad(plain, ((0, 0), (1, 1), (1, 1)))
    shifts = [padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    seen = [train.transform()(image, Draws(1, epoch, 0)) for epoch in range(200)]
    places = [[np.allclose(one, shift, atol=1e-6) for shift in shifts] for one in seen]
    assert np.all(np.sum(places, 1) == 1)  # each is one of the nine
    assert np.all(np.sum(places, 0) > 0)  # and all nine occur


def test_without_scikit_learn(splits, gen, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        datasets.create(types.SimpleNamespace(dataset="digits", data="", gen=str(tmp_path)))
    # with the cache it is not needed
    train, _ = datasets.create(types.SimpleNamespace(dataset="digits", data="", gen=gen))
    assert train.size() == 1501


def test_facts():
    assert digits.stem == "cifar" and len(digits.classes(None)) == 10
    assert digits.classes(None)[3] == "three"
