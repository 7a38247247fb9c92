"""-train and -val: lists of images in place of class folders."""

import csv
import os
import re
import shutil
import types

import numpy as np
import pytest
from support.evaluations import pair
from support.runs import ROOT

import datasets
import evaluate
import opts
from datasets import image_lists, imagenet
from runtime.errors import InputError
from runtime.options import Options, defaults


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder; the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(**more):
    settings = {"dataset": "imagenet", "data": "none", "gen": "gen", "train": "", "val": ""}
    settings |= {"testOnly": False, "classOrder": "text", "skipCorrupt": False}
    settings |= {"tenCrop": False, "testScale": 256, "testCrop": 224, "trainCrop": 224}
    return types.SimpleNamespace(**{**settings, **more})


def write(file, rows, delimiter=",", encoding="utf-8", **form):
    """A list as csv writes it, so names may hold delimiters, quotes and line breaks."""
    os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
    with open(file, "w", newline="", encoding=encoding, errors="surrogateescape") as text:
        csv.writer(text, delimiter=delimiter, **form).writerows(rows)


def touch(*paths):
    """Files that are only listed, not read."""
    for path in paths:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        open(path, "wb").close()


def found(**given):
    """[(path, class name)] of both splits, and the names of the classes, as a run has them."""
    opt = options(**given)
    names = imagenet.classes(opt)
    return [
        [(os.path.abspath(split.name(i)), names[split.targets[i]]) for i in range(split.size())]
        for split in datasets.create(opt)
    ] + [names]


ROWS = [("b/1.jpg", "dog"), ("a 2.png", "cat"), ("b/3.jpg", 'Łoś, "elk"'), ("b/4.jpg", "dog")]
HEADS = [
    ([], lambda path, name: (path, name)),
    ([("path", "class")], lambda path, name: (path, name)),
    ([("Label", "note", "FileName")], lambda path, name: (name, "-", path)),
    ([("Image Path", "width", "height", "ClassName")], lambda path, name: (path, 3, 4, name)),
    ([("label", "img")], lambda path, name: (name, path)),
    ([("file_paths", "Labels", "data set")], lambda path, name: (path, name, "train")),
    ([("image_id", "category", "fold")], lambda path, name: (path, name, 3)),
]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("head, row", HEADS)
def test_forms(here, delimiter, head, row):
    touch(*(path for path, _ in ROWS))
    rows = [*head, *(row(*pair) for pair in ROWS)]
    forms = {}, {"encoding": "utf-8-sig"}, {"quoting": csv.QUOTE_ALL}, {"lineterminator": "\n"}
    for form in forms:
        shutil.rmtree("gen", ignore_errors=True)
        write("a.csv", rows, delimiter, **form)
        train, val, names = found(train="a.csv", val="a.csv")
        assert train == val == [(str(here / path), name) for path, name in ROWS]
        assert names == sorted({name for _, name in ROWS})


def test_lines_of_a_path_a_space_and_a_number(here):
    """As Caffe's val.txt; the numbers are sorted as numbers."""
    touch(*(f"{n}.jpg" for n in range(12)))
    (here / "v.txt").write_text("".join(f"{n}.jpg {n}\n" for n in reversed(range(12))) + "\n")
    _, val, names = found(val="v.txt", testOnly=True)
    assert names == [str(n) for n in range(12)] and val[0] == (str(here / "11.jpg"), "11")


@pytest.mark.parametrize(
    "text",
    [
        "\n \n{} ;a\n\n{};b\n  \n;\n",  # blank lines; what Excel leaves of deleted ones
        "{},a,\r{},b,,\r",
        '{}, a\n{}, "b"\n',
        "{}   a\n  {}  b\n",
        '{},"a"\r\n\r\n{},b',
    ],
)
def test_blanks(here, text):
    touch("1.jpg", "2.jpg")
    (here / "a.csv").write_bytes(text.format("1.jpg", "2.jpg").encode())
    train, _, names = found(train="a.csv", val="a.csv")
    assert [name for _, name in train] == names == ["a", "b"]


