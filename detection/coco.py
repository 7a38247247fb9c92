"""Images and boxes in COCO's layout, or in any file of COCO's JSON.

Read as py-faster-rcnn reads it: boxes are cut at the border of the image; what has no area then, or
an "area" of 0, is left out; crowds are no objects. What COCO does not define is refused, with the
file and the id. For the scores every annotation counts as it stands in the file.
"""

import json
import os
import zlib

import numpy as np

from datasets.image import decoding
from detection.images import Objects
from runtime import regular_files
from runtime.errors import InputError
from runtime.options import EXACT
from runtime.terminal import note

# A box has an area if its sides are larger than this share of its image's: a thinner one may have
# none once it is mirrored and resized in float32, and then its loss is not finite.
THINNEST = 1e-6
LAYOUT = "-data DIR must hold annotations/instances_NAME.json and the images in NAME/"


class Coco:
    """A file of annotations and the folder of its images."""

    def __init__(self, path, folder):
        self.path, self.folder = path, folder
        content = _read(path)
        self.images = self._by_id(content, "images")
        categories = self._by_id(content, "categories")
        for id, category in categories.items():
            if not isinstance(category.get("name"), str):
                raise InputError(f"{path}: category {id} has no name")
        self.categories = sorted(categories)
        self.names = [categories[id]["name"] for id in self.categories]
        if not self.names or not self.images:
            raise InputError(f"{path} holds no {'images' if self.names else 'categories'}")
        self.ids = sorted(self.images)
        for id in self.ids:
            self._check_image(id)
        self.odd = []  # as of datasets/image_folder.py
        self.annotations = self._annotations(content)
        self.left_out = 0  # boxes
        self._objects = self._sorted_by_image()

    def check_files(self, places):
        """InputError if one of these images has no file.

        Each folder is listed once: to look at every file of COCO takes minutes over a network.
        """
        names = [self.images[self.ids[i]]["file_name"] for i in places]
        folders = sorted({os.path.dirname(name) for name in names})
        listed = {os.path.join(f, name) for f in folders for name in _files(self.folder, f)}
        missing = [
            name
            for name in names
            # the file system may ignore case, or let a folder be read but not listed
            if name not in listed and not os.path.isfile(os.path.join(self.folder, name))
        ]
        if missing:
            raise InputError(
                f"{self.path}: {len(missing)} of {len(names)} images have no file in "
                f"{self.folder!r}, the first is {missing[0]!r}; add the files, take the images "
                "out of the JSON, or give -skipCorrupt true"
            )

    def name(self, i):
        return os.path.join(self.folder, self.images[self.ids[i]]["file_name"])

    def pixels(self, i):
        path, image = self.name(i), self.images[self.ids[i]]
        pixels = decoding.load_image(path, lambda phrase: self.odd.append(f"{path!r}: {phrase}"))
        size = pixels.shape[2], pixels.shape[1]
        if size != (image["width"], image["height"]):
            stated = f"{image['width']} x {image['height']}"
            raise InputError(
                f"the image {path!r} has {size[0]} x {size[1]} pixels, but {stated} in {self.path}"
            )
        return pixels

    def objects(self, i):
        return self._objects[i]

    def truth(self):
        """The annotations as the evaluation wants them."""
        return {
            "images": [{"id": id, **_size(self.images[id])} for id in self.ids],
            "annotations": self.annotations,
            "categories": [{"id": i, "name": n} for i, n in zip(self.categories, self.names)],
        }

    def fingerprint(self):
        """A checksum of the images' files and objects, in order."""
        found = zlib.crc32(json.dumps(self.categories).encode())
        for id, objects in zip(self.ids, self._objects):
            found = zlib.crc32(self.images[id]["file_name"].encode("utf-8", "surrogatepass"), found)
            for part in objects:
                found = zlib.crc32(part, found)
        return found

    def _by_id(self, content, name):
        """{id: entry} of a list of the file."""
        found = {}
        for place, entry in enumerate(_entries(content, name, self.path)):
            id = entry.get("id")
            if not _is_whole(id):
                raise InputError(f"{self.path}: number {place} of its {name} has no id: {id!r:.60}")
            if id in found:
                raise InputError(f"{self.path}: the id {id} stands twice among its {name}")
            found[id] = entry
        return found

    def _check_image(self, id):
        image = self.images[id]
        if not all(_is_whole(side) and side > 0 for side in _size(image).values()):
            raise InputError(f"{self.path}: image {id} has no width and height")
        file = image.get("file_name")
        leads_out = isinstance(file, str) and os.path.normpath(file).startswith(("..", os.sep))
        if not isinstance(file, str) or not file or leads_out or "\0" in file:
            raise InputError(
                f"{self.path}: image {id} has no file name in its folder: {file!r:.80}"
            )

    def _annotations(self, content):
        """The annotations, checked; "area" and "iscrowd" are filled in where they lack.

        Their ids are counted from 1, whatever the file's: to COCO's evaluation 0 means "no object".
        """
        found, seen = [], set()
        known = set(self.categories)
        for place, entry in enumerate(_entries(content, "annotations", self.path)):
            id = entry.get("id", place + 1)
            if not _is_whole(id) or id in seen:
                what = "is no id" if not _is_whole(id) else "stands twice among its annotations"
                raise InputError(f"{self.path}: {id!r:.60} {what}")
            seen.add(id)
            for name, among in (("image_id", self.images), ("category_id", known)):
                if type(entry.get(name)) is not int or entry[name] not in among:
                    value = f"{entry.get(name)!r:.60}"
                    raise InputError(f"{self.path}: annotation {id} has an unknown {name}: {value}")
            box, crowd = entry.get("bbox"), entry.get("iscrowd", 0)
            if not _are_numbers(box, 4) or crowd not in (0, 1):
                what = f"iscrowd of {crowd!r:.60}" if _are_numbers(box, 4) else f"bbox {box!r:.60}"
                raise InputError(f"{self.path}: annotation {id} has the {what}")
            area = entry.get("area", box[2] * box[3])
            if not _are_numbers([area], 1):
                raise InputError(f"{self.path}: annotation {id} has the area {area!r:.60}")
            about = {name: entry[name] for name in ("image_id", "category_id")}
            found.append(
                {"id": place + 1, **about, "bbox": list(box), "area": area, "iscrowd": int(crowd)}
            )
        return found

    def _sorted_by_image(self):
        """The Objects of each image."""
        label = {category: place for place, category in enumerate(self.categories, 1)}
        place = {id: i for i, id in enumerate(self.ids)}
        boxes = np.array([a["bbox"] for a in self.annotations], np.float64).reshape(-1, 4)
        where = np.array([place[a["image_id"]] for a in self.annotations], np.int64)
        sizes = np.array([list(_size(self.images[id]).values()) for id in self.ids], np.float64)
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes, 0, np.tile(sizes, 2)[where])
        kept = np.array([a["area"] for a in self.annotations]) > 0
        kept &= (boxes[:, 2:] - boxes[:, :2] > THINNEST * sizes[where]).all(1)
        if not kept.all():
            lost = self.left_out = np.count_nonzero(~kept)
            note(f" | {self.path}: {lost} boxes without area, or outside their image, are left out")
        labels = np.array([label[a["category_id"]] for a in self.annotations], np.int64)
        crowd = np.array([a["iscrowd"] for a in self.annotations], bool)
        found = []
        order = np.argsort(where, kind="stable")
        bounds = np.searchsorted(where[order], np.arange(len(self.ids) + 1))
        boxes = boxes.astype(np.float32)
        for start, end in zip(bounds, bounds[1:]):
            mine = order[start:end]
            mine = mine[kept[mine]]
            single, many = mine[~crowd[mine]], mine[crowd[mine]]
            found.append(Objects(boxes[single], labels[single], boxes[many]))
        return found


