"""An interrupted and resumed training equals an uninterrupted one bit for bit, whatever its options."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_faces import DRIVER, draw_identities, faces, one_thread, options, stop_after, tiny_architecture

from backbones.checkpoint import load_progress, read_tensors, write_tensors
from backbones.train import main, train
from backbones.training.metrics_log import read_steps

__all__ = ["faces", "one_thread", "tiny_architecture"]  # fixtures
ROOT = Path(__file__).parents[1]
PATHS = ("teacher", "compatible_with", "finetune_from", "unlabelled")

CASES: dict[str, dict[str, Any]] = {
    "nesterov": {"nesterov": True, "label_smoothing": 0.1, "regular_face": 0.5},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.001, "schedule": "polynomial"},
    "lars": {"optimizer": "lars", "learning_rate": 3.0, "schedule": "multistep", "milestones": [2.5]},
    "accumulation": {"accumulate": 3, "head": "cosface"},
    "stochastic depth": {"stochastic_depth": 0.4, "head": "arcnegface", "checkpoint_activations": True},
    "ema": {"average": "ema", "average_decay": 0.9},
    "swa": {"average": "swa", "average_start": 1.0, "head": "softmax"},
    "fp16": {"precision": "fp16", "accumulate": 2},
    "bf16": {"precision": "bf16", "average": "ema", "optimizer": "lars", "learning_rate": 3.0},
    "distillation": {"teacher": "npz"},
    "distillation without labels": {"teacher": "npz", "head": "none"},
    "images without identities": {"teacher": "folder", "unlabelled": "more"},
    "live teacher, compatible": {"teacher": "folder", "compatible_with": "folder"},
    "anchors": {"finetune_from": "folder", "anchors": True, "average": "ema"},
}


@pytest.fixture(scope="module")
def earlier(tiny_architecture: None, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training, and vectors of the same images."""
    folder = tmp_path_factory.mktemp("earlier")
    train(options(faces, folder / "folder", epochs=2, seed=5))
    ids = [f"p{identity}/{image}.png" for identity in range(6) for image in range(6)]
    vectors = np.random.default_rng(0).normal(size=(36, 8)).astype(np.float32)
    np.savez(folder / "npz.npz", vectors=vectors, item_id=np.array(ids))
    drawn = draw_identities(folder / "drawn", identities=1, images=3, prefix="m")
    shutil.move(drawn / "m0", folder / "more")
    return folder


