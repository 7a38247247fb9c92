"""convert.py: round trips to the bit, exported nets that are run, and what it refuses."""

import contextlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
from PIL import Image
from support.nets import OWN, images, ours, shake

import convert
import models
from formats import hubs
from models.preresnext import preresnext
from models.resnet import resnet
from models.resnext import resnext
from runtime import command
from runtime.errors import InputError
from storage import atomic

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

NETS = {
    "resnext": lambda: resnext(11, 2, 4, 3, "cifar"),
    "forms": lambda: resnext(20, 3, 4, 3, "cifar", "C", "resnext_B"),
    "bottleneck": lambda: resnext(11, 1, 64, 3, "cifar", "none", "resnet"),
    "preresnext": lambda: preresnext(11, 2, 4, 3, "cifar", "A", "resnext_A"),
    "resnet": lambda: resnet(8, 3, "cifar", "A"),
}


def run(*words):
    convert.main([str(word) for word in words])


def refused(capsys, status, *words):
    """The one sentence on stderr of a command line that fails."""
    with pytest.raises(SystemExit) as caught:
        command.run(lambda: run(*words))
    out, err = capsys.readouterr()
    assert caught.value.code == status and out == ""
    assert err.count("\n") == 1
    return err


@pytest.fixture
def saved(tmp_path):
    """Makes a file of ours: from a net to its path."""

    def save(net, counted=0):
        net = ours(net, ["cat", "dog", "fox"], OWN)
        for name, tensor in net.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(counted)
        atomic.save(str(tmp_path / "in.pth"), models.pack(net))
        return tmp_path / "in.pth"

    return save


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_there_and_back_is_the_same_file(name, dtype, saved, tmp_path, capsys):
    path = saved(NETS[name]().to(dtype))
    for extension in (".t7", ".safetensors", ".pth"):
        run(path, tmp_path / f"net{extension}")
        run(tmp_path / f"net{extension}", tmp_path / "out.pth")
        assert (tmp_path / "out.pth").read_bytes() == path.read_bytes()
    run(tmp_path / "net.t7", tmp_path / "net.safetensors")
    run(tmp_path / "net.safetensors", tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == path.read_bytes()
    assert capsys.readouterr().out.count("\n") == 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, saved, tmp_path):
    path = saved(NETS["resnext"]().to(dtype))
    run(path, tmp_path / "net.safetensors")
    run(tmp_path / "net.safetensors", tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == path.read_bytes()
    run(path, tmp_path / "net.t7")  # whose numbers are single or double
    wider = models.load_file(tmp_path / "net.t7").state_dict()
    for name, tensor in models.load_file(path).state_dict().items():
        assert torch.equal(wider[name], tensor.to(wider[name].dtype))
        assert wider[name].dtype in (torch.float32, torch.int64)


def test_only_torch7_drops_the_number_of_batches(saved, tmp_path):
    path = saved(NETS["resnext"](), counted=7)
    for extension, counted in ((".safetensors", 7), (".t7", 0)):
        run(path, tmp_path / f"net{extension}")
        state = models.load_file(tmp_path / f"net{extension}").state_dict()
        assert {state[name].item() for name in state if "tracked" in name} == {counted}


def test_from_torchvision_through_torch7_and_back(tmp_path):
    theirs = shake(torchvision.models.resnet18(num_classes=3))
    torch.save(theirs.state_dict(), tmp_path / "in.pth")
    run(tmp_path / "in.pth", tmp_path / "net.t7")
    run(tmp_path / "net.t7", tmp_path / "out.pth")
    model = models.load_file(tmp_path / "out.pth").eval()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor) or name.endswith("tracked")
    assert model.input_spec["resize"] == "bilinear"  # which Torch7 would not have
    theirs.load_state_dict(torch.load(tmp_path / "out.pth")["model"])
    x = images(model.double(), 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), theirs.double()(x), rtol=1e-12, atol=1e-12)


