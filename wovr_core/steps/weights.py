"""Weights that others have trained become artifacts: a world model, a reward model, a policy."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from wovr_core.architecture import ArchitectureSettings
from wovr_core.artifacts import Kind, Manifest, writing
from wovr_core.artifacts.conventions import Pictures
from wovr_core.artifacts.shards import digests, read_into, refuse_unlike, tensors_in
from wovr_core.evaluation.fidelity import Depth, as_rows, trustworthy
from wovr_core.policy.openvla.checkpoint import OpenVlaShape, open_base
from wovr_core.reward.calibrate import Agreement
from wovr_core.reward.resnet import COUNTER, RELEASED_RULE, ResNetReward, resnet_in, resnet_shape
from wovr_core.settings import Settings, TaskSettings
from wovr_core.steps.world_model import measure
from wovr_core.store.checks import refuse_misfit
from wovr_core.store.episodes import named, open_episodes
from wovr_core.store.policies import new_openvla_oft, save_policy
from wovr_core.store.rewards import RESNET, save_reward
from wovr_core.store.world_models import architecture_of, fit_statistics, new_world_model, provenance, save_world_model
from wovr_core.training.device import compute_device
from wovr_core.world_model.windows import EpisodeBatch

UNPICKLED = (
    "make a safetensors file of it with `python -I tools/reward_to_safetensors.py IN.pth OUT.safetensors`, which loads "
    "weights only, best where there is no network, and give that"
)

UNMEASURED = "it was imported, and no dream of it was compared with what really happened: import it with --episodes"
WITHOUT_ACTIONS = "it was imported, and has seen no action yet: train, with its checkpoint as world_model.pretrained"


def import_world_model(
    settings: Settings, *, checkpoint: Path, out: Path, vae: Path | None = None, episodes: Sequence[Path] = ()
) -> Manifest:
    """A WorldModel artifact of a checkpoint in diffusers' layout, Wan's own or RLinf's, for `settings.task`.

    Its weights are the checkpoint's, its action channels too where that has some. `episodes` give the statistics of
    actions, and their held-out part says how far the dreams can be trusted; without any, nothing does. Raises
    `ArtifactError` for a checkpoint that is not whole, is another model's or does not go into memory, and
    `SettingsError` for a task that it does not fit; then nothing is written.
    """
    task, given_vae = settings.task, "" if vae is None else str(vae)
    cfg = settings.world_model.model_copy(update={"pretrained": str(checkpoint.absolute()), "codec_from": given_vae})
    cfg = cfg.model_copy(update={"architecture": architecture_of(cfg)})
    assert isinstance(cfg.architecture, ArchitectureSettings)
    settings.check_architecture(cfg.architecture)
    data = open_episodes(episodes, task) if episodes else None
    branches = {"world_model": cfg.model_dump(), "task": task.model_dump()}
    with writing(out, Kind.WORLD_MODEL, settings=branches, made_from=named(episodes)) as draft:
        torch.manual_seed(task.seed)
        model = new_world_model(cfg, task)
        rows: list[Depth] = []
        good, reason = False, UNMEASURED if cfg.architecture.action_channels == "rlinf" else WITHOUT_ACTIONS
        if data is not None:
            data.need_both()
            fit_statistics(model, EpisodeBatch.of(data.training))
        save_world_model(draft.folder, model)
        if data is not None:
            rows = measure(model.to(compute_device()), data.held_out, seed=task.seed)
            good, reason = trustworthy(rows, cfg.minimum_psnr_gain)
        draft.summary |= {
            "trustworthy": good,
            "reason": reason,
            "fidelity": as_rows(rows),
            "weights": sum(weight.numel() for weight in model.parameters()),
            "steps": 0,
            "backbone": provenance(cfg),
        }
    return draft.manifest


def import_reward(checkpoint: Path, *, out: Path, tasks: Sequence[str] = (), image_size: int | None = None) -> Manifest:
    """A RewardModel artifact of one of RLinf's ResNets, a safetensors file or its folder, with the rule it came with.

    `tasks` name the rows of its embedding of tasks, where it has one. Raises `ArtifactError` for a pickle, for a file
    that is not whole, and for another model's.
    """
    found = tensors_in(checkpoint, unpickled=UNPICKLED)
    tensors = resnet_in(found, checkpoint)
    shape = resnet_shape(tensors, image_size=image_size, tasks=tasks)
    with writing(out, Kind.REWARD_MODEL, settings={"kind": RESNET, "from": str(checkpoint)}) as draft:
        reward = ResNetReward(shape, success_rule=RELEASED_RULE)
        wanted = {n: tuple(value.shape) for n, value in reward.state_dict().items() if not n.endswith(COUNTER)}
        refuse_unlike(tensors, wanted, f"the reward model in {checkpoint}", "a ResNet of this depth")
        read_into(reward, tensors)
        save_reward(draft.folder, reward)
        draft.summary |= {
            "trustworthy": False,
            "reason": (
                "it was imported, and what it sees in dreams was never compared with what really happened: calibrate "
                "it with `wovr step reward CONFIG --previous THIS`"
            ),
            "threshold": RELEASED_RULE.threshold,
            "imagined": Agreement(0, 0, 0, 0).summary(),  # so many were compared
            "tasks": list(shape.tasks),
            "image_size": shape.image_size,
            "backbone": {"files": digests(tensors.values())},
        }
    return draft.manifest


def import_policy(
    task: TaskSettings,
    *,
    checkpoint: Path,
    out: Path,
    unnorm_key: str,
    pictures: Pictures = "openvla",
    rank: int = 32,
    stop_token: bool = True,
) -> Manifest:
    """A Policy artifact of an OpenVLA-OFT checkpoint with its discrete head: adapters that change nothing yet.

    The checkpoint stays where it is; the artifact has its place and the SHA-256 of its files. Raises `ArtifactError`
    for one that is another model, is not whole, has another head or no statistics `unnorm_key`; then nothing is
    written.
    """
    base = open_base(checkpoint, unnorm_key)
    shape = OpenVlaShape(
        checkpoint=str(checkpoint.absolute()),
        files=base.digests(),
        unnorm_key=unnorm_key,
        action_dim=len(base.statistics.q01),
        image_size=task.image_size,
        cameras=len(task.cameras),
        pictures=pictures,
        rank=rank,
        stop_token=stop_token,
    )
    refuse_misfit("policy", checkpoint, {"action_dim": shape.action_dim, "chunk": shape.chunk}, task)
    with writing(out, Kind.POLICY, settings={"task": task.model_dump(), "policy": shape.model_dump()}) as draft:
        policy = new_openvla_oft(shape, seed=task.seed)
        save_policy(draft.folder, policy)
        draft.summary |= {
            "weights": sum(math.prod(tensor.shape) for tensor in base.tensors.values()),
            "learns": sum(weight.numel() for weight in policy.learns()),
            "backbone": {"checkpoint": shape.checkpoint, "files": shape.files},
        }
    return draft.manifest
