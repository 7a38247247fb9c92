"""Weights of torchvision and timm: recognised, the same to the last bit, downloaded by name."""

import argparse
import hashlib
import json
import os
import socket

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from support.nets import V1, images, refused, same, shake

import models
from formats import model_files, state_dicts
from formats.state_dicts import infer
from models.loading import from_config
from models.resnet import resnet
from models.resnext import resnext
from runtime import regular_files
from runtime.errors import InputError

# float64; the layers are the same, so only the order of summation may differ. Seen: 0.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}

B = {"stem": "imagenet", "shortcut": "B", "classes": 1000}
X = {**B, "net": "resnext", "bottleneck": "resnext_C"}
TORCHVISION = {
    "resnet18": {**B, "net": "resnet", "depth": 18},
    "resnet34": {**B, "net": "resnet", "depth": 34},
    "resnet50": {**B, "net": "resnet", "depth": 50},
    "resnet101": {**B, "net": "resnet", "depth": 101},
    "resnet152": {**B, "net": "resnet", "depth": 152},
    "resnext50_32x4d": {**X, "depth": 50, "cardinality": 32, "base_width": 4},
    "resnext101_32x8d": {**X, "depth": 101, "cardinality": 32, "base_width": 8},
    "resnext101_64x4d": {**X, "depth": 101, "cardinality": 64, "base_width": 4},
    "wide_resnet50_2": {**X, "depth": 50, "cardinality": 1, "base_width": 128},
    "wide_resnet101_2": {**X, "depth": 101, "cardinality": 1, "base_width": 128},
}


@pytest.fixture(scope="module")
def net18():
    return shake(torchvision.models.resnet18(num_classes=5))


def compare(theirs, path, side=64):
    """A net of another program and what was read of its file, to and fro, in float64."""
    model = models.load_file(path)
    own = model.state_dict()
    theirs.load_state_dict(own)  # back again; strict: every name and shape
    model, theirs = model.double().eval(), theirs.double().eval()
    with torch.inference_mode():
        x = images(model, side)
        torch.testing.assert_close(model(x), theirs(x), **CLOSE)
    assert model.classes is None and model.input_spec == V1
    return model


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_a_net_of_torchvision_computes_the_same(name, tmp_path):
    theirs = shake(getattr(torchvision.models, name)())
    path = tmp_path / "net.pth"
    torch.save(theirs.state_dict(), path)
    model = compare(theirs, path)
    path.unlink()  # 100 MB, which pytest would keep
    assert model.config.items() >= TORCHVISION[name].items()


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_configuration_is_read_off_the_names(name):
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
        config = infer(state)
        assert config == TORCHVISION[name]
        net = {"resnet": resnet, "resnext": resnext}[config.pop("net")]
        own = net(**config).state_dict()
    assert list(own) == list(state)
    assert all(own[name].shape == state[name].shape for name in own)


@pytest.mark.parametrize(
    "config",
    [
        {"net": "resnet", "depth": 20, "shortcut": "A", "stem": "cifar", "classes": 10},
        {"net": "resnet", "depth": 8, "shortcut": "B", "stem": "cifar", "classes": 10},
        {"net": "resnet", "depth": 14, "shortcut": "C", "stem": "cifar", "classes": 100},
        {"net": "resnet", "depth": 18, "shortcut": "C", "stem": "imagenet", "classes": 2},
        {"net": "resnet", "depth": 34, "shortcut": "A", "stem": "imagenet", "classes": 2},
        {**X, "depth": 29, "cardinality": 8, "base_width": 64, "stem": "cifar"},
        {**X, "depth": 20, "cardinality": 1, "base_width": 40, "stem": "cifar", "shortcut": "C"},
        {**X, "depth": 11, "cardinality": 1, "base_width": 64, "stem": "cifar", "shortcut": "A"}
        | {"bottleneck": "resnet"},
    ],
    ids=lambda config: f"{config['net']}{config['depth']}{config['shortcut']}",
)
def test_bare_weights_of_ours_are_recognised(config):
    arguments = {name: value for name, value in config.items() if name != "net"}
    with torch.device("meta"):
        net = {"resnet": resnet, "resnext": resnext}[config["net"]](**arguments)
    assert infer(net.state_dict()) == config


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_a_net_of_timm_computes_the_same(name, tmp_path):
    theirs = shake(timm.create_model(name))
    path = tmp_path / "net.bin"  # what it is, its bytes say
    safetensors.torch.save_file(theirs.state_dict(), path, {"format": "pt"})
    compare(theirs, path)
    path.unlink()


