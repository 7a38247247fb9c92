"""The preparation of CIFAR: every published form gives what the original stored.

Data that are damaged, that are something else or that mean harm end in one sentence.
"""

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
from datasets import cifar10_gen, cifar100_gen, in_memory
from formats import t7
from runtime.errors import InputError

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference", "mainrun")
PARTS = ("data", "labels")  # of a split in the Lua's cache
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


@pytest.fixture
def publish_archive():
    """publish_archive(number, data): these bytes are the published archive of that version."""
    versions = cifar10_gen.SOURCE.versions
    kept = versions[:]

    def publish(number, data):
        versions[number] = versions[number]._replace(md5=hashlib.md5(data).hexdigest())

    yield publish
    versions[:] = kept


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("form", ["around", "inner", "archive", "around archive"])
def test_every_form_gives_what_the_lua_stored(tmp_path, forms, lua, number, form, publish_archive):
    where = data = tmp_path / "data"
    folder, archive, _ = cifar10_gen.SOURCE.versions[number]
    if "archive" in form:
        where.mkdir()
        pack(where / archive, folder, forms[folder])
        publish_archive(number, (where / archive).read_bytes())
        data = where if form == "around archive" else where / archive
    else:
        write(where / folder, forms[folder])
        data = where if form == "around" else where / folder
    before = sorted(str(path) for path in where.rglob("*"))
    assert_as_in_lua(*datasets.create(options(tmp_path, data)), lua)
    assert sorted(str(path) for path in where.rglob("*")) == before  # nothing was unpacked
    assert len(os.listdir(tmp_path / "gen")) == 1


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_earlier_caches_are_read(tmp_path, forms, lua, number, form, monkeypatch):
    """A cache with the signature that earlier versions wrote, spelled out, is not made again."""
    folder, archive, _ = cifar10_gen.SOURCE.versions[number]
    place = tmp_path / folder
    write(place, forms[folder])
    names = forms[folder]  # the five batches, then the test batch
    if form == "archive":
        place, names = tmp_path, [archive]
        pack(tmp_path / archive, "x", {})
    stats = [(place / name).stat() for name in names]
    marks = ", ".join(f"{stat.st_size} bytes at {stat.st_mtime_ns} ns" for stat in stats)
    place = place / archive if form == "archive" else place
    opt, splits = options(tmp_path, place), []
    for split in ("train", "val"):
        splits.append((lua[f"{split}_data"], lua[f"{split}_labels"].astype(np.int64) - 1))
    monkeypatch.setattr(
        cifar10_gen, "exec", lambda opt, path: in_memory.save(path, f"{place}: {marks}", *splits)
    )
    datasets.create(opt)
    monkeypatch.setattr(cifar10_gen, "exec", None)
    assert_as_in_lua(*datasets.create(opt), lua)


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


@pytest.mark.parametrize("module", [cifar10_gen, cifar100_gen])
@pytest.mark.parametrize("damage", ["empty", "short", "label"])
@pytest.mark.parametrize("place", [0, -1])
def test_a_damaged_file(tmp_path, module, damage, place):
    """The first or the last file of the binary version."""
    source = module.SOURCE
    files = [name + ".bin" for name in source.train + source.val]
    good = bytes(source.label_bytes - 1) + b"\x09" + bytes(3072)
    wrong = bytes(source.label_bytes - 1) + bytes([source.classes]) + bytes(3072)
    right = f"it should have records of {len(good)} bytes, one per image"
    bad, message = {
        "empty": (b"", f"has 0 bytes: {right}"),
        "short": ((good * 2)[:-1], f"has {len(good) * 2 - 1} bytes: {right}"),
        "label": (
            good * 2 + wrong,
            f"has a label {source.classes}: labels are 0 to {source.classes - 1}",
        ),
    }[damage]
    write(tmp_path / "data", {**dict.fromkeys(files, good), files[place]: bad})
    opt = options(tmp_path, tmp_path / "data", source.name.replace("-", "").lower())
    assert refused(opt) == f"{files[place]} of {tmp_path / 'data'} {message}"


@pytest.mark.parametrize("labels", [(3, 5), (9,), range(10)], ids=len)
def test_a_part_of_the_classes(tmp_path, labels, capsys):
    """The targets stay those of all classes, and one line says so."""
    images = np.zeros((len(labels), 3, 32, 32), np.uint8)
    files = [f"{name}.bin" for name in (*TRAIN, "test_batch")]
    write(tmp_path / "data", dict.fromkeys(files, records(images, labels)))
    train, val = datasets.create(options(tmp_path, tmp_path / "data"))
    assert train.labels.tolist() == [*labels] * 5 and val.labels.tolist() == [*labels]
    err = capsys.readouterr().err
    if len(labels) == 10:
        assert err == ""
    else:
        assert err == (
            f"=> {tmp_path / 'data'} has training images of only {len(labels)} of the 10 classes "
            "of CIFAR-10, but the net has outputs for all 10\n"
        )


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
    assert message.endswith("has only part of CIFAR-10: data_batch_4.bin is missing")
    # a whole python version beside it is as good
    write(tmp_path / "data" / "py", forms["cifar-10-batches-py"])
    datasets.create(options(tmp_path, tmp_path / "data" / "py"))


