"""Download of a published file, with a timeout and a checksum. Takes the place of curl.

The Lua piped curl into tar, so that a broken download was noticed late or never. torchvision's
download_url waits for ever on a server that stops sending, and leaves a broken file at the target.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.request

from runtime import regular_files
from runtime.errors import InputError
from runtime.terminal import show
from storage import atomic

CHUNK = 1 << 20  # bytes


def fetch(url, path, md5, timeout=30):
    """Download `url` to `path`. The file appears at `path` only once its MD5 is `md5`.

    A lost connection, a short body or a server error is retried once. `timeout` is in seconds, for
    each wait on the network. InputError says how to get the file by other means.
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


def checksum(path, progress=lambda done: None):
    """The MD5 of a file in hexadecimal, as the publishers give it.

    progress: called with the number of bytes read so far.
    """
    # against accidents, not attackers: hence allowed where the system forbids MD5 for security
    digest = hashlib.md5(usedforsecurity=False)
    with regular_files.opened(path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            progress(file.tell())
    return digest.hexdigest()


def _attempt(url, path, md5, timeout):
    done = 0
    with urllib.request.urlopen(url, timeout=timeout) as body, atomic.replacing(path) as file:
        length = int(body.headers.get("Content-Length", 0))  # 0: the server does not say
        while chunk := body.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            show(f" {os.path.basename(path)}: {_progress(done, length)}")
        show("")
        if done < length:  # read(n) takes the end of a lost connection for the end of the body
            raise ConnectionError(f"the connection ended after {done} of {length} bytes")
        file.flush()
        found = checksum(file.name)
        if found != md5:
            raise InputError(
                f"{url} is not the published file (its MD5 is {found}, should be {md5}); get that "
                f"by other means and put it at {path}"
            )


def _progress(done, length):
    megabytes = f"{done / 1e6:.1f} MB"
    return f"{100 * done // length} %, {megabytes}" if length else megabytes
