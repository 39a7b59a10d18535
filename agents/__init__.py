"""Agents that decide, baselines to beat, and the deployable network."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
