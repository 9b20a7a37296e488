"""The client's waits end with the operation that they are part of, whatever the server does."""

import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub.utils import get_session

from kaggle_lib.checkpoints import hub_client
from kaggle_lib.checkpoints.hub_client import OutOfTime, left, rest, within, xet_abort


class Trickle(BaseHTTPRequestHandler):
    """Sends a byte each tenth of a second, and takes a body as slowly."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.trickle(lambda: self.wfile.write(b"x") and self.wfile.flush())

    def do_PUT(self):
        self.trickle(lambda: self.rfile.read(65536))

    def trickle(self, piece):
        try:
            while not self.server.stopping.wait(0.1):
                piece()
        except OSError:
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    server.daemon_threads, server.stopping = True, threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub_client.connect()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.stopping.set()
    server.shutdown()
    server.server_close()


def test_an_answer_that_trickles_in_ends_with_the_operation(slow):
    began = time.monotonic()
    with within(1.0), pytest.raises(OutOfTime):
        get_session().get(slow)
    assert time.monotonic() - began < 5


def test_so_does_a_body_that_trickles_out_and_one_sent_by_a_thread_of_the_clients_own(slow):
    raised, began = [], time.monotonic()
    body = [bytes(65536)] * 2000

    def send():
        with pytest.raises(OutOfTime) as caught:
            get_session().put(slow, content=iter(body))
        raised.append(caught.type)

    with within(1.0):
        send()
    with within(1.0):
        thread = threading.Thread(target=send)
        thread.start()
        thread.join()
    assert raised == [OutOfTime, OutOfTime]
    assert time.monotonic() - began < 9


def test_nothing_is_begun_after_the_end_and_an_inner_operation_ends_with_the_outer_one(slow):
    assert left() == math.inf
    with within(0.5), within(60.0):
        assert left() <= 0.5
        with pytest.raises(OutOfTime):
            rest(1.0)
        with pytest.raises(KeyError):
            rest(1.0, KeyError("what failed"))
        time.sleep(0.5)
        with pytest.raises(OutOfTime):
            get_session().get(slow)
    assert left() == math.inf


def test_a_cancelled_transfer_is_no_interrupt_by_the_user():
    with within(60.0):
        with pytest.raises(OutOfTime), xet_abort():
            raise KeyboardInterrupt("Keyboard interrupt (SIGINT)")  # hf_xet 1.8.0, in a race
        with pytest.raises(KeyboardInterrupt), xet_abort():
            raise KeyboardInterrupt
