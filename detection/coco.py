"""Images and boxes in COCO's layout, in that of an annotation tool, or in any file of COCO's JSON.

Read as py-faster-rcnn does: boxes are cut at the border of the image, boxes without area are left
out, and crowds do not count as objects. The scores use every annotation as it stands in the file.
"""

import contextlib
import copy
import glob
import json
import os
import re
import urllib.parse
import zlib

import numpy as np

from datasets.image import decoding
from detection import annotations
from runtime import regular_files
from runtime.errors import InputError
from runtime.progress import slow
from runtime.terminal import note

# A box has an area if its sides are larger than this share of the image's sides. A thinner box may
# lose its area when it is mirrored and resized in float32, and then its loss is not finite.
THINNEST = 1e-6


def _last_part(name):
    # Label Studio writes "/data/local-files/?d=a%20b.jpg"; a link to a cloud ends in "?key=..."
    name = re.sub(r"\?(?!d=).*", "", name)
    return re.split(r"[\\/]|\?d=", urllib.parse.unquote(name))[-1]


_JSON = "*.[jJ][sS][oO][nN]"
# Ways to read the name of an image: as it is, with slashes for backslashes, its last part alone
_READINGS = (str, lambda name: name.replace("\\", "/"), _last_part)


class Coco:
    """A file of annotations and the folder of its images."""

    def __init__(self, path, folders, gen=""):
        """folders: where the images may be, the likeliest first.

        gen: the folder for the cache of a large file; "" for none.
        """
        self.path = path
        found = annotations.read(path, gen)
        facts = json.loads(found["facts"].tobytes())
        self.ids, self.categories, self.names = (facts[n] for n in ("ids", "categories", "names"))
        names = [name if isinstance(name, str) else "" for name in facts["files"]]
        self.folder, self.files = self._find_images(folders, names)
        for id, file in zip(self.ids, self.files):
            if not file or _leads_out(file) or "\0" in file:
                raise InputError(
                    f"{path}: image {id} has an invalid file_name: {file!r:.80}; give a path below "
                    "the folder of the images"
                )
        self.sizes, self.annotations = found["sizes"], found["annotations"]
        self.odd = []  # see datasets/image_folder.py
        self._check_units()
        self._sort_by_image()
        if self.left_out:
            note(f" | {path}: left out {self.left_out} boxes without area or outside their image")

    def subset(self, places):
        """The images at these places, which ascend."""
        part = copy.copy(self)
        part.ids, part.files = ([each[i] for i in places] for each in (self.ids, self.files))
        part.sizes, part.odd = self.sizes[places], []
        part.annotations = self.annotations[np.isin(self.annotations["image"], places)]
        part.annotations["image"] = np.searchsorted(places, part.annotations["image"])
        part._sort_by_image()
        return part

    def check_files(self, places):
        """InputError if one of these images has no file.

        Each folder is listed once, because looking up every file takes minutes over a network.
        """
        names, listed = [self.files[i] for i in places], set()
        with slow(f"looking for {len(names)} images in {self.folder}"):
            for folder in sorted({os.path.dirname(name) for name in names}):
                with contextlib.suppress(OSError):
                    found = os.scandir(os.path.join(self.folder, folder))
                    listed |= {os.path.join(folder, each.name) for each in found if each.is_file()}
            missing = [
                name
                for name in names
                # the file system may ignore case, or not allow a folder to be listed
                if name not in listed and not os.path.isfile(os.path.join(self.folder, name))
            ]
        if missing:
            first = missing[0]
            near = next((name for name in sorted(listed) if name.lower() == first.lower()), "")
            raise InputError(
                f"{self.path}: {len(missing)} of {len(names)} images have no file in "
                f"{self.folder!r}, the first is {first!r:.80}{near and f' (there is {near!r})'}; "
                "give their folder as -trainImages or -valImages, take the images out of the JSON, "
                "or give -skipCorrupt true"
            )

    def name(self, i):
        return os.path.join(self.folder, self.files[i])

    def pixels(self, i):
        path, size, odd = self.name(i), tuple(self.sizes[i].tolist()), []
        pixels = decoding.load_image(path, odd.append, upright_unless=size)
        self.odd += [f"{path!r}: {phrase}" for phrase in odd]
        found = pixels.shape[2], pixels.shape[1]
        if found != size:
            found, stated = (f"{width} x {height}" for width, height in (found, size))
            raise InputError(
                f"the image {path!r} has {found} pixels, but {self.path} says {stated}"
            )
        return pixels

    def objects(self, i):
        (start, end), (first, last) = (bounds[i : i + 2] for bounds in self._bounds)
        parts = self._boxes[start:end], self._labels[start:end], self._crowd[first:last]
        return annotations.Objects(*parts)

    def rows(self):
        """The annotations as they stand in the file, see images.py."""
        names = ("image", "category", "crowd", "area", "box")
        return zip(*(self.annotations[name].tolist() for name in names))

    def fingerprint(self):
        """A checksum of the images' names and objects, in order."""
        found = zlib.crc32(json.dumps(self.categories).encode())
        for i, file in enumerate(self.files):
            found = zlib.crc32(file.encode("utf-8", "surrogatepass"), found)
            for part in self.objects(i):
                found = zlib.crc32(part, found)
        return found

    def _find_images(self, folders, names):
        """The first folder that holds an image, and the names as they have to be read.

        Names that fit nowhere lose their own folders.
        """
        for place, read in enumerate(_READINGS):
            for folder in folders:
                if any(_is_in(folder, read(name)) for name in names[:100]):
                    return folder, self._as_read(folder, names, _READINGS[place:])
        return folders[0], names

    def _as_read(self, folder, names, ways):
        """The names as they are read in the first way; an odd one in the first way that fits."""
        found = {}
        for name in names:
            found[name] = ways[0](name)
            if _leads_out(found[name]) or "\\" in found[name] or "://" in found[name]:
                read = (way(name) for way in ways[1:])
                found[name] = next((n for n in read if _is_in(folder, n)), found[name])
        shortened = [n for n in found if n != found[n] == _last_part(n)]
        if shortened and len(set(found.values())) < len(found):
            return names
        if shortened:
            first = shortened[0]
            note(f" | {self.path}: {first!r} is read as {found[first]!r}, and so on")
        return [found[name] for name in names]

    def _check_units(self):
        """Print a line if the boxes do not seem to be x, y, width, height in pixels."""
        boxes, sizes = self.annotations["box"], self.sizes[self.annotations["image"]]
        beyond = np.count_nonzero((boxes[:, :2] + boxes[:, 2:] > sizes + 1).any(1))
        if beyond:
            note(
                f" | {self.path}: {beyond} of {len(boxes)} boxes reach beyond their image: give "
                "x, y, width and height in pixels, not two corners"
            )
        if len(boxes) and (boxes <= 1).all():
            note(f" | {self.path}: all boxes are smaller than a pixel: give pixels, not fractions")

    def _sort_by_image(self):
        """Keep the boxes that are objects, and the crowds, in the order of the images.

        One array for all images, because forked workers share its memory. A list would be copied
        when its reference counts change.
        """
        where, boxes = self.annotations["image"], self.annotations["box"].copy()
        sizes = np.tile(self.sizes[where].astype(np.float64), 2)
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes, 0, sizes)
        kept = (boxes[:, 2:] - boxes[:, :2] > THINNEST * sizes[:, :2]).all(1)
        self.left_out = np.count_nonzero(~kept)
        order, crowd = np.argsort(where, kind="stable"), self.annotations["crowd"] == 1
        single, many = (order[(kept & each)[order]] for each in (~crowd, crowd))
        each = np.arange(len(self.ids) + 1)
        self._bounds = [np.searchsorted(where[part], each) for part in (single, many)]
        self._boxes, self._crowd = (boxes[part].astype(np.float32) for part in (single, many))
        self._labels = self.annotations["category"][single] + 1