def test_forms(saved, tmp_path):
    path = saved(NETS["resnext"]().double())
    model = models.load_file(path).eval()
    x, before = images(model, 8), path
    for form in ("resnext_B", "resnext_A", "resnext_C"):
        run("-form", form, before, tmp_path / f"{form}.pth")
        before = tmp_path / f"{form}.pth"
        other = models.load_file(before).eval()
        assert other.config == {**model.config, "bottleneck": form}
        # float64; the order of summation differs
        torch.testing.assert_close(other(x), model(x), rtol=1e-11, atol=1e-12)
    assert before.read_bytes() == path.read_bytes()


TIMMS = {
    "basic": lambda: resnet(18, 3),
    "grouped": lambda: resnext(50, 2, 4, 3),
    "plain bottleneck": lambda: resnext(50, 1, 64, 3, bottleneck="resnet"),
}


@pytest.mark.parametrize("name", TIMMS)
def test_a_model_hubs_folder_is_loaded_by_timm(name, saved, tmp_path):
    path = saved(TIMMS[name]())
    folder = tmp_path / "hub"
    run(path, f"{folder}/")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours, back = (models.load_file(file).eval() for file in (path, folder / "model.safetensors"))
    x = images(ours, 32)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(x), ours(x), rtol=1e-5, atol=1e-5)
    assert theirs.pretrained_cfg["label_names"] == back.classes == ["cat", "dog", "fox"]
    assert back.input_spec == ours.input_spec
    found = timm.data.resolve_model_data_config(theirs)
    assert found["input_size"] == [3, OWN["crop"], OWN["crop"]]
    assert int(found["input_size"][-1] / found["crop_pct"]) == OWN["scale"]
    for key in ("mean", "std"):  # of images between 0 and 1
        assert found[key] == pytest.approx([n / OWN["largest"] for n in OWN[key]])


def test_the_page_on_other_programs(saved, tmp_path, monkeypatch):
    """Its lines, as far as the libraries are here; test_onnx runs an exported net."""
    (tmp_path / "finetuned").mkdir()
    os.replace(saved(resnet(18, 3)), tmp_path / "finetuned" / "model_best.pth")
    os.makedirs(tmp_path / "photos" / "cat")
    Image.new("RGB", (300, 240), "red").save(tmp_path / "photos" / "cat" / "1.jpg")
    (tmp_path / "finetuned" / "log.jsonl").write_text('{"epoch": 1}\n')
    monkeypatch.chdir(tmp_path)
    run("finetuned/model_best.pth", "hub/")
    with open(os.path.join(ROOT, "docs", "other-programs.md")) as file:
        blocks = re.findall(r"```python\n(.*?)```", file.read(), re.S)
    names, done = {}, 0
    for block in blocks:
        if "net.onnx" not in block:
            with contextlib.suppress(ModuleNotFoundError):
                exec(block, names)
                done += 1
    assert done >= 3


@pytest.mark.parametrize("name", ["resnext", "forms", "preresnext", "resnet"])
def test_a_net_that_timm_lacks_has_no_folder(name, saved, tmp_path, capsys):
    error = refused(capsys, 1, saved(NETS[name]()), f"{tmp_path}/hub/")
    assert "timm has the nets resnet and resnext" in error and os.listdir(tmp_path / "hub") == []


@pytest.mark.parametrize(
    "other",
    [{"norm": "branch"}, {"norm": "sum"}, {"expansion": 2}, {"preactivation": True}],
    ids=str,
)
def test_a_net_that_timm_builds_otherwise_is_not_described(other):
    config = resnext(50, 2, 4, 3).config if "norm" not in other else resnet(50, 3).config
    content = {"config": config, "preprocessing": None, "classes": None}
    assert hubs.described(content, [3, 4, 6, 3])["num_classes"] == 3
    with pytest.raises(InputError, match="timm has the nets resnet and resnext"):
        hubs.described({**content, "config": {**config, **other}}, [3, 4, 6, 3])


