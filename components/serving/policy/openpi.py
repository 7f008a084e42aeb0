"""openpi's websocket protocol at `/`: metadata on connecting, then an observation in and a chunk of actions out.

As in openpi, an observation that is refused is answered with words instead of bytes, and the connection ends; its
client raises them. Arrays travel as msgpack (`codec`), never as pickle.
"""

import time

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from components.serving.policy.codec import pack, unpack
from components.serving.policy.observe import from_arrays
from components.serving.policy.refusal import RefusedError
from components.serving.policy.served import SeenByRobot
from components.serving.policy.service import PolicyService, metadata_of
from components.serving.policy.shelf import Chosen

REFUSED, FAULT, STOPPING, LATER = 1008, 1011, 1012, 1013  # codes with which a websocket is closed


def add_openpi(app: FastAPI, service: PolicyService) -> None:
    @app.websocket("/")
    async def openpi(socket: WebSocket) -> None:
        """The server's first policy, for openpi's clients."""
        await socket.accept()
        previous_ms: float | None = None
        try:
            await socket.send_bytes(pack(metadata_of(service.choose(socket.scope, None)).model_dump(mode="json")))
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                since = time.monotonic()
                await socket.send_bytes(await _answer(service, socket, message.get("bytes"), since, previous_ms))
                previous_ms = 1000 * (time.monotonic() - since)
        except RefusedError as refused:
            service.metrics.requests.labels("openpi", str(refused.status)).inc()
            code = {503: STOPPING if service.gate.draining else LATER, 500: FAULT}.get(refused.status, REFUSED)
            await _end(socket, code, str(refused))
        except WebSocketDisconnect:
            return


async def _answer(
    service: PolicyService, socket: WebSocket, message: bytes | None, since: float, previous_ms: float | None
) -> bytes:
    """Packed actions and how long they took."""
    if message is None:
        raise RefusedError(400, "it is text", "the message", "send an observation, packed with openpi's msgpack_numpy")
    service.gate.refuse_overload()
    with service.gate.asking(len(message)):
        chosen = service.choose(socket.scope, None)
        seen = await service.aside(_read, message, chosen, resize=service.resize)
        decided, answer = await service.decide(chosen, seen, 0.0, "openpi", since)
    service.metrics.requests.labels("openpi", "200").inc()
    timing = {"infer_ms": decided.policy_ms, "queue_ms": decided.queue_ms}
    if previous_ms is not None:
        timing["prev_total_ms"] = previous_ms
    named = {"version": chosen.served.metadata.version, "digest": chosen.served.digest, "answer": answer}
    return pack({"actions": decided.actions, "server_timing": timing, "policy": named})


def _read(message: bytes, chosen: Chosen, *, resize: bool) -> SeenByRobot:
    return from_arrays(chosen.served, unpack(message), resize=resize)


async def _end(socket: WebSocket, code: int, words: str) -> None:
    """Say why, then close; a caller that has gone already hears neither."""
    try:
        await socket.send_text(words)
        await socket.close(code, words.encode()[:120].decode("utf-8", "ignore"))
    except (RuntimeError, WebSocketDisconnect):
        return
