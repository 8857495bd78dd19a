"""`python -m compat.extract` that is killed at any moment and run again leaves no trace of it in the store."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from store_faults import CONTEXT, bytes_by_name, extract, folder_in_memory, killed_or_ended, seconds_to_end

from stores.store import EmbeddingStore

CONTEXT.set_forkserver_preload(
    ["stores.store", "zarr", "compat.extract", "backbones.encoders.encoder", "stores.galleries"]
)

PEOPLE, TEXTS, DIM = 6, 10, 16
BAD = ("p01/3.txt", "p04/9.txt")
ENCODER = '''
import hashlib
import numpy as np
from backbones.encoders.encoder import Backbone


class Digests(Backbone):
    """Vectors made of the files' SHA-256."""

    name, fingerprint, dim, normalized, suffixes = "digests", "ab" * 32, 16, False, frozenset({".txt"})

    def read(self, path):
        content = path.read_bytes()
        if not content:
            raise ValueError("empty")
        return content

    def embed(self, items):
        digests = [hashlib.sha256(item).digest()[:16] for item in items]
        return np.array([list(digest) for digest in digests], np.float32).reshape(len(items), 16) / 16


def quick():
    return Digests()
'''


@pytest.fixture(scope="module")
def texts():
    """A folder with the encoder's module and the items, two of which are unreadable."""
    with folder_in_memory() as folder:
        fill(folder)
        yield folder


def fill(folder):
    (folder / "quick_encoder.py").write_text(ENCODER)
    for person in range(PEOPLE):
        (folder / "data" / f"p{person:02d}").mkdir(parents=True)
        for text in range(TEXTS):
            name = f"p{person:02d}/{text}.txt"
            (folder / "data" / name).write_text("" if name in BAD else f"{person} wrote {text}")


@pytest.fixture(scope="module")
def whole(texts):
    """The store of an extraction that nobody interrupted."""
    seconds_to_end(extract, texts, extract_words("whole"), 0)
    return texts / "whole"


def extract_words(out):
    return ["--backbone", "quick_encoder:quick", "--data", "data", "--out", out, "--batch-size", "3", "--max-bad", "2"]


def read_so_far(path):
    """Names and vectors of a store that may not be there yet; fails where a row is torn, missing or doubled."""
    if not (path / "store.json").is_file():
        return 0
    store = EmbeddingStore.open(path)
    assert store.verify().ok
    names = list(store.items["item_id"])
    assert names == expected_names()[: len(names)]
    np.testing.assert_array_equal(store.rows(0, len(store)), expected_vectors(names))
    return len(names)


def expected_names():
    every = [f"p{person:02d}/{text}.txt" for person in range(PEOPLE) for text in range(TEXTS)]
    return [name for name in every if name not in BAD]


def expected_vectors(names):
    written = [f"{int(name[1:3])} wrote {name[4]}".encode() for name in names]
    digests = [list(hashlib.sha256(text).digest()[:DIM]) for text in written]
    return np.array(digests, np.float32).reshape(len(names), DIM) / 16


@pytest.mark.parametrize("count", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_as_if_never_interrupted(texts, whole, count):
    rows = read_so_far(whole)
    assert rows == PEOPLE * TEXTS - 2
    whole_run = seconds_to_end(extract, texts, extract_words("timed"), 0)
    start_alone = seconds_to_end(extract, texts, extract_words("whole"), 0)  # finds nothing to do
    chance = random.Random(count)
    kills, stores, lengths = 0, 0, [0]
    while stores == 0 or kills < count:
        path = texts / f"killed-{count}-{stores}"
        left = start_alone + max(0, whole_run - start_alone) * (1 - lengths[-1] / rows)
        asked = (texts, extract_words(path.name), kills % 3 * 0.01)
        if kills >= count:
            seconds_to_end(extract, *asked)
        elif killed_or_ended(extract, *asked, longest=left, chance=chance):
            kills += 1
            lengths.append(read_so_far(path))
            assert lengths[-1] >= lengths[-2]
            whole_run *= 1.2 if lengths[-1] == lengths[-2] else 1  # follows a machine that gets slower, or faster
            continue
        assert bytes_by_name(path) == bytes_by_name(whole)
        lengths.append(0)
        whole_run *= 0.8
        stores += 1
    print(f"extract: {kills} kills, {stores} stores finished, found at {len(set(lengths))} lengths")
    assert count < 100 or len(set(lengths)) > 10  # many kills fell at different moments


@pytest.mark.slow  # imports torch 24 times; tests/test_compat_commands.py kills one in every run
def test_the_real_command_killed_and_run_again(texts, whole):
    chance = random.Random(0)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for number in range(12):
        path = texts / f"command-{number}"
        command = [sys.executable, "-m", "compat.extract", *extract_words(path.name)]
        process = subprocess.Popen(command, cwd=texts, env=environment, stdout=subprocess.DEVNULL)
        while not (path / ".lock").exists():  # most of the time it imports torch, which is of no interest
            assert process.poll() is None
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        read_so_far(path)
        subprocess.run(command, cwd=texts, env=environment, stdout=subprocess.DEVNULL, check=True)
        assert bytes_by_name(path) == bytes_by_name(whole)
