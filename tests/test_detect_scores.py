"""Scores are the evaluation library's; results are in COCO's form."""

import copy
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.detectors import write_coco

from detection import coco, scores
from runtime.errors import InputError

LIBRARIES = {"faster": scores.implementation(), "pycocotools": (COCO, COCOeval)}


@pytest.fixture
def source(tmp_path):
    content = write_coco(tmp_path, "val2017", 6, size=(200, 160))
    for k, entry in enumerate(content["annotations"]):  # of all sizes, one crowd
        entry["bbox"][2:] = [10 + 12 * k, 9 + 10 * k]
        entry["area"], entry["iscrowd"] = entry["bbox"][2] * entry["bbox"][3], int(k == 3)
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content))
    return coco.open_split(str(tmp_path), "val2017", "")


def detections(source, shift=0.0, kept=lambda row: True):
    """Each annotation that is kept is found, moved by about `shift` of its size."""
    random, found = np.random.default_rng(0), []
    for place in range(len(source.ids)):
        boxes, labels = np.zeros((0, 4)), []
        for image, category, _, _, box in filter(kept, source.rows()):
            if image != place:
                continue
            x, y = np.array(box[:2]) + shift * random.normal(size=2) * box[2:]
            boxes = np.concatenate([boxes, [[x, y, x + box[2], y + box[3]]]])
            labels.append(category + 1)
            if shift:
                boxes = np.concatenate([boxes, [[3, 3, 43, 43]]])
                labels.append(category + 1)
        found.append((place, boxes, random.uniform(size=len(labels)), np.array(labels)))
    return found


def with_rows(source, kept):
    other = copy.copy(source)
    rows = [row for row in source.rows() if kept(row)]
    other.rows = lambda: iter(rows)
    return other


def test_perfect_detections(source):
    found = scores.evaluate(source, detections(source))
    assert found["AP"] == found["AP50"] == found["AR100"] == 100


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("shift", (0.02, 0.1, 0.3))
def test_pycocotools_gives_the_same(source, shift, library, monkeypatch, capsys):
    monkeypatch.setattr(scores, "implementation", lambda: LIBRARIES[library])
    mine = detections(source, shift)
    found = scores.evaluate(source, mine)
    reference = COCO(source.path)  # from the file itself
    results = scores.results(mine, source.ids, source.categories)
    evaluation = COCOeval(reference, reference.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    expected = {n: 100 * v for n, v in zip(scores.NAMES, evaluation.stats) if v >= 0}
    classes = found.pop("classes")
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0 < found["AP"] < 100 and len(found) == 12
    for id, name in ((3, "square"), (90, "tall")):  # each class alone, by the library
        evaluation.params.catIds = [id]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert classes.pop(name) == pytest.approx(100 * evaluation.stats[0], abs=1e-9)
    assert not classes


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("left_out", ([0], [1, 4], [0, 1, 2, 3]))
def test_images_that_were_not_tested_count_for_nothing(source, monkeypatch, library, left_out):
    """As if they stood in no file. A test of the rest alone is the reference."""
    monkeypatch.setattr(scores, "implementation", lambda: LIBRARIES[library])
    tested = [place for place in range(6) if place not in left_out]
    found, rest = detections(source, 0.1), source.subset(tested)
    found = [found[place] for place in tested]
    alone = [(place, *parts) for place, (_, *parts) in enumerate(found)]
    assert scores.evaluate(source, found) == scores.evaluate(rest, alone)
    nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
    missed = [(place, *nothing) for place in left_out]
    every = scores.evaluate(source, found + missed)
    assert every["AR100"] < scores.evaluate(source, found)["AR100"]


def test_results_are_cocos():
    boxes = np.array([[1.25, 2, 11.25, 22], [0, 0, 5, 5]])
    found = [(1, boxes, np.array([0.5, 0.25]), np.array([2, 1]))]
    assert scores.results(found, [7, 139], [3, 90]) == [
        {"image_id": 139, "category_id": 90, "bbox": [1.25, 2.0, 10.0, 20.0], "score": 0.5},
        {"image_id": 139, "category_id": 3, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 0.25},
    ]


@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_found(source, monkeypatch, library):
    """0 for the sizes that objects have, and no number for the others."""
    monkeypatch.setattr(scores, "implementation", lambda: LIBRARIES[library])
    nothing = detections(source, kept=lambda row: False)
    found = dict.fromkeys(scores.NAMES, 0)
    assert scores.evaluate(source, nothing) == {**found, "classes": {"square": 0, "tall": 0}}

    def tall(row):
        return row[1] == 1

    found = scores.evaluate(with_rows(source, tall), detections(source, kept=tall))
    assert found["classes"] == {"tall": 100}  # no number for a class without an object

    def small(row):
        return row[3] < 32**2

    of_small = {*scores.NAMES, "classes"} - {"APm", "APl", "ARm", "ARl"}
    for found in (nothing, detections(source, kept=small)):
        assert scores.evaluate(with_rows(source, small), found).keys() == of_small
    assert scores.evaluate(with_rows(source, lambda row: False), nothing) == {}


def test_classes_of_one_name_are_told_apart(source):
    """Only one of them is found."""
    source.names = ["ball", "ball"]
    found = scores.evaluate(source, detections(source, kept=lambda row: row[1] == 1))
    assert found["classes"] == {"ball (3)": 0, "ball (90)": 100}


def test_the_missing_library_is_named(monkeypatch):
    for name in ("faster_coco_eval", "pycocotools.coco"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(InputError, match="pip install faster-coco-eval"):
        scores.implementation()
