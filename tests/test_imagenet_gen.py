"""The list of the images in a folder."""

import os
import re
import types

import numpy as np
import pytest
from PIL import Image

from datasets import imagenet, imagenet_gen
from runtime.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)  # (H, W, 3)


def options(data, test_only=False, order="text", skip=False):
    settings = {"testOnly": test_only, "classOrder": order, "skipCorrupt": skip}
    return types.SimpleNamespace(data=str(data), **settings)


def make(folder, *names):
    """Files below a folder, each a small PNG whatever its name says; names may be bytes."""
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            Image.fromarray(PIXELS).save(file, "png")


def index(folder, cache):
    imagenet_gen.exec(options(folder), str(cache))
    return dict(np.load(cache, allow_pickle=False))


def test_the_list(tmp_path, capsys):
    data = tmp_path / "data"
    make(data / "train", "b/2.JPEG", "b/1.jpg", "b/notes.txt", "a/x.PnG", "c/.hidden.jpg")
    make(data / "train", ".git/x.png", "readme.txt", "a/sub/readme.txt")
    make(data / "val", "b/9.webp", "a/3.bmp", "unknown_but_empty/notes.txt")
    info = index(data, tmp_path / "list.npz")
    assert info["classes"].tolist() == [b"a", b"b", b"c"]  # the empty one keeps its number
    assert info["train_paths"].tolist() == [b"a/x.PnG", b"b/1.jpg", b"b/2.JPEG"]
    assert info["train_targets"].tolist() == [0, 1, 1]
    assert info["val_paths"].tolist() == [b"a/3.bmp", b"b/9.webp"]
    assert info["val_targets"].tolist() == [0, 1]
    assert info["signature"].shape == ()
    assert str(info["signature"]) == imagenet_gen.signature(options(data))
    out, notes = capsys.readouterr()
    endings = ".jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp .avif .jp2"
    left, then = f"=> files left out, because their names do not end in {endings}: 1", "; export"
    assert notes.splitlines() == [
        f"{left} ('{data}/val/unknown_but_empty/notes.txt'){then} HEIC and others as JPEG",
        "=> classes without a validation image: 1 ('c')",
        f"{left} ('{data}/train/b/notes.txt'){then} HEIC and others as JPEG",
        "=> classes without a training image: 1 ('c')",
    ]
    assert out.splitlines() == [
        "=> Generating list of images",
        " | finding all validation images",
        " | finding all training images",
        f" | saving list of images to {tmp_path / 'list.npz'}",
    ]
    assert sorted(os.listdir(tmp_path)) == ["data", "list.npz"]  # nothing temporary is left


def test_validation_images_alone(tmp_path):
    make(tmp_path / "val", "b/9.png", "a/3.bmp")
    alone, cache = options(tmp_path, test_only=True), tmp_path / "list.npz"
    with pytest.raises(InputError, match="cannot list '.*train'"):
        imagenet_gen.classes(options(tmp_path))
    assert imagenet.classes(alone) == ["a", "b"]
    imagenet_gen.exec(alone, str(cache))
    info = dict(np.load(cache, allow_pickle=False))
    assert info["val_paths"].tolist() == [b"a/3.bmp", b"b/9.png"] and not len(info["train_paths"])
    # with training images, their classes count, and the list is another one
    make(tmp_path / "train", "0/1.png", "a/1.png", "b/1.png")
    assert imagenet.classes(alone) == ["0", "a", "b"]
    assert imagenet_gen.signature(alone) == imagenet_gen.signature(options(tmp_path))
    assert imagenet_gen.signature(alone) != str(info["signature"])


def test_classes(tmp_path):
    make(tmp_path / "train", "zebra/1.png", "Ähre/1.png", "ant/1.png", ".cache/1.png")
    assert imagenet.classes(options(tmp_path)) == ["ant", "zebra", "Ähre"]  # by their bytes
    assert imagenet.stem == "imagenet"


