import numpy as np
import pytest
import torch
from torch.nn import functional as F

from backbones.augmentation.views import augment, augmented_view, low_light_test
from backbones.options import PUBLISHED_AUGMENTATION, AugmentOptions

NOTHING = AugmentOptions(
    flip=0.0, scale=0.0, shift=0.0, rotation=0.0, brightness=0.0, contrast=0.0, saturation=0.0, occlusion=0.0, blur=0.0
)


def smooth_images(count: int, size: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def replace(**changes: float) -> AugmentOptions:
    return AugmentOptions(**{**{name: getattr(NOTHING, name) for name in NOTHING.__dataclass_fields__}, **changes})


def test_all_strengths_at_zero_change_nothing() -> None:
    images = smooth_images(4, 20)
    torch.testing.assert_close(augment(images, NOTHING, generator()), images, rtol=0, atol=1e-5)


def test_bytes_and_floats_give_the_same() -> None:
    pixels = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator())
    from_bytes = augment(pixels, AugmentOptions(), generator(1))
    from_floats = augment(pixels.float() / 127.5 - 1, AugmentOptions(), generator(1))
    assert from_bytes.dtype == torch.float32
    assert torch.equal(from_bytes, from_floats)


def test_seeded_and_within_range() -> None:
    images = smooth_images(16, 24)
    first, again, other = (augment(images, AugmentOptions(), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= -1
    assert first.max() <= 1


def test_certain_flip_mirrors() -> None:
    images = smooth_images(4, 21)
    torch.testing.assert_close(augment(images, replace(flip=1.0), generator()), images.flip(3), rtol=0, atol=1e-5)


def test_images_of_a_batch_vary_independently() -> None:
    same = smooth_images(1, 24).expand(8, -1, -1, -1)
    for options in (replace(shift=0.2), replace(brightness=0.3), replace(rotation=20.0), replace(occlusion=1.0)):
        varied = augment(same, options, generator())
        assert len(torch.unique(varied.flatten(1), dim=0)) == 8


def test_brightness_contrast_and_saturation_follow_their_definitions() -> None:
    images = smooth_images(5, 12) * 0.3  # far from the ends of the range, where nothing is cut off
    light, grey_weights = images + 1, torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    brighter = augment(images, replace(brightness=0.2), generator(4)) + 1
    ratio = (brighter / light).flatten(1)
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), atol=1e-4)
    assert (ratio - 1).abs().max() <= 0.2001
    mean = light.mean(dim=(1, 2, 3), keepdim=True)
    contrast = augment(images, replace(contrast=0.2), generator(4)) + 1
    assert torch.allclose(contrast.mean(dim=(1, 2, 3), keepdim=True), mean, atol=1e-4)
    colored = augment(images, replace(saturation=0.5), generator(4)) + 1
    assert torch.allclose((colored * grey_weights).sum(1), (light * grey_weights).sum(1), atol=1e-4)


