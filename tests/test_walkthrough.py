"""The README's way from trained weights and a folder of photos to a classified image, line by line.

A .t7 file takes the place of the weights that torchvision would download.
"""

import os
import re
import shutil
import subprocess
import sys

import models
from formats import model_files
from models.resnet import resnet

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def blocks(language):
    """The code blocks of the section on trained weights."""
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        section = re.search(r"## Start from trained weights\n(.*?)\n## ", file.read(), re.S)[1]
    return re.findall(rf"```{language}\n(.*?)```", section, re.S)


def run(words, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_from_trained_weights_to_a_classified_photo(photos, tmp_path):
    data = tmp_path / "photos"  # one folder of classes
    shutil.copytree(os.path.join(photos, "train"), data)
    os.rename(data / "plain", data / "cat")
    model = resnet(18)
    model.classes, model.input_spec = None, None
    model_files.write(str(tmp_path / "resnet-18.t7"), models.pack(model))

    (commands,) = blocks("bash")
    output = []
    for line in commands.splitlines():
        line = line.replace("-nEpochs 15 -LRSteps 11,14", "-nEpochs 1 -trainCrop 64")
        program, script, *words = line.replace("torchvision:resnet18", "resnet-18.t7").split()
        assert program == "python"
        output.append(run([sys.executable, os.path.join(ROOT, script), *words], tmp_path))
    assert " => Replacing classifier with 2-way classifier" in output[0]
    assert output[1].startswith("Classes for\tphotos/cat/1.jpg\n")
    assert output[1].count("\n") == 1 + 2 + 1  # two classes
    assert output[2] == "saved features to features.npz\n"
    probability, best = re.search(r"^([\d.]+)\t(.*)$", output[1], re.M).groups()

    (code,) = blocks("python")
    code = code.replace('torch.hub.load("."', f"torch.hub.load({ROOT!r}")
    assert ROOT in code
    printed = run([sys.executable, "-c", code], tmp_path)
    name, value = printed.split()
    assert name == best and abs(float(value) - float(probability)) < 1e-4
