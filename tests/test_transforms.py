"""Transforms against what the original returned under Torch7 for the same draws.

reference/transforms holds inputs, outputs and every draw in order, recorded from transforms.lua.
"""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import transforms as t
from datasets.draws import Draws
from runtime.errors import InputError

REFERENCE = Path(__file__).parent / "reference" / "transforms"
CASES = json.loads((REFERENCE / "transforms.json").read_text())
ARRAYS = np.load(REFERENCE / "transforms.npz")

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10 = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
EIGVAL = (0.2175, 0.0188, 0.0045)
EIGVEC = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

# Where the Lua adds a multiple of an image, its BLAS fused the product and the sum on the recording
# machine: one rounding less for each such step. All else is equal to the bit.
FUSED = {"Contrast": 6e-8, "Saturation": 1.2e-7, "ColorJitter": 2.4e-7}


class Replay:
    """Gives back recorded draws, and insists on the same questions in the same order."""

    def __init__(self, case):
        self.draws, self.alpha = list(case["draws"]), list(case.get("alpha", []))

    def _next(self, *question):
        name, arguments, value = self.draws.pop(0)
        assert question == (name, *arguments)
        return value

    def uniform(self, *bounds):
        return self._next("uniform", *bounds)

    def random(self, low, high):
        return self._next("random", low, high)

    def randperm(self, n):
        return [k - 1 for k in self._next("randperm", n)]  # torch counts from 1

    def normal(self, mean, std):
        assert (mean, std) == (0, 0.1)
        return self.alpha.pop(0)


def build(name, *arguments):
    if name == "cifar10 train":
        chain = [t.ColorNormalize(*CIFAR10), t.HorizontalFlip(0.5), t.RandomCrop(32, 4)]
        return t.Compose(chain)
    if name == "ColorNormalize":
        return t.ColorNormalize(*{"imagenet": IMAGENET, "cifar10": CIFAR10}[arguments[0]])
    if name == "Lighting":
        return t.Lighting(*arguments, EIGVAL, EIGVEC)
    return getattr(t, name)(*arguments)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).random((3, height, width), dtype=np.float32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_equals_torch7(case):
    transform = build(*case["transform"])
    image = ARRAYS["in/" + case["input"]]
    before, draws = image.copy(), Replay(case)
    if "error" in case:
        with pytest.raises(InputError, match="does not fit into an image of"):
            transform(image, draws)
        return
    result = transform(image, draws)
    expected = ARRAYS.get("out/" + case["name"], before)  # where it returned its input
    assert result.shape == expected.shape and result.dtype == np.float32
    assert result.flags.c_contiguous
    tolerance = FUSED.get(case["transform"][0], 0)
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)
    assert not draws.draws and not draws.alpha  # it asked for everything
    np.testing.assert_array_equal(image, before)  # and left its input alone


@pytest.mark.parametrize("name", [n for n in ARRAYS.files if n.startswith(("ramp", "impulse"))])
def test_scale_of_one_row(name):
    source, _, length, interpolation = name.split("_")
    row = np.arange(10) if source == "ramp10" else np.arange(12) == 5
    image = np.tile(row.astype(np.float32), (3, 4, 1))
    result = t.scale(image, int(length), 4, interpolation)
    np.testing.assert_array_equal(result, np.tile(ARRAYS[name], (3, 4, 1)))


@pytest.mark.parametrize("table", ["scale_sizes", "scale_inexact"])
def test_length_of_the_longer_side(table):
    for w, h, size, width, height in ARRAYS[table].astype(int):
        image = np.broadcast_to(np.float32(0), (1, h, w))
        assert t.Scale(size)(image).shape == (1, height, width), (w, h, size)


def catmull_rom(row, length):
    """The cubic through the neighbours, from its definition by slopes, one sample at a time."""
    size = len(row)
    if size == 1:
        return np.repeat(row, length)
    extended = np.concatenate([[2 * row[0] - row[1]], row, [2 * row[-1] - row[-2]]])
    result = np.empty(length)
    for i in range(length - 1):
        k, x = divmod(i * (size - 1) / (length - 1), 1)
        before, left, right, after = extended[int(k) : int(k) + 4]
        slope_left, slope_right = (right - before) / 2, (after - left) / 2
        result[i] = (
            (1 + 2 * x) * (1 - x) ** 2 * left
            + x * (1 - x) ** 2 * slope_left
            + x**2 * (3 - 2 * x) * right
            + x**2 * (x - 1) * slope_right
        )
    result[-1] = row[-1]
    return result


@pytest.mark.parametrize(
    "height, width, new_height, new_width",
    [(7, 9, 15, 4), (40, 31, 11, 64), (2, 2, 5, 5), (1, 6, 3, 3), (6, 1, 6, 4), (3, 500, 1, 224)],
)
def test_bicubic_against_the_definition(height, width, new_height, new_width):
    image = noise(height, width)
    rows = np.apply_along_axis(catmull_rom, 2, image.astype(np.float64), new_width)
    expected = np.apply_along_axis(catmull_rom, 1, rows, new_height)
    result = t.scale(image, new_width, new_height)
    # positions are rounded to float32: 500 samples leave 3e-5 of the way between two of them
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)


