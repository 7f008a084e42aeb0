"""`wovr import`: what other people have made becomes an artifact of ours."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipelines.cli.commands.episodes import import_episodes
from pipelines.cli.terminal import console, path, plainly
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import Settings
from wovr_core.strict_yaml import YamlError, assign

app = typer.Typer(
    no_args_is_help=True, help="Make artifacts of what others have: episodes, world models, rewards, policies."
)
app.command("episodes")(import_episodes)  # which `wovr episodes import` is too

AS_RLINF = {"environment": "libero", "image_size": 256, "cameras": ["agentview"]}  # what its world models are for

Out = Annotated[Path, typer.Option(parser=path, help="The artifact that is made: a new folder.")]


@app.command("world-model")
def world_model(
    checkpoint: Annotated[Path, typer.Argument(parser=path, help="The checkpoint's folder.")],
    out: Out,
    vae: Annotated[
        Path | None, typer.Option(parser=path, help="The folder of Wan2.2's VAE in diffusers' layout; PATH/vae.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="task.X=... or world_model.X=..., and again for another.")
    ] = None,
    episodes: Annotated[
        list[Path] | None, typer.Option(parser=path, help="Episodes artifacts: the held-out ones are dreamt again.")
    ] = None,
) -> None:
    """Make a WorldModel artifact of Wan2.2-TI2V-5B, or of what RLinf made of it.

        wovr import world-model RLinf-Wan-LIBERO-Spatial --vae Wan2.2-TI2V-5B-Diffusers/vae --out worlds/spatial

    Three layouts are known by the names of their tensors: diffusers' (`transformer/` and `vae/`), Wan's own
    (`diffusion_pytorch_model-*.safetensors`) and RLinf's (`model-*.safetensors`). All is compared by name and shape
    before a weight is read; the memory it takes is asked for, too. Without --set task.environment it is for LIBERO,
    agent view, 256 pixels, as RLinf's are.

    RLinf's dream at once. Wan itself knows no actions: name its folder as `world_model.pretrained` instead and train.
    With --episodes the dreams are compared with what really happened, which is what lets a policy learn in them.
    """
    with plainly():
        from wovr_core.steps.weights import import_world_model

        made = import_world_model(
            settings_with(set_ or []), checkpoint=checkpoint, out=out, vae=vae, episodes=episodes or ()
        )
        console.print_json(data=made.summary)


@app.command("reward")
def reward(
    checkpoint: Annotated[Path, typer.Argument(parser=path, help="A safetensors file, or the folder it lies in.")],
    out: Out,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="An instruction, and again for the next, in the order that it learnt them: where it has some."
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=32, max=1024, help="Pixels that it learnt with; 256, or 224 of torchvision's.")
    ] = None,
) -> None:
    """Make a RewardModel artifact of RLinf's ResNet, with the rule it came with: one frame above a half is a success.

        python -I tools/reward_to_safetensors.py resnet_rm.pth resnet_rm.safetensors

        wovr import reward resnet_rm.safetensors --out rewards/spatial

        wovr step reward CONFIG --previous rewards/spatial --episodes E --world_model W --out rewards/calibrated

    A .pth is a pickle, which could run code: the first line makes a safetensors file of its weights alone. The last
    sets its threshold by your world model's dreams and adds a hallucination detector; its weights stay as they are.
    """
    with plainly():
        from wovr_core.steps.weights import import_reward

        console.print_json(data=import_reward(checkpoint, out=out, tasks=task or (), image_size=image_size).summary)


@app.command("policy")
def policy(
    checkpoint: Annotated[Path, typer.Argument(parser=path, help="The checkpoint's folder. It stays where it is.")],
    out: Out,
    unnorm_key: Annotated[str, typer.Option(help="Whose statistics scale its actions: libero_spatial_no_noops ...")],
    rank: Annotated[int, typer.Option(min=1, max=4096, help="Of the adapters, which are all that learns.")] = 32,
    pictures: Annotated[
        Literal["upright", "libero", "openvla"],
        typer.Option(help="How its training data hold pictures: openvla, LIBERO's turned by 180 degrees."),
    ] = "openvla",
    stop_token: Annotated[
        bool, typer.Option(help="Ends what it reads with one, as openvla-oft trains; RLinf's own code does not.")
    ] = True,
    set_: Annotated[list[str] | None, typer.Option("--set", help="task.X=..., and again for another.")] = None,
) -> None:
    """Make a Policy artifact of OpenVLA-OFT with its discrete head, for LIBERO where --set names nothing else.

        wovr import policy Openvla-oft-SFT-libero-spatial --unnorm-key libero_spatial_no_noops --out policies/oft

    The artifact holds adapters, and where its checkpoint lies with the SHA-256 of every file: leave it there. All is
    compared by name and shape before a weight is read, and none of the folder's own code is run. A checkpoint with an
    L1-regression or diffusion head has no probabilities, and cannot learn here.
    """
    with plainly():
        from wovr_core.steps.weights import import_policy

        task = settings_with(set_ or []).task
        made = import_policy(
            task,
            checkpoint=checkpoint,
            out=out,
            unnorm_key=unnorm_key,
            pictures=pictures,
            rank=rank,
            stop_token=stop_token,
        )
        console.print_json(data=made.summary)


def settings_with(pairs: list[str]) -> Settings:
    """Settings with these values, each BRANCH.NAME=VALUE; for LIBERO where no environment is among them."""
    try:
        tree: dict[str, Any] = assign({}, pairs)
    except YamlError as error:
        raise SettingsError(f"--set: {error}") from error
    task = tree.setdefault("task", {})
    if isinstance(task, dict) and "environment" not in task:
        tree["task"] = AS_RLINF | task
    return Settings.of_branches(json.dumps(tree, default=str), source="--set")
