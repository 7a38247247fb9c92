"""Downloads against a server of our own: whole, wrong, missing, cut short, not at all."""

import hashlib
import http.server
import os
import re
import socket
import threading

import pytest
from support import ptys

from datasets import download
from runtime.errors import InputError
from runtime.terminal import Terminal

BODY = bytes(range(256)) * 9000  # more than two chunks
MD5 = hashlib.md5(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """/good, /short (the connection ends early), /busy (503), /once/... (only the first time)."""

    def do_GET(self):
        self.server.paths.append(self.path)
        first = self.server.paths.count(self.path) == 1
        kind = self.path.rpartition("/")[2]
        if self.path.startswith("/once/") and not first:
            kind = "good"
        if kind == "good":
            self.reply(200, len(BODY), BODY)
        elif kind == "short":
            self.reply(200, len(BODY), BODY[:-1000])
        elif kind == "unsized":
            self.reply(200, None, BODY)
        else:
            self.reply({"busy": 503}.get(kind, 404), 0, b"")

    def reply(self, status, length, body):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.paths = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/good", "/unsized", "/once/short", "/once/busy"])
def test_a_file_comes_whole(server, tmp_path, capsys, path):
    download.fetch(server.url + path, str(tmp_path / "file"), MD5)
    assert (tmp_path / "file").read_bytes() == BODY
    assert os.listdir(tmp_path) == ["file"]
    assert len(server.paths) == (2 if "once" in path else 1)
    assert capsys.readouterr() == ("", "")  # no terminal, no percentage


@pytest.mark.parametrize(
    "path, tries, reason",
    [
        ("/missing", 1, "HTTP Error 404: Not Found"),
        ("/busy", 2, "HTTP Error 503"),
        ("/short", 2, f"the connection ended after {len(BODY) - 1000} of {len(BODY)} bytes"),
    ],
)
def test_a_failure_is_told_and_leaves_nothing(server, tmp_path, path, tries, reason):
    target = tmp_path / "file"
    with pytest.raises(InputError) as error:
        download.fetch(server.url + path, str(target), MD5)
    for part in (server.url + path, reason, f"put it at {target}"):
        assert part in str(error.value)
    assert os.listdir(tmp_path) == [] and len(server.paths) == tries


def test_a_wrong_checksum_is_refused_and_spares_the_old_file(server, tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(InputError, match=f"MD5 is {MD5}, should be {'0' * 32}"):
        download.fetch(server.url + "/good", str(target), "0" * 32)
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file"
        with pytest.raises(InputError, match="Connection refused"):
            download.fetch(url, str(tmp_path / "file"), MD5)
    assert os.listdir(tmp_path) == []


def test_silence_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/file"
        with pytest.raises(InputError, match="timed out"):
            download.fetch(url, str(tmp_path / "file"), MD5, timeout=0.1)


def test_a_server_that_stops_sending_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            for _ in range(2):  # each attempt; the connection stays open
                connections.append(server.accept()[0])
                connections[-1].recv(9999)
                header = f"HTTP/1.0 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n"
                connections[-1].sendall(header.encode() + BODY[:1000])

        connections, thread = [], threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/file"
        with pytest.raises(InputError, match="timed out"):
            download.fetch(url, str(tmp_path / "file"), MD5, timeout=0.5)
        thread.join()
        for connection in connections:
            connection.close()
    assert os.listdir(tmp_path) == []


def test_a_percentage_on_a_terminal(server, tmp_path, monkeypatch):
    ours, theirs = ptys.open_pty(40)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("runtime.terminal.MIN_INTERVAL", 0)
    with os.fdopen(theirs, "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        with Terminal():
            download.fetch(server.url + "/good", str(tmp_path / "a.tar.gz"), MD5)
        monkeypatch.undo()
        shown = re.findall(r"[^\r]+", ptys.read(ours).replace("\x1b[K", ""))
    os.close(ours)
    assert shown[-1] == f" a.tar.gz: 100 %, {len(BODY) / 1e6:.1f} MB"
    assert all(re.fullmatch(r" a.tar.gz: \d+ %, \d+\.\d MB", line) for line in shown)


def test_silence_without_a_terminal(server, tmp_path, capsys):
    download.fetch(server.url + "/good", str(tmp_path / "a.tar.gz"), MD5)
    assert capsys.readouterr() == ("", "")


def test_checksum(tmp_path):
    (tmp_path / "file").write_bytes(BODY)
    assert download.checksum(str(tmp_path / "file")) == MD5
