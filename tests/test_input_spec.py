"""Any image as a net's input: equal to the bit to what the datasets give, and to torchvision."""

import io
import os
import pickle
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models as tv

from datasets import cifar10, digits, imagenet
from datasets.input_spec import InputTransform
from pretrained import inference
from runtime.errors import InputError

PHOTO = {
    "scale": 256,
    "crop": 224,
    "largest": 1,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
SMALL = {**PHOTO, "scale": 40, "crop": 32}
random = np.random.default_rng(0)


def pixels(height, width):
    """Noise: every pixel matters."""
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


def options(**more):
    return types.SimpleNamespace(
        data="somewhere",
        **{"tenCrop": False, "testScale": 256, "testCrop": 224, "trainCrop": 224, **more},
    )


# as the datasets


@pytest.mark.parametrize("shape", [(300, 401), (401, 300), (256, 333), (90, 70)])
@pytest.mark.parametrize("more", [{}, {"testScale": 80, "testCrop": 80}])
def test_photos_are_as_in_validation(tmp_path, shape, more):
    Image.fromarray(pixels(*shape)).save(tmp_path / "a.png")
    info = {"val_paths": np.array([b"a.png"]), "val_targets": np.array([0])}
    dataset = imagenet.create(info, options(**more), "val")
    dataset.folder = os.fsencode(tmp_path)
    expected = dataset.transform()(dataset.get(0)[0])
    result = InputTransform(dataset.input_spec())(tmp_path / "a.png")
    assert result.dtype == torch.float32 and result.is_contiguous()
    np.testing.assert_array_equal(result.numpy(), expected, strict=True)


def test_sixteen_bits_are_as_in_validation(tmp_path):
    deep = random.integers(0, 65536, (300, 280), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    info = {"val_paths": np.array([b"a.png"]), "val_targets": np.array([0])}
    dataset = imagenet.create(info, options(), "val")
    dataset.folder = os.fsencode(tmp_path)
    expected = dataset.transform()(dataset.get(0)[0])
    np.testing.assert_array_equal(InputTransform(PHOTO)(tmp_path / "a.png").numpy(), expected)


@pytest.mark.parametrize("module, side", [(cifar10, 32), (digits, 8)])
def test_images_of_the_size_pass_unscaled(tmp_path, module, side):
    image = pixels(side, side)
    info = {"val_images": image.transpose(2, 0, 1)[None].copy(), "val_labels": np.array([3])}
    dataset = module.create(info, options(), "val")
    expected = dataset.transform()(dataset.get(0)[0])
    Image.fromarray(image).save(tmp_path / "a.png")
    result = InputTransform(dataset.input_spec())(tmp_path / "a.png")
    np.testing.assert_array_equal(result.numpy(), expected, strict=True)
    np.testing.assert_array_equal(result.numpy(), dataset.augment(dataset.images)[0].numpy())


def test_any_photo_fits_a_net_for_small_images():
    values = {"scale": 32, "crop": 32, "largest": 255, "mean": (120, 110, 100), "std": (60, 50, 40)}
    plain = np.full((480, 640, 3), (180, 10, 100), np.uint8)
    result = InputTransform(values)(plain)
    expected = np.array([1, -2, 0], np.float32)[:, None, None]  # (180 - 120) / 60, ...
    # Catmull-Rom keeps a plain image up to rounding, of values up to 255 in float32
    np.testing.assert_allclose(result, np.broadcast_to(expected, (3, 32, 32)), rtol=0, atol=2e-6)
    wide = pixels(32, 97)
    middle = InputTransform(values)(wide[:, 33:65])  # 65 too many, the odd one left out on the left
    np.testing.assert_array_equal(InputTransform(values)(wide), middle)


# as torchvision


@pytest.mark.parametrize(
    "weights, scale, resize",
    [
        (tv.ResNet50_Weights.IMAGENET1K_V1, 256, "bilinear"),
        (tv.ResNeXt50_32X4D_Weights.IMAGENET1K_V2, 232, "bilinear"),
        (tv.Swin_T_Weights.IMAGENET1K_V1, 232, "bicubic"),
    ],
)
@pytest.mark.parametrize("shape", [(300, 401), (401, 300), (90, 70)])
def test_resize_is_torchvisions(tmp_path, weights, scale, resize, shape):
    Image.fromarray(pixels(*shape)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        expected = weights.transforms()(image)
    values = {**PHOTO, "scale": scale, "resize": resize}
    np.testing.assert_array_equal(InputTransform(values)(tmp_path / "a.png"), expected, strict=True)


def test_largest_also_counts_with_resize():
    plain = np.full((20, 20, 3), (180, 10, 100), np.uint8)
    values = {"scale": 16, "crop": 8, "largest": 255, "mean": (120, 110, 100), "std": (60, 50, 40)}
    result = InputTransform({**values, "resize": "bilinear"})(plain)
    assert result.shape == (3, 8, 8)
    np.testing.assert_allclose(result[:, 3, 3], [1, -2, 0], rtol=0, atol=1e-6)  # float32 rounding


# kinds of images


@pytest.mark.parametrize("more", [{}, {"resize": "bilinear"}])
def test_kinds_of_source(tmp_path, more):
    transform = InputTransform({**SMALL, **more})
    image, path = pixels(50, 60), tmp_path / "a.png"
    Image.fromarray(image).save(path)
    expected = transform(image)
    assert expected.shape == (3, 32, 32) and expected.dtype == torch.float32
    for source in (str(path), os.fsencode(path), path, io.BytesIO(path.read_bytes())):
        assert torch.equal(transform(source), expected)
    assert torch.equal(transform(Image.fromarray(image)), expected)
    assert torch.equal(transform(image[::-1, ::-1][::-1, ::-1]), expected)  # any order in memory
    with open(path, "rb") as file, Image.open(file) as opened:  # not loaded yet
        assert torch.equal(transform(opened), expected)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), expected)  # goes with a model


def test_a_grey_or_transparent_picture_in_memory_is_not_changed():
    transform = InputTransform(SMALL)
    grey = Image.fromarray(pixels(50, 60)[:, :, 0])
    assert torch.equal(transform(grey), transform(grey.convert("RGB")))
    palette = grey.convert("P")
    palette.info["transparency"] = bytes(range(256))
    assert torch.equal(transform(palette), transform(grey.convert("RGB")))
    assert palette.mode == "P" and "transparency" in palette.info


def test_an_opened_picture_that_is_broken_is_named(tmp_path):
    Image.fromarray(pixels(50, 60)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-900])
    with (
        Image.open(tmp_path / "a.jpg") as image,
        pytest.raises(InputError, match=r"cannot read the image '.*a\.jpg': .*truncated"),
    ):
        InputTransform(SMALL)(image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3)),
        np.zeros((8, 8), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(image):
    with pytest.raises(InputError, match=r"uint8 of shape \(height, width, 3\), not "):
        InputTransform(SMALL)(image)


def test_what_is_no_image_is_refused():
    with pytest.raises(InputError, match="cannot read the image 'the data'"):
        InputTransform(SMALL)(torch.zeros(3, 8, 8))


# values


def test_unknown_values_say_what_to_pass():
    unknown = InputTransform(None)
    with pytest.raises(
        InputError, match=r"does not say .*; set it, .* by model\.transform = "
    ) as error:
        unknown(pixels(8, 8))
    example = str(error.value).split("InputTransform(")[1][:-1]
    image = pixels(300, 300)
    assert torch.equal(InputTransform(eval(example))(image), InputTransform(PHOTO)(image))


@pytest.mark.parametrize(
    "values, message",
    [
        ({**SMALL, "resize": "lanczos"}, "invalid resize .* lanczos; bilinear or bicubic"),
        ({**SMALL, "crop": 41}, "crop of 41x41 pixels does not fit"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(InputError, match=message):
        InputTransform(values)(pixels(50, 50))


# many files


def batches(paths, transforms, size):
    """(paths, images by transform) of each batch, as the scripts read them."""
    nets = [types.SimpleNamespace(transform=t, parameters=lambda: iter(())) for t in transforms]
    return inference.run([lambda images: images] * len(nets), nets, paths, size, "script.py")


def test_batches_keep_the_order_and_name_what_is_broken(tmp_path, capsys):
    transform, paths = InputTransform(SMALL), []
    for i in range(7):
        paths.append(str(tmp_path / f"{i}.png"))
        if i in (1, 3, 4, 5):
            (tmp_path / f"{i}.png").write_bytes(b"")
        else:
            Image.fromarray(pixels(50, 45 + i)).save(paths[-1])
    transforms = [transform, InputTransform({**SMALL, "crop": 8})]
    got = list(batches(paths, transforms, 3))
    assert [read for read, _ in got] == [[paths[0], paths[2]], [paths[6]]]
    for read, images in got:
        for each, ready in zip(transforms, images, strict=True):
            assert torch.equal(ready, torch.stack([each(path) for path in read]))
    errors = capsys.readouterr().err.splitlines()
    assert all(error.startswith("script.py: ") for error in errors)
    assert [error.split("'")[1] for error in errors] == [paths[1], *paths[3:6]]


def test_batches_ask_for_the_values_first(tmp_path):
    with pytest.raises(InputError, match="does not say"):
        next(batches([str(tmp_path / "missing.png")], [InputTransform(None)], 4))


@pytest.mark.parametrize("resize", [None, "bilinear", "bicubic"])
@pytest.mark.parametrize("width, height", [(30000, 1), (1, 30000), (1100, 1)])
def test_strips_that_would_fill_the_memory_are_named(tmp_path, capsys, resize, width, height):
    spec = {"scale": 256, "crop": 224, "largest": 1, "mean": (0,) * 3, "std": (1,) * 3}
    Image.new("L", (width, height)).save(tmp_path / "strip.png")
    transform = InputTransform({**spec, "resize": resize})
    assert list(batches([str(tmp_path / "strip.png")], [transform], 1)) == []
    assert f"strip.png': {width}x{height} pixels would become" in capsys.readouterr().err
