"""One thread asks the policies; requests that arrive meanwhile are asked together, as many as fit in a batch.

Nobody waits for company that is not on its way: the window is waited out only while requests are known to be coming.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from components.serving.policy.measures import ServerMetrics
from components.serving.policy.refusal import RefusedError, busy
from components.serving.policy.served import SeenByRobot, ServedPolicy

COLDEST = 1e-3  # temperatures under it are 0
PATIENCE = 30.0  # seconds for an answer of the policy
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decided:
    """A chunk of actions, and how long it took."""

    actions: np.ndarray  # (chunk, a) float32
    queue_ms: float
    policy_ms: float


@dataclass(eq=False)
class _Job:
    served: ServedPolicy
    seen: SeenByRobot
    temperature: float
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Decided]"
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """The queue before the policies. Its length is bounded: what does not fit is refused at once."""

    def __init__(
        self, metrics: ServerMetrics, *, window: float, most: int, waiting: int, coming: Callable[[], int]
    ) -> None:
        self._metrics, self._window, self._most, self._coming = metrics, window, most, coming
        self._queue: queue.Queue[_Job | None] = queue.Queue(waiting)
        self._generator = torch.Generator()
        self._generator.seed()
        self._thread = threading.Thread(target=self._work, name="policies", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Once nobody asks any more."""
        self._queue.put(None)
        self._thread.join(PATIENCE)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def act(self, served: ServedPolicy, seen: SeenByRobot, temperature: float) -> Decided:
        """What this policy does here. Raises `RefusedError` where the queue is full or the policy fails."""
        loop = asyncio.get_running_loop()
        job = _Job(served, seen, temperature if temperature >= COLDEST else 0.0, loop, loop.create_future())
        try:
            self._queue.put_nowait(job)
        except queue.Full as error:
            raise busy(f"{self._queue.maxsize} requests wait already") from error
        self._metrics.waiting.set(self._queue.qsize())
        try:
            return await asyncio.wait_for(job.future, PATIENCE)
        except TimeoutError as error:
            raise busy(f"the policy did not answer within {PATIENCE:g} s", seconds=5) from error

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first, *self._more(time.monotonic() + self._window)]
            self._metrics.waiting.set(self._queue.qsize())
            groups: dict[tuple[int, float], list[_Job]] = {}
            for job in batch:
                if not job.future.cancelled():  # its caller went away
                    groups.setdefault((id(job.served), job.temperature), []).append(job)
            for jobs in groups.values():
                self._answer(jobs)

    def _more(self, until: float) -> list[_Job]:
        """Those that wait already, and those on their way that come within the window."""
        found: list[_Job] = []
        while len(found) < self._most - 1:
            left = until - time.monotonic()
            wait = left > 0 and self._coming() > len(found) + 1
            try:
                job = self._queue.get(timeout=left) if wait else self._queue.get_nowait()
            except queue.Empty:
                break
            if job is None:  # stop after these
                self._queue.put(None)
                break
            found.append(job)
        return found

    def _answer(self, jobs: list[_Job]) -> None:
        begin = time.monotonic()
        try:
            actions = jobs[0].served.act([job.seen for job in jobs], jobs[0].temperature, self._generator)
        except Exception as error:  # a policy's own fault, or memory: these are refused, and the next are answered
            log.exception("a policy failed on a batch of %d", len(jobs))
            refused = RefusedError(500, f"it failed ({type(error).__name__})", "the policy", "see the server's log")
            for job in jobs:
                _settle(job, refused)
            return
        took = 1000 * (time.monotonic() - begin)
        self._metrics.batch.observe(len(jobs))
        for job, chunk in zip(jobs, actions, strict=True):
            _settle(job, Decided(chunk, 1000 * (begin - job.since), took))


def _settle(job: _Job, outcome: Decided | RefusedError) -> None:
    def settle() -> None:
        if not job.future.done():
            if isinstance(outcome, Decided):
                job.future.set_result(outcome)
            else:
                job.future.set_exception(outcome)

    if not job.loop.is_closed():
        job.loop.call_soon_threadsafe(settle)
