"""CIFAR files that are damaged, that are something else, or that mean harm."""

import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from datasets import cifar_files
from runtime.errors import InputError

PIXELS = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)


def test_binary_planes_and_labels():
    """Of two records with a coarse and a fine label, pixel by pixel."""
    data = b"".join(bytes([coarse, fine]) + row.tobytes() for coarse, fine, row in
                    zip((1, 2), (30, 40), PIXELS))  # fmt: skip
    images, labels = cifar_files.binary(data, "FILE", 2, 100)
    assert images.shape == (2, 3, 32, 32) and labels.tolist() == [30, 40]
    for n, c, y, x in np.ndindex(2, 3, 32, 32):
        assert images[n, c, y, x] == data[n * 3074 + 2 + c * 1024 + y * 32 + x]


@pytest.mark.parametrize("data", [b"", bytes(3072), bytes(2 * 3073 - 1), bytes(3074)])
def test_binary_cut_short(data):
    expected = f"FILE has {len(data)} bytes: should be a whole number of records of 3073"
    with pytest.raises(InputError, match=expected):
        cifar_files.binary(data, "FILE", 1, 10)


def test_the_published_pickle_is_read():
    data = pickle.dumps({"data": PIXELS, "labels": [3, 4]}, 4)
    md5 = hashlib.md5(data).hexdigest()
    images, labels = cifar_files.pickled(data, "FILE", "labels", md5)
    assert np.array_equal(images.reshape(2, 3072), PIXELS) and images.shape == (2, 3, 32, 32)
    assert labels.tolist() == [3, 4] and labels.dtype == np.int64


@pytest.mark.parametrize("data", [pickle.dumps({"data": PIXELS, "labels": [1, 2]}), b"", b"text"])
def test_other_pickles_are_refused(data):
    published = "0123456789abcdef" * 2
    with pytest.raises(InputError) as error:
        cifar_files.pickled(data, "FILE", "labels", published)
    message = str(error.value)
    assert message.startswith("FILE is not the published file")
    assert hashlib.md5(data).hexdigest() in message and published in message
    assert message.endswith("should be in the binary version") and "\n" not in message


class Evil:
    """Pickles as a call, which would be made while unpickling."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("call", [os.mkdir, eval, np.save, getattr], ids=lambda call: call.__name__)
def test_a_pickle_runs_nothing(tmp_path, protocol, call):
    trace = str(tmp_path / "trace")
    arguments = {eval: (f"open({trace!r}, 'w')",), np.save: (trace, 1), getattr: (trace, "upper")}
    attack = Evil(call, *arguments.get(call, (trace,)))
    data = pickle.dumps({"data": attack, "labels": [1]}, protocol)
    with pytest.raises(InputError) as error:
        cifar_files.pickled(data, "FILE", "labels", "c99cafc152244af753f735de768cd75f")
    assert str(error.value).startswith("FILE is not the published file")
    assert os.listdir(tmp_path) == []


def pack(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, kind, data in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(data), "/etc/passwd"
            tar.addfile(member, io.BytesIO(data))


def test_odd_members_of_an_archive(tmp_path):
    """Links and devices are passed over, paths are ignored, nothing is written."""
    links = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
    members = [("x/test", kind, b"") for kind in links]
    members += [("../../test", tarfile.REGTYPE, b"1"), ("/other", tarfile.REGTYPE, b"2")]
    path = str(tmp_path / "a.tar.gz")
    pack(path, members)
    assert cifar_files.archive(path, {"test", "train"}) == {"test": b"1"}
    assert os.listdir(tmp_path) == ["a.tar.gz"]


def test_archives_that_are_refused(tmp_path):
    path = str(tmp_path / "a.tar.gz")

    def refused():
        with pytest.raises(InputError) as error:
            cifar_files.archive(path, {"test"})
        return str(error.value)

    pack(path, [("a/test", tarfile.REGTYPE, b"1"), ("b/test", tarfile.REGTYPE, b"2")])
    assert refused() == f"{path} holds test twice: not the published archive"

    pack(path, [("a/test", tarfile.REGTYPE, np.random.default_rng(0).bytes(50000))])
    with open(path, "r+b") as file:
        file.truncate(40000)
    assert f"{path} is damaged" in refused()

    random = np.random.default_rng(0).bytes(50000)
    for kind, place in (("gz", -8), ("xz", 2000)):  # gzip's checksum is behind the last member
        pack(path, [("a/test", tarfile.REGTYPE, random)], f"w:{kind}")
        assert len(cifar_files.archive(path, {"test"})["test"]) == 50000
        with open(path, "r+b") as file:
            data = bytearray(file.read())
            data[place] ^= 1
            file.seek(0)
            file.write(data)
        assert f"{path} is damaged" in refused()

    with open(path, "wb") as file:
        file.write(b"<html>not found</html>")
    assert f"{path} is damaged or not a .tar.gz archive" in refused()

    bomb = tarfile.TarInfo("test")
    bomb.size = 1 << 40
    with open(path, "wb") as file:
        file.write(bomb.tobuf())
    assert refused() == f"{path} holds {1 << 40} bytes: not the published archive"
