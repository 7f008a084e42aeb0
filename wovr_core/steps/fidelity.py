"""fidelity: how long a world model's dreams stay like reality, depth by depth, beside two rulers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from wovr_core.artifacts import ArtifactError, Kind, check_episodes_fit, digest_at, read_manifest
from wovr_core.artifacts.manifest import code_version
from wovr_core.chunk import CHUNK
from wovr_core.evaluation.fidelity import outcomes, psnr
from wovr_core.evaluation.official import Official
from wovr_core.evaluation.perceptual import Extractor, flolpips, frechet, lpips, motion_features
from wovr_core.frames import StoredFrames, part
from wovr_core.imagination.replay import replay
from wovr_core.report.clips import with_difference
from wovr_core.settings import TaskSettings
from wovr_core.store.episodes import open_episodes
from wovr_core.store.rewards import open_reward
from wovr_core.store.world_models import open_world_model
from wovr_core.training.progress import counting

FEWEST = 8  # episodes: two halves of four
FILMS = 4  # videos


@dataclass(frozen=True)
class FidelityRow:
    """A dream, or what stands in for one, at one depth; the means of n replays, and of two halves where sets meet."""

    depth: int
    who: str  # dream; hold: the first frame kept; real: other real episodes, the floor
    psnr: float | None  # dB
    ssim: float | None
    lpips: float | None
    flolpips: float | None
    fid: float
    fvd: float
    official: dict[str, float] = field(default_factory=dict)  # by the networks the user named, where they can tell


def measure_fidelity(
    world_model: Path,
    episodes: Sequence[Path],
    *,
    out: Path,
    reward: Path | None = None,
    limit: int = 64,
    seed: int = 0,
    fps: int = 10,
    official: Sequence[str] = (),
) -> dict[str, object]:
    """Replay held-out episodes from their first frames; writes fidelity.json, fidelity.md and videos.

    FID-E and FVD-E compare sets, so the episodes are halved: the dreams of one half stand against the reality of the
    other. Two real halves give the floor, with the same n. `official` names published networks (see `Official`).
    """
    published = Official(official)  # first: what is wrong with a name is told before an hour is spent
    held_out = open_episodes(episodes).held_out[:limit]
    if len(held_out) < FEWEST:
        raise ArtifactError(f"fidelity: {len(held_out)} held-out episodes are too few to compare sets: give {FEWEST}")
    task = read_manifest(world_model, Kind.WORLD_MODEL).branch("task", TaskSettings, world_model)
    task = task.model_copy(update={"horizon": len(held_out[0].actions)})  # a dream may be longer than it learnt from
    check_episodes_fit(held_out, task, ", ".join(map(str, episodes)))
    reward_model = None if reward is None else open_reward(reward, task)
    dreams, extractor = open_world_model(world_model, task), Extractor()
    replays = replay(dreams, held_out, generator=torch.Generator().manual_seed(seed))
    rows = []
    depths = depths_of(replays.real.shape[1])
    with counting("fidelity", len(depths), unit="depth") as watch:
        for depth in depths:
            rows += measure_depth(extractor, replays.real, replays.imagined, replays.first, depth, published)
            watch()
    facts: dict[str, object] = {
        "n": len(held_out),
        "seed": seed,
        "date": date.today().isoformat(),
        "code_version": code_version(),
        "world_model": digest_at(world_model),
        "episodes": [digest_at(path) for path in episodes],
        "extractor": {"name": extractor.name, "sha256": extractor.digest},
        "official": published.digests,
        "rows": [asdict(row) for row in rows],
    }
    if reward is not None and reward_model is not None:
        facts |= {"reward": digest_at(reward), "outcomes": outcomes(reward_model, replays).summary()}
    out.mkdir(parents=True, exist_ok=True)
    for i, (real, imagined) in enumerate(zip(replays.real[:FILMS], replays.imagined, strict=False)):
        (out / f"real-imagined-difference-{i}.mp4").write_bytes(with_difference(real, imagined, fps=fps))
    (out / "fidelity.md").write_text(as_markdown(facts, rows))
    (out / "fidelity.json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def depths_of(frames: int) -> list[int]:
    """8, 16, 32, ... and the last."""
    whole = frames // CHUNK * CHUNK
    doubling = [CHUNK * 2**k for k in range(20) if CHUNK * 2**k < whole]
    return [*doubling, whole]


def measure_depth(
    extractor: Extractor,
    real: UInt8[Tensor, "n t 3 h w"] | StoredFrames,
    imagined: UInt8[Tensor, "n t 3 h w"] | StoredFrames,
    first: UInt8[Tensor, "n 3 h w"] | StoredFrames,
    depth: int,
    official: Official,
) -> list[FidelityRow]:
    """The eight frames up to a depth: the last of them as pictures, all of them as a clip (16 for the official FVD)."""
    clip = slice(depth - CHUNK, depth)
    half = len(real) // 2
    truth = real[:, clip]
    hold = part(first, torch.arange(len(first))[:, None].expand(real.shape[:2]))
    clips = {"dream": imagined[:, clip], "hold": hold[:, clip], "real": truth}
    pooled = {who: extractor.pooled(seen.flatten(0, 1)).unflatten(0, seen.shape[:2]) for who, seen in clips.items()}
    others = pooled["real"][half : 2 * half]
    last = extractor(truth[:, -1])
    rows = []
    for who, seen in clips.items():
        mine = pooled[who][:half]
        sets: dict[str, Any] = {
            "fid": frechet(mine.flatten(0, 1), others.flatten(0, 1)),
            "fvd": frechet(motion_features(mine), motion_features(others)),
        }
        film = {"real": real, "dream": imagined, "hold": hold}[who]
        sets["official"] = official.at_depth(depth, film, real)
        if who == "real":
            rows.append(FidelityRow(depth, who, None, None, None, None, **sets))
            continue
        flowing = None
        if find_spec("cv2"):
            flowing = float(torch.stack([flolpips(extractor, *pair) for pair in zip(seen, truth, strict=True)]).mean())
        rows.append(
            FidelityRow(
                depth,
                who,
                psnr=float(psnr(seen[:, -1], truth[:, -1]).mean()),
                ssim=_ssim(seen[:, -1], truth[:, -1]),
                lpips=float(lpips(extractor(seen[:, -1].contiguous()), last).mean()),
                flolpips=flowing,
                **sets,
            )
        )
    return rows


def _ssim(seen: UInt8[Tensor, "n 3 h w"], truth: UInt8[Tensor, "n 3 h w"]) -> float:
    value = structural_similarity_index_measure(seen.float(), truth.float(), data_range=255.0)
    assert isinstance(value, Tensor)  # a pair only where more is asked for
    return float(value)


def _by(kind: str, row: FidelityRow) -> float | None:
    return row.official.get(kind)


def as_markdown(facts: dict[str, object], rows: Sequence[FidelityRow]) -> str:
    """A table of all depths; what the two rulers are is said below."""
    by = {(row.depth, row.who): row for row in rows}

    def cell(depth: int, pick: Callable[[FidelityRow], float | None], form: str) -> str:
        values = [pick(by[depth, who]) for who in ("dream", "hold", "real")]
        return " / ".join("" if value is None else format(value, form) for value in values).rstrip(" /")

    digests = cast("dict[str, str]", facts["official"])
    published = [partial(_by, kind) for kind in digests]
    names = ["depth, frames", "PSNR, dB", "SSIM", "LPIPS-E", "FloLPIPS-E", "FID-E", "FVD-E", *map(str.upper, digests)]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for depth in sorted({row.depth for row in rows}):
        cells = [
            cell(depth, lambda row: row.psnr, ".1f"),
            cell(depth, lambda row: row.ssim, ".3f"),
            cell(depth, lambda row: row.lpips, ".4f"),
            cell(depth, lambda row: row.flolpips, ".4f"),
            cell(depth, lambda row: row.fid, ".2f"),
            cell(depth, lambda row: row.fvd, ".2f"),
            *(cell(depth, pick, ".4g") for pick in published),
        ]
        lines.append(f"| {depth} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"The dream / the first frame held / (sets) other real episodes. n = {facts['n']} held-out replays, for FID-E "
        f"and FVD-E halves of them, eight frames each. {facts['date']}, {facts['code_version']}. E: seen by "
        f"EfficientNet-Lite0 ({Extractor.digest[:12]}), not to be compared with published figures.",
    ]
    if digests:
        lines += [
            "",
            f"Without an E: {', '.join(f'{kind.upper()} by {digest[:12]}' for kind, digest in digests.items())}.",
        ]
    if outcome := facts.get("outcomes"):
        lines += ["", f"Imagined against real outcome: {json.dumps(outcome)}"]
    return "\n".join(lines) + "\n"
