"""What the processes of test_distributed.py do: fit a small world model. Usage: FOLDER STEPS

$WOVR_SETS is JSON of further settings of the world model; $WOVR_BFLOAT16 has a group compute in that.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import save_file

import wovr_core.steps.world_model as step
from tests.toys import an_episode
from wovr_core.architecture import ArchitectureSettings
from wovr_core.settings import WorldModelSettings
from wovr_core.training import loop
from wovr_core.training.distributed import full_tensor, local_shard
from wovr_core.trajectory import Episode
from wovr_core.world_model.autoencoder import PatchAutoencoder
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.windows import EpisodeBatch


class Losses:
    """A tracker that writes down what it is told, slowly if asked, and stops the training after some steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, at: int, loss: float) -> None:
        with (self.folder / "losses.jsonl").open("a") as lines:
            lines.write(f"{loss}\n")
        time.sleep(float(os.environ.get("WOVR_SLOWLY", 0)))
        if at + 1 == int(os.environ.get("WOVR_STOP", -1)) + 1:
            raise KeyboardInterrupt


def larger(episode: Episode) -> Episode:
    frames = episode.frames.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return dataclasses.replace(episode, frames=frames)


def main(folder: Path, steps: int) -> None:
    rank = os.environ.get("RANK", "0")
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    torch.manual_seed(0)
    small = ArchitectureSettings(latent_channels=8, heads=2, head_dim=12, layers=2, ffn_dim=32, freq_dim=16)
    cfg = WorldModelSettings(architecture=small, pretrained="none", batch=8, checkpoint_every=2, learning_rate=1e-3)
    cfg = cfg.model_copy(update=json.loads(os.environ.get("WOVR_SETS", "{}")))
    model = DiffusionWorldModel(cfg, PatchAutoencoder(channels=8, width=8, fine=8), action_dim=3)
    for parameter in model.transformer.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    g = torch.Generator().manual_seed(1)
    episodes = EpisodeBatch(
        frames=torch.randint(0, 255, (4, 17, 3, 16, 16), dtype=torch.uint8, generator=g),
        actions=2 * torch.rand(4, 16, 3, generator=g) - 1,
        pose=torch.rand(4, 17, 2, generator=g),
    )
    model.statistics.fit(episodes)
    held_out = [larger(an_episode(steps=16, success_at=12, closes=[9], shade=20 * i)) for i in range(4)]
    shard = step.shard

    def and_say_how_much(learner, **rest) -> None:
        whole = sum(p.numel() for p in learner.transformer.parameters())
        shard(learner, **rest)
        mine = sum(local_shard(p).numel() for p in learner.transformer.parameters())
        (folder / "share.json").write_text(json.dumps(mine / whole))

    clip = loop.nn.utils.clip_grad_norm_

    def and_write_the_first(parameters, limit):
        if not (folder / "gradients.safetensors").exists():
            whole = {str(i): full_tensor(p.grad).clone() for i, p in enumerate(parameters) if p.grad is not None}
            if rank == "0":
                save_file(whole, folder / "gradients.safetensors")
        return clip(parameters, limit)

    computed_in = (lambda *_: torch.bfloat16) if "WOVR_BFLOAT16" in os.environ else step.computed_in
    in_step = patch.multiple(
        step, tell_loss=lambda tracker, metric: Losses(folder), shard=and_say_how_much, computed_in=computed_in
    )
    with in_step, patch.object(loop.nn.utils, "clip_grad_norm_", and_write_the_first):
        step.fit_world_model(model, episodes, steps=steps, name="small", seed=0, data=[], held_out=held_out)
    save_file(model.transformer.state_dict(), folder / "weights.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