@pytest.mark.parametrize(
    "name, first",
    [
        ("resnet50d", "'conv1.0.weight' has no place"),
        ("seresnext50_32x4d", "'layer1.0.se.fc1.weight' has no place"),
        ("ecaresnet26t", "'conv1.0.weight' has no place"),
        ("resnetv2_50", "'stem.conv.weight' has no place"),
        ("vit_tiny_patch16_224", "'cls_token' has no place"),
    ],
)
def test_a_net_that_is_not_ours_is_refused(name, first):
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    with pytest.raises(InputError, match=first):
        state_dicts.find(state)


def test_a_refusal_names_the_file(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(timm.create_model("resnet14t").state_dict(), path)
    refused(path, "'conv1.0.weight' has no place")
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict() | {"x": torch.ones(1)}, path)
    refused(path, "'x' has no place")
    torch.save(timm.create_model("resnet50_gn").state_dict(), path)
    refused(path, "bn1.running_mean is missing")


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"layer1.0.conv1.weight": torch.ones(3, 3)}, "layer1.0.conv1.weight is of size (3, 3)"),
        ({"layer2.0.downsample.0.weight": None}, "layer2.0.downsample.0.weight is missing"),
        ({"layer4.2.conv1.weight": torch.ones(1)}, "for resnet"),  # no depth has as many blocks
        ({"fc.weight": None}, "no fc.weight"),
        ({"conv1.weight": torch.ones(64, 3, 5, 5)}, "a kernel of 5"),
        ({"conv1.weight": torch.ones(7)}, "no conv1.weight of 4 dimensions"),
        ({"layer1.0.conv2.weight": torch.ones(0, 0, 3, 3)}, "layer1.0.conv2.weight is of size"),
        ({"layer1.0.conv3.weight": torch.ones(1)}, "for resnet"),
    ],
)
def test_a_wrong_entry_is_named(net18, change, problem, tmp_path):
    state = {**net18.state_dict(), **change}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    torch.save(state, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", problem)


def test_what_training_programs_wrap_around_weights(net18, tmp_path):
    state, path = net18.state_dict(), tmp_path / "net.pth"
    worse = {name: tensor * 0 for name, tensor in state.items()}
    timms = {"epoch": 3, "state_dict": worse, "state_dict_ema": state, "optimizer": {"state": {}}}
    averaged = {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in state.items()}
    for saved in (
        {"state_dict": state},
        {"model": state, "args": argparse.Namespace(lr=0.1)},
        {**timms, "args": argparse.Namespace(model="resnet18")},
        {"model": worse, "model_ema": averaged},
        {f"module.{name}": tensor for name, tensor in state.items()},
        {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}},
    ):
        torch.save(saved, path)
        content = model_files.read(path)
        same(content, {**content, "model": state})


def test_an_old_file_has_no_counters_and_is_no_zip(net18, tmp_path):
    state, path = net18.state_dict(), tmp_path / "net.pth"
    old = {name: tensor for name, tensor in state.items() if "tracked" not in name}
    torch.save(old, path, _use_new_zipfile_serialization=False)
    read = model_files.read(path)["model"]
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in old.items())
    assert all(read[name] == 0 for name in read if "tracked" in name)


# ---------- weights by name ----------


