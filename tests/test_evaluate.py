"""evaluate.py against plain loops: an image, a view, a place and a model at a time, in float64."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import nets
from support.evaluations import TORCH7, evaluated, pair, pictures
from torchvision.transforms import functional as tv

import evaluate
import models
from datasets.transforms import Scale
from evaluation import ensemble
from formats import model_files
from models.resnet import resnet
from runtime import memory, process
from runtime.errors import InputError


@pytest.fixture(scope="module")
def files(tmp_path_factory, photos):
    return pair(tmp_path_factory.mktemp("models"), photos)


@pytest.fixture
def run(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: evaluated(*words, data=photos)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """A list of the classes of the pictures."""
    path = tmp_path_factory.mktemp("lists") / "two.txt"
    path.write_text("plain\n\n striped\n")
    return str(path)


def scaled(pixels, values, scale):
    """The normalised image, float64 (3, H, W), with a shorter side of `scale`."""
    if "resize" in values:  # Pillow's antialiased triangle, in bytes
        height, width = pixels.shape[:2]
        longer = int(scale * max(height, width) / min(height, width))
        size = (longer, scale) if height < width else (scale, longer)
        image = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        image = image.transpose(2, 0, 1)
    else:
        image = Scale(scale)(pixels.transpose(2, 0, 1).astype(np.float32))
    image = image * (values["largest"] / 255)
    mean, std = (np.reshape(values[name], (3, 1, 1)) for name in ("mean", "std"))
    return torch.from_numpy((image - mean) / std)


def at(image, y, x, side):
    assert y + side <= image.shape[1] and x + side <= image.shape[2]
    return image[:, y : y + side, x : x + side]


def centre(image, side, values):
    _, height, width = image.shape
    if "resize" in values:
        return tv.center_crop(image, [side, side])
    return at(image, -((side - height) // 2), -((side - width) // 2), side)  # rounded up


def single(scale=None, crop=None, mirrored=False):
    """The outputs of one crop, or of it and its mirror image."""

    def outputs(net, pixels):
        values = net.input_spec
        image = scaled(pixels, values, scale or values["scale"])
        views = [centre(image, crop or values["crop"], values)]
        views += [views[0].flip(2)] if mirrored else []
        return [[net(view[None])[0]] for view in views]

    return outputs


def ten(scale, side):
    def outputs(net, pixels):
        found = []
        for image in (scaled(pixels, TORCH7, scale), scaled(pixels, TORCH7, scale).flip(2)):
            bottom, right = image.shape[1] - side, image.shape[2] - side
            views = [centre(image, side, TORCH7)]
            views += [at(image, y, x, side) for y in (0, bottom) for x in (0, right)]
            found += [net(view[None])[0] for view in views]
        return [found]

    return outputs


def dense(scales, mirrored=False):
    """The classifier behind a window as large as the maps in training, at each place."""

    def outputs(net, pixels):
        found = []
        for scale in scales:
            image = scaled(pixels, net.input_spec, scale)
            for view in (image, image.flip(2)) if mirrored else (image,):
                found.append(places(net, view))
        return found

    return outputs


def places(net, view):
    maps = net.maps(view[None])[0]
    side = -(-net.input_spec["crop"] // 4)
    height, width = (min(side, length) for length in maps.shape[1:])
    found = []
    for y in range(maps.shape[1] - height + 1):
        for x in range(maps.shape[2] - width + 1):
            mean = maps[:, y : y + height, x : x + width].mean((1, 2))
            found.append(net.fc.weight @ mean + net.fc.bias)
    return found


def windows(scale, crop):
    """One crop that is larger than the net's own."""
    return lambda net, pixels: [
        places(net, centre(scaled(pixels, net.input_spec, scale), crop, net.input_spec))
    ]


def restated(nets, photos, outputs):
    """Scores of all images by both averages: means over nets of means over views of means."""
    plain, soft = [], []
    with torch.no_grad():
        for pixels, _ in pictures(photos):
            every = []
            for net in nets:
                order = [net.classes.index(name) for name in ("plain", "striped")]
                every.append([[o[order] for o in view] for view in outputs(net, pixels)])
            for found, read in ((plain, lambda o: o), (soft, lambda o: o.exp() / o.exp().sum())):
                means = [[sum(map(read, view)) / len(view) for view in views] for views in every]
                means = [sum(views) / len(views) for views in means]
                found.append(sum(means) / len(means))
    return torch.stack(plain), torch.stack(soft)


MODES = [
    ("", "one", single()),
    ("-testScale 48 -testCrop 48 -testPool global", "one", single(48, 48)),
    ("-testScale 48 -testCrop 48", "one", windows(48, 48)),
    ("-testScale 48", "one", single(48)),
    ("-flip true", "other", single(mirrored=True)),
    ("-tenCrop true -testScale 48 -testCrop 32", "one", ten(48, 32)),
    ("-dense 30,40,52 -flip true", "one", dense([30, 40, 52], True)),
    ("-dense 40", "other", dense([40])),
    ("", "one other", single()),
    ("-dense 40,44 -flip true", "one other", dense([40, 44], True)),
]