def test_a_folder_that_cannot_be_made(saved, tmp_path, capsys):
    path = saved(NETS["resnet"]())
    assert "cannot make the folder" in refused(capsys, 2, path, f"{path}/")


@pytest.mark.parametrize("name", ["resnext", "preresnext"])
def test_onnx(name, saved, tmp_path, monkeypatch, capsys):
    path = saved(NETS[name]())
    model = models.load(path)
    monkeypatch.chdir(tmp_path)
    run(path, "best.onnx")
    proto = onnx.load("best.onnx")
    onnx.checker.check_model(proto, full_check=True)
    about = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert about["classes"] == ["cat", "dog", "fox"] and about["preprocessing"]["crop"] == 8
    exported = models.load("best.onnx")  # what classify.py and evaluate.py run
    assert exported.classes == model.classes and exported.input_spec == model.input_spec
    session = onnxruntime.InferenceSession("best.onnx")
    assert [place.name for place in session.get_inputs()] == ["images"]
    for count in (1, 2, 5):
        x = images(model, 8, count)
        (scores,) = session.run(["scores"], {"images": x.numpy()})
        expected = model(x).detach().numpy()
        assert torch.equal(exported(x), torch.from_numpy(scores))
        # float32, and batch norm is folded into the convolutions. Seen: 1e-6
        assert np.abs(scores - expected).max() <= 1e-4 * np.abs(expected).max()
    # the example in the documents has the same input and finds the same class
    with open(os.path.join(ROOT, "pretrained", "README.md"), encoding="utf-8") as file:
        (code,) = re.findall(r"```python\n([^`]*onnxruntime[^`]*)```", file.read())
    os.makedirs("photos/cat")
    for width, height in ((37, 20), (8, 31), (16, 16)):
        pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save("photos/cat/1.jpg", "PNG")
        found = {}
        exec(code, found)
        x = model.transform("photos/cat/1.jpg")
        np.testing.assert_allclose(found["x"].transpose(2, 0, 1), x, rtol=0, atol=1e-4)
        best = model.classes[model(x[None]).argmax()]
        assert capsys.readouterr().out.splitlines()[-1] == best


@pytest.mark.parametrize("name", NETS)
def test_pt2(name, saved, tmp_path):
    path = saved(NETS[name]().double())
    model = models.load_file(path).eval()
    run(path, tmp_path / "net.pt2")
    about = dict.fromkeys(("config", "classes", "preprocessing"), "")
    program = torch.export.load(tmp_path / "net.pt2", extra_files=about).module()
    assert json.loads(about["classes"]) == ["cat", "dog", "fox"]
    for count in (1, 2, 5):
        x = images(model, 8, count)
        torch.testing.assert_close(program(x), model(x), rtol=1e-12, atol=1e-12)


def test_the_size_that_a_net_without_preprocessing_takes(tmp_path):
    for net, side in ((resnet(18, 2), 224), (resnet(8, 3, "cifar"), 32)):
        atomic.save(str(tmp_path / "in.pth"), models.pack(ours(net)))
        run(tmp_path / "in.pth", tmp_path / "net.pt2")
        (node,) = torch.export.load(tmp_path / "net.pt2").graph.find_nodes(
            op="placeholder", target="x"
        )
        assert node.meta["val"].shape[1:] == (3, side, side)


def test_what_it_says(saved, tmp_path, capsys):
    run(saved(NETS["resnext"]()), tmp_path / "net.t7")
    run(tmp_path / "net.t7", tmp_path / "net.pth")
    parameters = sum(parameter.numel() for parameter in NETS["resnext"]().parameters())
    size = (tmp_path / "net.pth").stat().st_size / 1e6
    assert capsys.readouterr().out.splitlines()[1] == (
        f"=> {tmp_path / 'net.pth'}: resnext, depth 11, cardinality 2, base width 4, classes 3,"
        f" {parameters} parameters, {size:.1f} MB"
    )