def test_occlusion_covers_one_rectangle_of_one_colour() -> None:
    images = smooth_images(20, 40)
    varied = augment(images, replace(occlusion=1.0, occlusion_side=0.5), generator(5))
    for before, after in zip(images, varied, strict=True):
        changed = ((before - after).abs() > 1e-4).any(dim=0)
        assert 0 < changed.sum() <= 21 * 21
        rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
        block = after[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert torch.unique(block.flatten(1), dim=1).shape[1] == 1


def test_a_view_shows_the_same_in_every_input_size() -> None:
    options = AugmentOptions(occlusion=1.0, blur=0.0)
    pixels = [
        ((smooth_images(1, size)[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy() for size in (36, 108)
    ]
    for view in range(1, 9):
        small, large = (
            augmented_view(image, item_id="s1/3.pgm", view=view, seed=7, options=options).astype(float)
            for image in pixels
        )
        shrunk = large.reshape(36, 3, 36, 3, 3).mean(axis=(1, 3))
        changed = np.abs(small - pixels[0].astype(float)).mean()
        assert np.abs(small - shrunk).mean() < 0.2 * changed


def test_views_depend_on_item_view_and_seed_alone() -> None:
    image = np.random.default_rng(0).integers(256, size=(20, 20, 3), dtype=np.uint8)
    first = augmented_view(image, item_id="a/1", view=1, seed=0, options=AugmentOptions())
    torch.manual_seed(99)
    again = augmented_view(image, item_id="a/1", view=1, seed=0, options=AugmentOptions())
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.uint8
    for changed in ({"item_id": "a/2"}, {"view": 2}, {"seed": 1}):
        arguments = {"item_id": "a/1", "view": 1, "seed": 0} | changed
        other = augmented_view(image, options=AugmentOptions(), **arguments)  # pyright: ignore[reportArgumentType]
        assert (other != first).any()


def test_view_zero_is_the_image_and_negative_views_are_refused() -> None:
    image = np.random.default_rng(0).integers(256, size=(20, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        augmented_view(image, item_id="a", view=0, seed=0, options=PUBLISHED_AUGMENTATION), image
    )
    with pytest.raises(ValueError, match="view is -1"):
        augmented_view(image, item_id="a", view=-1, seed=0, options=PUBLISHED_AUGMENTATION)


def test_impossible_strengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"augmentation flip is 1.5, expected 0 to 1"):
        AugmentOptions(flip=1.5)
    with pytest.raises(ValueError, match=r"augmentation blur_factor is 0.0, expected above 0"):
        AugmentOptions(blur_factor=0.0)
    with pytest.raises(ValueError, match=r"augmentation mask is -0.1, expected 0 to 1"):
        AugmentOptions(mask=-0.1)
    with pytest.raises(ValueError, match=r"augmentation crop is 1.0, expected 0 to below 1"):
        AugmentOptions(crop=1.0)
    with pytest.raises(ValueError, match=r"augmentation low_light_gamma is 0.5, expected at least 1"):
        AugmentOptions(low_light_gamma=0.5)


LATER = {"mask": 1.0, "crop": 0.3, "low_light": 1.0}


@pytest.mark.parametrize("name", LATER)
def test_later_effects_leave_the_draws_of_all_others_alone(name: str) -> None:
    images = smooth_images(12, 24)
    # an effect that is chosen and does nothing: the rest must come out as without it
    nothing = {"mask": {"mask": 1e-9}, "crop": {"crop": 1e-9}, "low_light": {"low_light": 1.0, "low_light_gamma": 1.0}}[
        name
    ]
    with_it, without = generator(3), generator(3)
    varied = augment(images, AugmentOptions(**nothing), with_it)
    torch.testing.assert_close(varied, augment(images, AugmentOptions(), without), rtol=0, atol=1e-5)
    assert torch.equal(with_it.get_state(), without.get_state())
    for other, strength in LATER.items():
        if other != name and (name, other) != ("crop", "mask"):
            both = augment(images, replace(**nothing, **{other: strength}), generator(4))
            torch.testing.assert_close(
                both, augment(images, replace(**{other: strength}), generator(4)), rtol=0, atol=1e-4
            )


@pytest.mark.parametrize("name", LATER)
def test_later_effects_are_seeded_and_differ_within_a_batch(name: str) -> None:
    same = smooth_images(1, 24).expand(8, -1, -1, -1)
    options = replace(**{name: LATER[name]})
    first, again, other = (augment(same, options, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(torch.unique(first.flatten(1), dim=0)) == 8


def test_default_views_are_those_of_before_the_later_effects() -> None:
    # Values made when the first 18 columns were all there was.
    pixels = (torch.arange(3 * 8 * 8) * 37 % 256).to(torch.uint8).reshape(1, 3, 8, 8).expand(4, -1, -1, -1)
    varied = augment(pixels, AugmentOptions(), generator(11))
    torch.testing.assert_close(
        varied[:, 0, 3, 4], torch.tensor([0.60972893, -0.74512982, -0.39389390, 0.27896428]), rtol=0, atol=1e-5
    )


def test_crop_stretches_a_window_within_the_image() -> None:
    ramp = torch.linspace(-1, 1, 64)
    images = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)]).expand(
        200, -1, -1, -1
    )
    cropped = augment(images, replace(crop=0.5), generator(5))
    columns, rows = cropped[:, 0, 32], cropped[:, 1, :, 32]
    widths, heights = ((line[:, 48] - line[:, 16]) / (ramp[48] - ramp[16]) for line in (columns, rows))
    torch.testing.assert_close(widths, heights, rtol=0, atol=1e-3)  # a square
    assert 0.5 <= widths.min() < 0.53
    assert 0.97 < widths.max() <= 1.001
    for line in (columns, rows):  # within the image, at its ends too
        lowest, highest = line[:, 0], line[:, -1]
        assert lowest.min() < -0.9
        assert highest.max() > 0.9
        torch.testing.assert_close(highest - lowest, 2 * widths, rtol=0, atol=0.03)


def test_low_light_is_a_power_of_the_light() -> None:
    images = smooth_images(50, 12)
    dark = (augment(images, replace(low_light=1.0, low_light_gamma=3.0), generator(6)) + 1) / 2
    light = (images + 1) / 2
    gamma = dark.log() / light.log()
    middle = gamma.flatten(1).median(dim=1).values
    assert ((gamma - middle[:, None, None, None]).abs() < 0.02)[(light > 0.1) & (light < 0.9)].all()
    assert 1.0 <= middle.min() < 1.2
    assert 2.8 < middle.max() <= 3.001
    some = augment(images, replace(low_light=0.3), generator(6))
    assert 5 <= int((some - images).abs().flatten(1).amax(dim=1).gt(1e-4).sum()) <= 25


def test_the_low_light_test_is_the_published_transform() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    expected = (2 * np.sqrt(pixels.astype(np.float64))).astype(np.uint8)
    found = low_light_test(torch.from_numpy(pixels))
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found, expected)
    assert (int(found[255]), int(found[64]), int(found[0])) == (31, 16, 0)
