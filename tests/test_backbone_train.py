import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.backbone import load_image_backbone
from backbones.iresnet import ARCHITECTURES, IResNet
from backbones.optimization import schedule
from backbones.train import TrainOptions, main, train

ROOT = Path(__file__).parents[1]
# The command line as it is, but for one more architecture, small enough for a test.
DRIVER = """
import sys
from functools import partial
from backbones.iresnet import ARCHITECTURES, IResNet
ARCHITECTURES["tiny"] = partial(IResNet, (1, 1, 1, 1), channels=(8, 8, 8, 8))
from backbones.train import main
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def tiny_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", partial(IResNet, (1, 1, 1, 1), channels=(8, 8, 8, 8)))


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


def draw_identities(root: Path, *, identities: int, images: int) -> Path:
    """Each identity is a smooth random pattern; its images add noise."""
    generator = np.random.default_rng(0)
    for identity in range(identities):
        pattern = Image.fromarray(generator.integers(256, size=(5, 5, 3), dtype=np.uint8)).resize((24, 24))
        (root / f"p{identity}").mkdir(parents=True)
        for image in range(images):
            noisy = np.asarray(pattern) + generator.normal(0, 12, size=(24, 24, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / f"p{identity}" / f"{image}.png")
    return root


def options(data: Path, out: Path, **changes: Any) -> TrainOptions:
    small = TrainOptions(
        data=data, out=out, arch="tiny", input_size=16, embedding_dim=8, epochs=4, batch_size=12, dropout=0.2
    )
    return dataclasses.replace(small, **changes)


def test_training_learns_and_leaves_a_model_that_loads(tmp_path: Path, faces: Path) -> None:
    records: list[dict[str, Any]] = []
    asked = options(faces, tmp_path / "out", epochs=12, passes_per_epoch=2, validation=faces)
    result = train(asked, on_epoch=records.append)
    assert records == result.history
    assert [record["epoch"] for record in records] == [*range(1, 13)]
    assert records[-1]["loss"] < records[0]["loss"]
    assert records[-1]["accuracy"] > 0.8
    assert records[-1]["recall_at_1"] > 0.9
    assert records[-1]["learning_rate"] < 0.01 * max(record["learning_rate"] for record in records)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert {name: value for name, value in card.items() if name != "sha256"} == result.card
    assert card["data"] | {"digest": ""} == {"images": 36, "identities": 6, "skipped": [], "digest": ""}
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["card.json", "metrics.jsonl", "model.safetensors"]
    backbone = load_image_backbone("tiny", result.weights)
    assert backbone.embed([backbone.read(faces / "p0" / "0.png")]).shape == (1, 8)


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, faces: Path) -> None:
    words = (
        "--arch tiny --input_size 16 --embedding_dim 8 --epochs 6 --passes_per_epoch 3 --batch_size 12 --dropout 0.2"
    )
    asked = options(faces, tmp_path / "straight", epochs=6, passes_per_epoch=3)
    straight = train(asked).weights
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, "--data", str(faces), "--out", str(tmp_path / "killed"), *words.split()]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 3 "):
                time.sleep(0.02)  # somewhere inside the fourth epoch
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "card.json").exists()
    resumed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert [line.split()[1] for line in resumed.stderr.splitlines() if "loss" in line] == ["4", "5", "6"]
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == straight.read_bytes()


def stop_after(epochs: int) -> Any:
    def on_epoch(record: dict[str, Any]) -> None:
        if record["epoch"] == epochs:
            raise KeyboardInterrupt

    return on_epoch


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
        "not found; expected a folder with one folder per identity": ["--data", str(tmp_path / "none"), *out],
        "unknown architecture 'x', expected one of iresnet18": ["--data", str(two), "--arch", "x", *out],
        "unknown head 'x', expected one of arcface": ["--data", str(two), "--arch", "tiny", "--head", "x", *out],
        "epochs is 0, expected at least 1": ["--data", str(two), "--epochs", "0", *out],
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
    with pytest.raises(ValueError, match=r"the loss is nan; lower learning_rate \(now 1e\+38\): .*p[01]/[01]\.png"):
        train(options(data, tmp_path / "out", learning_rate=1e38, warmup_epochs=0, epochs=9))


def test_schedule_rises_and_falls_to_zero() -> None:
    rates = [schedule(step, warmup=10, total=100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0
    assert np.diff(rates[:11]).min() > 0 > np.diff(rates[10:]).max()
    assert 0 < rates[-1] < 0.001
    assert schedule(0, warmup=0, total=1) == 1.0


def test_help_is_quick_and_needs_no_torch() -> None:
    code = "import sys; from backbones.train import main; main(['--help']); sys.exit('torch' in sys.modules)"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert time.monotonic() - started < 5  # half a second on a machine that is not busy
    assert "one folder per identity" in done.stdout
