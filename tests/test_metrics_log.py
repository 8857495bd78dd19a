import json
import sys
from pathlib import Path

import pytest
from drawn_faces import faces, one_thread, options, stop_after, strangers, tiny_architecture

from backbones.train import train
from backbones.training.metrics_log import STEPS_FILE, MetricsLog, read_steps

__all__ = ["faces", "one_thread", "strangers", "tiny_architecture"]  # fixtures


def test_steps_are_written_now_and_then_and_repeated_ones_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, steps_done=0, log_every=2, tensorboard=False)
    for step in range(1, 8):
        log.after_step({"step": step, "loss": step / 2})
    log.close()
    assert [line["step"] for line in read_steps(tmp_path)] == [2, 4, 6]
    with (tmp_path / STEPS_FILE).open("a") as file:
        file.write('{"step": 8, "lo')  # a kill in the middle of a line
    log = MetricsLog(tmp_path, steps_done=4, log_every=2, tensorboard=False)
    for step in range(5, 9):
        log.after_step({"step": step, "loss": -1.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / STEPS_FILE).read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 1.0), (4, 2.0), (6, -1.0), (8, -1.0)]


def test_nothing_is_written_unless_asked_for(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "out", steps_done=0, log_every=0, tensorboard=False)
    log.after_step({"step": 1, "loss": 1.0})
    log.after_epoch({"epoch": 1, "loss": 1.0}, step=1)
    log.close()
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # what an import that fails looks like
    with pytest.raises(ImportError, match=r"pip install 'embedding-compat\[tensorboard\]'"):
        MetricsLog(tmp_path, steps_done=0, log_every=0, tensorboard=True)


def test_tensorboard_shows_what_the_lines_say_of_a_resumed_run(tmp_path: Path, faces: Path, strangers: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    asked = options(
        faces, tmp_path / "out", epochs=3, log_every=1, tensorboard=True, validation=strangers, checkpoint_every=2
    )
    with pytest.raises(KeyboardInterrupt):
        train(asked, on_epoch=stop_after(1))  # before the first checkpoint, so that an epoch is repeated
    history = train(asked).history
    events = accumulator.EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    for name in ("loss", "accuracy", "recall_at_1"):
        points = [(event.step, event.value) for event in events.Scalars(f"epoch/{name}")]
        assert points == [(3 * r["epoch"], pytest.approx(r[name], rel=1e-6)) for r in history]
    steps = read_steps(tmp_path / "out")
    points = [(event.step, event.value) for event in events.Scalars("step/gradient_norm")]
    assert points == [(line["step"], pytest.approx(line["gradient_norm"], rel=1e-6)) for line in steps]
    assert len(steps) == 9
