"""OpenVLA's and OpenVLA-OFT's `POST /act`: arrays as json-numpy, in the body or once more encoded inside of it.

OpenVLA sends {"image", "instruction"} and gets one action; OpenVLA-OFT sends {"full_image", "wrist_image", "state",
"instruction"} and gets a list of them, the chunk. Their clients expect the gripper as their data have it, 1 open and 0
closed, so here alone it is turned round. `unnorm_key` is not needed: numbers are of the policy's own embodiment.
"""

import json

import numpy as np
from fastapi import FastAPI, Request, Response

from components.serving.policy.codec import dumps, loads
from components.serving.policy.observe import from_arrays
from components.serving.policy.refusal import RefusedError
from components.serving.policy.served import SeenByRobot
from components.serving.policy.service import BEARER, PolicyService, problems
from components.serving.policy.shelf import Chosen

ARRAY = {
    "type": "object",
    "properties": {
        "__numpy__": {"type": "string", "contentEncoding": "base64"},
        "dtype": {"type": "string", "example": "|u1"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    },
    "required": ["__numpy__", "dtype", "shape"],
}
OBSERVATION = {
    "type": "object",
    "properties": {
        "instruction": {"type": "string", "minLength": 1, "maxLength": 1000},
        "image": ARRAY,
        "full_image": ARRAY,
        "wrist_image": ARRAY,
        "state": {"anyOf": [ARRAY, {"type": "array", "items": {"type": "number"}}]},
    },
    "required": ["instruction"],
}
TWICE = {
    "type": "object",
    "properties": {"encoded": {"type": "string", "contentMediaType": "application/json"}},
    "required": ["encoded"],
}
BODY = {"content": {"application/json": {"schema": {"anyOf": [OBSERVATION, TWICE]}}}, "required": True}
ANSWER = {200: {"description": "json-numpy: an action (a), or a list of them", "content": {"application/json": {}}}}


def as_openvla(actions: np.ndarray) -> np.ndarray:
    """The gripper, last, from (> 0 closes) to OpenVLA's (1 open, 0 closed)."""
    turned = actions.copy()
    turned[..., -1] = np.clip((1 - actions[..., -1]) / 2, 0, 1)
    return turned


def add_openvla(app: FastAPI, service: PolicyService) -> None:
    def read(body: bytes, chosen: Chosen) -> tuple[SeenByRobot, bool, bool]:
        observation = loads(body)
        if twice := "encoded" in observation:
            if not isinstance(observation["encoded"], str):
                raise RefusedError(400, "it is no text", "encoded", "send json_numpy.dumps(observation) there")
            observation = loads(observation["encoded"])
        single = "image" in observation and "full_image" not in observation
        return from_arrays(chosen.served, observation, resize=service.resize), twice, single

    @app.post(
        "/act",
        openapi_extra={"requestBody": BODY},
        responses=problems(403) | ANSWER,
        response_class=Response,
        dependencies=[BEARER],
    )
    async def openvla(request: Request) -> Response:
        """The server's first policy, for clients of OpenVLA and OpenVLA-OFT."""
        chosen = service.choose(request.scope, None)
        seen, twice, single = await service.aside(read, await request.body(), chosen)
        decided, answer = await service.decide(chosen, seen, 0.0, "openvla", request.scope["wovr_since"])
        actions = as_openvla(decided.actions)
        text = dumps(actions[0] if single else list(actions))
        headers = {
            "X-Policy-Version": chosen.served.metadata.version or "",
            "X-Policy-Digest": chosen.served.digest,
            "X-Answer": answer,
        }
        return Response(json.dumps(text) if twice else text, media_type="application/json", headers=headers)
