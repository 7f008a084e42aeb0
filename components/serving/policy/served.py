"""A policy that is loaded: what it wants to see, and its answer to a batch. The one file of the server with torch.

Another kind of policy is served once `wovr_core.store.policies.open_any_policy` opens it: it answers `act` (the
protocol `Policy`) and has a `shape` that says how many cameras of which size it looks through and how long its chunks
are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from components.serving.policy.schema import ActionNumber, PolicyMetadata
from wovr_core.artifacts import ArtifactError, Kind, read_manifest
from wovr_core.embodiment import Embodiment
from wovr_core.protocols import Policy
from wovr_core.settings import TaskSettings
from wovr_core.store.policies import open_any_policy
from wovr_core.trajectory import Observation


@dataclass(frozen=True)
class SeenByRobot:
    """One request's observation, checked."""

    instruction: str
    frame: np.ndarray  # (side, cameras x side, 3) uint8
    pose: np.ndarray  # (p,) float32; zeros where the policy does not read it


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedPolicy:
    """A policy in memory, and which it is."""

    policy: Policy
    metadata: PolicyMetadata  # with its version and digest; its name is the caller's
    pose_dim: int  # numbers of the embodiment's pose, whether the policy reads them or not

    @property
    def digest(self) -> str:
        return str(self.metadata.digest)

    def act(self, batch: Sequence[SeenByRobot], temperature: float, generator: torch.Generator) -> np.ndarray:
        """Chunks (b, chunk, a) float32, each number in [-1, 1]. Raises `ArithmeticError` where one is not."""
        frames = torch.from_numpy(np.stack([one.frame for one in batch])).permute(0, 3, 1, 2).contiguous()
        observation = Observation(
            frames=frames,
            instructions=tuple(one.instruction for one in batch),
            pose=torch.from_numpy(np.stack([one.pose for one in batch])),
        )
        chunk = self.policy.act(observation, temperature=temperature, generator=generator)
        actions = chunk.actions.float().cpu().numpy()
        if not (np.abs(actions) <= 1 + 1e-6).all():  # NaN is no less than anything
            raise ArithmeticError(f"policy {self.digest[:12]} answered numbers outside of [-1, 1], or NaN")
        return actions


def open_served(path: Path, *, version: str | None = None) -> ServedPolicy:
    """The policy of an artifact, tried once with a grey picture. Raises `ArtifactError`."""
    manifest = read_manifest(path, Kind.POLICY)
    task = manifest.branch("task", TaskSettings, path)
    policy = open_any_policy(path, task)
    metadata = describe(policy, task, version=version, digest=manifest.digest)
    served = ServedPolicy(policy=policy, metadata=metadata, pose_dim=task.embodiment.pose_dim)
    grey = np.zeros((metadata.image_size, metadata.image_size * len(metadata.cameras), 3), np.uint8)
    seen = SeenByRobot(instruction="", frame=grey, pose=np.zeros(served.pose_dim, np.float32))
    try:
        answer = served.act([seen, seen], 0.0, torch.Generator())
    except (RuntimeError, ArithmeticError) as error:
        raise ArtifactError(f"the policy at {path} cannot answer ({error}): make it again") from error
    if answer.shape != (2, metadata.chunk, len(metadata.actions)):
        raise ArtifactError(f"the policy at {path} answers {answer.shape[1:]} numbers, and says otherwise: mend it")
    return served


def describe(policy: nn.Module, task: TaskSettings, *, version: str | None, digest: str) -> PolicyMetadata:
    """What a client must know, from the policy and the task that it learnt."""
    shape, embodiment = policy.shape, task.embodiment
    return PolicyMetadata(
        environment=embodiment.name,
        actions=_actions(embodiment),
        gripper=f"{embodiment.action[-1]}, the last number: above 0 closes, below opens",
        rate_hz=embodiment.fps,
        chunk=shape.chunk,
        image_size=shape.image_size,
        cameras=list(task.cameras),
        pose=list(embodiment.pose) if shape.pose_dim else [],
        policy=None,
        version=version,
        digest=digest,
        statistics_digest=_statistics(policy),
    )


def _actions(embodiment: Embodiment) -> list[ActionNumber]:
    motions = range(embodiment.action_dim - 1)
    units = [embodiment.turn_unit if i in embodiment.turns else embodiment.motion_unit for i in motions] + ["closed"]
    return [
        ActionNumber(name=name, low=-1, high=1, unit=unit) for name, unit in zip(embodiment.action, units, strict=True)
    ]


def _statistics(policy: nn.Module) -> str | None:
    """Of the buffers by which it scales its inputs."""
    found: list[Tensor] = [
        buffer for name, buffer in sorted(policy.named_buffers()) if name.endswith(("_mean", "_std"))
    ]
    if not found:
        return None
    return sha256(b"".join(buffer.float().cpu().numpy().tobytes() for buffer in found)).hexdigest()
