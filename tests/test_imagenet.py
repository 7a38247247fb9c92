"""Images of every kind that is found in folders, and the chains of transforms."""

import io
import os
import struct
import types
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from datasets import imagenet
from datasets.image import decoding
from runtime.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)  # (H, W, 3)
GREY = PIXELS[:, :, 0]
PLANES = PIXELS.transpose(2, 0, 1)


def options(data, **more):
    return types.SimpleNamespace(
        data=str(data),
        **{"tenCrop": False, "testScale": 256, "testCrop": 224, "trainCrop": 224, **more},
    )


# decoding


def smooth():
    """A picture that JPEG keeps well: (40, 50, 3)."""
    y, x = np.mgrid[:40, :50]
    return np.stack([5 * x, 6 * y, 100 + 2 * x + y], 2).astype(np.uint8)


LOSSLESS = {
    "rgb.png": Image.fromarray(PIXELS),
    "rgb.ppm": Image.fromarray(PIXELS),
    "rgb.bmp": Image.fromarray(PIXELS),
    "rgb.tif": Image.fromarray(PIXELS),
    "grey.png": Image.fromarray(GREY),
    "grey.pgm": Image.fromarray(GREY),
    "rgba.png": Image.fromarray(np.dstack([PIXELS, GREY])),
    "grey_alpha.png": Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(255 - GREY)]),
    "bilevel.png": Image.fromarray(GREY > 127),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_kinds(tmp_path, name):
    LOSSLESS[name].save(tmp_path / name)
    expected = PLANES
    if name.startswith("grey"):
        expected = np.stack([GREY] * 3)
    if name.startswith("bilevel"):
        expected = np.stack([np.where(GREY > 127, 255, 0)] * 3).astype(np.uint8)
    result = decoding.load_image(tmp_path / name)
    np.testing.assert_array_equal(result, expected, strict=True)
    assert result.flags.c_contiguous


@pytest.mark.parametrize("extra", [{}, {"transparency": bytes(range(64))}, {"transparency": 3}])
def test_palette(tmp_path, extra):
    numbers = GREY % 64
    colours = np.random.default_rng(1).integers(0, 256, (64, 3), dtype=np.uint8)
    picture = Image.fromarray(numbers)
    picture.putpalette(colours.tobytes())
    for name in ("p.png", "p.gif"):
        if name == "p.gif" and isinstance(extra.get("transparency"), bytes):
            continue  # a GIF knows one transparent colour only
        picture.save(tmp_path / name, **extra)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # one line for every such image would be a nuisance
            result = decoding.load_image(tmp_path / name)
        np.testing.assert_array_equal(result, colours[numbers].transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey", "cmyk", "webp"])
def test_lossy_kinds(tmp_path, kind):
    picture, expected = Image.fromarray(smooth()), smooth().astype(float)
    if kind == "grey":
        picture, expected = Image.fromarray(smooth()[:, :, 0]), expected[:, :, :1]
    if kind == "cmyk":  # inks: black takes from every colour
        cmyk = np.dstack([255 - smooth(), np.full((40, 50), 64, np.uint8)])
        picture, expected = Image.fromarray(cmyk, "CMYK"), expected * (255 - 64) / 255
    suffix = "webp" if kind == "webp" else "jpeg"
    picture.save(tmp_path / "picture", suffix, quality=98, progressive=kind == "progressive")
    result = decoding.load_image(tmp_path / "picture").transpose(1, 2, 0).astype(float)
    assert result.shape == (40, 50, 3)
    assert abs(result - expected).mean() < 3  # the loss; another orientation or inversion: > 50
    if kind == "grey":
        assert (result == result[:, :, :1]).all()


@pytest.mark.parametrize("suffix", ["png", "pgm", "tif"])
def test_sixteen_bits_of_grey(tmp_path, suffix):
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(32, 128)
    values[-1, -1] = 65535
    path = tmp_path / f"deep.{suffix}"
    if suffix == "pgm":  # old Pillows read these, but do not write them
        path.write_bytes(b"P5 128 32 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    expected = np.stack([values.astype(np.float32) * np.float32(1 / 65535)] * 3)
    np.testing.assert_array_equal(get(path), expected, strict=True)
    rounded = np.stack([np.floor(values / 65535 * 255 + 0.5)] * 3)
    np.testing.assert_array_equal(decoding.load_image(path), rounded)


def get(path):
    """What the dataset returns for this file."""
    info = {"val_paths": np.array([os.fsencode(path.name)]), "val_targets": np.array([4])}
    dataset = imagenet.create(info, options(path.parent), "val")
    dataset.folder = os.fsencode(path.parent)
    image, target = dataset.get(0)
    assert target == 4 and type(target) is int and image.flags.c_contiguous
    return image


def test_get_multiplies_by_the_rounded_reciprocal(tmp_path):
    bytes_ = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(bytes_).save(tmp_path / "all.png")
    image = get(tmp_path / "all.png")
    products = bytes_.astype(np.float32) * np.float32(1 / 255)
    np.testing.assert_array_equal(image, np.stack([products] * 3), strict=True)
    quotients = bytes_.astype(np.float32) / np.float32(255)
    assert (products != quotients).any()  # the last bit tells the two apart


def test_content_decides_not_the_name(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "really_png.jpg", "png")
    np.testing.assert_array_equal(decoding.load_image(tmp_path / "really_png.jpg"), PLANES)


@pytest.mark.parametrize("how", [str, os.fsencode, lambda path: io.BytesIO(path.read_bytes())])
def test_kinds_of_source(tmp_path, how):
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    np.testing.assert_array_equal(decoding.load_image(how(path)), PLANES)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot read the image '(.*a.png|the data)': "):
        decoding.load_image(how(path))


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(PIXELS).save(tmp_path / "turned.jpg", exif=exif)
    assert decoding.load_image(tmp_path / "turned.jpg").shape == (3, 40, 50)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "ppm"])