@pytest.mark.parametrize("first", ["a;b.jpg,1", '"a,b.jpg";1', '"a,b.jpg" 1', "a, b.jpg;1"])
def test_the_delimiter_is_not_sought_in_quotes(here, first):
    place = first.rpartition(first[-2])[0].strip('"')
    touch(place)
    (here / "a.csv").write_text(first if first[1] != ";" else f'"{place}",1')
    assert found(train="a.csv", val="a.csv")[0] == [(str(here / place), "1")]


@pytest.mark.parametrize(
    "names, order",
    [
        (["10", "9", "1", "01"], ["01", "1", "9", "10"]),
        (["9" * 5000, "1"], ["1", "9" * 5000]),  # more digits than int takes
        (["image", "label", "path"], ["image", "label", "path"]),  # no names of columns
    ],
)
def test_the_order_of_classes(here, names, order):
    touch("1.jpg")
    write("a.csv", [("1.jpg", name) for name in names])
    assert image_lists.classes("a.csv") == order


def test_a_number_is_the_place_of_a_named_class(here):
    touch("d/train/cat/1.jpg", "d/train/dog/1.jpg", "d/x.jpg", "d/y.jpg")
    write("v.csv", [("x.jpg", 1), ("y.jpg", "cat")])
    train, val, names = found(data="d", val="v.csv")
    assert names == ["cat", "dog"] and [name for _, name in val] == ["dog", "cat"]
    assert train == [(str(here / f"d/train/{name}/1.jpg"), name) for name in names]


def test_where_paths_and_lists_are_sought(here):
    """Below -data first, then beside the list, then in the current folder; several roots."""
    touch("d/1.jpg", "l/1.jpg", "1.jpg", "l/2.jpg", "2.jpg", "3.jpg")
    absolute = str(here / "d/../l/2.jpg")
    write("l/a.csv", [(f"{n}.jpg", "x") for n in (1, 2, 3)] + [("./1.jpg", "x"), (absolute, "x")])
    shutil.copy("l/a.csv", "d/b.csv")
    train, val, _ = found(data="d", train="l/a.csv", val="b.csv")
    places = ["d/1.jpg", "l/2.jpg", "3.jpg", "d/1.jpg", "l/2.jpg"]
    assert [path for path, _ in train] == [str(here / path) for path in places]
    places[1] = "2.jpg"  # beside d/b.csv there is none
    assert [path for path, _ in val] == [str(here / path) for path in places]
    os.rename(here / "d", here / "moved")  # the paths below -data are relative
    datasets.create(options(data="moved", train="l/a.csv", val="b.csv"))


def test_the_cache_knows_the_content(here, capsys):
    touch(*(f"d/{n}.jpg" for n in range(4)))
    rows = [(f"{n}.jpg", "xy"[n % 2]) for n in range(4)]
    for file in ("a.csv", "b.csv"):
        write(file, rows[:3])
    first = datasets.create(options(data="d", train="a.csv", val="b.csv"))
    capsys.readouterr()
    again = datasets.create(options(data="d", train="a.csv", val="b.csv"))
    assert "Generating" not in capsys.readouterr().out
    assert [s.fingerprint() for s in again] == [s.fingerprint() for s in first]
    datasets.create(options(data="d", train="b.csv", val="a.csv"))  # has a cache of its own
    assert "making it again" not in capsys.readouterr().err and len(os.listdir("gen")) == 2
    for change in (rows, rows[::-1], [(path, "z") for path, _ in rows]):
        write("a.csv", change)
        write("b.csv", change)
        train, val, names = found(data="d", train="a.csv", val="b.csv")
        assert [name for _, name in val] == [name for _, name in change]
        assert names == sorted({name for _, name in change})
        assert "making it again" in capsys.readouterr().err


@pytest.mark.parametrize("missing, then", [(5, ""), (10, ""), (3000, ", ...")])
def test_missing_files_are_named(here, capsys, missing, then):
    touch("d/0.jpg")
    write("a.csv", [("path", "class"), *((f"{n}.jpg", "x") for n in range(missing + 1))])
    opt = options(data="d", train="a.csv", val="a.csv")
    with pytest.raises(InputError) as error:
        datasets.create(opt)
    roots = f"they were looked for in '{here}/d/', '{here}'"
    few = ", ".join(f"'{n}.jpg' (line {n + 2})" for n in range(1, min(missing, 10) + 1)) + then
    counts = f"{missing} of {missing + 1} images are missing"
    assert str(error.value) == f"a.csv: {counts}: {few}; {roots}"
    opt.skipCorrupt = True
    assert datasets.create(opt)[0].size() == missing + 1


