"""Asking a policy server over `/v1`, from the robot's PC or from a job. No torch.

client = PolicyServerClient("http://gpu:8000", key, policy=token)
actions = client.act(images, "put the bowl on the plate", pose)  # (chunk, a), each in [-1, 1]
"""

from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import quote

import numpy as np
import requests
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from components.serving.policy.schema import (
    ActRequest,
    ActResponse,
    EncodedImage,
    PolicyMetadata,
    TokenRecord,
    TokenRequest,
    TokenResponse,
)

Form = TypeVar("Form", bound=BaseModel)


class PolicyServerError(RuntimeError):
    """The server does not answer, or refuses, in its own words."""


class _BusyError(PolicyServerError):
    """It may answer soon."""


class PolicyServerClient:
    """One caller of a server. Safe to use from one thread at a time."""

    def __init__(self, url: str, key: str = "", *, policy: str | None = None, patience: float = 5.0) -> None:
        """`policy` is a name or a token. A server that is busy or away is asked again for `patience` seconds."""
        self._url, self._policy, self._patience = url.rstrip("/"), policy, patience
        self._session = requests.Session()
        if key:
            self._session.headers["Authorization"] = f"Bearer {key}"

    def act(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        instruction: str,
        pose: ArrayLike | None = None,
        *,
        temperature: float = 0.0,
    ) -> NDArray[np.float64]:
        """Actions (chunk, a) for pictures (h, w, 3) uint8 by camera. Raises `PolicyServerError`."""
        return np.array(self.answer(images, instruction, pose, temperature=temperature).actions)

    def answer(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        instruction: str,
        pose: ArrayLike | None = None,
        *,
        temperature: float = 0.0,
    ) -> ActResponse:
        """The same, with the answer's id, version and timing."""
        encoded = {
            name: EncodedImage.of(picture.tobytes(), "raw", (picture.shape[0], picture.shape[1], picture.shape[2]))
            for name, picture in images.items()
        }
        request = ActRequest(
            instruction=instruction,
            images=encoded,
            pose=None if pose is None else np.asarray(pose, float).tolist(),
            policy=self._policy,
            temperature=temperature,
        )
        return self._ask("POST", "/v1/act", ActResponse, request)

    def metadata(self) -> PolicyMetadata:
        """What the policy looks at, and what its numbers mean."""
        query = f"?policy={quote(self._policy, safe='')}" if self._policy else ""
        return self._ask("GET", f"/v1/metadata{query}", PolicyMetadata)

    def mint(self, policy: str, count: int = 1) -> TokenResponse:
        """New tokens; loading the policy may take minutes. Needs an admin's key, and so do the next two."""
        return self._ask("POST", "/v1/tokens", TokenResponse, TokenRequest(policy=policy, count=count), seconds=3600)

    def unblind(self, token: str) -> TokenRecord:
        return self._ask("GET", f"/v1/tokens/{quote(token, safe='')}", TokenRecord)

    def revoke(self, token: str) -> None:
        self._read("DELETE", f"/v1/tokens/{quote(token, safe='')}")

    def _ask(
        self, method: str, path: str, form: type[Form], body: BaseModel | None = None, seconds: float = 30.0
    ) -> Form:
        content = self._read(method, path, body, seconds)
        try:
            return form.model_validate_json(content)
        except ValidationError as error:
            raise PolicyServerError(
                f"the policy server at {self._url} answers otherwise than one does: is this its address?"
            ) from error

    def _read(self, method: str, path: str, body: BaseModel | None = None, seconds: float = 30.0) -> bytes:
        """Minting is not repeated: tokens that nobody heard of would stay."""
        again = Retrying(
            retry=retry_if_exception_type(_BusyError),
            stop=stop_after_delay(0 if path == "/v1/tokens" else self._patience),
            wait=wait_random_exponential(0.05, max=1),
            reraise=True,
        )
        return again(self._once, method, path, body, seconds)

    def _once(self, method: str, path: str, body: BaseModel | None, seconds: float) -> bytes:
        where = f"the policy server at {self._url}"
        try:
            answer = self._session.request(
                method,
                self._url + path,
                data=body.model_dump_json(exclude_none=True) if body else None,
                headers={"Content-Type": "application/json"} if body else {},
                timeout=(5.0, seconds),
            )
        except requests.RequestException as error:
            raise _BusyError(f"{where} does not answer ({type(error).__name__}): is it up?") from error
        if answer.status_code == 503:
            raise _BusyError(f"{where} is busy: {_words(answer)}")
        if not answer.ok:
            raise PolicyServerError(f"{where} refuses ({answer.status_code}): {_words(answer)}")
        return answer.content


def _words(answer: requests.Response) -> str:
    try:
        error = answer.json()["error"]
        return f"{error['where']}: {error['what']}. {error['do']}"
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
