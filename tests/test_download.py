"""Fetching data sets: from a server on this machine, with every way in which a download goes wrong."""

import gzip
import hashlib
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_lab.data import idx
from vae_lab.data.sources import FashionMnist, Mnist

pytestmark = pytest.mark.timeout(60)


class Server:
    """Mirrors, one per folder: good, cut (half a body), wrong (other content), html (a page), and 404 for the rest."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.requests: list[str] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                mirror, name = self.path.strip("/").split("/")
                body = {
                    "good": files[name],
                    "cut": files[name],
                    "wrong": gzip.compress(gzip.decompress(files[name])[:-1] + b"\xff"),
                    "html": b"<html>Service unavailable</html>",
                }.get(mirror)
                if body is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if mirror == "cut" else body)

            def log_message(self, *_) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> "Server":
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    """A server of a small MNIST, which the program takes for the real one; no pauses between attempts."""
    monkeypatch.setattr(idx, "PAUSE", 0.0)
    monkeypatch.setattr(idx, "TIMEOUT", 5.0)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    files = {}
    for images, labels, n in ((idx.TRAIN_IMAGES, idx.TRAIN_LABELS, 30), (idx.TEST_IMAGES, idx.TEST_LABELS, 10)):
        for name, shape in ((images, (n, 28, 28)), (labels, (n,))):
            values = np.random.default_rng(n).integers(0, 10, shape, np.uint8)
            data = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values.tobytes()
            monkeypatch.setitem(idx.MNIST.sha256, name, hashlib.sha256(data).hexdigest())
            files[f"{name}.gz"] = gzip.compress(data)
    with Server(files) as running:
        yield running


def mnist(server: Server, cache: Path, *mirrors: str) -> Mnist:
    addresses = [mirror if "://" in mirror else f"{server.address}/{mirror}" for mirror in mirrors]
    return Mnist([1, 28, 28], validation=5, root=None, cache=cache, mirrors=addresses)


def held(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


def test_fetched_once(server, tmp_path):
    first = mnist(server, tmp_path, "good").load()
    assert [len(part.x) for part in first] == [25, 5, 10]
    assert held(tmp_path) == sorted(f"mnist/{name}" for name in idx.MNIST.sha256)
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"] and len(server.requests) == 4
    second = mnist(server, tmp_path, "good").load()
    assert len(server.requests) == 4
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("bad", ["missing", "cut", "wrong", "html", "http://127.0.0.1:1", "no-address://x"])
def test_next_mirror_when_one_fails(server, tmp_path, bad):
    assert len(mnist(server, tmp_path, bad, "good/").load().test.x) == 10
    assert held(tmp_path) == sorted(f"mnist/{name}" for name in idx.MNIST.sha256)


@pytest.mark.parametrize(
    ("bad", "reason"), [("missing", "404"), ("cut", ""), ("wrong", "SHA-256"), ("html", "not a sound gzip file")]
)
def test_nothing_is_kept_of_a_failed_download(server, tmp_path, bad, reason):
    with pytest.raises(ValueError, match=f"^{idx.TRAIN_IMAGES} could not be downloaded") as caught:
        mnist(server, tmp_path, bad).load()
    message = str(caught.value)
    assert f"{server.address}/{bad}: " in message and reason in message and "\n" not in message
    assert list((tmp_path / "mnist").iterdir()) == []
    assert len(server.requests) == idx.ROUNDS


def test_all_mirrors_down(server, tmp_path):
    with pytest.raises(ValueError, match="could not be downloaded") as caught:
        mnist(server, tmp_path, "http://127.0.0.1:1", "missing", "html").load()
    message = str(caught.value)
    for part in ("http://127.0.0.1:1: ", "/missing: 404", "/html: ", str(tmp_path / "mnist"), "data.root"):
        assert part in message


def test_a_server_that_comes_back(server, tmp_path, monkeypatch):
    failures = iter(["busy", "busy"])
    download = idx._download
    monkeypatch.setattr(idx, "_download", lambda url, to: next(failures, None) or download(url, to))
    assert len(mnist(server, tmp_path, "good").load().test.x) == 10


def test_a_silent_server_is_given_up(tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(idx, "TIMEOUT", 0.2)
    monkeypatch.setattr(idx, "ROUNDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ValueError, match="timed out"):
            Mnist([784], validation=5, root=None, cache=tmp_path, mirrors=[address]).load()


def test_corrupt_cache(server, tmp_path):
    mnist(server, tmp_path, "good").load()
    path = tmp_path / "mnist" / idx.TEST_IMAGES
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"{idx.TEST_IMAGES} has .* delete it and run again"):
        mnist(server, tmp_path, "good").load()
    path.unlink()
    assert len(mnist(server, tmp_path, "good").load().test.x) == 10


def test_many_fetch_at_once(server, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        loads = [pool.submit(mnist(server, tmp_path, "cut", "good").load) for _ in range(8)]
        splits = [load.result(timeout=30) for load in loads]
    assert all(torch.equal(one.train.x, splits[0].train.x) for one in splits)
    assert held(tmp_path) == sorted(f"mnist/{name}" for name in idx.MNIST.sha256)


def test_interrupted(server, tmp_path, monkeypatch):
    def half_then_interrupt(url: str, to: Path) -> None:
        to.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(idx, "_download", half_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        mnist(server, tmp_path, "good").load()
    assert list((tmp_path / "mnist").iterdir()) == []


def test_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "mnist").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"cannot be written.*data\.cache"):
        mnist(server, tmp_path, "good").load()


def test_given_root_is_never_fetched_for(server, tmp_path):
    source = Mnist([784], validation=5, root=tmp_path, cache=tmp_path, mirrors=[f"{server.address}/good"])
    with pytest.raises(ValueError, match="is not in"):
        source.load()
    assert server.requests == []


@pytest.mark.parametrize("mirrors", [[], "http://127.0.0.1:1"])
def test_mirrors_are_checked(mirrors):
    with pytest.raises(ValueError, match=r"^mirrors must be a list of addresses"):
        FashionMnist([784], validation=5, root=None, cache=None, mirrors=mirrors)
