"""The one settings tree; every default is written here once.

Each branch is a word of the pipelines; `task` is what several of them share. Unknown keys are refused. The defaults are
those of the tabletop quick start, except where a comment says whose they are.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from wovr_core.architecture import Architecture, kind_of
from wovr_core.chunk import CHUNK
from wovr_core.compute import ComputeSettings as ComputeSettings
from wovr_core.franka_settings import FrankaSettings as FrankaSettings
from wovr_core.inputs_settings import InputsSettings as InputsSettings
from wovr_core.section import Section
from wovr_core.setting_errors import SettingsError, branch_of, explain, whole
from wovr_core.setting_types import (
    KEYFRAME_RULES,
    SPLIT_STATES,
    AliasName,
    Bounds,
    Confidence,
    Count,
    CountOrZero,
    Decibels,
    EpisodesOfARound,
    Few,
    Gain,
    LearningRate,
    ModelName,
    Requires,
    RuleName,
    Share,
    Temperature,
    Weight,
)
from wovr_core.shrinking import shrunk
from wovr_core.strict_yaml import YamlError, assign, read_tree
from wovr_core.task import TaskSettings as TaskSettings


class PolicySettings(Section):
    """The base policy: behaviour-cloned from scripted demonstrations."""

    kind: Literal["tiny_vla", "tiny_flow"] = "tiny_vla"  # decides by bins, or by flow matching: docs/extending.md
    demonstrations: EpisodesOfARound = 10
    action_noise: Share = 0.1  # added to the demonstrator's motions, in actions
    demonstration_stride: Count = CHUNK  # steps between two decisions to learn from: as many as were decided at once
    conv_kernel: Literal[1, 3, 5, 7] = 1  # of the second convolution: 1 sees things by their colour, 5 by their look
    after_success: CountOrZero | None = None  # steps to learn from once a demonstration has succeeded; None: all
    proprioception: bool = False  # reads the arm's own pose beside picture and words
    exploration: Literal["step", "chunk"] = "step"  # draws: each step anew, or a chunk alike without turns
    steps: Count = 1000
    learning_rate: LearningRate = 2e-3

    @model_validator(mode="after")
    def _explores_as_its_kind_can(self) -> Self:
        if self.kind == "tiny_flow" and self.exploration == "chunk":
            raise ValueError(
                "policy.exploration is chunk, but a policy of the kind tiny_flow draws noise for each step, and its "
                "network makes them go together: leave policy.exploration at step"
            )
        return self


class CollectSettings(Section):
    """Real episodes: the budget that everything else is made from."""

    episodes: EpisodesOfARound = 320  # to train world model and reward on
    held_out: EpisodesOfARound = 96  # never trained on: fidelity, calibration, further starts of dreams
    temperature: Temperature = 1.0
    shards: Few = 1  # pods that collect side by side; the policy's dice are another's in each


class WorldModelSettings(Section):
    """The video world model, and how it is fitted to real episodes."""

    pretrained: str = "tabletop-play"  # a backbone of the package, or a checkpoint's folder; "none" starts from noise
    codec_from: str = ""  # folder of Wan's video VAE; "": the folder vae in `pretrained`
    architecture: Architecture | None = None  # None: the backbone's own, from its architecture.json
    steps: Count = 20  # few: fitted longer, the shipped backbone forgets contact (docs/log/tabletop.md)
    batch: Count = 32
    learning_rate: LearningRate = 2e-5
    num_inference_steps: Few = 5
    lowest_noise: Share = 0.2  # lowest u drawn in training; a sampler of 5 steps visits none below
    memory_noise: Share = 0.2  # largest noise level on the memory latent during training; 0 switches noisy context off
    train_dtype: Literal["float32", "bfloat16"] = "float32"  # of the transformer's arithmetic; weights stay float32
    rollout_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # float32 on a CPU that has no AVX-512, here as below
    static_windows: Share = 0.05  # windows in which nothing moves; none in a refit
    contact_weight: Weight = 5.0  # how much likelier a window with a gripper event is drawn
    accumulate: Count = 1  # passes to a step: each process learns from so many equal parts of its windows in turn
    recompute: bool = False  # blocks anew in the backward pass: a third more arithmetic, a fraction of the activations
    average_on: Literal["device", "cpu", "none"] = "device"  # where the moving average of the weights lies
    lora: Annotated[int, Field(ge=0, le=4096)] = 0  # rank of adapters that learn in the blocks' place; 0: none
    validate_every: CountOrZero = 0  # steps; ends when held-out dreams get no better, with the best weights. 0: never
    checkpoint_every: Count = 100
    minimum_psnr_gain: Decibels = 0.0  # gate: dB above holding the last frame, at every depth

    @field_validator("architecture", mode="before")
    @classmethod
    def _of_the_kind_named(cls, branch: Any) -> Any:
        return branch_of(kind_of(branch), branch, "it has none") if isinstance(branch, dict) else branch

    @model_validator(mode="after")
    def _parts_are_equal(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(
                f"world_model.batch is {self.batch}, which world_model.accumulate {self.accumulate} does not divide: "
                f"use a batch of {self.batch - self.batch % self.accumulate + self.accumulate}"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _small_without_a_backbone(cls, branch: Any) -> Any:
        if not isinstance(branch, dict) or branch.get("pretrained") != "none" or branch.get("architecture") is not None:
            return branch
        return branch | {"architecture": {}}


class RewardSettings(Section):
    """The success classifier."""

    steps: Count = 3600  # on real frames; a PACE round goes on from the reward model before it
    imagined_steps: Count = 600  # further ones, on dreams of replayed real actions too
    batch: Annotated[int, Field(ge=8, le=65_536)] = 64  # half real frames, half dreams
    learning_rate: LearningRate = 3e-3
    target_precision: Share = 0.85  # of imagined successes, the share that is to be real: sets the threshold
    minimum_auc: Share = 0.7  # gate: chance that a dream of a real success scores above one of a failure; 0.5 is blind
    stride: Literal[1, 2, 4, 8] = 2  # every so many frames of a dream one is judged: the last of a chunk always
    hysteresis: Count = 2  # judged frames in a row that must show success
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the arithmetic of classifier and detector, on frames
    detector_steps: CountOrZero = 2400  # of the hallucination detector, made anew in every PACE round; 0: none
    keep_recall: Share = 0.6  # of right successes in dreams of the newest held-out episodes: the detector keeps so many


class KeyframesSettings(Section):
    """Where imagined rollouts begin."""

    rules: tuple[RuleName, ...] = KEYFRAME_RULES  # the moments that are marked: wovr_core/keyframes/rules.py
    per_episode: Count = 4
    min_gap: Count = 8  # steps between two keyframes; nearer ones show nearly the same scene
    min_steps_left: Count = 16


class ServeSettings(Section):
    """The world model on a Triton server, where there is one ($WOVR_TRITON_URL); without one it dreams in process."""

    instances: Few = 2  # processes that answer, on each GPU; on a CPU as many as cores
    keep: Few = 2  # versions: the newest, and those before it that may still be asked
    tolerance: Share = 0.0  # of the known dream, a share of the range: 0 asks for the same bits


class GrpoSettings(Section):
    """Reinforcement learning inside the world model."""

    cotrain_steps: CountOrZero = 0  # of cloning before the first update, on demonstrations and imagined frames of them
    updates: Count = 30
    num_groups: Count = 64  # informative groups of an update
    group_size: Annotated[int, Field(ge=2, le=1024)] = 4
    max_draws: Few = 1  # refill: at most this many times `num_groups` are drawn for an update
    informative: Bounds = (0.1, 0.9)  # success rates of a group that carry signal
    kir_ratio: Share = 0.125  # share of groups that start at keyframes; few help here (docs/log/tabletop.md)
    keyframe_horizon: Count = 32  # a dream from a keyframe is short
    temperature: Temperature = 1.0
    discount: Annotated[float, Field(ge=0.5, le=1)] = 1.0
    advantage: Literal["mean", "standardised"] = "mean"
    detector: bool = True  # a dream that looks hallucinated ends there, and is no success
    mirror: bool = True  # a success teaches its mirror images too, where the environment has any
    mask: bool = True  # nothing dreamt after the first success counts
    clip_ratio: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1000)]] = (0.2, 0.28)
    epochs: Few = 4
    minibatch: Count = 256  # chunks
    learning_rate: LearningRate = 6e-4
    warmup: Count = 4  # updates over which the learning rate rises to it
    kl: Annotated[float, Field(ge=0, le=1000)] = 0.0  # weight of the divergence from the base policy
    max_imagined_gain: Share = 0.5  # stop when imagined success has risen by more: the next thing is to look at reality
    patience: Annotated[int, Field(ge=8, le=1000)] | None = None  # updates without a rise of it, after which to stop
    snapshot_every: Count = 8  # updates between two snapshots, for the curve of real success drawn afterwards
    base_success: Bounds = (0.03, 0.97)  # outside, there is nothing to learn from

    @model_validator(mode="after")
    def _some_group_is_informative(self) -> Self:
        low, high = self.informative
        between = [success / self.group_size for success in range(1, self.group_size)]
        if not any(low <= rate <= high for rate in between):
            near = min(between, key=lambda rate: max(low - rate, rate - high))
            raise ValueError(
                f"grpo.informative is [{low:g}, {high:g}], but no group of {self.group_size} can have such a success "
                f"rate and members that disagree (the nearest is {near:.3g}): widen it, or raise grpo.group_size"
            )
        return self


class PaceSettings(Section):
    """Refit the world model on what the evolved policy does."""

    rounds: CountOrZero = 2  # at most: learning ends before, with the first look that says it may
    enough: Share = 0.97  # real success that may end it ...
    plateau: Gain | None = None  # ... and so may a rise since the last decision that is smaller than this
    drift: Decibels | None = None  # refit only when new held-out episodes are dreamt worse than older ones by more
    episodes: EpisodesOfARound = 160
    held_out: EpisodesOfARound = 48
    steps: Count = 40
    new_share: Share = 0.5  # of the windows of a refit that come from the newest episodes
    updates: Count = 16

    def collection(self, first: CollectSettings) -> CollectSettings:
        """How a round collects: as the first collection did, but as many episodes as the round has."""
        return first.model_copy(update={"episodes": self.episodes, "held_out": self.held_out})


class RetrainSettings(Section):
    """When a champion in service learns again: its world has changed, or it does worse there than it did."""

    drift: Decibels = 1.0  # dB: its episodes are dreamt worse than those its world model was fitted beside, by more
    confidence: Confidence = 0.95  # with which its real success is lower than its evaluation said


class EvaluateSettings(Section):
    """Real success on initial states that nothing else ever sees."""

    episodes: Count = 3000
    first: CountOrZero = 100_000  # initial state of the split to begin at; development looked at earlier ones
    confidence: Confidence = 0.95
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0  # 0: always the likeliest action
    curve_episodes: CountOrZero = 300  # a snapshot, for the report's curve only; nothing is chosen by it

    @model_validator(mode="after")
    def _within_the_split(self) -> Self:
        if self.first + self.episodes > SPLIT_STATES:
            raise ValueError(
                f"evaluate.first {self.first} + evaluate.episodes {self.episodes} = {self.first + self.episodes}, but "
                f"the evaluation has {SPLIT_STATES} initial states: lower one of the two"
            )
        return self


class PromoteSettings(Section):
    """What happens to a policy that earned it."""

    model: ModelName = "tabletop-policy"
    alias: AliasName = "champion"
    minimum_gain: Share = 0.0  # the lower bound of the paired interval must exceed it
    requires: Requires = ("simulation",)  # who must say that it is better; the robot is asked last


class Settings(Section):
    """Everything a run depends on."""

    task: TaskSettings = TaskSettings()
    compute: ComputeSettings = ComputeSettings()
    inputs: InputsSettings = InputsSettings()
    policy: PolicySettings = PolicySettings()
    collect: CollectSettings = CollectSettings()
    world_model: WorldModelSettings = WorldModelSettings()
    reward: RewardSettings = RewardSettings()
    serve: ServeSettings = ServeSettings()
    keyframes: KeyframesSettings = KeyframesSettings()
    grpo: GrpoSettings = GrpoSettings()
    pace: PaceSettings = PaceSettings()
    retrain: RetrainSettings = RetrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    franka: FrankaSettings = FrankaSettings()
    promote: PromoteSettings = PromoteSettings()

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.pace.rounds > 4:
            raise ValueError(
                f"pace.rounds is {self.pace.rounds}, but a seed's initial states are shared out for a first collection "
                f"and 4 rounds: use 4 or fewer; `wovr run --pipeline retrain` goes on from there"
            )
        if self.collect.shards > (few := min(self.collect.episodes, self.collect.held_out)):
            raise ValueError(
                f"collect.shards is {self.collect.shards}, but of collect.episodes {self.collect.episodes} and "
                f"collect.held_out {self.collect.held_out} each shard takes one at least: use {few} shards or fewer"
            )
        if self.world_model.architecture is not None:
            self.check_architecture(self.world_model.architecture)
        judged = self.task.horizon // self.reward.stride
        if self.reward.hysteresis > judged:
            raise ValueError(
                f"reward.hysteresis is {self.reward.hysteresis}, but of a dream of task.horizon {self.task.horizon} "
                f"every {self.reward.stride}-th frame is judged, {judged} in all: use {judged} or fewer"
            )
        if self.grpo.kir_ratio > 0:
            self._keyframes_can_be()
        if self.keyframes.min_steps_left < CHUNK:
            raise ValueError(
                f"keyframes.min_steps_left is {self.keyframes.min_steps_left}, but a dream is at least one chunk of "
                f"{CHUNK} actions: raise it to {CHUNK} or more"
            )
        if self.grpo.detector and not self.reward.detector_steps:
            raise ValueError(
                "grpo.detector is on, but reward.detector_steps is 0, so there is no detector to ask: "
                "set grpo.detector to false, or reward.detector_steps above 0"
            )
        whole("grpo.keyframe_horizon", self.grpo.keyframe_horizon, CHUNK, f"the {CHUNK} actions of a chunk")
        if (horizon := self.grpo.keyframe_horizon) > self.task.horizon:
            raise ValueError(f"grpo.keyframe_horizon is {horizon}, longer than task.horizon {self.task.horizon}")
        return self

    def check_architecture(self, architecture: Architecture) -> None:
        """Raise `SettingsError` where a world model of this architecture could not be what these settings ask for."""
        hand_in_picture = self.task.embodiment.hand_in_picture and len(self.task.cameras) == 1
        architecture.check_task(self.task.image_size, hand_in_picture)
        if architecture.stride % self.task.picture_stride:
            raise SettingsError(
                f"task.picture_stride is {self.task.picture_stride}, but this world model dreams one frame in "
                f"{architecture.stride}, and learns from as many pictures: set it to {architecture.stride} or less"
            )
        if self.reward.stride % architecture.stride:
            raise SettingsError(
                f"reward.stride is {self.reward.stride}, but of {architecture.stride} frames this world model dreams "
                f"the last one: set it to {architecture.stride}"
            )

    def _keyframes_can_be(self) -> None:
        """Some dreams are to begin at keyframes: there must be some, and such a dream must be able to succeed."""
        if not self.keyframes.rules:
            raise ValueError(
                f"grpo.kir_ratio is {self.grpo.kir_ratio:g}, but keyframes.rules is empty, so no rule finds keyframes "
                f"to begin at: name some of {', '.join(KEYFRAME_RULES)}, or set grpo.kir_ratio to 0"
            )
        most = self.task.horizon - CHUNK  # the first chunk of an episode is no keyframe, but its start
        if self.keyframes.min_steps_left > most:
            raise ValueError(
                f"keyframes.min_steps_left is {self.keyframes.min_steps_left}, but a keyframe has at most task.horizon "
                f"{self.task.horizon} - a chunk of {CHUNK} = {most} steps left: use {most} or fewer, or set "
                f"grpo.kir_ratio to 0"
            )
        judged = self.grpo.keyframe_horizon // self.reward.stride
        if self.reward.hysteresis > judged:
            raise ValueError(
                f"reward.hysteresis is {self.reward.hysteresis}, but of a dream of grpo.keyframe_horizon "
                f"{self.grpo.keyframe_horizon} every {self.reward.stride}-th frame is judged, {judged} in all: use "
                f"{judged} or fewer, or set grpo.kir_ratio to 0"
            )

    def parameters(self) -> dict[str, dict[str, Any]]:
        """The branches as a pipeline takes them. Kubeflow knows no null: what is off is left out, and stays off."""
        return self.model_dump(mode="json", exclude_none=True)

    @classmethod
    def of_branches(cls, text: str, *, source: str) -> Self:
        """Some branches, as JSON, of settings that were validated whole elsewhere; for a step that reads no others."""
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"{source} is not JSON: {error}. Write branches of settings as an object") from error
        if not isinstance(tree, dict):
            raise SettingsError(f"{source} holds a {type(tree).__name__}. Write branches of settings as an object")
        if unknown := sorted(tree.keys() - cls.model_fields.keys()):
            raise SettingsError(f"{source}: {unknown[0]} is no branch. Known are {', '.join(cls.model_fields)}")
        whole, branches, complaints = cls(), {}, []
        for name, branch in tree.items():
            try:
                branches[name] = type(getattr(whole, name)).model_validate(branch)
            except ValidationError as error:
                complaints.append(explain(error, f"{source}: {name}", type(getattr(whole, name))))
        if complaints:
            raise SettingsError("\n".join(complaints))
        return whole.model_copy(update=branches)

    @classmethod
    def load(cls, path: Path, values: Sequence[str] = (), *, shipped: Path | None = None, shrink: bool = False) -> Self:
        """Read a YAML file; every complaint names the key, what was given and what is allowed.

        The file may be `like` one beside it, or one that is `shipped`. Each of the `values`, such as `task.seed=1`,
        takes the place of what the file says; with `shrink`, of what that is when it is small (shrinking.py).
        """
        try:
            tree = read_tree(path, shipped)
        except OSError as error:
            raise SettingsError(f"cannot read settings {path}: {error.strerror}") from error
        except YamlError as error:
            raise SettingsError(str(error)) from error
        tree = {} if tree is None else tree  # an empty file
        if not isinstance(tree, dict):
            raise SettingsError(f"{path} holds a {type(tree).__name__}, not a tree of settings")
        if shrink:
            tree = shrunk(cls.parse(tree, source=str(path)).model_dump(mode="json"))
        try:
            tree = assign(tree, values)
        except YamlError as error:
            raise SettingsError(f"--set: {error}") from error
        return cls.parse(tree, source=f"{path} with --set" if values else str(path))

    @classmethod
    def parse(cls, tree: dict[str, Any], *, source: str = "settings") -> Self:
        """Validate a tree; raises `SettingsError` in our words."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise SettingsError(explain(error, source, cls)) from error
