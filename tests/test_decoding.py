"""From image files to pixels and to the net's input: each decoder against Pillow."""

import io
import struct
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


def tiff(samples, bits, **tags):
    """An uncompressed TIFF of one strip: samples (H, W, bands), written by the specification."""
    height, width, bands = samples.shape
    if bits == 12:
        digits = "".join(f"{value:03x}" for value in samples.ravel())
        body = bytes.fromhex(digits + "0" * (len(digits) % 2))
    else:
        body = samples.tobytes()
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: bands, 278: height}
    entries |= {279: len(body), **{int(name[1:]): value for name, value in tags.items()}}
    ifd = struct.pack("<H", len(entries))
    for tag in sorted(entries):
        ifd += struct.pack("<HHII", tag, 4, 1, entries[tag])
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + ifd + bytes(4)


GREY = np.random.default_rng(5).integers(0, 4096, (6, 10, 1)).astype(np.uint16)


@pytest.fixture
def lines(monkeypatch, capsys):
    """A function that gives the lines on stderr since the last call; none was printed before."""
    monkeypatch.setattr(decoding, "_printed", bytearray(2))
    return lambda: capsys.readouterr().err.splitlines()


def decoded(data):
    pixels = decoding.decode(io.BytesIO(data))
    assert len(pixels.shape) == 3 and pixels.dtype in (np.uint8, np.uint16)
    return pixels[:, :, :3]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "how",
    [
        {"format": "JPEG"},
        {"format": "JPEG", "kind": "CMYK"},
        {"format": "PNG"},
        {"format": "WEBP", "lossless": True},
        {"format": "TIFF"},
        {"format": "TIFF", "compression": "tiff_lzw"},
    ],
    ids=lambda how: " ".join(map(str, how.values())),
)
def test_the_orientation_is_not_followed_and_one_line_says_so(tmp_path, lines, how, orientation):
    how = {"kind": "RGB", **how}
    exif = Image.Exif()
    exif[274] = orientation
    expected = decoded(saved(**how, size=(20, 30)))
    for name in "ab":
        (tmp_path / name).write_bytes(saved(**how, size=(20, 30), exif=exif.tobytes()))
    np.testing.assert_array_equal(decoding.decode(tmp_path / "a")[:, :, :3], expected)
    photo = decoding.Photo(tmp_path / "b", np.empty(0, np.uint8), turbojpeg.decoder())
    pixels, _ = photo.decode_region((0, 0, 30, 20))
    np.testing.assert_array_equal(pixels[:, :, :3], expected)
    found = lines()
    assert len(found) == (orientation > 1) and all("/a', carry an" in line for line in found)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MMno"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_of_no_account(lines, exif, format):
    np.testing.assert_array_equal(
        decoded(saved("RGB", (20, 30), format=format, exif=exif)),
        decoded(saved("RGB", (20, 30), format=format)),
    )
    assert lines() == []


