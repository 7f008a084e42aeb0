"""What every protocol of the server shares: choosing, asking, and keeping count of a policy's answers."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4

import anyio
from fastapi import Security
from fastapi.security import HTTPBearer

from components.serving.policy.batching import Batcher, Decided
from components.serving.policy.gate import Gate
from components.serving.policy.measures import BLINDED, ServerMetrics
from components.serving.policy.refusal import RefusedError
from components.serving.policy.schema import PolicyMetadata, PolicyProblem
from components.serving.policy.served import SeenByRobot
from components.serving.policy.shelf import Chosen, Shelf
from components.serving.policy.tokens import TOKEN, Tokens

DECODERS = 4  # threads that open pictures
BEARER = Security(HTTPBearer(auto_error=False, description="a key of WOVR_POLICY_KEYS"))


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: the ways in which a route may not answer."""
    return {status: {"model": PolicyProblem} for status in (400, 401, 408, 413, 422, 500, 503, *statuses)}


@dataclass
class PolicyService:
    """All that answers a request, whatever protocol it came by."""

    shelf: Shelf
    tokens: Tokens
    batcher: Batcher
    metrics: ServerMetrics
    resize: bool = False
    opening: anyio.CapacityLimiter | None = None
    gate: Gate = field(init=False)

    def choose(self, scope: Mapping[str, Any], name: str | None) -> Chosen:
        """The policy that a request asks for, if its key may. Raises `RefusedError`."""
        if scope["wovr_role"] == "blinded" and not (name and TOKEN.fullmatch(name)):
            raise RefusedError(
                403,
                "this key may ask by token only",
                "policy",
                "send the trial's token as policy to /v1/act, or use a key of WOVR_POLICY_KEYS",
            )
        return self.shelf.choose(name)

    async def aside(self, call: Any, *args: Any, **named: Any) -> Any:
        """What takes the processor or the disk for a while, in another thread."""
        if self.opening is None:
            self.opening = anyio.CapacityLimiter(DECODERS)
        return await anyio.to_thread.run_sync(partial(call, *args, **named), limiter=self.opening)

    async def decide(
        self, chosen: Chosen, seen: SeenByRobot, temperature: float, protocol: str, since: float
    ) -> tuple[Decided, str]:
        """The policy's answer and its id; a token's is on record before this returns."""
        decided, answer = await self.batcher.act(chosen.served, seen, temperature), uuid4().hex
        if chosen.token is not None:
            await self.aside(self.tokens.record, [(chosen.token, chosen.served.digest, answer)])
            self.metrics.answers.labels(BLINDED, "").inc()
        else:
            self.metrics.answers.labels(chosen.name, chosen.served.metadata.version or "").inc()
        self.metrics.seconds.labels(protocol).observe(time.monotonic() - since)
        return decided, answer


def metadata_of(chosen: Chosen) -> PolicyMetadata:
    """What the caller may know of it: of a token's policy not which one it is."""
    hidden = {"policy": None, "version": None, "digest": None, "statistics_digest": None}
    update = hidden if chosen.token is not None else {"policy": chosen.name}
    return chosen.served.metadata.model_copy(update=update)
