import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from backbones.checkpoint import (
    load_card,
    load_progress,
    load_training_state,
    load_weights,
    replace_file,
    save_model,
    save_training_state,
    tensor_digest,
)


class Training:
    """A small training with everything that has state: weights, statistics, moments, dropout and shuffling."""

    def __init__(self, optimizer: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
        self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(self.network.parameters(), lr=0.001, momentum=0.9)
            if optimizer == "sgd"
            else torch.optim.AdamW(self.network.parameters(), lr=0.01)
        )
        self.generator = torch.Generator().manual_seed(seed)

    def steps(self, count: int) -> None:
        for _ in range(count):
            images = torch.randn(4, 3, 5, 5, generator=self.generator)
            self.optimizer.zero_grad()
            self.network(images).square().sum().backward()
            self.optimizer.step()

    def save(self, path: Path) -> None:
        save_training_state(
            path,
            modules={"network": self.network},
            optimizer=self.optimizer,
            generators={"order": self.generator},
            progress={"epoch": 3, "name": "é"},
        )

    def load(self, path: Path) -> dict[str, object]:
        return load_training_state(
            path,
            modules={"network": self.network},
            optimizer=self.optimizer,
            generators={"order": self.generator},
        )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_restored_training_goes_on_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    straight = Training(optimizer, seed=0)
    straight.steps(3)
    straight.save(tmp_path / "state.safetensors")
    straight.steps(3)
    resumed = Training(optimizer, seed=1)
    resumed.steps(1)
    assert resumed.load(tmp_path / "state.safetensors") == {"epoch": 3, "name": "é"}
    resumed.steps(3)
    for (name, expected), found in zip(
        straight.network.state_dict().items(), resumed.network.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, found), name


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    training = Training("sgd", seed=0)
    training.steps(1)
    for name in "abcdef":
        training.save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    training = Training("sgd", seed=0)
    training.steps(1)
    training.save(path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    places = {*generator.integers(len(whole), size=150).tolist(), *range(0, 64, 7), len(whole) - 1}
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            training.load(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="damaged"):
        training.load(path)


def test_a_state_of_another_shape_or_optimizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    Training("sgd", seed=0).save(path)
    with pytest.raises(ValueError, match="holds the state of SGD, expected AdamW; give the options of the first run"):
        Training("adamw", seed=0).load(path)
    other = Training("sgd", seed=0)
    other.network = nn.Sequential(nn.Conv2d(3, 5, 3))
    with pytest.raises(ValueError, match=r"found torch.float32 \[4\] for modules/network/0.bias, expected .*\[5\]"):
        other.load(path)
    with pytest.raises(FileNotFoundError, match="not found; expected a safetensors file"):
        other.load(tmp_path / "none.safetensors")


def test_progress_is_read_alone(tmp_path: Path) -> None:
    Training("sgd", seed=0).save(tmp_path / "state.safetensors")
    assert load_progress(tmp_path / "state.safetensors") == {"epoch": 3, "name": "é"}


def test_a_model_and_its_card_come_back(tmp_path: Path) -> None:
    network, other = Training("sgd", seed=0).network, Training("sgd", seed=1).network
    weights = save_model(tmp_path / "model", network, {"arch": "small"})
    load_weights(weights, other)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    digest = tensor_digest(network.state_dict())
    assert load_card(tmp_path / "model") == {"format_version": 2, "arch": "small", "weights_sha256": digest}
    assert weights.stat().st_mode & 0o444 == (tmp_path / "model" / "card.json").stat().st_mode & 0o444
    assert sorted(path.name for path in weights.parent.iterdir()) == ["card.json", "model.safetensors"]


def test_a_head_comes_back_and_does_not_outlive_its_network(tmp_path: Path) -> None:
    head, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_model(tmp_path, nn.Linear(1, 1), {}, head=head)
    load_weights(tmp_path / "head.safetensors", other)
    assert torch.equal(head.weight, other.weight)
    save_model(tmp_path, nn.Linear(1, 1), {})
    assert not (tmp_path / "head.safetensors").exists()


def test_cards_of_the_first_format_are_read(tmp_path: Path) -> None:
    card = {"format_version": 1, "arch": "small"}
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
    (tmp_path / "card.json").write_text(json.dumps(card | {"sha256": digest}))
    assert load_card(tmp_path) == card


def test_cards_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model card"):
        load_card(tmp_path)
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        load_card(tmp_path)
    save_model(tmp_path, nn.Linear(1, 1), {"flip_average": True})
    card = (tmp_path / "card.json").read_text()
    (tmp_path / "card.json").write_text(card.replace("true", "false"))
    with pytest.raises(ValueError, match="damaged or was edited"):
        load_card(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99, expected 1 to 2"):
        load_card(tmp_path)


def test_what_a_kill_left_half_written_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / ".model.safetensors.partial").write_text("half")
    save_model(tmp_path, nn.Linear(1, 1), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "model.safetensors"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
