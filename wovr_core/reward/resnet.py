"""Reward models that RLinf has trained: a ResNet-18 over single frames, one logit.

Three are about. Two came with RLinf's world models for LIBERO (diffsynth/models/reward_model.py of its DiffSynth, at
2a2e05f): `ResnetRewModel`, which sees frames alone, and `TaskEmbedResnetRewModel`, which is told the number of the task
too. Their convolutions have biases, their shortcuts no norm, frames are floats in [-1, 1]. The third is what
`examples/reward/train_reward_model.py` of RLinf trains (rlinf/models/embodiment/reward/resnet_reward_model.py, at
a3816b596): torchvision's ResNet, frames in ImageNet's colours. Here all have torchvision's names.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float, UInt8
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from wovr_core.artifacts import ArtifactError
from wovr_core.artifacts.shards import Located, few
from wovr_core.success_rule import SuccessRule
from wovr_core.training.precision import autocast
from wovr_core.trajectory import to_unit

WIDTHS = (64, 128, 256, 512)
AT_ONCE = 256  # frames: of 256 pixels they take some 2 GB on the way
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of colours in [0, 1]
RELEASED_RULE = SuccessRule(threshold=0.5, stride=1, hysteresis=1)  # RLinf rounds: one frame above a half is a success
LIBERO_GOAL = (  # the tasks in the order of the embedding that was released
    "open the middle drawer of the cabinet",
    "open the top drawer and put the bowl inside",
    "push the plate to the front of the stove",
    "put the bowl on the plate",
    "put the bowl on the stove",
    "put the bowl on top of the cabinet",
    "put the cream cheese in the bowl",
    "put the wine bottle on the rack",
    "put the wine bottle on top of the cabinet",
    "turn on the stove",
)


class ResNetShape(BaseModel):
    """What rebuilds a ResNet reward model before its weights are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    blocks: Annotated[tuple[PositiveInt, ...], Field(min_length=4, max_length=4)] = (2, 2, 2, 2)
    biased: bool  # convolutions have biases, and shortcuts no norm
    colours: Literal["unit", "imagenet"]  # [-1, 1], or ImageNet's mean and deviation
    image_size: Annotated[int, Field(ge=32, le=1024)]  # pixels that it learnt with; other frames are resized
    hidden: NonNegativeInt = 0  # width of the layer before the logit; 0: there is none
    tasks: tuple[str, ...] = ()  # instructions, in the order of the embedding; empty: it goes by the frame alone
    task_width: NonNegativeInt = 0  # of their embedding


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2015, arXiv 1512.03385), in torchvision's names."""

    def __init__(self, before: int, width: int, stride: int, *, biased: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=biased)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=biased)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1:
            shortcut = nn.Conv2d(before, width, 1, stride, bias=biased)
            self.downsample = nn.Sequential(shortcut) if biased else nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x: Float[Tensor, "b before y x"]) -> Float[Tensor, "b width y2 x2"]:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNetReward(nn.Module):
    """RLinf's reward model (the `RewardModel` protocol). It learns nothing here; its success rule can be calibrated."""

    def __init__(self, shape: ResNetShape, *, success_rule: SuccessRule, dtype: str = "float32") -> None:
        super().__init__()
        self.shape, self.success_rule, self.dtype = shape, success_rule, dtype
        self.conv1, self.bn1 = nn.Conv2d(3, WIDTHS[0], 7, 2, 3, bias=shape.biased), nn.BatchNorm2d(WIDTHS[0])
        for i, (before, width) in enumerate(zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)):
            first = BasicBlock(before, width, 2 if i else 1, biased=shape.biased)
            rest = [BasicBlock(width, width, 1, biased=shape.biased) for _ in range(shape.blocks[i] - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *rest))
        self.tasks = nn.Embedding(len(shape.tasks), shape.task_width) if shape.tasks else None
        seen = WIDTHS[-1] + (shape.task_width if shape.tasks else 0)
        layers: list[nn.Module] = [nn.Linear(seen, shape.hidden), nn.ReLU()] if shape.hidden else []
        self.head = nn.Sequential(*layers, nn.Linear(shape.hidden or seen, 1))
        self.eval()  # its norms go by what they have learnt, for whoever asks

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.conv1.weight.device

    def train(self, mode: bool = True) -> "ResNetReward":
        """Its norms never go by the batch: it does not learn."""
        return super().train(False)

    def logits(self, frames: Float[Tensor, "b 3 h w"], instructions: Sequence[str]) -> Float[Tensor, " b"]:
        """Of frames in [-1, 1], of whatever size. Raises `ArtifactError` for a task that it does not know."""
        x = self._prepared(frames.to(self.device))
        with autocast(self.dtype, self.device):
            x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            for i in range(len(WIDTHS)):
                x = getattr(self, f"layer{i + 1}")(x)
            x = x.mean((-2, -1))
            if self.tasks is not None:
                x = torch.cat([x, self.tasks(self._numbers(instructions))], 1)
            return self.head(x)[:, 0].float()

    def probability(self, frames: UInt8[Tensor, "b c h w"], instructions: Sequence[str]) -> Float[Tensor, " b"]:
        """How likely each frame shows its instruction fulfilled, in [0, 1]."""
        read = []
        with torch.no_grad():
            for i in range(0, len(frames), AT_ONCE):
                seen = to_unit(frames[i : i + AT_ONCE].to(self.device))
                read.append(self.logits(seen, instructions[i : i + AT_ONCE]).sigmoid())
        return torch.cat(read).to(frames.device)

    def _prepared(self, frames: Tensor) -> Tensor:
        """As RLinf prepares them."""
        side = (self.shape.image_size, self.shape.image_size)
        if self.shape.colours == "imagenet":
            frames = (frames + 1) / 2
        if frames.shape[-2:] != side:
            frames = F.interpolate(frames, side, mode="bilinear", align_corners=False)
        if self.shape.colours == "unit":
            return frames.clamp(-1, 1)
        mean, deviation = (torch.tensor(values, device=frames.device).view(1, 3, 1, 1) for values in IMAGENET)
        return (frames - mean) / deviation

    def _numbers(self, instructions: Sequence[str]) -> Tensor:
        known = {task: i for i, task in enumerate(self.shape.tasks)}
        if strange := sorted({words for words in instructions if words.strip() not in known}):
            raise ArtifactError(
                f"this reward model knows no task {strange[0]!r}, but {len(known)} others, the first "
                f"{self.shape.tasks[0]!r}: give a reward model of your task"
            )
        return torch.tensor([known[words.strip()] for words in instructions], device=self.device)


