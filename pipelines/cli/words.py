"""The words of the story that can be run alone, and the function behind each: MODULE:FUNCTION."""

STEPS = {
    "policy": "wovr_core.steps.policy:clone_base_policy",
    "collect": "wovr_core.steps.collect:collect_episodes",
    "world_model": "wovr_core.steps.world_model:train_world_model",
    "reward": "wovr_core.steps.reward:train_reward",
    "cotrain": "wovr_core.steps.cotrain:cotrain_policy",
    "serve": "components.platform.endpoint:serve_dreams",
    "keyframes": "wovr_core.steps.keyframes:mine_keyframes",
    "grpo": "components.platform.endpoint:improve_policy",
    "pace": "wovr_core.steps.pace:refit_world_model",
    "choose": "wovr_core.steps.pace:choose_policy",
    "retrain": "wovr_core.steps.retrain:look_for_change",
    "evaluate": "wovr_core.steps.evaluate:evaluate_policies",
    "judge": "wovr_core.steps.evaluate:judge",
    "franka": "components.platform.robot:try_on_robot",
    "report": "wovr_core.steps.report:write_report",
    "promote": "components.platform.registry:promote_policy",
}
