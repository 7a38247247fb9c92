"""COCO's scores, by the library that is installed: faster-coco-eval or pycocotools.

This program computes none itself.
"""

import contextlib
import io

import numpy as np

from runtime.errors import InputError

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def results(found, ids, categories):
    """Detections in COCO's format; found: [(place of the image, boxes, scores, labels)] in arrays.

    ids, categories: what stands for each place and each label in the file.
    """
    return [
        {
            "image_id": ids[place],
            "category_id": categories[int(label) - 1],
            "bbox": [round(float(v), 2) for v in (x, y, right - x, bottom - y)],
            "score": round(float(score), 5),
        }
        for place, boxes, scores, labels in found
        for (x, y, right, bottom), score, label in zip(boxes, scores, labels)
    ]


def evaluate(source, found):
    """COCO's twelve numbers in %, {name of NAMES: value}, except for sizes that no object has.

    "classes" holds the AP of each class that has an object, by name (and id, if a name repeats).
    source: see images.py. found: as in `results`, an entry for each tested image. Objects in other
    images do not count as missed.
    """
    kind, evaluation = implementation()
    # All ids count from 1: the libraries need numbers, and take the annotation 0 for "no object"
    images, categories = (range(1, 1 + len(each)) for each in (source.ids, source.categories))
    objects = [
        {
            **{"id": id, "image_id": images[image], "category_id": categories[category]},
            **{"bbox": box, "area": area, "iscrowd": crowd},
        }
        for id, (image, category, crowd, area, box) in enumerate(source.rows(), 1)
    ]
    mine = results(found, images, categories)
    for id, entry in enumerate(mine, 1):  # as loadRes, which refuses an empty list
        entry.update(id=id, area=entry["bbox"][2] * entry["bbox"][3], iscrowd=0)
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):  # the libraries print
        for annotations in (objects, mine):
            sides.append(kind())
            sides[-1].dataset = {
                "images": [{"id": id} for id in images],
                "annotations": annotations,
                "categories": [{"id": id} for id in categories],
            }
            sides[-1].createIndex()
        run = evaluation(*sides, "bbox")
        run.params.imgIds = sorted(images[place] for place, *_ in found)
        run.evaluate()
        run.accumulate()
        run.summarize()
    # of each class, at all thresholds and recalls, for all sizes and the most detections
    curves = run.eval["precision"][:, :, :, 0, -1].transpose(2, 0, 1).reshape(len(categories), -1)
    names = [  # two categories may have one name
        name if source.names.count(name) == 1 else f"{name} ({id})"
        for id, name in zip(source.categories, source.names)
    ]
    classes = zip(names, curves.mean(1).tolist())
    values = zip(NAMES, np.asarray(run.stats[:12], np.float64).tolist())
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
