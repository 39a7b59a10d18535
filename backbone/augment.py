"""Augmentation of whole batches on their device, from random numbers that are drawn beforehand on the CPU.

Processes that share a batch draw the same numbers for all of it, and each applies its own rows of them. MixUp and
CutMix pair rows 0 and 1, 2 and 3, and so on, so a process's rows begin at an even one and come in pairs.
"""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from scipy.special import betaincinv
from torch import Tensor

from .datasets import Dataset
from .protocol import to_float_images
from .registry import Registry

ERASED_AREA = (0.02, 1 / 3)  # share of the image; Zhong et al. (2020), as the next
ERASED_ASPECT = (0.3, 3.3)  # height over width, both as shares of the image's
BATCH = 1_000  # images that are augmented at a time
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue in grey; ITU-R BT.601


@dataclass(frozen=True)
class AugmentationDraws:
    """Random numbers for B images, uniform in [0, 1) and on the CPU; `draws[rows]` are those of some images.

    Attributes:
        shift: float32 [B, 2]; how far down and right.
        flip: float32 [B].
        colour: float32 [B, 3]; brightness, contrast, saturation.
        erase: float32 [B, 5]; whether, area, aspect ratio, place from the top and from the left.
        fill: float32 [B, 3]; colour of what is erased.
        mix: float32 [B, 4]; CutMix or MixUp, share of the partner, place from the top and from the left.
    """

    shift: Float[Tensor, "B 2"]
    flip: Float[Tensor, " B"]
    colour: Float[Tensor, "B 3"]
    erase: Float[Tensor, "B 5"]
    fill: Float[Tensor, "B 3"]
    mix: Float[Tensor, "B 4"]

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, rows: slice | Tensor) -> "AugmentationDraws":
        return AugmentationDraws(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw(batch_size: int, generator: torch.Generator) -> AugmentationDraws:
    """Draw what any `Augmentation` needs; every augmentation takes equally many numbers from the generator.

    Args:
        batch_size: images in the whole batch, of all processes together.
        generator: on the CPU.
    """
    uniform = torch.rand(batch_size, 18, generator=generator)  # multiples of 2**-24: floor(n * uniform) is below n
    shift, flip, colour, erase, fill, mix = uniform.split([2, 1, 3, 5, 3, 4], 1)
    return AugmentationDraws(shift, flip[:, 0], colour, erase, fill, mix)


@dataclass(frozen=True)
class Augmentation:
    """What is done to the images of a batch, in this order; each image has its own parameters.

    Attributes:
        shift: largest shift in each direction, repeating the border: int [pixels], or float in [0, 1), a share of
            the side.
        flip: whether half of the images are mirrored left to right.
        colour: brightness, contrast and saturation are multiplied by factors in [1 - colour, 1 + colour].
        erase: share of the images in which a box gets one random colour (Zhong et al., 2020, "Random Erasing").
        mixup: alpha of the Beta distribution of MixUp (Zhang et al., 2018), which blends two images; 0: none.
        cutmix: alpha of the Beta distribution of CutMix (Yun et al., 2019), which pastes a box of another image; the
            box lies inside the image, and its exact area is its share in the target; 0: none.

    With both, each image gets one or the other with equal probability. Kind, share and box are drawn per image: its
    partner may get others.

    Raises:
        ValueError: for a value outside these.
    """

    shift: int | float = 0
    flip: bool = False
    colour: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.shift < 1 or (isinstance(self.shift, int) and self.shift >= 0)):
            raise ValueError(f"shift: expected pixels (an int) or a share in [0, 1) (a float), got {self.shift!r}")
        for name, top in (("colour", 1.0), ("erase", 1.0), ("mixup", math.inf), ("cutmix", math.inf)):
            value = getattr(self, name)
            if not 0 <= value <= top or math.isinf(value):
                raise ValueError(f"{name}: expected a finite number from 0 to {top:g}, got {value!r}")

    def apply(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        labels: Int64[Tensor, " B"],
        num_classes: int,
        draws: AugmentationDraws,
    ) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B K"]]:
        """Augment a batch, or a process's even-numbered share of one.

        Args:
            images: on any device, where everything is computed.
            labels: in 0..K-1, on the same device.
            num_classes: K.
            draws: of the same rows. The last row of an odd number has no partner and is not mixed.

        Returns:
            images in [0, 1] and targets that sum to 1, float32.
        """
        if not len(images) == len(labels) == len(draws):
            raise ValueError(
                f"draws: expected as many as images and labels, got {len(draws)} for {len(images)} and {len(labels)}"
            )
        pixels = to_float_images(self._move(images, draws))
        if self.colour:
            pixels = _recolour(pixels, 1 + self.colour * (2 * draws.colour - 1))
        if self.erase:
            pixels = self._erase(pixels, draws)
        targets = torch.zeros(len(labels), num_classes, device=labels.device).scatter_(1, labels[:, None], 1.0)
        return self._mix(pixels, targets, draws) if self.mixup or self.cutmix else (pixels, targets)

    def _move(self, images: UInt8[Tensor, "B 3 H W"], draws: AugmentationDraws) -> UInt8[Tensor, "B 3 H W"]:
        """Shift and flip: whole lines are picked first, then the pixels within them."""
        if not self.shift and not self.flip:
            return images
        count, channels, height, width = images.shape
        size = torch.tensor([height, width])
        reach = torch.full((2,), self.shift) if isinstance(self.shift, int) else (self.shift * size).round().long()
        down, right = ((draws.shift * (2 * reach + 1)).long() - reach)[:, :, None].unbind(1)  # [B, 1] each
        rows = (torch.arange(height) + down).clamp(0, height - 1).to(images.device)  # [B, H]
        columns = (torch.arange(width) + right).clamp(0, width - 1)  # [B, W]
        if self.flip:
            columns = torch.where(draws.flip[:, None] < 0.5, columns.flip(1), columns)
        first = height * torch.arange(count * channels, device=images.device).view(count, channels, 1)
        lines = images.reshape(-1, width).index_select(0, (first + rows[:, None]).flatten()).view(images.shape)
        return lines.gather(3, columns.to(images.device)[:, None, None].expand(images.shape))

    def _erase(self, pixels: Float[Tensor, "B 3 H W"], draws: AugmentationDraws) -> Float[Tensor, "B 3 H W"]:
        whether, area, aspect = draws.erase[:, :3].unbind(1)
        area = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area
        aspect = ERASED_ASPECT[0] * (ERASED_ASPECT[1] / ERASED_ASPECT[0]) ** aspect  # log-uniform
        sides = torch.stack([area * aspect, area / aspect], 1).sqrt().clamp(max=1) * (whether < self.erase)[:, None]
        erased, _ = _boxes(sides, draws.erase[:, 3:], pixels)
        return torch.where(erased, draws.fill[:, :, None, None].to(pixels.device), pixels)

    def _mix(
        self, pixels: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B K"], draws: AugmentationDraws
    ) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B K"]]:
        cuts = draws.mix[:, 0] < (0.5 if self.mixup and self.cutmix else float(self.cutmix > 0))
        blend, cut = _beta(self.mixup, draws.mix[:, 1]) * ~cuts, _beta(self.cutmix, draws.mix[:, 1]) * cuts
        pasted, area = _boxes(cut.sqrt()[:, None].expand(-1, 2), draws.mix[:, 2:], pixels)
        blend = blend.to(pixels.device)
        partner = torch.arange(len(pixels), device=pixels.device) ^ 1
        partner = partner.where(partner < len(pixels), partner - 1)
        weight = pasted + blend[:, None, None, None]  # of the two, one is zero
        share = area.to(pixels.device) + blend
        return pixels.lerp(pixels[partner], weight), targets.lerp(targets[partner], share[:, None])


