"""A limit on the whole of a wait for something outside: a socket's timeout begins anew with every byte that arrives."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

FIRST_WORD = 10.0  # seconds until a wait says what it waits for; then again after twice as many

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class DeadlineError(RuntimeError):
    """An answer did not come in time."""


def within(seconds: float, what: str, call: Callable[[], Answer]) -> Answer:
    """What `call` returns or raises. A call that takes longer than `seconds` is left behind in its thread."""
    answer: list[Answer] = []
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            answer.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=ask, name=f"waits for {what}", daemon=True)
    thread.start()
    start, pause = time.monotonic(), FIRST_WORD
    while thread.is_alive() and (left := start + seconds - time.monotonic()) > 0:
        thread.join(min(pause, left))
        if thread.is_alive() and left > pause:
            log.warning("waiting for %s: %.0f s so far, %.0f s at most", what, time.monotonic() - start, seconds)
            pause *= 2
    if raised:
        raise raised[0]
    if not answer:
        raise DeadlineError(f"{what} gave no answer within {seconds:g} s")
    return answer[0]
