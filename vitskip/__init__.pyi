from .agents import DynamicViT as DynamicViT
from .backbone import register_backbone as register_backbone
from .backbone import register_dataset as register_dataset
from .envs import make_sb3_env as make_sb3_env