def weights(url, name="IMAGENET1K_V1"):
    """An enumeration such as torchvision's, of one member with this address."""
    transforms = torchvision.transforms._presets.ImageClassification
    shown = lambda: transforms(crop_size=224, resize_size=232)  # noqa: E731
    meta = {"categories": ["tench", "goldfish", "shark", "ray", "cock"]}
    made = torchvision.models.Weights(url, shown, meta)
    return torchvision.models.WeightsEnum("Local", {name: made, "DEFAULT": made})


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's folder for this test: nothing has been downloaded."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture
def served(net18, tmp_path, monkeypatch):
    """Serve the weights of a resnet18 as torchvision's, from a file named by its hash."""
    torch.save(net18.state_dict(), tmp_path / "file")
    digest = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()

    def serve(tag=digest[:8]):
        path = (tmp_path / "file").rename(tmp_path / f"resnet18-{tag}.pth")
        enum = weights(path.as_uri())
        monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: enum)

    return serve


@pytest.mark.parametrize("member", ["", ":IMAGENET1K_V1", ":DEFAULT"])
def test_download(net18, served, hub, member, capsys):
    served()
    content = model_files.read("torchvision:resnet18" + member)
    same(content, {**content, "model": net18.state_dict()})
    assert content["config"] == {**TORCHVISION["resnet18"], "classes": 5}
    assert content["classes"] == ["tench", "goldfish", "shark", "ray", "cock"]
    assert content["preprocessing"] == {**V1, "scale": 232}
    assert len(os.listdir(hub)) == 1


def test_a_download_that_is_not_what_it_should_be(served, hub):
    served("00000000")
    refused("torchvision:resnet18", "cannot get", "hash", str(hub))
    assert os.listdir(hub) == []


def test_offline(hub, monkeypatch, net18):
    with socket.socket() as refusing, monkeypatch.context() as patched:
        refusing.bind(("127.0.0.1", 0))  # without listening
        url = f"http://127.0.0.1:{refusing.getsockname()[1]}/resnet18-f37072fd.pth"
        patched.setattr(torchvision.models, "get_model_weights", lambda name: weights(url))
        way_out = f"download {url} where there is a network, and put the file into {hub}"
        refused("torchvision:resnet18", "Connection refused", way_out)
    # with a copy, which the address of the default names, no network is needed
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    torch.save(net18.state_dict(), hub / os.path.basename(url))
    model = models.load_file("torchvision:resnet18:IMAGENET1K_V1")
    assert torch.equal(model.fc.weight, net18.fc.weight)
    assert len(model.classes) == 1000 and model.input_spec == V1
    (hub / os.path.basename(url)).write_bytes(b"broken")
    damaged = f"in place of the damaged one in {hub}"
    refused("torchvision:resnet18", "cannot get", f"download {url} where", damaged)


def test_every_name_has_weights():
    assert set(regular_files.TORCHVISION) == set(TORCHVISION)
    for name in TORCHVISION:
        newest = torchvision.models.get_model_weights(name).DEFAULT
        assert newest.transforms().interpolation.value == "bilinear"
        assert len(newest.meta["categories"]) == 1000


def test_an_unknown_name_is_answered_with_the_known_ones(hub):
    refused("torchvision:vgg16", "resnet18, ", "resnext101_64x4d")
    refused("torchvision:resnet50:V3", "IMAGENET1K_V1, IMAGENET1K_V2")
    refused("torchvision:", "resnet18")


@pytest.mark.parametrize("width", [8, 16, 32, 48])
def test_the_instagram_nets_fit(width):
    """ResNeXt-101 32x8d to 32x48d (WSL), by shape: on the meta device."""
    with torch.device("meta"):
        theirs = torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck,
            [3, 4, 23, 3],
            groups=32,
            width_per_group=width,
        )
        state = theirs.state_dict()
        ours = from_config(infer(state))
    expected = {**X, "depth": 101, "cardinality": 32, "base_width": width}
    assert infer(state) == expected
    shapes = {name: tensor.shape for name, tensor in state.items()}
    assert shapes == {name: tensor.shape for name, tensor in ours.state_dict().items()}
    # the sizes in facebookresearch/WSL-Images' README, in millions
    published = {8: 88, 16: 193, 32: 466, 48: 829}[width]
    size = sum(parameter.numel() for parameter in ours.parameters())
    assert size / 1e6 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("prefix", ["model.", "net.", "module.", "model.module._orig_mod."])
