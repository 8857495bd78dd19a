"""A migration takes no more memory for more rows: anonymous memory at its peak, in a process of its own."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gauge(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("migrate_memory")


def growth(gauge: ModuleType, folder: Path, few: int, many: int, dim: int) -> float:
    """MiB that many rows take beyond few; both in one process, so that what is loaded counts once."""
    data = importlib.import_module("migrate_data")
    pairs = [(data.write_source(folder / f"old-{rows}", rows, dim), folder / f"new-{rows}") for rows in (few, many)]
    first, second = gauge.in_a_process(dim, pairs)
    assert first["peak"] > first["before"]
    return second["peak"] - first["peak"]


def test_ten_times_the_rows_take_no_more_memory(gauge, tmp_path):
    most = 24  # 14 are what so few rows of a store and its item table take; one copy of the vectors would be 12 more
    assert growth(gauge, tmp_path, 20_000, 200_000, 16) < most


@pytest.mark.slow
def test_twenty_times_the_rows_take_no_more_memory(gauge, tmp_path):
    assert growth(gauge, tmp_path, 100_000, 2_000_000, 64) < gauge.MOST_GROWTH
