"""Lists of images in place of class folders (-train FILE and -val FILE).

Each line has an image and its class. Tabs, semicolons, commas or spaces separate the columns. Where
the first line names columns, these are taken, so the tables of evaluate.py and classify.py can be
read back.
"""

import csv
import io
import itertools
import os
import re

from datasets.class_names import normalized
from runtime import regular_files
from runtime.errors import InputError, cause

LARGEST = 1 << 30  # bytes of a list; one of a million images has 50 million
# Names of columns, as _columns writes them; the first that is found is taken
_PATHS = ("path", "file", "filename", "filepath", "image", "imagepath", "imagename", "imageid")
_CLASSES = ("class", "label", "target", "category", "classname", "classid", "class1")


def find(opt, split):
    """The list of a split, below -data or in the current folder; None if none is given."""
    name = getattr(opt, split, "")
    if not name:
        return None
    path = os.path.join(opt.data, name)
    path = path if os.path.isfile(path) else name
    regular_files.check_input(path, f" (-{split})")
    return path


def classes(path):
    """The names of a list's classes, sorted; as numbers if all are whole numbers."""
    names = sorted({normalized(name) for name in {name for _, _, name in _rows(path)}})
    # int refuses names of thousands of digits; "01" and "1" stay in the order of text
    return sorted(names, key=int if all(n.isdecimal() and len(n) < 20 for n in names) else None)


def images(opt, split, names):
    """(paths below or outside -data, class numbers) of a list's images.

    Relative paths are looked up in -data, the list's folder and the current folder, in this order.
    A number is the name of a class or, if no class has such a name, its place among the names.
    """
    path, base = find(opt, split), os.path.join(os.path.abspath(opt.data), "")
    roots = list(dict.fromkeys((base, os.path.abspath(os.path.dirname(path)), os.getcwd())))
    numbers = {name: number for number, name in enumerate(names)}
    if not any(map(str.isdecimal, names)):
        numbers |= {str(number): number for number in range(len(names))}
    paths, targets, missing = [], [], []
    for line, place, name in _rows(path):
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
        few = ", ".join(missing[:10]) + ", ..." * (len(missing) > 10)
        raise InputError(
            f"{path}: {len(missing)} of {len(paths)} images are missing: {few}; "
            f"they were looked for in {', '.join(map(repr, roots))}"
        )
    return paths, targets


def _rows(path):
    """(line number, path, class) of each image of a list."""
    try:
        file = regular_files.opened(path, LARGEST)
        with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
            first = re.sub('"[^"]*"', "x", next(filter(str.strip, text), "")).strip()
            text.seek(0)
            delimiter = next((c for c in "\t;, " if c in first), ",")
            # csv refuses NUL before Python 3.11; UTF-8 has no such surrogate
            lines = (line.replace("\0", "\udc00") for line in text)
            reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
            rows = (cells for cells in reader if any(map(str.strip, cells)))
            head = next(rows, None)
            if head is None:
                return
            columns = _columns(head, f"{path}, line {reader.line_num}")
            width = len(head) if columns else 2
            for cells in rows if columns else itertools.chain([head], rows):
                place, name = (
                    cells[n].strip() if n < len(cells) else "" for n in columns or (0, 1)
                )
                # with more cells, a name holds the delimiter and would be cut short
                if not place or not name or "\udc00" in place + name or any(cells[width:]):
                    fault = f"should have a path and a class in UTF-8, separated by {delimiter!r}"
                    if not columns and any(cells[2:]):
                        fault += "; the first line of a list with more columns names them"
                    raise InputError(f"{path}, line {reader.line_num}: {fault}")
                yield reader.line_num, place, name
    except (OSError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {cause(error)}") from None


def _columns(cells, where):
    """[column of the path, of the class] if the cells name columns; None for those of an image."""
    # "File_Paths" is filepath, and "class" stays
    head = [re.sub(r"[\W_]|(?<!s)s\W*$", "", cell.lower()) for cell in cells]
    found = [next((head.index(n) for n in known if n in head), -1) for known in (_PATHS, _CLASSES)]
    if max(found) < 0 or any("." in cell for cell in cells):  # a class may be called "image"
        return None
    if -1 in found:
        if len(cells) != 2:
            names = ("path, file or image", "class, label or target")[found.index(-1)]
            raise InputError(f"{where}: one of the columns should be called {names}")
        found[found.index(-1)] = 1 - max(found)
    return found
