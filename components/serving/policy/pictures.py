"""Pictures as they arrive, made into the frame that a policy looks at: (side, cameras x side, 3) uint8, RGB."""

import base64
import binascii
import math
from collections.abc import Mapping
from io import BytesIO

import numpy as np
from PIL import Image

from components.serving.policy.refusal import brief, invalid
from components.serving.policy.schema import EncodedImage

LARGEST = 4096  # pixels of a picture's height and width


def decode(image: EncodedImage, where: str) -> np.ndarray:
    """The picture (h, w, 3) uint8. Its size is known, and refused, before any pixel is made."""
    try:
        data = base64.b64decode(image.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(where, f"its data is no base64 ({error})", "encode the bytes with base64.b64encode") from error
    if image.encoding == "raw":
        return _raw(data, image.shape or [], where)
    try:
        with Image.open(BytesIO(data), formats=[image.encoding.upper()]) as opened:
            if max(opened.size) > LARGEST:
                raise invalid(
                    where, f"it is {opened.width} x {opened.height} pixels", f"send {LARGEST} x {LARGEST} at most"
                )
            return np.asarray(opened.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise invalid(
            where,
            f"it cannot be opened as {image.encoding} ({brief(str(error))[1:-1]})",
            "send the whole bytes of a PNG or JPEG file and name which",
        ) from error


def as_picture(array: object, where: str) -> np.ndarray:
    """An array that a client sent, as a picture (h, w, 3) uint8; colours may also come first, as torch has them."""
    if not isinstance(array, np.ndarray):
        raise invalid(where, f"it is no array but {type(array).__name__}", "send pixels (height, width, 3) uint8")
    if array.dtype != np.uint8:
        raise invalid(where, f"its dtype is {array.dtype}", "send uint8 in [0, 255]: (255 * image).astype(np.uint8)")
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3 or not all(1 <= n <= LARGEST for n in array.shape[:2]):
        raise invalid(where, f"its shape is {list(array.shape)}", f"send (height, width, 3), {LARGEST} pixels at most")
    return array


def frame_of(pictures: Mapping[str, np.ndarray], cameras: tuple[str, ...], side: int, *, resize: bool) -> np.ndarray:
    """The pictures of all cameras side by side, in the order that the policy learnt."""
    if missing := [name for name in cameras if name not in pictures]:
        sent = ", ".join(brief(name) for name in list(pictures)[:8]) or "none"
        raise invalid(
            f"images.{missing[0]}",
            f"it is missing; there is {sent}",
            f"send the pictures of all cameras that the policy looks through: {', '.join(cameras)}",
        )
    if unknown := [name for name in pictures if name not in cameras]:
        raise invalid(
            f"images.{brief(unknown[0])[1:-1]}",
            "the policy has no such camera",
            f"send those of {', '.join(cameras)} only",
        )
    return np.concatenate([_sized(pictures[name], side, f"images.{name}", resize=resize) for name in cameras], axis=1)


def _sized(picture: np.ndarray, side: int, where: str, *, resize: bool) -> np.ndarray:
    height, width = picture.shape[:2]
    if (height, width) == (side, side):
        return picture
    if not resize or height != width:
        raise invalid(
            where,
            f"it is {height} x {width} pixels",
            f"send {side} x {side}, cropped and resized as the pictures that the policy learnt from"
            + ("" if resize else f" (`wovr serve-policy --resize` makes {side} x {side} of any square)"),
        )
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX, reducing_gap=None))


def _raw(data: bytes, shape: list[int], where: str) -> np.ndarray:
    if shape[2:] != [3] or not all(1 <= n <= LARGEST for n in shape[:2]):
        raise invalid(
            f"{where}.shape", f"it is {brief(shape)}", f"send [height, width, 3], {LARGEST} pixels at most a side"
        )
    if len(data) != math.prod(shape):
        raise invalid(
            f"{where}.data",
            f"it has {len(data)} bytes, and a picture of {shape[0]} x {shape[1]} x 3 has {math.prod(shape)}",
            "send the bytes of a uint8 array: image.tobytes()",
        )
    return np.frombuffer(data, np.uint8).reshape(shape)