def open_split(data, name, folder):
    """The Coco of a split: `name` as train2017, or a .json file; `folder`: of images, or ""."""
    if name.endswith(".json"):
        path, folder = os.path.join(data, name), folder or os.path.join(data, "images")
    else:
        path = os.path.join(data, "annotations", f"instances_{name}.json")
        places = [os.path.join(data, name), os.path.join(data, "images", name)]
        folder = folder or next(filter(os.path.isdir, places), places[0])
    if not os.path.isdir(folder):
        raise InputError(f"missing image folder {folder!r}: {LAYOUT}, or -trainImages, -valImages")
    return Coco(path, folder)


def _files(root, folder):
    """The names of the regular files in a folder below `root`; none if it cannot be listed."""
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            return [entry.name for entry in entries if entry.is_file()]
    except (OSError, ValueError):
        return []


def _size(image):
    return {"width": image.get("width"), "height": image.get("height")}


def _read(path):
    try:
        with regular_files.opened(path) as file:
            return json.load(file)
    except FileNotFoundError:
        raise InputError(f"missing annotations {path!r}: {LAYOUT}; -train and -val") from None
    except OSError as error:
        raise InputError(f"cannot read {path!r}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {str(error)[:120]}") from None


def _entries(content, name, path):
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InputError(f"{path} is no file of COCO's: it has no list of {name}")
    return found


def _is_whole(value):
    return type(value) is int and abs(value) <= EXACT


def _are_numbers(values, count):
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and abs(value) <= EXACT for value in values)
    )
