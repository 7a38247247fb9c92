"""From image files to pixels and to the net's input: each decoder against Pillow."""

import io
import sys
import types

import numpy as np
import pytest
from PIL import Image

from datasets import imagenet
from datasets.draws import Draws
from datasets.image import decoding, turbojpeg
from runtime.errors import InputError


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
    pixels = decoding.decode_jpeg(JPEGS[name])
    assert (pixels is None) == name.startswith("CMYK")  # left to Pillow
    expected = np.asarray(Image.open(io.BytesIO(JPEGS[name])).convert("RGB"))
    if pixels is not None:
        np.testing.assert_array_equal(pixels[:, :, :3], expected)


def test_damaged_jpegs_are_refused_by_simplejpeg():
    whole = JPEGS["RGB2 75x50"]
    assert decoding.decode_jpeg(whole) is not None
    for data in (b"", whole[:2], whole[:300], whole[:-300], b"\x89PNG" + whole[4:]):
        assert decoding.decode_jpeg(data) is None
    noisy = bytearray(whole)
    noisy[-400:-300] = bytes(100)
    assert decoding.decode_jpeg(bytes(noisy)) is None


def colors(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def regions(height, width):
    """Some 30 parts (x, y, width, height): corners, single pixels, anything."""
    random = np.random.default_rng(3)
    yield 0, 0, width, height
    yield width - 1, height - 1, 1, 1
    for _ in range(30):
        left, right = np.sort(random.integers(0, width + 1, 2))
        top, bottom = np.sort(random.integers(0, height + 1, 2))
        if left < right and top < bottom:
            yield int(left), int(top), int(right - left), int(bottom - top)


@pytest.mark.parametrize("name", JPEGS)
def test_parts_of_jpegs_equal_pillow(name):
    decoder, data, expected = turbojpeg.decoder(), JPEGS[name], colors(JPEGS[name])
    height, width, _ = expected.shape
    if name.startswith("CMYK"):
        assert decoder.shape(data) is None  # left to Pillow
        return
    assert decoder.shape(data) == (height, width)
    for buffer in (np.full(4 * height * width, 7, np.uint8), np.empty(3, np.uint8)):
        for x, y, w, h in regions(height, width):
            pixels, (i, j, *size) = decoder.decode_region(data, (x, y, w, h), buffer)
            assert size == [w, h] and pixels.flags.c_contiguous
            part = pixels[j : j + h, i : i + w, :3]
            np.testing.assert_array_equal(part, expected[y : y + h, x : x + w], str((x, y, w, h)))


def test_a_small_part_is_not_all(tmp_path):
    """Nor is it on a first reading, which goes on to the last row."""
    (tmp_path / "a.jpg").write_bytes(JPEGS["RGB0 64x48"])
    for checked, rows in ((True, 32), (False, 56)):
        buffer = np.empty(99999, np.uint8)
        photo = decoding.Photo(tmp_path / "a.jpg", buffer, turbojpeg.decoder(), checked)
        pixels, (x, y, *size) = photo.decode_region((20, 20, 9, 9))
        assert photo.shape == (64, 48) and pixels.shape == (rows, 32, 4) and photo.pixels is None
        expected = colors(JPEGS["RGB0 64x48"])[20:29, 20:29]
        np.testing.assert_array_equal(pixels[y : y + 9, x : x + 9, :3], expected)
        assert size == [9, 9]


def test_a_file_cut_short_is_named_though_the_part_is_there(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEGS["RGB2 75x50"][:-60])
    for decoder in (None, turbojpeg.decoder()):
        with pytest.raises(
            InputError, match="cannot read the image '.*a.jpg': its pixels .* lost: Premature end"
        ):
            decoding.Photo(tmp_path / "a.jpg", np.empty(9, np.uint8), decoder).decode_region(
                (0, 0, 9, 9)
            )


def test_damage_since_the_check_is_named(tmp_path):
    data = bytearray(JPEGS["RGB2 75x50"])
    data[-400:-300] = bytes(100)
    (tmp_path / "a.jpg").write_bytes(data)
    decoder, buffer = turbojpeg.decoder(), np.empty(99999, np.uint8)
    photo = decoding.Photo(tmp_path / "a.jpg", buffer, decoder, checked=True)
    assert photo.pixels is None and photo.shape == (75, 50)
    with pytest.raises(InputError, match=r"a\.jpg': its pixels are damaged or lost"):
        photo.decode_region((3, 2, 40, 73))
    whole = JPEGS["RGB2 75x50"]
    assert decoder.shape(whole) == (75, 50)  # and goes on to decode others
    np.testing.assert_array_equal(
        decoder.decode_region(whole, (0, 0, 50, 75), photo.buffer)[0][:, :, :3], colors(whole)
    )


def test_files_that_are_no_jpeg_have_no_parts():
    decoder, whole = turbojpeg.decoder(), JPEGS["RGB2 75x50"]
    for data in (b"", whole[:300] + b"\xff\xd9", b"\x89PNG" + whole[4:], whole[:300]):
        assert decoder.shape(data) is None
        assert decoder.shape(whole) == (75, 50)  # the handle is none the worse


def test_without_the_library_or_with_an_old_one(monkeypatch):
    for names in ([], ["libnowhere.so"], [sys.modules["simplejpeg._jpeg"].__file__]):
        monkeypatch.setattr(turbojpeg, "_candidates", lambda names=names: names)
        assert turbojpeg.decoder() is None


OPT = types.SimpleNamespace(data="nowhere", tenCrop=False, testScale=256, testCrop=224)


@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize("split", ["train", "val"])
def test_prepare_equals_get_and_preprocess(tmp_path, monkeypatch, split, parts):
    if not parts:
        monkeypatch.setattr(turbojpeg, "decoder", lambda: None)
    grey16 = np.random.default_rng(1).integers(0, 65536, (60, 50), dtype=np.uint16)
    Image.fromarray(grey16).save(tmp_path / "deep.png")
    (tmp_path / "a.jpg").write_bytes(JPEGS["RGB2 64x48"])
    (tmp_path / "b.jpg").write_bytes(JPEGS["CMYKNone 75x50"])
    (tmp_path / "c.png").write_bytes(saved("P", (50, 60), format="PNG"))
    names = ["deep.png", "a.jpg", "b.jpg", "c.png"]
    info = {f"{split}_paths": np.array(names, "S"), f"{split}_targets": np.arange(4)}
    for ten in (False, True):
        opt = types.SimpleNamespace(**{**vars(OPT), "tenCrop": ten})
        dataset = imagenet.create(info, opt, split)
        dataset.folder = bytes(tmp_path)
        prepare, chain = dataset.fast_path(), dataset.transform()
        for i in range(4):
            result, target = prepare(i, Draws(2, 3, i))
            expected = chain(dataset.get(i)[0], Draws(2, 3, i))
            assert target == i and result.shape == expected.shape
            np.testing.assert_allclose(result, expected, rtol=0, atol=5e-6)  # see test_kernels
