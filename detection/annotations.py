"""The annotations in a file of COCO's JSON, checked, as arrays.

An error names the file and the id of the entry that COCO's format does not allow.
"""

import json
import os
import re
from typing import NamedTuple

import numpy as np

from datasets import cache
from runtime import regular_files
from runtime.errors import InputError, cause
from runtime.options import EXACT
from runtime.terminal import note

# A large file should have at least so many bytes for each list or object, which takes 200 bytes in
# memory. COCO's files have 130.
DENSEST = 16
LARGE = 1 << 25  # bytes of a file whose arrays are kept in a cache
# "box" is x, y, width, height as in the file
ANNOTATION = np.dtype(
    [("image", "i8"), ("category", "i8"), ("crowd", "i8"), ("area", "f8"), ("box", "f8", 4)]
)


class Objects(NamedTuple):
    """The objects of an image: corners x1, y1, x2, y2 in pixels, labels from 1."""

    boxes: np.ndarray  # float32 (n, 4)
    labels: np.ndarray  # int64 (n,)
    crowd: np.ndarray  # float32 (m, 4): regions full of objects that nobody counted


def read(path, gen):
    """The arrays of a file (see _arrays). Those of a large one are kept in a cache in `gen`."""
    if not gen or not os.path.isfile(path) or os.path.getsize(path) < LARGE:
        return _arrays(path)

    def make(file_name):
        size = f"{about.st_size >> 20} MB"
        note(f"=> {path}: reading {size}, only this once, because {file_name} keeps the result")
        return cache.save(file_name, {"signature": np.array(stamp), **_arrays(path)})

    about = os.stat(path)
    stamp = f"{os.path.realpath(path)}: {about.st_size} bytes of {about.st_mtime_ns}"
    return cache.kept(gen, "coco", [path], lambda: stamp, make)


def _arrays(path):
    """What the program needs of a file of annotations, checked.

    "facts": JSON in bytes, the `ids` and `files` of the images, the `categories` (their ids) and
    their `names`. "sizes": int64 (N, 2), width and height. "annotations": ANNOTATION, in the file's
    order, with image and category as places in the facts.
    """
    content = _parsed(path)
    images, categories = (_by_id(path, content, name) for name in ("images", "categories"))
    sizes = []
    for id, (image, *others) in images.items():
        size = [_as_whole(image.get(side)) for side in ("width", "height")]
        if others:
            raise InputError(f"{path}: two of its images have the id {id}")
        if not all(isinstance(side, int) and 0 < side <= EXACT for side in size):
            raise InputError(f"{path}: image {id} has no width and height: give them in pixels")
        sizes.append(size)
    files = [image.get("file_name") for image, *_ in images.values()]
    facts = {"ids": [*images], "files": files}
    facts |= {"categories": [*categories], "names": _names(path, categories)}
    return {
        "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
        "sizes": np.array(sizes, np.int64),
        "annotations": _annotations(path, content, images, categories),
    }


def _by_id(path, content, name):
    """{id: entries} of a list, sorted. An id is a whole number, or text that is not a number."""
    found = {}
    for place, entry in enumerate(_entries(content, name, path)):
        id = _as_whole(entry.get("id"))
        if id is None:
            what = f"no valid id: {entry.get('id')!r:.60}"
            raise InputError(f"{path}: entry {place} of its {name} has {what}")
        found.setdefault(id, []).append(entry)
    if not found:
        raise InputError(f"{path} has no {name}")
    return {id: found[id] for id in sorted(found, key=lambda id: (isinstance(id, str), id))}


def _names(path, categories):
    """The name of each category. If all have one id, as in VIA's exports, they are one class."""
    found = []
    for id, entries in categories.items():
        names = list(dict.fromkeys(str(entry.get("name")) for entry in entries))
        if not all(isinstance(entry.get("name"), str) and entry["name"] for entry in entries):
            raise InputError(f"{path}: category {id} has no name: give a text as its name")
        if len(names) > 1 and len(categories) > 1:
            raise InputError(f"{path}: two of its categories have the id {id}")
        found.append(" / ".join(names))
        if len(names) > 1:
            one = f"so they are one class, {found[0]!r}"
            note(f" | {path}: all categories have the id {id}, {one}")
    return found


def _annotations(path, content, images, categories):
    """The annotations, checked; missing "area" and "iscrowd" are filled in."""
    images, categories = ({id: n for n, id in enumerate(each)} for each in (images, categories))
    entries = _entries(content, "annotations", path) if "annotations" in content else []
    found, seen = np.zeros(len(entries), ANNOTATION), set()
    for place, entry in enumerate(entries):
        own = entry.get("id", place + 1)
        id = _as_whole(own)
        image = images.get(_as_whole(entry.get("image_id")))
        category = categories.get(_as_whole(entry.get("category_id")))
        box = _as_numbers(entry.get("bbox"), 4)
        crowd = entry.get("iscrowd") or 0
        area = _as_numbers([entry.get("area") or 0], 1)
        for name, is_right, right in (
            ("id", id is not None and id not in seen, "give each annotation its own"),
            ("image_id", image is not None, "list this image, or take the annotation out"),
            ("category_id", category is not None, "list it, or take the annotation out"),
            ("bbox", box, "give x, y, width and height in pixels"),
            ("area", area, "give a number, or leave it out"),
            ("iscrowd", crowd in (0, 1, "0", "1"), "give 0 or 1"),
        ):
            if not is_right:
                what = f"an invalid {name}: {entry.get(name)!r:.60}; {right}"
                raise InputError(f"{path}: annotation {own!r:.60} has {what}")
        seen.add(id)
        area = area[0] or box[2] * box[3]  # some tools write 0 or null
        found[place] = (image, category, int(crowd), area, box)
    return found


def _parsed(path):
    try:
        data = regular_files.read_bytes(path, None)
    except FileNotFoundError:
        raise InputError(
            f"missing annotations {path!r}: -data DIR should hold annotations/instances_NAME.json "
            "and the images in NAME/, or give COCO's JSON as -train and -val"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path!r}: {cause(error)}") from None
    if (data.count(b"[") + data.count(b"{")) * DENSEST > len(data) + (1 << 20):
        raise InputError(f"{path} is not in COCO's format: it has more lists than values")
    try:  # decoded here, so that the bytes are freed before the objects are made
        data = data.decode(json.detect_encoding(data), "surrogatepass")
        return json.loads(data, object_hook=_without_outlines)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON in UTF-8: {str(error)[:120]}") from None


def _without_outlines(entry):
    """An object of the file without its polygons, which take most of the memory."""
    entry.pop("segmentation", None)
    return entry


def _entries(content, name, path):
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InputError(f"{path} is not in COCO's format: it has no list of {name}")
    return found


def _as_whole(value):
    """A whole number, also of "7" or 7.0; other text as it is; None for anything else."""
    if isinstance(value, str):
        return int(value) if re.fullmatch("0|-?[1-9][0-9]{0,99}", value) else value or None
    if type(value) is float and value.is_integer() and abs(value) <= EXACT:
        value = int(value)
    return value if type(value) is int else None


def _as_numbers(values, count):
    """A list of `count` floats, also of "7.5"; None for anything else."""
    if not isinstance(values, list) or len(values) != count:
        return None
    try:
        values = [float(value) for value in values]
    except (ValueError, TypeError, OverflowError):
        return None
    return values if all(abs(value) <= EXACT for value in values) else None
