"""The same settings, so small that the whole pipeline of a config can be tried on two cores: `--shrink`.

Sizes become small and gates let everything pass, for so little learns nothing. What needs weights that cannot be made
here begins untrained. Every choice of a method stays: what is masked, clipped, mined, refitted and judged, and how.
"""

from typing import Any

from wovr_core.strict_yaml import over

AT_MOST: dict[str, dict[str, int]] = {
    "task": {"image_size": 64, "horizon": 320},
    "policy": {"demonstrations": 2, "steps": 20},
    "collect": {"episodes": 2, "held_out": 2, "shards": 1},
    "world_model": {"steps": 3, "batch": 4, "accumulate": 1, "lora": 2, "validate_every": 0, "checkpoint_every": 1},
    "reward": {"steps": 10, "imagined_steps": 3, "detector_steps": 3, "batch": 32},
    "keyframes": {"per_episode": 2},
    "grpo": {
        "cotrain_steps": 2,
        "updates": 1,
        "num_groups": 2,
        "group_size": 4,
        "max_draws": 1,
        "epochs": 1,
        "minibatch": 64,
        "keyframe_horizon": 32,
        "snapshot_every": 1,
    },
    "pace": {"rounds": 1, "episodes": 2, "held_out": 2, "steps": 2, "updates": 1},
    "evaluate": {"episodes": 2, "curve_episodes": 0},
}
GATES: dict[str, dict[str, Any]] = {
    "world_model": {"minimum_psnr_gain": -100},
    "reward": {"minimum_auc": 0},
    "grpo": {"informative": [0, 1], "base_success": [0, 1]},
}
DIFFUSION: dict[str, Any] = {
    "codec": "convolutional",
    "latent_channels": 8,
    "patch": 1,
    "heads": 2,
    "head_dim": 12,
    "layers": 1,
    "ffn_dim": 32,
    "freq_dim": 16,
    "pose_map": False,
}
NEXT_FRAME = {"width": 8, "layers": 1, "condition": 32}


def shrunk(tree: dict[str, Any]) -> dict[str, Any]:
    """Of a whole tree of settings, defaults included; what it brings along is left out, too."""
    limits = {branch: smaller(tree[branch], sizes) for branch, sizes in AT_MOST.items()}
    small = over(over(tree, limits), GATES)
    before = small["world_model"]["architecture"] or {"prediction": "sample", "keep_gates": False}
    sizes = NEXT_FRAME if "network" in before else DIFFUSION
    small["world_model"] |= {"pretrained": "none", "codec_from": "", "architecture": before | sizes}
    small["inputs"] = {}
    if tasks := small["task"]["options"].get("tasks"):
        small["task"]["options"] |= {"tasks": tasks[:1], "processes": 1}
    return small


def smaller(branch: dict[str, Any], sizes: dict[str, int]) -> dict[str, int]:
    return {name: min(branch[name], most) for name, most in sizes.items()}
