"""torch.hub on this folder, in processes of their own: it imports by name."""

import json
import os
import subprocess
import sys

import models
from models.resnet import resnet
from storage import atomic

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

LOAD = """
import json, multiprocessing, sys, torch
import numpy as np
root = sys.argv[1]
model = torch.hub.load(root, "load", "net.pth", source="local")
image = np.full((50, 70, 3), 180, np.uint8)
input = model.transform(image)
with multiprocessing.get_context("spawn").Pool(1) as pool:  # as a DataLoader's worker
    spawned = pool.apply(model.transform, (image,))
with torch.no_grad():
    scores = model(input[None])
nets = {}
for name, arguments in {
    "resnext": dict(depth=29, cardinality=4, base_width=8, classes=10, stem="cifar"),
    "preresnext": dict(depth=29, cardinality=4, base_width=8, classes=10, stem="cifar"),
    "resnet": dict(depth=18),
    "preresnet": dict(depth=20, classes=10, stem="cifar"),
}.items():
    net = torch.hub.load(root, name, source="local", **arguments)
    nets[name] = [net.config["net"], net.fc.out_features]
print(json.dumps({
    "training": model.training, "classes": model.classes, "shape": list(scores.shape),
    "input": [input.min().item(), input.max().item(), *input.shape],
    "nets": nets, "spawned": torch.equal(spawned, input),
}))
"""

OTHER = """
import sys, types, torch, torchvision
root = sys.argv[1]
for name in ("datasets", "models", "runtime", "storage"):
    before = set(sys.modules)
    sys.modules[name] = types.ModuleType(name)
    place = root + "/.venv" if name == "datasets" else "/elsewhere"
    sys.modules[name].__file__ = f"{place}/{name}.py"
    try:
        torch.hub.load(root, "load", "net.pth", source="local")
    except ImportError as error:
        print(error)
    for new in sys.modules.keys() - before:
        del sys.modules[new]
"""


def run(script, folder):
    command = [sys.executable, "-c", script, ROOT]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_load_and_the_nets(tmp_path):
    model = resnet(8, 3, "cifar")
    model.classes = ["ant", "bee", "cat"]
    mean, std = (120, 120, 120), (60, 60, 60)
    model.input_spec = {"scale": 40, "crop": 32, "largest": 255, "mean": mean, "std": std}
    atomic.save(tmp_path / "net.pth", models.pack(model))
    result = json.loads(run(LOAD, tmp_path))
    assert result["training"] is False and result["classes"] == ["ant", "bee", "cat"]
    assert result["shape"] == [1, 3]
    low, high, *shape = result["input"]
    assert shape == [3, 32, 32] and abs(low - 1) < 1e-5 and abs(high - 1) < 1e-5  # (180 - 120) / 60
    assert result["nets"] == {
        "resnext": ["resnext", 10],
        "preresnext": ["preresnext", 10],
        "resnet": ["resnet", 1000],
        "preresnet": ["preresnet", 10],
    }
    assert result["spawned"]


def test_a_package_of_the_same_name_is_explained(tmp_path):
    lines = run(OTHER, tmp_path).splitlines()
    for name, line in zip(("datasets", "models", "runtime", "storage"), lines, strict=True):
        place = f"{ROOT}/.venv" if name == "datasets" else "/elsewhere"
        assert f"one of ours: {name} ({place}/{name}.py); " in line
