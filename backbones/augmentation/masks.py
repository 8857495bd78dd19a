"""Synthetic face masks: something drawn over nose, mouth and jaw of aligned faces.

The face's place is that of the five points to which face recognition aligns, in a square of 112 pixels (Deng et al.,
"ArcFace", CVPR 2019, after Liu et al., "SphereFace", CVPR 2017); everything here is scaled from it to the image. On
faces that are not aligned to these points a mask covers whatever is there.

Shapes: b batch, h and w pixels, c = `DRAWS` random numbers, v = 8 corners.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPLATE = 112.0
# left eye, right eye, nose, left and right corner of the mouth; x, y in pixels of the template
FIVE_POINTS = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))

# Corners from the left cheek clockwise, in pixels of the template; straps start at 0, 3, 4 and 7.
OUTLINES = (
    # surgical: from the bridge of the nose to below the chin
    ((19, 69), (47, 61), (65, 61), (93, 69), (90, 94), (70, 115), (42, 115), (22, 94)),
    # a cup with a pointed top
    ((22, 79), (51, 57), (61, 57), (90, 79), (84, 100), (64, 114), (48, 114), (28, 100)),
    # worn low, the nose free
    ((21, 84), (44, 80), (68, 80), (91, 84), (87, 100), (70, 116), (42, 116), (25, 100)),
    # a scarf, down to the neck
    ((10, 68), (45, 62), (67, 62), (102, 68), (108, 100), (90, 130), (22, 130), (4, 100)),
    # a small one
    ((30, 74), (49, 67), (63, 67), (82, 74), (82, 92), (68, 109), (44, 109), (30, 92)),
)
SCARF = 3
EARS = ((3.0, 54.0), (109.0, 54.0))  # where straps go, left and right
STRAP = 0.9  # half of its width, in pixels of the template

# white, surgical blue, black, grey, green, rose, navy, red
COLOURS = (
    (0.94, 0.95, 0.96),
    (0.55, 0.75, 0.88),
    (0.08, 0.08, 0.09),
    (0.50, 0.50, 0.52),
    (0.50, 0.72, 0.58),
    (0.90, 0.66, 0.70),
    (0.12, 0.17, 0.34),
    (0.66, 0.14, 0.16),
)
TEXTURES = ("plain", "pleated", "striped", "checked", "noisy", "two-tone")
GREY = (0.299, 0.587, 0.114)  # luma weights of ITU-R BT.601
NOISE_CELLS = 14  # cells of noise from side to side

FORM, LOOK, JITTER = 8, 12, 16  # columns of random numbers: place and shape, texture and colours, corners
DRAWS = FORM + LOOK + JITTER + NOISE_CELLS**2


def draw_masks(images: Tensor, probability: float, draws: Tensor) -> Tensor:
    """Draw a mask onto the chosen images; shape, size, tilt, texture and colours are random.

    A mask takes on the light of the image, and on a grey image it is grey.

    Args:
        images: float32 [b, 3, h, w] in [-1, 1], aligned faces.
        probability: of a mask, per image.
        draws: float32 [b, c], uniform in [0, 1).

    Returns:
        float32 [b, 3, h, w] in [-1, 1].
    """
    chosen = draws[:, 0] < probability
    if not chosen.any():
        return images
    light = (images[chosen] + 1.0) / 2.0
    form, look, jitter, noise = draws[chosen].split([FORM, LOOK, JITTER, NOISE_CELLS**2], dim=1)
    grid = _pixel_grid(light)
    corners, kind = _corners(form, jitter)
    covered = _inside(grid, corners, light.shape[-1])
    straps = _straps(grid, corners, light.shape[-1]) * ((form[:, 7] < 0.8) & (kind != SCARF))[:, None, None]
    first, second = (_colour(look[:, start : start + 4]) for start in (1, 5))
    share = _texture(grid, look, noise)[:, None]
    cloth = first * (1.0 - share) + second * share
    cloth = cloth * _shading(grid)[:, None] * _brightness(light)
    cloth = _as_coloured_as(light, cloth)
    strap = _as_coloured_as(light, (first * _brightness(light)).expand_as(cloth))
    light = light + (strap - light) * straps[:, None]
    light = light + (cloth - light) * covered[:, None]
    drawn = images.clone()
    drawn[chosen] = (light * 2.0 - 1.0).clamp(-1.0, 1.0)
    return drawn


def _pixel_grid(images: Tensor) -> Tensor:
    """Return the pixels' centres as x, y in pixels of the template, [h, w, 2]."""
    height, width = images.shape[-2:]
    y = (torch.arange(height, device=images.device) + 0.5) / height
    x = (torch.arange(width, device=images.device) + 0.5) / width
    return torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), dim=-1) * TEMPLATE


def _corners(form: Tensor, jitter: Tensor) -> tuple[Tensor, Tensor]:
    """Return the corners [b, v, 2] of each mask and which outline it has, [b]."""
    outlines = form.new_tensor(OUTLINES)
    kind = (form[:, 1] * len(OUTLINES)).long()
    middle = form.new_tensor([56.0, 90.0])
    spread = 2.0 * form - 1.0
    stretch = 1.0 + 0.08 * spread[:, 2:4]
    angle = torch.deg2rad(6.0 * spread[:, 4])
    corners = (outlines[kind] - middle) * stretch[:, None] + 1.5 * (2.0 * jitter - 1.0).unflatten(1, (-1, 2))
    turned = [
        corners[..., 0] * angle.cos()[:, None] - corners[..., 1] * angle.sin()[:, None],
        corners[..., 0] * angle.sin()[:, None] + corners[..., 1] * angle.cos()[:, None],
    ]
    return torch.stack(turned, dim=-1) + middle + 2.5 * spread[:, None, 5:7], kind


