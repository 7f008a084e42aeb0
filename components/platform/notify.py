"""Word of how a run ended, to whoever waits for it: a webhook ($WOVR_WEBHOOK_URL), where there is one."""

import json
import os
import urllib.request

from tenacity import Retrying, stop_after_attempt, wait_fixed

PATIENCE = 10.0  # seconds for an answer


def notify(told: dict[str, str], *, attempts: int = 3, pause: float = 2.0) -> bool:
    """Post `told` as JSON, with `text` for chat services; whether it arrived. Never fails, and never says to where.

    The address is often the key: it stands in no log, whatever goes wrong.
    """
    url = os.environ.get("WOVR_WEBHOOK_URL", "")
    if not url:
        return False
    body = json.dumps(told | {"text": " ".join(told.values())}).encode()
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
        for attempt in Retrying(stop=stop_after_attempt(attempts), wait=wait_fixed(pause), reraise=True):
            with attempt, urllib.request.urlopen(request, timeout=PATIENCE):
                return True
    except Exception as error:  # whatever it is, the run has ended as it has
        print(f"the webhook of $WOVR_WEBHOOK_URL could not be told ({type(error).__name__})")
    return False
