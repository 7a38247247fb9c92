"""The download of a file into memory, with limits of size and time."""

import http.client
import time
import urllib.request

from runtime.errors import InputError, cause
from runtime.terminal import show

TIMEOUT = 30  # seconds to wait for the server
SLOWEST = 1000  # bytes per second that a download must reach on average after TIMEOUT


def fetch(url, largest):
    """The bytes at `url`. InputError if they are cut short, more than `largest`, or too slow."""
    began, data, name = time.monotonic(), bytearray(), url.rpartition("/")[2]
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as body:
            size = body.length  # None: the server does not say
            while len(data) != size and (chunk := body.read1(1 << 20)):
                data += chunk
                share = f"{100 * len(data) // size} %, " if size else ""
                show(f" {name}: {share}{len(data) / 1e6:.1f} MB")
                if max(len(data), size or 0) > largest:
                    raise ValueError(f"the file has more than {largest} bytes")
                if time.monotonic() - began > TIMEOUT + len(data) / SLOWEST:
                    raise TimeoutError(f"fewer than {SLOWEST} bytes per second arrive")
        show("")
        if size and len(data) < size:  # read1 takes a lost connection for the body's end
            raise ConnectionError(f"the connection ended after {len(data)} of {size} bytes")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"cannot download {url}: {cause(error)}") from None
    return data
