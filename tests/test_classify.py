"""The script that classifies images: its lines, its names, its errors."""

import contextlib
import csv
import http.server
import os
import re
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import torch
from PIL import Image

import convert
import models
from formats import model_files
from models.resnet import resnet
from pretrained import classify
from runtime.errors import InputError
from storage import atomic
from storage import pictures as pictures_by_matplotlib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
INPUT = {"scale": 40, "crop": 32, "largest": 255, "mean": (120, 120, 120), "std": (60, 60, 60)}
ANIMALS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def save(path, outputs, classes=None, preprocessing=INPUT, plain=False):
    """A random net in a file of ours; a `plain` one finds every class equally likely."""
    torch.manual_seed(0)
    model = resnet(8, outputs, "cifar")
    model.classes, model.input_spec = classes, preprocessing
    if plain:
        torch.nn.init.zeros_(model.fc.weight)
    atomic.save(path, models.pack(model))
    return str(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of several formats and sizes."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    paths = []
    for i, suffix in enumerate(["png", "jpg", "webp", "gif", "bmp"]):
        paths.append(str(folder / f"picture {i}.{suffix}"))
        noise = random.integers(0, 256, (5 + i, 7, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((60 - i, 50)).save(paths[-1])
    return paths


def probabilities(path, picture):
    """Softmax in float64 of one image's scores."""
    model = models.load(path)
    with torch.no_grad():
        scores = model(model.transform(picture)[None])[0].double().numpy()
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def parsed(text):
    """[(file, [(probability, name)])] from what was printed."""
    result = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        title, *lines = block.split("\n")
        assert title.startswith("Classes for\t")
        pairs = [line.split("\t") for line in lines]
        result.append((title.split("\t")[1], [(float(p), name) for p, name in pairs]))
    return result


def test_five_likeliest_of_each_file_in_order(tmp_path, capsys, pictures):
    path = save(tmp_path / "net.pth", 7, ANIMALS)
    many = pictures * 4  # more than go through the net at once
    assert classify.main([path, *many]) == 0
    out, err = capsys.readouterr()
    result = parsed(out)
    assert [name for name, _ in result] == many and err == ""
    for picture, lines in result:
        expected = probabilities(path, picture)
        order = np.argsort(-expected)[:5]
        assert [name for _, name in lines] == [ANIMALS[i] for i in order]
        # float32 scores that a batch of another size may sum in another order
        np.testing.assert_allclose([p for p, _ in lines], expected[order], rtol=1e-5)


@pytest.mark.parametrize("outputs, shown", [(2, "0.5"), (4, "0.25"), (10, "0.10000000149012")])
def test_the_text_is_luas(tmp_path, capsys, pictures, outputs, shown):
    # 14 digits of the float32 nearest 0.1, as Lua prints it; no more lines than classes
    classify.main([save(tmp_path / "net.pth", outputs, plain=True), pictures[0]])
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == f"Classes for\t{pictures[0]}" and lines[-2:] == ["", ""]
    names = {f"class {i}" for i in range(outputs)}
    assert len(lines) == 3 + min(outputs, 5)
    assert all(re.fullmatch(rf"{re.escape(shown)}\tclass \d", line) for line in lines[1:-2])
    assert {line.split("\t")[1] for line in lines[1:-2]} <= names


def test_several_models_are_averaged_by_class_name(tmp_path, capsys, pictures):
    """Also on images without labels, each model by its own input spec, with -scores."""
    order = [3, 0, 6, 2, 1, 5, 4]
    specs = [INPUT, {**INPUT, "scale": 36, "crop": 24}]
    names = [ANIMALS, [ANIMALS[i] for i in order]]
    nets = [resnet(8, 7, "cifar").eval() for _ in specs]
    paths = [str(tmp_path / name) for name in ("a.pth", "b.safetensors")]
    for net, net.classes, net.input_spec, path in zip(nets, names, specs, paths):
        model_files.write(path, models.pack(net))
    expected = []
    for net, path in zip(nets, paths):
        transform = models.load(path).transform
        with torch.no_grad():
            rows = net.double()(torch.stack([transform(p) for p in pictures]).double()).numpy()
        expected.append(rows)
    expected[1] = expected[1][:, np.argsort(order)]  # output order[i] of the first is its i
    powers = [np.exp(rows) / np.exp(rows).sum(1, keepdims=True) for rows in expected]
    table = str(tmp_path / "scores.csv")
    assert classify.main([paths[0], *pictures, "gone.png", paths[1], "-scores", table]) == 1
    for (name, lines), picture, row in zip(
        parsed(capsys.readouterr().out), pictures, np.mean(powers, 0), strict=True
    ):
        best = np.argsort(-row)[:5]
        assert name == picture and [n for _, n in lines] == [ANIMALS[i] for i in best]
        np.testing.assert_allclose([p for p, _ in lines], row[best], rtol=1e-4)
    with open(table) as file:
        head, *rows = csv.reader(file)
    assert head == ["path", *ANIMALS]
    scores = np.array([row[1:] for row in rows], float)
    np.testing.assert_allclose(scores, np.mean(expected, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "classes, message",
    [
        (ANIMALS[:6], "b.pth has 6 classes, but a.pth has 7: only models of the same classes can"),
        ([*ANIMALS, "hen"], "b.pth has 8 classes, but a.pth has 7"),
        ([*ANIMALS[:6], "hen"], "1 classes are not among those of b.pth: the first is gnu"),
        (None, "7 classes are not among those of b.pth: the first is ant"),
    ],
)
def test_models_of_different_classes(tmp_path, monkeypatch, pictures, classes, message):
    monkeypatch.chdir(tmp_path)
    save("a.pth", 7, ANIMALS)
    save("b.pth", len(classes or ANIMALS), classes)
    with pytest.raises(InputError, match=re.escape(message)):
        classify.main(["a.pth", "b.pth", pictures[0]])


def test_which_words_are_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "photos.t7x"):
        os.mkdir(folder)
    for name in ("run/model_best.pth", "a.pth", "photo"):
        open(name, "w").close()
    found = ["torchvision:resnet18", "gone.PTH", "a.pth:teacher", "r.t7.gz", "run", "m.safetensors"]
    files = ["photo", "photos.t7x", "pth", "cat.jpg", "https://example.org/a.png", "a.pth.png"]
    assert classify.parse(["first", *files, *found]) == ({}, ["first", *found], files)


@pytest.mark.parametrize("size", [(60, 50), (3, 200), (700, 8), (1, 1)])
def test_a_picture_of_the_photos_and_bars(tmp_path, capsys, monkeypatch, size):
    figures = []

    @contextlib.contextmanager
    def drawing(*arguments):
        with pictures_by_matplotlib.drawing(*arguments) as figure:
            figures.append(figure)
            yield figure

    own = types.SimpleNamespace(**vars(pictures_by_matplotlib))
    own.drawing = drawing
    monkeypatch.setattr(classify, "pictures", own)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    names = ["$a_1$", "b" * 99, "c\n"]
    net, photo = save(tmp_path / "net.pth", 3, names), str(tmp_path / "photo.png")
    out = tmp_path / "out.png"
    assert classify.main([net, photo, "gone.png", photo, "-show", str(out)]) == 1
    assert Image.open(out).format == "PNG"
    assert capsys.readouterr().err.count("\n") == 1  # no warning of matplotlib
    [figure] = figures
    for shown, bars in zip(figure.axes[::2], figure.axes[1::2], strict=True):
        image = shown.images[0].get_array()
        if max(size) <= 512:
            assert (image == pixels).all()
        else:
            assert image.shape == (round(8 * 512 / 700), 512, 3)
        expected = probabilities(net, photo)
        order = np.argsort(-expected)
        widths = [bar.get_width() for bar in bars.patches]
        np.testing.assert_allclose(widths, expected[order], rtol=1e-5)
        texts = {0: "$a_1$", 1: "b" * 39 + "…", 2: r"c\n"}
        for i, text in zip(order, bars.texts):
            assert text.get_text() == f"{100 * expected[i]:.1f} %  {texts[i]}"
    assert len(figure.axes) == 4


def test_what_cannot_be_drawn(tmp_path, monkeypatch, capsys, pictures):
    net, out = save(tmp_path / "net.pth", 7, ANIMALS), str(tmp_path / "out.png")
    with pytest.raises(InputError, match="-show draws at most 20 photos, not 25: give fewer"):
        classify.main([net, *pictures * 5, "-show", out])
    assert classify.main([net, "gone.png", "-show", out]) == 1 and not os.path.exists(out)
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="2"):
        classify.main([net, pictures[0], "-show", out])
    assert "needs matplotlib, which is not installed" in capsys.readouterr().err


def test_names_of_classes():
    net = resnet(8, 1000, "cifar")
    net.classes = None
    names = classify.class_names(net)
    assert len(names) == 1000
    assert (names[0], names[281], names[285], names[999]) == (
        *("tench", "tabby", "Egyptian cat"),
        "toilet tissue",
    )
    net.classes = [f"photo {i}" for i in range(1000)]
    assert classify.class_names(net) == net.classes
    net = resnet(8, 4, "cifar")
    net.classes = ["cat", "dog"]  # -nClasses 4 leaves two without a name
    assert classify.class_names(net) == ["cat", "dog", "class 2", "class 3"]
    net.classes = None
    assert classify.class_names(net) == ["class 0", "class 1", "class 2", "class 3"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_net_in_another_precision(tmp_path, capsys, pictures, dtype):
    torch.manual_seed(0)
    model = resnet(8, 7, "cifar")
    model.classes, model.input_spec = ANIMALS, INPUT
    atomic.save(tmp_path / "single.pth", models.pack(model))
    atomic.save(tmp_path / "other.pth", models.pack(model.to(dtype)))
    assert classify.main([str(tmp_path / "other.pth"), pictures[0]]) == 0
    [(_, lines)] = parsed(capsys.readouterr().out)
    expected = -np.sort(-probabilities(str(tmp_path / "single.pth"), pictures[0]))[:5]
    # weights of float16 have 11 bits, about 5e-4; computing in float16 would print as many digits
    np.testing.assert_allclose([p for p, _ in lines], expected, rtol=5e-3)
    assert all(np.float32(np.float16(p)) != np.float32(p) for p, _ in lines)


def test_unreadable_files_are_named_and_the_others_classified(tmp_path, capsys, pictures):
    path = save(tmp_path / "net.pth", 7, ANIMALS)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    odd = [str(tmp_path / name) for name in ("missing.png", "broken.jpg")]
    assert classify.main([path, odd[0], pictures[0], *odd[1:], pictures[1]]) == 1
    out, err = capsys.readouterr()
    assert [name for name, _ in parsed(out)] == pictures[:2]
    lines = err.splitlines()
    assert len(lines) == 2 and all(line.startswith("classify.py: cannot read ") for line in lines)
    assert all(repr(path) in line for path, line in zip(odd, lines))
    assert classify.main([path, odd[0]]) == 1 and capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [[], ["net.pth"]])
def test_a_command_without_files(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        classify.main(arguments)
    sentence = (
        "classify.py: give a model and one or more files: classify.py MODEL FILE... (see -help)\n"
    )
    assert capsys.readouterr() == ("", sentence)


def test_a_model_that_does_not_say_its_input(tmp_path, capsys, pictures):
    path = save(tmp_path / "net.pth", 7, ANIMALS, preprocessing=None)
    with pytest.raises(InputError, match="does not say how an image becomes its input"):
        classify.main([path, *pictures])
    assert capsys.readouterr() == ("", "")


def test_as_a_command_from_anywhere(tmp_path, pictures):
    save(tmp_path / "net.pth", 7, ANIMALS)
    script = os.path.join(ROOT, "pretrained", "classify.py")
    name = os.fsencode(tmp_path) + b"/\xe9\xff.png"  # names need not be UTF-8
    os.link(pictures[0], name)
    command = [sys.executable, script, "net.pth", name, "gone.png"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert result.returncode == 1
    lines = result.stdout.split(b"\n")
    assert lines[0] == b"Classes for\t" + name and len(lines) == 8
    error = result.stderr.decode()
    assert error == "classify.py: cannot read the image 'gone.png': No such file or directory\n"


def test_an_encoding_that_lacks_the_names(tmp_path, pictures):
    """The bytes of a file's name as they are, a class that cannot be written as an escape."""
    save(tmp_path / "net.pth", 2, ["\u732b", "b\xeate"])
    name = os.fsencode(tmp_path) + b"/\xe9\xff.png"
    os.link(pictures[0], name)
    script = os.path.join(ROOT, "pretrained", "classify.py")
    result = subprocess.run(
        [sys.executable, script, "net.pth", name],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert (result.returncode, result.stderr) == (0, b"")
    lines = result.stdout.split(b"\n")
    assert lines[0] == b"Classes for\t" + name
    assert {line.split(b"\t")[1] for line in lines[1:3]} == {rb"\u732b", b"b\xeate"}


@pytest.mark.parametrize("closed", [(1,), pytest.param((2,), marks=pytest.mark.slow)])
def test_closed_outputs(tmp_path, pictures, closed):
    """What is for one of them is lost, and not printed on the other."""
    save(tmp_path / "net.pth", 2, ["cat", "dog"])
    script = os.path.join(ROOT, "pretrained", "classify.py")

    def close():
        for descriptor in closed:
            os.close(descriptor)

    command = [sys.executable, script, "net.pth", *[pictures[0]] * 21, "gone.png"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, preexec_fn=close)
    assert result.returncode == 1
    assert result.stdout.count(b"Classes for") == (0 if 1 in closed else 21)
    error = b"classify.py: cannot read the image 'gone.png': No such file or directory\n"
    assert result.stderr == (b"" if 2 in closed else error) and b"gone" not in result.stdout


def test_a_run_folder_is_its_best_model(tmp_path, capsys, pictures):
    (tmp_path / "run").mkdir()
    path = save(tmp_path / "run" / "model_best.pth", 7, ANIMALS)
    assert classify.main([path, pictures[0]]) == 0
    expected = capsys.readouterr().out
    assert classify.main([str(tmp_path / "run"), pictures[0]]) == 0
    assert capsys.readouterr().out == expected
    assert convert.parse([str(tmp_path / "run"), "best.safetensors"])[0] == path


def test_a_missing_model_is_one_sentence(tmp_path):
    script = os.path.join(ROOT, "pretrained", "classify.py")
    command = [sys.executable, script, "gone.pth", "a.png"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and result.stdout == ""
    assert re.fullmatch(r"classify\.py: .*gone\.pth.*\n", result.stderr)


# folders, tables


def read_table(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


@pytest.fixture
def folder(tmp_path, pictures):
    """A folder of pictures without classes: below it, hidden ones, other files, a link back."""
    top = tmp_path / "unsorted"
    (top / "deeper" / "still").mkdir(parents=True)
    (top / ".hidden").mkdir()
    names = [
        "b.png",
        "a.JPG",
        "deeper/c.webp",
        "deeper/still/d.gif",
        "e.HEIC",
        ".hidden/no.png",
        ".no.png",
    ]
    for name, picture in zip(names, [*pictures, pictures[0], pictures[0]]):
        os.link(picture, top / name)
    (top / "notes.txt").write_text("no picture")
    os.symlink(top, top / "deeper" / "loop")
    return [
        str(top / name)
        for name in ("a.JPG", "b.png", "deeper/c.webp", "deeper/still/d.gif", "e.HEIC")
    ]


def test_a_folder_is_the_images_below_it(tmp_path, capsys, folder, pictures):
    path = save(tmp_path / "net.pth", 7, ANIMALS)
    assert classify.main([path, pictures[4], str(tmp_path / "unsorted"), pictures[0]]) == 0
    out, err = capsys.readouterr()
    assert [name for name, _ in parsed(out)] == [pictures[4], *folder, pictures[0]] and err == ""
    os.mkdir(tmp_path / "empty")
    assert classify.main([path, str(tmp_path / "empty"), pictures[0]]) == 1
    out, err = capsys.readouterr()
    assert [name for name, _ in parsed(out)] == [pictures[0]]
    assert err == f"classify.py: no image in the folder {str(tmp_path / 'empty')!r}\n"


def test_every_class_has_a_score(tmp_path, capsys, pictures):
    """Beside what is printed; a file that cannot be read has no row."""
    path, scores = save(tmp_path / "net.pth", 7, [f"c{i}" for i in range(7)]), tmp_path / "s.csv"
    assert classify.main([path, pictures[0], "gone.png", pictures[1], "-scores", str(scores)]) == 1
    assert capsys.readouterr().out.count("Classes for") == 2
    head, *rows = read_table(scores)
    assert head == ["path", *(f"c{i}" for i in range(7))]
    assert [row[0] for row in rows] == list(pictures[:2])
    for row, picture in zip(rows, pictures):
        powers = np.exp(np.array(row[1:], float))
        np.testing.assert_allclose(powers / powers.sum(), probabilities(path, picture), rtol=1e-4)


@pytest.mark.parametrize("outputs", [3, 7])
def test_a_table_has_what_is_printed(tmp_path, capsys, folder, outputs):
    path = save(tmp_path / "net.pth", outputs, ANIMALS[:outputs])
    top = str(tmp_path / "unsorted")
    classify.main([path, top])
    printed = parsed(capsys.readouterr().out)
    assert classify.main([path, "-csv", str(tmp_path / "found.csv"), top]) == 0
    assert capsys.readouterr() == ("", "")
    head, *rows = read_table(tmp_path / "found.csv")
    count = min(outputs, 5)
    assert head[:3] == ["path", "class1", "probability1"] and len(head) == 1 + 2 * count
    for row, (name, lines) in zip(rows, printed, strict=True):
        assert row[0] == name and row[1::2] == [animal for _, animal in lines]
        np.testing.assert_allclose(np.array(row[2::2], float), [p for p, _ in lines], rtol=1e-5)


def test_names_of_any_bytes_in_the_table(tmp_path, pictures):
    save(tmp_path / "net.pth", 2, ['a,"b"', "c\nd"])
    (tmp_path / "gone.csv").write_text("an older table")
    name = b"\xe9\xff, 1.png"
    os.link(pictures[0], os.fsencode(tmp_path) + b"/" + name)
    script = os.path.join(ROOT, "pretrained", "classify.py")
    words = ["net.pth", name, "gone.png", "-csv", "gone.csv"]
    result = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True)
    assert result.returncode == 1 and result.stdout == b""
    assert result.stderr.count(b"\n") == 1 and b"'gone.png'" in result.stderr
    [_, row] = read_table(tmp_path / "gone.csv")
    assert os.fsencode(row[0]) == name and {row[1], row[3]} == {'a,"b"', "c\nd"}


@pytest.mark.parametrize(
    "words, error",
    [
        (["-csv"], "missing argument for option -csv"),
        (["-csv", ""], "the value of -csv is empty"),
        (["-csv", "x.txt"], "-csv x.txt should end in .csv"),
        (["--csv", "no/x.csv"], "the folder 'no' does not exist"),
    ],
)
def test_a_table_that_cannot_be_written(tmp_path, monkeypatch, pictures, words, error, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        classify.main(["never-read.pth", pictures[0], *words])
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("form", ["list", "folder"])
def test_the_names_of_the_classes_are_given(tmp_path, capsys, pictures, form):
    model, names = save(tmp_path / "net.pth", 3, plain=True), tmp_path / "names"
    if form == "list":
        names.write_text("ant\nbee\ncat\n")
    else:
        for name in ("cat", "ant", "bee", ".hidden"):
            (names / name).mkdir(parents=True)
    assert classify.main([model, pictures[0], "-classes", str(names)]) == 0
    (_, results), *_ = parsed(capsys.readouterr().out)
    assert sorted(name for _, name in results) == ["ant", "bee", "cat"]
    model = save(tmp_path / "net.pth", 4)
    with pytest.raises(InputError, match="names has 3 names, but the model has 4 outputs"):
        classify.main([model, pictures[0], "-classes", str(names)])


class Server(http.server.BaseHTTPRequestHandler):
    """Serves a picture, a text and an endless file; another name is not found."""

    picture = b""

    def do_GET(self):
        data = {"/page.png": b"<html>", "/large.png": b"x"}.get(self.path)
        data = self.picture if self.path in ("/cat.png", "/caf%C3%A9%20cat%20.png?a=b") else data
        self.send_response(200 if data else 404)
        length = 1 << 40 if self.path == "/large.png" else len(data or b"")
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_):
        pass


def test_a_url_is_downloaded(tmp_path, capsys, pictures, monkeypatch):
    """As the file; what cannot be downloaded is one line, and the others are still classified."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    path = save(tmp_path / "net.pth", 7, ANIMALS)
    with open(pictures[0], "rb") as file:
        monkeypatch.setattr(Server, "picture", file.read())
    assert classify.main([path, pictures[0]]) == 0
    expected = parsed(capsys.readouterr().out)[0][1]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        site = f"http://127.0.0.1:{server.server_port}"
        assert classify.main([path, f"{site}/cat.png"]) == 0
        assert parsed(capsys.readouterr().out) == [(f"{site}/cat.png", expected)]
        other = f"{site.upper()}/café cat%20.png?a=b#c"
        assert classify.main([path, other]) == 0
        assert parsed(capsys.readouterr().out) == [(other, expected)]
        names = ["none.png", "large.png", "page.png", "cat.png"]
        assert classify.main([path, *(f"{site}/{name}" for name in names)]) == 1
        server.shutdown()
    out, err = capsys.readouterr()
    assert [name for name, _ in parsed(out)] == [f"{site}/cat.png"]
    reasons = ["HTTP Error 404", "more than 67108864 bytes", ""]
    for line, name, reason in zip(err.splitlines(), names[:3], reasons, strict=True):
        assert line.startswith("classify.py: ") and f"{site}/{name}" in line and reason in line
    assert classify.main([path, f"{site}/cat.png"]) == 1  # nobody answers any more
    err = capsys.readouterr().err
    assert f"cannot download {site}/cat.png: " in err and err.count("\n") == 1
