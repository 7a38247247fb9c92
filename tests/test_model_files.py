"""Our own model files and Torch7's, in every format: written, read, and the same."""

import gzip
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from support.nets import V1, images, refused, same, shake, small
from support.t7_parts import written

import models
from formats import model_files, t7, torch7
from models.preresnet import preresnet
from models.resnet import resnet
from runtime import progress
from runtime.errors import InputError


@pytest.fixture
def net():
    return small()


def uncounted(content):
    """With the counters at 0, which Torch7 does not have."""
    state = content["model"]
    return {k: torch.tensor(0) if k.endswith("tracked") else v for k, v in state.items()}


@pytest.mark.parametrize("extension", model_files.EXTENSIONS)
def test_what_is_written_is_read(net, extension, tmp_path):
    path, content = str(tmp_path / "net") + extension, models.pack(net)
    model_files.write(path, content)
    os.rename(path, tmp_path / "file")
    read = model_files.read(tmp_path / "file")
    if extension == ".t7":
        assert read["config"].items() <= content["config"].items()
        content = {**content, "config": read["config"], "model": uncounted(content)}
    same(read, content)
    assert isinstance(read["preprocessing"]["mean"], tuple)
    x = images(net, 8)
    assert torch.equal(models.load_file(tmp_path / "file").eval()(x), net(x))


@pytest.mark.parametrize("extension", model_files.EXTENSIONS)
def test_loading_draws_no_weights_and_is_shown_where_it_is_slow(
    net, extension, tmp_path, monkeypatch, capsys
):
    """Drawing on the meta device imports torch._dynamo: 150 MiB, and most of the seconds."""
    path = str(tmp_path / "net") + extension
    model_files.write(path, models.pack(net))
    monkeypatch.setattr(torch.nn.init, "normal_", None)
    monkeypatch.setattr(progress, "SILENT", 0)
    assert torch.equal(models.load(path)(images(net, 8)), net(images(net, 8)))
    assert f"=> loading {path}: done in" in capsys.readouterr().err


def test_a_header_of_any_length_is_known(net, tmp_path):
    path, content = str(tmp_path / "net.safetensors"), models.pack(net)
    lengths = set()  # of the header, a multiple of 8: the file's first byte
    for i in range(0, 256, 8):
        model_files.write(path, {**content, "classes": ["x" * i]})
        with open(path, "rb") as file:
            lengths.add(file.read(1))
        assert model_files.kind(path) == "safetensors"
    assert len(lengths) == 32


@pytest.mark.parametrize("extension", model_files.EXTENSIONS)
def test_classes_and_preprocessing_may_be_unknown(net, extension, tmp_path):
    path = str(tmp_path / "net") + extension
    model_files.write(path, {**models.pack(net), "classes": None, "preprocessing": None})
    read = model_files.read(path)
    assert read["classes"] is None and read["preprocessing"] is None


def test_a_channels_last_net_and_views_are_written(net, tmp_path):
    content = models.pack(net.to(memory_format=torch.channels_last))
    whole = torch.cat([tensor.flatten() for tensor in content["model"].values()]).abs()
    for extension in model_files.EXTENSIONS:
        path = str(tmp_path / "net") + extension
        model_files.write(path, content)
        state = model_files.read(path)["model"]
        assert all(torch.equal(state[k], v) for k, v in content["model"].items() if v.ndim)
    halves = {k: whole[: v.numel()].view(v.shape) for k, v in content["model"].items() if v.ndim}
    model_files.write(path := str(tmp_path / "net.safetensors"), {**content, "model": halves})
    read = model_files.read(path)["model"]
    assert all(torch.equal(read[name], tensor) for name, tensor in halves.items())


def test_a_net_of_another_file_than_ours_has_no_t7(net, tmp_path):
    content = models.pack(net)
    content["config"] = {**content["config"], "net": "plain"}
    with pytest.raises(InputError, match="Torch7 has no net plain"):
        model_files.write(str(tmp_path / "net.t7"), content)
    with pytest.raises(InputError, match=r"net\.bin should end in one of \.pth, "):
        model_files.write(str(tmp_path / "net.bin"), content)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("extension", model_files.EXTENSIONS)
def test_where_nothing_can_be_written(net, extension, tmp_path):
    with pytest.raises(InputError, match="cannot write .*: No such file"):
        model_files.write(str(tmp_path / "none" / "net") + extension, models.pack(net))


def test_a_missing_package_is_named(net, tmp_path, monkeypatch):
    path = str(tmp_path / "net.safetensors")
    model_files.write(path, models.pack(net))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    refused(path, "pip install safetensors")
    with pytest.raises(InputError, match="pip install safetensors"):
        model_files.write(path, models.pack(net))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("extension", [".pth", ".safetensors"])
def test_the_type_of_the_weights_stays(net, dtype, extension, tmp_path):
    path = str(tmp_path / "net") + extension
    content = models.pack(net.to(dtype))
    model_files.write(path, content)
    same(model_files.read(path), content)
    assert models.load_file(path).fc.weight.dtype == dtype
    if extension == ".pth":
        torch.save(content["model"], path)  # bare
        assert models.load_file(path).conv1.weight.dtype == dtype