def test_repeated_images_are_noted(here, capsys):
    touch(*(f"d/{n}.jpg" for n in range(4)))
    write("a.csv", [("0.jpg", "x"), ("./0.jpg", "x"), (str(here / "d/0.jpg"), "x"), ("1.jpg", "x")])
    write("b.csv", [("1.jpg", "x"), ("2.jpg", "x"), ("d/../0.jpg", "x")])
    touch("d/d/none")
    datasets.create(options(data="d", train="a.csv", val="b.csv"))
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("=> ")]
    assert "=> images that a.csv has more than once: 1 ('0.jpg')" in notes
    assert "=> images that a.csv and b.csv both have: 2 ('0.jpg', '1.jpg')" in notes
    assert not any("b.csv has more than once" in line for line in notes)


@pytest.mark.parametrize(
    "text, error",
    [
        ("", "a.csv lists no images"),
        ("path,class\n", "a.csv lists no images"),
        ("1.jpg,x\n1.jpg\n", "a.csv, line 2: should have a path and a class"),
        ("1.jpg,x\n\n,x\n", "a.csv, line 3: should have a path and a class"),
        ("1.jpg,x\n1.jpg,  \n", "a.csv, line 2: should have a path and a class"),
        (f"1.jpg,{'x' * 200_000}\n", "cannot read a.csv: field larger"),
        ("1.jpg,tench, Tinca tinca\n", "line 1: should have a path and a class in UTF-8, .* ','"),
        ("0,1.jpg,x\n", "line 1: should have .*; the first line of a list with more columns names"),
        ("path class\n1.jpg cat\n1.jpg big cat\n", "line 3: should have .* separated by ' '"),
        ("# all of them\n1.jpg,x\n", "line 1: should have a path and a class"),
        ("path;width;kind\n1.jpg;2;x\n", "line 1: one of the columns should be called class, "),
        ("id,width,class\n1.jpg,2,x\n", "line 1: one of the columns should be called path, "),
        ("id,kind\n1.jpg,x\n", "1 of 2 images are missing: 'id' .line 1"),
        ("1.jpg,x".encode("utf-16"), "line 1: should have a path and a class in UTF-8"),
        (b"1.jpg,x\n1.jpg,\0y\n", "line 2: should have a path and a class in UTF-8"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0\1,\0\n", "line 1: should have a path and a class in UTF-8"),
    ],
)
def test_what_is_no_list(here, text, error):
    touch("1.jpg")
    (here / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=error):
        datasets.create(options(train="a.csv", val="a.csv"))


def test_a_list_that_is_too_large(here, monkeypatch):
    """An archive, say, which would fill memory."""
    monkeypatch.setattr(image_lists, "LARGEST", 6)
    touch("1.jpg")
    write("a.csv", [("1.jpg", "x")])
    for read in (imagenet.classes, datasets.create):
        with pytest.raises(InputError, match="it has 9 bytes, more than the limit of 6"):
            read(options(train="a.csv", val="a.csv"))


def test_a_class_that_only_val_has(here):
    touch("1.jpg")
    write("a.csv", [("1.jpg", "x")])
    write("b.csv", [("1.jpg", "x"), ("1.jpg", "y")])
    with pytest.raises(InputError, match="b.csv, line 2: no training image is of the class 'y'"):
        datasets.create(options(train="a.csv", val="b.csv"))


@pytest.mark.parametrize(
    "words, error",
    [
        ("-train no.csv", "File not found: no.csv (-train)"),
        ("-train a.csv", "-train lists only a part: give -val FILE as well, or -valShare 0.2"),
        ("-val a.csv", "-val lists only a part: give -train FILE as well\n"),
        ("-train a.csv -val .", "cannot read . (-val): "),
        ("-dataset cifar10 -val a.csv", "-train and -val list image files, which cifar10 does"),
        ("-train a.csv -valShare 0.2", None),
        ("-train a.csv -val a.csv -fold 1/2", None),
        ("-val a.csv -testOnly true", None),
    ],
)
def test_which_lists_are_needed(here, capsys, words, error):
    write("a.csv", [("1.jpg", "x")])
    if error is None:
        opts.parse(words.split())
        return
    with pytest.raises(SystemExit):
        opts.parse(words.split())
    assert f"main.py: {error}" in capsys.readouterr().err


@pytest.mark.parametrize("more", [{"valShare": 0.9}, {"fold": "3/3"}])
def test_too_few_images_to_hold_some_out(here, more):
    touch("1.jpg", "2.jpg")
    write("a.csv", [("1.jpg", "x"), ("2.jpg", "y")])
    opt = options(**{"train": "a.csv", "valShare": 0, "fold": "", "manualSeed": 0, **more})
    with pytest.raises(InputError, match="too few images to hold some out .* 2 in 2 classes"):
        datasets.create_split(opt)


def test_predictions_are_read_back(photos, here):
    """evaluate.py's table, of the same images in another order, gives the same results."""
    path, _ = pair(here, photos)["one"]
    words = [path, "-nThreads", "0", "-batchSize", "8", "-precision", "double"]
    results = evaluate.main([*words, "-data", photos, "-predictions", "p.csv"])
    head, *rows = csv.reader((here / "p.csv").read_text().splitlines())
    write("q.csv", [head, *rows[::-1]])
    assert evaluate.main([*words, "-val", "q.csv", "-predictions", "r.csv"]) == results
    assert (here / "r.csv").read_text() == (here / "q.csv").read_text()
    with pytest.raises(SystemExit):
        evaluate.main([*words, "-val", "q.csv", "-predictions", "q.csv"])


def test_what_classify_writes_is_read_back(here):
    touch("1.jpg", "2.jpg")
    head = ["path", "class1", "probability1", "class2", "probability2"]
    write("c.csv", [head, ["1.jpg", "cat", 0.9, "dog", 0.1], ["2.jpg", "dog", 0.8, "cat", 0.2]])
    assert [name for _, _, name in image_lists._rows("c.csv")] == ["cat", "dog"]


def test_names_of_any_bytes(here):
    odd = os.fsdecode(b"\xe9\xff, 1.jpg")
    touch(odd)
    write("a.csv", [(odd, os.fsdecode(b"s\xff")), (odd, "é"), (odd, "é")])
    train, _, names = found(train="a.csv", val="a.csv")
    assert len(names) == 2 and [path for path, _ in train] == [str(here / odd)] * 3


def write_listing(folder):
    """A folder's listing as train.csv, by the lines of docs/data.md."""
    page = os.path.join(ROOT, "docs", "data.md")
    with open(page, encoding="utf-8") as file:
        code = re.search(r"```python\n(import csv.*?)```", file.read(), re.S)[1]
    exec(code.replace("photos/train", f"{folder}/train"), {})


def test_a_listing_of_odd_names(here):
    """As the first image's: a list's delimiter is sought in its first line."""
    classes = sorted(["a;b", "c, d", "e\tf", 'g"h', "i"])
    touch(*(f"d/train/{name}/{i};{name}.jpg" for name in classes for i in range(2)))
    write_listing("d")
    train, _, names = found(train="train.csv", val="train.csv")
    assert names == classes and [name for _, name in train] == [c for c in classes for _ in "12"]


def test_the_pixels_are_those_of_the_folder(photos, here):
    """A folder's listing as a list: the same images, targets and held-out parts."""
    write_listing(photos)
    listed = options(data=photos, train="train.csv", val="train.csv", valShare=0.5, fold="")
    listed.manualSeed = 3
    folder = options(**{**vars(listed), "train": "", "val": ""})
    for ours, theirs in zip(datasets.create_split(listed), datasets.create_split(folder)[:2]):
        assert ours.targets.tolist() == theirs.targets.tolist()
        for i in range(ours.size()):
            assert np.array_equal(ours.get(i)[0], theirs.get(i)[0])


@pytest.mark.parametrize(
    "given, error",
    [
        ({"train": "a.csv", "classOrder": "number"}, "a list's classes are sorted as numbers"),
        ({"valShare": 0.2, "fold": (1, 3)}, "a resumed run keeps the one that it began with"),
    ],
)
def test_options_of_the_split_that_do_not_go_together_are_refused(given, error):
    opt = Options(given=given, default=defaults(opts.OPTIONS))
    with pytest.raises(InputError, match=error):
        opts.check_split(opt)
