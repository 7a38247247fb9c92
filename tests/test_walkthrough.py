"""The README's way from a .t7 file and a folder of photos to a classified image, line by line."""

import os
import re
import shutil
import subprocess
import sys

import models
from formats import model_files
from models.resnext import resnext

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


def test_from_a_t7_file_to_a_classified_photo(photos, tmp_path):
    data = tmp_path / "photos"
    shutil.copytree(photos, data)
    for split in ("train", "val"):
        os.rename(data / split / "plain", data / split / "cat")
    shutil.copy(data / "val" / "cat" / "0.jpg", data / "val" / "cat" / "7.jpg")
    model = resnext(depth=50, cardinality=32, base_width=4)
    model.classes, model.input_spec = None, None
    model_files.write(str(tmp_path / "resnext_50_32x4d.t7"), models.pack(model))

    (commands,) = blocks("bash")
    output = []
    for line in commands.splitlines():
        program, script, *words = line.replace("-nEpochs 10", "-nEpochs 1").split()
        assert program == "python"
        output.append(run([sys.executable, os.path.join(ROOT, script), *words], tmp_path))
    assert " => Replacing classifier with 2-way classifier" in output[0]
    assert output[1].startswith("Classes for\tphotos/val/cat/7.jpg\n")
    assert output[1].count("\n") == 1 + 2 + 1  # two classes
    assert output[2] == "saved features to features.npz\n"
    best = re.search(r"^[\d.]+\t(.*)$", output[1], re.M)[1]

    (code,) = blocks("python")
    code = code.replace('torch.hub.load("."', f"torch.hub.load({ROOT!r}")
    assert ROOT in code
    printed = run([sys.executable, "-c", code], tmp_path)
    assert printed == best + "\n"
