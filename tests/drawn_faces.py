"""Small sets of drawn identities, and trainings of a network small enough for a test."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.networks.iresnet import ARCHITECTURES, IResNet
from backbones.options import TrainOptions

TINY = partial(IResNet, (1, 1, 1, 1), channels=(8, 8, 8, 8))

# The command line as it is, but for one more architecture.
DRIVER = """
import sys
from functools import partial
from backbones.networks.iresnet import ARCHITECTURES, IResNet
ARCHITECTURES["tiny"] = partial(IResNet, (1, 1, 1, 1), channels=(8, 8, 8, 8))
from backbones.train import main
sys.exit(main())
"""


@pytest.fixture(autouse=True, scope="module")
def tiny_architecture() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "tiny", TINY)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small wait for threads longer than they compute; and sums split over threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_identities(tmp_path_factory.mktemp("faces"), identities=6, images=6)


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other images of the same patterns under other names: a network that knows the one set knows the other."""
    return draw_identities(tmp_path_factory.mktemp("strangers"), identities=6, images=6, prefix="q", noise=12.5)


def draw_identities(root: Path, *, identities: int, images: int, prefix: str = "p", noise: float = 12) -> Path:
    """Each identity is a smooth random pattern; its images add noise."""
    generator = np.random.default_rng(0)
    for identity in range(identities):
        pattern = Image.fromarray(generator.integers(256, size=(5, 5, 3), dtype=np.uint8)).resize((24, 24))
        folder = root / f"{prefix}{identity}"
        folder.mkdir(parents=True)
        for image in range(images):
            noisy = np.asarray(pattern) + generator.normal(0, noise, size=(24, 24, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{image}.png")
    return root


def options(data: Path, out: Path, **changes: Any) -> TrainOptions:
    small = TrainOptions(
        data=data, out=out, arch="tiny", input_size=16, embedding_dim=8, epochs=4, batch_size=12, dropout=0.2
    )
    return dataclasses.replace(small, **changes)


def stop_after(epochs: int) -> Any:
    def on_epoch(record: dict[str, Any]) -> None:
        if record["epoch"] == epochs:
            raise KeyboardInterrupt

    return on_epoch
