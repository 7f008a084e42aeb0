"""What a whole run of `posttrain` costs by its settings: work, hours on a chip, memory, episodes, bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import NamedTuple

from wovr_core.architecture import ArchitectureSettings
from wovr_core.chunk import CHUNK
from wovr_core.imagination.rollout import BATCH
from wovr_core.planning.counting import Counts
from wovr_core.planning.memory import Saved, saved_in_step
from wovr_core.settings import Settings, WorldModelSettings
from wovr_core.store.world_models import architecture_of

GB = 1e9
SUSTAINED = 0.4  # of a chip's peak: an assumption, until a GPU has been measured (benchmarks/gpu)
SPARE = 0.1  # of a chip's memory: its allocator, collectives, and CUDA itself


class Chip(NamedTuple):
    """From its maker's data sheet: dense bfloat16 operations a second, without sparsity, and bytes."""

    peak: float
    memory: float


CHIPS = {
    "a100": Chip(312e12, 80 * GB),
    "h100": Chip(989e12, 80 * GB),
    "h200": Chip(989e12, 141 * GB),
    "l40s": Chip(362e12, 48 * GB),
    "rtx4090": Chip(165e12, 24 * GB),
}


class Effort(NamedTuple):
    """A kind of work in a run: how often, and operations of one."""

    name: str
    times: float
    each: float
    gpus: int  # that it can use

    def hours(self, chip: Chip) -> float:
        return self.times * self.each / (self.gpus * chip.peak * SUSTAINED) / 3600


class Memory(NamedTuple):
    """Bytes of a process while a world model learns; see docs/results/training-scale.md."""

    weights: float
    moments: float
    average: float
    gradients: float
    blocks: float  # two, gathered in bfloat16
    passes: float  # what autograd keeps between forward and backward
    codec: float

    @property
    def total(self) -> float:
        return sum(self)


