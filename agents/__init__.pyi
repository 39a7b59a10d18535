from .algorithms import make_agent as make_agent
from .dynamic_vit import DynamicViT as DynamicViT
from .policy import Policy as Policy
from .static_masks import enumerate_static_masks as enumerate_static_masks
from .training import train as train
