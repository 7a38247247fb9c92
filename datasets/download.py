"""The download of a file into memory, with limits of size and time."""

import http.client
import string
import threading
import time
import urllib.parse
import urllib.request

from runtime.errors import InputError, cause
from runtime.terminal import show

TIMEOUT = 30  # seconds to wait for the server, for the whole head of its answer and for each part
SAFE = string.punctuation  # characters of a URL that stay; spaces and letters with accents do not
SLOWEST = 1000  # bytes per second that a download must reach on average after TIMEOUT


def fetch(url, largest):
    """The bytes at `url`. InputError if they are cut short, more than `largest`, or too slow."""
    began, data, name = time.monotonic(), bytearray(), url.rpartition("/")[2]
    try:
        with _answer(url) as body:
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


def _answer(url):
    """The open answer of a server; what `urlopen` raises, or TimeoutError after TIMEOUT.

    urlopen's own limit is for each piece of the head that arrives, so a thread waits for the whole.
    """
    parts = urllib.parse.urlsplit(url)
    path, query = (urllib.parse.quote(part, SAFE) for part in (parts.path, parts.query))
    host = parts.netloc.encode("idna").decode()  # as browsers do, and as they escape the rest
    url = parts._replace(netloc=host, path=path, query=query).geturl()
    found = []

    def wait():
        try:
            found.append(urllib.request.urlopen(url, timeout=TIMEOUT))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if not found:
        raise TimeoutError(f"timed out, because no whole answer came in {TIMEOUT} seconds")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]
