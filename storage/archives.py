"""Verifies files of torch.save and np.savez before anything is read from them.

Both write zip archives whose records follow one another, neither compressed nor overlapping, so the
content is no larger than the file. A small file that claims gigabytes is refused.

The values in the pickle of torch.save are counted too. A pickle of a few hundred bytes can build a
list that holds another twice, sixty levels deep: printing or hashing that list never ends. A pickle
can also call functions that take any amount of memory. torch.load runs no code from the file, but
follows these instructions, so every instruction is checked before.
"""

import _compat_pickle
import argparse
import collections
import itertools
import mmap
import pickletools
import re
import struct
import zipfile

from runtime.errors import InputError

STATE_DICT = "torch.save(net.state_dict(), FILE) writes what can be read"
MOST = 700_000  # values beside tensors; detectors of earlier versions have 80 for each epoch
_OF_A_TENSOR = 40  # values for each tensor and its name; its record takes over 80 bytes
_DEEPEST = 100  # levels of nesting; files of this program have 5
_LARGEST = 2**63  # integers; dict keys that are multiples of 2^61 - 1 all have the same hash
_MAGIC = 0x1950A86A20F9469CFC6C  # a file from before PyTorch 1.6 begins with this number

# The names that tensors and plain values need; an argparse.Namespace only holds values.
_PLAIN = re.compile(
    r"torch(\.storage)? \w+Storage"
    r"|torch (u?int\d+|b?float\d+|float8_\w+|complex\d+|bool|Size|device)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
    r"|torch\.nn\.parameter Parameter|collections (OrderedDict|Counter)|argparse Namespace"
)
# What PyTorch itself would call, or what does not belong beside weights: always refused
_CALLED = re.compile(
    r"torch(?!\.(?:nn|optim|amp|cuda\.amp)\b)[. ].*|(?:nt|os|posix|sys|subprocess) .*"
    r"|(?:__builtin__|builtins) (?!(?:set|frozenset|complex|object|slice|x?range|list|dict|tuple"
    r"|int|long|float|str|unicode|bool)$).*"
)
_LONGEST_BYTES = 8192  # of a bytes value, which protocol 2 writes as a text and its encoding
_GROWING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")
_OTHERS = ("PROTO", "STOP", "EMPTY_LIST", "EMPTY_DICT")
_ATOM = [1]


class Skipped(list):
    """Stands for an object of another program, and runs no code."""

    name = "object"

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        pass


class _SkippedDict:
    """As Skipped, but for an object that the pickle fills like a dict: a dict replaces it."""

    def __new__(cls, *_, **__):
        return collections.OrderedDict()


def replacements(asked):
    """(class, name) for each object that `verify` returned, as torch's safe_globals takes them."""
    found = []
    for argument, is_dict in asked.items():
        module, _, name = argument.partition(" ")
        # torch.load replaces Python 2's names by Python 3's
        modern = _compat_pickle.IMPORT_MAPPING.get(module, module), name
        name = ".".join(_compat_pickle.NAME_MAPPING.get((module, name), modern))
        made = type("Skipped", (_SkippedDict if is_dict else Skipped,), {"name": name})
        found.append((made, name))
    return found


class Changed(ValueError):
    """How a file was damaged, in our words; the text of a library would help nobody."""


def verify(file, path, foreign=False):
    """Verify a file of torch.save, open for reading: records, checksums, pickles.

    torch.load does not verify checksums; this takes 1 s for 2 GB. A file from before PyTorch 1.6 is
    no zip archive and has no checksums. InputError if the file asks for what torch.save does not
    write; any other exception if it is damaged, or crafted to look damaged. Returns what
    verify_pickle does.
    """
    asked = {}
    if file.read(4) != b"PK\3\4":  # as torch.load tells them apart
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for _ in range(5):  # its pickles, which come before its numbers
                asked |= verify_pickle(data, path, foreign)
        return asked
    with zipfile.ZipFile(file) as archive:
        verify_layout(file, archive)
        # all are 0 after torch.serialization.set_crc32_options(False)
        changed = any(record.CRC for record in archive.infolist()) and archive.testzip()
        if changed:
            raise Changed(f"its record {changed} has changed")
        most = MOST + _OF_A_TENSOR * len(archive.infolist())
        for record in archive.infolist():
            if record.filename.endswith("data.pkl"):
                with archive.open(record) as data:
                    asked |= verify_pickle(data, path, foreign, most)
    return asked


def verify_layout(file, archive):
    """ValueError for a record that is compressed, a folder, or overlaps another.

    file: what `archive` reads.
    """
    records = sorted(archive.infolist(), key=lambda record: record.header_offset)
    if len({record.filename for record in records}) < len(records):
        raise Changed("two of its records have the same name")
    end = 0
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise Changed(f"its record {record.filename} is compressed")
        # DOS's bit for a folder: PyTorch would leave the memory of the record uninitialised
        if record.external_attr & 0x10 or record.is_dir():
            raise Changed(f"its record {record.filename} claims to be a folder")
        start = record.header_offset
        file.seek(start + 26)
        name, extra = struct.unpack("<HH", file.read(4))
        if start < end or (not end and start):
            raise Changed(f"its record {record.filename} overlaps another")
        end = start + 30 + name + extra + record.file_size
    if end > archive.start_dir:
        raise Changed("its records overlap their directory")


