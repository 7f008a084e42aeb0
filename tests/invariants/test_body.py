"""An arm that is learnt by sight: the same at the same pose, wherever the episode began."""

import torch

from wovr_core.trajectory import to_unit
from wovr_core.world_model.pixels.body import Body, fit_body

SIDE = 16


def films(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A bright square of six pixels where its pose says, before a background of the film's own; three frames each."""
    g = torch.Generator().manual_seed(1)
    corner = torch.randint(0, SIDE - 5, (count, 3, 2), generator=g)  # (u, v)
    frames = torch.randint(0, 60, (count, 1, 3, 1, 1), generator=g).expand(-1, 3, -1, SIDE, SIDE).clone()
    for film, places in zip(frames, corner.tolist(), strict=True):
        for frame, (u, v) in zip(film, places, strict=True):
            frame[:, v : v + 6, u : u + 6] = 250
    return frames.to(torch.uint8), (corner + 3) / SIDE, torch.ones(count, 3)


def test_what_is_learnt_is_where_the_pose_says_on_films_never_seen(generator):
    torch.manual_seed(0)
    body = Body(2)
    losses = fit_body(body, *films(200), steps=150, generator=generator)
    assert losses[-1] < 0.3 * losses[0]
    frames, pose, gripper = (value[200:] for value in films(220))
    real, errors = to_unit(frames[:, 2]), []
    for at in (2, 1):  # where it is, and where it was before
        with torch.no_grad():
            painted = body(pose[:, at], gripper[:, at], (SIDE, SIDE))
        opacity = painted[:, 3:].sigmoid()
        errors.append((opacity * painted[:, :3].tanh() + (1 - opacity) * to_unit(frames[:, 0]) - real).square().mean())
    assert errors[0] < 0.2 * errors[1]
    assert errors[0] < 0.2 * (to_unit(frames[:, 0]) - real).square().mean()


def test_an_arm_is_drawn_at_any_size():
    body = Body(6)
    for size in ((16, 24), (64, 64)):
        assert body(torch.rand(2, 6), torch.zeros(2), size).shape == (2, 4, *size)
