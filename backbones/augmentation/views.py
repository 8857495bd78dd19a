"""Random variation of images, a whole batch at a time.

Every image draws one row of uniform numbers, and every effect has columns of its own, so that turning one effect off
leaves the draws of the others alone. Effects that came later have rows of their own, drawn by a generator seeded with
the first ones: more columns there would have changed every view there is. Lengths are fractions of the side: the same
draws give the same view in every input size.

Shapes: b batch, h and w pixels, k = `DRAWS` random numbers.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.augmentation import masks
from backbones.options import AugmentOptions

DRAWS = 18
LATER_DRAWS = {"mask": masks.DRAWS, "crop": 3, "low_light": 2}


def augment(images: Tensor, options: AugmentOptions, generator: torch.Generator) -> Tensor:
    """Vary every image of a batch on its own.

    Args:
        images: [b, 3, h, w], uint8 or float32 in [-1, 1].
        options: how far.
        generator: on the CPU; the same state gives the same result.

    Returns:
        float32 [b, 3, h, w] in [-1, 1], on the images' device.
    """
    draws = torch.rand(len(images), DRAWS, generator=generator)
    later = {name: _later_draws(draws, name).to(images.device) for name in LATER_DRAWS if getattr(options, name) > 0.0}
    return _apply(_to_signed(images), options, draws.to(images.device), later)


def low_light_test(pixels: Tensor) -> Tensor:
    """Darken images as the published test in low light does, x to the whole part of 2 sqrt(x).

    Args:
        pixels: uint8 of any shape.

    Returns:
        uint8 of that shape, at most 31.
    """
    # 2 sqrt(x) = sqrt(4 x); its root is exact where 4 x is a square, so that the whole part is never one too low
    return (4.0 * pixels.double()).sqrt().to(torch.uint8)


def augmented_view(image: np.ndarray, *, item_id: str, view: int, seed: int, options: AugmentOptions) -> np.ndarray:
    """Return one of an image's endless views, the same one at every call and geometrically in every input size.

    Args:
        image: uint8 [h, w, 3].
        item_id: the image's id; with `seed` and `view` it determines the view, not the pixels do.
        view: 0 is the image itself, unaltered.
        seed: another seed gives other views.
        options: how far to vary.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ValueError: for a negative view.
    """
    if view < 0:
        raise ValueError(f"view is {view}, expected 0 (the image itself) or above")
    if view == 0:
        return image
    # blake2b: Python's own hash changes from process to process, and neighbouring seeds would give related draws
    digest = blake2b(f"{seed}/{view}/{item_id}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    signed = augment(torch.tensor(image).permute(2, 0, 1)[None], options, generator)
    return ((signed[0].permute(1, 2, 0) + 1.0) * 127.5).round().to(torch.uint8).numpy()


def _to_signed(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1.0 if images.dtype == torch.uint8 else images


def _later_draws(draws: Tensor, name: str) -> Tensor:
    """Return the uniform numbers of a later effect, [b, LATER_DRAWS[name]], determined by the first ones."""
    digest = blake2b(draws.numpy().tobytes(), digest_size=8, person=name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    return torch.rand(len(draws), LATER_DRAWS[name], generator=generator)


def _apply(images: Tensor, options: AugmentOptions, draws: Tensor, later: dict[str, Tensor]) -> Tensor:
    """Apply the effects in the scene's order: what is worn, pose, resolution, light, what is in front, darkness."""
    turn, color, cover, blur = draws[:, :5], draws[:, 5:8], draws[:, 8:16], draws[:, 16:18]
    if "mask" in later:
        images = masks.draw_masks(images, options.mask, later["mask"])
    images = _move(images, options, turn, later.get("crop"))
    images = _sample_down_and_up(images, options, blur)
    images = _change_color(images, options, color)
    images = _occlude(images, options, cover).clamp(-1.0, 1.0)
    return _darken(images, options, later["low_light"]) if "low_light" in later else images


