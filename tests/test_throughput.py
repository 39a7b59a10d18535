"""The benchmark's bookkeeping; how fast anything is, is not tested here."""

import io
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nets import make_net
from rich.console import Console
from toys import MERGING

from vitskip.agents import DynamicViT
from vitskip.agents.dynamic_vit import Trace
from vitskip.backbone import ViT, load_backbone, load_dataset
from vitskip.backbone.token_merging import TokenMergingViT
from vitskip.eval import benchmark, throughput
from vitskip.eval.tables import benchmark_table
from vitskip.eval.throughput import Benchmark, Timing


@pytest.fixture(scope="module")
def result() -> Benchmark:
    images = load_dataset("tiny-digits", "test").images
    return benchmark(make_net("early-exit"), images, batch_sizes=(100, 1), seconds=0.01)  # more than the 64 images


def test_every_size_is_timed(result: Benchmark) -> None:
    assert [timing.batch_size for timing in result.timings] == [1, 100]
    for timing in result.timings:
        assert len(timing.dense) == len(timing.dynamic) >= 9  # of at least twelve, a quarter warms up
        assert min(timing.dense.min(), timing.dynamic.min()) > 0
        assert timing.dense_throughput > 0
        assert timing.dynamic_throughput > 0
        assert 0.4 < timing.macs_fraction < 1.1


