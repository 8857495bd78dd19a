"""Averages of weights over the steps of a training, which generalise better than the last weights alone."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from backbones.options import TrainOptions

WARM = 10

Averaging = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]


def ema(decay: float) -> Averaging:
    """Return the exponential average: average += (1 - k) (weights - average), in place.

    k = min(decay, (1 + n) / (10 + n)) after n averages, so that the first steps forget the random start.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992, in exponential form.
    """

    def step(averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
        n = int(count)
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, 1.0 - min(decay, (1 + n) / (WARM + n)))

    return step


def swa(averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
    """Take weights into the mean of all so far, in place; source: Izmailov et al., "Averaging Weights", UAI 2018."""
    n = int(count)
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, 1.0 / (n + 1))


class WeightAverage:
    """The average that one training keeps of its weights.

    Norms are treated apart. Their weights are averaged, but means and variances of activations under averaged weights
    are no averages of those under the weights averaged, so `estimate_norms` measures them.

    Args:
        options: `average`, `average_decay`, `average_start`, `epochs`.
        modules: network and head by name.

    Attributes:
        model: holds the averaged modules, and the count; its state dict is that of the average.
    """

    def __init__(self, options: TrainOptions, modules: dict[str, nn.Module]) -> None:
        self.every_step = options.average == "ema"
        self.start = 0.75 * options.epochs if options.average_start is None else options.average_start
        function = ema(options.average_decay) if self.every_step else swa
        self.source = nn.ModuleDict(modules)
        self.model = AveragedModel(self.source, multi_avg_fn=function)
        self.estimated_at = -1

    @property
    def count(self) -> int:
        """How many weights have been averaged."""
        return int(self.model.n_averaged)

    def after_step(self) -> None:
        """Take the weights in, where each step counts."""
        if self.every_step:
            self.model.update_parameters(self.source)

    def after_epoch(self, epochs: int) -> None:
        """Take the weights in after `epochs` epochs, where epochs count and enough are done."""
        if not self.every_step and epochs > self.start:
            self.model.update_parameters(self.source)

    def module(self, name: str) -> nn.Module:
        """Return the averaged module of that name."""
        return self.model.module.get_submodule(name)

    def estimate_norms(self, batches: Callable[[], Iterable[Tensor]], seed: int) -> None:
        """Measure every norm's mean and variance under the averaged weights, once per average.

        Batches pass in training mode, as those that ordinary running statistics come from, and count equally.

        Args:
            batches: gives inputs of the network, float32 [b, 3, s, s], a few thousand images at least.
            seed: of dropout and skipped branches, drawn apart from those of the training.
        """
        if self.estimated_at == self.count:
            return
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            update_bn(batches(), self.module("network"))
        self.estimated_at = self.count
