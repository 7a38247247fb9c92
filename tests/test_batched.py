"""The batched transforms against the ones for one image, and against Torch7."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import transforms as t
from datasets.draws import Draws, table
from datasets.in_memory import crop_batch, flip_batch, normalize_batch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
REFERENCE = Path(__file__).parent / "reference" / "transforms"


def pictures(n, height=32, width=32):
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (n, 3, height, width), dtype=np.uint8))


def augment(batch, uniforms, dtype=torch.float32):
    """CIFAR's chain: ColorNormalize, HorizontalFlip, RandomCrop(32, 4)."""
    batch = flip_batch(normalize_batch(batch, MEAN, STD, dtype), uniforms[:, 0])
    return crop_batch(batch, uniforms[:, 1], uniforms[:, 2], 4)


@pytest.mark.parametrize("device", DEVICES)
def test_equals_the_transforms_of_one_image(device):
    seed, epoch, indices = 5, 7, np.random.default_rng(1).permutation(50000)[:200]
    batch = pictures(len(indices))
    uniforms = torch.from_numpy(table(seed, epoch, indices, 3))
    result = augment(batch.to(device), uniforms.to(device)).cpu()
    chain = t.Compose([t.ColorNormalize(MEAN, STD), t.HorizontalFlip(0.5), t.RandomCrop(32, 4)])
    for image, index, ours in zip(batch.numpy(), indices, result.numpy()):
        expected = chain(image.astype(np.float32), Draws(seed, epoch, int(index)))
        np.testing.assert_array_equal(ours, expected, strict=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["1", "2", "4"])
def test_equals_torch7(name, device):
    cases = {case["name"]: case for case in json.loads((REFERENCE / "transforms.json").read_text())}
    arrays = np.load(REFERENCE / "transforms.npz")
    (_, _, flip), (_, _, x), (_, _, y) = cases[f"pipeline_cifar10_train_{name}"]["draws"]
    uniforms = torch.tensor([[flip, (x + 0.5) / 9, (y + 0.5) / 9]], dtype=torch.float64)
    batch = torch.from_numpy(arrays["in/cifar"]).to(torch.uint8)[None]
    result = augment(batch.to(device), uniforms.to(device))[0].cpu()
    expected = arrays[f"out/pipeline_cifar10_train_{name}"]
    np.testing.assert_array_equal(result, expected, strict=True)


@pytest.mark.parametrize("device", DEVICES)
def test_all_places_and_half_the_flips(device):
    n = 4000
    uniforms = torch.from_numpy(table(1, 1, np.arange(n), 3)).to(device)
    # a pixel's value is its place from 1; padding is 0
    places = torch.arange(1, 1025, dtype=torch.float32, device=device).view(1, 1, 32, 32)
    result = crop_batch(places.expand(n, 3, 32, 32), uniforms[:, 1], uniforms[:, 2], 4)
    middle = result[:, 0, 16, 16].long() - 1  # never padding
    dy, dx = middle // 32 - 12, middle % 32 - 12
    assert set(zip(dx.tolist(), dy.tolist())) == {(x, y) for x in range(9) for y in range(9)}
    counts = torch.bincount(dx * 9 + dy, minlength=81).double()
    assert ((counts - n / 81) ** 2 / (n / 81)).sum() < 125  # chi square of 80: 1 in 1000
    flipped = flip_batch(places.expand(n, 3, 32, 32), uniforms[:, 0])[:, 0, 0, 0] == 32
    assert abs(flipped.double().mean() - 0.5) < 0.026  # 3.3 standard deviations


def test_uniforms_at_their_ends():
    places = torch.arange(1.0, 26).view(1, 1, 5, 5)
    zero, one = (
        torch.zeros(1, dtype=torch.float64),
        torch.tensor([1 - 2.0**-53], dtype=torch.float64),
    )
    first, last = (
        crop_batch(places, zero, zero, 2)[0, 0],
        crop_batch(places, one, one, 2)[0, 0],
    )
    assert first[2, 2] == 1 and not first[:2].any() and not first[:, :2].any()
    assert last[2, 2] == 25 and not last[3:].any() and not last[:, 3:].any()
    x_only = crop_batch(places, one, torch.full_like(one, 0.5), 2)[0, 0]
    torch.testing.assert_close(x_only[:, :3], places[0, 0, :, 2:])
    half = torch.tensor([0.5, np.nextafter(0.5, 0)], dtype=torch.float64)
    assert flip_batch(places.expand(2, 1, 5, 5), half)[:, 0, 0, 0].tolist() == [1, 5]


def test_any_size_and_double():
    batch = pictures(8, 6, 10)
    uniforms = torch.from_numpy(table(1, 1, np.arange(8), 3))
    single, double = (augment(batch, uniforms, kind) for kind in (torch.float32, torch.float64))
    assert double.dtype == torch.float64 and double.shape == batch.shape
    torch.testing.assert_close(double, single.double(), rtol=0, atol=0)  # float32 values, wider
    assert torch.equal(batch, pictures(8, 6, 10))
