"""Networks that decide only where it is faster; how fast anything is, is not tested here."""

from collections.abc import Callable

import pytest
import torch
from nets import make_net
from torch import Tensor
from toys import MERGING

from vitskip.agents import DynamicViT, adaptation
from vitskip.agents.adaptation import adapt
from vitskip.backbone import load_backbone, load_dataset


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_dataset("tiny-digits", "test").images


def slow_up_to(size: int, net: DynamicViT, calls: list) -> Callable[..., float]:
    """A clock on which deciding takes twice as long as all units up to a batch size, and half as long beyond."""

    def wall_time(run: Callable[[Tensor], Tensor], batch: Tensor) -> float:
        calls.append((run, batch))
        return 1.0 if run is not net else 2.0 if len(batch) <= size else 0.5

    return wall_time


@pytest.mark.parametrize("rule", ["mlp", "plan", "mask"])
def test_small_batches_run_all_where_that_is_faster(images: Tensor, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    net, calls = make_net(rule), []
    decided = net(images[:6]), net.last_trace
    monkeypatch.setattr(adaptation, "wall_time", slow_up_to(4, net, calls))
    assert adapt(net, images, batch_sizes=(1, 2, 4, 8, 128), rounds=5) == {1: 0.5, 2: 0.5, 4: 0.5, 8: 2.0, 128: 2.0}
    assert [run for run, _ in calls] == [net.backbone, net] * 5 * 8
    assert all(torch.equal(calls[i][1], calls[i + 1][1]) for i in range(0, 80, 2))
    with torch.no_grad():
        for size in (1, 3, 5):  # 3 and 5 are nearest to 4
            assert torch.equal(net(images[:size]), net.backbone(images[:size]))
            assert net.last_trace.keep_mask.tolist() == [[True] * 4] * size
            assert net.last_trace.macs.tolist() == [net.backbone.macs.total] * size
    assert torch.equal(net(images[:6]), decided[0])
    assert torch.equal(net.last_trace.keep_mask, decided[1].keep_mask)
    assert torch.equal(net.last_trace.macs, decided[1].macs)


def test_where_nothing_is_decided_nothing_is_merged(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    net, plain, calls = make_net(backbone=load_backbone(MERGING)), load_backbone("tiny-vit4"), []
    monkeypatch.setattr(adaptation, "wall_time", slow_up_to(4, net, calls))
    adapt(net, images, batch_sizes=(4, 8), rounds=1)
    with torch.no_grad():
        assert torch.equal(net(images[:4]), plain(images[:4]))
        assert torch.equal(calls[0][0](images[:4]), plain(images[:4]))
    assert net.last_trace.macs.tolist() == [plain.macs.total] * 4
    assert not torch.equal(net.backbone(images[:4]), plain(images[:4]))


def test_it_is_measured_anew(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_net()
    for fastest_from, sizes in ((64, {1, 2, 4, 8, 16, 32, 64}), (0, set())):
        monkeypatch.setattr(adaptation, "wall_time", slow_up_to(fastest_from, net, []))
        adapt(net, images, rounds=1)
        assert net.undecided_sizes == sizes


def test_real_clocks_give_ratios(images: Tensor) -> None:
    net = make_net()
    speed_ups = adapt(net, images, batch_sizes=(1, 4), rounds=2)
    assert all(speed_up > 0 for speed_up in speed_ups.values())
    assert net.undecided_sizes == {size for size in (1, 4) if speed_ups[size] < 1}


def test_nonsense_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"batch_sizes: expected powers of two, got \(1, 6\)"):
        adapt(make_net(), images, batch_sizes=(1, 6))
    with pytest.raises(ValueError, match="rounds: expected at least 1, got 0"):
        adapt(make_net(), images, rounds=0)
