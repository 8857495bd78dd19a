import dataclasses
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_faces import draw_identities, faces, one_thread, options, stop_after, strangers, tiny_architecture

from backbones.checkpoint import load_card, read_tensors, tensor_digest, write_tensors
from backbones.encoders.images import load_image_backbone
from backbones.train import main, train

__all__ = ["faces", "one_thread", "strangers", "tiny_architecture"]  # fixtures
ROOT = Path(__file__).parents[1]


def test_training_learns_and_leaves_a_model_that_loads(tmp_path: Path, faces: Path, strangers: Path) -> None:
    records: list[dict[str, Any]] = []
    asked = options(faces, tmp_path / "out", epochs=12, passes_per_epoch=2, validation=strangers)
    result = train(asked, on_epoch=records.append)
    assert records == result.history
    assert [record["epoch"] for record in records] == [*range(1, 13)]
    assert records[-1]["loss"] < records[0]["loss"]
    assert records[-1]["accuracy"] > 0.8
    assert records[-1]["recall_at_1"] > 0.9
    assert records[-1]["learning_rate"] < 0.01 * max(record["learning_rate"] for record in records)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert {name: value for name, value in card.items() if name != "sha256"} == result.card
    data = {"images": 36, "identities": 6, "unlabelled": 0, "skipped": [], "keep_fraction": 1.0}
    digests = ("digest", "listing", "identities_sha256")
    assert {name: value for name, value in card["data"].items() if name not in digests} == data
    names = hashlib.sha256(b"p0\np1\np2\np3\np4\np5").hexdigest()
    assert card["data"]["identities_sha256"] == names
    assert card["weights_sha256"] == tensor_digest(read_tensors(result.weights)[0])
    assert card["made_with"]["numpy"] == np.__version__
    assert card["made_with"]["torch"] == torch.__version__
    assert card["head"]["identities"] == [f"p{identity}" for identity in range(6)]
    assert (card["head"]["name"], card["head"]["scale"], card["head"]["margin"]) == ("arcface", 64.0, 0.5)
    assert card["validation"]["images"] == 36
    assert card["metrics"]["speed"]["unit"] == "images per second"
    assert card["metrics"]["training_time"]["value"] == pytest.approx(sum(r["seconds"] for r in records), abs=0.01)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["card.json", "head.safetensors", "metrics.jsonl", "model.safetensors"]
    backbone = load_image_backbone("tiny", result.weights)
    assert backbone.embed([backbone.read(faces / "p0" / "0.png")]).shape == (1, 8)


def test_changed_options_and_damage_are_named_on_resuming(tmp_path: Path, faces: Path) -> None:
    asked = options(faces, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        train(asked, on_epoch=stop_after(2))
    augmentation = dataclasses.replace(asked.augmentation, shift=0.01)
    with pytest.raises(
        ValueError, match=r"augmentation.shift = 0.06, this run asks for 0.01; give --augmentation.shift"
    ):
        train(dataclasses.replace(asked, augmentation=augmentation))
    with pytest.raises(ValueError, match="made with embedding_dim = 8, this run asks for 9"):
        train(dataclasses.replace(asked, embedding_dim=9))
    checkpoint = tmp_path / "out" / "checkpoint.safetensors"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    with pytest.raises(ValueError, match="is damaged: its digest does not match"):
        train(asked)
    checkpoint.write_bytes(whole)
    assert len(train(dataclasses.replace(asked, workers=1, checkpoint_every=3)).history) == 4
    with pytest.raises(ValueError, match="made with seed = 0, this run asks for 1"):
        train(dataclasses.replace(asked, seed=1))
    assert train(asked).already_finished


def test_changed_images_are_noticed_on_resuming(tmp_path: Path) -> None:
    data = draw_identities(tmp_path / "data", identities=3, images=3)
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "out"), on_epoch=stop_after(1))
    (data / "p0" / "0.png").unlink()
    with pytest.raises(ValueError, match="changed since"):
        train(options(data, tmp_path / "out"))


