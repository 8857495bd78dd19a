"""What a message tells people to install can be installed."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def named_extras() -> dict[str, set[str]]:
    """Extras that the code's messages name, with the modules that do."""
    found: dict[str, set[str]] = {}
    for package in ("backbones", "compat", "stores"):
        for module in (ROOT / package).rglob("*.py"):
            for listed in re.findall(r"embedding-compat\[([^]]*)\]", module.read_text()):
                for extra in listed.split(","):
                    found.setdefault(extra, set()).add(module.name)
    return found


def test_every_extra_that_a_message_names_exists():
    named = named_extras()
    assert {"onnx", "openvino", "text", "optimizers", "tensorboard"} <= named.keys()
    assert named.keys() <= EXTRAS.keys(), named


def test_constraints_pin_what_the_extras_ask_for():
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    asked = [each for extra in EXTRAS.values() for each in extra] + PROJECT["dependencies"]
    names = {re.split(r"[\[><=]", each)[0].lower().replace("_", "-") for each in asked}
    assert names - pinned == {"faiss-gpu"}  # the other build of faiss-cpu


WITHOUT = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
from stores.convert import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("role", ["source", "target"])
@pytest.mark.parametrize(
    ("package", "uri", "extra"),
    [
        ("psycopg", "postgresql://nobody@localhost:1/d/t", "postgres"),
        ("qdrant_client", "qdrant:db/c", "qdrant"),
        ("lancedb", "lance:db/t", "lance"),
    ],
)
def test_a_missing_extra_is_one_line_that_says_how_to_install_it(package, uri, extra, role, tmp_path):
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    words = [uri, "out.npy"] if role == "source" else ["a.csv", uri, "--space-name", "model"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, package, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert f"pip install 'embedding-compat[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
