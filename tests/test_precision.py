"""The number format in which a ViT is trained."""

import warnings

import pytest
import torch

from vitskip.backbone.precision import autocast

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def a_cpu(monkeypatch: pytest.MonkeyPatch, **instructions: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)


def test_a_cpu_without_bfloat16_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    a_cpu(monkeypatch, avx2=True, avx512_bf16=False)
    with pytest.warns(UserWarning, match="no instructions for bfloat16"):
        autocast("bfloat16", CPU)


@pytest.mark.parametrize("instructions", [{"avx512_bf16": True}, {"neon": True, "bf16": True}, {}])
def test_a_cpu_with_bfloat16_does_not(instructions: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one of which nothing is known."""
    a_cpu(monkeypatch, **instructions)
    with autocast("bfloat16", CPU):
        assert torch.ones(1, 1).matmul(torch.ones(1, 1)).dtype == torch.bfloat16


def test_float32_and_a_gpu_do_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    a_cpu(monkeypatch, avx2=True)
    with autocast("float32", CPU):
        assert torch.ones(1, 1).matmul(torch.ones(1, 1)).dtype == torch.float32
    with warnings.catch_warnings():  # torch says that there is no GPU
        warnings.filterwarnings("ignore", message=".*CUDA is not available")
        autocast("bfloat16", CUDA)
