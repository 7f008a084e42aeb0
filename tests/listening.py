"""A small HTTP server that speaks JSON, or the text that it is given, for doubles of APIs that cannot be had."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, str, Any, Mapping[str, str]], tuple[int, Any]]  # method, path, body, headers: status and body


@contextmanager
def listening(answer: Answer) -> Iterator[str]:
    """The address of a server that gives these answers."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, said = answer(self.command, self.path, json.loads(text) if text else None, self.headers)
            reply = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            kind = "application/json" if not isinstance(said, str) else "text/html" if "<" in said else "text/plain"
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
