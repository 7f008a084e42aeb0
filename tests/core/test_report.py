"""The report: complete, self-contained, small, honest about a hold, and safe to open."""

import io
import json
import re
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch

from wovr_core.artifacts import ArtifactError, Kind, digest_at, save_json, writing
from wovr_core.evaluation.contact import Contact
from wovr_core.evaluation.fidelity import Depth
from wovr_core.evaluation.replayed import Replayed
from wovr_core.evaluation.success import success_rate
from wovr_core.evaluation.verdict import Comparison, Verdict, compare
from wovr_core.grpo.history import UpdateRecord
from wovr_core.imagination.replay import Replay
from wovr_core.keyframes.rules import RULES
from wovr_core.pace.decision import PaceDecision
from wovr_core.report.clips import side_by_side, thumbnail
from wovr_core.report.page import LIMIT, fidelity, render
from wovr_core.report.story import Clip, Phase, Snapshot, Story, Thumbnail
from wovr_core.reward.calibrate import Agreement
from wovr_core.settings import TaskSettings
from wovr_core.steps.report import write_report

NASTY = '<script>alert("&")</script>'


def compared(*, gained: int, lost: int, n: int = 400, base: int = 140) -> Comparison:
    old, new = (torch.zeros(n, dtype=torch.bool) for _ in range(2))
    old[:base] = True
    new[lost : base + gained] = True
    return compare(new, old)


def a_phase(*, updates: int, round: int = 0, notes: tuple[str, ...] = ()) -> Phase:
    depths = range(8, 49, 8)
    return Phase(
        round=round,
        collected=success_rate(60, 200),
        held_out=50,
        fidelity=[Depth(d, 30 - d / 10, 24 - d / 10, 23 - d / 10) for d in depths],
        gate="PSNR 25 dB against 20 dB for holding the last frame, at depth 48, where the difference is smallest",
        outcomes=Agreement(18, 3, 4, 25),
        threshold=0.6,
        updates=[UpdateRecord(imagined_success=0.3 + u / 100, group_rates=(0, 0.25, 0.5, 1)) for u in range(updates)],
        informative=(0.1, 0.9),
        group_size=8,
        keyframes={"gripper_event": 40},
        imagined_frames=20_000,
        notes=notes,
    )


