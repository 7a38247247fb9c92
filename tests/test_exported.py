"""An .onnx in place of a model file: the same numbers, and what is refused."""

import json
import pathlib
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from support.evaluations import evaluated
from support.nets import OWN, ours

import convert
import hubconf
import models
from evaluation.scores import pooled_as_tested
from formats import model_files
from models.fold import folded
from models.resnext import resnext
from pretrained import classify, extract_features, inference
from runtime.errors import InputError

NAMES = ["plain", "striped", "spotted"]
ABOUT = {"config": {"net": "own"}, "classes": NAMES, "preprocessing": OWN}


def write(path, dtype="FLOAT", images=("N", 3, 8, 8), scores="scores", about=ABOUT):
    """A net whose three scores are the means of an image's colours; returns its path."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    node = helper.make_node("ReduceMean", ["images", "axes"], [scores], keepdims=0)
    dtype, result = getattr(TensorProto, dtype), [images[0], 3]
    places = [("images", dtype, images), (scores, dtype, result)]
    inputs, outputs = ([helper.make_tensor_value_info(*place)] for place in places)
    opset = [helper.make_opsetid("", 18)]
    graph = helper.make_graph([node], "net", inputs, outputs, [axes])
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    onnx.save(model, path)
    return str(path)


@pytest.mark.parametrize("dtype", ["FLOAT", "DOUBLE", "FLOAT16"])
def test_scores(tmp_path, dtype):
    path = write(tmp_path / "net.onnx", dtype)
    for model in (models.load(path), folded(models.load(path)), hubconf.load(path)):
        assert model.classes == NAMES
        for count in (1, 3):
            x = torch.randn(count, 3, 8, 8).to(memory_format=torch.channels_last)
            scores = model(x.requires_grad_())
            assert scores.dtype == torch.float32
            tolerance = 2e-3 if dtype == "FLOAT16" else 1e-6
            torch.testing.assert_close(scores, x.detach().mean((2, 3)), rtol=0, atol=tolerance)


LARGER = OWN | {"scale": 44, "crop": 40, "trained": 32}


@pytest.mark.parametrize("form, pool", [("A", {}), ("C", {}), ("C", {"pool": "global"})])
def test_a_crop_that_is_larger_than_in_training(form, pool, tmp_path):
    """As the net is tested: windows of the training's side, and the mean of their outputs."""
    net = ours(resnext(11, 2, 4, 3, "cifar", "B", f"resnext_{form}"), NAMES, LARGER | pool)
    model_files.write(str(tmp_path / "net.pth"), models.pack(net))
    convert.main([str(tmp_path / "net.pth"), str(tmp_path / "net.onnx")])
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        maps = net.eval().maps(x)
        parts = [maps[..., y : y + 8, x : x + 8].mean((2, 3)) for y in range(3) for x in range(3)]
        expected = torch.stack([net.fc(part) for part in parts]).mean(0)
        assert not torch.allclose(net(x), expected, rtol=1e-3)
        expected = net(x) if pool else expected
        model = inference.load_folded(str(tmp_path / "net.pth"))
        exported = inference.load_folded(str(tmp_path / "net.onnx"))
        for outputs in (model(x), model.fc(model.features(x)), exported(x)):
            torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


def test_a_net_of_ones_own_that_is_not_tested_in_windows():
    net = torch.nn.Sequential()
    net.avgpool, net.input_spec = torch.nn.AdaptiveAvgPool2d(1), LARGER
    x = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(pooled_as_tested(net)(x), x.mean((2, 3), keepdim=True))


def test_the_commands(tmp_path, photos, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("net.onnx", about=ABOUT | {"preprocessing": OWN | {"scale": 8, "largest": 1}})
    words = ["-testScale", "9", "-flip", "true"]
    results, outputs, _ = evaluated("net.onnx", *words, data=photos)
    twice, both, _ = evaluated("net.onnx", "net.onnx", *words, data=photos)
    assert results == twice and torch.equal(outputs, both)
    capsys.readouterr()
    picture = min(pathlib.Path(photos, "val", "plain").iterdir())
    assert classify.main(["net.onnx", str(picture), "-scores", "scores.csv"]) == 0
    rows = [line.split(",") for line in (tmp_path / "scores.csv").read_text().splitlines()]
    model = models.load("net.onnx")
    expected = model.transform(str(picture)).mean((1, 2)).tolist()
    assert rows[0][1:] == NAMES
    assert [float(cell) for cell in rows[1][1:]] == pytest.approx(expected, rel=1e-5)
    assert capsys.readouterr().out.split("\t")[2].split("\n")[0] == NAMES[np.argmax(expected)]


OTHERS = {
    "another program's": ({"about": {}}, "lacks config, classes, preprocessing in its metadata"),
    "a part of it": ({"about": {"classes": NAMES, "config": {}}}, "lacks preprocessing in its"),
    "other names": ({"about": ABOUT | {"classes": NAMES * 2}}, "not a list of 3 names"),
    "other spec": ({"about": ABOUT | {"preprocessing": {"crop": 1}}}, "its preprocessing is"),
    "a fixed batch": ({"images": (1, 3, 8, 8)}, "images [1, 3, 8, 8] scores [1, 3]; should be"),
    "any size": ({"images": ("N", 3, "H", "W")}, "should be images (N, 3, crop, crop)"),
    "a detector's": ({"scores": "boxes"}, "boxes ['N', 3]; should be images"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_another_program_made(name, tmp_path):
    given, problem = OTHERS[name]
    path = write(tmp_path / "net.onnx", **given)
    with pytest.raises(InputError) as caught:
        models.load(path)
    assert path in str(caught.value) and problem in str(caught.value)


def test_what_is_no_net(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    with pytest.raises(InputError, match="File not found"):
        models.load(path)
    write(path)
    good = path.read_bytes()
    for content in (b"", b"PK\3\4", good[:60], b"\0" * 80):
        path.write_bytes(content)
        with pytest.raises(InputError, match="net.onnx cannot be run by ONNX Runtime: .*[A-Za-z]"):
            models.load(path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="net.onnx: .* pip install onnxruntime"):
        models.load(path)


def test_what_needs_more_than_scores(tmp_path):
    path = write(tmp_path / "net.onnx")
    with pytest.raises(InputError, match="only takes images of 8 x 8 pixels, not 9 x 8"):
        models.load(path)(torch.zeros(1, 3, 9, 8))
    with pytest.raises(InputError, match=r"net.onnx.* has no function features\(images"):
        extract_features.main([path, "a.jpg"])
    with pytest.raises(InputError, match="an ONNX file, .* classify.py and evaluate.py take"):
        models.load_file(path)
