"""Caches that are missing, stale or damaged; datasets by file name; the example of the README."""

import os
import re
import shutil
import sys
import types

import numpy as np
import pytest

import datasets
import opts
from datasets import cache, cifar10_gen, in_memory
from datasets.draws import held_out
from runtime.errors import InputError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture
def opt(cifar, tmp_path):
    """CIFAR-10 in a copy of our own; -gen is a folder in a folder that is not there yet."""
    shutil.copytree(cifar, tmp_path / "data")
    data, gen = str(tmp_path / "data"), str(tmp_path / "new" / "gen")
    return types.SimpleNamespace(dataset="cifar10", data=data, gen=gen)


def path_of(opt):
    """The only file in -gen."""
    [name] = os.listdir(opt.gen)
    assert re.fullmatch(opt.dataset + r"(-[0-9a-f]{12})?\.npz", name)
    return os.path.join(opt.gen, name)


def made(opt, capsys):
    """The datasets, and whether their cache was made just now, and the lines printed."""
    before = os.stat(path_of(opt)) if os.path.exists(opt.gen) else None
    train, val = datasets.create(opt)
    assert (train.size(), val.size()) == (35, 21)
    after = os.stat(path_of(opt))
    new = before is None or (before.st_ino, before.st_mtime_ns) != (after.st_ino, after.st_mtime_ns)
    captured = capsys.readouterr()
    return train, new, captured.err + captured.out


def test_a_cache_is_made_once(opt, capsys):
    first, new, text = made(opt, capsys)
    assert new and " | saving CIFAR-10 dataset to " in text and "making it again" not in text
    again, new, text = made(opt, capsys)
    assert not new and text == ""
    assert np.array_equal(first.images, again.images)


def test_changed_data_are_noticed(opt, capsys):
    first, _, _ = made(opt, capsys)
    path = os.path.join(opt.data, "cifar-10-batches-bin", "data_batch_1.bin")
    with open(path, "r+b") as file:  # same size, another pixel
        file.seek(1)
        file.write(bytes([255 - int(first.images[0, 0, 0, 0])]))
    later = os.stat(path).st_mtime_ns + 1_000_000
    os.utime(path, ns=(later, later))  # the clock of a file system may be coarse
    second, new, text = made(opt, capsys)
    assert new and "describes data that has changed since: making it again" in text
    assert second.images[0, 0, 0, 0] == 255 - first.images[0, 0, 0, 0]
    assert not made(opt, capsys)[1]


def test_each_folder_has_its_cache(opt, tmp_path, monkeypatch, capsys):
    """Runs on other data that prepare them at the same time in one -gen."""
    other = types.SimpleNamespace(**{**vars(opt), "data": opt.data + "2"})
    shutil.copytree(opt.data, other.data)
    exec, began = cifar10_gen.exec, []

    def slowly(ours, path):  # between the writing and the reading the other run does all
        found = exec(ours, path)
        if ours is opt:
            began.append(cache.info(other))
        return found

    monkeypatch.setattr(cifar10_gen, "exec", slowly)
    first, [second] = cache.info(opt), began
    assert str(first["signature"]).startswith(opt.data + os.sep)
    assert str(second["signature"]).startswith(other.data + os.sep)
    assert len(os.listdir(opt.gen)) == 2 and "again" not in capsys.readouterr().err
    # a link is the folder that it leads to
    os.symlink(opt.data, tmp_path / "link")
    opt.data = str(tmp_path / "link")
    monkeypatch.setattr(cifar10_gen, "exec", None)
    assert all(
        cache.info(ours)["signature"] == found["signature"]
        for ours, found in ((opt, first), (other, second))
    )


def test_what_was_made_is_used(opt, monkeypatch):
    """Machines that share -gen may have different images at the same path."""
    exec = cifar10_gen.exec

    def replaced(opt, path):
        found = exec(opt, path)
        np.savez(path, **{**found, "signature": "another machine", "train_labels": np.zeros(1)})
        return found

    monkeypatch.setattr(cifar10_gen, "exec", replaced)
    assert len(cache.info(opt)["train_labels"]) == 35


DAMAGE = "half byte empty text npy pickle unsigned flag offset"


