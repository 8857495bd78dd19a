import numpy as np
import torch
from PIL import Image, ImageDraw

from backbones.augmentation import masks
from backbones.augmentation.masks import DRAWS, FIVE_POINTS, OUTLINES, TEXTURES, draw_masks


def uniform(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(seed))


def coloured(count: int, side: int) -> torch.Tensor:
    return torch.tensor([0.3, 0.0, -0.2])[:, None, None].expand(count, 3, side, side).clone()


def covered(images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    return ((images - drawn).abs() > 0.02).any(dim=1)


def point(shape: torch.Tensor, place: tuple[float, float]) -> torch.Tensor:
    return shape[:, int(place[1]), int(place[0])]


def test_probability_and_what_is_not_chosen() -> None:
    images = coloured(2000, 16)
    before = images.clone()
    drawn = draw_masks(images, 0.35, uniform(2000))
    assert torch.equal(images, before)
    share = (drawn != images).flatten(1).any(dim=1).float().mean()
    assert abs(float(share) - 0.35) < 4 * (0.35 * 0.65 / 2000) ** 0.5
    assert draw_masks(images, 0.0, uniform(2000)) is images
    assert drawn.abs().max() <= 1


def test_mouth_and_jaw_are_covered_and_the_eyes_are_not() -> None:
    images = coloured(300, 112)
    hidden = covered(images, draw_masks(images, 1.0, uniform(300)))
    left_eye, right_eye, nose, left_mouth, right_mouth = FIVE_POINTS
    for place in (left_mouth, right_mouth, (56.0, 100.0)):
        assert point(hidden, place).float().mean() > 0.93  # a texture may have the skin's colour in one place
    for eye in (left_eye, right_eye):
        for offset in (0.0, -6.0):
            assert not point(hidden, (eye[0], eye[1] + offset)).any()
    assert 0.6 < point(hidden, nose).float().mean() < 0.95  # one outline of five leaves the nose free
    share = hidden.float().mean(dim=(1, 2))
    assert share.min() > 0.08
    assert share.max() < 0.62


def test_outline_is_the_polygon_of_its_corners() -> None:
    draws = torch.full((len(OUTLINES), DRAWS), 0.5)  # in the middle of every range: no stretch, tilt, shift
    draws[:, 1] = (torch.arange(len(OUTLINES)) + 0.5) / len(OUTLINES)
    draws[:, 7] = 0.99  # no straps
    draws[:, 8] = 0.0  # plain
    images = coloured(len(OUTLINES), 224)
    hidden = covered(images, draw_masks(images, 1.0, draws))
    for shape, outline in zip(hidden, OUTLINES, strict=True):
        picture = Image.new("1", (224, 224))
        ImageDraw.Draw(picture).polygon([(2 * x, 2 * y) for x, y in outline], fill=1)
        expected = np.asarray(picture)
        overlap = (shape.numpy() & expected).sum() / (shape.numpy() | expected).sum()
        assert overlap > 0.97


def test_shapes_and_textures_are_many() -> None:
    images = coloured(400, 56)
    draws = uniform(400, 2)
    drawn = draw_masks(images, 1.0, draws)
    assert len(torch.unique(drawn.flatten(1), dim=0)) == 400
    kinds = (draws[:, masks.FORM] * len(TEXTURES)).long()
    variation = drawn[:, :, 44:54, 20:36].flatten(2).std(dim=2).mean(dim=1)
    means = {name: float(variation[kinds == number].mean()) for number, name in enumerate(TEXTURES)}
    assert min(means["striped"], means["checked"], means["noisy"]) > 1.5 * means["plain"]
    assert all((kinds == number).any() for number in range(len(TEXTURES)))


def test_images_are_independent_of_their_batch() -> None:
    images = torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    draws = uniform(6, 3)
    together = draw_masks(images, 1.0, draws)
    for place in range(6):
        alone = draw_masks(images[place : place + 1], 1.0, draws[place : place + 1])[0]
        torch.testing.assert_close(alone, together[place], rtol=0, atol=1e-5)


def test_a_mask_is_in_the_same_place_in_every_size() -> None:
    draws = uniform(40, 4)
    draws[:, 8] = 0.0
    small, large = (covered(coloured(40, side), draw_masks(coloured(40, side), 1.0, draws)) for side in (36, 108))
    shares = large.float().unflatten(1, (36, 3)).unflatten(3, (36, 3)).mean(dim=(2, 4))
    assert (small.float() - shares).abs().mean() < 0.06


def test_grey_images_get_grey_masks_and_dark_images_dark_ones() -> None:
    draws = uniform(30, 5)
    grey = draw_masks(torch.zeros(30, 3, 32, 32), 1.0, draws)
    assert (grey - grey.mean(dim=1, keepdim=True)).abs().max() < 1e-5
    colours = draw_masks(coloured(30, 32), 1.0, draws)
    assert (colours - colours.mean(dim=1, keepdim=True)).abs().amax(dim=(1, 2, 3)).mean() > 0.3
    dark = draw_masks(torch.full((30, 3, 32, 32), -0.95), 1.0, draws)
    assert dark[:, :, 28, 16].mean() < grey[:, :, 28, 16].mean() - 0.3