def with_copies(dataset: Dataset, augmentation: Augmentation, copies: int) -> Dataset:
    """The images, and after them augmented versions of all of them, the same ones every time.

    Args:
        dataset: N images.
        augmentation: that keeps each image's label.
        copies: versions of each image, itself included; image i is seen again at i + N, i + 2N, ...

    Returns:
        `copies` times N images on the same device.

    Raises:
        ValueError: if the augmentation mixes images.
    """
    if augmentation.mixup or augmentation.cutmix:
        raise ValueError(f"augmentation: expected one that keeps labels, got MixUp or CutMix in {augmentation}")
    generator = torch.Generator().manual_seed(0)
    images = [dataset.images]
    for _ in range(copies - 1):
        for batch, labels in zip(dataset.images.split(BATCH), dataset.labels.split(BATCH), strict=True):
            pixels, _ = augmentation.apply(batch, labels, len(dataset.classes), draw(len(batch), generator))
            images.append((255 * pixels).round().byte())
    labels, difficulty = (values.repeat(copies) for values in (dataset.labels, dataset.difficulty))
    return Dataset(torch.cat(images), labels, dataset.classes, difficulty)


def _recolour(pixels: Float[Tensor, "B 3 H W"], factors: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 H W"]:
    """Brightness, contrast about the mean grey, and saturation, in place; only the result is clamped to [0, 1]."""
    brightness, contrast, saturation = factors.to(pixels.device)[:, :, None, None].unbind(1)  # [B, 1, 1] each
    grey = LUMA[0] * pixels[:, 0] + LUMA[1] * pixels[:, 1] + LUMA[2] * pixels[:, 2]  # [B, H, W]
    centre = brightness * (1 - contrast) * grey.mean((1, 2), keepdim=True)
    gain = brightness * contrast
    rest = grey.mul_(gain * (1 - saturation)).add_(centre)
    return pixels.mul_((gain * saturation)[:, None]).add_(rest[:, None]).clamp_(0, 1)


def _boxes(
    sides: Float[Tensor, "B 2"], place: Float[Tensor, "B 2"], pixels: Float[Tensor, "B 3 H W"]
) -> tuple[Bool[Tensor, "B 1 H W"], Float[Tensor, " B"]]:
    """Boxes that lie inside the image: masks on the device of the pixels, and areas as shares of the image.

    Args:
        sides: height and width as shares of the image's, in [0, 1].
        place: in [0, 1): against the top left corner, up to against the opposite one.
        pixels: images to fit.
    """
    size = torch.tensor(pixels.shape[2:])
    lengths = (sides * size).round().long()
    start = (place * (size - lengths + 1)).long()
    first, last = start.to(pixels.device), (start + lengths).to(pixels.device)
    rows, columns = (
        (axis >= first[:, side, None]) & (axis < last[:, side, None])
        for side, axis in enumerate(torch.arange(length, device=pixels.device) for length in pixels.shape[2:])
    )  # [B, H] and [B, W]
    return rows[:, None, :, None] & columns[:, None, None, :], lengths.prod(1) / size.prod()


def _beta(alpha: float, uniform: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Beta(alpha, alpha) by inversion, so that each image takes one number whatever alpha is; 0 where alpha is."""
    if not alpha:
        return torch.zeros_like(uniform)
    return torch.from_numpy(betaincinv(alpha, alpha, uniform.double().numpy())).float()


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation")
"""Augmentations by name."""

AUGMENTATIONS.register("none", Augmentation())
AUGMENTATIONS.register("shift", Augmentation(shift=0.125))
AUGMENTATIONS.register("shift-flip", Augmentation(shift=0.125, flip=True))
AUGMENTATIONS.register("digits", Augmentation(shift=2))
AUGMENTATIONS.register("cifar", Augmentation(shift=4, flip=True, colour=0.2, erase=0.25))
AUGMENTATIONS.register("cifar-strong", Augmentation(shift=4, flip=True, colour=0.2, erase=0.25, mixup=0.2, cutmix=1.0))
AUGMENTATIONS.register("imagefolder", Augmentation(shift=0.12, flip=True, colour=0.3, erase=0.25))