def test_odd_names_lead_to_their_files(tmp_path):
    names = ["käse/1.png", "käse/two\nlines.png", "käse/ two  spaces .png", b"raw\xff/\xfe\x80.png"]
    make(tmp_path / "train", *names)
    make(tmp_path / "val", *names)
    info = index(tmp_path, tmp_path / "list.npz")
    dataset = imagenet.create(info, options(tmp_path), "val")
    assert dataset.size() == 4
    for i in range(4):
        image, target = dataset.get(i)
        np.testing.assert_array_equal(np.rint(image * 255), PIXELS.transpose(2, 0, 1))
        assert target == (0 if i < 3 else 1)
    os.remove(os.path.join(os.fsencode(tmp_path), b"val", os.fsencode(names[3])))
    with pytest.raises(InputError, match=r"\\udcfe\\udc80\.png': No such file"):
        dataset.get(3)


def test_links_are_followed_without_looping(tmp_path):
    make(tmp_path / "store", "cats/1.png", "single.png")
    make(tmp_path / "data" / "train", "dogs/1.png")
    make(tmp_path / "data" / "val", "dogs/1.png")
    train = tmp_path / "data" / "train"
    (train / "cats").symlink_to(tmp_path / "store" / "cats")
    (train / "dogs" / "2.png").symlink_to(tmp_path / "store" / "single.png")
    (train / "dogs" / "up").symlink_to(train)
    (train / "dogs" / "again").symlink_to(train / "dogs")
    info = index(tmp_path / "data", tmp_path / "list.npz")
    assert info["train_paths"].tolist() == [b"cats/1.png", b"dogs/1.png", b"dogs/2.png"]


@pytest.mark.parametrize("names", ["0 1 10 11 2", "00 1 007 12", "9", "8 9"])
def test_the_order_of_numbers(names, tmp_path):
    for name in names.split():
        make(tmp_path / "data", f"train/{name}/1.png", f"val/{name}/1.png")
    by_number = options(tmp_path / "data", order="number")
    assert imagenet.classes(options(tmp_path / "data")) == sorted(names.split())
    assert imagenet.classes(by_number) == sorted(names.split(), key=int)
    info = imagenet_gen.exec(by_number, str(tmp_path / "list.npz"))
    for path, target in zip(info["val_paths"], info["val_targets"]):
        assert path == info["classes"][target] + b"/1.png"
    assert imagenet_gen.signature(by_number) != imagenet_gen.signature(options(tmp_path / "data"))
    make(tmp_path / "data", "train/1a/1.png")
    with pytest.raises(
        InputError, match="-classOrder number: the name of '.*/1a' should be a whole number"
    ):
        imagenet.classes(by_number)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", [os.mkfifo, lambda path: os.symlink("nowhere", path)])
def test_what_is_no_file_is_named_before_the_training(tmp_path, split, kind):
    make(tmp_path, "train/a/1.png", "val/a/1.png", "val/a/3.png")
    kind(tmp_path / split / "a" / "2.png")
    words = f"{split}/a/2.png' is not a file, or is a broken link; repair"
    with pytest.raises(InputError, match=words):
        index(tmp_path, tmp_path / "list.npz")
    imagenet_gen.exec(options(tmp_path, skip=True), str(tmp_path / "list.npz"))
    assert b"a/2.png" in np.load(tmp_path / "list.npz")[f"{split}_paths"]  # skipped when it is read


def test_the_signature_follows_the_folders(tmp_path):
    make(tmp_path / "train", "a/1.png", "b/1.png")
    make(tmp_path / "val", "a/1.png")

    def signature():
        return imagenet_gen.signature(options(tmp_path))

    def age():
        """The clock of the file system may tick too slowly for a test."""
        for split in ("train", "val"):
            for folder in (tmp_path / split).iterdir():
                os.utime(folder, ns=(1, 1))

    seen = []
    changes = [
        lambda: None,
        lambda: make(tmp_path / "train", "a/2.png"),
        lambda: (tmp_path / "val" / "a" / "1.png").rename(tmp_path / "val" / "a" / "3.png"),
        lambda: (tmp_path / "train" / "a" / "2.png").unlink(),
        lambda: make(tmp_path / "train", "c/1.png"),
        lambda: (tmp_path / "train" / "c").rename(tmp_path / "train" / "d"),
        # on object stores and squashfs no time changes
        lambda: (make(tmp_path / "val", "a/4.png"), age()),
        lambda: ((tmp_path / "train" / "a" / "1.png").unlink(), age()),
        lambda: ((tmp_path / "train" / "b").rename(tmp_path / "train" / "e"), age()),
    ]
    for change in changes:
        age()
        before = signature()
        assert signature() == before
        change()
        seen.append(signature() != before)
    assert seen == [False] + [True] * 8


