"""LPIPS, FID and FVD as the field publishes them, with networks that the user has and names by path and hash.

The files are the TorchScript ones of StyleGAN2-ADA and StyleGAN-V: VGG16 (`vgg16.pt`; LPIPS, Zhang et al., arXiv
1801.03924), Inception (`inception-2015-12-05.pt`; FID, Heusel et al., arXiv 1706.08500) and I3D (`i3d_torchscript.pt`;
FVD, Unterthiner et al., arXiv 1812.01717). A TorchScript is a program, so one is run only if it is the one that was
meant: its SHA-256 is asked for, and written beside the figures.
"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wovr_core.artifacts.manifest import refuse_pointer
from wovr_core.chunk import CHUNK
from wovr_core.evaluation.perceptual import ExtractorError, frechet
from wovr_core.frames import StoredFrames

KINDS = ("lpips", "fid", "fvd")
CLIP = 16  # frames of a clip for I3D, which halves time three times and then wants two left
BATCH = 32  # pictures at a time


class Official:
    """The networks named, each as `KIND=FILE@SHA256`; any of the three, or none."""

    def __init__(self, named: Sequence[str]) -> None:
        self.digests: dict[str, str] = {}
        self.nets: dict[str, torch.jit.ScriptModule] = {}
        for one in named:
            kind, _, rest = one.partition("=")
            path, _, digest = rest.rpartition("@")
            if kind not in KINDS or not path or len(digest) != 64:
                raise ExtractorError(f"--official {one}: write KIND=FILE@SHA256, with KIND one of {', '.join(KINDS)}")
            if not Path(path).is_file():
                raise ExtractorError(f"--official {kind}: there is no file {path}")
            refuse_pointer(Path(path))
            if (found := sha256(Path(path).read_bytes()).hexdigest()) != digest.lower():
                raise ExtractorError(
                    f"--official {kind}: {path} has the SHA-256 {found}, not {digest}: it is run only if it is the one "
                    f"you meant; fetch it again, or name the hash you trust"
                )
            self.digests[kind] = digest.lower()
            self.nets[kind] = torch.jit.load(path, map_location="cpu").eval()

    def at_depth(
        self,
        depth: int,
        seen: UInt8[Tensor, "n t 3 h w"] | StoredFrames,
        real: UInt8[Tensor, "n t 3 h w"] | StoredFrames,
    ) -> dict[str, float]:
        """What these networks say of the frames up to a depth; sets are halved, one half seen, the other real."""
        figures, half = {}, len(real) // 2

        def sets(frames: int) -> tuple[Tensor, Tensor]:
            clip = slice(depth - frames, depth)
            return seen[:half, clip], real[half : 2 * half, clip]

        if "lpips" in self.nets and seen is not real:
            figures["lpips"] = self.lpips(seen[:, depth - 1], real[:, depth - 1])
        if "fid" in self.nets:
            figures["fid"] = self.fid(*(part.flatten(0, 1) for part in sets(CHUNK)))
        if "fvd" in self.nets and depth >= CLIP:
            figures["fvd"] = self.fvd(*sets(CLIP))
        return figures

    @torch.no_grad()
    def lpips(self, one: UInt8[Tensor, "n 3 h w"], other: UInt8[Tensor, "n 3 h w"]) -> float:
        """Mean distance of pictures, at their own size; 0 for equal ones."""
        net, distances = self.nets["lpips"], []
        for a, b in zip(one.split(BATCH), other.split(BATCH), strict=True):
            seen = [net(part.float(), resize_images=False, return_lpips=True) for part in (a, b)]
            distances.append((seen[0] - seen[1]).square().flatten(1).sum(1))
        return float(torch.cat(distances).mean())

    @torch.no_grad()
    def fid(self, one: UInt8[Tensor, "n 3 h w"], other: UInt8[Tensor, "m 3 h w"]) -> float:
        """Fréchet distance of two sets of pictures."""
        net = self.nets["fid"]

        def features(pictures: Tensor) -> Float[Tensor, "n d"]:
            return torch.cat([net(part.contiguous(), return_features=True) for part in pictures.split(BATCH)])

        return frechet(features(one), features(other))

    @torch.no_grad()
    def fvd(self, one: UInt8[Tensor, "n t 3 h w"], other: UInt8[Tensor, "m t 3 h w"]) -> float:
        """Fréchet distance of two sets of clips, t >= 16."""
        net = self.nets["fvd"]

        def features(clips: Tensor) -> Float[Tensor, "n d"]:
            parts = clips.transpose(1, 2).split(4)
            return torch.cat([net(p.float(), rescale=True, resize=True, return_features=True) for p in parts])

        return frechet(features(one), features(other))