@pytest.mark.parametrize("damage", DAMAGE.split())
def test_a_damaged_cache_is_made_again(opt, capsys, damage):
    first, _, _ = made(opt, capsys)
    path = path_of(opt)
    with open(path, "rb") as file:
        data = bytearray(file.read())
    if damage == "byte":
        data[len(data) // 2] ^= 1  # a pixel, say
    directory = data.rindex(b"PK\1\2")  # the entry of the last record
    if damage == "flag":
        data[directory + 8] |= 1 << 5  # "compressed patched data", which zipfile cannot read
    if damage == "offset":
        data[directory + 42 : directory + 46] = (len(data) - 28).to_bytes(
            4, "little"
        )  # struct.error
    data = {"half": data[: len(data) // 2], "empty": b"", "text": b"nothing"}.get(damage, data)
    with open(path, "wb") as file:
        file.write(data)
        if damage in ("npy", "pickle"):
            file.truncate(0)
            file.seek(0)
            np.save(file, np.array([1] if damage == "npy" else [None]), allow_pickle=True)
    if damage == "unsigned":
        np.savez(path, train_images=np.zeros(3))
    again, new, text = made(opt, capsys)
    assert new and f"=> {path} is damaged or of another version: making it again" in text
    assert np.array_equal(first.images, again.images)
    assert not made(opt, capsys)[1]


def test_a_failed_preparation_leaves_no_cache(opt, capsys):
    path = os.path.join(opt.data, "cifar-10-batches-bin", "test_batch.bin")
    with open(path, "ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="test_batch.bin"):
        datasets.create(opt)
    assert os.listdir(opt.gen) == []


def test_a_gen_that_is_no_folder(opt, tmp_path):
    opt.gen = str(tmp_path / "file")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"cannot prepare cifar10: File exists: {opt.gen}$"):
        datasets.create(opt)


def test_names_are_those_of_the_files():
    listed = set(os.listdir(os.path.join(ROOT, "datasets")))
    twins = {name for name in listed if name[:-3] + "_gen.py" in listed}
    assert datasets.names() == sorted(name[:-3] for name in twins)
    assert set(datasets.names()) >= {"cifar10", "cifar100", "digits", "imagenet"}
    for name in datasets.names():
        module = datasets.module(name)
        assert module.stem in ("cifar", "imagenet")
        assert callable(module.classes) and callable(module.create)


@pytest.mark.parametrize("name", ["mnist", "", "transforms", "cifar10_gen", "../opts", "cifar10."])
def test_an_unknown_dataset(name):
    with pytest.raises(InputError, match="unknown dataset .* cifar10, cifar100, digits, imagenet"):
        datasets.module(name)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder that belongs to the package as if its files lay in datasets/."""
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("datasets."):
            del sys.modules[name]
            vars(datasets).pop(name.partition(".")[2], None)


def test_the_readmes_example_works_as_it_stands(package):
    with open(os.path.join(ROOT, "datasets", "README.md"), encoding="utf-8") as file:
        text = file.read()
    for name, code in re.findall(r"\(`(\w+\.py)`\):\n\n```python\n(.*?)```", text, re.DOTALL):
        (package / name).write_text(code)
    assert "stripes" in datasets.names()
    opt = types.SimpleNamespace(dataset="stripes", data="", gen=str(package / "gen"))
    train, val = datasets.create(opt)
    assert (train.size(), val.size()) == (512, 64)
    assert datasets.module("stripes").classes(opt) == ["upright", "level"]
    mean, std = train.images.double().mean((0, 2, 3)), train.images.double().std((0, 2, 3))
    assert np.allclose(mean, train.mean, atol=0.05) and np.allclose(std, train.std, atol=0.05)
    batch = val.augment(val.images, None)
    assert batch.shape == (64, 3, 32, 32) and val.get(1)[1] == 1


SPLITS = [("digits", "-valShare 0.1"), ("cifar10", "-fold 2/3"), ("imagenet", "-valShare 0.3")]


@pytest.mark.parametrize("dataset, words", SPLITS)
def test_held_out_images_are_those_of_train_with_the_test_transform(
    dataset, words, cifar, photos, tmp_path, capsys
):
    data = {"digits": "", "cifar10": cifar, "imagenet": photos}[dataset]
    words = f"-dataset {dataset} -depth {18 if dataset == 'imagenet' else 20} {words}".split()
    opt = opts.parse([*words, *(["-data", data] if data else []), "-gen", str(tmp_path)])
    whole, test = datasets.create(opt)
    train, val, again = datasets.create_split(opt)
    labels = np.asarray(getattr(whole, "targets", getattr(whole, "labels", None)))
    held = np.flatnonzero(held_out(labels, opt.valShare, opt.fold, opt.manualSeed))
    rest = np.setdiff1d(np.arange(whole.size()), held)
    assert f"=> {len(held)} of {whole.size()} training images are held" in capsys.readouterr().err
    assert again.size() == test.size() and val.input_spec() == test.input_spec()
    for part, indices in ((train, rest), (val, held)):
        assert part.size() == len(indices)
        for i in (0, len(indices) - 1):
            image, target = part.get(i)
            theirs, label = whole.get(indices[i])
            assert np.array_equal(image, theirs) and target == label
    ours, theirs = (s.transform()(whole.get(held[0])[0], None) for s in (val, test))
    assert np.array_equal(ours, theirs)
    other = datasets.create_split(opt.replaced(manualSeed=1))
    assert other[0].fingerprint() != train.fingerprint() != whole.fingerprint()
    assert other[1].fingerprint() != val.fingerprint()


def test_a_dataset_of_ones_own_that_cannot_hold_images_out(opt, monkeypatch):
    monkeypatch.delattr(in_memory.Images, "subset")
    ours = types.SimpleNamespace(**vars(opt), valShare=0.1, fold="", manualSeed=0)
    with pytest.raises(InputError, match="-dataset cifar10 cannot hold images out: .*`subset`"):
        datasets.create_split(ours)
