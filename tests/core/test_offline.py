"""Without a Hub the cache is read at once; with one, nothing changes."""

import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from autolayer.core import offline


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not been told that it is offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(offline, "HUB_SECONDS", 0.5)
    offline.check_hub.cache_clear()
    yield
    offline.check_hub.cache_clear()


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("listens", [True, False])
def test_a_hub_that_does_not_answer_is_given_up_in_seconds(
    listens: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()  # accepts and says nothing
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        offline.check_hub()
        offline.check_hub()
    assert constants.is_offline_mode() and os.environ["HF_HUB_OFFLINE"] == "1"  # for the processes it starts
    assert caplog.text.count("does not answer: offline") == 1


@pytest.mark.usefixtures("online")
def test_a_hub_that_answers_is_used_whatever_it_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(offline, "HUB_SECONDS", 60.0)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        offline.check_hub()
        server.shutdown()
    assert not constants.is_offline_mode() and os.environ["HF_HUB_OFFLINE"] == "0" and not caplog.text