@dataclass(frozen=True)
class Plan:
    """What settings cost with so many GPUs for what learns long, world model and policy; all else runs on one."""

    settings: Settings
    counts: Counts
    gpus: int

    # ------------------------------------------------------------------------------------------------ work

    @property
    def rollouts(self) -> int:
        """Of an update."""
        return self.settings.grpo.num_groups * self.settings.grpo.group_size

    @property
    def dreaming_gpus(self) -> int:
        """Those that GRPO can use: they share an update's dreams in batches, and each learns from its own."""
        batches = ceil(self.rollouts / BATCH)
        return batches // ceil(batches / self.gpus)

    @property
    def chunks(self) -> float:
        """Of an update, where no dream ends early; those from keyframes are short."""
        cfg, task = self.settings.grpo, self.settings.task
        mean = (1 - cfg.kir_ratio) * task.horizon + cfg.kir_ratio * cfg.keyframe_horizon
        return self.rollouts * mean / CHUNK

    @property
    def updates(self) -> int:
        return self.settings.grpo.updates + self.settings.pace.rounds * self.settings.pace.updates

    @property
    def chunk(self) -> float:
        """Operations of a chunk of a dream: decided, dreamt, decoded and judged."""
        counts = self.counts
        return counts.decide + counts.imagine + counts.look + counts.judge

    @property
    def work(self) -> list[Effort]:
        """Of a whole run; what the simulator and the tiny rest compute is left out."""
        cfg, pace, counts = self.settings, self.settings.pace, self.counts
        model, rounds, gpus = cfg.world_model, 1 + pace.rounds, self.dreaming_gpus
        lessons = model.batch * (model.steps + pace.rounds * pace.steps)
        frames = cfg.reward.batch * (cfg.reward.steps + cfg.reward.imagined_steps) * rounds
        replayed = (cfg.collect.episodes + pace.rounds * pace.episodes) * cfg.task.horizon / CHUNK
        return [
            Effort("world model: windows", lessons, counts.lesson, self.gpus),
            Effort("reward model: frames", frames, counts.frame_lesson, 1),
            Effort("reward model: chunks of real episodes, dreamt", replayed, counts.imagine + counts.look, 1),
            Effort("GRPO: starts, encoded", self.updates * self.rollouts, counts.begin, gpus),
            Effort("GRPO: chunks, dreamt and judged", self.updates * self.chunks, self.chunk, gpus),
            Effort("GRPO: chunks, learnt from", self.updates * self.chunks * cfg.grpo.epochs, 3 * counts.decide, gpus),
        ]

    def frames_per_second(self, chip: Chip) -> float:
        """Imagined ones, of one GPU."""
        return CHUNK * chip.peak * SUSTAINED / self.chunk

    # ------------------------------------------------------------------------------------------------ memory

    @cached_property
    def architecture(self) -> ArchitectureSettings | None:
        """Of the diffusion transformer; None for a next-frame network, which is small."""
        found = architecture_of(self.settings.world_model)
        return found if isinstance(found, ArchitectureSettings) else None

    @property
    def learning(self) -> Memory:
        """Of a GPU while the world model learns."""
        return self._learning(self.settings.world_model, self.gpus)

    def _learning(self, cfg: WorldModelSettings, gpus: int) -> Memory:
        architecture = self.architecture
        assert architecture is not None
        dtype = "float32" if cfg.train_dtype == "float32" else "bfloat16" if gpus > 1 else "autocast"
        windows = max(1, cfg.batch // cfg.accumulate // gpus)
        side = self.settings.task.image_size // (16 if architecture.codec == "wan" else 8)

        def saved(recompute: bool, layers: int) -> Saved:
            shape = architecture.model_copy(update={"layers": layers})
            return saved_in_step(shape, windows=windows, side=side, recompute=recompute, rank=cfg.lora, dtype=dtype)

        # blocks are alike, so two stacks tell of any: one that has one block more keeps so much more
        layers, (one, two) = architecture.layers, (saved(cfg.recompute, n) for n in (1, 2))
        grown = [a + (layers - 1) * (b - a) for a, b in zip(one, two, strict=True)]
        total = Saved(grown[0], grown[1], grown[2], one.block)
        again = saved(False, 2).between - saved(False, 1).between if cfg.recompute else 0
        learns, several = 4 * total.learning / gpus, gpus > 1
        return Memory(
            weights=4 * total.weights / gpus,
            moments=2 * learns,
            average=learns * (cfg.average_on == "device"),
            gradients=learns + (4 * total.block * total.learning / total.weights if several else 0),
            blocks=2 * 2 * total.block if several else 0,
            passes=total.between + again,
            codec=4 * self.counts.codec,
        )

    @property
    def dreaming(self) -> float:
        """Bytes of a GPU while it dreams `BATCH` at once, what the codec needs while it decodes left out."""
        cfg = self.settings.world_model
        each = 2 if cfg.rollout_dtype == "bfloat16" else 4
        models = each * self.counts.world_model + 4 * (self.counts.codec + self.counts.policy + self.counts.reward)
        if self.architecture is None or self.architecture.context_sees_future:
            return models
        a = self.architecture
        side = self.settings.task.image_size // (16 if a.codec == "wan" else 8) // a.patch
        cached = 2 * a.layers * a.heads * a.head_dim * (2 * side**2)  # keys and values of two latents' tokens
        return models + BATCH * each * cached

    def knobs(self, chip: Chip) -> Sequence[str]:
        """What makes the training fit a chip that it does not fit, the cheapest first; empty where none does."""
        cfg, room, turned = self.settings.world_model, (1 - SPARE) * chip.memory, []
        changes = {"recompute": True, "average_on": "cpu", "lora": 64}
        for name, value in changes.items():
            if getattr(cfg, name) in (value, "none"):
                continue
            cfg = cfg.model_copy(update={name: value})
            turned.append(f"--set world_model.{name}={str(value).lower()}")
            if self._learning(cfg, self.gpus).total <= room:
                return turned
        return []

    # ------------------------------------------------------------------------------------------------ data

    @property
    def episodes(self) -> int:
        """Real ones to learn from; those of the evaluation are told apart."""
        first, pace = self.settings.collect, self.settings.pace
        return first.episodes + first.held_out + pace.rounds * (pace.episodes + pace.held_out)

    @property
    def disk(self) -> float:
        """Bytes of their pictures as they are; PNG makes them smaller, how much so depends on what they show."""
        task = self.settings.task
        height, width = task.frame[1:]
        return self.episodes * (task.horizon // task.picture_stride + 1) * 3 * height * width

    @property
    def policys_frames(self) -> float:
        """Bytes of memory for what the policy saw in the dreams of an update."""
        _, height, width = self.settings.task.frame
        return self.chunks * 3 * height * width