def find(data, train, val, testing):
    """(-train, -val, whether one file is divided among both) of the data in a folder.

    Where the default names have no file, the files of COCO's JSON are found by their names, or one
    file serves for both. testing: only -val is needed.
    """
    lack = [
        name in ("train2017", "val2017") and not os.path.isfile(_annotations_path(data, name))
        for name in (train, val)
    ]
    if not (lack[1] if testing else any(lack)):
        return train, val, False
    pattern = os.path.join(glob.escape(data), "**", _JSON)
    files = [path for path in sorted(glob.glob(pattern, recursive=True)) if _lists_images(path)]
    if not files:
        _refuse_other_formats(data)
    if lack[0]:
        train = _choose(data, files, "train") or _choose(data, files, "") or train
    if lack[1]:
        others = [path for path in files if path != _annotations_path(data, train)]
        found = _choose(data, others, "val") or _choose(data, others, "test")
        # person_keypoints_default.json may lie beside instances_default.json
        rivals = [path for path in others if "instances" in path or "instances" not in train]
        if not (found or lack[0] and rivals) and os.path.isfile(_annotations_path(data, train)):
            return train, train, True
        val = found or val
    if lack[0] and files and (train == "train2017" or lack[1] and val == "val2017"):
        names = ", ".join(os.path.relpath(path, data) for path in files[:3])
        many = f"{len(files)} files of boxes, {names}{', and others' * (len(files) > 3)}"
        raise InputError(f"{data!r} has {many}: give -train and -val")
    return train, val, False


