"""The preparation of CIFAR: every published form gives what the original stored."""

import hashlib
import io
import os
import pickle
import tarfile
import types

import numpy as np
import pytest
import torch
import torchvision

import datasets
from datasets import cifar10, cifar10_gen, cifar100_gen, download
from runtime.errors import InputError

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference", "mainrun")
TRAIN = [f"data_batch_{i}" for i in range(1, 6)]


def options(tmp_path, data="", dataset="cifar10"):
    return types.SimpleNamespace(dataset=dataset, data=str(data), gen=str(tmp_path / "gen"))


@pytest.fixture(scope="module")
def lua():
    """What the original cifar10-gen.lua stored, with labels from 1: 35 train and 21 val images."""
    with np.load(os.path.join(HERE, "cifar10_gen.npz")) as file:
        return dict(file)


def records(images, *labels):
    """The binary version: for each image its labels, then the three planes."""
    return b"".join(bytes(row) + image.tobytes() for *row, image in zip(*labels, images))


def python2(images, labels, key):
    """The python version as Python 2 wrote it, opcode by opcode (cPickle, protocol 2)."""

    def text(word):
        return b"U" + bytes([len(word)]) + word.encode()

    def number(value):
        return b"M" + value.to_bytes(2, "little")

    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + b"K\x00\x85" + text("b")
    array += b"tR(K\x01" + number(len(images)) + number(3072) + b"\x86"
    array += b"cnumpy\ndtype\n(" + text("u1") + b"K\x00K\x01tR(K\x03" + text("|") + b"NNN"
    array += b"J\xff\xff\xff\xff" * 2 + b"K\x00tb\x89"
    array += b"T" + (3072 * len(images)).to_bytes(4, "little") + images.tobytes() + b"tb"
    return (
        b"\x80\x02}(" + text("batch_label") + text("training batch 1 of 5")
        + text(key) + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        + text("data") + array
        + text("filenames") + b"](" + text("leptodactylus_s_000004.png") * len(labels) + b"eu."
    )  # fmt: skip


def write(folder, contents):
    os.makedirs(folder)
    for name, data in contents.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)