def test_truncated_images_are_named(tmp_path, suffix):
    path = tmp_path / f"short.{suffix}"
    Image.fromarray(PIXELS).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(InputError, match=rf"cannot read the image '.*short\.{suffix}': \w+"):
        decoding.load_image(path)


@pytest.mark.parametrize("content", [b"", b"not an image at all", b"\xff\xd8\xff\xe0", b"\x89PNG"])
def test_other_content_is_named(tmp_path, content):
    (tmp_path / "odd.jpg").write_bytes(content)
    with pytest.raises(
        InputError, match=r"odd\.jpg': its format is not one of JPEG, .* header is broken"
    ):
        get(tmp_path / "odd.jpg")


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jpg': No such file or directory"):
        decoding.load_image(tmp_path / "gone.jpg")


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_images_that_are_no_pictures(tmp_path, kind):
    values = np.full((4, 4), 70000, kind)
    Image.fromarray(values).save(tmp_path / "data.tif")
    with pytest.raises(InputError, match=r"data\.tif': its pixels .* would be right"):
        decoding.load_image(tmp_path / "data.tif")


def header(width, height):
    """A PNG of this size that ends after its header."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    tail = struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + tail


def test_large_photos_are_allowed_and_absurd_ones_named(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(header(16320, 12240))  # the 200 megapixels of a telephone
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Image.open(path) as image:
            assert image.size == (16320, 12240)
    path.write_bytes(header(100000, 100000))
    with pytest.raises(InputError, match=r"large\.png': .*10000000000 pixels"):
        decoding.load_image(path)


# the dataset


def test_validation_chain():
    image = np.random.default_rng(2).random((3, 256, 301), dtype=np.float32)
    mean, std = np.reshape(imagenet.mean, (3, 1, 1)), np.reshape(imagenet.std, (3, 1, 1))
    expected = ((image - mean) / std)[:, 16:240, 39:263]  # (301 - 224) / 2 rounded up
    chain = dataset("val").transform()
    np.testing.assert_allclose(chain(image), expected, rtol=0, atol=1e-6)
    ten = dataset("val", tenCrop=True).transform()(image)
    assert ten.shape == (10, 3, 224, 224)
    np.testing.assert_array_equal(ten[0], chain(image))
    small = dataset("val", testScale=100, testCrop=64).transform()
    assert small(image).shape == (3, 64, 64)
    image = np.random.default_rng(3).random((3, 405, 320), dtype=np.float32)
    large = dataset("val", testScale=320, testCrop=320).transform()  # as in the paper's Table 5
    expected = ((image - mean) / std)[:, 43:363]  # (405 - 320) / 2 rounded up
    np.testing.assert_allclose(large(image), expected, rtol=0, atol=1e-6)


def dataset(split, **more):
    info = {f"{split}_paths": np.array([b"a/1.png"]), f"{split}_targets": np.array([0])}
    return imagenet.create(info, options("somewhere", **more), split)


def test_training_chain_asks_and_acts_in_order():
    asked = []

    class Fixed:
        """The whole image, no jitter, no noise, flipped."""

        def uniform(self, low=0.0, high=1.0):
            asked.append((low, round(high, 4)))
            if low:  # area and aspect: 1; jitter: none
                return 0.0 if low < 0 else 1.0
            return 0.4  # swaps the equal sides; flips

        def random(self, low, high):
            asked.append("place")
            return low

        def randperm(self, n):
            asked.append("order")
            return list(range(n))

        def normal(self, mean, std):
            asked.append("normal")
            return 0.0

    image = np.random.default_rng(3).random((3, 224, 224), dtype=np.float32)
    mean, std = np.reshape(imagenet.mean, (3, 1, 1)), np.reshape(imagenet.std, (3, 1, 1))
    result = dataset("train").transform()(image, Fixed())
    expected = ((image - mean) / std)[:, :, ::-1]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    jitter = ["order"] + [(-0.4, 0.4)] * 3
    crop = [(0.08, 1.0), (0.75, 1.3333), (0.0, 1.0), "place", "place"]
    assert asked == crop + jitter + ["normal"] * 3 + [(0.0, 1.0)]