def verify_pickle(file, path, foreign=False, most=MOST):
    """Verify one pickle in a file that is open for reading; ValueError if it is damaged.

    InputError if the pickle asks for more than tensors and plain values, if a key holds other
    values, or if there are more than `most` values, each counted as often as it is referred to. Of
    a foreign file, returns what else it asks for: {"module name": whether a dict is made of it}.
    """
    stack, marks, memo = [], [], {}  # each value is [weight]: 1 and the weights of its content
    # of a global, and of what it makes, [weight, name of the global]
    asked, longest = {}, 0
    for count, (code, argument, _) in enumerate(pickletools.genops(file)):
        name = code.name
        _check_instruction(name, argument, path, foreign)
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "GLOBAL":
            if not _PLAIN.fullmatch(argument):
                asked.setdefault(argument, False)
            stack.append([1, argument])
        elif not code.stack_before and name not in _OTHERS:
            longest = max(longest, len(argument) if isinstance(argument, str) else 0)
            stack.append(_ATOM)
        elif name not in ("PROTO", "STOP"):
            grows, marked = name in _GROWING, pickletools.markobject in code.stack_before
            start = marks.pop() if marked else len(stack) - len(code.stack_before) + grows
            taken = stack[start:]
            del stack[start:]
            if name.startswith("SETITEM") and any(cell[0] > 1 for cell in taken[::2]):
                raise InputError(f"{path} has a key that is neither a name nor a number")
            weight = sum(cell[0] for cell in taken)
            made = taken[0][1:] if name in ("REDUCE", "NEWOBJ") else []
            if made == ["_codecs encode"] and weight != 4:  # the global, a tuple and its two texts
                raise _more(path, *made)
            if grows:
                filled, *of = stack[-1]
                if stack[-1] is _ATOM or (of and filled == 1):  # a global itself
                    raise Changed("it fills what can hold nothing")
                stack[-1][0] += weight
                if name.startswith("SETITEM") and asked.keys() & of:
                    asked[of[0]] = True
            else:
                stack.append([1 + weight, *made])
            if stack[-1][0] > most:
                raise _too_many(path, most)
        if count > 2 * most:
            raise _too_many(path, most)
    if "_codecs encode" in asked and longest > _LONGEST_BYTES:
        raise _more(path, "_codecs encode")
    return asked


def _check_instruction(name, argument, path, foreign):
    """InputError for an instruction of a pickle that is refused wherever it stands."""
    if name == "PROTO" and argument > 2:
        raise InputError(
            f"{path} uses pickle protocol {argument}: save the file again with torch.save, which "
            "writes protocol 2 unless pickle_protocol says otherwise"
        )
    is_plain = name != "GLOBAL" or _PLAIN.fullmatch(argument)
    if not is_plain and (not foreign or _CALLED.fullmatch(argument)):
        raise _more(path, argument)
    if type(argument) is int and abs(argument) >= _LARGEST and argument != _MAGIC:
        bits = argument.bit_length()
        raise InputError(f"{path} has an integer of {bits} bits; at most 63 are allowed")


def _more(path, argument):
    asked = argument.replace(" ", ".")
    if asked == "_codecs.encode":
        asked = "long bytes, as of NumPy's arrays"
    what = f"it asks for {asked}, which could run code or take memory"
    return InputError(f"{path} holds more than tensors and plain values: {what}")


def plain(value, path, foreign=False):
    """A copy of a value that was read, made of plain dicts, lists, tuples and tensors.

    A file can give its dicts and parameters attributes such as `items` and `numel`, which would
    hide the methods of that name. The copy has no such attributes. A Namespace becomes a dict.
    InputError for any other object, for a value that contains itself, and for too many or too
    deeply nested values: a list can grow after others refer to it, which `verify_pickle` misses.
    """
    import torch  # not at the top: plot.py does not need torch

    count = itertools.count(1)
    leaves = (str, bool, int, float, complex, type(None), torch.dtype, torch.device)

    def copy(value, depth=0):
        if next(count) > MOST or depth > _DEEPEST:
            raise _too_many(path, MOST)
        if foreign and isinstance(value, Skipped):
            return value
        # methods of the class, because the value may hide them
        if isinstance(value, torch.Tensor):
            value = torch.Tensor.detach(value).resolve_neg()
            # in older PyTorch dimensions may have names, which few functions support
            return value.rename(None) if any(getattr(value, "names", ())) else value
        if isinstance(value, (dict, argparse.Namespace)):
            entries = value if isinstance(value, dict) else vars(value)
            return {name: copy(part, depth + 1) for name, part in dict.items(entries)}
        if isinstance(value, (list, tuple)):
            parts = [copy(part, depth + 1) for part in value]
            return parts if isinstance(value, list) else tuple(parts)
        if not isinstance(value, leaves):
            if foreign:  # such as a set, or bytes
                return Skipped()
            what = f"a {type(value).__name__}"
            raise InputError(f"{path} holds more than tensors and plain values: {what}")
        return value

    return copy(value)


def _too_many(path, most):
    return InputError(f"{path} holds over {most:,} values, or values that contain themselves")
