"""The compiled input against the plain transforms, and against float64."""

import io
import types

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import batched, fused, image, imagenet, in_memory, kernels
from datasets import transforms as t
from datasets.draws import Draws, table
from errors import InputError

UNIT = np.float32(1 / 255)


def picture(height, width, seed=0):
    """uint8 (H, W, 4) whose fourth byte must not matter."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)


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
    expected = image.scale(floats(pixels), columns, rows)
    result = scaled(pixels, (0, 0, height, width), (rows, columns, 0, 0, False), (rows, columns))
    np.testing.assert_array_equal(result, expected, strict=True)


def test_bicubic_of_many_parts():
    random, pixels = np.random.default_rng(3), picture(70, 90)
    for _ in range(300):
        h, w = random.integers(1, 71), random.integers(1, 91)
        y, x = random.integers(0, 71 - h), random.integers(0, 91 - w)
        rows, columns = (int(n) for n in random.integers(1, 60, 2))
        first, start = random.integers(0, rows), random.integers(0, columns)
        shape = random.integers(1, rows - first + 1), random.integers(1, columns - start + 1)
        mirror = bool(random.integers(2))
        whole = image.scale(floats(pixels[y : y + h, x : x + w]), columns, rows)
        expected = whole[:, first : first + shape[0], start : start + shape[1]]
        window = (rows, columns, first, start, mirror)
        result = scaled(pixels, (y, x, h, w), window, shape)
        np.testing.assert_array_equal(result[:, :, ::-1] if mirror else result, expected)


def training(size=224):
    chain = imagenet.Dataset({"train_paths": [], "train_targets": []}, OPT, "train").preprocess()
    return t.Compose([t.RandomSizedCrop(size), *chain.transforms[1:]])


OPT = types.SimpleNamespace(data="nowhere", tenCrop=False, testScale=256, testCrop=224)


@pytest.mark.parametrize("height, width", [(375, 500), (33, 41), (1, 1), (1, 200), (300, 3)])
def test_training_equals_the_chain(height, width):
    chain, pixels = training(56), picture(height, width)
    fast = fused.Training(chain)
    for index in range(20):
        draws, others = Draws(1, 1, index), Draws(1, 1, index)
        result, expected = fast(pixels, UNIT, draws), chain(floats(pixels), others)
        assert result.shape == (3, 56, 56) and result.dtype == np.float32
        # values reach 10; the chain rounds some 8 times on its way, the fused one 6 times
        np.testing.assert_allclose(result, expected, rtol=0, atol=5e-6)
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
    mean, std = np.array(imagenet.MEAN), np.array(imagenet.STD)
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
    normalize = t.ColorNormalize(imagenet.MEAN, imagenet.STD)
    chain, pixels = (
        t.Compose([t.Scale(scale), normalize, t.CenterCrop(crop)]),
        picture(height, width),
    )
    result = fused.Testing(chain)(pixels, UNIT)
    np.testing.assert_array_equal(result, chain(floats(pixels)), strict=True)


def test_testing_refuses_what_the_chain_refuses():
    chain = t.Compose([t.Scale(20), t.ColorNormalize((0,) * 3, (1,) * 3), t.CenterCrop(30)])
    for test in (
        lambda: fused.Testing(chain)(picture(40, 50), UNIT),
        lambda: chain(np.ones((3, 40, 50))),
    ):
        with pytest.raises(InputError, match="a crop of 30x30 pixels does not fit .* of 25x20"):
            test()


# the dataset: get and preprocess in one


def saved(kind, size, **how):
    """One file as bytes; pictures with smooth and with hard parts."""
    random = np.random.default_rng(7)
    height, width = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([3 * x, 2 * y, x + y], 2) % 256
    pixels[height // 2 :] = random.integers(0, 256, (height - height // 2, width, 3))
    source = Image.fromarray(pixels.astype(np.uint8)).convert(kind)
    file = io.BytesIO()
    source.save(file, **how)
    return file.getvalue()


JPEGS = {
    f"{kind}{sampling}{'p' * progressive} {height}x{width}": saved(
        kind, (height, width), format="JPEG", quality=quality, progressive=progressive, **more
    )
    for kind, samplings in (("RGB", (0, 1, 2)), ("L", (None,)), ("CMYK", (None,)))
    for sampling in samplings
    for progressive, quality in ((False, 90), (True, 60))
    for height, width in ((1, 1), (17, 33), (64, 48), (75, 50))
    for more in ({} if sampling is None else {"subsampling": sampling},)
}


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_equals_pillow(name):
    pixels = imagenet._jpeg(JPEGS[name])
    assert (pixels is None) == name.startswith("CMYK")  # left to Pillow
    expected = np.asarray(Image.open(io.BytesIO(JPEGS[name])).convert("RGB"))
    if pixels is not None:
        np.testing.assert_array_equal(pixels[:, :, :3], expected)


def test_damaged_jpegs_are_left_to_pillow():
    whole = JPEGS["RGB2 75x50"]
    assert imagenet._jpeg(whole) is not None
    for data in (b"", whole[:2], whole[:300], whole[:-300], b"\x89PNG" + whole[4:]):
        assert imagenet._jpeg(data) is None
    noisy = bytearray(whole)
    noisy[-400:-300] = bytes(100)
    assert imagenet._jpeg(bytes(noisy)) is None


@pytest.mark.parametrize("split", ["train", "val"])
def test_prepare_equals_get_and_preprocess(tmp_path, split):
    grey16 = np.random.default_rng(1).integers(0, 65536, (60, 50), dtype=np.uint16)
    Image.fromarray(grey16).save(tmp_path / "deep.png")
    (tmp_path / "a.jpg").write_bytes(JPEGS["RGB2 64x48"])
    (tmp_path / "b.jpg").write_bytes(JPEGS["CMYKNone 75x50"])
    (tmp_path / "c.png").write_bytes(saved("P", (50, 60), format="PNG"))
    names = ["deep.png", "a.jpg", "b.jpg", "c.png"]
    info = {f"{split}_paths": np.array(names, "S"), f"{split}_targets": np.arange(4)}
    for ten in (False, True):
        opt = types.SimpleNamespace(**{**vars(OPT), "tenCrop": ten})
        dataset = imagenet.Dataset(info, opt, split)
        dataset.folder = bytes(tmp_path)
        prepare, chain = dataset.prepare(), dataset.preprocess()
        for i in range(4):
            result, target = prepare(i, Draws(2, 3, i))
            expected = chain(dataset.get(i)[0], Draws(2, 3, i))
            assert target == i and result.shape == expected.shape
            # testing: to the last bit. Training: as above
            np.testing.assert_allclose(result, expected, rtol=0, atol=5e-6 * (split == "train"))


# images in memory


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("height, width, padding", [(32, 32, 4), (8, 8, 1), (6, 10, 7), (5, 5, 0)])
def test_augment_equals_the_batched_transforms(height, width, padding, mirror):
    class Small(in_memory.Images):
        mean, std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)

    Small.padding, Small.mirror = padding, mirror
    images = np.random.default_rng(0).integers(0, 256, (500, 3, height, width), dtype=np.uint8)
    info = {"train_images": images, "train_labels": np.zeros(500, np.int64)}
    small = Small(info, None, "train")
    uniforms = torch.from_numpy(table(1, 1, np.arange(500), small.draws))
    result = small.augment(small.images, uniforms)
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = batched.normalize(small.images, Small.mean, Small.std)
    if mirror:
        expected = batched.flip(expected, uniforms[:, 0])
    expected = batched.crop(expected, uniforms[:, -2], uniforms[:, -1], padding)
    assert torch.equal(result, expected)
    double = small.augment(small.images, uniforms, torch.float64)
    assert double.dtype == torch.float64 and torch.equal(double, expected.double())
