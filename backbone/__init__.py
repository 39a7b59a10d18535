"""Vision Transformers as embed / run_block / classify, their data, their training and their cost."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