def test_the_licence_of_facebooks_weights_is_named(tmp_path, capsys):
    for net, expected in (
        (resnext(50, 2, 4, 1000), 1),
        (resnext(50, 2, 4, 999), 0),
        (resnet(18), 0),
    ):
        atomic.save(str(tmp_path / "in.pth"), models.pack(ours(net)))
        run(tmp_path / "in.pth", tmp_path / "net.t7")
        assert "CC BY-NC" not in capsys.readouterr().out
        run(tmp_path / "net.t7", tmp_path / "out.pth")
        assert capsys.readouterr().out.count("CC BY-NC 4.0") == expected


@pytest.mark.parametrize(
    "words, problem",
    [
        ((), "give two files"),
        (("a.pth",), "give two files"),
        (("a.pth", "b.pth", "c.pth"), "give two files"),
        (("a.pth", "b"), "OUT b should end in .pth or .safetensors or .t7 or .onnx or .pt2"),
        (("a.pth", "b.PT"), "b.PT should end"),
        (("-what", "a.pth", "b.pth"), "unknown option -what"),
        (("a.pth", "b.pth", "-form"), "missing argument for option -form"),
        (("a.pth", "b.pth", "-form", "resnet"), "unknown form 'resnet'"),
    ],
)
def test_a_wrong_command_line(words, problem, capsys):
    assert problem in refused(capsys, 2, *words)


def test_what_cannot_be_converted(saved, tmp_path, capsys):
    assert "File not found: none.pth" in refused(capsys, 1, "none.pth", tmp_path / "out.t7")
    path = saved(NETS["resnet"]())
    problem = refused(capsys, 1, path, tmp_path / "out.t7", "-form", "resnext_B")
    assert "-form resnext_B is for the blocks of a ResNeXt" in problem
    for extension in convert.EXTENSIONS:
        problem = refused(capsys, 2, path, tmp_path / "none" / f"out{extension}")
        assert f"the folder '{tmp_path / 'none'}' does not exist" in problem
    path.write_bytes(b"\x80")
    assert "in.pth is damaged" in refused(capsys, 1, path, tmp_path / "out.t7")
    assert os.listdir(tmp_path) == ["in.pth"]


def test_a_missing_package_is_named(saved, tmp_path, capsys, monkeypatch):
    path = saved(NETS["resnet"]())
    for module, extension, names in (
        ("onnx", ".onnx", "pip install onnx onnxscript"),
        ("onnxscript", ".onnx", "pip install onnx onnxscript"),
        ("safetensors.torch", ".safetensors", "pip install safetensors"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert names in refused(capsys, 1, path, tmp_path / f"out{extension}")
    assert os.listdir(tmp_path) == ["in.pth"]


def test_as_a_script(saved, tmp_path):
    path = saved(NETS["resnet"]())
    script = [sys.executable, os.path.join(ROOT, "convert.py")]
    done = subprocess.run(
        [*script, path.name, "out.t7"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("=> out.t7: resnet, depth 8, classes 3, ")
    done = subprocess.run([*script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Usage: convert.py")
    quick = subprocess.run(
        [sys.executable, "-X", "importtime", *script[1:], "x"], capture_output=True, text=True
    )
    assert quick.returncode == 2 and "torch" not in quick.stderr  # an error does not wait for it


def test_the_names_of_the_classes_are_given(saved, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("ant\nbee\ncow\n")
    run(saved(NETS["resnet"]()), tmp_path / "out.pth", "-classes", tmp_path / "names.txt")
    assert models.load_file(tmp_path / "out.pth").classes == ["ant", "bee", "cow"]
    capsys.readouterr()
    (tmp_path / "names.txt").write_text("ant\n")
    words = tmp_path / "in.pth", tmp_path / "out.pth", "-classes", tmp_path / "names.txt"
    assert "has 1 names, but the model has 3 outputs" in refused(capsys, 1, *words)