def test_bilinear_shrinks_by_area():
    image = noise(12, 20)
    blocks = image.reshape(3, 4, 3, 5, 4).mean((2, 4))  # 3x4 pixels to one
    np.testing.assert_allclose(t.scale(image, 5, 4, "bilinear"), blocks, rtol=0, atol=3e-7)


def test_scale_refuses_other_interpolations():
    with pytest.raises(ValueError, match="bicubic or bilinear"):
        t.scale(noise(4, 4), 2, 2, "simple")


def test_scale_returns_a_new_image_even_of_the_same_size():
    image = noise(5, 6)
    result = t.scale(image, 6, 5)
    np.testing.assert_array_equal(result, image)
    assert not np.shares_memory(result, image)


def test_a_quarter_turn():
    class Full:
        def uniform(self):
            return 1.0

    image = noise(9, 9)
    turned = t.Rotation(180)(image, Full())  # (1 - 1/2) 180 degrees
    np.testing.assert_allclose(turned, np.rot90(image, 1, (1, 2)), rtol=0, atol=2e-6)


def test_random_crop_reaches_every_offset():
    # each pixel tells where it is; 0 is padding
    image = np.broadcast_to(np.arange(1, 65, dtype=np.float32).reshape(8, 8), (3, 8, 8)).copy()
    crop = t.RandomCrop(8, 2)
    seen = {crop(image, Draws(1, 1, i)).tobytes() for i in range(400)}
    assert len(seen) == 25


def test_random_crop_of_too_small_an_image():
    with pytest.raises(InputError, match="30x30 pixels does not fit into an image of 40x20"):
        t.RandomCrop(30)(noise(20, 40), Draws(1, 1, 1))


def test_ten_crops_overlap_as_documented():
    image = noise(10, 12)
    crops = t.TenCrop(8)(image)
    corners = [image[:, y : y + 8, x : x + 8] for y in (0, 2) for x in (0, 4)]
    np.testing.assert_array_equal(crops[0], image[:, 1:9, 2:10])
    np.testing.assert_array_equal(crops[1:5], corners)
    mirrored = image[:, :, ::-1]
    np.testing.assert_array_equal(crops[6], mirrored[:, :8, :8])
    with pytest.raises(InputError, match="does not fit"):
        t.TenCrop(11)(image)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (2, 1), (3, 3)])
def test_random_sized_crop_of_a_tiny_image(height, width):
    crop = t.RandomSizedCrop(4)
    image = np.full((3, height, width), 0.5, np.float32)
    for i in range(100):
        np.testing.assert_allclose(crop(image, Draws(1, 1, i)), 0.5, rtol=1e-6)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 7), (7, 1), (2, 3)])
def test_a_flip_is_a_tensor(height, width):
    """torch takes no negative strides, which numpy leaves in an axis of one pixel."""
    image = np.random.default_rng(0).random((3, height, width), np.float32)
    assert torch.equal(torch.from_numpy(t.hflip(image)), torch.from_numpy(image).flip(2))


def test_random_sized_crop_takes_the_right_part():
    # The image holds its own coordinates, so the corners of the result are those of the crop.
    # Areas are uniform in 8..100 %, but the large and long ones do not fit and are drawn again.
    image = np.stack([*np.mgrid[:100, :100], np.zeros((100, 100))]).astype(np.float32)
    sides = []
    for i in range(500):
        y, x, _ = t.RandomSizedCrop(2)(image, Draws(3, 1, i))
        sides.append((y[1, 0] - y[0, 0] + 1, x[0, 1] - x[0, 0] + 1))
    h, w = np.array(sides).T
    area, aspect = h * w / 100**2, np.maximum(h, w) / np.minimum(h, w)
    assert 0.07 < area.min() < 0.12 and area.max() > 0.85 and 0.4 < area.mean() < 0.54
    assert aspect.max() < 4 / 3 + 0.05 and 0.4 < (h < w).mean() < 0.6


def test_transforms_survive_pickling():
    chain = t.Compose([t.RandomSizedCrop(8), t.ColorJitter(0.4, 0.4, 0.4), t.HorizontalFlip(0.5)])
    copy, image = pickle.loads(pickle.dumps(chain)), noise(20, 30)
    np.testing.assert_array_equal(
        copy(image, Draws(1, 2, 3)), chain(image, Draws(1, 2, 3)), strict=True
    )


@pytest.mark.parametrize("shape", [(3, 1, 30000), (3, 30000, 1)])
@pytest.mark.parametrize(
    "transform", [t.Scale(256), t.RandomScale(256, 480), t.RandomSizedCrop(224)]
)
def test_strips_that_would_fill_the_memory_are_refused(shape, transform):
    with pytest.raises(InputError, match="pixels would become .* more than 67108864 in all"):
        transform(np.zeros(shape, np.float32), Draws(0, 1, 0))
