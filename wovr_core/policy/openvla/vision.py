"""How OpenVLA sees: the picture as it learnt to see it, two vision transformers, and a projector into the words' space.

DINOv2-L/14 with registers and SigLIP-so400m/14, with timm's names of their weights (so a checkpoint's names are ours),
but without what OpenVLA leaves out: the last block of each, and whatever comes after it.
Source: Karamcheti et al., Prismatic VLMs (arXiv 2402.07865); OpenVLA-OFT (arXiv 2502.19645).
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from wovr_core.artifacts.conventions import Pictures
from wovr_core.cameras import apart

HEADS = 16  # of both towers
CROP = 0.9  # of the picture's area: the middle, as OpenVLA-OFT looks at it after training on random crops of that size
FLIPPED: dict[Pictures, tuple[int, ...]] = {"upright": (), "libero": (-2,), "openvla": (-1,)}  # axes of (c, h, w)
MEANS = ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))  # of red, green and blue in [0, 1]: DINOv2's, SigLIP's
STDS = ((0.229, 0.224, 0.225), (0.5, 0.5, 0.5))


class TowerSize(NamedTuple):
    """A vision transformer's sizes, as the shapes of its weights tell."""

    width: int
    layers: int  # of the checkpoint; one fewer is used
    hidden: int
    patch: int  # pixels
    grid: int  # patches to a side
    registers: int  # beside a class token; 0: it has neither, nor layer scales

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> "TowerSize":
        """Of a tower's tensors by timm's names. Raises `KeyError` for one that is missing."""
        width, _, patch, _ = shapes["patch_embed.proj.weight"]
        return cls(
            width=width,
            layers=1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
            hidden=shapes["blocks.0.mlp.fc1.weight"][0],
            patch=patch,
            grid=round(shapes["pos_embed"][1] ** 0.5),
            registers=shapes["reg_token"][1] if "reg_token" in shapes else 0,
        )

    def is_unused(self, name: str) -> bool:
        """Whether a tensor of the checkpoint comes after the features that are used."""
        return name.startswith((f"blocks.{self.layers - 1}.", "norm.", "attn_pool."))


class _Scale(nn.Module):
    """LayerScale, by the name that Hugging Face lets it have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # each (b, head, n, width / head)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Hidden(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, size: TowerSize) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(size.width, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = _Attention(size.width), _Hidden(size.width, size.hidden)
        self.ls1, self.ls2 = (_Scale(size.width) if size.registers else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Patches(nn.Module):
    def __init__(self, size: TowerSize) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, size.width, size.patch, stride=size.patch)


class Tower(nn.Module):
    """A vision transformer up to its last block but one: a feature of each patch, and no norm after them."""

    def __init__(self, size: TowerSize) -> None:
        super().__init__()
        self.patch_embed = _Patches(size)
        self.pos_embed = nn.Parameter(torch.zeros(1, size.grid**2, size.width))  # patches alone have places
        if size.registers:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
            self.reg_token = nn.Parameter(torch.zeros(1, size.registers, size.width))
        self.blocks = nn.ModuleList(_Block(size) for _ in range(size.layers - 1))
        self.size = size

    def forward(self, pictures: Float[Tensor, "b 3 side side"]) -> Float[Tensor, "b patches width"]:
        x = self.patch_embed.proj(pictures).flatten(2).transpose(1, 2) + self.pos_embed
        before = 0
        if self.size.registers:
            tokens = torch.cat([self.cls_token, self.reg_token], 1)
            before, x = tokens.shape[1], torch.cat([tokens.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, before:]


class VisionBackbone(nn.Module):
    """Both towers, side by side in the channels."""

    def __init__(self, dino: TowerSize, siglip: TowerSize) -> None:
        super().__init__()
        self.featurizer, self.fused_featurizer = Tower(dino), Tower(siglip)
        self.side = dino.grid * dino.patch

    def forward(self, pictures: Float[Tensor, "b 3 side side"]) -> Float[Tensor, "b patches channels"]:
        """Features of pictures in [0, 1]."""
        towers, dtype = (self.featurizer, self.fused_featurizer), self.featurizer.pos_embed.dtype
        return torch.cat(
            [
                tower(normalise(pictures, mean, std).to(dtype))
                for tower, mean, std in zip(towers, MEANS, STDS, strict=True)
            ],
            -1,
        )


class Projector(nn.Module):
    """Fused features to embeddings, as if patches were words."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2, self.fc3 = nn.Linear(4 * channels, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


def normalise(
    pictures: Float[Tensor, "b 3 h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "b 3 h w"]:
    middle, spread = (pictures.new_tensor(values)[:, None, None] for values in (mean, std))
    return (pictures - middle) / spread


def picture(
    frames: UInt8[Tensor, "b 3 h w"], side: int, pictures: Pictures = "openvla"
) -> Float[Tensor, "b 3 {side} {side}"]:
    """What a model in its training saw of upright frames: the first camera, turned, resized and cropped, in [0, 1].

    LIBERO's renderer draws upside down; OpenVLA's data are that turned by 180 degrees, so `"openvla"` exchanges left
    and right of upright frames. Resized by Lanczos-3 and rounded, then the middle `CROP` of the area by bilinear
    samples whose corners lie in the corners of the crop, and rounded as TensorFlow does: as openvla-oft evaluates.
    """
    x = apart(frames)[:, 0].float().flip(FLIPPED[pictures])
    if x.shape[-1] != side:
        weight = lanczos(x.shape[-1], side).to(x)
        x = (weight @ x @ weight.T).round().clamp(0, 255)
    along = torch.linspace(-1, 1, side, device=x.device) * CROP**0.5
    grid = torch.stack(torch.meshgrid(along, along, indexing="xy"), -1).expand(len(x), -1, -1, -1)
    x = F.grid_sample(x, grid, align_corners=True)
    return (x / 255 * 255.5).floor().clamp(0, 255) / 255


def lanczos(before: int, after: int) -> Float[Tensor, "{after} {before}"]:
    """Weights by which Lanczos-3 makes `after` pixels of `before`; where they become fewer, of as many more pixels."""
    scale = before / after
    stretch = max(scale, 1.0)
    centres = (torch.arange(after, dtype=torch.float64) + 0.5) * scale
    x = (torch.arange(before, dtype=torch.float64) + 0.5 - centres[:, None]) / stretch
    weight = torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)
    return (weight / weight.sum(-1, keepdim=True)).float()