def test_metadata_are_for_everybody_to_read(net, tmp_path):
    path = tmp_path / "net.safetensors"
    model_files.write(str(path), models.pack(net))
    with safetensors.safe_open(path, "pt") as file:
        about = {name: json.loads(text) for name, text in file.metadata().items() if text != "pt"}
    assert about["config"]["cardinality"] == 2 and about["classes"][1] == "Hündin"
    assert about["preprocessing"]["std"] == [60.0, 61.5, 62.0]


# ---------- Torch7 ----------


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: resnet(18, 2), {**V1, "resize": None}),
        (lambda: resnet(8, 10, "cifar"), (125.3, 123.0, 113.9)),
        (lambda: preresnet(8, 100, "cifar"), (129.3, 124.1, 112.4)),
        (lambda: resnet(8, 3, "cifar"), None),
    ],
)
def test_a_file_of_torch7_gets_the_originals_input_spec(make, expected, tmp_path):
    net = shake(make())
    tree, path = torch7.to_t7(net.config, net.state_dict()), str(tmp_path / "model")
    for ascii in (False, True) if net.config["stem"] == "cifar" else (False,):
        Path(path).write_bytes(written(tree, ascii))
        content = model_files.read(path)
        assert content["classes"] is None
        state = uncounted({"model": net.state_dict()})
        assert content["model"].keys() == state.keys()
        assert all(torch.equal(content["model"][name], state[name]) for name in state)
        assert content["preprocessing"] is None and content["torch7"]
        found = models.load_file(path).input_spec
        if isinstance(expected, tuple):
            assert found.pop("mean") == expected and len(found.pop("std")) == 3
            assert found == {"scale": 32, "crop": 32, "largest": 255}
        elif expected:
            assert {**found, "resize": None} == expected
        else:
            assert found is None


@pytest.mark.parametrize("extension", [".t7", ".safetensors"])
def test_what_was_read_does_not_hang_on_the_file(net, extension, tmp_path):
    path, state = str(tmp_path / "net") + extension, net.state_dict()
    model_files.write(path, models.pack(net))
    read = model_files.read(path)["model"]
    with open(path, "r+b") as file:
        file.write(bytes(os.path.getsize(path)))
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items() if tensor.ndim)


def test_a_tree_of_torch7_that_is_no_net(tmp_path):
    path = str(tmp_path / "model.t7")
    for value in ({"learningRate": 0.1}, None, [torch.ones(3)]):
        t7.save(path, value)
        refused(path)
    assert model_files.kind(path) == "t7"
    assert model_files.load_t7(path).array()[0].tolist() == [1, 1, 1]
    os.truncate(path, 30)
    with pytest.raises(InputError, match="byte"):
        model_files.load_t7(path)


def test_a_packed_t7(net, tmp_path):
    path, packed = str(tmp_path / "net.t7"), str(tmp_path / "net.t7.gz")
    model_files.write(path, models.pack(net))
    with open(path, "rb") as file:
        data = file.read()
    with gzip.open(packed, "wb") as file:
        file.write(data)
    assert model_files.kind(packed) == "t7"
    same(model_files.read(packed), model_files.read(path))
    with open(packed, "rb") as file:
        half = file.read()[: os.path.getsize(packed) // 2]
    (tmp_path / "half.t7.gz").write_bytes(half)
    refused(tmp_path / "half.t7.gz", "is damaged")
    with gzip.open(packed, "wb") as file:
        file.write(data + bytes(40 * len(data)))
    refused(packed, "unpacks to over 32 times its size")


@pytest.mark.parametrize("content", [b"PK\3\4 and so on", b"", b"text"])
def test_other_packed_files(content, tmp_path):
    (tmp_path / "net.pth.gz").write_bytes(gzip.compress(content))
    refused(tmp_path / "net.pth.gz", "only a .t7 can be read while gzip packs it")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_used_as_float32(net, dtype, tmp_path):
    model_files.write(str(tmp_path / "net.pth"), models.pack(net.to(dtype)))
    model = models.load(tmp_path / "net.pth")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    picture = np.full((40, 40, 3), 99, np.uint8)
    assert model(model.transform(picture)[None]).dtype == torch.float32
    assert models.load_file(tmp_path / "net.pth").fc.weight.dtype == dtype  # as convert.py keeps it


def one_tensor(state, first, second, third):
    state[second] = state[first]


def slices(state, first, second, third):
    size, flat = len(state[first]), torch.rand(2 * len(state[first]))
    state[first], state[second] = flat[:size], flat[size // 2 : size // 2 + size]


def parameters_of_torch7(state, first, second, third):
    """Slices that do not overlap, as getParameters() leaves them."""
    flat = torch.rand(2 * len(state[first]))
    state[first], state[second] = flat.chunk(2)


def expanded(state, first, second, third):
    state[third] = torch.rand(9 * len(state[third]))[:1].expand(len(state[third]))


@pytest.mark.parametrize("share", [one_tensor, slices, parameters_of_torch7, expanded])
def test_weights_that_share_memory_in_a_file_are_trained_apart(share, net, tmp_path):
    content = models.pack(net)
    names = [name for name in content["model"] if name.endswith(("bn1.bias", "bn2.bias"))]
    content["model"] = dict(content["model"])
    share(content["model"], *names[1:4])
    torch.save(content, tmp_path / "net.pth")
    before = {name: tensor.clone() for name, tensor in content["model"].items()}
    state = models.load_file(tmp_path / "net.pth").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    for place, tensor in enumerate(state.values()):
        tensor.fill_(place)
    for place, tensor in enumerate(state.values()):
        assert (tensor == place).all()