def test_images_that_do_not_fit_in_memory_train_the_same_weights(tmp_path: Path, faces: Path) -> None:
    kept = train(options(faces, tmp_path / "kept", epochs=2)).weights
    streamed = train(options(faces, tmp_path / "streamed", epochs=2, image_memory=0, workers=3)).weights
    assert kept.read_bytes() == streamed.read_bytes()


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path, faces: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(options(faces, tmp_path / "out", epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_unreadable_images_are_counted_against_a_limit(tmp_path: Path) -> None:
    data = draw_identities(tmp_path / "data", identities=3, images=3)
    (data / "p1" / "1.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"1 unreadable images, --max_bad allows 0: cannot read image .*1\.png"):
        train(options(data, tmp_path / "out", max_bad=0))
    result = train(options(data, tmp_path / "out", epochs=1, max_bad=1))
    assert result.card["data"]["skipped"] == ["p1/1.png"]
    assert result.card["data"]["images"] == 8


def test_identities_of_one_image_are_enough(tmp_path: Path) -> None:
    data = draw_identities(tmp_path / "data", identities=2, images=1)
    assert len(train(options(data, tmp_path / "out", epochs=2)).history) == 2


def test_user_mistakes_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = draw_identities(tmp_path / "one", identities=1, images=3)
    two = draw_identities(tmp_path / "two", identities=2, images=3)
    out = ["--out", str(tmp_path / "out")]
    cases = {
        "expected at least two to tell apart": ["--data", str(one), *out],
        "none not found; expected": ["--data", str(tmp_path / "none"), *out],
        "unknown architecture 'x', expected one of iresnet18": ["--data", str(two), "--arch", "x", *out],
        "or for a training from a teacher alone none": ["--data", str(two), "--arch", "tiny", "--head", "x", *out],
        "epochs is 0, expected at least 1": ["--data", str(two), "--epochs", "0", *out],
        "accumulate 5, expected micro-batches of equal size": ["--data", str(two), "--accumulate", "5", *out],
        "milestones belong to multistep": ["--data", str(two), "--milestones", "1", "2", *out],
        "name it by finetune_from": ["--data", str(two), "--anchors", "yes", *out],
        "head none learns from a teacher alone": ["--data", str(two), "--head", "none", *out],
        "card /none/card.json not found": ["--data", str(two), "--arch", "tiny", "--finetune-from", "/none", *out],
        "the following arguments are required": ["--data", str(two)],
        "unrecognized arguments": ["--data", str(two), "--epoch", "3", *out],
    }
    for message, argv in cases.items():
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_a_loss_that_is_no_number_names_its_images(tmp_path: Path) -> None:
    data = draw_identities(tmp_path / "data", identities=2, images=2)
    asked = options(data, tmp_path / "out", learning_rate=1e38, warmup_epochs=0, epochs=9)
    named = (
        r"is nan in the batch of p[01]/[01]\.png, .*; lower learning_rate \(now 1e\+38\) in a new out; all 4 images "
    )
    with pytest.raises(ValueError, match=named) as caught:
        train(asked)
    listed = tmp_path / "out" / "not_finite.txt"
    assert f" {listed}; " in str(caught.value)
    assert sorted(listed.read_text().splitlines()) == ["p0/0.png", "p0/1.png", "p1/0.png", "p1/1.png"]
    assert not (tmp_path / "out" / "card.json").exists()
    (tmp_path / "out" / "checkpoint.safetensors").unlink(missing_ok=True)
    train(dataclasses.replace(asked, learning_rate=0.01))
    assert not listed.exists()


@pytest.mark.parametrize("poisoned", ["network/head.projection.weight", "head/weight"])
def test_a_loss_that_is_no_number_leaves_the_last_good_state(tmp_path: Path, faces: Path, poisoned: str) -> None:
    asked = options(faces, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        train(asked, on_epoch=stop_after(2))
    checkpoint = tmp_path / "out" / "checkpoint.safetensors"
    tensors, description = read_tensors(checkpoint)
    tensors[f"modules/{poisoned}"][0, 0] = torch.nan
    write_tensors(checkpoint, tensors, description)
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match="the loss is nan") as caught:
        train(asked)
    message = str(caught.value)
    assert message.count(".png") == 5  # of the twelve of the batch
    assert "and 7 more" in message
    assert message.endswith(f"the last good state is {checkpoint}")
    assert "\n" not in message
    assert checkpoint.read_bytes() == before
    assert not (tmp_path / "out" / "card.json").exists()


def test_a_finished_training_of_the_first_format_is_recognised(tmp_path: Path, faces: Path) -> None:
    """The card as version 1 wrote it: without the options and entries that came later."""
    asked = options(faces, tmp_path / "out", epochs=1, margin=0.5)
    train(asked)
    card = load_card(tmp_path / "out")
    later = ("margin", "head", "arch", "seed", "epochs", "batch_size", "input_size", "embedding_dim", "dropout", "data")
    recipe = {name: value for name, value in card["recipe"].items() if name in (*later, "out", "learning_rate")}
    augmentation = {name: card["recipe"]["augmentation"][name] for name in ("flip", "shift")}
    old = {"format_version": 1, "arch": "tiny", "embedding_dim": 8, "preprocessing": card["preprocessing"]}
    old |= {"recipe": recipe | {"augmentation": augmentation}, "data": {"images": 36, "identities": 6, "skipped": []}}
    digest = hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
    (tmp_path / "out" / "card.json").write_text(json.dumps(old | {"sha256": digest}))
    (tmp_path / "out" / "head.safetensors").unlink()
    assert train(dataclasses.replace(asked, margin=None)).already_finished
    assert load_image_backbone("tiny", tmp_path / "out").dim == 8
    with pytest.raises(ValueError, match="made with accumulate = 1, this run asks for 2"):
        train(dataclasses.replace(asked, accumulate=2))
    with pytest.raises(ValueError, match="kept no head"):
        train(options(faces, tmp_path / "new", compatible_with=tmp_path / "out"))


def test_identities_of_the_training_are_no_validation(tmp_path: Path, faces: Path) -> None:
    with pytest.raises(ValueError, match="6 of the 6 identities to evaluate on are in the training set"):
        train(options(faces, tmp_path / "out", validation=faces))


def test_a_list_of_pairs_is_scored_after_each_epoch(tmp_path: Path, faces: Path, strangers: Path) -> None:
    lines = [f"q{a}/{i}.png q{a}/{i + 1}.png 1" for a in range(6) for i in range(5)]
    lines += [f"q{a}/{i}.png q{(a + 1 + i % 5) % 6}/{i}.png 0" for a in range(6) for i in range(6)]
    (strangers / "pairs.txt").write_text("\n".join(lines) + "\n")
    asked = options(faces, tmp_path / "out", epochs=12, passes_per_epoch=2, validation=strangers / "pairs.txt")
    result = train(asked)
    last = result.history[-1]
    assert last["pair_accuracy"] > 0.9
    assert last["tar_at_far_1e-1"] > 0.9
    assert "tar_at_far_1e-2" not in last  # 36 pairs of two cannot tell
    assert result.card["validation"]["pairs"] == 66
    assert result.card["metrics"]["tar_at_far_1e-1"] == {"value": last["tar_at_far_1e-1"], "unit": "share from 0 to 1"}


def test_a_share_of_each_identitys_images_is_trained_on(tmp_path: Path, faces: Path) -> None:
    result = train(options(faces, tmp_path / "out", epochs=1, keep_fraction=0.5))
    assert (result.card["data"]["images"], result.card["data"]["keep_fraction"]) == (18, 0.5)


def test_help_is_quick_and_needs_no_torch() -> None:
    code = "import sys; from backbones.train import main; main(['--help']); sys.exit('torch' in sys.modules)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert time.monotonic() - started < 5  # half a second on a machine that is not busy
    assert "one folder per identity" in " ".join(done.stdout.split())
