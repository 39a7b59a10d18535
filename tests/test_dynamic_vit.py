"""One decision process, three ways to run it: `DynamicViT` (both modes), the environment, and a masked batch."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import RULES, distinct, make_net, roll_out
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from toys import MERGING

from vitskip.agents import DynamicViT, Policy, baselines
from vitskip.agents.budget import calibrate
from vitskip.agents.dynamic_vit import FEW_ROWS
from vitskip.agents.image_runner import ImageRunner
from vitskip.backbone import load_backbone, load_dataset, run_masked
from vitskip.envs import ObservationLayout

COUNT = 48
UNITS = pytest.mark.parametrize("action_unit", ["block", "half"])
KINDS = pytest.mark.parametrize("kind", ["belief", "tokens"])
EVERY_RULE = pytest.mark.parametrize("rule", RULES)
MODES = pytest.mark.parametrize("mode", ["gather", "dense"])


@pytest.fixture(scope="module")
def images() -> Tensor:
    """uint8 [48, 3, 32, 32], the first test images."""
    return load_dataset("tiny-digits", "test").images[:COUNT]


def keep_mask_of(net: DynamicViT) -> Tensor:
    assert net.last_trace is not None
    return net.last_trace.keep_mask


def macs_of(net: DynamicViT) -> Tensor:
    assert net.last_trace is not None
    return net.last_trace.macs


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@EVERY_RULE
@UNITS
@KINDS
def test_both_modes_the_environment_and_a_masked_batch_agree(
    images: Tensor, rule: str, action_unit: str, kind: str
) -> None:
    gather = make_net(rule, action_unit, kind)
    dense = make_net(rule, action_unit, kind, mode="dense")
    logits = gather(images)
    close(logits, dense(images))
    assert torch.equal(keep_mask_of(gather), keep_mask_of(dense))
    assert torch.equal(macs_of(gather), macs_of(dense))

    core = roll_out(gather.policy, range(COUNT), action_unit=action_unit)
    assert np.array_equal(keep_mask_of(gather).numpy(), core.keep_mask)
    assert torch.equal(logits.argmax(1), core.logits.argmax(1))
    close(logits, core.logits)

    with torch.no_grad():
        close(logits, run_masked(gather.backbone, images, keep_mask_of(gather), action_unit))
    if rule != "mask":
        assert distinct(keep_mask_of(gather)) > 2  # routes differ from image to image, or the test would be weak


@UNITS
def test_confidence_alone_decides_the_same_in_the_environment(images: Tensor, action_unit: str) -> None:
    net, some = make_net("mlp", action_unit, "confidence"), load_dataset("tiny-digits", "test").first(COUNT)
    with torch.no_grad():
        next(net.policy.rule.parameters())[:, :3] *= 100  # the tiny net's confidence is much the same for all images
    calibrate(net, ImageRunner(some), 0.6)
    logits = net(images)
    core = roll_out(net.policy, range(COUNT), action_unit=action_unit)
    assert np.array_equal(keep_mask_of(net).numpy(), core.keep_mask)
    close(logits, core.logits)
    assert distinct(core.keep_mask) > 2


@UNITS
def test_planned_random_paths_agree_in_both_modes(images: Tensor, action_unit: str) -> None:
    gather, dense = (make_net("random", action_unit, mode=mode) for mode in ("gather", "dense"))
    logits = gather(images)
    close(logits, dense(images))
    assert torch.equal(keep_mask_of(gather), keep_mask_of(dense))
    with torch.no_grad():
        close(logits, run_masked(gather.backbone, images, keep_mask_of(gather), action_unit))
    assert distinct(keep_mask_of(gather)) > 5


@UNITS
def test_the_dense_mode_computes_what_a_plan_skips(images: Tensor, action_unit: str) -> None:
    rows = []
    for mode in ("gather", "dense"):
        net = make_net("mask", action_unit, mode=mode)
        name = "run_block" if action_unit == "block" else "run_half_block"
        run_unit = getattr(net.backbone, name)
        ran: list[int] = []
        rows.append(ran)
        setattr(
            net.backbone, name, lambda unit, tokens, ran=ran, run=run_unit: ran.append(len(tokens)) or run(unit, tokens)
        )
        net(images)
        kept = keep_mask_of(net)
    assert rows[1] == [COUNT] * kept.shape[1]
    assert rows[0] == [COUNT] * int(kept[0].sum()) != rows[1]


@MODES
@UNITS
def test_run_all_is_the_backbone_and_skip_all_its_head_on_the_embedding(
    images: Tensor, mode: str, action_unit: str
) -> None:
    backbone = load_backbone("tiny-vit4")
    layout = ObservationLayout.of(backbone, "belief", action_unit)
    run_all, skip_all = (
        DynamicViT(backbone, baseline(layout), action_unit=action_unit, mode=mode).eval()
        for baseline in (baselines.run_all, baselines.skip_all)
    )
    with torch.no_grad():
        assert torch.equal(run_all(images), backbone(images))
        assert torch.equal(skip_all(images), backbone.classify(backbone.embed(images)))
    assert (macs_of(run_all) == backbone.macs.total).all()
    assert (macs_of(skip_all) == backbone.macs.stem + backbone.macs.head).all()


@EVERY_RULE
@MODES
def test_other_rows_cannot_change_a_row(images: Tensor, rule: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither other tokens, be they NaN, nor other images, nor their absence."""
    net, pixels = make_net(rule, kind="tokens", mode=mode), images.float() / 255
    expected, masks, embed = net(pixels), keep_mask_of(net), net.backbone.embed
    for row in range(0, COUNT, 7):
        others = torch.arange(COUNT)[:, None, None] != row
        for value, garbage in ((torch.nan, pixels), (None, torch.where(others[..., None], 1 - pixels, pixels))):
            with monkeypatch.context() as patch:
                if value is not None:
                    patch.setattr(net.backbone, "embed", lambda x, w=others, v=value: embed(x).masked_fill(w, v))
                close(net(garbage)[row], expected[row])
            assert torch.equal(keep_mask_of(net)[row], masks[row])
            assert rule == "mask" or not torch.equal(keep_mask_of(net), masks)
        close(net(pixels[row : row + 1])[0], expected[row])
        assert torch.equal(keep_mask_of(net), masks[row : row + 1])


