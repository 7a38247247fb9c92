"""prepare_imagenet.py on small archives made like the official ones."""

import hashlib
import io
import os
import tarfile
import types

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision.datasets import imagenet as torchvision_imagenet

import datasets
from datasets import prepare_imagenet
from runtime.errors import InputError

WNIDS = ("n01440764", "n02102040", "n03000684")
TRAIN, VAL = (4, 2, 3), (2, 1, 0, 2, 1, 0)  # images of each class; the class of each image of val


def jpeg(number):
    """A JPEG whose grey is its number."""
    file = io.BytesIO()
    Image.fromarray(np.full((40, 50, 3), number, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def archive(files, mode="w"):
    """The bytes of a tar file with these {name: bytes}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def meta():
    """meta.mat as in the development kit: its classes are numbered in another order than sorted."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O")]
    synsets = np.empty(4, [*kind, ("num_children", "O")])
    order = (2, 0, 1)  # ID n + 1 is class order[n]
    for n, wnid in enumerate([*(WNIDS[k] for k in order), "n00001740"]):
        synsets[n] = (n + 1, wnid, f"word {n}, other", "gloss", 0 if n < 3 else 3)
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets})
    labels = "".join(f"{order.index(k) + 1}\n" for k in VAL).encode()
    return file.getvalue(), labels


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A folder with the three archives, whose checksums are taken for the published ones."""
    folder, number = tmp_path / "archives", 0
    folder.mkdir()
    inner = {}
    for wnid, count in zip(WNIDS, TRAIN):
        images = {f"{wnid}_{n}.JPEG": jpeg(number + n) for n in range(count)}
        inner[wnid + ".tar"], number = archive(images), number + count
    mat, labels = meta()
    kit = "ILSVRC2012_devkit_t12/data/"
    truth = kit + "ILSVRC2012_validation_ground_truth.txt"
    images = {f"ILSVRC2012_val_{n + 1:08d}.JPEG": jpeg(100 + n) for n in range(len(VAL))}
    contents = {
        "train": ("ILSVRC2012_img_train.tar", archive(inner)),
        "val": ("ILSVRC2012_img_val.tar", archive(dict(reversed(images.items())))),
        "devkit": (
            "ILSVRC2012_devkit_t12.tar.gz",
            archive({kit + "meta.mat": mat, truth: labels}, "w:gz"),
        ),
    }
    known = {}
    for name, (file, data) in contents.items():
        (folder / file).write_bytes(data)
        known[name] = (file, hashlib.md5(data).hexdigest())
    monkeypatch.setattr(torchvision_imagenet, "ARCHIVE_META", known)
    return folder


def tree(folder):
    """{path: bytes} of all files but hidden ones."""
    paths = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def expected():
    files, number = {}, 0
    for wnid, count in zip(WNIDS, TRAIN):
        for n in range(count):
            files[f"train/{wnid}/{wnid}_{n}.JPEG"] = jpeg(number + n)
        number += count
    for n, k in enumerate(VAL):
        files[f"val/{WNIDS[k]}/ILSVRC2012_val_{n + 1:08d}.JPEG"] = jpeg(100 + n)
    return files


def test_all_images_in_the_folders_of_their_classes(archives, tmp_path, capsys):
    target = tmp_path / "new" / "imagenet"
    before = tree(archives)
    prepare_imagenet.main([str(archives), str(target)])
    assert tree(target) == expected() and tree(archives) == before
    out = capsys.readouterr().out
    assert " | 9 images in " in out and " | 6 images in " in out
    opt = types.SimpleNamespace(dataset="imagenet", data=str(target), gen=str(tmp_path / "gen"))
    opt.testOnly, opt.tenCrop, opt.testScale, opt.testCrop = False, False, 256, 224
    opt.trainCrop = 224
    opt.classOrder, opt.skipCorrupt = "text", False
    train, val = datasets.create(opt)
    assert sorted(train.targets) == [0] * 4 + [1] * 2 + [2] * 3 and val.size() == 6


def test_again_nothing_changes(archives, tmp_path, capsys):
    target = tmp_path / "imagenet"
    prepare_imagenet.main([str(archives), str(target)])
    times = {path: path.stat().st_mtime_ns for path in target.rglob("*.JPEG")}
    capsys.readouterr()
    prepare_imagenet.main([str(archives), str(target)])
    assert capsys.readouterr().out.count(" exists already and stays as it is") == 2
    assert times == {path: path.stat().st_mtime_ns for path in target.rglob("*.JPEG")}


def test_killed(archives, tmp_path, monkeypatch):
    """A process that ends at once while a split is unpacked; then the same command."""
    target, extract = tmp_path / "imagenet", torchvision_imagenet.extract_archive
    with monkeypatch.context() as patch:
        patch.setattr(
            torchvision_imagenet, "extract_archive", lambda *args: (extract(*args), os._exit(9))
        )
        child = os.fork()
        if not child:
            try:
                prepare_imagenet.prepare(str(archives), str(target))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert list(target.glob(".train.*.tmp/train/*.tar")) and not (target / "train").exists()
    prepare_imagenet.main([str(archives), str(target)])
    assert tree(target) == expected() and not list(target.glob(".*.tmp"))


@pytest.mark.parametrize("name", ["train", "val", "devkit"])
def test_no_member_is_written_outside(archives, tmp_path, monkeypatch, name):
    """Even in an archive whose MD5 is the published one."""
    known = dict(torchvision_imagenet.ARCHIVE_META)
    file = known[name][0]
    data = archive({"../../../outside": b"x"}, "w:gz" if file.endswith("gz") else "w")
    (archives / file).write_bytes(data)
    known[name] = (file, hashlib.md5(data).hexdigest())
    monkeypatch.setattr(torchvision_imagenet, "ARCHIVE_META", known)
    with pytest.raises(InputError, match="cannot unpack to"):
        prepare_imagenet.main([str(archives), str(tmp_path / "a" / "b" / "c")])
    assert not list(tmp_path.rglob("outside"))


def test_train_or_val_alone(archives, tmp_path):
    (archives / "ILSVRC2012_img_train.tar").rename(tmp_path / "train.tar")
    prepare_imagenet.main([str(archives), str(tmp_path / "a")])
    assert tree(tmp_path / "a").keys() == {n for n in expected() if n.startswith("val")}
    (archives / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(InputError, match="devkit_t12.tar.gz is missing"):
        prepare_imagenet.main([str(archives), str(tmp_path / "b")])
    (archives / "ILSVRC2012_img_val.tar").unlink()
    with pytest.raises(InputError, match="has no ILSVRC2012_img_train.tar or ILSVRC2012_img_val"):
        prepare_imagenet.main([str(archives), str(tmp_path / "b")])
    (tmp_path / "train.tar").rename(archives / "ILSVRC2012_img_train.tar")
    prepare_imagenet.main([str(archives), str(tmp_path / "a")])
    assert tree(tmp_path / "a") == expected()


def test_a_damaged_archive_is_refused_before_anything_is_unpacked(archives, tmp_path):
    path = archives / "ILSVRC2012_img_train.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="train.tar is not the published archive"):
        prepare_imagenet.main([str(archives), str(tmp_path / "imagenet")])
    assert not tree(tmp_path / "imagenet")


def test_too_small_a_disk(archives, tmp_path, monkeypatch):
    few = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(prepare_imagenet.shutil, "disk_usage", lambda path: few)
    with pytest.raises(InputError, match="needs 0.0 GB more, but 0.0 GB are free"):
        prepare_imagenet.main([str(archives), str(tmp_path / "imagenet")])
    assert not tree(tmp_path / "imagenet")


@pytest.mark.parametrize("words", [[], ["a", "b", "c"], ["no/such/folder"]])
def test_bad_words(words, capsys):
    with pytest.raises(SystemExit) as caught:
        prepare_imagenet.main(words)
    assert caught.value.code == 2 and capsys.readouterr().err.startswith("prepare_imagenet.py: ")
