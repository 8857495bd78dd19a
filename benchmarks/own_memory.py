"""How much memory of its own a process holds; pages of mapped files are not counted."""

from __future__ import annotations

import threading
from pathlib import Path


def anonymous() -> float:
    """MiB that this process holds now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class PeakMemory(threading.Thread):
    """The most `anonymous` memory while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._ended = anonymous(), threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, anonymous())

    def end(self) -> float:
        """Stop and tell the peak in MiB."""
        self._ended.set()
        self.join()
        return self.peak
