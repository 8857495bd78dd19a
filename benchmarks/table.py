"""What every benchmark shares: medians of interleaved repetitions, and a dated table with machine and versions."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def interleaved(candidates: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of each candidate; they take turns, so that a machine that slows down slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repetitions):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def publish(topic: str, command: str, text: str, packages: Sequence[str], *, save: bool) -> None:
    """Print a result, and with `save` keep it under results/ with its date, command, machine and versions."""
    print(text)
    if not save:
        return
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {_processor()}"
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    RESULTS.mkdir(exist_ok=True)
    made = f"{datetime.date.today()} · `{command}` · {machine} · Python {platform.python_version()}, {versions}"
    (RESULTS / f"{topic}.md").write_text(f"# {topic}\n\n{made}\n\n{text}\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"