@pytest.mark.parametrize(
    "files, message",
    [
        ([], "cannot list '.*/data': No such file"),
        (["train/a/1.png", "val/readme"], "no images .*in .*val'"),
        (["train/a/readme", "val/a/1.png"], "no images .*in .*train'"),
        (["train/readme", "val/a/1.png"], "no class folders in .*train'"),
        (["train/a/1.png", "val/1.png"], "val/1.png' is not directly inside a class folder"),
        (["train/1.png", "train/a/1.png", "val/a/1.png"], "train/1.png' is not directly inside"),
        (["train/a/b/c/1.png", "val/a/1.png"], "b/c/1.png' is .* or with -valShare <class>/<im"),
        (
            ["train/a/1.png", "val/b/1.png"],
            "class not found: .*val/b' holds images, but train has no",
        ),
    ],
)
def test_folders_in_disorder(tmp_path, files, message):
    make(tmp_path / "data", *files)
    with pytest.raises(InputError, match=message):
        index(tmp_path / "data", tmp_path / "list.npz")
    assert not any(name.startswith("list") for name in os.listdir(tmp_path))


SYSTEM = ["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"]


@pytest.mark.parametrize("name", SYSTEM)
def test_folders_of_systems_are_no_classes(tmp_path, name):
    data = options(tmp_path / "data")
    make(tmp_path / "data", "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png")
    before, stamp = index(tmp_path / "data", tmp_path / "list.npz"), imagenet_gen.signature(data)
    make(tmp_path / "data", *(f"{split}/{name}/1.png" for split in ("train", "val")))
    assert imagenet_gen.signature(data) == stamp and imagenet.classes(data) == ["a", "b"]
    make(tmp_path / "data", f"{name}/1.png", f"val/b/{name}/1.png/2.png", f"train/{name}/a/2.png")
    after = index(tmp_path / "data", tmp_path / "list.npz")
    for key in before.keys() - {"signature"}:
        np.testing.assert_array_equal(after[key], before[key])


ACCENTS = "caf\u00e9", "cafe\u0301"  # the same word: as most systems and as macOS code it


@pytest.mark.parametrize("train, val", [ACCENTS, ACCENTS[::-1], ACCENTS[:1] * 2, ACCENTS[1:] * 2])
def test_accents_of_class_names_may_be_coded_in_both_ways(tmp_path, train, val):
    files = [f"train/{train}/1.png", f"val/{val}/1.png", "train/tea/1.png", "val/tea/1.png"]
    make(tmp_path / "data", *files)
    data = options(tmp_path / "data")
    info = imagenet_gen.exec(data, str(tmp_path / "list.npz"))
    assert imagenet.classes(data) == [ACCENTS[0], "tea"]
    assert info["val_targets"].tolist() == [0, 1]
    dataset = imagenet.create(info, data, "val")
    assert [dataset.get(i)[1] for i in range(2)] == [0, 1]


def test_two_folders_of_one_name_are_refused(tmp_path):
    make(tmp_path, *(f"train/{name}/1.png" for name in ACCENTS))
    with pytest.raises(InputError, match="train' has two folders 'café', with accents coded diff"):
        imagenet.classes(options(tmp_path))


@pytest.mark.parametrize(
    "extra, kind", [("train/c/1.png", "validation"), ("val/c/1.png", "training")]
)
def test_classes_without_images_are_noted(tmp_path, capsys, extra, kind):
    make(tmp_path, "train/a/1.png", "val/a/1.png", extra)
    os.makedirs(tmp_path / "train" / "c", exist_ok=True)
    index(tmp_path, tmp_path / "list.npz")
    assert capsys.readouterr().err == f"=> classes without a {kind} image: 1 ('c')\n"


