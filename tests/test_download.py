"""The download of CIFAR against a server of our own: whole, wrong, cut short, endless, stalled."""

import contextlib
import hashlib
import http.server
import io
import os
import re
import socket
import tarfile
import threading
import types

import numpy as np
import pytest
from support import ptys

from datasets import cifar10_gen, download
from runtime.errors import InputError
from runtime.terminal import Terminal

NAME = "cifar-10-binary.tar.gz"
FILES = [name + ".bin" for name in cifar10_gen.SOURCE.train + cifar10_gen.SOURCE.val]
RECORDS = np.random.default_rng(0).integers(0, 256, (6, 20, 3073), np.uint8)
RECORDS[:, :, 0] %= 10


def archive():
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w:gz") as tar:
            for name, records in zip(FILES, RECORDS):
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = records.size
                tar.addfile(member, io.BytesIO(records.tobytes()))
        return file.getvalue()


BODY = archive()
MD5 = hashlib.md5(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """The first word of the path is the answer: see its methods."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        with contextlib.suppress(OSError):  # the client hangs up
            getattr(self, kind)()

    def head(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, body=BODY, **headers):
        self.head(**headers)
        self.wfile.write(body)

    def good(self):
        self.body(Content_Length=len(BODY))

    def unsized(self):
        self.body()

    def chunked(self, cut=0):
        self.protocol_version = "HTTP/1.1"  # or the client does not look for chunks
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
        self.body(body[: len(body) - cut], Transfer_Encoding="chunked", Connection="close")

    def wrong(self):
        self.body(b"<html>log in here</html>", Content_Length=24)

    def short(self):
        self.body(BODY[:-1000], Content_Length=len(BODY))

    def short_chunk(self):
        self.chunked(cut=1000)

    def short_unsized(self):
        self.body(BODY[:-1000])

    def large(self):
        self.body(Content_Length=1 << 40)

    def endless(self):
        self.head()
        while True:
            self.wfile.write(bytes(100_000))

    def stalled(self):
        self.body(BODY[:1000], Content_Length=len(BODY))
        self.server.closing.wait(10)

    def mute(self):
        self.server.closing.wait(10)

    def slow_head(self):
        for byte in b"HTTP/1.0 200 OK\r\nX-Long: " + bytes(99) + b"\r\n\r\n":
            self.wfile.write(bytes([byte]))
            self.server.closing.wait(0.05)

    def trickle(self):
        self.head(Content_Length=len(BODY))
        while not self.server.closing.wait(0.05):
            self.wfile.write(b"x")

    def missing(self):
        self.head(404)

    def busy(self):
        self.head(503)

    def loop(self):
        self.head(302, Location=self.path)

    def astray(self):
        self.head(302, Location="http://[nowhere")

    def unsafe(self):
        self.head(302, Location="file:///etc/passwd")

    def noise(self):
        self.wfile.write(b"\0\xff" * 99)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(cifar10_gen, "LARGEST", 1_000_000)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.closing = threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """prepare(url): downloads the archive BODY from there into tmp_path, and makes the cache."""
    versions = cifar10_gen.SOURCE.versions
    source = cifar10_gen.SOURCE._replace(versions=[versions[0]._replace(md5=MD5), versions[1]])

    def prepare(url):
        monkeypatch.setattr(cifar10_gen, "URL", url)
        opt = types.SimpleNamespace(data="", gen=str(tmp_path))
        return cifar10_gen.exec(opt, str(tmp_path / "cifar10.npz"), source)

    return prepare


def assert_whole(info):
    train, val = RECORDS[:5].reshape(-1, 3073), RECORDS[5]
    for split, records in (("train", train), ("val", val)):
        assert np.array_equal(info[f"{split}_images"].reshape(-1, 3072), records[:, 1:])
        assert np.array_equal(info[f"{split}_labels"], records[:, 0])


@pytest.mark.parametrize("kind", ["good", "unsized", "chunked"])
def test_a_file_comes_whole(server, prepare, tmp_path, capsys, kind):
    assert_whole(prepare(f"{server.url}{kind}/"))
    assert (tmp_path / NAME).read_bytes() == BODY
    lines = [
        f"=> Downloading CIFAR-10 dataset from {server.url}{kind}/{NAME}",
        " | combining dataset into a single file",
        f" | saving CIFAR-10 dataset to {tmp_path / 'cifar10.npz'}",
    ]
    assert capsys.readouterr() == ("\n".join([*lines, ""]), "")  # no terminal, no percentage
    # the archive is used again
    assert_whole(prepare("http://nowhere.invalid/"))
    assert capsys.readouterr().out.splitlines() == lines[1:]


WRONG = "{} is not a published archive of CIFAR-10 (its MD5 is "


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("wrong", WRONG + hashlib.md5(b"<html>log in here</html>").hexdigest()),
        ("short_unsized", WRONG),
        ("short", f"the connection ended after {len(BODY) - 1000} of {len(BODY)} bytes"),
        ("short_chunk", "IncompleteRead"),
        ("large", "the file has more than 1000000 bytes"),
        ("endless", "the file has more than 1000000 bytes"),
        ("stalled", "timed out"),
        ("mute", "timed out"),
        ("slow_head", "timed out, because no whole answer came in 0.2 seconds"),
        ("trickle", "fewer than 1000 bytes per second arrive"),
        ("missing", "HTTP Error 404: Not Found"),
        ("busy", "HTTP Error 503"),
        ("loop", "HTTP Error 302: The HTTP server returned a redirect error that would lead"),
        ("astray", "Invalid IPv6 URL"),
        ("unsafe", "HTTP Error 302: Found - Redirection to url 'file:///etc/passwd' is not"),
        ("noise", ""),
    ],
)
def test_a_failure_is_one_sentence_and_leaves_nothing(
    server, prepare, tmp_path, monkeypatch, kind, reason
):
    timeout = {"stalled": 0.1, "mute": 0.1, "slow_head": 0.2, "trickle": 0.5}
    monkeypatch.setattr(download, "TIMEOUT", timeout.get(kind, download.TIMEOUT))
    url = f"{server.url}{kind}/"
    with pytest.raises(InputError) as error:
        prepare(url)
    message = str(error.value)
    failed = "" if reason.startswith(WRONG) else "cannot download {}: "
    assert message.startswith((failed + reason).format(url + NAME))
    assert "\n" not in message and r"\n" not in message
    assert message.endswith(
        f"; get the file by other means and put it at {tmp_path / NAME}, "
        "or name a folder that has the dataset: -data DIR"
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["good", "missing"])
def test_another_file_in_its_place(server, prepare, tmp_path, capsys, kind):
    """A warning names the other file, and only a whole archive replaces it."""
    target = tmp_path / NAME
    target.write_bytes(b"cut short")
    if kind == "good":
        assert_whole(prepare(f"{server.url}good/"))
    else:
        with pytest.raises(InputError, match="404"):
            prepare(f"{server.url}missing/")
    assert target.read_bytes() == (BODY if kind == "good" else b"cut short")
    assert f"=> {target} is not a published archive of CIFAR-10 (its MD5" in capsys.readouterr().err


def test_no_server(prepare, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        with pytest.raises(InputError, match="gz: Connection refused"):
            prepare(f"http://127.0.0.1:{free.getsockname()[1]}/")
    assert os.listdir(tmp_path) == []


def test_a_percentage_on_a_terminal(server, prepare, monkeypatch):
    ours, theirs = ptys.open_pty(60)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("runtime.terminal.MIN_INTERVAL", 0)
    with os.fdopen(theirs, "w") as out:
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", out)
            with Terminal():
                prepare(f"{server.url}good/")
        shown = re.findall(rf" {NAME}: [^\r\x1b]+", ptys.read(ours))
    os.close(ours)
    assert shown[-1] == f" {NAME}: 100 %, {len(BODY) / 1e6:.1f} MB"
    assert all(re.fullmatch(rf" {NAME}: \d+ %, \d+\.\d MB", line) for line in shown)