def a_story(comparison: Comparison, *, promote: bool, exploited: str = "") -> Story:
    frames = torch.randint(0, 255, (9, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    won = torch.arange(9) > 5
    clip = Clip(NASTY, side_by_side(frames, frames.flip(-1), won, won))
    return Story(
        verdict=Verdict(promote, exploited or "tried", bool(exploited)),
        minimum_gain=0.0,
        comparison=comparison,
        by_task=[(words, comparison.baseline, comparison.candidate) for words in (NASTY, "another")],
        curve=[Snapshot(phase=k, update=u, rate=success_rate(100 + 5 * u, 300)) for k, u in ((0, 0), (0, 4), (1, 0))],
        phases=[a_phase(updates=8), a_phase(updates=4, round=1, notes=("drift of 2 dB",))],
        decisions=[a_decision(70)],
        contact=[Contact(pixels=p, real=float(p < 4), imagined=1 - p / 8, agreement=0.8, n=16) for p in range(8)],
        agreement=[(8, Agreement(0, 0, 1, 19)), (16, Agreement(6, 1, 2, 11))],
        clips=[("success, dreamt as success", 6, [clip]), ("failure, dreamt as success", 0, [])],
        thumbnails=[Thumbnail(rule=rule, instruction=NASTY, step=8, picture=thumbnail(frames[0])) for rule in RULES],
        horizon=48,
        demonstrations=(38, 40),
        evaluation_episodes=2300,
        play={"play_episodes": 4000, "seconds": 3600},
        settings={"task": {"instruction": NASTY}},
        origin={"verdict": "0" * 64},
        code_version="0.1.0+abc",
    )


def a_decision(successes: int, *, rolled_back: bool = False) -> PaceDecision:
    return PaceDecision(
        imagined_success=(0.3, 0.37),
        successes=successes,
        n=200,
        held_out=48,
        rolled_back=rolled_back,
        reason="rises",
        stands=(successes, 200),
    )


@pytest.fixture(scope="module")
def page() -> str:
    return render(a_story(compared(gained=80, lost=20), promote=True))


def test_the_page_needs_nothing_from_elsewhere(page: str):
    assert not re.search(r"(?:https?:)?//[a-z0-9]", re.sub(r"data:[a-z/0-9]+;base64,[A-Za-z0-9+/=]+", "", page))
    assert not re.search(r"<(script|link|iframe|object|embed|form|base)\b", page)
    sources = re.findall(r'(?:src|href|poster)="([^"]{0,20})', page)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "@import" not in page and "url(" not in page


def test_the_page_is_small_enough_for_everyone_who_keeps_it(page: str):
    assert len(page.encode()) < LIMIT <= 5_000_000


def test_a_round_whose_dreams_were_refused_is_told_too():
    """It has no updates: of the policy that went on as it was, the page says why."""
    story = a_story(compared(gained=80, lost=20), promote=True)
    refused = a_phase(updates=0, round=1, notes=("nothing was learnt: area under the curve 0.62",))
    page = render(replace(story, phases=[story.phases[0], refused], curve=story.curve[:2]))
    assert "0 updates of the policy" in page and "Nothing was learnt: area under the curve 0.62." in page


def test_an_imported_world_model_that_nobody_measured_is_told():
    assert "Not measured: the world model was imported" in fidelity(replace(a_phase(updates=1), fidelity=[]))


def test_what_a_policy_was_told_is_never_markup(page: str):
    assert NASTY not in page
    assert page.count("&lt;script&gt;") >= 3  # the task, the clip, the keyframes


def test_the_page_tells_the_whole_story(page: str):
    for part in (
        "Promote",
        "confidence",
        "imagined",
        "PACE round 1",
        "Rises.",
        "Drift of 2 dB.",
        "McNemar",
        "holding the first picture",
        "Gripper event: 40",
        "taught nothing",
        "demonstrations",
        "40,000",
        "4,000",
        "2,300",
    ):
        assert part in page, part
    assert page.count("<svg viewBox") > 8 and "nan" not in " ".join(
        re.findall(r'(?:points|d|x|y|cx|cy)="([^"]*)"', page)
    )


@pytest.mark.parametrize(
    ("gained", "lost", "said"), [(20, 80, "the new policy is worse"), (22, 20, "cannot tell the two policies apart")]
)
def test_a_hold_says_why(gained: int, lost: int, said: str):
    page = render(a_story(compared(gained=gained, lost=lost), promote=False))
    assert "<h1>Hold" in page and said in page and "Promote:" not in page


@pytest.mark.parametrize(
    ("promote", "said"), [(True, "has beaten too"), (False, "not surely better than the champion")]
)
def test_the_champion_stands_beside_both(promote, said):
    story = a_story(compared(gained=80, lost=0), promote=promote)
    page = render(replace(story, champion=compared(gained=9, lost=5, base=200)))
    assert "The champion solved 200 of 400" in page and "over the champion" in page and said in page
    assert "champion" not in render(story).lower()


def test_a_hold_of_a_policy_that_exploits_its_dreams_says_so_in_the_verdicts_sentence():
    said = "In dreams the policy went from 31 % to 88 %, in reality from 35 % to 20 %: it learnt to exploit the dream."
    page = render(a_story(compared(gained=20, lost=80), promote=False, exploited=said))
    assert "<h1>Hold: the new policy exploits the world model.</h1>" in page
    assert said in page


def test_dream_and_reality_stand_side_by_side_round_by_round():
    """What a phase leads to is tried when the next one collects, and at last by the evaluation."""
    story = a_story(compared(gained=80, lost=20), promote=True)
    first, second = story.rounds()
    assert (first.round, second.round) == (0, 1)
    assert first.imagined == (0.3, pytest.approx(0.37))
    assert first.real == (story.phases[0].collected, story.tried[0])
    assert second.real == (story.tried[0], story.comparison.candidate)
    assert second.gap == (pytest.approx(0.3 - 0.35), pytest.approx(0.33 - 0.5))
    page = " ".join(render(story).replace("\N{NO-BREAK SPACE}", " ").split())
    assert (
        '<th>PACE round 1</th><td class="n">30 % → 33 %</td><td class="n">35 % (n = 200) → 50 % (n = 400)</td>'
        '<td class="n">-5.0 → -17.0</td>'
    ) in page


def test_every_look_at_reality_is_told_also_those_of_rounds_that_are_not_shown():
    """A policy that was rolled back was not the one that the next learning began with."""
    whole = a_story(compared(gained=80, lost=20), promote=True)
    decisions = [a_decision(70), a_decision(20, rolled_back=True), a_decision(90)]
    story = replace(whole, phases=[whole.phases[0], replace(whole.phases[1], round=3)], decisions=decisions)
    assert [told.round for told in story.rounds()] == [0, 1, 2, 3]
    assert [told.real[1] for told in story.rounds()] == [*story.tried, story.comparison.candidate]
    assert story.rounds()[2].real[0] is None and story.rounds()[2].gap[0] is None
    page = render(story)
    assert "? →" in page and "Of the 3 PACE rounds the last is shown" in page
    assert "<b>838</b>" in page, "200 collected, three looks of 200, 38 demonstrations"


def test_a_look_that_says_enough_ends_the_story():
    whole = a_story(compared(gained=80, lost=20), promote=True)
    story = replace(whole, phases=whole.phases[:1], curve=whole.curve[:2], decisions=[a_decision(196)])
    (only,) = story.rounds()
    assert only.imagined == story.decisions[0].imagined_success and only.real == (
        story.phases[0].collected,
        story.tried[0],
    )
    assert "PACE round" not in render(story)


def test_better_but_not_by_enough_is_told_with_the_number():
    story = replace(a_story(compared(gained=40, lost=10), promote=False), minimum_gain=0.2)
    assert "better, but not by the +20.0 points asked for" in render(story)


def test_a_run_cut_short_still_has_a_report():
    """No snapshot, no imagined success from starts, no keyframes, nothing to show."""
    phase = replace(a_phase(updates=1), updates=[UpdateRecord(imagined_success=None, group_rates=())], keyframes={})
    whole = a_story(compared(gained=0, lost=0, n=20, base=0), promote=False)
    story = replace(whole, phases=[phase], curve=[], clips=[], thumbnails=[], contact=[], play={})
    assert "cannot tell" in render(story)


def test_a_report_is_refused_when_its_inputs_are_not_of_one_run(tmp_path: Path):
    for name in ("evaluation", "other"):
        with writing(tmp_path / name, Kind.EVALUATION, settings={"name": name}):
            pass
        with writing(
            tmp_path / f"verdict of {name}", Kind.VERDICT, settings={}, made_from={"evaluation": tmp_path / name}
        ):
            pass
    for name in ("mine", "another's"):
        with writing(tmp_path / name, Kind.WORLD_MODEL, settings={"name": name}):
            pass
    digest = digest_at(tmp_path / "mine")
    with writing(tmp_path / "policy", Kind.POLICY, settings={}) as draft:
        save_json(
            draft.folder,
            "learning",
            a_learning(made_from=dict.fromkeys(("world_model", "reward", "episodes_0"), digest)),
        )
        (draft.folder / "history.jsonl").write_text(json.dumps({"imagined_success": 0.5, "group_rates": []}) + "\n")
    with writing(tmp_path / "untaught", Kind.POLICY, settings={}):
        pass

    def report(**ports: str) -> None:
        names = {"evaluation": "evaluation", "verdict": "verdict of evaluation", "policy": "policy"}
        names |= dict.fromkeys(("world_model", "reward", "episodes", "demonstrations"), "mine") | ports
        write_report(TaskSettings(), out=tmp_path / "report", **{port: tmp_path / name for port, name in names.items()})

    with pytest.raises(ArtifactError, match="is about another evaluation"):
        report(verdict="verdict of other")
    with pytest.raises(ArtifactError, match=r"has not learnt with the world_model at .*: give the one of its run"):
        report(world_model="another's")
    with pytest.raises(ArtifactError, match="untaught has learnt in no dream: give a policy that grpo wrote"):
        report(policy="untaught")
    assert not (tmp_path / "report").exists()


def a_learning(*, made_from: dict[str, str]) -> dict:
    depth = {"depth": 8, "psnr": 30.0, "copy_last_frame": 24.0, "shuffled_actions": None}
    return {
        "collected": {"episodes": 20, "successes": 5},
        "held_out": 8,
        "world_model": {"trustworthy": True, "reason": "good", "fidelity": [depth]},
        "reward": {"threshold": 0.5, "imagined": vars(Agreement(1, 2, 3, 4))},
        "keyframes": {"by_rule": {}},
        "thumbnails": [],
        "stopped": "",
        "imagined_frames": 8,
        "settings": {},
        "made_from": made_from,
    }


def test_a_clip_holds_every_frame_and_a_white_border_once_it_is_won():
    frames = torch.full((10, 3, 48, 48), 30, dtype=torch.uint8)
    won = torch.arange(10) >= 5
    video = side_by_side(frames, frames, won, torch.zeros(10, dtype=torch.bool))
    with av.open(io.BytesIO(b64decode(video.partition(",")[2]))) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        pictures = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert len(pictures) >= 10
    left, right = pictures[0].shape[1] // 4, pictures[0].shape[1] * 3 // 4
    assert pictures[4][3, left] < 150 < pictures[5][3, left] and pictures[9][3, right] < 150
    assert all(side % 2 == 0 for side in pictures[0].shape)


def test_examples_are_of_every_outcome_and_agreement_counts_them():
    really = torch.tensor([[0, 1], [0, 0], [0, 0], [0, 1]], dtype=torch.bool).repeat_interleave(8, 1)
    seemingly = torch.tensor([[0, 1], [0, 0], [1, 1], [0, 0]], dtype=torch.bool).repeat_interleave(8, 1)
    frames = torch.zeros(4, 16, 3, 8, 8, dtype=torch.uint8)
    replay = Replay(
        instructions=("a", "b", "c", "d"),
        imagined=frames,
        real=frames,
        success=really,
        first=frames[:, 0],
        pose=torch.zeros(4, 2, 4, 2),
    )
    shown = Replayed(replay=replay, really=really, seemingly=seemingly)
    assert [(count, rows) for _, count, rows in shown.examples()] == [(1, [0]), (1, [1]), (1, [2]), (1, [3])]
    assert shown.by_depth() == [(8, Agreement(0, 1, 0, 3)), (16, Agreement(1, 1, 1, 1))]
