"""COCO's scores, by the library that is installed: faster-coco-eval or pycocotools.

This program computes none itself.
"""

import collections
import contextlib
import io

import numpy as np

from runtime.errors import InputError

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def results(found, categories):
    """Detections in COCO's format; found: [(image id, boxes, scores, labels)] in arrays."""
    return [
        {
            "image_id": id,
            "category_id": categories[int(label) - 1],
            "bbox": [round(float(v), 2) for v in (x, y, right - x, bottom - y)],
            "score": round(float(score), 5),
        }
        for id, boxes, scores, labels in found
        for (x, y, right, bottom), score, label in zip(boxes, scores, labels)
    ]


def evaluate(truth, detections, ids=None):
    """COCO's twelve numbers in %, {name of NAMES: value}, except for sizes that no object has.

    "classes" holds the AP of each class that has an object, by name (and id, if a name repeats).
    truth: COCO's dictionary of images and annotations. detections: a list of COCO's results. ids:
    of the tested images, None for all. Objects in other images do not count as missed.
    """
    kind, evaluation = implementation()
    images, categories = (
        {entry["id"]: number for number, entry in enumerate(truth[part], 1)}
        for part in ("images", "categories")
    )

    def numbered(entries):  # the libraries need numbers, and write to the entries
        return [
            {
                **entry,
                "image_id": images[entry["image_id"]],
                "category_id": categories[entry["category_id"]],
            }
            for entry in entries
        ]

    with contextlib.redirect_stdout(io.StringIO()):  # the libraries print
        coco = kind()
        coco.dataset = {
            **{"info": {}, "licenses": [], "annotations": numbered(truth["annotations"])},
            "images": [{**entry, "id": images[entry["id"]]} for entry in truth["images"]],
            "categories": [{"id": number} for number in categories.values()],
        }
        coco.createIndex()
        mine = kind()  # by hand, because loadRes refuses an empty list
        mine.dataset = {**coco.dataset, "annotations": numbered(detections)}
        for id, entry in enumerate(mine.dataset["annotations"], 1):
            entry |= {"id": id, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
        mine.createIndex()
        found = evaluation(coco, mine, "bbox")
        if ids is not None:
            found.params.imgIds = sorted(images[id] for id in ids)
        found.evaluate()
        found.accumulate()
        found.summarize()
    # of each class, at all thresholds and recalls, for all sizes and the most detections
    curves = found.eval["precision"][:, :, :, 0, -1].transpose(2, 0, 1).reshape(len(categories), -1)
    count = collections.Counter(entry["name"] for entry in truth["categories"])
    names = [  # two categories may have one name
        entry["name"] if count[entry["name"]] == 1 else f"{entry['name']} ({entry['id']})"
        for entry in truth["categories"]
    ]
    classes = zip(names, curves.mean(1).tolist())
    values = zip(NAMES, np.asarray(found.stats[:12], np.float64).tolist())
    values, classes = (
        {name: 100 * value for name, value in each if value >= 0}  # COCO's -1: no object
        for each in (values, classes)
    )
    return {**values, "classes": classes} if classes else values


def implementation():
    """(COCO, COCOeval) of the installed library."""
    with contextlib.suppress(ImportError):
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    with contextlib.suppress(ImportError):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    raise InputError("COCO's scores need a package: pip install faster-coco-eval (or pycocotools)")