@pytest.mark.parametrize(("change", "got"), [(lambda x: (x - 0.5) / 0.25, r"\[-2, 2\]"), (lambda x: 255 * x, "255")])
def test_images_that_were_normalised_or_not_scaled_are_refused(images: Tensor, change: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"images: expected values in \[0, 1\], not normalised, got .*{got}"):
        make_net()(change(images.float() / 255))


def test_images_that_are_no_numbers_are_refused(images: Tensor) -> None:
    pixels = images.float() / 255
    pixels[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"images: expected values in \[0, 1\], .*got \[nan, nan\]"):
        make_net()(pixels)
    make_net()(images.float() / 255 * 1.1 - 0.05)  # as far as bicubic resizing goes


@EVERY_RULE
def test_permuting_the_batch_permutes_everything(images: Tensor, rule: str) -> None:
    net = make_net(rule)
    logits, masks, macs = net(images), keep_mask_of(net), macs_of(net)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    close(net(images[order]), logits[order])
    assert torch.equal(keep_mask_of(net), masks[order])
    assert torch.equal(macs_of(net), macs[order])


@EVERY_RULE
@UNITS
@KINDS
def test_macs_equal_torchs_counter(images: Tensor, rule: str, action_unit: str, kind: str) -> None:
    """Everything that is computed is counted: stem, units, policy, and the head each time."""
    net = make_net(rule, action_unit, kind)
    with FlopCounterMode(display=False) as counter:
        net(images)
    assert counter.get_total_flops() == 2 * macs_of(net).sum().item()
    for image in images[:4]:
        with FlopCounterMode(display=False) as counter:
            net(image[None])
        assert counter.get_total_flops() == 2 * macs_of(net).item()


