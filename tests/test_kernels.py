"""The compiled input against the plain transforms, and against float64."""

import types

import numpy as np
import pytest
import torch

from datasets import imagenet, in_memory
from datasets import transforms as t
from datasets.draws import Draws, table
from datasets.image import fused, kernels, resize
from runtime.errors import InputError

UNIT = np.float32(1 / 255)
# Either way a sample is a sum of four products in two directions, and the plain one's has some 15
# roundings; of values up to 2.4 (overshoot at an edge of noise) each is at most 2^-24 of that
ROUNDING = 1e-6
COLOR = 5e-6  # the same times the jitter and divided by std, 0.225


def picture(height, width, seed=0):
    """uint8 (H, W, 4) whose fourth byte must not matter."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)


def photo(pixels):
    """What takes the place of a decoding.Photo."""
    return types.SimpleNamespace(
        shape=pixels.shape[:2], decode_region=lambda region: (pixels, region)
    )


def floats(pixels):
    return np.multiply(pixels[:, :, :3].transpose(2, 0, 1), UNIT, dtype=np.float32)


def scaled(pixels, region, window, shape):
    out = np.full((3, *shape), np.nan, np.float32)
    kernels.bicubic(pixels.view("<u4")[:, :, 0], region, window, UNIT, out)
    return out


SIZES = [(1, 1, 5, 4), (1, 6, 3, 3), (6, 1, 6, 4), (2, 2, 9, 7), (3, 3, 1, 1), (4, 5, 4, 5)]
SIZES += [(300, 401, 224, 224), (97, 61, 224, 224), (1200, 40, 13, 50), (9, 700, 300, 2)]


@pytest.mark.parametrize("height, width, rows, columns", SIZES)
def test_bicubic_equals_scale(height, width, rows, columns):
    pixels = picture(height, width)
    expected = resize.scale(floats(pixels), columns, rows)
    result = scaled(pixels, (0, 0, height, width), (rows, columns, 0, 0, False), (rows, columns))
    np.testing.assert_allclose(result, expected, rtol=0, atol=ROUNDING)


def cubic(values, length):
    """Catmull-Rom over the last axis in float64, by a polynomial through each place's four points.

    The curve through p1 and p2 with the slopes (p2 - p0) / 2 and (p3 - p1) / 2, in Hermite's form.
    """
    size = values.shape[-1]
    first, last = 2 * values[..., :1] - values[..., 1:2], 2 * values[..., -1:] - values[..., -2:-1]
    line = np.concatenate([first, values, last, last], -1)
    where = np.arange(length) * np.float64(np.float32(size - 1) / np.float32(length - 1))
    left = np.minimum(where.astype(int), size - 1)
    x = where - left
    p0, p1, p2, p3 = (line[..., left + k] for k in range(4))
    m1, m2 = (p2 - p0) / 2, (p3 - p1) / 2
    ends = (2 * x**3 - 3 * x**2 + 1) * p1 + (3 * x**2 - 2 * x**3) * p2
    return ends + (x**3 - 2 * x**2 + x) * m1 + (x**3 - x**2) * m2


def test_bicubic_against_float64():
    pixels = picture(61, 43)
    exact = pixels[:, :, :3].transpose(2, 0, 1) / 255
    exact = cubic(cubic(exact, 50).swapaxes(1, 2), 90).swapaxes(1, 2)
    result = scaled(pixels, (0, 0, 61, 43), (90, 50, 0, 0, False), (90, 50))
    # places are float32 in Torch: up to 61 * 2^-24 off, on slopes of up to 3 a pixel
    np.testing.assert_allclose(result, exact, rtol=0, atol=2e-5)


def test_bicubic_of_many_parts():
    random, pixels = np.random.default_rng(3), picture(70, 90)
    for _ in range(300):
        h, w = random.integers(1, 71), random.integers(1, 91)
        y, x = random.integers(0, 71 - h), random.integers(0, 91 - w)
        rows, columns = (int(n) for n in random.integers(1, 60, 2))
        first, start = random.integers(0, rows), random.integers(0, columns)
        shape = random.integers(1, rows - first + 1), random.integers(1, columns - start + 1)
        mirror = bool(random.integers(2))
        whole = resize.scale(floats(pixels[y : y + h, x : x + w]), columns, rows)
        expected = whole[:, first : first + shape[0], start : start + shape[1]]
        window = (rows, columns, first, start, mirror)
        result = scaled(pixels, (y, x, h, w), window, shape)
        result = result[:, :, ::-1] if mirror else result
        np.testing.assert_allclose(result, expected, rtol=0, atol=ROUNDING)


def training(size=224):
    chain = imagenet.create({"train_paths": [], "train_targets": []}, OPT, "train").transform()
    return t.Compose([t.RandomSizedCrop(size), *chain.transforms[1:]])


OPT = types.SimpleNamespace(
    data="nowhere", tenCrop=False, testScale=256, testCrop=224, trainCrop=224
)


@pytest.mark.parametrize("height, width", [(375, 500), (33, 41), (1, 1), (1, 200), (300, 3)])
def test_training_equals_the_chain(height, width):
    chain, pixels = training(56), picture(height, width)
    fast = fused.training(chain)
    for index in range(20):
        draws, others = Draws(1, 1, index), Draws(1, 1, index)
        result, expected = fast(photo(pixels), draws), chain(floats(pixels), others)
        assert result.shape == (3, 56, 56) and result.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=0, atol=COLOR)
        assert draws.uniform() == others.uniform()  # it asked for as many numbers


def doubled(pixels, blends, shift, mean, std):
    """The definition of each colour step in float64, one after the other."""
    colors = pixels.astype(np.float64)
    for kind, alpha in blends:
        gray = np.tensordot([0.299, 0.587, 0.114], colors, 1)
        other = {0: gray.mean(), 1: gray, 2: 0}[kind]
        colors = alpha * colors + (1 - alpha) * other
    colors = colors + shift[:, None, None]
    return (colors - mean[:, None, None]) / std[:, None, None]


def test_color_against_float64():
    random, worst = np.random.default_rng(5), 0
    assert (kernels.CONTRAST, kernels.SATURATION, kernels.BRIGHTNESS) == (0, 1, 2)
    mean, std = np.array(imagenet.mean), np.array(imagenet.std)
    for count in (0, 1, 3, 3, 3, 3, 3, 3):
        pixels = random.random((3, 30, 50), dtype=np.float32)
        kinds = random.permutation(3)[:count]
        blends = np.stack([kinds, random.uniform(0.6, 1.4, count)], 1)
        shift = random.normal(0, 0.05, 3)
        expected = doubled(pixels, blends, shift, mean, std)
        kernels.color(pixels, blends, shift, mean, std)
        worst = max(worst, abs(pixels - expected).max())
    assert worst < 2e-6  # 4 products of up to 8 and their sum, each rounded by 2^-24 of itself


@pytest.mark.parametrize("height, width", [(256, 256), (375, 500), (700, 300), (224, 1000), (1, 9)])
@pytest.mark.parametrize("scale, crop", [(256, 224), (256, 256), (40, 33)])
def test_testing_equals_the_chain(height, width, scale, crop):
    normalize = t.ColorNormalize(imagenet.mean, imagenet.std)
    chain, pixels = (
        t.Compose([t.Scale(scale), normalize, t.CenterCrop(crop)]),
        picture(height, width),
    )
    result = fused.testing(chain)(photo(pixels))
    np.testing.assert_allclose(result, chain(floats(pixels)), rtol=0, atol=COLOR)


@pytest.mark.parametrize("height, width", [(224, 230), (230, 224), (352, 359)])
def test_testing_leaves_an_image_of_the_size(height, width):
    """230 / 224 * 224 is 229.99999999999997: by that rule the image would lose a row."""
    normalize, size = t.ColorNormalize(imagenet.mean, imagenet.std), min(height, width)
    chain = t.Compose([t.Scale(size), normalize, t.CenterCrop(size)])
    pixels = picture(height, width)
    expected = chain(floats(pixels))
    np.testing.assert_allclose(fused.testing(chain)(photo(pixels)), expected, 0, COLOR)


def test_testing_refuses_what_the_chain_refuses():
    chain = t.Compose([t.Scale(20), t.ColorNormalize((0,) * 3, (1,) * 3), t.CenterCrop(30)])
    for test in (
        lambda: fused.testing(chain)(photo(picture(40, 50))),
        lambda: chain(np.ones((3, 40, 50))),
    ):
        with pytest.raises(InputError, match="a crop of 30x30 pixels does not fit .* of 25x20"):
            test()


# images in memory


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("height, width, padding", [(32, 32, 4), (8, 8, 1), (6, 10, 7), (5, 5, 0)])
def test_augment_equals_the_batched_transforms(height, width, padding, mirror):
    mean, std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
    images = np.random.default_rng(0).integers(0, 256, (500, 3, height, width), dtype=np.uint8)
    info = {"train_images": images, "train_labels": np.zeros(500, np.int64)}
    small = in_memory.Images(info, "train", mean, std, padding, mirror)
    uniforms = torch.from_numpy(table(1, 1, np.arange(500), small.draws))
    result = small.augment(small.images, uniforms)
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = in_memory.normalize_batch(small.images, mean, std)
    if mirror:
        expected = in_memory.flip_batch(expected, uniforms[:, 0])
    expected = in_memory.crop_batch(expected, uniforms[:, -2], uniforms[:, -1], padding)
    assert torch.equal(result, expected)
    double = small.augment(small.images, uniforms, torch.float64)
    assert double.dtype == torch.float64 and torch.equal(double, expected.double())