def _refuse_other_formats(data):
    """InputError for boxes in a format that another program has to convert."""
    for ending in ("xml", "txt", "json"):
        pattern = os.path.join(glob.escape(data), "**", f"*.{ending}")
        found = map(os.path.basename, glob.iglob(pattern, recursive=True))
        if not all(name.startswith("README") for name in found):  # Roboflow adds two of .txt
            raise InputError(
                f"{data!r} has .{ending} files, but none of COCO's JSON: the package supervision "
                "converts VOC's XML and YOLO's txt (DetectionDataset), labelme2coco converts "
                "labelme's JSON"
            )


def _choose(data, files, word):
    """The one file whose path below `data` has this word; None if there is none, or several."""
    found = [path for path in files if word in os.path.relpath(path, data).lower()]
    found = [path for path in found if "instances" in path] or found
    return found[0] if len(found) == 1 else None


def _lists_images(path):
    """Whether a file may be COCO's annotations; JSON of other tools does not have this list."""
    try:
        data = regular_files.read_bytes(path, None)
        return b'"images"' in data.replace(b"\0", b"")  # also in UTF-16
    except OSError:
        return False


def open_split(data, name, folder, gen=""):
    """The Coco of a split. name: train2017, say, or a .json file. folder: of images, or ""."""
    path = _annotations_path(data, name)
    if folder:
        folder = _first((os.path.join(data, folder), folder), os.path.isdir)
        if not os.path.isdir(folder):
            raise InputError(f"missing image folder {folder!r}: give another one, or leave it out")
        return Coco(path, [folder], gen)
    # the images of image_info_test-dev2017.json are in test2017
    known = r"(?i)^(instances|image_info)_|(?<=image_info_test)-dev|\.json$"
    stem, beside = re.sub(known, "", os.path.basename(path)), os.path.dirname(path)
    above = os.path.dirname(beside) if os.path.basename(beside) == "annotations" else data
    usual = (stem, f"images/{stem}", f"{stem}/images", "images", "data", "")
    roots = dict.fromkeys((data, above, beside))
    folders = [beside] if name.lower().endswith(".json") else []
    folders += [os.path.join(root, sub) for root in roots for sub in usual]
    others = glob.glob(os.path.join(glob.escape(above), "*", ""))
    folders += others if len(others) == 1 else []  # of several, the images may be in another
    return Coco(path, folders, gen)


def _annotations_path(data, name):
    """The file of a split. A .json file is looked for in `data`, then in the current folder."""
    if name.lower().endswith(".json"):
        return _first((os.path.join(data, name), name), os.path.isfile)
    return os.path.join(data, "annotations", f"instances_{name}.json")


def _first(paths, is_there):
    return next(filter(is_there, paths), paths[0])


def _is_in(folder, name):
    return not _leads_out(name) and os.path.isfile(os.path.join(folder, name))


def _leads_out(name):
    return os.path.normpath(name).startswith(("..", os.sep))
