"""A folder with OpenVLA-OFT as its authors and RLinf publish it: what is in it, and why it cannot be used.

Only the head of tokens has probabilities, which reinforcement learning needs. Everything is compared by name and shape
before a tensor is read, and nothing of the folder's own code is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from wovr_core.artifacts import ArtifactError, Facts
from wovr_core.artifacts.conventions import Pictures
from wovr_core.artifacts.manifest import checked
from wovr_core.artifacts.shards import Located, digests, few, tensors_in
from wovr_core.chunk import CHUNK
from wovr_core.policy.openvla.actions import BINS, ActionQuantiles
from wovr_core.policy.openvla.vision import TowerSize

KIND: Final = "openvla_oft"
TOWERS = {"vision_backbone.featurizer.": "DINOv2", "vision_backbone.fused_featurizer.": "SigLIP"}
CONFIG, STATISTICS, TOKENIZER = "config.json", "dataset_statistics.json", "tokenizer.json"
HEADLESS = "take a checkpoint that decides by tokens, such as RLinf's or SimpleVLA-RL's"
EXTRAS = {  # what lies beside a checkpoint that is another model: a file's name, what it is, and what to do
    "noisy_action_projector*": f"a diffusion head, whose actions have no probabilities: {HEADLESS}",
    "action_head*": f"an L1-regression or diffusion head, whose actions have no probabilities: {HEADLESS}",
    "proprio_projector*": f"an input for the arm's own pose, which this policy does not read: {HEADLESS}",
    "vision_backbone--*": f"a vision backbone with FiLM, which is not built here: {HEADLESS}",
}


class OpenVlaShape(BaseModel):
    """What rebuilds an OpenVLA-OFT policy: its base checkpoint, which an artifact refers to and does not copy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["openvla_oft"] = KIND
    checkpoint: str  # folder of the base
    files: dict[str, str] = Field(min_length=1)  # SHA-256 of its files, by their names
    unnorm_key: str  # of the statistics, by which its actions are scaled
    action_dim: PositiveInt
    image_size: PositiveInt  # of the frames that it is shown, pixels
    cameras: PositiveInt = 1  # in a frame; it looks through the first
    chunk: Annotated[int, Field(ge=CHUNK, le=CHUNK)] = CHUNK
    pose_dim: Literal[0] = 0
    pictures: Pictures = "openvla"  # which way up it learnt to see
    rank: PositiveInt = 32  # of the adapters, which are all that learns
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the base's weights and arithmetic
    stop_token: bool = True  # after the actions, as openvla-oft trains; RLinf's own code leaves it out


class OpenVlaConfig(Facts):
    """What the folder's config.json says, as far as it matters."""

    model_type: Literal["openvla"]
    text_config: dict[str, Any]  # of Llama; what it does not say is transformers' default
    timm_model_ids: list[str] = Field(min_length=2, max_length=2)
    n_action_bins: int = BINS
    pad_to_multiple_of: int = 64
    pad_token_id: int = 32_000
    norm_stats: dict[str, Any] = Field(default_factory=dict)

    @property
    def vocabulary(self) -> int:
        """Llama's own tokens, the last of which are actions; further rows of its tables are padding."""
        return int(self.text_config.get("vocab_size", 32_064)) - self.pad_to_multiple_of


@dataclass(frozen=True, kw_only=True)
class OpenVlaCheckpoint:
    """A base checkpoint that passed; no weight is read yet."""

    folder: Path
    tensors: Mapping[str, Located]  # those that are used
    config: OpenVlaConfig
    towers: tuple[TowerSize, TowerSize]
    statistics: ActionQuantiles

    def digests(self) -> dict[str, str]:
        """The SHA-256 of every file that the policy depends on."""
        names = (CONFIG, STATISTICS, TOKENIZER)
        small = [Located(self.folder / name, "", ()) for name in names if (self.folder / name).exists()]
        return digests([*self.tensors.values(), *small])

    def refuse_other(self, files: Mapping[str, str]) -> None:
        """Raise `ArtifactError` unless these were the files' digests."""
        found = self.digests()
        if other := [name for name in sorted(found.keys() | files.keys()) if found.get(name) != files.get(name)]:
            raise ArtifactError(
                f"{self.folder} is not the checkpoint that the adapters were learnt on: {few(other)} differ. Put that "
                f"one there, or import this one as a policy of its own"
            )


def open_base(folder: Path, unnorm_key: str) -> OpenVlaCheckpoint:
    """The checkpoint in a folder. Raises `ArtifactError` that says in a sentence why it cannot be used."""
    for pattern, what in EXTRAS.items():
        if beside := sorted(file.name for file in folder.glob(f"{pattern}.pt")):
            raise ArtifactError(f"{folder} has {beside[0]}, {what}")
    config = _read(folder / CONFIG, OpenVlaConfig)
    if config.n_action_bins != BINS:
        raise ArtifactError(
            f"{folder / CONFIG} has n_action_bins {config.n_action_bins}, but OpenVLA-OFT has {BINS}: it is another "
            f"model's"
        )
    known = zip(config.timm_model_ids, TOWERS.values(), strict=True)
    if strange := [name for name, kind in known if kind.lower() not in name]:
        raise ArtifactError(
            f"{folder / CONFIG} names the vision tower {strange[0]}, but OpenVLA-OFT sees with DINOv2 and then SigLIP: "
            f"take a checkpoint of OpenVLA-OFT"
        )
    found = tensors_in(folder)
    towers, unused = [], set()
    for prefix, kind in TOWERS.items():
        shapes = {name.removeprefix(prefix): t.shape for name, t in found.items() if name.startswith(prefix)}
        try:
            size = TowerSize.of(shapes)
        except (KeyError, ValueError, IndexError) as error:
            raise ArtifactError(
                f"{folder} has no vision tower {kind} by timm's names ({error}): take a checkpoint of OpenVLA-OFT"
            ) from error
        towers.append(size)
        unused |= {prefix + name for name in shapes if size.is_unused(name)}
    return OpenVlaCheckpoint(
        folder=folder,
        tensors={name: tensor for name, tensor in found.items() if name not in unused},
        config=config,
        towers=(towers[0], towers[1]),
        statistics=_statistics(folder, config, unnorm_key),
    )


def _statistics(folder: Path, config: OpenVlaConfig, key: str) -> ActionQuantiles:
    """Those of config.json, or of dataset_statistics.json, which counts where both have them."""
    file = folder / STATISTICS
    every = config.norm_stats | (_read(file, dict[str, Any]) if file.exists() else {})
    if key not in every:
        raise ArtifactError(
            f"{folder} has no statistics {key!r}, by which actions would be scaled: its unnorm_key is one of "
            f"{', '.join(sorted(every)) or 'none at all'}"
        )
    try:
        actions = dict(every[key]["action"])
        bounds = {name: actions[name] for name in ("q01", "q99")}
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder}: the statistics {key!r} have no {error} of actions: take others") from error
    scaled = {"mask": actions.get("mask", [True] * len(bounds["q01"]))}
    try:
        return ActionQuantiles.model_validate(bounds | scaled, strict=False)
    except ValueError as error:
        raise ArtifactError(f"{folder}: the statistics {key!r} are broken ({error}): take others") from error


def _read(file: Path, facts: Any) -> Any:
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ArtifactError(f"there is no {file.name} in {file.parent}: name the folder of a checkpoint") from error
    try:
        return checked(facts, text, file)
    except ArtifactError as error:
        raise ArtifactError(f"{error}: take a checkpoint of OpenVLA-OFT") from error