def test_a_checkpoint_of_lightning(prefix, net18, tmp_path):
    state = {prefix + name: tensor for name, tensor in net18.state_dict().items()}
    saved = {"epoch": 3, "pytorch-lightning_version": "2.5", "state_dict": state}
    torch.save({**saved, "hyper_parameters": {"lr": 0.1}}, tmp_path / "last.ckpt")
    compare(net18, tmp_path / "last.ckpt")


def test_nets_that_blur_are_refused_where_something_names_them(net18, tmp_path):
    """timm's resnetblur18 has the names and shapes of resnet18."""
    state = timm.create_model("resnetblur18").state_dict()
    sentence = "is timm's resnetblur18, which blurs before it subsamples"
    torch.save(state, tmp_path / "resnetblur18-84f4748f.pth")
    refused(tmp_path / "resnetblur18-84f4748f.pth", sentence)
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": state, "arch": "resnetblur18.tag"}, path)
    refused(path, sentence)
    torch.save({"state_dict": state, "args": argparse.Namespace(model="resnetblur18")}, path)
    refused(path, sentence)
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(state, path, {"format": "pt", "architecture": "resnetblur18"})
    refused(path, sentence)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path)
    (tmp_path / "config.json").write_text('{"architecture": "resnetblur18"}')
    refused(path, sentence)
    for text in ('{"architecture": "resnet18"}', "[1]", "{", ""):
        (tmp_path / "config.json").write_text(text)
        assert models.load_file(path).config["depth"] == 18


