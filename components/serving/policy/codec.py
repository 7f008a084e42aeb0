"""Arrays as openpi's clients (msgpack) and OpenVLA's (JSON) send them. Plain numbers only: no objects, no pickle.

openpi:  {b"__ndarray__": True, b"data": bytes, b"dtype": "|u1", b"shape": [h, w, 3]} inside of msgpack
OpenVLA: {"__numpy__": base64, "dtype": "|u1", "shape": [h, w, 3]} inside of JSON
"""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from pydantic_core import from_json

from components.serving.policy.refusal import RefusedError, brief

KINDS = "buif"  # of dtypes: bool, unsigned, signed, float
DIMENSIONS = 6
DEEPEST = 16  # nested lists and dicts


class CodecError(ValueError):
    """Bytes that are no message of these protocols."""


def unpack(message: bytes) -> dict[str, Any]:
    """An observation of openpi's protocol. Raises `RefusedError`."""
    try:
        tree = msgpack.unpackb(message, object_hook=_from_msgpack, strict_map_key=False)
    except (CodecError, ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise _unreadable("msgpack", error) from error
    return _a_dict(tree, "msgpack")


def pack(tree: Mapping[str, Any]) -> bytes:
    """What openpi's clients read."""
    return msgpack.packb(tree, default=_to_msgpack)


def loads(text: bytes | str) -> dict[str, Any]:
    """An observation in json-numpy. Raises `RefusedError`."""
    try:
        tree = from_json(text, allow_inf_nan=False, cache_strings=False)
        return _a_dict(_from_json(tree, 0), "JSON")
    except (CodecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _unreadable("JSON", error) from error


def dumps(value: Any) -> str:
    """json-numpy."""
    return json.dumps(value, default=_to_json)


def array_of(data: object, dtype: object, shape: object) -> np.ndarray:
    """Numbers from their bytes; what does not fit together is refused before anything is made."""
    if not isinstance(data, bytes) or not isinstance(dtype, str):
        raise CodecError(f"an array has bytes and the name of a dtype, got {type(data).__name__} and {brief(dtype)}")
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError) as error:
        raise CodecError(f"{brief(dtype)} is no dtype") from error
    if kind.kind not in KINDS or kind.itemsize > 8 or kind.subdtype is not None:
        raise CodecError(f"arrays of dtype {brief(dtype)} are not taken, only plain numbers such as uint8 and float32")
    if not isinstance(shape, list | tuple) or len(shape) > DIMENSIONS or any(type(n) is not int for n in shape):
        raise CodecError(f"the shape of an array is a list of at most {DIMENSIONS} integers, got {brief(shape)}")
    if any(n < 0 for n in shape) or math.prod(shape) * kind.itemsize != len(data):
        raise CodecError(f"an array of shape {brief(list(shape))} and dtype {kind} has other than {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(shape)


def _from_msgpack(tree: dict[Any, Any]) -> Any:
    fields = {key.decode("ascii", "replace") if isinstance(key, bytes) else key: value for key, value in tree.items()}
    if "__ndarray__" in fields:
        return array_of(fields.get("data"), fields.get("dtype"), fields.get("shape"))
    if "__npgeneric__" in fields:
        value = fields.get("data")
        if not isinstance(value, bool | int | float):
            raise CodecError(f"a number of numpy's is a number, got {type(value).__name__}")
        return value
    return fields


def _to_msgpack(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in KINDS:
        plain = np.ascontiguousarray(value)
        return {b"__ndarray__": True, b"data": plain.tobytes(), b"dtype": plain.dtype.str, b"shape": plain.shape}
    raise TypeError(f"{type(value).__name__} is not sent")


def _from_json(tree: Any, depth: int) -> Any:
    if depth > DEEPEST:
        raise CodecError(f"it is nested deeper than {DEEPEST}")
    if isinstance(tree, list):
        return [_from_json(one, depth + 1) for one in tree]
    if not isinstance(tree, dict):
        return tree
    if "__numpy__" in tree:
        if not isinstance(tree["__numpy__"], str):
            raise CodecError("the bytes of an array are base64 in a string")
        return array_of(base64.b64decode(tree["__numpy__"], validate=True), tree.get("dtype"), tree.get("shape"))
    return {key: _from_json(value, depth + 1) for key, value in tree.items()}


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in KINDS:
        plain = np.ascontiguousarray(value)
        text = base64.b64encode(plain.tobytes()).decode()
        return {"__numpy__": text, "dtype": plain.dtype.str, "shape": list(plain.shape)}
    raise TypeError(f"{type(value).__name__} is not sent")


def _a_dict(tree: Any, language: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise RefusedError(
            400, f"it is a {type(tree).__name__}", f"the {language} message", "send an observation: names and values"
        )
    return {str(key): value for key, value in tree.items()}


def _unreadable(language: str, error: Exception) -> RefusedError:
    words = " ".join(str(error).split())[:200] or type(error).__name__
    return RefusedError(
        400, f"it cannot be read ({brief(words)[1:-1]})", f"the {language} message", "see docs/policy-server.md"
    )