def with_paths(changes: dict[str, Any], earlier: Path) -> dict[str, Any]:
    places = {"npz": earlier / "npz.npz", "folder": earlier / "folder", "more": earlier / "more"}
    return {name: places.get(value, value) if name in PATHS else value for name, value in changes.items()}


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path: Path, faces: Path, earlier: Path, case: str) -> None:
    changes = with_paths(CASES[case], earlier)
    straight = train(options(faces, tmp_path / "straight", **changes))
    interrupted = options(faces, tmp_path / "interrupted", log_every=1, **changes)
    for epochs in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            train(interrupted, on_epoch=stop_after(epochs))
    resumed = train(interrupted)
    for name in ("model.safetensors", *(["head.safetensors"] if changes.get("head") != "none" else [])):
        expected = (tmp_path / "straight" / name).read_bytes()
        assert (tmp_path / "interrupted" / name).read_bytes() == expected, name
    timing = ("seconds", "images_per_second")
    for expected, found in zip(straight.history, resumed.history, strict=True):
        assert {k: v for k, v in found.items() if k not in timing} == {
            k: v for k, v in expected.items() if k not in timing
        }
    assert [line["step"] for line in read_steps(tmp_path / "interrupted")] == [*range(1, 13)]
    tensors, _ = read_tensors(tmp_path / "interrupted" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_the_scale_of_the_loss_goes_on_where_it_was(tmp_path: Path, faces: Path) -> None:
    asked = options(faces, tmp_path / "out", precision="fp16")
    for epochs in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            train(asked, on_epoch=stop_after(epochs))
    scaler = load_progress(tmp_path / "out" / "checkpoint.safetensors")["scaler"]
    skipped = math.log2(65536.0 / scaler["scale"])  # each halves the scale; the steps since then are counted
    assert skipped > 0
    assert skipped + scaler["_growth_tracker"] == 9  # three epochs of three steps


def test_an_earlier_training_that_changed_is_noticed(tmp_path: Path, faces: Path, earlier: Path) -> None:
    asked = options(faces, tmp_path / "out", teacher=tmp_path / "t.npz")
    (tmp_path / "t.npz").write_bytes((earlier / "npz.npz").read_bytes())
    with pytest.raises(KeyboardInterrupt):
        train(asked, on_epoch=stop_after(1))
    ids = [f"p{identity}/{image}.png" for identity in range(6) for image in range(6)]
    np.savez(tmp_path / "t.npz", vectors=np.ones((36, 8), dtype=np.float32), item_id=np.array(ids))
    with pytest.raises(ValueError, match=r"teacher .*t\.npz changed since .*checkpoint\.safetensors was written"):
        train(asked)


def test_a_finished_training_is_compared_with_its_data_and_origins(tmp_path: Path, earlier: Path) -> None:
    """What was added, removed or replaced after a training is noticed when it is run again."""
    faces = draw_identities(tmp_path / "faces", identities=6, images=6)
    old = shutil.copytree(earlier / "folder", tmp_path / "old")
    teacher = shutil.copytree(earlier / "folder", tmp_path / "teacher")
    changes = {"teacher": teacher, "compatible_with": old, "finetune_from": old, "epochs": 1}
    asked = options(faces, tmp_path / "out", **changes)
    train(asked)
    assert train(dataclasses.replace(asked, workers=1)).already_finished

    shutil.move(faces / "p5", tmp_path / "p5")
    with pytest.raises(ValueError, match=r"the images in .*faces are not those that .*card\.json was made with"):
        train(asked)
    shutil.move(tmp_path / "p5", faces / "p5")
    assert train(asked).already_finished
    shutil.move(faces / "p5", faces / "p9")  # the same images under another name
    with pytest.raises(ValueError, match="are not those that"):
        train(asked)
    shutil.move(faces / "p9", faces / "p5")

    for name, folder, file in (
        ("teacher", teacher, "model.safetensors"),
        ("finetune_from", old, "model.safetensors"),
        ("compatible_with", old, "head.safetensors"),
    ):
        whole = (folder / file).read_bytes()
        tensors, description = read_tensors(folder / file)
        first = next(iter(tensors.values()))
        first.add_(0.5)
        write_tensors(folder / file, tensors, description)
        with pytest.raises(ValueError, match=rf"{name} .* changed since .*card\.json was written"):
            train(asked)
        (folder / file).write_bytes(whole)
    assert train(asked).already_finished

    model = tmp_path / "out" / "model.safetensors"
    model.write_bytes((old / "model.safetensors").read_bytes())  # whole, but another training's
    with pytest.raises(ValueError, match=r"model\.safetensors is not the model that .*card\.json describes"):
        train(asked)


def test_a_killed_command_with_every_kind_of_state_resumes_bit_for_bit(
    tmp_path: Path, faces: Path, earlier: Path
) -> None:
    words = (
        "--arch tiny --input_size 16 --embedding_dim 8 --epochs 5 --passes_per_epoch 3 --batch_size 12 --dropout 0.2 "
        "--optimizer lars --learning_rate 3 --accumulate 2 --average ema --average_decay 0.9 --stochastic_depth 0.3 "
        f"--precision fp16 --log_every 2 --teacher {earlier / 'npz.npz'} "
        f"--compatible_with {earlier / 'folder'} --finetune_from {earlier / 'folder'} --anchors yes"
    ).split()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def command(out: str) -> list[str]:
        return [sys.executable, "-W", "error", "-c", DRIVER, "--data", str(faces), "--out", str(tmp_path / out), *words]

    assert main(command("straight")[5:]) == 0
    with subprocess.Popen(command("killed"), env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 2 "):
                time.sleep(0.05)  # somewhere inside the third epoch
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "card.json").exists()
    resumed = subprocess.run(command("killed"), env=environment, check=True, capture_output=True, text=True)
    assert [line.split()[1] for line in resumed.stderr.splitlines() if "loss" in line] == ["3", "4", "5"]
    for name in ("model.safetensors", "head.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    losses = [[(line["step"], line["loss"]) for line in read_steps(tmp_path / run)] for run in ("straight", "killed")]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == [*range(2, 46, 2)]
    card = json.loads((tmp_path / "killed" / "card.json").read_text())
    assert sorted(card["origins"]) == ["compatible_with", "finetune_from", "teacher"]
    assert card["made_with"]["averaged_weights"] == 45
