"""Batch normalisation adapted to another domain without training (AdaBN).

Source: Li et al., "Revisiting Batch Normalization for Practical Domain Adaptation", ICLR workshop 2017.

Shapes: n images of all batches, b of one batch, h and w of a feature map, c channels.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Norm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class NormStatistics:
    """What the statistics were estimated on.

    Attributes:
        norms: norms re-estimated.
        images: images, mirror images included.
    """

    norms: int
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


class _Reached(Exception):
    """The norm to be measured has seen its input; what follows it is not needed."""


class _Moments:
    """Sums over one norm's input, in float64 and about its old mean, so that no digits cancel."""

    def __init__(self, norm: Norm, mean: Tensor) -> None:
        self.epsilon = norm.eps
        self.centre = mean.clone()
        self.count = 0
        self.sum = torch.zeros_like(mean, dtype=torch.float64)
        self.squares = torch.zeros_like(self.sum)

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        away = inputs[0].transpose(0, 1).flatten(1) - self.centre[:, None]  # [c, b h w]
        self.count += away.shape[1]
        self.sum += away.sum(dim=1, dtype=torch.float64)
        self.squares += away.square().sum(dim=1, dtype=torch.float64)
        raise _Reached

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        shift = self.sum / self.count
        variance = (self.squares / self.count - shift.square()).clamp(min=0)
        return self.centre.double() + shift, variance


class _Spool:
    """Tensors written one after the other to a file without a name, and read back in that order."""

    def __init__(self) -> None:
        self.file = TemporaryFile()  # noqa: SIM115  closed by close()
        self.shapes: list[torch.Size] = []

    def write(self, features: Tensor) -> None:
        features.cpu().contiguous().numpy().tofile(self.file)
        self.shapes.append(features.shape)

    def __iter__(self) -> Iterator[Tensor]:
        self.file.seek(0)
        for shape in self.shapes:
            yield torch.from_numpy(np.fromfile(self.file, dtype=np.float32, count=shape.numel())).reshape(shape)

    def close(self) -> None:
        self.file.close()


@torch.no_grad()
def spooled_bytes(steps: Sequence[nn.Module], image: Tensor) -> int:
    """Return how much temporary disk `adapt_norms` takes at most for each input like `image`, [1, 3, h, w]."""
    lengths = [each.numel() for each in _outputs(_joined(steps, image), image)]
    return 4 * max(before + after for before, after in zip([0, *lengths], [*lengths, 0], strict=True))


def require_space(needed: int) -> None:
    """Raise OSError where the folder of temporary files has not `needed` bytes left."""
    free = shutil.disk_usage(gettempdir()).free
    if needed > free:
        raise OSError(
            f"adapting the norms takes {needed / 1e9:.1f} GB in {gettempdir()}, which has {free / 1e9:.1f} GB left; "
            "take fewer images (--adabn-images), or name another folder by TMPDIR"
        )


def _joined(steps: Sequence[nn.Module], image: Tensor) -> list[nn.Module]:
    """Join each step whose features are larger than those of the next with it, so that they are never spooled."""
    joined: list[list[nn.Module]] = [[]]
    lengths = [each.numel() for each in _outputs(steps, image)]
    for step, length, following in zip(steps, lengths, [*lengths[1:], 0], strict=True):
        joined[-1].append(step)
        if length <= following or step is steps[-1]:
            joined.append([])
    return [group[0] if len(group) == 1 else nn.Sequential(*group) for group in joined if group]


def _outputs(steps: Sequence[nn.Module], image: Tensor) -> Iterator[Tensor]:
    """Yield what each step gives for an input."""
    for step in steps:
        image = step.eval()(image)
        yield image


@torch.no_grad()
def adapt_norms(steps: Sequence[nn.Module], images: Iterable[Tensor]) -> NormStatistics:
    """Give every norm the mean and variance of its input over all the images; change nothing else.

    The statistics are those of the whole set, not a running average: each norm is measured when all norms before it
    have theirs, which is what sending all images through the network in training mode as one batch gives (with the
    variance of the set itself, divided by n h w). They do not depend on the old ones, nor on how the images are
    batched but for rounding, and are the same each time on the same machine.

    Memory holds one batch. The features between two steps lie in a temporary file, and each step is computed once per
    norm in it, so that the work is that of a few passes however deep the network is. A step that gives more than the
    next one, such as the stem, is computed again with it instead: `spooled_bytes` tells what an image takes.

    Args:
        steps: the network's parts, each of which takes what the one before it gives; left in evaluation mode.
        images: the network's inputs in batches, float32 [b, 3, h, w]; gone through more than once, and the same each
            time.

    Raises:
        ValueError: where the network has no norms, there are no images, or its features are not finite.
    """
    found = 0
    features: Iterable[Tensor] = images
    first = next((batch[:1] for batch in images), None)
    if first is not None and steps:
        steps = _joined(steps, first.to(_device(steps[0])))
    spool: _Spool | None = None
    try:
        for step in steps:
            step.eval()
            norms = [module for module in step.modules() if isinstance(module, Norm)]
            for norm in norms:
                _adapt(norm, step, features)
            found += len(norms)
            after = _Spool()
            try:
                for batch in features:
                    after.write(step(batch.to(_device(step))))
            except BaseException:
                after.close()
                raise
            if spool is not None:
                spool.close()
            features = spool = after
    finally:
        if spool is not None:
            spool.close()
    if not found:
        raise ValueError("the network has no batch normalisation; AdaBN adapts nothing else")
    return NormStatistics(found, 0 if spool is None else sum(shape[0] for shape in spool.shapes))


def _adapt(norm: Norm, step: nn.Module, features: Iterable[Tensor]) -> None:
    """Give a norm of `step` the statistics of its input, where `features` go into the step."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a norm of the network keeps no statistics, so there is nothing to adapt")
    moments = _Moments(norm, norm.running_mean)
    hook = norm.register_forward_pre_hook(moments.add)
    try:
        for batch in features:
            try:
                step(batch.to(norm.running_mean.device))
            except _Reached:
                continue
    finally:
        hook.remove()
    if not moments.count:
        raise ValueError("there are no images to adapt to; give a folder of readable ones")
    mean, variance = moments.mean_and_variance()
    if not (torch.isfinite(mean).all() and torch.isfinite(variance).all()):
        raise ValueError("the network's features on these images are not finite; its weights are unusable")
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def _device(step: nn.Module) -> torch.device:
    return next((value.device for value in step.state_dict().values()), torch.device("cpu"))