def _inside(grid: Tensor, corners: Tensor, side: int) -> Tensor:
    """Return how much of each pixel a convex outline covers, about, [b, h, w] in [0, 1]."""
    edges = corners.roll(-1, dims=1) - corners
    normals = torch.stack([-edges[..., 1], edges[..., 0]], dim=-1) / edges.norm(dim=-1, keepdim=True)
    offsets = (normals * corners).sum(dim=-1)
    depth = torch.einsum("hwc,bvc->bvhw", grid, normals) - offsets[..., None, None]
    return (0.5 + depth.amin(dim=1) * side / TEMPLATE).clamp(0.0, 1.0)


def _straps(grid: Tensor, corners: Tensor, side: int) -> Tensor:
    """Return how much of each pixel the four straps cover, about, [b, h, w] in [0, 1]."""
    nearest = grid.new_full((len(corners), *grid.shape[:2]), math.inf)
    for corner, ear in ((0, 0), (7, 0), (3, 1), (4, 1)):
        start = corners[:, corner, :, None, None]
        x, y = grid[..., 0] - start[:, 0], grid[..., 1] - start[:, 1]
        along_x, along_y = (grid.new_tensor(EARS[ear])[:, None, None] - start).unbind(dim=1)
        part = ((x * along_x + y * along_y) / (along_x.square() + along_y.square())).clamp(0.0, 1.0)
        nearest = torch.minimum(nearest, (x - part * along_x).square() + (y - part * along_y).square())
    return (0.5 + (STRAP - nearest.sqrt()) * side / TEMPLATE).clamp(0.0, 1.0)


def _colour(draws: Tensor) -> Tensor:
    """Return one colour per image near one of the usual ones, [b, 3, 1, 1] in [0, 1]."""
    usual = draws.new_tensor(COLOURS)[(draws[:, 0] * len(COLOURS)).long()]
    return (usual + 0.24 * (draws[:, 1:] - 0.5)).clamp(0.0, 1.0)[:, :, None, None]


def _texture(grid: Tensor, look: Tensor, noise: Tensor) -> Tensor:
    """Return the second colour's share in each pixel, [b, h, w] in [0, 1]."""
    kind = (look[:, 0] * len(TEXTURES)).long()
    angle, cycles, phase = math.pi * look[:, 9], 4.0 + 6.0 * look[:, 10], look[:, 11]
    x, y = grid[..., 0] / TEMPLATE, grid[..., 1] / TEMPLATE
    along = torch.einsum("hwc,bc->bhw", grid / TEMPLATE, torch.stack([angle.cos(), angle.sin()], dim=1))
    across = torch.einsum("hwc,bc->bhw", grid / TEMPLATE, torch.stack([-angle.sin(), angle.cos()], dim=1))
    waves, rows, others = (
        torch.sin(2.0 * math.pi * (place * cycles[:, None, None] + phase[:, None, None]))
        for place in (along, y.expand_as(along), across)
    )
    cells = noise.unflatten(1, (1, NOISE_CELLS, NOISE_CELLS))
    shares = {
        "plain": torch.zeros_like(along),
        "pleated": 0.35 * ((rows - 0.75) * 4.0).clamp(0.0, 1.0),
        "striped": (0.5 + 2.0 * waves).clamp(0.0, 1.0),
        "checked": (0.5 + 2.0 * waves * others).clamp(0.0, 1.0),
        "noisy": F.interpolate(cells, x.shape, mode="bilinear", align_corners=False)[:, 0],
        "two-tone": (0.5 + 40.0 * (along - (angle.cos() * 0.5 + angle.sin() * 0.8)[:, None, None])).clamp(0.0, 1.0),
    }
    every = torch.stack([shares[name] for name in TEXTURES], dim=1)
    return every[torch.arange(len(kind), device=kind.device), kind]


def _shading(grid: Tensor) -> Tensor:
    """Return the light on a surface that bends away from the nose to both sides and down, [1, h, w]."""
    away = (grid[..., 0] - FIVE_POINTS[2][0]) / 40.0
    below = (grid[..., 1] - FIVE_POINTS[2][1]).clamp(min=0.0) / 40.0
    return (1.06 - 0.28 * away.square() - 0.14 * below.square()).clamp(min=0.5)[None]


def _brightness(light: Tensor) -> Tensor:
    """Return how bright the scene is beside a usual one, [b, 1, 1, 1]."""
    return (0.4 + 1.2 * light.mean(dim=(1, 2, 3), keepdim=True)).clamp(max=1.05)


def _as_coloured_as(light: Tensor, cloth: Tensor) -> Tensor:
    """Return `cloth` grey where the image is."""
    grey = (cloth * cloth.new_tensor(GREY)[:, None, None]).sum(dim=1, keepdim=True).expand_as(cloth)
    colourless = (light - light.mean(dim=1, keepdim=True)).abs().amax(dim=(1, 2, 3), keepdim=True) < 1e-3
    return torch.where(colourless, grey, cloth)