def pack(path, folder, contents, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, data in {"readme.html": b"<html>", **contents}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def publish(monkeypatch, dataset, train, test):
    """Let torchvision list these files (name -> contents) as the published ones of its class."""
    for name, contents in (("train_list", train), ("test_list", test)):
        sums = [[file, hashlib.md5(data).hexdigest()] for file, data in contents.items()]
        monkeypatch.setattr(getattr(torchvision.datasets, dataset), name, sums)


@pytest.fixture
def forms(lua, monkeypatch):
    """The same images in both versions of CIFAR-10: folder name -> file name -> contents."""
    images, labels = lua["train_data"], lua["train_labels"] - 1
    cuts = [slice(i * 7, i * 7 + 7) for i in range(5)]
    binary = {f"{n}.bin": records(images[c], labels[c]) for n, c in zip(TRAIN, cuts)}
    python = {n: python2(images[c], labels[c], "labels") for n, c in zip(TRAIN, cuts)}
    images, labels = lua["val_data"], lua["val_labels"] - 1
    binary["test_batch.bin"] = records(images, labels)
    test = {"test_batch": python2(images, labels, "labels")}
    publish(monkeypatch, "CIFAR10", python, test)
    python.update(test)
    return {"cifar-10-batches-bin": binary, "cifar-10-batches-py": python}


def assert_as_in_lua(train, val, lua):
    for dataset, split, count in ((train, "train", 35), (val, "val", 21)):
        assert dataset.size() == count
        assert np.array_equal(dataset.images.numpy(), lua[f"{split}_data"])
        assert np.array_equal(dataset.labels.numpy() + 1, lua[f"{split}_labels"])
        assert dataset.images.dtype == torch.uint8 and dataset.labels.dtype == torch.int64
        image, target = dataset.get(3)
        assert image.dtype == np.float32 and target == lua[f"{split}_labels"][3] - 1
        assert np.array_equal(image, lua[f"{split}_data"][3])


@pytest.mark.parametrize("folder", ["cifar-10-batches-bin", "cifar-10-batches-py"])
@pytest.mark.parametrize("form", ["around", "inner", "archive", "around archive", "tar"])
def test_every_form_gives_what_the_lua_stored(tmp_path, forms, lua, folder, form):
    where = data = tmp_path / "data"
    archive = folder.replace("batches-bin", "binary").replace("batches-py", "python") + ".tar.gz"
    if "ar" in form.split("around")[-1]:
        where.mkdir()
        pack(where / archive, folder, forms[folder], "w" if form == "tar" else "w:gz")
        data = where if form == "around archive" else where / archive
    else:
        write(where / folder, forms[folder])
        data = where if form == "around" else where / folder
    before = sorted(str(path) for path in where.rglob("*"))
    assert_as_in_lua(*datasets.create(options(tmp_path, data)), lua)
    assert sorted(str(path) for path in where.rglob("*")) == before  # nothing was unpacked
    assert len(os.listdir(tmp_path / "gen")) == 1


@pytest.mark.parametrize("folder", ["cifar-100-binary", "cifar-100-python"])
def test_cifar100_takes_the_fine_labels(tmp_path, lua, folder, monkeypatch):
    contents = {}
    fine = {"train": np.arange(35) + 60, "val": np.arange(21)}  # 60..94, 0..20
    for split, name in (("train", "train"), ("val", "test")):
        images, labels = lua[f"{split}_data"], fine[split]
        if folder == "cifar-100-binary":
            contents[name + ".bin"] = records(images, labels // 5, labels)
        else:
            contents[name] = python2(images, labels, "fine_labels")
    if folder == "cifar-100-python":
        publish(monkeypatch, "CIFAR100", *({n: contents[n]} for n in ("train", "test")))
    write(tmp_path / folder, contents)
    for dataset, split in zip(datasets.create(options(tmp_path, tmp_path, "cifar100")), fine):
        assert np.array_equal(dataset.labels, fine[split])
        assert np.array_equal(dataset.images, lua[f"{split}_data"])


# What is wrong with the data


def refused(opt):
    with pytest.raises(InputError) as error:
        datasets.create(opt)
    assert not os.path.exists(opt.gen) or not os.listdir(opt.gen)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_label_out_of_range(tmp_path, forms):
    contents = forms["cifar-10-batches-bin"]
    contents["test_batch.bin"] = b"\x0a" + contents["test_batch.bin"][1:]
    write(tmp_path / "data", contents)
    message = refused(options(tmp_path, tmp_path / "data"))
    assert message == f"test_batch.bin of {tmp_path / 'data'} has a label 10: should be 0 to 9"


def test_a_changed_python_version(tmp_path, forms, lua):
    images, labels = lua["val_data"].reshape(-1, 3072), lua["val_labels"] - 1
    content = {"data": images, "labels": [int(label) for label in labels]}
    forms["cifar-10-batches-py"]["test_batch"] = pickle.dumps(content, 4)
    write(tmp_path / "py", forms["cifar-10-batches-py"])
    message = refused(options(tmp_path, tmp_path / "py"))
    assert message.startswith(f"test_batch of {tmp_path / 'py'} is not the published file")


def test_a_part_of_the_dataset(tmp_path, forms):
    contents = forms["cifar-10-batches-bin"]
    del contents["data_batch_4.bin"]
    write(tmp_path / "data" / "cifar-10-batches-bin", contents)
    message = refused(options(tmp_path, tmp_path / "data"))
    assert message.endswith("has only a part of CIFAR-10: data_batch_4.bin is missing")
    # a whole python version beside it is as good
    write(tmp_path / "data" / "py", forms["cifar-10-batches-py"])
    datasets.create(options(tmp_path, tmp_path / "data" / "py"))


def test_no_dataset(tmp_path):
    (tmp_path / "data").mkdir()
    message = refused(options(tmp_path, tmp_path / "data"))
    assert "no CIFAR-10 in -data" in message and "cifar-10-python.tar.gz" in message
    assert "no such file or folder" in refused(options(tmp_path, tmp_path / "nowhere"))


def test_an_archive_of_something_else(tmp_path):
    pack(tmp_path / "a.tar", "photos", {"a.jpg": b"1"})
    message = refused(options(tmp_path, tmp_path / "a.tar"))
    assert f"{tmp_path / 'a.tar'} holds no CIFAR-10" in message


# Without -data


@pytest.fixture
def published(tmp_path, forms, monkeypatch):
    """A folder in place of the authors' server, and the source with the checksum of what it has."""
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "gen").mkdir()
    pack(site / "cifar-10-binary.tar.gz", "x", forms["cifar-10-batches-bin"])
    monkeypatch.setattr(cifar10_gen, "URL", site.as_uri() + "/")
    md5 = download.checksum(str(site / "cifar-10-binary.tar.gz"))
    binary = cifar10_gen.SOURCE.binary._replace(md5=md5)
    return site, cifar10_gen.SOURCE._replace(binary=binary)


def test_download(tmp_path, published, lua, capsys):
    (site, source), opt, path = published, options(tmp_path), str(tmp_path / "gen" / "cifar10.npz")
    for attempt in range(2):
        cifar10_gen.exec(opt, path, source)
        with np.load(path) as info:
            assert_as_in_lua(*(cifar10.create(info, opt, split) for split in ("train", "val")), lua)
        os.remove(path)
        lines = capsys.readouterr().out.splitlines()
        if attempt == 0:
            url = f"{site.as_uri()}/cifar-10-binary.tar.gz"
            assert lines.pop(0) == f"=> Downloading CIFAR-10 dataset from {url}"
            os.remove(
                site / "cifar-10-binary.tar.gz"
            )  # the archive stays in -gen and is used again
        assert lines == [
            " | combining dataset into a single file",
            f" | saving CIFAR-10 dataset to {path}",
        ]


def test_offline(tmp_path, published, capsys):
    site, source = published
    os.remove(site / "cifar-10-binary.tar.gz")
    path = tmp_path / "gen" / "cifar-10-binary.tar.gz"
    path.write_bytes(b"cut short")
    with pytest.raises(InputError) as error:
        cifar10_gen.exec(options(tmp_path), str(tmp_path / "gen" / "cifar10.npz"), source)
    message = str(error.value)
    assert message.startswith(f"cannot download {site.as_uri()}/cifar-10-binary.tar.gz: ")
    assert f"put it at {path}" in message and message.endswith("-data DIR")
    assert f"{path} is not the published archive" in capsys.readouterr().err
    assert os.listdir(tmp_path / "gen") == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("module", [cifar10_gen, cifar100_gen])
def test_what_is_published(module):
    checksums = [version.md5 for version in (module.SOURCE.binary, module.SOURCE.python)]
    assert all(len(md5) == 32 and int(md5, 16) for md5 in checksums)
    # the python version as torchvision knows it
    python, theirs = module.SOURCE.python, getattr(torchvision.datasets, module.SOURCE.torchvision)
    assert python[:3] == (theirs.base_folder, theirs.filename, theirs.tgz_md5)
    assert list(python.train) == [name for name, _ in theirs.train_list]
    assert list(python.val) == [name for name, _ in theirs.test_list]
    assert module.signature(types.SimpleNamespace(data="")).endswith(checksums[0])
