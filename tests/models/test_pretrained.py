"""Pretrained weights from a hub on this machine: downloads, the cache, and servers that fail."""

import contextlib
import re
import socket
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from safetensors.torch import save

from carvision.errors import InputError
from carvision.models import backbones
from carvision.models.backbones import create_backbone

FILE = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
WAYS_OUT = ("model.weights=<file>", "model.weights=random", "HF_ENDPOINT", "cache")


class Hub(BaseHTTPRequestHandler):
    """Serves server.content, or always server.status; server.drips: it sends its answer byte by byte."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.server.drips:
            with contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.1)
            return
        content = self.server.content if self.server.status == 200 else b""
        headers = {"ETag": '"1"', "X-Repo-Commit": "c" * 40} if content else {}
        self.send_response(self.server.status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET" and content:
            self.server.sends.wait()
            self.wfile.write(content)

    do_GET = do_HEAD

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.daemon_threads, server.weights = True, timm.create_model("test_resnet").state_dict()
        server.content, server.status, server.asked, server.drips = save(server.weights), 200, [], False
        server.sends = threading.Event()
        server.sends.set()
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.sends.set()
        server.shutdown()


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Return a function that sets the hub's address; its cache is empty."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(backbones, "ANSWER_S", 0.5)

    def point(url: str) -> None:
        monkeypatch.setattr(backbones, "hf_hub_url", partial(hf_hub_url, endpoint=url))
        monkeypatch.setattr(backbones, "hf_hub_download", partial(hf_hub_download, endpoint=url, cache_dir=tmp_path))
        monkeypatch.setattr(backbones, "try_to_load_from_cache", partial(try_to_load_from_cache, cache_dir=tmp_path))

    return point


def refusal(name: str = "test_resnet") -> str:
    with pytest.raises(InputError) as caught:
        create_backbone(name, pretrained=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_are_downloaded_once_and_then_need_no_network(hub, ask):
    ask(hub.url)
    network = create_backbone("test_resnet", pretrained=True)
    assert all(torch.equal(value, hub.weights[name]) for name, value in network.state_dict().items())
    assert hub.asked[-1] == f"GET {FILE}" and "file" not in network.pretrained_cfg
    hub.asked.clear()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never answers
        for address in (hub.url, f"http://127.0.0.1:{silent.getsockname()[1]}"):
            ask(address)
            again = create_backbone("test_resnet", pretrained=True)
            assert all(torch.equal(value, hub.weights[name]) for name, value in again.state_dict().items())
    assert hub.asked == []


@pytest.mark.parametrize("fails", ["silent", "drips", "describes the file and does not send it"])
def test_a_server_that_does_not_answer_in_time_is_one_line(hub, ask, fails, caplog):
    hub.drips = fails == "drips"
    hub.sends.clear()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ask(f"http://127.0.0.1:{silent.getsockname()[1]}" if fails == "silent" else hub.url)
        line = refusal()
    assert "of test_resnet can't be downloaded from https://huggingface.co (" in line
    assert re.search("no answer within 0.5 s|timed out", line)  # by ours or by the HTTP library's, whichever is first
    assert all(way in line for way in WAYS_OUT) and not caplog.records


def test_an_error_is_not_retried_and_like_a_closed_port_or_an_offline_hub_one_line(hub, ask, monkeypatch, caplog):
    ask(hub.url)
    hub.status = 503
    line = refusal()
    assert "(it answered 503)" in line and all(way in line for way in WAYS_OUT) and len(hub.asked) == 1
    ask("http://127.0.0.1:1")
    assert "refused" in refusal() and not caplog.records
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is enabled" in refusal()
    assert "there are no pretrained weights of alexnet; give model.weights=<file>" in refusal("alexnet")