@UNITS
@pytest.mark.parametrize("rows", [COUNT, FEW_ROWS])
def test_macs_by_hand(images: Tensor, action_unit: str, rows: int) -> None:
    """One head call at the start and one per unit run, the last of which gives the logits; a decision per unit.

    Few rows decide ahead, and again after a unit that ran.
    """
    net = make_net("mlp", action_unit)
    net(images[:rows])
    macs, keep_mask = net.backbone.macs, keep_mask_of(net)
    units = torch.tensor(macs.units(action_unit))
    inputs, last = 10 + 3 + len(units) + 1, len(units) - 1
    again = [sum(last - unit for unit in range(len(row)) if row[unit]) for row in keep_mask]
    decisions = (len(units) + torch.tensor(again) * (rows <= FEW_ROWS)) * (inputs * 8 + 8 * 8 + 8)
    expected = macs.stem + (keep_mask * units).sum(1) + (1 + keep_mask.sum(1)) * macs.head + decisions
    assert torch.equal(macs_of(net), expected)


@EVERY_RULE
@UNITS
def test_rows_route_alike_in_small_and_large_batches(images: Tensor, rule: str, action_unit: str) -> None:
    net = make_net(rule, action_unit)
    logits = net(images)
    keep_mask = keep_mask_of(net)
    for start in range(0, len(images), FEW_ROWS):
        part = slice(start, start + FEW_ROWS)
        close(net(images[part]), logits[part])
        assert torch.equal(keep_mask_of(net), keep_mask[part])


@EVERY_RULE
def test_what_comes_out_can_be_used_where_gradients_flow(images: Tensor, rule: str) -> None:
    """Though the network runs in inference mode, whose tensors cannot be saved for a backward pass."""
    net = make_net(rule)
    logits, weight = net(images), torch.ones(10, requires_grad=True)
    share = macs_of(net) / net.backbone.macs.total
    (share * (logits * weight).sum(1)).sum().backward()
    assert weight.grad is not None
    close(weight.grad, (share[:, None] * logits).sum(0))
    assert not logits.requires_grad
    keep_mask_of(net).zero_()


class Calls:
    """Counts the rows that a backbone's methods are given."""

    def __init__(self, net: DynamicViT, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: Counter[Any] = Counter()
        for name in ("run_block", "run_half_block"):
            monkeypatch.setattr(net.backbone, name, self._counted_unit(name, getattr(net.backbone, name)))
        monkeypatch.setattr(net.backbone, "classify", self._counted_head(net.backbone.classify))

    def _counted_unit(self, name: str, run: Any) -> Any:
        def counted(index: int, tokens: Tensor) -> Tensor:
            self.rows[name, index] += len(tokens)
            return run(index, tokens)

        return counted

    def _counted_head(self, classify: Any) -> Any:
        def counted(tokens: Tensor) -> Tensor:
            self.rows["classify"] += len(tokens)
            return classify(tokens)

        return counted


@EVERY_RULE
@pytest.mark.parametrize(("action_unit", "method"), [("block", "run_block"), ("half", "run_half_block")])
def test_a_skipped_unit_is_not_computed(
    images: Tensor, monkeypatch: pytest.MonkeyPatch, rule: str, action_unit: str, method: str
) -> None:
    net = make_net(rule, action_unit)
    calls = Calls(net, monkeypatch)
    net(images)
    runs = keep_mask_of(net).sum(0).tolist()
    assert sum(runs) < COUNT * len(runs)
    expected = {(method, unit): rows for unit, rows in enumerate(runs) if rows}
    planned = rule == "mask"
    assert calls.rows == expected | {"classify": COUNT + (0 if planned else sum(runs))}


def test_dense_mode_computes_everything(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_net("mlp", mode="dense")
    calls = Calls(net, monkeypatch)
    net(images)
    assert not keep_mask_of(net).all()
    assert [calls.rows["run_block", unit] for unit in range(4)] == [COUNT] * 4


@EVERY_RULE
@MODES
def test_uint8_and_float_images_agree(images: Tensor, rule: str, mode: str) -> None:
    net = make_net(rule, mode=mode)
    from_bytes, masks = net(images), keep_mask_of(net)
    assert torch.equal(net(images.float() / 255), from_bytes)
    assert torch.equal(keep_mask_of(net), masks)


@pytest.mark.parametrize("rule", [*RULES, "plan"])
@pytest.mark.parametrize("backbone", ["tiny-vit4", MERGING])
def test_it_runs_in_half_precision(images: Tensor, rule: str, backbone: str) -> None:
    """On the same paths, and with the same answers, but where an image is at the edge."""
    net = make_net(rule, backbone=load_backbone(backbone))
    expected, paths = net(images), keep_mask_of(net)
    actual = net.bfloat16()(images)
    assert actual.dtype == torch.bfloat16
    same = (keep_mask_of(net) == paths).all(1)
    assert same.float().mean() > 0.6
    assert (actual[same].argmax(1) == expected[same].argmax(1)).float().mean() > 0.9


@EVERY_RULE
def test_a_batch_leaves_nothing_behind(images: Tensor, rule: str) -> None:
    """The images, the weights and the results of earlier batches stay as they were."""
    net = make_net(rule)
    with pytest.raises(AssertionError):
        keep_mask_of(net)  # there is no trace yet
    pixels, state = images.clone(), {name: tensor.clone() for name, tensor in net.state_dict().items()}
    logits, keep_mask = net(pixels), keep_mask_of(net)
    kept = logits.clone(), keep_mask.clone()
    net(images.flip(0))
    assert torch.equal(net(pixels), logits)
    assert torch.equal(logits, kept[0]) and torch.equal(keep_mask, kept[1])
    assert torch.equal(pixels, images)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert not logits.requires_grad


@EVERY_RULE
def test_a_batch_may_be_empty(rule: str) -> None:
    net = make_net(rule)
    assert net(torch.zeros(0, 3, 32, 32)).shape == (0, 10)
    assert keep_mask_of(net).shape == (0, 4)
    assert macs_of(net).shape == (0,)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 32, 16), (32, 32, 3)])
