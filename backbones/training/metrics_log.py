"""What a training writes down while it runs: JSON lines per epoch and per step, and curves for TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backbones.checkpoint import replace_file

METRICS_FILE = "metrics.jsonl"
STEPS_FILE = "steps.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
INSTALL = "pip install 'embedding-compat[tensorboard]'"


class MetricsLog:
    """The log of one run, which goes on where an interrupted one was last saved.

    Args:
        folder: of the training.
        steps_done: steps up to the last saved state; lines of later steps, which will be repeated, are dropped.
        log_every: steps between two lines of `steps.jsonl`; 0 writes none.
        tensorboard: whether to write curves under `tensorboard/` too.

    Raises:
        ImportError: where TensorBoard is asked for and missing.
    """

    def __init__(self, folder: Path, *, steps_done: int, log_every: int, tensorboard: bool) -> None:
        self.folder = folder
        self.log_every = log_every
        self._writer: Any = _summary_writer(folder, steps_done) if tensorboard else None
        self._steps = None
        if log_every:
            folder.mkdir(parents=True, exist_ok=True)
            kept = "".join(json.dumps(line) + "\n" for line in read_steps(folder) if line["step"] <= steps_done)
            replace_file(folder / STEPS_FILE, lambda path: path.write_text(kept, encoding="utf-8"))
            self._steps = (folder / STEPS_FILE).open("a", encoding="utf-8")

    def after_step(self, record: Mapping[str, Any]) -> None:
        """Write the record of a step down, where its number (`step`, from 1) is one of those to be written."""
        if self._steps is None or record["step"] % self.log_every:
            return
        self._steps.write(json.dumps(record) + "\n")
        self._steps.flush()
        self._add_curves("step", record, record["step"])

    def after_epoch(self, record: Mapping[str, Any], *, step: int) -> None:
        """Add the record of an epoch that ended with `step` to the curves; `write_history` writes the lines."""
        self._add_curves("epoch", record, step)

    def close(self) -> None:
        """Bring all that was written to the files."""
        if self._steps is not None:
            self._steps.close()
        if self._writer is not None:
            self._writer.close()

    def _add_curves(self, kind: str, record: Mapping[str, Any], step: int) -> None:
        if self._writer is not None:
            for name, value in record.items():
                if name not in ("epoch", "step") and value is not None:
                    self._writer.add_scalar(f"{kind}/{name}", value, step)
            self._writer.flush()


def write_history(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON line per epoch, replacing the file at once."""
    text = "".join(json.dumps(record) + "\n" for record in history)
    replace_file(folder / METRICS_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Read what `write_history` wrote."""
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()]


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of `steps.jsonl`, without a last one that a kill left half written."""
    path = folder / STEPS_FILE
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _summary_writer(folder: Path, steps_done: int) -> object:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(f"curves for TensorBoard need the package tensorboard ({error}); {INSTALL}") from error
    # what a killed run wrote beyond its last saved state is repeated, and hidden from then on
    return SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=steps_done + 1)