def test_nor_is_that_of_16_bits_in_a_tiff():
    expected = decoded(tiff(GREY, 16))
    for orientation in range(1, 9):
        np.testing.assert_array_equal(decoded(tiff(GREY, 16, _274=orientation)), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_white_is_0(bits):
    samples = GREY if bits == 16 else (GREY // 16).astype(np.uint8)
    positive = decoded(tiff(samples, bits))
    negative = decoded(tiff(samples, bits, _262=0))
    np.testing.assert_array_equal(negative, 2**bits - 1 - positive)
    np.testing.assert_array_equal(positive, np.repeat(samples, 3, 2))


def test_a_tiff_of_12_bits_has_the_white_of_12_bits(lines):
    expected = np.rint(np.repeat(GREY, 3, 2) / 4095 * 65535)
    np.testing.assert_array_equal(decoded(tiff(GREY, 12)), expected)
    assert lines() == []


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_12_bits_in_16_are_read_as_they_are_and_one_line_says_so(lines, format):
    for largest, count in ((4095, 1), (4095, 0), (65535, 0), (0, 0)):
        file = io.BytesIO()
        grey = np.minimum(GREY[:, :, 0] * np.uint16(16), largest)
        if format == "PPM":  # old versions of Pillow write none of 16 bits
            file.write(b"P5 10 6 65535 " + grey.astype(">u2").tobytes())
        else:
            Image.fromarray(grey).save(file, format)
        np.testing.assert_array_equal(decoded(file.getvalue())[:, :, 0], grey)
        assert [line[:28] for line in lines()] == ["=> some pictures are nearly "] * count


def test_12_bits_in_16_bit_colours_are_noted(lines):
    colours = np.repeat(GREY, 3, 2)
    np.testing.assert_array_equal(decoded(tiff(colours, 16, _262=2)), colours // 256)
    assert len(lines()) == 1


def patched_frame(kind=0xC0, bits=8):
    """The header of a JPEG file with another kind of frame or other bits, and with a thumbnail."""
    exif = Image.Exif()
    exif[40092] = JPEGS["RGB2 17x33"]  # a comment will do
    data = saved("RGB", (64, 48), format="JPEG", exif=exif.tobytes())
    place = data.rindex(b"\xff\xc0")
    return (
        data[: place + 1]
        + bytes([kind])
        + data[place + 2 : place + 4]
        + bytes([bits])
        + data[place + 5 :]
    )


UNREADABLE = {
    "a TIFF of 13 bands": tiff(np.zeros((4, 4, 13), np.uint8), 8),
    "a TIFF of 5 bands": tiff(np.zeros((4, 4, 5), np.uint16), 16),
    "a TIFF of 32-bit floating point numbers": tiff(np.zeros((4, 4, 3), "f4"), 32, _339=3, _262=2),
    "a TIFF of 64-bit floating point numbers": tiff(np.zeros((4, 4, 1), "f8"), 64, _339=3),
    "a TIFF of 64 bits": tiff(np.zeros((4, 4, 1), "i8"), 64),
    "a JPEG of 12 bits": patched_frame(0xC1, 12),
    "a lossless JPEG of 16 bits": patched_frame(0xC3, 16),
    "HEIC": b"\0\0\0\x24ftypheic" + bytes(99),
    "AVIF": b"\0\0\0\x24ftypavif" + bytes(99),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_pillow_cannot_read_is_named(kind, capfd):
    with pytest.raises(InputError, match=f"it is {kind}, which Pillow cannot read; export"):
        decoding.decode(io.BytesIO(UNREADABLE[kind]))
    assert capfd.readouterr() == ("", "")  # nor do Pillow and libtiff write there


def test_a_tiff_of_grey_floats_is_named():
    with pytest.raises(InputError, match="its pixels are floating point numbers"):
        decoding.decode(io.BytesIO(tiff(np.zeros((4, 4, 1), "f4"), 32, _339=3)))


@pytest.mark.parametrize("format", sorted(decoding.FORMATS))
def test_each_format_is_read_as_pillow_reads_it(format):
    data = saved("RGB", (70, 90), format=format)
    np.testing.assert_array_equal(decoded(data), colors(data))


@pytest.mark.parametrize("kind", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("transparent", [False, True])
def test_pictures_of_all_modes_are_converted_strip_by_strip(monkeypatch, kind, transparent):
    source = Image.open(io.BytesIO(saved("RGB", (64, 33), format="PNG"))).convert(kind)
    if transparent and kind in ("L", "RGB", "P"):
        source.info["transparency"] = (3, 2, 5) if kind == "RGB" else 3
    expected = np.asarray(source.convert("RGB"))
    heights, convert = [], Image.Image.convert

    def converted(image, *args):
        heights.append(image.height)
        return convert(image, *args)

    monkeypatch.setattr(decoding, "STRIP", 10)
    monkeypatch.setattr(Image.Image, "convert", converted)
    np.testing.assert_array_equal(decoding.decode(source)[:, :, :3], expected)
    assert max(heights) == 10


def test_libtiff_does_not_write_between_our_lines(capfd):
    data = saved("RGB", (64, 48), format="TIFF", compression="tiff_lzw")
    place = 8 + len(data) // 3
    with pytest.raises(
        InputError, match="its pixels are damaged or lost: Using code not yet in table"
    ):
        decoding.decode(io.BytesIO(data[:place] + b"\xff" * 400 + data[place + 400 :]))
    assert capfd.readouterr() == ("", "")
    print("still there", file=sys.stderr)
    assert capfd.readouterr().err == "still there\n"


OPT = types.SimpleNamespace(
    data="nowhere", tenCrop=False, testScale=256, testCrop=224, trainCrop=224
)


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
