"""Scenes of digits: functions of seed and number, with boxes where the ink is."""

import types

import numpy as np
import pytest

from detection import scenes
from runtime.errors import InputError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    gen = str(tmp_path_factory.mktemp("gen"))

    def source(split, seed=0):
        opt = types.SimpleNamespace(dataset="digits", gen=gen, manualSeed=seed, data="")
        return dict(zip(("train", "val"), scenes.create(opt)))[split]

    return source


def test_a_scene_is_a_function_of_seed_and_number(source):
    one, same, other = source("train", 1), source("train", 1), source("train", 2)
    for i in (5, 0):
        assert (one.pixels(i) == same.pixels(i)).all()
        assert (one.objects(i).boxes == same.objects(i).boxes).all()
        assert (one.pixels(i) != other.pixels(i)).any()
    assert (one.pixels(0) != one.pixels(1)).any()
    assert (source("val", 1).pixels(3) == source("val", 2).pixels(3)).all()


def test_the_test_scenes_hold_the_test_digits_only(source):
    from datasets import digits_gen

    train, val = source("train"), source("val")
    assert (len(train.images), len(val.images)) == (1501, 296)
    assert digits_gen.EVERY == 6
    shared = {image.tobytes() for image in train.images} & {i.tobytes() for i in val.images}
    assert not shared


def test_boxes_hold_the_ink(source):
    """A digit drawn alone on black has its ink inside its box, and reaches its four sides."""
    found = source("train")
    for size in (18, 31, 44):
        for digit in found.images[:40]:
            canvas = np.zeros((scenes.SIDE, scenes.SIDE), np.float32)
            scenes._draw(canvas, digit, 20, 30, size, 1.0)
            left, top, right, bottom = scenes._box(digit, 20, 30, size)
            unit = size / 8
            rows, columns = np.nonzero(canvas >= 128)
            assert left - unit <= columns.min() and columns.max() <= right + unit
            assert top - unit <= rows.min() and rows.max() <= bottom + unit
            assert 20 <= left < right <= 20 + size and 30 <= top < bottom <= 30 + size


def test_all_scenes_have_objects_that_do_not_overlap(source):
    found, seen = source("val"), set()
    for i in range(40):
        boxes, labels, crowd = found.objects(i)
        assert 1 <= len(boxes) <= 7 and len(labels) == len(boxes) and not len(crowd)
        assert boxes.min() >= 0 and boxes.max() <= scenes.SIDE
        seen |= set(labels.tolist())
        for k, one in enumerate(boxes):
            for other in boxes[:k]:
                width = min(one[2], other[2]) - max(one[0], other[0])
                height = min(one[3], other[3]) - max(one[1], other[1])
                assert width <= 0 or height <= 0
    assert seen == set(range(1, 11))
    assert len(found.ids) == 200 and found.names[9] == "nine"
    assert [row[0] for row in found.rows()][:3] == [0, 0, 0]
    assert found.pixels(0).shape == (3, 128, 128) and found.pixels(0).dtype == np.uint8


def test_the_number_of_a_scene():
    assert scenes.scene("1") == 0 and scenes.scene("photo.jpg") is None
    with pytest.raises(InputError, match="scenes are 1 to 200"):
        scenes.scene("201")
    with pytest.raises(InputError, match="-show 99999.*scenes are 1 to 200"):
        scenes.scene("9" * 5000)
    assert scenes.scene("\u00b2") is None  # a digit to str.isdigit, none to int
