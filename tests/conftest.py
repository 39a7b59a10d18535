"""Shape and type checks at run time, one torch thread, and the tiny networks that the tests share."""

from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype


def checked(function: Callable[..., object]) -> Callable[..., object]:
    """Check a function's arguments and result, names and `Self` excepted.

    A `Literal` is left to the function, whose ValueError names the valid values; beartype knows `Self` only where it
    decorates the class.
    """
    for name, hint in function.__annotations__.items():
        if any(word in str(hint) for word in ("Literal[", "typing.Self")):
            function.__annotations__[name] = Any
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)  # an int is a float, as for type checkers


jaxtyping.install_import_hook("vitskip", f"{__name__}.checked")
torch.set_num_threads(1)

from vitskip.backbone.allocator import keep_buffers  # noqa: E402 - the hook above sees only what is imported after it
from vitskip.backbone.vit import ViT  # noqa: E402

keep_buffers()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Let wrong shapes and types through to the function's own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def tiny_vit() -> ViT:
    """Four blocks, five tokens, ten classes; random weights large enough for every part to matter."""
    torch.manual_seed(0)
    vit = ViT(image_size=32, patch_size=16, embed_dim=16, depth=4, num_heads=2, num_classes=10)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vit.eval()


@pytest.fixture
def tiny_images() -> torch.Tensor:
    """float32 [6, 3, 32, 32] in [0, 1]."""
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