def _move(images: Tensor, options: AugmentOptions, draws: Tensor, crop: Tensor | None) -> Tensor:
    """Crop, flip, scale, turn and shift by one bilinear sampling; the border's colour fills what comes into view."""
    flip = torch.where(draws[:, 0] < options.flip, -1.0, 1.0)
    zoom = 1.0 + options.scale * _symmetric(draws[:, 1])
    angle = torch.deg2rad(options.rotation * _symmetric(draws[:, 2]))
    shift = 2.0 * options.shift * _symmetric(draws[:, 3:5])  # the sampling grid spans 2 from side to side
    rows = [
        torch.stack([flip * zoom * angle.cos(), -flip * zoom * angle.sin(), shift[:, 0]], dim=1),
        torch.stack([zoom * angle.sin(), zoom * angle.cos(), shift[:, 1]], dim=1),
    ]
    sampled = torch.stack(rows, dim=1)
    if crop is not None:  # the window's pixels are looked up in the image moved as a whole
        side = 1.0 - options.crop * crop[:, :1, None]
        place = (1.0 - side) * _symmetric(crop[:, 1:, None])
        sampled = torch.cat([sampled[:, :, :2] * side, sampled[:, :, :2] @ place + sampled[:, :, 2:]], dim=2)
    grid = F.affine_grid(sampled, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _sample_down_and_up(images: Tensor, options: AugmentOptions, draws: Tensor) -> Tensor:
    """Lose resolution as a distant or compressed face does; one factor for all images of the batch that are chosen."""
    chosen = draws[:, 0] < options.blur
    if not chosen.any():
        return images
    size = images.shape[-2:]
    factor = 1.0 - (1.0 - options.blur_factor) * float(draws[0, 1])
    smaller = [max(1, round(side * factor)) for side in size]
    low = F.interpolate(images[chosen], smaller, mode="bilinear", antialias=True)
    varied = images.clone()
    varied[chosen] = F.interpolate(low, size, mode="bilinear", antialias=True)
    return varied


def _change_color(images: Tensor, options: AugmentOptions, draws: Tensor) -> Tensor:
    """Change brightness, contrast about the image's mean and saturation about its grey, in this order."""
    brightness, contrast, saturation = _factors(draws, (options.brightness, options.contrast, options.saturation))
    light = (images + 1.0) * brightness
    mean = light.mean(dim=(1, 2, 3), keepdim=True)
    light = mean + (light - mean) * contrast
    grey = (light * light.new_tensor(masks.GREY)[:, None, None]).sum(dim=1, keepdim=True)
    return grey + (light - grey) * saturation - 1.0


def _occlude(images: Tensor, options: AugmentOptions, draws: Tensor) -> Tensor:
    """Cover a rectangle of the chosen images with one colour."""
    height, width = images.shape[-2:]
    centre, side = draws[:, 1:3], options.occlusion_side * (0.25 + 0.75 * draws[:, 3:5])
    y = (torch.arange(height, device=images.device) + 0.5) / height
    x = (torch.arange(width, device=images.device) + 0.5) / width
    inside_y = (y[None] - centre[:, :1]).abs() < side[:, :1] / 2
    inside_x = (x[None] - centre[:, 1:]).abs() < side[:, 1:] / 2
    chosen = draws[:, 0] < options.occlusion
    covered = inside_y[:, None, :, None] & inside_x[:, None, None, :] & chosen[:, None, None, None]
    return torch.where(covered, _symmetric(draws[:, 5:8])[:, :, None, None], images)


def _darken(images: Tensor, options: AugmentOptions, draws: Tensor) -> Tensor:
    """Raise the light of the chosen images, in [0, 1], to a power of 1 to the largest."""
    gamma = 1.0 + (options.low_light_gamma - 1.0) * draws[:, 1]
    dark = 2.0 * ((images + 1.0) / 2.0).pow(gamma[:, None, None, None]) - 1.0
    return torch.where((draws[:, 0] < options.low_light)[:, None, None, None], dark, images)


def _symmetric(draws: Tensor) -> Tensor:
    """Spread numbers in [0, 1) over [-1, 1)."""
    return 2.0 * draws - 1.0


def _factors(draws: Tensor, strengths: Sequence[float]) -> list[Tensor]:
    """Return one factor within 1 +- strength per column of `draws` [b, n], each [b, 1, 1, 1]."""
    factors = 1.0 + _symmetric(draws) * draws.new_tensor(strengths)
    return [column[:, None, None, None] for column in factors.unbind(dim=1)]