def test_images_of_another_shape_are_refused(unchecked: None, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images: expected shape \[B, 3, S, S\], got \[") as caught:
        make_net()(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)


def test_integers_other_than_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images: expected uint8, or floating point.*int64"):
        make_net()(torch.zeros(2, 3, 32, 32, dtype=torch.int64))


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown mode 'gahter': .*dense, gather; did you mean 'gather'"):
        make_net(mode="gahter")


@pytest.mark.parametrize("action_unit", ["block", "half"])
def test_a_policy_for_another_layout_is_refused(action_unit: str) -> None:
    net = make_net("mlp", action_unit)
    other = "half" if action_unit == "block" else "block"
    with pytest.raises(ValueError, match=r"policy: expected one for .*num_units=\d.*, got one for .*num_units=\d"):
        DynamicViT(net.backbone, net.policy, action_unit=other)


@EVERY_RULE
@UNITS
@KINDS
@MODES
def test_what_is_saved_is_what_is_loaded(
    tmp_path: Path, images: Tensor, rule: str, action_unit: str, kind: str, mode: str
) -> None:
    net = make_net(rule, action_unit, kind, mode=mode)
    with torch.no_grad():
        next(net.backbone.parameters()).mul_(1.01)  # not what the registered factory builds
    net.save(tmp_path / "new" / "run", backbone_name="tiny-vit4", record={"note": [1, None]})
    loaded = DynamicViT.load(tmp_path / "new" / "run", mode=mode)
    assert (loaded.action_unit, loaded.mode, loaded.training) == (action_unit, mode, False)
    assert loaded.policy.layout == net.policy.layout
    assert torch.equal(loaded(images), net(images))
    assert torch.equal(keep_mask_of(loaded), keep_mask_of(net))
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in net.state_dict().items())


DEPLOY = """
import sys
sys.modules["gymnasium"] = sys.modules["stable_baselines3"] = None  # an import of either fails
import torch
import vitskip
from vitskip.backbone import ViT, register_backbone
architecture = dict(image_size=32, patch_size=16, embed_dim=16, depth=4, num_heads=2, num_classes=10)
register_backbone("tiny-vit4", lambda: ViT(**architecture))
net = vitskip.DynamicViT.load(sys.argv[1])
logits = net(torch.load(sys.argv[2]))
torch.save([logits, net.last_trace.keep_mask], sys.argv[3])
assert not any(name.startswith(("gymnasium.", "stable_baselines3.")) for name in sys.modules)
"""


def test_deployment_needs_neither_gymnasium_nor_stable_baselines3(tmp_path: Path, images: Tensor) -> None:
    net = make_net("mlp", kind="tokens")
    net.save(tmp_path / "run", backbone_name="tiny-vit4")
    torch.save(images, tmp_path / "images.pt")
    paths = [str(tmp_path / name) for name in ("run", "images.pt", "result.pt")]
    subprocess.run([sys.executable, "-c", DEPLOY, *paths], check=True, timeout=120)
    logits, keep_mask = torch.load(paths[2])
    close(logits, net(images))
    assert torch.equal(keep_mask, keep_mask_of(net))


def test_all_of_a_net_is_where_its_backbone_is() -> None:
    backbone = load_backbone("tiny-vit4").to("meta")
    net = DynamicViT(backbone, Policy("mlp", ObservationLayout.of(backbone, "belief", "block"), widths=[8]))
    assert {tensor.device.type for tensor in (*net.parameters(), *net.buffers())} == {"meta"}


@pytest.mark.gpu
@pytest.mark.parametrize("rule", [*RULES, "random"])
@UNITS
def test_a_gpu_agrees_with_the_cpu(tmp_path: Path, images: Tensor, rule: str, action_unit: str) -> None:
    net = make_net(rule, action_unit, "tokens")
    net.save(tmp_path, backbone_name="tiny-vit4")
    for mode in ("gather", "dense"):
        on_gpu = DynamicViT.load(tmp_path, device="cuda", mode=mode)
        reference = DynamicViT.load(tmp_path)
        logits = on_gpu(images.cuda())
        torch.testing.assert_close(logits.cpu(), reference(images), rtol=1e-3, atol=1e-3)
        assert torch.equal(keep_mask_of(on_gpu).cpu(), keep_mask_of(reference))
        assert torch.equal(macs_of(on_gpu).cpu(), macs_of(reference))
        rows = np.zeros((3, net.policy.layout.size), np.float32)
        assert on_gpu.policy.predict(rows)[0].tolist() == reference.policy.predict(rows)[0].tolist()


@UNITS
@pytest.mark.parametrize("look_after", [1, 2])
@pytest.mark.parametrize("paths", [None, 3])
def test_a_planned_net_runs_the_first_blocks_looks_once_and_follows_its_plan(
    images: Tensor, action_unit: str, paths: int | None, look_after: int
) -> None:
    """Both modes agree, with a masked batch too; the policy and one more use of the head are counted."""
    backbone = load_backbone("tiny-vit4")
    layout = ObservationLayout.of(backbone, "tokens", action_unit)
    rng = np.random.default_rng(44)
    codebook = None if paths is None else rng.random((paths, layout.num_units)) < 0.5
    if codebook is not None:
        codebook[:, -1] = np.arange(paths or 0) % 2  # so that they differ behind the first blocks
        codebook = codebook.tolist()
    policy = Policy("plan", layout, widths=[8], paths=codebook, look_after=look_after)
    for parameter in policy.parameters():
        parameter.data = torch.from_numpy(rng.normal(0, 1.5, parameter.shape).astype(np.float32))
    gather = DynamicViT(backbone, policy, action_unit=action_unit).eval()
    dense = DynamicViT(backbone, policy, action_unit=action_unit, mode="dense").eval()
    logits, keep_mask = gather(images), keep_mask_of(gather)
    close(logits, dense(images))
    assert torch.equal(keep_mask, keep_mask_of(dense)) and torch.equal(macs_of(gather), macs_of(dense))
    close(logits, run_masked(backbone, images, keep_mask, action_unit))
    first = look_after if action_unit == "block" else 2 * look_after
    assert keep_mask[:, :first].all()
    assert not keep_mask[:, first].all()
    assert distinct(keep_mask) > 1
    units = torch.tensor(backbone.macs.units(action_unit))
    expected = backbone.macs.stem + (keep_mask * units).sum(1) + 2 * backbone.macs.head + policy.macs
    assert torch.equal(macs_of(gather), expected)


def test_a_planner_that_would_look_after_all_blocks_is_refused() -> None:
    net = make_net()
    policy = Policy("plan", net.policy.layout, widths=[8], look_after=4)
    with pytest.raises(ValueError, match="look_after: expected fewer than the 4 blocks of the backbone, got 4"):
        DynamicViT(net.backbone, policy)
    with pytest.raises(ValueError, match="look_after: expected at least 1 block, got 0"):
        Policy("plan", net.policy.layout, widths=[8], look_after=0)
