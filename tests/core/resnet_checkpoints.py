"""Reward models by the names of RLinf's files, and RLinf's forward, written down once more."""

import torch
from torch.nn import functional as F

WIDTHS = (64, 64, 128, 256, 512)
FRAMES, TASK = "ResnetRewModel", "TaskEmbedResnetRewModel"  # RLinf's names of its classes
TRAINED = "ResNetRewardModel"


def stem(kind: str) -> tuple[str, str]:
    """Names of the first convolution and of its norm, in RLinf's files."""
    trunk = {FRAMES: "net", TASK: "visual_encoder"}.get(kind)
    return (f"{trunk}.0.0", f"{trunk}.0.1") if trunk else ("backbone.conv1", "backbone.bn1")


def block(kind: str, stage: int, i: int) -> str:
    trunk = {FRAMES: "net", TASK: "visual_encoder"}.get(kind)
    return f"{trunk}.{stage}.{i}." if trunk else f"backbone.layer{stage}.{i}."


def tensors_of(kind: str) -> dict[str, torch.Tensor]:
    """Tensors by the names of RLinf's files, spelled out; no weight at a special value."""
    torch.manual_seed(0)
    made: dict[str, torch.Tensor] = {}

    def conv(name: str, before: int, width: int, side: int) -> None:
        made[f"{name}.weight"] = torch.randn(width, before, side, side) * (2 / (before * side**2)) ** 0.5
        if kind != TRAINED:
            made[f"{name}.bias"] = 0.1 * torch.randn(width)

    def norm(name: str, width: int) -> None:
        made[f"{name}.weight"], made[f"{name}.bias"] = 1 + 0.1 * torch.randn(width), 0.1 * torch.randn(width)
        made[f"{name}.running_mean"], made[f"{name}.running_var"] = 0.1 * torch.randn(width), 0.5 + torch.rand(width)
        made[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv(stem(kind)[0], 3, 64, 7)
    norm(stem(kind)[1], 64)
    for stage in range(1, 5):
        for i in range(2):
            here, width = block(kind, stage, i), WIDTHS[stage]
            before = WIDTHS[stage - 1] if i == 0 else width
            conv(f"{here}conv1", before, width, 3)
            conv(f"{here}conv2", width, width, 3)
            norm(f"{here}bn1", width)
            norm(f"{here}bn2", width)
            if stage > 1 and i == 0:
                conv(f"{here}{'downsample.0' if kind == TRAINED else 'conv3'}", before, width, 1)
                if kind == TRAINED:
                    norm(f"{here}downsample.1", width)
    heads = {FRAMES: [("net.7", 512, 1)], TRAINED: [("backbone.fc.0", 512, 32), ("backbone.fc.3", 32, 1)]}
    for name, before, width in heads.get(kind, [("fusion_layer.0", 576, 256), ("fusion_layer.3", 256, 1)]):
        made[f"{name}.weight"], made[f"{name}.bias"] = 0.02 * torch.randn(width, before), 0.1 * torch.randn(width)
    if kind == FRAMES:
        made["net.7.bias"] -= 5.5  # so that frames are judged both ways
    return made | ({"task_embedding.weight": torch.randn(10, 64)} if kind == TASK else {})


def reference(kind: str, w: dict[str, torch.Tensor], frames: torch.Tensor, task: int) -> torch.Tensor:
    """RLinf's forward, written down once more: the probability of success of frames in [0, 255]."""

    def conv(name: str, x: torch.Tensor, stride: int, pad: int) -> torch.Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), stride, pad)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, *(w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = frames.float() / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (x - mean.view(3, 1, 1)) / deviation.view(3, 1, 1) if kind == TRAINED else 2 * x - 1
    x = F.max_pool2d(F.relu(norm(stem(kind)[1], conv(stem(kind)[0], x, 2, 3))), 3, 2, 1)
    for stage in range(1, 5):
        for i in range(2):
            here, stride = block(kind, stage, i), 2 if stage > 1 and i == 0 else 1
            y = F.relu(norm(f"{here}bn1", conv(f"{here}conv1", x, stride, 1)))
            y = norm(f"{here}bn2", conv(f"{here}conv2", y, 1, 1))
            if stride == 2 and kind == TRAINED:
                x = norm(f"{here}downsample.1", conv(f"{here}downsample.0", x, 2, 0))
            elif stride == 2:
                x = conv(f"{here}conv3", x, 2, 0)
            x = F.relu(y + x)
    x = F.adaptive_avg_pool2d(x, 1).flatten(1)
    if kind == FRAMES:
        return F.linear(x, w["net.7.weight"], w["net.7.bias"]).sigmoid()[:, 0]
    first, last = ("fusion_layer.0", "fusion_layer.3") if kind == TASK else ("backbone.fc.0", "backbone.fc.3")
    if kind == TASK:
        x = torch.cat([x, w["task_embedding.weight"][task].expand(len(x), -1)], 1)
    x = F.relu(F.linear(x, w[f"{first}.weight"], w[f"{first}.bias"]))
    return F.linear(x, w[f"{last}.weight"], w[f"{last}.bias"]).sigmoid()[:, 0]
