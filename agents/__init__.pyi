from .algorithms import make_agent as make_agent
from .dynamic_vit import DynamicViT as DynamicViT
from .extraction import extract_actor as extract_actor
from .policy import Policy as Policy
from .static_masks import enumerate_static_masks as enumerate_static_masks
from .training import TrainConfig as TrainConfig
from .training import train as train
