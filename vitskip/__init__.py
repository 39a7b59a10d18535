"""ViTSkip: Vision Transformers made faster by agents that skip layers, image by image.

Importing it registers `ViTSkip-v0`, `ViTSkip-Plan-v0` and `mo-ViTSkip-v0` with Gymnasium and imports neither torch nor
Stable-Baselines3.
"""

import importlib.util

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

if importlib.util.find_spec("gymnasium"):  # a deployed network does without it
    import gymnasium

    gymnasium.register(
        "ViTSkip-v0",
        entry_point="vitskip.envs.single:SkipEnv",
        vector_entry_point="vitskip.envs.vector:SkipVectorEnv",
    )
    gymnasium.register("ViTSkip-Plan-v0", entry_point="vitskip.envs.plan:make_plan_env")
    gymnasium.register(
        "mo-ViTSkip-v0",
        entry_point="vitskip.envs.multi_objective:MultiObjectiveSkipEnv",
        disable_env_checker=True,  # it requires a scalar reward
    )
