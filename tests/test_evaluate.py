"""evaluate.py against plain loops: an image, a view, a place and a model at a time, in float64."""

import os
import re
import subprocess
import sys

import model_files
import numpy as np
import pytest
import torch
from PIL import Image
from runs import ROOT
from torchvision.transforms import functional as tv

import checkpoints
import evaluate
import launch
import main
import score
from datasets.transforms import Scale
from errors import InputError
from models import formats
from models.resnet import resnet
from models.resnext import resnext

TORCH7 = {"scale": 40, "crop": 32, "largest": 255, "mean": (120, 125, 130), "std": (30, 31, 32)}
VISION = {"scale": 36, "crop": 33, "largest": 1, "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}
VISION["resize"] = "bilinear"


@pytest.fixture(scope="module")
def files(tmp_path_factory, photos):
    """Two nets and their files: they scale, shift and count the classes in ways of their own."""
    folder = tmp_path_factory.mktemp("models")
    one = model_files.ours(resnet(8, 2, "cifar", "A"), ["plain", "striped"], TORCH7)
    classes = ["striped", "fox", "plain", "cat"]
    other = model_files.ours(resnext(11, 2, 4, 4, "cifar"), classes, VISION)
    found = {}
    for net, name in ((one, "one.pth"), (other, "other.safetensors")):
        with torch.no_grad():
            net.fc.weight.mul_(20)  # the pictures are much alike
            scores = torch.stack(
                [single()(net.double(), image)[0][0] for image, _ in pictures(photos)]
            )
            net.fc.bias.sub_(scores.median(0).values)  # or one class would win for every picture
        net.float()
        formats.write(str(folder / name), checkpoints.pack(net))
        found[name.split(".")[0]] = str(folder / name), net.double()
    return found


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """A list of the classes of the pictures."""
    path = tmp_path_factory.mktemp("lists") / "two.txt"
    path.write_text("plain\n\n striped\n")
    return str(path)


@pytest.fixture
def scored(monkeypatch):
    """scored(function, words) calls it; returns its result and the scores it counts errors of."""

    def scored(function, words):
        found = []

        def look(output, target):
            found.append(output)
            return errors(output, target)

        errors = score.errors
        with monkeypatch.context() as patched:
            patched.setattr(score, "errors", look)
            result = function([str(word) for word in words])
        return result, found

    return scored


@pytest.fixture
def run(scored, photos, tmp_path, monkeypatch):
    """run(words...) evaluates; returns the results and all images' scores in both readings."""
    monkeypatch.chdir(tmp_path)

    def run(*words, data=photos, dataset="imagenet"):
        more = ["-data", data, "-dataset", dataset, "-nThreads", "0", "-batchSize", "3"]
        results, found = scored(evaluate.main, [*more, *words])
        return results, torch.cat(found[::2]), torch.cat(found[1::2])

    return run


def pictures(photos):
    """(uint8 array (H, W, 3), place of the class) of the validation images, in order."""
    for target, name in enumerate(("plain", "striped")):
        folder = os.path.join(photos, "val", name)
        for file in sorted(os.listdir(folder)):
            yield np.asarray(Image.open(os.path.join(folder, file))), target


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
        values = net.preprocessing
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
            image = scaled(pixels, net.preprocessing, scale)
            for view in (image, image.flip(2)) if mirrored else (image,):
                maps = net.maps(view[None])[0]
                side = -(-net.preprocessing["crop"] // 4)
                height, width = (min(side, length) for length in maps.shape[1:])
                places = []
                for y in range(maps.shape[1] - height + 1):
                    for x in range(maps.shape[2] - width + 1):
                        mean = maps[:, y : y + height, x : x + width].mean((1, 2))
                        places.append(net.fc.weight @ mean + net.fc.bias)
                found.append(places)
        return found

    return outputs


def restated(nets, photos, outputs):
    """Scores of all images in both readings: means over nets of means over views of means."""
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
    ("-testScale 48 -testCrop 48", "one", single(48, 48)),
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
    several = names != "one" or words[0] in ("-tenCrop", "-dense")
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


def wrong(text):
    """(top-1, top-5, images) of the last lines, one for each reading."""
    return re.findall(r"(\d+) and (\d+) of (\d+) images wrong", text)


def program(*words):
    command = [sys.executable, os.path.join(ROOT, "evaluate.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


@pytest.mark.parametrize(
    "count, words",
    [
        (3, "-dense 32,48 -batchSize 14"),  # 7 and 1 images a batch, of different sizes
        pytest.param(
            *(2, "-tenCrop true -testScale 48 -testCrop 32 -batchSize 50"), marks=pytest.mark.slow
        ),
    ],
)
def test_processes_count_each_image_once(
    files, photos, tmp_path, count, words, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = [files["one"][0], files["other"][0], "-data", photos, *words.split(), "-classes", "two"]
    (tmp_path / "two").write_text("striped\nplain\n")
    evaluate.main(words)
    alone = wrong(capsys.readouterr().out)
    done = program(*words, "-nProcs", str(count))
    assert done.returncode == 0, done.stderr
    assert f"=> {count} processes on cpu" in done.stdout
    assert len(alone) == 2 and alone[0][2] == "8" and wrong(done.stdout) == alone


def test_as_main_tests(run, scored, photos):
    """A net that main.py has trained, tested on photos by main.py; then by its folder here."""
    train = "-netType resnet -depth 18 -batchSize 6 -nEpochs 1 -LR 0.001 -nThreads 0 "
    main.main([*f"{train} -testScale 40 -testCrop 32".split(), "-data", photos])
    test = "-testOnly true -retrain checkpoints/model_1.pth -batchSize 3 -nThreads 0 -data"
    for size, crops in (
        ("-testScale 40 -testCrop 32", 1),
        ("-testScale 320 -testCrop 320", 1),
        ("-tenCrop true -testScale 60 -testCrop 50", 10),
    ):
        _, theirs = scored(main.main, [*test.split(), photos, *size.split()])
        words = size.split() if "40" not in size else []  # the model's file says it
        _, ours, soft = run("checkpoints", *words)
        # other sizes of a batch may round otherwise in float32
        assert torch.allclose(torch.cat(theirs) / crops, ours, rtol=1e-4, atol=1e-5)
        if crops == 1:
            assert torch.allclose(ours.softmax(1), soft, rtol=1e-4, atol=1e-6)


def test_cifar_as_main_tests(cifar, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main.main(f"-netType resnet -dataset cifar10 -depth 8 -nEpochs 1 -data {cifar}".split())
    test = "-testOnly true -dataset cifar10 -retrain checkpoints/model_1.pth -batchSize 8"
    for more in "", " -recomputeBN 2":
        capsys.readouterr()
        main.main([*(test + more).split(), "-data", cifar])
        theirs = capsys.readouterr().out
        words = ["checkpoints", *more.split(), "-batchSize", "8"]
        evaluate.main([*words, "-dataset", "cifar10", "-data", cifar, "-nThreads", "0"])
        ours = capsys.readouterr().out
        assert re.findall(r"top1 .*", theirs) == re.findall(r"top1 .*", ours) != []
        assert ours.count(" | Batch norm: [0]") == (2 if more else 0)


# classes


@pytest.fixture
def many(tmp_path, monkeypatch, capsys):
    """A net of 5,000 classes, three of which have images, and its data: trained by main.py."""
    monkeypatch.chdir(tmp_path)
    names = [f"n{i:08d}" for i in range(5000)]
    random = np.random.default_rng(3)
    for name in names:
        os.makedirs(f"five/train/{name}")
    for name in (names[7], names[4000], names[4999]):
        for path in (f"five/train/{name}", f"five/val/{name}"):
            os.makedirs(path, exist_ok=True)
            pixels = random.integers(0, 256, (2, 40, 44, 3), dtype=np.uint8)
            for i in (0, 1):
                Image.fromarray(pixels[i]).save(f"{path}/{i}.png")
    words = "-netType resnet -depth 18 -nEpochs 1 -nThreads 0 -LR 0.001 -testScale 32 -testCrop 32"
    main.main([*words.split(), "-data", "five"])
    capsys.readouterr()
    return names


def test_five_thousand_classes(many, run):
    """Trained on 5,000, tested among all and among a listed three: the paper's Table 6."""
    content = formats.read("checkpoints/model_1.pth")
    assert content["classes"] == many and content["config"]["classes"] == 5000
    with open("three.txt", "w") as file:
        file.write("\n".join([many[4999], many[7], many[4000]]))
    os.makedirs("three/train")
    os.rename("five/val", "three/val")  # as ImageNet-1K: its own folders, no others
    for i in (7, 4000, 4999):
        os.rename(f"five/train/{many[i]}", f"three/train/{many[i]}")
    _, all, _ = run("checkpoints", data="three")
    assert all.shape == (6, 5000)
    (result,), three, _ = run("checkpoints", "-classes", "three.txt", data="three")
    assert torch.equal(three, all[:, [4999, 7, 4000]])
    best = three.argmax(1)
    missed = int((best != torch.tensor([1, 1, 2, 2, 0, 0])).sum())
    assert result == (100 * missed / 6, 0.0)


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
        (f"{model} -dense 256,224", "should be ascending lengths such as 224,256,320"),
        (f"{model} -dense 224 -testCrop 200", "-dense tests whole images"),
        (f"{model} -tenCrop true -flip true", "mirror images already"),
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
        (["other", "-recomputeBN", "1"], "wants its input with mean"),
    ):
        names = [files.get(word, [word])[0] for word in words]
        with pytest.raises(InputError, match=message):
            run(*names)


def test_it_speaks_in_its_own_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/evaluate.py", "-help"])
    assert launch.program() == "evaluate.py"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    assert launch.program() == "main.py"
