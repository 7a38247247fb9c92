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
def truth(tmp_path):
    content = write_coco(tmp_path, "val2017", 6, size=(200, 160))
    for k, entry in enumerate(content["annotations"]):  # of all sizes, one crowd
        entry["bbox"][2:] = [10 + 12 * k, 9 + 10 * k]
        entry["area"], entry["iscrowd"] = entry["bbox"][2] * entry["bbox"][3], int(k == 3)
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content))
    return coco.open_split(str(tmp_path), "val2017", "").truth(), path


def detections(truth, shift=0.0, seed=0):
    random, found = np.random.default_rng(seed), []
    for entry in truth["annotations"]:
        box = np.array(entry["bbox"], float)
        box[:2] += shift * random.normal(size=2) * box[2:]
        about = {"image_id": entry["image_id"], "category_id": entry["category_id"]}
        found.append({**about, "bbox": box.tolist(), "score": float(random.uniform())})
        if shift:
            found.append({**about, "bbox": [3, 3, 40, 40], "score": float(random.uniform())})
    return found


def test_perfect_detections(truth):
    found = scores.evaluate(truth[0], detections(truth[0]))
    assert found["AP"] == found["AP50"] == found["AR100"] == 100


@pytest.mark.parametrize("shift", (0.02, 0.1, 0.3))
def test_pycocotools_gives_the_same(truth, shift, capsys):
    mine = detections(truth[0], shift)
    found = scores.evaluate(truth[0], mine)
    reference = COCO(str(truth[1]))  # from the file itself
    evaluation = COCOeval(reference, reference.loadRes(mine), "bbox")
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
@pytest.mark.parametrize("left_out", ([10], [11, 14], [10, 11, 12, 13]))
def test_images_that_were_not_tested_count_for_nothing(truth, monkeypatch, library, left_out):
    """As if they stood in no file. A test by hand of the rest is the reference."""
    monkeypatch.setattr(scores, "implementation", lambda: LIBRARIES[library])
    whole = truth[0]
    rest = {**whole, "images": [image for image in whole["images"] if image["id"] not in left_out]}
    kept = [entry for entry in whole["annotations"] if entry["image_id"] not in left_out]
    rest["annotations"] = [{**entry, "id": id} for id, entry in enumerate(kept, 1)]
    found, ids = detections(rest, 0.1), [image["id"] for image in rest["images"]]
    assert scores.evaluate(whole, found, ids) == scores.evaluate(rest, found)
    assert scores.evaluate(whole, found)["AR100"] < scores.evaluate(whole, found, ids)["AR100"]


def test_results_are_cocos():
    boxes = np.array([[1.25, 2, 11.25, 22], [0, 0, 5, 5]])
    found = [(139, boxes, np.array([0.5, 0.25]), np.array([2, 1]))]
    assert scores.results(found, [3, 90]) == [
        {"image_id": 139, "category_id": 90, "bbox": [1.25, 2.0, 10.0, 20.0], "score": 0.5},
        {"image_id": 139, "category_id": 3, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 0.25},
    ]


@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_found(truth, monkeypatch, library):
    """0 for the sizes that objects have, and no number for the others."""
    monkeypatch.setattr(scores, "implementation", lambda: LIBRARIES[library])
    found = dict.fromkeys(scores.NAMES, 0)
    assert scores.evaluate(truth[0], []) == {**found, "classes": {"square": 0, "tall": 0}}
    one = [entry for entry in truth[0]["annotations"] if entry["category_id"] == 90]
    found = scores.evaluate({**truth[0], "annotations": one}, detections({"annotations": one}))
    assert found["classes"] == {"tall": 100}  # no number for a class without an object
    small = [entry for entry in truth[0]["annotations"] if entry["area"] < 32**2]
    of_small = {*scores.NAMES, "classes"} - {"APm", "APl", "ARm", "ARl"}
    for found in ([], detections({"annotations": small})):
        assert scores.evaluate({**truth[0], "annotations": small}, found).keys() == of_small
    assert scores.evaluate({**truth[0], "annotations": []}, []) == {}


def test_classes_of_one_name_are_told_apart(truth):
    """Only one of them is found."""
    same = {**truth[0], "categories": [{"id": id, "name": "ball"} for id in (3, 90)]}
    one = [entry for entry in same["annotations"] if entry["category_id"] == 90]
    found = scores.evaluate(same, detections({"annotations": one}))
    assert found["classes"] == {"ball (3)": 0, "ball (90)": 100}


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_truth_stays_as_it_is(truth, monkeypatch, library):
    monkeypatch.setattr(scores, "implementation", lambda: LIBRARIES[library])
    found = detections(truth[0])
    before = copy.deepcopy((truth[0], found))
    scores.evaluate(truth[0], found)
    assert (truth[0], found) == before


def test_the_missing_library_is_named(monkeypatch):
    for name in ("faster_coco_eval", "pycocotools.coco"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(InputError, match="pip install faster-coco-eval"):
        scores.implementation()