def test_more_time_gives_more_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is read before each batch: 40 of them, of which the first quarter warms up."""
    clock = itertools.count()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    images = load_dataset("tiny-digits", "test").images
    (timing,) = benchmark(make_net("mask"), images, batch_sizes=(1,), seconds=40.0).timings
    assert len(timing.dense) == 30


def test_dense_and_dynamic_see_the_same_images_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    net, seen = make_net("mask"), []
    forward, dense = DynamicViT.forward, ViT.forward
    monkeypatch.setattr(DynamicViT, "forward", lambda self, x: (seen.append(("dynamic", x)), forward(self, x))[1])
    monkeypatch.setattr(ViT, "forward", lambda self, x: (seen.append(("dense", x)), dense(self, x))[1])
    images = load_dataset("tiny-digits", "test").images
    benchmark(net, images, batch_sizes=(5,), seconds=0.0)
    assert [name for name, _ in seen] == ["dense", "dynamic"] * 12
    assert all(torch.equal(seen[i][1], seen[i + 1][1]) for i in range(0, 24, 2))
    assert not torch.equal(seen[0][1], seen[2][1])  # drawn anew for every batch
    known = {image.numpy().tobytes() for image in images}
    assert all(image.numpy().tobytes() in known for _, batch in seen for image in batch)
    assert {batch.dtype for _, batch in seen} == {torch.uint8}


def test_a_static_mask_has_its_own_macs_fraction() -> None:
    net = make_net("mask")
    (timing,) = benchmark(net, load_dataset("tiny-digits", "test").images, batch_sizes=(4,), seconds=0.0).timings
    macs = net.backbone.macs
    kept = sum(unit for unit, keep in zip(macs.units("block"), net.policy.rule.arguments["keep"], strict=True) if keep)
    assert timing.macs_fraction == pytest.approx((macs.stem + macs.head + kept) / macs.total)


def test_a_net_that_merges_tokens_stands_beside_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    net, times = make_net("mask", backbone=load_backbone(MERGING)), []
    monkeypatch.setattr(throughput, "wall_time", lambda run, images: (times.append(run), run(images), 1.0)[-1])
    (timing,) = benchmark(net, load_dataset("tiny-digits", "test").images, batch_sizes=(4,), seconds=0.0).timings
    assert isinstance(net.backbone, TokenMergingViT) and isinstance(net.last_trace, Trace)
    assert times == [net.backbone.vit, net] * 12
    assert timing.macs_fraction == pytest.approx(net.last_trace.macs[0].item() / net.backbone.vit.macs.total)


def test_medians_ratios_and_quartiles_by_hand() -> None:
    timing = Timing(8, np.array([2.0, 4.0, 9.0]), np.array([1.0, 2.0, 3.0]), 0.5)
    assert timing.dense_throughput == 2
    assert timing.dynamic_throughput == 4
    assert timing.speed_up == 2
    assert timing.spread == (2.0, 2.5)


def test_rivals_see_the_same_images_and_stand_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    net, rival, calls = make_net("mask"), load_backbone("tiny-vit4").train(), []
    assert isinstance(rival, ViT)
    monkeypatch.setattr(
        throughput, "wall_time", lambda run, images: (calls.append((run, images)), run(images), 1.0)[-1]
    )
    images = load_dataset("tiny-digits", "test").images
    (timing,) = benchmark(net, images, batch_sizes=(4,), seconds=0.0, rivals={"small net": rival}).timings
    assert [run for run, _ in calls] == [net.backbone, net, rival] * 12
    assert all(calls[i][1] is calls[i + 2][1] for i in range(0, 36, 3))
    assert not rival.training
    assert timing.rivals["small net"].tolist() == [1.0] * 9


def test_speed_ups_of_rivals_by_hand() -> None:
    timing = Timing(8, np.full(3, 4.0), np.full(3, 2.0), 0.5, {"small net": np.array([1.0, 3.2, 9.0])})
    assert timing.rival_speed_ups == {"small net": 1.25}
    assert Benchmark((timing,)).summary()["sizes"][0]["rival_speed_ups"] == {"small net": 1.25}
    stream = io.StringIO()
    Console(file=stream, width=160).print(benchmark_table(Benchmark((timing,))))
    assert "small net" in stream.getvalue() and "1.25" in stream.getvalue()


@pytest.mark.parametrize("batch_sizes", [(), (4, 0), (-1,), (4, 8, 4)])
def test_batch_sizes_are_positive_and_differ(batch_sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="batch_sizes: expected integers of at least 1, each once, got"):
        benchmark(make_net("mask"), load_dataset("tiny-digits", "test").images, batch_sizes=batch_sizes)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_time_is_finite_and_not_negative(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds: expected a finite number of at least 0, got"):
        benchmark(make_net("mask"), load_dataset("tiny-digits", "test").images, batch_sizes=(1,), seconds=seconds)


def test_the_summary(result: Benchmark) -> None:
    slow = Timing(1, np.full(9, 1.0), np.full(9, 2.0), 0.8)
    fast = Timing(64, np.full(9, 0.008), np.full(9, 0.004), 0.4)
    summary = json.loads(json.dumps(Benchmark((slow, fast)).summary(), allow_nan=False))
    assert summary["speed_up_mean"] == pytest.approx(1.25)
    assert summary["speed_up_geometric_mean"] == pytest.approx(1)
    assert (summary["speed_up_worst"], summary["worst_batch_size"]) == (0.5, 1)
    assert summary["threads"] == torch.get_num_threads()
    row = summary["sizes"][1]
    assert row["batch_size"] == 64
    assert row["dense_images_per_s"] == pytest.approx(8000)
    assert row["dynamic_images_per_s"] == pytest.approx(16000)
    assert row["speed_up"] == pytest.approx(2)
    assert row["speed_up_quartiles"] == pytest.approx([2, 2])
    assert row["ideal_speed_up"] == pytest.approx(2.5)
    assert row["timed_batches"] == 9
    assert row["dense_latency_ms"] == {"p50": pytest.approx(8), "p95": pytest.approx(8), "p99": pytest.approx(8)}
    measured = json.loads(json.dumps(result.summary(), allow_nan=False))
    assert measured.keys() == summary.keys()
    assert [size.keys() for size in measured["sizes"]] == [row.keys()] * 2


def test_the_table(result: Benchmark) -> None:
    stream = io.StringIO()
    Console(file=stream, width=160).print(benchmark_table(result))
    text = stream.getvalue()
    for word in ("batch", "dense [images/s]", "geo. mean", "worst", f"{result.timings[1].speed_up:.2f}"):
        assert word in text