# ------------------------------------------------------------------------------------------------ other people's names

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")  # as RLinf strips them
TRUNK = re.compile(r"(?:net|visual_encoder)\.(\d)\.(\d)\.(.+)")
HEADS = {  # whoever comes first
    "net.7.": "head.0.",
    "fusion_layer.0.": "head.0.",
    "fusion_layer.3.": "head.2.",
    "task_embedding.": "tasks.",
    "fc.0.": "head.0.",
    "fc.3.": "head.2.",
    "fc.": "head.0.",
}
COUNTER = "num_batches_tracked"  # of a norm, which nothing here goes by


def our_name(theirs: str) -> str:
    """Our name of a tensor; one that nobody here knows stays as it is."""
    name = theirs
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    if part := TRUNK.fullmatch(name):
        stage, index, rest = part.groups()
        if stage == "0":
            return f"{('conv1', 'bn1')[int(index)]}.{rest}" if index in "01" else name
        return f"layer{stage}.{index}.{rest.replace('conv3.', 'downsample.0.')}"
    for theirs_first, ours_first in HEADS.items():
        if name.startswith(theirs_first):
            return ours_first + name.removeprefix(theirs_first)
    return name


def resnet_in(found: Mapping[str, Located], where: object) -> dict[str, Located]:
    """The tensors of a checkpoint under our names, without the counters of its norms.

    Raises `ArtifactError` where they are of no ResNet reward model.
    """
    renamed = {our_name(name): tensor for name, tensor in found.items() if not name.endswith(COUNTER)}
    ends = [name for name in ("conv1.weight", "head.0.weight") if name not in renamed]
    if ends or any(len(renamed[name].shape) != size for name, size in (("conv1.weight", 4), ("head.0.weight", 2))):
        raise ArtifactError(
            f"{where} holds {few(found)}: no ResNet reward model of RLinf's. That has net.0.0... (ResnetRewModel), "
            f"visual_encoder.0.0... (TaskEmbedResnetRewModel), or backbone.conv1... (ResNetRewardModel)"
        )
    if "layer1.0.conv3.weight" in renamed:
        raise ArtifactError(
            f"{where} is a ResNet of bottleneck blocks, resnet50 or deeper; resnet18 and resnet34 are read: train one"
        )
    return renamed


def resnet_shape(tensors: Mapping[str, Located], *, image_size: int | None, tasks: Sequence[str]) -> ResNetShape:
    """As the shapes of `resnet_in` tell; `tasks` name the rows of an embedding, LIBERO-Goal's where they are empty.

    Raises `ArtifactError` where there are more or fewer tasks than rows.
    """
    biased = "conv1.bias" in tensors
    blocks = tuple(len({n.split(".")[1] for n in tensors if n.startswith(f"layer{i}.")}) or 1 for i in range(1, 5))
    embedding = tensors["tasks.weight"].shape if "tasks.weight" in tensors else None
    if embedding is not None and not tasks and embedding[0] == len(LIBERO_GOAL):
        tasks = LIBERO_GOAL
    if len(tasks) != (embedding[0] if embedding else 0):
        raise ArtifactError(
            f"{len(tasks)} tasks are named, and this reward model tells {embedding[0] if embedding else 0} apart by "
            f"number: name as many with --task, in the order that it learnt them"
        )
    return ResNetShape(
        blocks=blocks,
        biased=biased,
        colours="unit" if biased else "imagenet",
        image_size=image_size or (256 if biased else 224),
        hidden=tensors["head.0.weight"].shape[0] if "head.2.weight" in tensors else 0,
        tasks=tuple(tasks),
        task_width=embedding[1] if embedding and len(embedding) == 2 else 0,
    )
