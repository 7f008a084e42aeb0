"""Word of how a run ended, to whoever waits for it: a webhook ($WOVR_WEBHOOK_URL), where there is one."""

import json
import os
import urllib.request

from tenacity import Retrying, retry_if_not_exception_type, stop_after_attempt, wait_fixed

from components.platform.deadline import DeadlineError, within

PATIENCE = 10.0  # seconds for an answer, in all


def notify(facts: dict[str, str], *, attempts: int = 3, pause: float = 2.0, patience: float = PATIENCE) -> bool:
    """Post `facts` as JSON, with `text` for chat services; whether it arrived. Never fails, and never says to where.

    The address is often the key: it stands in no log, whatever goes wrong. One that does not answer in time has
    probably heard, and is not told again.
    """
    url = os.environ.get("WOVR_WEBHOOK_URL", "")
    if not url:
        return False
    body = json.dumps(facts | {"text": " ".join(facts.values())}).encode()
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")

        def post() -> None:
            with urllib.request.urlopen(request, timeout=patience):
                pass

        retry = Retrying(
            stop=stop_after_attempt(attempts),
            wait=wait_fixed(pause),
            retry=retry_if_not_exception_type(DeadlineError),
            reraise=True,
        )
        retry(within, patience, "the webhook of $WOVR_WEBHOOK_URL", post)
    except Exception as error:  # whatever it is, the run has ended as it has
        print(f"the webhook of $WOVR_WEBHOOK_URL could not be told ({type(error).__name__})")
        return False
    return True
