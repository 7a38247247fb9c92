"""The records of a file of torch.save or np.savez, checked before anything is read from them.

Both write zip archives whose records are stored one after another, neither compressed nor
overlapping: what they hold is no larger than the file. A small file that claims gigabytes is
refused.
"""

import mmap
import struct
import zipfile

from storage import pickles


def check(file, path):
    """Verify a file of torch.save, open for reading: records, checksums, pickles.

    torch.load does not verify checksums; here they take 1 s for 2 GB. A file of before PyTorch 1.6
    is no zip archive and has none. InputError if it asks for what torch.save does not write, other
    exceptions if it is damaged, which a crafted file may look like.
    """
    if file.read(4) != b"PK\3\4":  # as torch.load tells them apart
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            pickles.check_old(data, path)
        return
    with zipfile.ZipFile(file) as archive:
        check_layout(file, archive)
        # all are 0 after torch.serialization.set_crc32_options(False)
        checked = any(record.CRC for record in archive.infolist())
        changed = archive.testzip() if checked else None
        if changed:
            raise ValueError(f"its record {changed} has changed")
        for record in archive.infolist():
            if record.filename.endswith("data.pkl"):
                with archive.open(record) as data:
                    pickles.check(data, path)


def check_layout(file, archive):
    """ValueError for a record that is compressed, a folder, or overlaps another.

    file: what `archive` reads.
    """
    records = sorted(archive.infolist(), key=lambda record: record.header_offset)
    if len({record.filename for record in records}) < len(records):
        raise ValueError("two of its records have the same name")
    end = 0
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise ValueError(f"its record {record.filename} is compressed")
        # a folder, by a bit of DOS: PyTorch would leave the memory of the record uninitialised
        if record.external_attr & 0x10 or record.is_dir():
            raise ValueError(f"its record {record.filename} claims to be a folder")
        start = record.header_offset
        file.seek(start + 26)
        name, extra = struct.unpack("<HH", file.read(4))
        if start < end or (not end and start):
            raise ValueError(f"its record {record.filename} overlaps another")
        end = start + 30 + name + extra + record.file_size
    if end > archive.start_dir:
        raise ValueError("its records overlap their directory")
