"""Anonymous memory of a migration, in a process of its own: `python migrate_memory.py DIM SOURCE TARGET ...`.

Further pairs of SOURCE and TARGET are migrated one after the other; a line of JSON is printed for each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from migrate_data import scratch, timed_migration, turning_map, write_source
from own_memory import PeakMemory, anonymous
from table import markdown

MOST_GROWTH = 64  # MiB


def watched(dim: int, pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
    """MiB before the migrations and at the peak of each, and its seconds."""
    transformer = turning_map(dim)
    before, found = anonymous(), []
    for source, target in pairs:
        memory = PeakMemory()
        memory.start()
        took = timed_migration(source, transformer, target, Path(f"{target}.migration"))
        found.append({"before": before, "peak": memory.end(), "seconds": took.seconds})
    return found


def in_a_process(dim: int, pairs: list[tuple[Path, Path]]) -> list[dict[str, Any]]:
    """`watched`, where nothing else uses memory."""
    words = [str(path) for pair in pairs for path in pair]
    run = subprocess.run(
        [sys.executable, __file__, str(dim), *words], stdout=subprocess.PIPE, text=True, check=True, timeout=3600
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


def memory(folder: Path, sizes: list[tuple[int, int]]) -> str:
    """A table of peaks by rows and dimension, each migration in a process of its own."""
    rows, first = [], {}
    for count, dim in sizes:
        with scratch(folder) as place:
            source = write_source(place / "old", count, dim)
            found = in_a_process(dim, [(source, place / "new")])[0]
        first.setdefault(dim, found["peak"])
        rows.append(
            [
                f"{count:,}",
                str(dim),
                f"{count * dim * 4 / 1e9:.2f}",
                f"{found['before']:.0f}",
                f"{found['peak']:.0f}",
                f"{found['peak'] - first[dim]:+.0f}",
                f"{count / found['seconds']:,.0f}",
            ]
        )
    header = [
        "rows",
        "dim",
        "GB of vectors",
        "MiB before",
        "MiB at the peak",
        "more than the first of its dim",
        "rows/s",
    ]
    told = f"Anonymous memory of a migration from store to store (asked: less than {MOST_GROWTH} MiB beyond the first):"
    return f"{told}\n\n{markdown(header, rows)}"


if __name__ == "__main__":
    words = sys.argv[2:]
    for found in watched(int(sys.argv[1]), list(zip(words[::2], words[1::2], strict=True))):
        print(json.dumps(found))
