"""Files of detectors: what is written is read again; what is wrong in one is named."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from support.detectors import classifier, detector, images

import datasets
import detect
import hubconf
import models
from datasets import imagenet
from detection import files, show
from runtime.errors import InputError
from storage import atomic


@pytest.fixture(scope="module")
def content():
    return models.pack(detector(shared=False, net=classifier(8, 2, "cifar", "A")))


DEEP = {"net": "resnet", "depth": 18_000_002, "classes": 2, "stem": "cifar", "shortcut": "A"}


def saved(folder, content):
    path = str(folder / "detector.pth")
    atomic.save(path, content)
    return path


def test_a_file_holds_the_detector(tmp_path, content):
    model = files.load_detector(saved(tmp_path, content)).eval()
    other = detector(shared=False, net=classifier(8, 2, "cifar", "A", seed=5)).eval()
    other.load_state_dict(content["model"])
    inputs = [image.float() for image in images((64, 64))[0]]
    with torch.no_grad():
        mine, theirs = model.detections(inputs)[0], other.detections(inputs)[0]
    assert all(torch.equal(mine[name], theirs[name]) for name in mine) and len(mine["boxes"])
    assert model.classes == ["cat", "dog", "fox", "owl"]
    model.train()
    assert not any(name.endswith("bn1.weight") for name, _ in model.named_parameters())


def test_a_detector_in_python(tmp_path, content):
    """A call on a file, an image of Pillow's or a tensor gives the same, with names."""
    path = str(tmp_path / "photo.png")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    model = hubconf.load(saved(tmp_path, content))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    with torch.no_grad():
        (plain,) = model.detections([tensor.float()])
    assert len(plain["boxes"])
    for image in (path, Image.open(path), tensor, tensor.double() / 255):
        found = model(image)
        assert found.pop("names") == [["cat", "dog", "fox", "owl"][k - 1] for k in plain["labels"]]
        assert all(torch.allclose(found[name], plain[name], atol=1e-3) for name in plain)
    several = model([path, tensor / 255])
    assert all(torch.allclose(each["boxes"], plain["boxes"], atol=1e-3) for each in several)
    for wrong, words in (
        ([tensor.float()], "should lie in 0..1"),
        (tensor.float(), "should lie in 0..1"),
        (tensor * float("nan"), "should lie in 0..1"),
        (tensor[:1], "of shape"),
        (tensor[:, :0] / 255, "of shape"),
        (tensor[None], "of shape"),
        (tensor.int() + 255, "bytes in 0..255"),
        (tensor.int() - 255, "bytes in 0..255"),
        (pixels, "ndarray is neither a file nor a Pillow image"),
        ((path, path), "tuple is neither"),
        (None, "NoneType is neither"),
    ):
        with pytest.raises(InputError, match=words):
            model(wrong)
    torch.save(models.pack(classifier(8, 2, "cifar", "A")), tmp_path / "classifier.pth")
    assert hubconf.load(str(tmp_path / "classifier.pth")).classes == ["a", "b"]


def test_caps_of_what_is_found(tmp_path, content):
    path = saved(tmp_path, content)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 64, 96), np.uint8))

    def found(**caps):
        return files.load_detector(path, **caps).eval()(image)

    many = found(leastScore=0.0, nms=1.0)
    assert len(many["boxes"]) == 100 > len(found(leastScore=0.0, nms=0.01)["boxes"])
    assert torch.equal(found(leastScore=0.0, nms=1.0, maxBoxes=7)["boxes"], many["boxes"][:7])
    least = float(many["scores"][50])
    assert found(leastScore=least, nms=1.0)["scores"].min() >= least
    for caps in ({"maxBoxes": 2.5}, {"maxBoxes": 0}, {"nms": 1.5}, {"leastScore": "a"}):
        with pytest.raises(InputError, match=f"its {next(iter(caps))} is "):
            found(**caps)


def test_other_classes(tmp_path, content):
    """All but the two last layers stay, and the file is that of a detector of the new classes."""
    model = files.load_detector(saved(tmp_path, content))
    model.reset_classes(["nut", "bolt"])
    atomic.save(str(tmp_path / "other.pth"), models.pack(model))
    other = files.load_detector(str(tmp_path / "other.pth"))
    assert other.classes == ["nut", "bolt"]
    for name, tensor in other.state_dict().items():
        if "box_predictor" not in name:
            assert torch.equal(tensor, content["model"][name])
    assert len(other.roi_heads.box_predictor.cls_score.weight) == 3


@pytest.mark.parametrize("resumed", [False, True])
def test_a_detector_keeps_its_own_sizes(tmp_path, content, resumed):
    """Those of the recipe are for a new one."""
    path, names = saved(tmp_path, content), ["cat", "dog", "fox", "owl"]
    checkpoint = {"modelFile": path, "options": {"scale": 600}} if resumed else None
    for given, expected in (({}, 96), ({"scale": 48}, 48)):
        opt = detect.settle({"retrain": path, **given}, checkpoint).replaced(epochSize=7)
        opt, model = detect.setup(opt, checkpoint, names, torch.device("cpu"))
        assert (opt.scale, opt.largest, opt.regions) == (expected, 160, 24)
        assert (opt.anchors, opt.epochSize, model.config["scale"]) == ((16, 32, 64), 7, expected)


