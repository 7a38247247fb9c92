"""Fetching a published file, checked before it counts. Takes the place of curl in *-gen.lua.

The Lua piped curl into tar, so that a broken download was noticed late or never.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.request

from runtime.errors import InputError
from runtime.terminal import show
from storage import atomic

CHUNK = 1 << 20  # bytes


def fetch(url, path, md5, timeout=30):
    """Download `url` to `path`; there is nothing at `path` until the whole has the checksum `md5`.

    A lost connection, a short body or a fault of the server is tried once more. `timeout` is in
    seconds, for each wait on the network.
    """
    for last in (False, True):
        try:
            _attempt(url, path, md5, timeout)
            break
        except (OSError, http.client.HTTPException) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if last or refused:
                raise InputError(
                    f"cannot download {url}: {error}; get the file by other means and put it at "
                    f"{path}"
                ) from None


def checksum(path):
    """The MD5 of a file in hexadecimal, as the publishers give it."""
    digest = _md5()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _md5():
    # against accidents, not attackers: hence allowed where the system forbids MD5 for security
    return hashlib.md5(usedforsecurity=False)


def _attempt(url, path, md5, timeout):
    digest, done = _md5(), 0
    with urllib.request.urlopen(url, timeout=timeout) as body, atomic.replacing(path) as file:
        length = int(body.headers.get("Content-Length", 0))  # 0: the server does not say
        while chunk := body.read(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            show(f" {os.path.basename(path)}: {_share(done, length)}")
        show("")
        if done < length:  # read(n) takes the end of a lost connection for the end of the body
            raise ConnectionError(f"the connection ended after {done} of {length} bytes")
        if digest.hexdigest() != md5:
            raise InputError(
                f"{url} is not the published file (its MD5 is {digest.hexdigest()}, should be "
                f"{md5}); get that by other means and put it at {path}"
            )


def _share(done, length):
    megabytes = f"{done / 1e6:.1f} MB"
    return f"{100 * done // length} %, {megabytes}" if length else megabytes
