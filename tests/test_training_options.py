"""Options that would do nothing, or harm, are refused before anything is read."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from drawn_faces import faces, one_thread, options, tiny_architecture

from backbones.checkpoint import load_card
from backbones.options import TrainOptions
from backbones.train import main, train
from backbones.training.card import check_same_recipe, recipe_of

__all__ = ["faces", "one_thread", "tiny_architecture"]  # fixtures
SMALL = "--arch tiny --input-size 16 --embedding-dim 8 --epochs 1 --batch-size 12"
OPTIONS = TrainOptions(data=Path("data"), out=Path("out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_epochs": 5, "epochs": 1}, "warmup_epochs is 5 and epochs 1, expected fewer"),
        ({"warmup_epochs": 24}, "warmup_epochs is 24 and epochs 24, expected fewer"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        (
            {"schedule": "multistep", "milestones": [3.0], "milestone_factor": -2.0},
            "milestone_factor is -2.0, expected above 0 and below 1",
        ),
        ({"schedule": "multistep", "milestones": [3.0], "milestone_factor": 1.0}, "milestone_factor is 1.0, expected"),
        ({"milestone_factor": 0.5}, "milestone_factor is 0.5 and would do nothing"),
        ({"scale": -3.0}, "scale is -3.0, expected above 0"),
        ({"scale": float("inf")}, "scale is inf, expected a finite number"),
        ({"weight_decay": float("nan")}, "weight_decay is nan, expected a finite number"),
        ({"scale": 30.0, "head": "softmax"}, "scale is 30.0 and would do nothing"),
        ({"distillation_weight": 3.0}, "distillation_weight is 3.0 and would do nothing, for it belongs to teacher"),
        ({"distillation_weight": 0.0, "teacher": Path("t")}, "distillation_weight is 0.0, expected above 0"),
        ({"influence_weight": 2.0}, "influence_weight is 2.0 and would do nothing, for it belongs to compatible_with"),
        ({"power": 3.0}, "power is 3.0 and would do nothing"),
        ({"trust_coefficient": 0.1}, "trust_coefficient is 0.1 and would do nothing"),
        ({"momentum": 0.5, "optimizer": "adamw"}, "momentum is 0.5 and would do nothing"),
        ({"average_decay": 0.5, "average": "swa"}, "average_decay is 0.5 and would do nothing"),
        ({"unlabelled": Path("more")}, "images without identities learn from a teacher"),
        ({"validation_root": Path("there")}, "validation_root is there and would do nothing"),
    ],
)
def test_options_without_effect_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        dataclasses.replace(OPTIONS, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_the_rate_comes_to_its_highest_in_every_length(tmp_path: Path, faces: Path, epochs: int) -> None:
    rates: list[float] = []
    asked = options(faces, tmp_path / "out", epochs=epochs, batch_size=6, schedule="constant", log_every=1)
    train(asked)
    lines = (tmp_path / "out" / "steps.jsonl").read_text().splitlines()
    rates = [float(line.split('"learning_rate": ')[1].split(",")[0]) for line in lines]
    assert len(rates) == 6 * epochs
    assert max(rates) == asked.learning_rate
    assert rates.index(asked.learning_rate) == {1: 3, 2: 6, 3: 12}[epochs]  # two epochs, or half of what there is


def test_a_recipe_of_an_earlier_release_had_a_warmup_of_two_epochs() -> None:
    found = recipe_of(OPTIONS) | {"warmup_epochs": 2.0}
    check_same_recipe(Path("card.json"), found, recipe_of(OPTIONS))
    with pytest.raises(ValueError, match=r"warmup_epochs = 2\.0, this run asks for 1\.0"):
        check_same_recipe(Path("card.json"), found, recipe_of(dataclasses.replace(OPTIONS, warmup_epochs=1.0)))


def test_a_yes_or_no_option_needs_no_word(tmp_path: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL.split(), "--data"]
    earlier = train(options(faces, tmp_path / "earlier", epochs=1)).weights
    command = [*words, str(faces), "--finetune-from", str(earlier)]
    assert main([*command, "--anchors", "--flip-average", "no", "--out", str(tmp_path / "a"), "--nesterov"]) == 0
    recipe = load_card(tmp_path / "a")["recipe"]
    assert (recipe["anchors"], recipe["nesterov"], recipe["flip_average"]) == (True, True, False)
    assert main([*command, "--out", str(tmp_path / "b"), "--anchors=no", "--checkpoint-activations"]) == 0
    recipe = load_card(tmp_path / "b")["recipe"]
    assert (recipe["anchors"], recipe["checkpoint_activations"]) == (False, True)
    assert main([*words, str(faces), "--out", str(tmp_path / "c"), "--epochs"]) == 2
    assert "expected one argument" in capsys.readouterr().err
