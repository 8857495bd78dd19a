"""What a migration remembers between its steps: a folder with `state.json` and the records of rows that were copied.

Beside a target that is a file or a folder, TARGET.migration; of a target in a database, migrations/DIGEST in the
working folder. There is no secret in it: URIs stand there without their passwords.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from stores.durable import WriterLock, sync_folder, write_atomically
from stores.galleries import CHANGING, ENDINGS, GALLERIES, locate, redact
from stores.galleries.gallery import LiveEngine
from stores.sealed import seal, unseal

FORMAT_VERSION = 1
STATE = "state.json"
COPIED, SORTED = "copied.records", "sorted.records"
STEPS = ("copying", "copied", "verified", "switched")
"""How far a migration is, in the order of its steps."""


@dataclass(frozen=True, kw_only=True)
class MigrationState:
    """How far a migration is.

    Attributes:
        source: URI of the old gallery, without a password.
        target: URI of the new one, without a password.
        provenance: What the target says of its origin; the same in every run.
        space: The target's space, as JSON values.
        hashes: How rows were recorded (`records.hash_scheme`); empty where they were not.
        step: One of `STEPS`: every row was copied once; the copy was checked; a name leads to it.
        seen: Digest of the source as it was when its rows were last looked at; empty before every row was copied.
        name: What leads to the target; None before the switch.
        before: Where it led before, as the engine names it; None where there was no such name.
        inserted: Rows that came to the source after they were copied, and were brought over; of all runs.
        updated: Rows that changed there, likewise.
        removed: Rows that went there, likewise.
        passes: How often the source was read for that.
    """

    source: str
    target: str
    provenance: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    hashes: str = ""
    step: str = STEPS[0]
    seen: str = ""
    name: str | None = None
    before: str | None = None
    inserted: int = 0
    updated: int = 0
    removed: int = 0
    passes: int = 0

    def reached(self, step: str) -> bool:
        """Whether the migration came as far as a step."""
        return STEPS.index(self.step) >= STEPS.index(step)

    def at(self, step: str) -> MigrationState:
        """The state with a step reached, and no later one."""
        return replace(self, step=step)

    def __str__(self) -> str:
        told = {
            "copying": "rows are being copied; --step run goes on",
            "copied": "every row was copied; --step run or --step verify checks it",
            "verified": "copied and checked; --step switch --serve-as NAME comes next",
            "switched": f"{self.name} leads to it; --step finalise comes next",
        }
        return f"{self.source} to {self.target}: {told[self.step]}"


class NoMigration(ValueError):
    """There is no state of a migration: none was begun, or it is final."""


class StateFolder:
    """Where a migration's state is kept.

    Args:
        folder: The folder; it need not exist yet.
        source: URI of the old gallery; its password is not kept.
        target: URI of the new one.
    """

    def __init__(self, folder: Path, source: str, target: str) -> None:
        self.folder = folder
        self.source, self.target = redact(source), redact(target)

    @property
    def copied(self) -> Path:
        """Records of the rows that were copied, in their order."""
        return self.folder / COPIED

    @property
    def sorted(self) -> Path:
        """Records of the rows that the target holds, or may hold, sorted by id."""
        return self.folder / SORTED

    @property
    def begun(self) -> bool:
        """Whether it holds a state."""
        return (self.folder / STATE).is_file()

    def read(self) -> MigrationState | None:
        """The state; None where no migration was begun.

        Raises:
            ValueError: If it is another migration's, damaged, or of a later version.
        """
        path = self.folder / STATE
        if not self.begun:
            return None
        body = unseal(path, version=FORMAT_VERSION)
        del body["format_version"]
        state = MigrationState(**body)
        if (identity(state.source), identity(state.target)) != (identity(self.source), identity(self.target)):
            raise ValueError(
                f"{self.folder} is of the migration of {state.source} to {state.target}, expected {self.source} to "
                f"{self.target}; name another folder: --state DIR"
            )
        return state

    def require(self) -> MigrationState:
        """The state of a migration that was begun.

        Raises:
            NoMigration: If there is none.
        """
        state = self.read()
        if state is None:
            raise NoMigration(
                f"no migration of {self.source} to {self.target} was begun ({self.folder} holds none); begin with "
                "--step run, or name its folder: --state DIR"
            )
        return state

    def write(self, state: MigrationState) -> MigrationState:
        """Replace the state, in one step, and return it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / STATE, [seal({"format_version": FORMAT_VERSION, **asdict(state)})])
        sync_folder(self.folder)
        return state

    def begin(self, state: MigrationState) -> MigrationState:
        """Replace what an earlier migration to the same place left."""
        for path in (self.copied, self.sorted):
            path.unlink(missing_ok=True)
        return self.write(state)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one who works on this migration, for the block; no empty folder stays where none was begun.

        Raises:
            StoreLocked: If another process does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(self.folder)
        lock.acquire()
        try:
            yield
        finally:
            if not self.begun:
                self.remove()
            lock.release()

    def remove(self) -> None:
        """Delete the folder's files of a migration, and the folder where nothing else is in it."""
        (self.folder / STATE).unlink(missing_ok=True)
        if self.folder.is_dir():
            for path in self.folder.glob("adoption-*"):  # of a process that died
                shutil.rmtree(path)
            for path in [*self.folder.glob("*.records"), *self.folder.glob("*.tmp"), self.folder / ".lock"]:
                path.unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                shutil.rmtree(self.folder)


def state_folder(source: str, target: str, folder: str | Path | None = None) -> StateFolder:
    """Where the state of a migration is: in the folder given, or where this module says.

    Raises:
        ValueError: If a URI is none.
    """
    scheme, location = locate(target)
    if folder is None:
        if scheme in FILE_SCHEMES:
            path = Path(location)
            folder = path.with_name(f"{path.name}.migration")
        else:
            told = json.dumps([identity(source), identity(target)])
            folder = Path("migrations") / hashlib.sha256(told.encode()).hexdigest()[:16]
    return StateFolder(Path(folder), source, target)


def identity(uri: str) -> str:
    """What tells one gallery from another: its URI without a password and without options such as `?index=hnsw`.

    Of PostgreSQL's, those that say which server it is stay.

    Raises:
        ValueError: If it is no URI.
    """
    scheme, place = locate(uri)
    if scheme not in CHANGING:
        return redact(uri)
    told, mark, query = redact(f"{scheme}:{place}").partition("?")
    kept = "&".join(each for each in query.split("&") if scheme == "postgresql" and each.partition("=")[0] in _SERVERS)
    return f"{told}{mark}{kept}" if kept else told


_SERVERS = ("host", "hostaddr", "port", "service")


def same_gallery(told: object, uri: str) -> bool:
    """Whether a provenance tells of the gallery that a URI names, whatever options the two are written with."""
    return isinstance(told, str) and bool(told) and identity(told) == identity(uri)


FILE_SCHEMES = {*ENDINGS.values(), "zarr", "csv+json"}
"""Schemes of galleries that are a file or folder of their own."""


def live_engine(scheme: str) -> LiveEngine | None:
    """The engine of a scheme, where its galleries change in place; None where they are files written once."""
    engine = GALLERIES[scheme]
    return cast(LiveEngine, engine) if hasattr(engine, "put") else None


def tells_contents(scheme: str) -> bool:
    """Whether the digest of a gallery changes with its rows; a database's table is others' to write to meanwhile."""
    return scheme not in CHANGING
