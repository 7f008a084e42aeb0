"""From what a client sends to what a policy sees: three protocols have names for the same things. And the checks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from components.serving.policy.pictures import as_picture, decode, frame_of
from components.serving.policy.refusal import RefusedError, brief, invalid
from components.serving.policy.schema import ActRequest, PolicyMetadata
from components.serving.policy.served import SeenByRobot, ServedPolicy

INSTRUCTION = ("prompt", "instruction", "task")
POSE = ("observation/state", "observation.state", "state", "pose")
PREFIXES = ("", "observation/", "observation.", "images/", "observation/images/", "observation.images.")
# what openpi's and OpenVLA's examples call the first and the second camera
PLACES = (
    ("observation/image", "observation/exterior_image_1_left", "full_image", "image"),
    ("observation/wrist_image", "observation/wrist_image_left", "wrist_image"),
)
LONGEST_TEXT = 1000


def from_request(served: ServedPolicy, request: ActRequest, *, resize: bool) -> SeenByRobot:
    """Of `/v1/act`: cameras by their own names, nothing guessed."""
    metadata = served.metadata
    pictures = {}
    for name, image in request.images.items():
        if name in metadata.cameras:  # pixels of a camera that nobody looks through are never made
            pictures[name] = decode(image, f"images.{name}")
    _refuse_strangers(request.images, metadata)
    frame = frame_of(pictures, tuple(metadata.cameras), metadata.image_size, resize=resize)
    return SeenByRobot(request.instruction, frame, _pose(served, request.pose))


def from_arrays(served: ServedPolicy, observation: Mapping[str, Any], *, resize: bool) -> SeenByRobot:
    """Of openpi's websocket and OpenVLA's `/act`: a dict of arrays."""
    flat, metadata = _flat(observation), served.metadata
    instruction = next((flat[name] for name in INSTRUCTION if name in flat), None)
    if not isinstance(instruction, str) or not 1 <= len(instruction) <= LONGEST_TEXT:
        what = "it is missing" if instruction is None else f"it is {brief(instruction)}"
        raise invalid(INSTRUCTION[0], what, f"send the instruction as text, 1 to {LONGEST_TEXT} letters")
    pictures = {}
    for place, camera in enumerate(metadata.cameras):
        known = [f"{prefix}{camera}" for prefix in PREFIXES] + list(PLACES[place] if place < len(PLACES) else ())
        found = next((name for name in known if name in flat), None)
        if found is None:
            sent = ", ".join(brief(name)[1:-1] for name, value in flat.items() if isinstance(value, np.ndarray))
            raise invalid(camera, f"this camera's picture is missing; there is {sent or 'no array'}", _one_of(known))
        pictures[camera] = as_picture(flat[found], found)
    pose = next((flat[name] for name in POSE if name in flat), None)
    frame = frame_of(pictures, tuple(metadata.cameras), metadata.image_size, resize=resize)
    return SeenByRobot(instruction, frame, _pose(served, pose))


def _pose(served: ServedPolicy, pose: Any) -> np.ndarray:
    """(p,) float32; zeros where the policy does not read it, whatever was sent."""
    names = served.metadata.pose
    if not names:
        return np.zeros(served.pose_dim, np.float32)
    wanted = f"send {len(names)} numbers: {', '.join(names)}"
    if pose is None:
        raise invalid("pose", "it is missing, and this policy reads it", wanted)
    try:
        numbers = np.asarray(pose, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise invalid("pose", f"it is {brief(pose)}", wanted) from error
    if numbers.shape == (1, len(names)):
        numbers = numbers[0]
    if numbers.shape != (len(names),):
        raise invalid("pose", f"its shape is {list(numbers.shape)}", wanted)
    if not np.isfinite(numbers).all():
        raise invalid("pose", f"it has a number that is none ({brief(numbers.tolist())})", wanted)
    return numbers


def _refuse_strangers(names: Sequence[str] | Mapping[str, Any], metadata: PolicyMetadata) -> None:
    for name in names:
        if name not in metadata.cameras:
            raise invalid(
                f"images.{brief(name)[1:-1]}",
                "the policy has no such camera",
                f"send those of {', '.join(metadata.cameras)} only",
            )


def _flat(tree: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """{"observation": {"image": x}} as {"observation/image": x}."""
    if depth > 3:
        raise RefusedError(400, "it is nested deeper than 4 dicts", "the observation", "send names and arrays")
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/", depth + 1)
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _one_of(names: Sequence[str]) -> str:
    return f"send it under one of these names: {', '.join(names)}"
