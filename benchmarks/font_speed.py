"""How fast each network of font_identities trains, measured side by side on few images.

The trainings themselves may share the machine with anything, so their own clocks compare nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from table import interleaved

from backbones.options import TrainOptions
from backbones.training.learner import Learner
from backbones.training.training_set import list_training, read_training

IMAGES = 384
REPETITIONS = 3


def training_speeds(trainings: Mapping[str, TrainOptions], repetitions: int = REPETITIONS) -> dict[str, float]:
    """Images a second of each training, medians of turns that they take; images are read and varied as ever."""
    learners = {name: _learner(options) for name, options in trainings.items()}
    for learner in learners.values():
        learner.train_epoch(0)  # allocations and just-in-time kernels of the first steps
    seconds = interleaved({name: lambda each=each: each.train_epoch(0) for name, each in learners.items()}, repetitions)
    return {name: learner.steps * learner.batch_size / seconds[name] for name, learner in learners.items()}


def _learner(options: TrainOptions) -> Learner:
    items = list_training(options)
    images = read_training(options, items[:: max(1, len(items) // IMAGES)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return Learner(options, images)
