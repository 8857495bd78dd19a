"""What a message tells people to install can be installed."""

import re
import tomllib
from pathlib import Path

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
