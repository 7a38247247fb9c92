"""Lists of images in place of class folders (-train FILE and -val FILE).

Each line has an image and its class. Commas, tabs, semicolons or spaces separate the columns. Where
the first line names columns, these are taken, so the tables of evaluate.py and classify.py can be
read back.
"""

import csv
import hashlib
import io
import os

from datasets.class_names import normalized
from runtime import regular_files
from runtime.errors import InputError

_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
_CLASSES = ("class", "label", "target", "category", "class1")


def find(opt, split):
    """The list of a split, below -data or in the current folder; None if none is given."""
    name = getattr(opt, split, "")
    if not name:
        return None
    path = os.path.join(opt.data, name)
    path = path if os.path.isfile(path) else name
    regular_files.check_input(path, f" (-{split})")
    return path


def digest(path):
    """The hash of a list's content."""
    with regular_files.opened(path) as file:
        return hashlib.sha256(file.read()).hexdigest()


def classes(path):
    """The names of a list's classes, sorted; as numbers if all are whole numbers."""
    names = {normalized(name) for name in {name for _, _, name in _rows(path)}}
    return sorted(names, key=int if all(map(str.isdecimal, names)) else None)


def images(opt, split, names):
    """(paths below or outside -data, class numbers) of a list's images.

    Relative paths are sought from -data, the list's folder and the current folder. A number is the
    name of a class or, where no class has a number for a name, its place among the names.
    """
    path, base = find(opt, split), os.path.join(os.path.abspath(opt.data), "")
    roots = list(dict.fromkeys((base, os.path.abspath(os.path.dirname(path)), os.getcwd())))
    numbers = {name: number for number, name in enumerate(names)}
    if not any(map(str.isdecimal, names)):
        numbers |= {str(number): number for number in range(len(names))}
    paths, targets, missing = [], [], []
    for line, place, name in _rows(path):
        number = numbers.get(name)
        if number is None:
            number = numbers.get(normalized(name))
        if number is None:
            raise InputError(f"{path}, line {line}: no training image is of the class {name!r}")
        full = (os.path.normpath(os.path.join(root, place)) for root in roots)
        found = next(filter(os.path.isfile, full), None)
        if found is None:
            missing.append(f"{place!r} (line {line})")
            found = os.path.normpath(os.path.join(base, place))
        paths.append(os.fsencode(found.removeprefix(base)))
        targets.append(number)
    if not paths:
        raise InputError(f"{path} lists no images: each line should have a path and a class")
    if missing and not opt.skipCorrupt:
        few = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
        raise InputError(
            f"{path}: {len(missing)} of {len(paths)} images are missing: {few}; sought in "
            + ", ".join(map(repr, roots))
        )
    return paths, targets


def _rows(path):
    """(line number, path, class) of each image of a list."""
    try:
        file = regular_files.opened(path)
        with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
            first = text.readline()
            text.seek(0)
            reader = csv.reader(text, delimiter=next((c for c in "\t,; " if c in first), ","))
            columns = None
            for cells in reader:
                if not cells:
                    continue
                if columns is None:
                    head = [cell.strip().lower() for cell in cells]
                    columns = [
                        next((head.index(name) for name in known if name in head), place)
                        for place, known in enumerate((_PATHS, _CLASSES))
                    ]
                    if {*_PATHS, *_CLASSES} & set(head):
                        continue
                place, name = (cells[n].strip() if n < len(cells) else "" for n in columns)
                if not place or not name:
                    fault = "should have a path and a class"
                    raise InputError(f"{path}, line {reader.line_num}: {fault}")
                yield reader.line_num, place, name
    except (OSError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {regular_files.reason(error)}") from None
