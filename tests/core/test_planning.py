"""`wovr plan` counts what is really computed."""

import pytest
import torch
from torch.profiler import profile

from wovr_core.architecture import ArchitectureSettings
from wovr_core.chunk import CHUNK, MEMORY
from wovr_core.planning.counting import Counts, count, empty_world_model
from wovr_core.planning.memory import saved_in_step
from wovr_core.planning.plan import CHIPS, Plan
from wovr_core.settings import Settings

TABLETOP = Settings()
KITCHEN = Settings.parse(
    {
        "task": {"environment": "libero", "image_size": 64, "picture_stride": 8, "horizon": 168},
        "world_model": {"pretrained": "none", "architecture": {"network": "next-frame"}},
        "reward": {"stride": 8, "hysteresis": 1, "detector_steps": 0},
        "grpo": {"detector": False, "kir_ratio": 0, "keyframe_horizon": 80},
    }
)
WIDE = {"latent_channels": 4, "patch": 2, "heads": 2, "head_dim": 16, "ffn_dim": 64, "freq_dim": 16}
SMALL = {"prediction": "velocity", "keep_gates": False, "pose_map": False, "layers": 5}


@pytest.fixture(scope="module", params=[TABLETOP, KITCHEN], ids=["tabletop", "kitchen"])
def counted(request) -> tuple[Settings, Counts]:
    return request.param, count(request.param)


def products(work) -> float:
    """What torch's profiler says of products and convolutions, whose formulas are its own."""
    with torch.no_grad(), profile(with_flops=True) as seen:
        work()
    kinds = ("aten::mm", "aten::addmm", "aten::bmm", "aten::conv2d")
    return sum(event.flops for event in seen.key_averages() if event.key in kinds)


def test_a_chunk_is_counted_as_the_profiler_does(counted):
    settings, counts = counted
    task, body = settings.task, settings.task.embodiment
    model = empty_world_model(settings)
    frames = torch.zeros(1, 1 + MEMORY, *task.frame, dtype=torch.uint8)
    state = model.begin_at(frames, torch.zeros(1, MEMORY, body.action_dim), torch.zeros(1, 1 + MEMORY, body.pose_dim))
    seen = products(lambda: model.imagine(state, torch.zeros(1, CHUNK, body.action_dim), generator=torch.Generator()))
    assert counts.imagine == pytest.approx(seen, rel=0.1)


def test_weights_are_those_of_the_model(counted):
    settings, counts = counted
    model = empty_world_model(settings)
    assert counts.world_model + counts.codec == sum(p.numel() for p in model.parameters())


def test_a_lesson_takes_three_times_a_prediction(counted):
    _, counts = counted
    assert 2 * counts.imagine / 6 < counts.lesson < 5 * counts.imagine


def plan(gpus: int = 1, **changes) -> Plan:
    world_model = {"pretrained": "none", "architecture": WIDE | SMALL, "batch": 8, **changes}
    settings = Settings.parse({"task": {"image_size": 64}, "world_model": world_model})
    return Plan(settings, Counts(**dict.fromkeys(Counts.__annotations__, 1)), gpus)


@pytest.mark.parametrize("recompute", [False, True])
def test_memory_of_many_blocks_is_told_from_two(recompute):
    saved = saved_in_step(ArchitectureSettings(**WIDE | SMALL), windows=8, side=8, recompute=recompute, dtype="float32")
    learning = plan(recompute=recompute).learning
    assert learning.weights == 4 * saved.weights
    assert learning.moments == 2 * learning.weights
    if not recompute:
        assert learning.passes == pytest.approx(saved.between, rel=0.02)


def test_several_gpus_share_what_they_can():
    one, four = plan().learning, plan(gpus=4).learning
    assert four.weights == one.weights / 4
    assert four.passes < one.passes / 2
    assert four.blocks > 0 == one.blocks


@pytest.mark.parametrize(("groups", "gpus", "dream"), [(64, 1, 1), (64, 8, 4), (80, 4, 2), (1024, 8, 8)])
def test_gpus_share_dreams_in_batches_of_64(groups, gpus, dream):
    settings = Settings.parse({"grpo": {"num_groups": groups, "group_size": 4}})
    made = Plan(settings, Counts(**dict.fromkeys(Counts.__annotations__, 1)), gpus)
    assert {work.gpus for work in made.work if work.name.startswith("GRPO")} == {dream}


def test_what_does_not_fit_has_a_knob_that_makes_it_fit():
    whole, spared = plan().learning.total, plan(recompute=True).learning.total
    chip = CHIPS["h100"]._replace(memory=(whole + spared) / 2 / 0.9)
    assert plan().knobs(chip) == ["--set world_model.recompute=true"]
    assert plan().knobs(chip._replace(memory=1.0)) == []


def test_what_is_dreamt_is_the_settings_own_sum():
    settings = Settings()
    made = Plan(settings, Counts(**dict.fromkeys(Counts.__annotations__, 1)), 1)
    grpo, horizon = settings.grpo, settings.task.horizon
    short = round(grpo.num_groups * grpo.kir_ratio) * grpo.group_size
    assert made.chunks == (made.rollouts - short) * horizon / CHUNK + short * grpo.keyframe_horizon / CHUNK
    dreamt = next(work for work in made.work if "dreamt and judged" in work.name)
    assert dreamt.times == made.chunks * (grpo.updates + settings.pace.rounds * settings.pace.updates)