def test_a_folder_of_the_hub_is_a_model(net18, tmp_path):
    """With the input and the class names that timm's config.json says."""
    cfg = timm.create_model("resnet18").pretrained_cfg
    cfg = {name: cfg[name] for name in ("mean", "std", "crop_pct", "input_size", "interpolation")}
    cfg |= {"mean": [0.5, 0.4, 0.3], "crop_pct": 0.95, "interpolation": "bicubic"}
    labels = ["tench", "goldfish", "shark", "ray", "cock"]
    config = {"architecture": "resnet18", "pretrained_cfg": cfg, "label_names": labels}
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(net18.state_dict(), tmp_path / "model.safetensors")
    model = models.load(tmp_path)
    assert model.classes == labels
    pixels = np.random.default_rng(0).integers(0, 256, (300, 260, 3), np.uint8)
    for mode in ("center", "squash"):
        cfg |= {"input_size": [3, 224, 224], "crop_mode": mode}
        (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": cfg}))
        tuples = {**cfg, "input_size": (3, 224, 224)}
        theirs = timm.data.create_transform(**timm.data.resolve_data_config(tuples))
        for shape in ((300, 260, 3), (90, 400, 3)):
            pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            found = models.load(tmp_path).transform(pixels)
            torch.testing.assert_close(found, theirs(Image.fromarray(pixels)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "key, value, used",
    [
        ("crop_mode", "border", "'center'"),
        ("crop_pct", "1", "0.875"),
        ("crop_pct", 0, "0.875"),
        ("input_size", 3, "[3, 224, 224]"),
        ("input_size", [3, 224, 160], "[3, 224, 224]"),
        ("interpolation", "lanczos", "'bicubic'"),
    ],
)
def test_a_line_names_what_is_not_followed_of_a_config(key, value, used, net18, tmp_path, capsys):
    torch.save(net18.state_dict(), tmp_path / "pytorch_model.bin")
    for found in ({key: value}, {}, {"mean": [0.5, 0.4, 0.3]}):
        (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": found}))
        spec = {**V1, "resize": "bicubic", "mean": tuple(found.get("mean", V1["mean"]))}
        assert models.load_file(tmp_path).input_spec == (spec if found else V1)
        line = f"=> {tmp_path}: {key} {value!r} is not followed; {used} is used\n"
        assert capsys.readouterr().err == (line if key in found else "")


def transformers_names(state):
    """The names that ResNetForImageClassification gives the entries of torchvision's ResNet."""
    found = {}
    for name, tensor in state.items():
        *path, layer, field = name.replace("downsample.", "downsample").split(".")
        part = "convolution" if layer.startswith("conv") or layer[-1] == "0" else "normalization"
        if layer == "fc":
            found[f"classifier.1.{field}"] = tensor
        elif not path:
            found[f"resnet.embedder.embedder.{part}.{field}"] = tensor
        else:
            block = f"resnet.encoder.stages.{int(path[0][-1]) - 1}.layers.{path[1]}"
            place = "shortcut" if "down" in layer else f"layer.{int(layer[-1]) - 1}"
            found[f"{block}.{place}.{part}.{field}"] = tensor
    return found


def test_a_folder_of_transformers_is_a_model(net18, tmp_path, capsys):
    state = transformers_names(net18.state_dict())
    assert "resnet.encoder.stages.1.layers.0.shortcut.normalization.running_var" in state
    torch.save(state, tmp_path / "pytorch_model.bin")
    labels = {str(i): f"name {i}" for i in range(5)}
    config = {"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}
    config |= {"id2label": dict(sorted(labels.items(), reverse=True)), "hidden_act": "relu"}
    processor = {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.9}
    processor |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.1], "resample": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = {**V1, "scale": 248, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.1)}
    spec |= {"resize": "bicubic"}
    squash = {**spec, "scale": 384, "crop": 384, "squash": True}
    for size, expected in ((224, spec), ({"shortest_edge": 224}, spec), (384, squash)):
        text = json.dumps({**processor, "size": size})
        (tmp_path / "preprocessor_config.json").write_text(text)
        model = models.load_file(tmp_path)
        assert model.input_spec == expected and model.classes == list(labels.values())
    assert not capsys.readouterr().err
    for key, value in {
        "image_processor_type": "ViTImageProcessor",
        **{"size": {"height": 224, "width": 224}, "do_resize": False, "do_rescale": False},
        **{"do_normalize": False, "rescale_factor": 1, "resample": 1},
    }.items():
        text = json.dumps({**processor, "size": 224, key: value})
        (tmp_path / "preprocessor_config.json").write_text(text)
        found = models.load_file(tmp_path).input_spec
        assert found == {**spec, "resize": "bilinear" if key == "resample" else "bicubic"}
        assert capsys.readouterr().err.startswith(f"=> {tmp_path}: {key} {value!r} is not followed")
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(images(model, 64)), net18(images(model, 64)))
    for place in ("downsample_in_bottleneck", "downsample_in_first_stage"):
        (tmp_path / "config.json").write_text(json.dumps({**config, place: True}))
        refused(tmp_path, f"its config.json has {place}")


@pytest.mark.parametrize(
    "config, spec",
    [
        ({"input_size": [3, 160, 160], "crop_pct": 0.95}, (168, 160, "bicubic")),
        ({"pretrained_cfg": {"input_size": [3, 288, 288]}}, (329, 288, "bicubic")),
        ({"num_classes": 5}, (256, 224, "bilinear")),
        ({}, (256, 224, "bilinear")),
    ],
)
def test_a_config_of_timm_may_lack_entries(config, spec, net18, tmp_path):
    """As one of an older version, which has no pretrained_cfg and calls the names labels."""
    labels = ["tench", "goldfish", "shark", "ray", "cock"]
    config = {"architecture": "resnet18", **config, "labels": labels}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(net18.state_dict(), tmp_path / "pytorch_model.bin")
    model = models.load_file(tmp_path)
    assert model.input_spec == {**V1, **dict(zip(("scale", "crop", "resize"), spec))}
    assert model.classes == labels
