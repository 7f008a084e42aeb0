"""Several cameras in one frame: what is put side by side comes apart again, and none reaches into another."""

import pytest
import torch
from jaxtyping import TypeCheckError

from wovr_core.cameras import apart, side_by_side
from wovr_core.embodiment import Mirror
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.settings import TaskSettings
from wovr_core.training.augmentation import jitter, mirror_frames

SIDEWAYS = Mirror(sideways=True, upside_down=False, action=(-1.0, 1.0), pose=(-1.0,), centre=(0.0,))


def test_what_was_put_side_by_side_comes_apart_again():
    pictures = torch.randint(256, (5, 2, 3, 8, 8), dtype=torch.uint8)
    frames = side_by_side(pictures)
    assert frames.shape == (5, 3, 8, 16) and torch.equal(apart(frames), pictures)
    assert torch.equal(frames[..., :8], pictures[:, 0]), "from left to right"
    assert torch.equal(apart(frames[..., :8])[:, 0], pictures[:, 0]), "one camera is a frame too"


def test_a_frame_that_is_no_row_of_squares_is_refused():
    with pytest.raises((ValueError, TypeCheckError)):
        apart(torch.zeros(3, 8, 12))


def test_each_picture_is_mirrored_and_shifted_by_itself():
    frames = side_by_side(torch.stack([torch.full((4, 3, 16, 16), -1.0), torch.full((4, 3, 16, 16), 1.0)], 1))
    for changed in (mirror_frames(frames, SIDEWAYS), jitter(frames, generator=torch.Generator().manual_seed(0))):
        assert torch.equal(changed, frames), "no pixel of one camera comes into the picture of the other"


def test_a_policy_sees_both_pictures_and_says_where_in_each():
    shape = Shape(vocabulary=("go",), words=1, image_size=16, cameras=2, action_dim=3)
    policy, frames = TinyVLA(shape), torch.rand(2, 3, 16, 32) * 2 - 1
    for camera in range(2):
        other = frames.clone()
        other[..., camera * 16 : camera * 16 + 8] *= -1
        assert not torch.equal(
            policy(frames, ["go"] * 2, torch.zeros(2, 0))[0], policy(other, ["go"] * 2, torch.zeros(2, 0))[0]
        )


def test_a_task_uses_the_cameras_of_its_environment_in_their_order():
    assert TaskSettings().frame == (3, 48, 48)
    libero = {"environment": "libero", "image_size": 64}
    assert TaskSettings.model_validate(libero).frame == (3, 64, 128)
    swapped = TaskSettings.model_validate(libero | {"cameras": ["robot0_eye_in_hand", "agentview"]})
    assert swapped.cameras == ("agentview", "robot0_eye_in_hand")
    for wrong in (["above"], ["agentview", "agentview"], []):
        with pytest.raises(ValueError, match="cameras"):
            TaskSettings.model_validate(libero | {"cameras": wrong})
