"""The end of a run is told to a webhook, whatever the webhook does."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from components.platform.notify import notify

TOLD = {"run": "run-1", "state": "SUCCEEDED", "said": "the run succeeded."}


@pytest.fixture
def webhook(monkeypatch):
    heard, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(answers.pop(0) if answers else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WOVR_WEBHOOK_URL", f"http://127.0.0.1:{server.server_address[1]}/s3cr3t")
    yield heard, answers
    server.shutdown()
    server.server_close()


def test_it_hears_how_the_run_ended(webhook):
    heard, _ = webhook
    assert notify(TOLD)
    assert heard == [TOLD | {"text": "run-1 SUCCEEDED the run succeeded."}]


def test_one_that_stumbles_is_told_again(webhook):
    heard, answers = webhook
    answers += [503]
    assert notify(TOLD, pause=0)
    assert len(heard) == 2


def test_one_that_is_dead_fails_nothing_and_its_address_is_in_no_log(webhook, capsys, monkeypatch):
    _, answers = webhook
    answers += [500] * 3
    assert not notify(TOLD, pause=0)
    monkeypatch.setenv("WOVR_WEBHOOK_URL", "no address: s3cr3t")
    assert not notify(TOLD, pause=0)
    said = capsys.readouterr()
    assert said.out.count("could not be told") == 2 and "s3cr3t" not in said.out + said.err


def test_without_one_nothing_is_said(monkeypatch, capsys):
    monkeypatch.delenv("WOVR_WEBHOOK_URL", raising=False)
    assert not notify(TOLD)
    assert capsys.readouterr().out == ""
