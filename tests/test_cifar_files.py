"""CIFAR files that are damaged, that are something else, or that mean harm."""

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
    images, labels = cifar_files.binary(data, "FILE", 2)
    assert images.shape == (2, 3, 32, 32) and labels.tolist() == [30, 40]
    for n, c, y, x in np.ndindex(2, 3, 32, 32):
        assert images[n, c, y, x] == data[n * 3074 + 2 + c * 1024 + y * 32 + x]


@pytest.mark.parametrize("data", [b"", bytes(3072), bytes(2 * 3073 - 1), bytes(3074)])
def test_binary_cut_short(data):
    expected = f"FILE has {len(data)} bytes: should be a whole number of records of 3073"
    with pytest.raises(InputError, match=expected):
        cifar_files.binary(data, "FILE", 1)


def test_fortran_order_is_told_by_the_pickle():
    data = pickle.dumps({"data": np.asfortranarray(PIXELS), "labels": [3, 4]}, 4)
    images, labels = cifar_files.pickled(data, "FILE", "labels")
    assert np.array_equal(images.reshape(2, 3072), PIXELS) and labels.tolist() == [3, 4]


def dumped(**content):
    return pickle.dumps(content, 4)


@pytest.mark.parametrize(
    "data, expected",
    [
        (dumped(data=PIXELS, labels=[1, 2])[:-10], "is not a pickle of the python version"),
        (b"nonsense", "is not a pickle of the python version"),
        (b"", "is not a pickle of the python version"),
        (pickle.dumps([1, 2]), "holds no dict"),
        (dumped(labels=[1, 2]), "lacks the array 'data' or the list 'labels'"),
        (dumped(data=PIXELS), "lacks the array 'data' or the list 'labels'"),
        (dumped(data=PIXELS, fine_labels=[1, 2]), "lacks the array 'data' or the list 'labels'"),
        (dumped(data=PIXELS, labels=[1]), "one whole number as label for each image"),
        (dumped(data=PIXELS, labels=[1, 2.5]), "one whole number as label for each image"),
        (dumped(data=PIXELS[:, 1:], labels=[1, 2]), "bytes of shape (images, 3072)"),
        (dumped(data=PIXELS[:0], labels=[]), "bytes of shape (images, 3072)"),
        (dumped(data=PIXELS.astype("i1"), labels=[1, 2]), "bytes of shape (images, 3072)"),
        (dumped(data=np.array([[None] * 3072]), labels=[1]), "bytes of shape (images, 3072)"),
    ],
)
def test_pickles_of_something_else(data, expected):
    with pytest.raises(InputError) as error:
        cifar_files.pickled(data, "FILE", "labels")
    assert str(error.value).startswith("FILE") and expected in str(error.value)


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
        cifar_files.pickled(data, "FILE", "labels")
    assert str(error.value).startswith("FILE is a pickle that would run ")
    assert f".{call.__name__}: refused" in str(error.value)
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

    with open(path, "wb") as file:
        file.write(b"<html>not found</html>")
    assert f"{path} is damaged or not a .tar.gz archive" in refused()

    bomb = tarfile.TarInfo("test")
    bomb.size = 1 << 40
    with open(path, "wb") as file:
        file.write(bomb.tobuf())
    assert f"{path} holds test with {1 << 40} bytes" in refused()
