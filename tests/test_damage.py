"""Damaged photos are named, and whole ones are not: by the kind of damage and the form of file."""

import functools
import io
import re

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from support import damage as files

from datasets.image import damage, decoding, turbojpeg
from runtime.errors import InputError

jpeg = functools.cache(files.jpeg)
BUFFER = np.empty(0, np.uint8)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def found(data):
    """What `decode` says of a file: ("whole", "", pixels), ("odd", phrase, pixels) or ("lost", ...)

    The pixels of a file that is not lost are right.
    """
    odd = []
    try:
        result = decoding.decode(io.BytesIO(data), odd.append)
    except InputError as error:
        return "lost", str(error), None
    return ("odd" if odd else "whole"), "".join(odd), result[:, :, :3]


@pytest.mark.parametrize("form", files.FORMS)
def test_damaged_scans_are_named(form):
    """All but where what follows happens to be valid codes for nearly as many blocks."""
    accepted = []
    for kind, damaged in files.KINDS.items():
        for at in files.PLACES:
            data = damaged(jpeg(form), at, jpeg(form, seed=2))
            assert data != jpeg(form)
            kinds, reason, _ = found(data)
            if kinds != "lost":
                accepted.append((kind, at))
            else:
                assert re.match("cannot read the image 'the data': .", reason)
    assert all(re.search("another| (1|5|10) %", kind) for kind, _ in accepted), accepted
    assert len(accepted) <= 6, accepted


@pytest.mark.parametrize("form", files.FORMS)
@pytest.mark.parametrize(
    "how", [{}, {"optimize": True}, {"quality": 20}, {"quality": 100}, {"seed": 3}], ids=str
)
def test_whole_files_are_not_named(form, how):
    data = jpeg(form, **how)
    for whole in (data, data + b"\0" * 50, data + data):  # what telephones put behind the end
        kind, _, result = found(whole)
        assert kind == "whole"
        np.testing.assert_array_equal(result, pixels(data))


@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411", "Gray"])
def test_files_of_another_encoder(sampling):
    picture = files.picture(5, 61, 83)
    picture = picture[:, :, :1] if sampling == "Gray" else picture
    colors = "GRAY" if sampling == "Gray" else "RGB"
    picture = np.ascontiguousarray(picture)
    data = simplejpeg.encode_jpeg(picture, 90, colors, sampling)
    assert found(data)[0] == "whole"
    assert found(data[:-80] + b"\xff\xd9")[0] == "lost"


SMALL = jpeg("baseline 4:2:0 plain", size=(64, 64))
RARE = {
    "Motion-JPEG": files.without_tables(SMALL),
    "Motion-JPEG with restarts": files.without_tables(
        jpeg("baseline 4:2:0 restarts", size=(64, 64))
    ),
    "4:1:1": files.sampled(0x41),
    "4:4:1": files.sampled(0x14),
}


@pytest.mark.parametrize("kind", RARE)
def test_rare_but_valid_files_are_read_and_their_damage_is_named(tmp_path, kind):
    data, path = RARE[kind], tmp_path / "a.jpg"
    for decoder in (None, turbojpeg.decoder()):
        path.write_bytes(data)
        assert found(data)[0] == "whole"
        part, (x, y, w, h) = decoding.Photo(path, BUFFER, decoder).decode_region((30, 20, 25, 40))
        np.testing.assert_array_equal(part[y : y + h, x : x + w, :3], pixels(data)[20:60, 30:55])
        for damaged in (data[:-300] + data[-100:], data[:-300], data[:-300] + b"\xff\xd9"):
            path.write_bytes(damaged)
            assert found(damaged)[0] == "lost"
            with pytest.raises(InputError, match="its pixels are damaged or lost: "):
                decoding.Photo(path, BUFFER, decoder).decode_region((0, 0, 9, 9))


@pytest.mark.parametrize(
    "luma, colors",
    [
        *((luma, 3) for luma in (0x11, 0x21, 0x22, 0x41, 0x14, 0x42, 0x24, 0x31, 0x13, 0x32)),
        *((luma, 4) for luma in (0x11, 0x21, 0x22, 0x41, 0x14, 0x31, 0x13, 0x32)),
    ],
)
def test_all_ways_of_sampling_are_read_and_named_if_cut_short(luma, colors):
    data = files.sampled(luma, colors)
    kind, _, result = found(data)
    assert kind == "whole"
    np.testing.assert_array_equal(result, pixels(data))
    assert found(data[: len(data) // 2])[0] == "lost"


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (9, 8), (17, 33), (250, 16)])
@pytest.mark.parametrize("progressive", [False, True])
def test_flat_pictures_are_not_named(size, progressive):
    """Theirs are the longest runs of zeros that whole files have."""
    for kind, color in (("RGB", (255, 255, 255)), ("L", 0), ("CMYK", (0, 9, 200, 0))):
        file = io.BytesIO()
        picture = Image.new(kind, size[::-1], color)
        picture.save(file, "JPEG", progressive=progressive, optimize=True)
        assert found(file.getvalue())[0] == "whole"


def between(data, added):
    """The file with something in front of its first Huffman table."""
    place = data.index(b"\xff\xc4")
    return data[:place] + added + data[place:]


def patched(data, marker, offset, value):
    place = data.index(marker) + offset
    return data[:place] + value + data[place + len(value) :]