def test_no_dataset(tmp_path):
    (tmp_path / "data").mkdir()
    message = refused(options(tmp_path, tmp_path / "data"))
    assert "no CIFAR-10 in -data" in message and "cifar-10-python.tar.gz" in message
    assert "no such file or folder" in refused(options(tmp_path, tmp_path / "nowhere"))


class Evil:
    """Pickles as a call, which would be made while unpickling."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("call", [os.mkdir, eval, np.save, getattr], ids=lambda call: call.__name__)
def test_a_pickle_runs_nothing(tmp_path, forms, protocol, call):
    trace = str(tmp_path / "trace")
    arguments = {eval: (f"open({trace!r}, 'w')",), np.save: (trace, 1), getattr: (trace, "upper")}
    attack = Evil(call, *arguments.get(call, (trace,)))
    contents = forms["cifar-10-batches-py"]
    contents["data_batch_1"] = pickle.dumps({"data": attack, "labels": [1]}, protocol)
    write(tmp_path / "py", contents)
    message = refused(options(tmp_path, tmp_path / "py"))
    assert message.startswith(f"data_batch_1 of {tmp_path / 'py'} is not the published file (its ")
    assert sorted(os.listdir(tmp_path)) == ["gen", "py"]


def sparse():
    """A GNU sparse member whose map is cut short: tarfile raises a ValueError."""
    member = tarfile.TarInfo("x/data_batch_1.bin")
    member.pax_headers = {"GNU.sparse.map": "0", "GNU.sparse.size": str(1 << 40)}
    return member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


def foreign():
    """Files in place of an archive: name -> contents."""
    bomb = tarfile.TarInfo("x/data_batch_1.bin")
    bomb.size = 1 << 40
    name = tarfile.TarInfo("x")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 1 << 32  # which tarfile reads whole
    page = b"<html>not found</html>"
    return {"page": page, "empty": b"", "bomb": bomb.tobuf(), "name": name.tobuf(),
            "sparse": sparse()}  # fmt: skip


@pytest.mark.parametrize("kind", [*foreign(), "other"])
def test_only_a_published_archive_is_unpacked(tmp_path, forms, kind, monkeypatch):
    """The checksum comes before tarfile sees a byte of any other file."""
    path = tmp_path / "a.tar.gz"
    if kind == "other":  # whole, but packed by somebody else
        pack(path, "cifar-10-batches-bin", forms["cifar-10-batches-bin"])
    else:
        path.write_bytes(foreign()[kind])
    monkeypatch.setattr(tarfile, "open", None)
    message = refused(options(tmp_path, path))
    assert message.startswith(f"{path} is not a published archive of CIFAR-10 (its MD5 is ")
    assert message.endswith("); images of your own can be read from a folder")


def test_a_file_that_is_too_large(tmp_path):
    with open(tmp_path / "a.tar.gz", "wb") as file:
        file.truncate((1 << 28) + 1)
    message = refused(options(tmp_path, tmp_path / "a.tar.gz"))
    assert f"it has {(1 << 28) + 1} bytes, more than the limit of {1 << 28}" in message


@pytest.mark.parametrize("module", [cifar10_gen, cifar100_gen])
def test_what_is_published(module):
    source = module.SOURCE
    checksums = [version.md5 for version in source.versions]
    assert all(len(md5) == 32 and int(md5, 16) for md5 in checksums)
    # the python version as torchvision knows it
    theirs = getattr(torchvision.datasets, source.name.replace("-", ""))
    assert source.versions[1] == (theirs.base_folder, theirs.filename, theirs.tgz_md5)
    assert source.train == [name for name, _ in theirs.train_list]
    assert source.val == [name for name, _ in theirs.test_list]
    published = f"{source.name} as published, MD5 {checksums[0]}"
    assert module.signature(types.SimpleNamespace(data="", gen="gen")) == published


def lua_cache(lua, path, change=lambda tree: tree):
    """Write what cifar10-gen.lua leaves in gen/."""
    tree = {
        split: {name: torch.from_numpy(lua[f"{split}_{name}"].astype(np.uint8)) for name in PARTS}
        for split in ("train", "val")
    }
    path.parent.mkdir(exist_ok=True)
    t7.save(path, change(tree))


@pytest.mark.parametrize("where", ["gen", "file", "folder"])
def test_the_cache_of_the_lua_is_data(tmp_path, lua, where):
    folder = tmp_path / ("gen" if where == "gen" else "old")
    lua_cache(lua, folder / "cifar10.t7")
    data = {"gen": "", "file": folder / "cifar10.t7", "folder": folder}[where]
    assert_as_in_lua(*datasets.create(options(tmp_path, data)), lua)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: {"train": tree["train"]},
        lambda tree: {**tree, "val": {**tree["val"], "labels": tree["val"]["labels"] - 1}},
        lambda tree: {**tree, "val": {**tree["val"], "labels": tree["val"]["labels"][1:]}},
        lambda tree: {**tree, "val": {**tree["val"], "data": tree["val"]["data"].float()}},
        lambda tree: {**tree, "train": {**tree["train"], "labels": 3}},
        lambda tree: tree["train"]["data"],
    ],
)
def test_another_t7_is_no_cache(tmp_path, lua, change):
    lua_cache(lua, tmp_path / "cifar10.t7", change)
    assert "is not a cache of CIFAR-10" in refused(options(tmp_path, tmp_path / "cifar10.t7"))