@pytest.mark.parametrize(
    "files, splits, holds_out, message",
    [
        ("train/a val/a", "train val", False, ""),
        ("val/a", "val", False, ""),
        (
            "train/a valid/a",
            "train val",
            False,
            "DIR/val; .* has 'train', 'valid'; rename DIR/valid to val$",
        ),
        ("test/a", "val", False, "has 'test'; rename DIR/test to val$"),
        ("training/a val/a", "train val", False, "`train` directory: .* has 'training', 'val'$"),
        (
            "a/a b/a c/a d/a",
            "train val",
            False,
            "has 'a', 'b', 'c', ...; if these are the classes,",
        ),
        ("val/a", "train val", False, "has 'val'$"),
        ("", "train val", False, "has no folders$"),
        ("train/a val/a", "train val", True, ""),
        ("train/a Test/a", "train val", True, "has 'Test', 'train'; rename DIR/Test to val$"),
        ("train/a", "train val", False, "or only val is missing, -valShare 0.2 holds out a fifth"),
        ("train/a", "train val", True, ""),
        ("cat dog", "train val", True, ""),
        ("val/a", "train val", True, "has 'val'$"),
        ("", "train val", True, "has no folders$"),
        ("photos/train/a photos/val/a", "train val", False, "'photos', .* -data DIR/photos$"),
        ("x/a/1 y/train/a", "train val", True, "where train/ is in DIR/y: give -data DIR/y$"),
        ("photos/val/a", "val", False, "where val/ is in DIR/photos: give -data DIR/photos$"),
        ("train/train", "train val", True, ""),  # a class, of COCO for one
    ],
)
def test_another_layout_is_named_with_what_is_there(tmp_path, files, splits, holds_out, message):
    data = tmp_path / "data"
    data.mkdir()
    make(data, *(f"{name}/1.png" for name in files.split()))
    if message:
        with pytest.raises(InputError, match=message.replace("DIR", re.escape(str(data)))) as error:
            imagenet.check_folders(str(data), splits.split(), holds_out)
        assert "must hold train/<class>/<image> and val/<class>/<image>" in str(error.value)
        return
    imagenet.check_folders(str(data), splits.split(), holds_out)
    if "train" in splits:
        info = index(data, tmp_path / "list.npz")
        assert len(info["train_paths"]) == len(info["classes"])
        assert len(info["val_paths"]) == files.count("val")


@pytest.mark.parametrize(
    "train, classes",
    [
        ([], ["a", "b"]),  # no train/ at all
        (["notes.txt"], ["a", "b"]),
        (["stray.png"], ["a", "b"]),
        ([".hidden/x.png"], ["a", "b"]),
        (["a/", "b/", "c/"], ["a", "b", "c"]),
        (["a/notes.txt", "b/", "c/.x.png"], ["a", "b", "c"]),
        (["a/x.png", "b/"], ["a", "b"]),
    ],
)
def test_a_test_alone_needs_no_training_images(train, classes, tmp_path):
    """The class folders of train count where it has any, because their order is the net's."""
    data, cache = tmp_path / "data", tmp_path / "list.npz"
    make(data / "val", "a/1.png", "b/2.png")
    for name in train:
        (data / "train" / os.path.dirname(name)).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            make(data / "train", name)
    opt = options(data, test_only=True)
    info = imagenet_gen.exec(opt, str(cache))
    assert [name.decode() for name in info["classes"]] == classes
    assert info["val_targets"].tolist() == [0, 1]
    assert info["train_paths"].tolist() == [b"a/x.png"] * ("a/x.png" in train)
    assert imagenet_gen.is_valid(info, opt)
    if "a/x.png" not in train:
        training = options(data)
        with pytest.raises((InputError, OSError)):
            imagenet_gen.exec(training, str(cache))
        if "b/" in train:
            assert not imagenet_gen.is_valid(info, training)