ODD = {
    "bytes between segments": lambda data: between(data, b"\0" * 5),
    "numbers of a sequential scan": lambda data: patched(data, b"\xff\xda", 11, b"\0\0\0"),
    "a colour transform of no meaning": lambda data: (  # in place of JFIF
        data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x09" + data[20:]
    ),
    "a version to come": lambda data: patched(data, b"JFIF\0", 5, b"\x09"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_with_whole_pixels_are_named_and_used(tmp_path, kind):
    whole = jpeg("baseline 4:2:0 plain")
    data = ODD[kind](whole)
    result = found(data)
    assert result[0] == "odd" and result[1]
    np.testing.assert_array_equal(result[2], pixels(whole))
    (tmp_path / "a.jpg").write_bytes(data)
    for decoder in (None, turbojpeg.decoder()):
        photo = decoding.Photo(tmp_path / "a.jpg", BUFFER, decoder)
        part, (x, y, w, h) = photo.decode_region((30, 20, 50, 60))
        assert photo.odd == result[1]
        np.testing.assert_array_equal(part[y : y + h, x : x + w, :3], pixels(whole)[20:80, 30:80])


@pytest.mark.parametrize("kind", [kind for kind in ODD if "sequential" not in kind])
def test_damage_behind_what_is_odd_is_named(kind):
    for way in ("hole 20 %", "cut, end put back"):
        assert found(ODD[kind](files.damaged(way, "baseline 4:2:0 plain", 0.5)))[0] == "lost"


@pytest.mark.parametrize("decoder", [None, turbojpeg.decoder()])
def test_a_broken_colour_profile_is_of_no_account(tmp_path, decoder):
    """libjpeg warns of it where it is read, which libturbojpeg does not do."""
    profile = b"\xff\xe2\0\x14ICC_PROFILE\0\x01\x02abcd"
    data = between(jpeg("baseline 4:2:0 plain"), profile)
    kind, _, result = found(data)
    assert kind == "whole"
    np.testing.assert_array_equal(result, pixels(data))
    (tmp_path / "a.jpg").write_bytes(data)
    assert decoding.Photo(tmp_path / "a.jpg", BUFFER, decoder).odd == ""
    cut = between(files.damaged("hole 20 %", "baseline 4:2:0 plain", 0.5), profile)
    assert found(cut)[0] == "lost"


@pytest.mark.parametrize("form", [form for form in files.FORMS if "restarts" in form])
def test_lost_and_moved_restart_intervals_are_named(form):
    data = jpeg(form)
    first, last = files.scan(data)
    last = min(last, data.index(b"\xff\xc4", first) if "progressive" in form else last)
    places = [m.start() for m in re.finditer(b"\xff[\xd0-\xd7]", data[:last]) if m.start() > first]
    a, b, c = places[2:5]
    for broken in (
        data[:a] + data[b:],  # one is missing
        data[:a] + data[b:c] + data[a:b] + data[c:],  # two have changed places
        data[: a + 2] + data[b + 2 : c] + data[b : b + 2] + data[a + 2 : b][:-9] + data[c:],
        data[:a] + b"\xff\xd6" + data[a + 2 :],
    ):
        assert found(broken)[0] == "lost"


@pytest.mark.parametrize("form", ["baseline 4:2:0 plain", "progressive 4:4:4 restarts"])
def test_any_byte_of_the_header(form):
    """Whatever is wrong there: named, or the same shape and no other error. Nothing runs long."""
    data = jpeg(form, size=(40, 50))
    for place in range(2, files.scan(data)[0]):
        for value in (255, data[place] ^ 1):
            mutated = data[:place] + bytes([value]) + data[place + 1 :]
            assert found(mutated)[0] in ("lost", "odd", "whole")


@pytest.mark.parametrize("region", [(0, 0, 40, 30), (100, 0, 60, 200)])
@pytest.mark.parametrize("form", files.FORMS)
def test_damage_outside_the_part_is_named(tmp_path, form, region):
    for kind in ("zeroed 30 %", "hole 5 %", "cut, end put back"):
        for at in (0.3, 0.85):
            (tmp_path / "a.jpg").write_bytes(files.damaged(kind, form, at))
            with pytest.raises(InputError, match=r"a\.jpg': its pixels are damaged or lost: "):
                decoding.Photo(tmp_path / "a.jpg", BUFFER, turbojpeg.decoder()).decode_region(
                    region
                )


def test_any_byte_of_a_png():
    file = io.BytesIO()
    Image.fromarray(files.picture(1, 40, 50)).save(file, "PNG")
    data = file.getvalue()
    assert found(data)[0] == "whole"
    for place in range(0, len(data), 37):
        assert found(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])[0] == "lost"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_other_formats_cut_short_are_named(kind):
    file = io.BytesIO()
    Image.fromarray(files.picture(1, 80, 90)).save(file, kind)
    data = file.getvalue()
    assert found(data)[0] == "whole"
    for share in (0.1, 0.5, 0.9, 0.98):
        assert found(data[: int(len(data) * share)])[0] == "lost"


@pytest.mark.parametrize("form", files.FORMS)
def test_without_simplejpeg(monkeypatch, tmp_path, form):
    """Pillow names what is cut short; all damage is named where libturbojpeg makes a crop."""
    monkeypatch.setattr(decoding, "simplejpeg", None)
    monkeypatch.setattr(damage, "simplejpeg", None)
    data = jpeg(form)
    assert found(data)[0] == "whole"
    np.testing.assert_array_equal(found(data)[2], pixels(data))
    for share in (0.3, 0.6, 0.85):
        assert found(files.damaged("cut", form, share))[0] == "lost"
    for kind in ("cut, end put back", "zeroed 30 %", "tail random"):
        (tmp_path / "a.jpg").write_bytes(files.damaged(kind, form, 0.3))
        with pytest.raises(InputError, match="its pixels are damaged or lost: "):
            decoding.Photo(tmp_path / "a.jpg", BUFFER, turbojpeg.decoder()).decode_region(
                (9, 9, 9, 9)
            )
