"""Every recipe in the package loads, starts, and says where each of its values comes from."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from drawn_faces import faces, one_thread, options, tiny_architecture

import backbones
from backbones.checkpoint import load_card
from backbones.losses.heads import CosFace
from backbones.networks.iresnet import build_architecture
from backbones.options import TrainOptions
from backbones.train import main, train

__all__ = ["faces", "one_thread", "tiny_architecture"]  # fixtures
RECIPES = sorted((Path(backbones.__file__).parent / "recipes").glob("*.yaml"))
SMALL = "--arch tiny --input-size 16 --embedding-dim 8 --epochs 1 --batch-size 12 --accumulate 2 --warmup-epochs 0"
NEEDED = {
    "high_resolution": "--finetune-from",
    "anchor_finetuning": "--finetune-from",
    "angular_distillation": "--teacher",
    "backward_compatible": "--compatible-with",
}


def test_there_is_one_for_each_published_training() -> None:
    assert [path.stem for path in RECIPES] == [
        "anchor_finetuning",
        "angular_distillation",
        "arcface",
        "arcnegface",
        "backward_compatible",
        "cosface",
        "high_resolution",
        "iresnet50",
        "large_batch",
        "low_resolution",
    ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_starts_on_tiny_images(tmp_path: Path, faces: Path, path: Path) -> None:
    command = ["--config", str(path), "--data", str(faces), "--out", str(tmp_path / "out"), *SMALL.split()]
    if path.stem in NEEDED:
        earlier = train(options(faces, tmp_path / "earlier", epochs=1)).weights.parent
        command += [NEEDED[path.stem], str(earlier)]
    assert main(command) == 0
    card = load_card(tmp_path / "out")
    small = {"arch", "input_size", "embedding_dim", "epochs", "batch_size", "accumulate", "warmup_epochs"}
    for name, value in yaml.safe_load(path.read_text()).items():
        found = card["recipe"][name]
        if name == "augmentation":
            assert {inner: found[inner] for inner in value} == value
        elif name not in small:
            assert found == value, name


def test_the_recipe_of_distillation_takes_images_without_identities(tmp_path: Path, faces: Path) -> None:
    earlier = train(options(faces, tmp_path / "earlier", epochs=1)).weights
    recipe = RECIPES[0].parent / "angular_distillation.yaml"
    command = ["--config", str(recipe), "--data", str(faces / "p0"), "--out", str(tmp_path / "out"), *SMALL.split()]
    assert main([*command, "--batch-size", "6", "--head", "none", "--teacher", str(earlier)]) == 0
    assert load_card(tmp_path / "out")["data"]["unlabelled"] == 6


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_value_of_a_recipe_names_its_source(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert any("Source" in line for line in lines)
    section = ""  # the comment beside `augmentation:`, where it holds for all below
    for line in lines:
        if line and not line.startswith("#"):
            value, _, comment = line.partition("#")
            if value.rstrip().endswith(":"):
                section = comment
            else:
                assert comment or (section and value.startswith(" ")), line


def test_the_values_of_the_papers() -> None:
    names = ("arcface", "cosface", "angular_distillation")
    arcface, cosface, distilled = (yaml.safe_load((RECIPES[0].parent / f"{name}.yaml").read_text()) for name in names)
    # 100,000, 160,000 and 180,000 iterations of 512 among 5,822,653 images
    per_epoch = 5_822_653 / arcface["batch_size"]
    assert arcface["milestones"] == pytest.approx([100_000 / per_epoch, 160_000 / per_epoch], rel=1e-3)
    assert arcface["epochs"] == round(180_000 / per_epoch)
    assert (cosface["head"], cosface["margin"]) == ("cosface", 0.4)
    assert (distilled["distillation_weight"], distilled["augmentation"]["mask"]) == (9, 0.35)
    assert (distilled["head"], CosFace.PUBLISHED_MARGIN) == ("cosface", 0.4)
    known = {field.name for field in dataclasses.fields(TrainOptions)}
    for path in RECIPES:
        recipe = yaml.safe_load(path.read_text())
        with torch.device("meta"):  # the network itself, which the run on tiny images replaces
            network = build_architecture(recipe.get("arch", "iresnet18"), input_size=recipe["input_size"])
        assert network.embedding_dim == recipe["embedding_dim"]
    assert all(set(yaml.safe_load(path.read_text())) <= known for path in RECIPES)