@pytest.mark.parametrize("words, names, outputs", MODES)
def test_every_mode(run, files, listed, photos, words, names, outputs, capsys):
    paths, nets = zip(*(files[name] for name in names.split()))
    words = [*words.split(), "-classes", listed, "-precision", "double"]
    results, *scores = run(*paths, *words)
    expected = restated(nets, photos, outputs)
    targets = torch.tensor([target for _, target in pictures(photos)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" * Results")]
    several = names != "one" or len(outputs(nets[0], next(iter(pictures(photos)))[0])[0]) > 1
    assert len(results) == len(lines) == 1 + several
    for found, right, result, line in zip(scores, expected, results, lines):
        # images are float32; the rest is float64, in another order
        assert torch.allclose(found, right, rtol=1e-5, atol=1e-5)
        wrong = int((right.argmax(1) != targets).sum())
        assert result == (100 * wrong / 8, 0.0)
        assert line.startswith(f" * Results top1: {100 * wrong / 8:6.3f}  top5:  0.000  (")
        assert line.endswith(f"{wrong} and 0 of 8 images wrong)")


def test_errors_are_mixed(files, photos):
    """Or the tests above could not see an error that is counted for another image."""
    for _, net in files.values():
        best = [
            net.classes[int(single()(net, image)[0][0].argmax())] for image, _ in pictures(photos)
        ]
        assert len(set(best)) > 1


def test_help_and_wrong_options(files, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = files["one"][0]
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["-help"])
    assert stop.value.code == 0 and "  -dense " in capsys.readouterr().out
    for words, message in (
        ("", "give a model"),
        ("gone.pth", "File not found: gone.pth"),
        (str(tmp_path), f"File not found: {tmp_path}/model_best.pth"),
        (f"{model} -dence 224", "unknown option -dence; did you mean -dense or"),
        (f"{model} -dense 256,224", "should be ascending numbers such as 150,225"),
        (f"{model} -dense 224 -testCrop 200", "-dense tests whole images"),
        (f"{model} -tenCrop true -flip true", "includes mirror images"),
        (f"{model} -classes gone.txt", "File not found: gone.txt (-classes)"),
        (f"{model} -recomputeBN 3 -batchSize 1", "at least two images"),
        (f"{model} -depth 50", "unknown option -depth"),
        (f"{model} -data gone", "missing ImageNet data directory"),
    ):
        with pytest.raises(SystemExit) as stop:
            evaluate.main([*words.split(), *([] if "gone" in words else ["-data", photos])])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and message in error
        assert error.startswith("evaluate.py: ")


def test_what_does_not_fit_is_refused(files, run):
    for words, message in (
        (["one", "-testScale", "20"], "a crop of 32 is larger than the image"),
        (["other", "one"], "2 classes are not among those of .*one.pth: the first is fox"),
        (["other", "-recomputeBN", "1"], "needs input with mean"),
    ):
        names = [files.get(word, [word])[0] for word in words]
        with pytest.raises(InputError, match=message):
            run(*names)


def test_spare_outputs_of_the_first_model(files, run, tmp_path):
    """-nClasses 3 for two classes: an ensemble is the same in any order."""
    one, _ = files["one"]
    spare = nets.ours(resnet(8, 3, "cifar", "A"), ["plain", "striped"], TORCH7)
    model_files.write(str(tmp_path / "spare.pth"), models.pack(spare))
    first, second = (run(*paths)[1] for paths in ((one, "spare.pth"), ("spare.pth", one)))
    torch.testing.assert_close(first, second)
    assert first.shape[1] == 2 and run("spare.pth")[1].shape[1] == 3


@pytest.mark.parametrize("scale, fits", [(2**53, False), (2**14 + 1, False), (2**14, True)])
def test_the_scales_of_dense_are_bounded(files, photos, capsys, scale, fits):
    words = [files["one"][0], "-data", photos, "-dense", f"224,{scale}"]
    if fits:
        assert evaluate.parse(words).dense[-1] == scale
        return
    with pytest.raises(SystemExit):
        evaluate.parse(words)
    error = capsys.readouterr().err
    assert error == f"evaluate.py: -dense {scale}: scales should be at most 16384\n"


def test_out_of_memory_is_one_sentence():
    with (
        pytest.raises(InputError, match="for an input of 2 x 3; give a smaller -batchSize") as stop,
        memory.out_of_memory((2, 3), torch.device("cpu"), ensemble.ADVICE),
    ):
        torch.empty(2**50, dtype=torch.uint8)
    assert "\n" not in str(stop.value)


def test_it_speaks_in_its_own_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/evaluate.py", "-help"])
    assert process.script() == "evaluate.py"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    assert process.script() == "main.py"