@pytest.mark.parametrize(
    "names, fault",
    [
        (["cat", "dog", "eel", "fox", "owl"], "the 5 of the data: 'eel' is only in one of the two"),
        (["owl", "fox", "dog", "cat"], "the 4 of the data: their order differs"),
    ],
)
def test_a_detector_of_other_classes_is_refused(tmp_path, content, names, fault):
    opt = detect.settle({"retrain": saved(tmp_path, content)})
    with pytest.raises(InputError, match=fault):
        detect.setup(opt, None, names, torch.device("cpu"))


def test_a_folder_of_photos_is_shown(tmp_path, content, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, content)
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[274] = 6
    for name in ("b.jpg", "a.png", "c.webp"):
        pixels = np.random.default_rng(len(name)).integers(0, 255, (500, 600, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name, exif=exif)
    (tmp_path / "photos" / "d.jpg").write_bytes(b"no photo")
    for name in ("notes.txt", "._a.jpg"):
        (tmp_path / "photos" / name).write_text("no photo")
    command = ["detector.pth", "-show", "photos/", "-maxBoxes", "5", "-leastScore", "0"]
    with pytest.raises(InputError, match="d.jpg.*give -skipCorrupt true"):
        detect.main(command)
    capsys.readouterr()
    detect.main([*command, "-skipCorrupt", "true"])
    out, notes = capsys.readouterr()
    names = ["a.png", "b.jpg", "c.webp.png"]
    assert sorted(os.listdir("photos_detected")) == [*names, "results.json"]
    assert out.count("score of 0.5 or more (-minScore, -leastScore); the best is 0") == 3
    results = json.loads((tmp_path / "photos_detected" / "results.json").read_text())
    assert [each["file_name"] for each in results] == ["a.png"] * 5 + ["b.jpg"] * 5 + ["c.webp"] * 5
    for each in results:
        assert each["category"] == ["cat", "dog", "fox", "owl"][each["category_id"] - 1]
    assert Image.open("photos_detected/b.jpg").size == (500, 600)  # upright
    (tmp_path / "7.photos").mkdir()
    opt = detect.settle({"retrain": "detector.pth", "show": "7.photos/"})
    assert opt.out == "7.photos_detected"
    monkeypatch.chdir("7.photos")
    assert detect.settle({"retrain": "detector.pth", "show": "."}).out == "7.photos_detected"
    monkeypatch.chdir(tmp_path)
    command[-1] = "1"
    detect.main([*command, "-skipCorrupt", "true", "-out", "pictures", "-minScore", "0"])
    out = capsys.readouterr().out
    assert out.count("=> pictures/") == 4
    assert out.count("nothing found with a score of 1 or more (-minScore, -leastScore)\n") == 3


@pytest.mark.parametrize("left", [0, 570, 599])
def test_a_name_at_the_border_is_drawn_whole(left):
    """As many pixels as that of a box in the middle."""
    counts = []
    for x in (300, left):
        found = {"boxes": np.array([[x, 200, x, 200]]), "scores": np.ones(1), "labels": np.ones(1)}
        picture = show.draw(np.zeros((3, 480, 600), np.uint8), found, ["a long name"], 0.5)
        counts.append(np.asarray(picture).any(2).sum())
    assert abs(counts[0] - counts[1]) < 40  # some of the box itself


def test_weights_that_share_memory_in_a_file_are_trained_apart(tmp_path, content):
    state = dict(content["model"])
    for name in state:
        if name.startswith("rpn_backbone."):  # equal in a new detector
            state[name] = state[name.removeprefix("rpn_")]
    torch.save({**content, "model": state}, tmp_path / "detector.pth")
    state = files.load_detector(str(tmp_path / "detector.pth")).state_dict()
    for place, tensor in enumerate(state.values()):
        tensor.fill_(place)
    for place, tensor in enumerate(state.values()):
        assert (tensor == place).all()


def without(part, name):
    return lambda content: {**content, part: {k: v for k, v in content[part].items() if k != name}}


def with_value(part, name, value):
    return lambda content: {**content, part: {**content[part], name: value}}


@pytest.mark.parametrize(
    "change, words",
    [
        (without("config", "pool"), "its config lacks 'pool'"),
        (without("model", "backbone.conv1.weight"), "backbone.conv1.weight is missing from"),
        (with_value("model", "more", torch.zeros(1)), "'more' has no place in a faster_rcnn"),
        (with_value("model", "backbone.conv1.weight", torch.zeros(1)), "backbone.conv1.weight"),
        (with_value("model", "rpn.head.cls_logits.bias", "x"), "is not a tensor of weights"),
        (with_value("config", "classes", 5), "box_predictor.cls_score.weight is of size"),
        (with_value("config", "backbone", {"net": "resnet", "depth": 9}), "is not a detector"),
        (with_value("config", "backbone", 5), "its config has no backbone"),
        (with_value("config", "backbone", {"net": 5}), "is not a detector of this program"),
        (with_value("config", "backbone", {"net": "plain"}), "No module named 'models.plain'"),
        (with_value("config", "backbone", DEEP), "too few weights for depth 18000002"),
        (with_value("config", "pool", 0), "its pool is 0"),
        (with_value("config", "pool", 10**9), "its pool is 1000000000"),
        (with_value("config", "proposals", [1]), r"its proposals is \[1\]"),
        (with_value("config", "proposals", [1, 2, 3, "a"]), "its proposals is"),
        (with_value("config", "anchors", []), r"its anchors is \[\]"),
        (with_value("config", "anchors", 16), "its anchors is 16"),
        (with_value("config", "scale", 0), "its scale is 0"),
        (with_value("config", "largest", "a"), "its largest is 'a'"),
        (with_value("config", "regions", 1.5), "its regions is 1.5"),
        (with_value("config", "classes", 10**12), "its classes is 1000000000000"),
        (with_value("config", "shared", 1), "its shared is 1"),
        (lambda content: {**content, "preprocessing": None}, "has no input spec"),
        (lambda content: {**content, "model": None}, "has no state dict"),
        (with_value("preprocessing", "std", (0, 1, 1)), "its preprocessing is"),
        (lambda content: {**content, "classes": ["a"]}, "does not name all its classes"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, change, words):
    path = saved(tmp_path, change(content))
    with pytest.raises(InputError, match=words) as error:
        files.load_detector(path)
    assert path in str(error.value)


def test_what_is_no_detector(tmp_path, content):
    net = classifier(8, 2, "cifar", "A")
    path = saved(tmp_path, models.pack(net))
    assert files.is_detector(path) is None
    with pytest.raises(InputError, match="is not a detector of this program"):
        files.load_detector(path)
    net.input_spec = None
    with pytest.raises(InputError, match="has no input spec"):
        detector(net=net)


def test_main_py_refuses_a_detector(tmp_path, content):
    with pytest.raises(InputError, match="holds a detector: detect.py trains, tests and shows it"):
        models.load_file(saved(tmp_path, content))


def test_the_recipe_of_the_paper(tmp_path):
    (tmp_path / "net.t7").touch()
    words = ["-data", str(tmp_path), "-retrain", str(tmp_path / "net.t7")]
    opt = detect.parse(words)
    assert (opt.rpnBatchSize, opt.rpnLR, opt.rpnIterations) == (16, 0.02, (120000, 180000))
    assert (opt.batchSize, opt.LR, opt.iterations) == (8, 0.005, (120000, 180000))
    assert (opt.weightDecay, opt.momentum, opt.regions) == (1e-4, 0.9, 64)
    assert (opt.scale, opt.largest, opt.proposals) == (600, 1000, (12000, 2000, 6000, 300))
    assert detect.parse([*words, "-freeze", "0"]).freeze == 0
    assert detect.parse([*words, "-shared", "true", "-LR", "0.3"]).LR == 0.3


def test_batch_norm_is_re_estimated_on_the_classification_data(tmp_path, monkeypatch):
    """-recomputeBN: the first batch norm then has the statistics of the digits themselves."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pth").touch()
    opt = detect.parse("-dataset digits -retrain net.pth -recomputeBN 30 -nGPU 2".split())
    net = classifier(8, 10, "cifar", "A")
    with pytest.raises(InputError, match="needs input with mean .110, 120, 130., but"):
        detect.recompute(opt, net, torch.device("cpu"))
    digits = datasets.create(opt)[0]
    net.input_spec = digits.input_spec()
    detect.recompute(opt, net, torch.device("cpu"))
    images = (digits.images - digits.mean[0]) / digits.std[0]
    with torch.no_grad():
        maps = net.conv1(images)
    mean, std = maps.mean((0, 2, 3)), maps.std((0, 2, 3))
    assert ((net.bn1.running_mean - mean).abs() < 0.1 * std).all()
    assert (net.bn1.running_var.sqrt() / std - 1).abs().max() < 0.1


def test_batch_norm_is_re_estimated_on_images_of_the_training_size(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pth").touch()
    opt = detect.parse("-dataset digits -retrain net.pth -recomputeBN 1 -nThreads 0".split())
    opt, net, sides = opt.replaced(dataset="coco", bnData=photos), classifier(18, 2), []
    net.input_spec = {"scale": 80, "crop": 72, "trained": 64, "largest": 1}
    net.input_spec |= {"mean": imagenet.mean, "std": imagenet.std}
    net.conv1.register_forward_pre_hook(lambda module, inputs: sides.append(inputs[0].shape[2:]))
    detect.recompute(opt, net, torch.device("cpu"))
    assert set(sides) == {(64, 64)}
