"""keyframes: mark the moments of the collected episodes from which dreaming is worthwhile."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wovr_core.artifacts import Kind, Manifest, save_table, writing
from wovr_core.keyframes.mine import mine
from wovr_core.settings import KeyframesSettings, TaskSettings
from wovr_core.store.episodes import named, open_episodes
from wovr_core.store.rewards import open_reward


def mine_keyframes(
    cfg: KeyframesSettings, task: TaskSettings, *, episodes: Sequence[Path], reward: Path, out: Path
) -> Manifest:
    """References (episode, step, rule, score) into the newest collection: the failures of the policy as it is now."""
    newest, reward_model = open_episodes(episodes[-1:], task).episodes, open_reward(reward, task)
    before = sum(len(open_episodes([path], task).episodes) for path in episodes[:-1])
    made_from = named(episodes) | {"reward": reward}
    settings = {"keyframes": cfg.model_dump(), "task": task.model_dump()}
    with writing(out, Kind.KEYFRAMES, settings=settings, made_from=made_from) as draft:
        chosen = mine(newest, reward_model, cfg, task)
        rows = [keyframe.model_copy(update={"episode": keyframe.episode + before}) for keyframe in chosen]
        save_table(draft.folder, "keyframes", [row.model_dump() for row in rows])
        by_rule = Counter(keyframe.rule for keyframe in chosen)
        draft.summary |= {"keyframes": len(rows), "by_rule": dict(by_rule), "from_episodes": len(newest)}
    return draft.manifest
