"""No request is larger than a plan may be, whoever sends it: a body is read before a key is looked at."""

from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LARGEST = 8 << 20  # bytes: some 20,000 trials


class BodyLimit:
    """ASGI middleware: 413 for what announces too much, or sends too much."""

    def __init__(self, app: ASGIApp, largest: int = LARGEST) -> None:
        self.app, self.largest = app, largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        words = f"a request may have {self.largest >> 20} MiB"
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.largest:
            answer = JSONResponse({"detail": words, "kind": "BodyLimit"}, 413, {"Connection": "close"})
            await answer(scope, receive, send)
            return
        total = 0

        async def counted() -> Any:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.largest:
                raise HTTPException(413, words, {"Connection": "close"})
            return message

        await self.app(scope, counted, send)
