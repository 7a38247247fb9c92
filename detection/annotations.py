"""The annotations in a file of COCO's JSON, checked, as arrays.

An error names the file and the id of what COCO does not define.
"""

import json
import os
import re

import numpy as np

from datasets import cache
from runtime import regular_files
from runtime.errors import InputError, cause
from runtime.options import EXACT
from runtime.terminal import note

# Least bytes of a large file for each list or object, which takes 200 in memory. COCO has 130.
DENSEST = 16
LARGE = 1 << 25  # bytes of a file whose arrays are kept in a cache
# "id" counts from 1; "box" is x, y, width, height as in the file
ANNOTATION = np.dtype(
    [
        *(("id", np.int64), ("image", np.int64), ("category", np.int64), ("crowd", np.int64)),
        *(("area", np.float64), ("box", np.float64, 4)),
    ]
)


def read(path, gen):
    """The arrays of a file (see _arrays). Those of a large one are kept in a cache in `gen`."""
    try:
        about = os.stat(path)
    except OSError:
        return _arrays(path)  # which says what is wrong
    if not gen or about.st_size < LARGE:
        return _arrays(path)

    def make(file_name):
        note(f"=> {path}: reading {about.st_size >> 20} MB, once; the arrays go to {file_name}")
        return cache.save(file_name, {"signature": np.array(stamp), **_arrays(path)})

    stamp = f"{os.path.realpath(path)}: {about.st_size} bytes of {about.st_mtime_ns}"
    return cache.kept(gen, "coco", [path], lambda: stamp, make)


def _arrays(path):
    """What the program needs of a file of annotations, checked.

    "facts": JSON in bytes, the `ids` and `files` of the images, the `categories` (their ids) and
    their `names`. "sizes": int64 (N, 2), width and height. "annotations": ANNOTATION, in the file's
    order, with image and category as places in the facts.
    """
    content = _parsed(path)
    images = {}
    for place, entry in enumerate(_entries(content, "images", path)):
        id = _id(path, entry, place, "images")
        if id in images:
            raise InputError(f"{path}: two of its images have the id {id}")
        images[id] = entry
    names = _category_names(path, content)
    ids, categories = _sorted(images), _sorted(names)
    if not names or not images:
        raise InputError(f"{path} has no {'images' if names else 'categories'}")
    sizes = [[_as_whole(images[id].get(side)) for side in ("width", "height")] for id in ids]
    for id, size in zip(ids, sizes):
        if not all(_is_whole(side) and side > 0 for side in size):
            raise InputError(f"{path}: image {id} has no width and height: give them in pixels")
    facts = {"ids": ids, "files": [images[id].get("file_name") for id in ids]}
    facts |= {"categories": categories, "names": [names[id] for id in categories]}
    return {
        "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
        "sizes": np.array(sizes, np.int64),
        "annotations": _annotations(path, content, ids, categories),
    }


def _id(path, entry, place, what):
    """The id of an entry: a whole number, or text that is not a number."""
    id = _as_whole(entry.get("id"))
    if id is None:
        raise InputError(
            f"{path}: entry {place} of its {what} has no valid id: {entry.get('id')!r:.60}"
        )
    return id


def _category_names(path, content):
    """{id: name}. If all categories have one id, as in VIA's exports, they are one class."""
    names = {}
    for place, entry in enumerate(_entries(content, "categories", path)):
        id = _id(path, entry, place, "categories")
        if not entry.get("name") or not isinstance(entry["name"], str):
            raise InputError(f"{path}: category {id} has no name: give a text as its name")
        names.setdefault(id, {})[entry["name"]] = None
    several = [id for id in names if len(names[id]) > 1]
    if several and len(names) > 1:
        raise InputError(f"{path}: two of its categories have the id {several[0]}")
    names = {id: " / ".join(each) for id, each in names.items()}
    for id in several:
        one = f"so they are one class, {names[id]!r}"
        note(f" | {path}: all categories have the id {id}, {one}")
    return names


def _annotations(path, content, ids, categories):
    """The annotations, checked; missing "area" and "iscrowd" are filled in.

    Ids count from 1, whatever the file has, because COCO's evaluation takes 0 for "no object".
    """
    known = {
        name: {str(id): place for place, id in enumerate(each)}
        for name, each in (("image_id", ids), ("category_id", categories))
    }
    entries = _entries(content, "annotations", path) if "annotations" in content else []
    found, seen = np.zeros(len(entries), ANNOTATION), set()
    for place, entry in enumerate(entries):
        id = _as_whole(entry.get("id", place + 1))
        if id is None or id in seen:
            what = "an annotation has the invalid" if id is None else "two annotations have the"
            raise InputError(f"{path}: {what} id {entry.get('id')!r:.60}; give each its own")
        seen.add(id)
        about = {
            name: places.get(str(_as_whole(entry.get(name)))) for name, places in known.items()
        }
        for name, value in about.items():
            if value is None:
                what = f"{entry.get(name)!r:.60}; list it, or take the annotation out"
                raise InputError(f"{path}: annotation {id} has an unknown {name}: {what}")
        box = _as_numbers(entry.get("bbox"), 4)
        crowd = entry.get("iscrowd") or 0
        area = _as_numbers([entry.get("area") or 0], 1)
        for name, is_right, right in (
            ("bbox", box, "give x, y, width and height in pixels"),
            ("area", area, "give a number, or leave it out"),
            ("iscrowd", crowd in (0, 1, "0", "1"), "give 0 or 1"),
        ):
            if not is_right:
                what = f"{name}: {entry.get(name)!r:.60}; {right}"
                raise InputError(f"{path}: annotation {id} has an invalid {what}")
        area = area[0] or box[2] * box[3]  # some tools write 0 or null
        found[place] = (place + 1, *about.values(), int(crowd), area, box)
    return found


def _parsed(path):
    try:
        with regular_files.opened(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise InputError(
            f"missing annotations {path!r}: -data DIR should hold annotations/instances_NAME.json "
            "and the images in NAME/, or give COCO's JSON as -train and -val"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path!r}: {cause(error)}") from None
    if (data.count(b"[") + data.count(b"{")) * DENSEST > len(data) + (1 << 20):
        raise InputError(f"{path} is not in COCO's format: it has more lists than values")
    try:
        return json.loads(data, object_hook=_without_outlines)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not in UTF-8, as JSON should be") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {str(error)[:120]}") from None


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
        return int(value) if re.fullmatch("0|-?[1-9][0-9]{0,14}", value) else value or None
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if _is_whole(value) else None


def _sorted(ids):
    return sorted(ids, key=lambda id: (isinstance(id, str), id))


def _is_whole(value):
    return type(value) is int and abs(value) <= EXACT


def _as_numbers(values, count):
    """A list of `count` numbers, also of "7.5"; None for anything else."""
    if not isinstance(values, list) or len(values) != count:
        return None
    if any(isinstance(value, str) for value in values):
        try:
            values = [float(value) for value in values]
        except (ValueError, TypeError, OverflowError):
            return None
    are_right = all(type(value) in (int, float) and abs(value) <= EXACT for value in values)
    return values if are_right else None
