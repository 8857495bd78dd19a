"""Letting a name lead to the migrated gallery, back to what it led to before, and tidying up when all is well.

The order is kept: a gallery is served once it was checked, the old one may go once the new one is served, and nothing
that a name leads to is ever deleted.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from compat.migration.changes import SourceChanges, not_brought_over, source_changed
from compat.migration.copying import BATCH_ROWS
from compat.migration.state import MigrationState, StateFolder, live_engine, state_folder, tells_contents
from stores.galleries import digest, locate, open_source, open_target, redact
from stores.galleries.card import GalleryCard, card_path, partial_path
from stores.galleries.gallery import LiveEngine
from stores.space import EmbeddingSpace


def switch(source: str, target: str, name: str, *, state: str | Path | None = None) -> MigrationState:
    """Let a name lead to the migrated gallery, in one step, and remember where it led before.

    Args:
        source: URI of the old gallery.
        target: URI of the migrated one.
        name: A view, alias or link of the target's engine: its URI, or a bare name beside the target.
        state: Folder of the migration's state; None for the usual one.

    Returns:
        The state, whose `before` tells where the name led.

    Raises:
        ValueError: If the copy was not checked, or the engine has no names.
        FileExistsError: If a gallery itself has that name.
    """
    with _held(source, target, state) as (folder, found):
        if not found.reached("verified"):
            raise ValueError(f"{folder.target} was not checked yet; run --step run or --step verify first")
        engine, location = _engine(target)
        place = _name_location(target, name)
        led_to = engine.served(place)
        there = _is_same(led_to, location)
        earlier = found.before if found.name == redact(name) else None
        if found.reached("switched"):
            if found.name != redact(name):
                raise ValueError(f"{found.name} leads to {folder.target} already; --step switch-back first")
            if there:
                return found
        _require_followed(source, folder, found)
        before = earlier if there or led_to is None else redact(f"{locate(target)[0]}:{led_to}")
        # Written down first: whoever dies in between finds by the name itself whether it was switched.
        folder.write(replace(found, name=redact(name), before=before))
        engine.serve(place, location)
        return folder.write(folder.require().at("switched"))


def switch_back(source: str, target: str, *, state: str | Path | None = None) -> MigrationState:
    """Let the name lead again to what it led to before the switch.

    Raises:
        ValueError: If there was no switch, or the name led nowhere before.
    """
    with _held(source, target, state) as (folder, found):
        if found.name is None or not _is_served(target, found):
            raise ValueError(f"no name was switched to {folder.target}; there is nothing to switch back")
        if found.before is None:
            raise ValueError(
                f"{found.name} did not exist before the switch, so there is nothing to go back to; let it lead "
                "elsewhere with the tools of its engine, or leave it"
            )
        engine, _ = _engine(target)
        engine.serve(_name_location(target, found.name), _with_credentials(target, locate(found.before)[1]))
        return folder.write(replace(found.at("verified"), name=None, before=None))


def finalise(source: str, target: str, *, discard_old: bool = False, state: str | Path | None = None) -> str:
    """End a migration whose gallery is served: forget its state, and on request delete the old gallery.

    A file, which no name leads to, is taken for served, and nothing old is deleted then.

    Returns:
        What was done, and what could go.

    Raises:
        ValueError: If the copy was not checked or no name was switched to it; or the old gallery is to be deleted, and
            is a file, changed since it was last looked at, or a name leads to it.
    """
    with _held(source, target, state) as (folder, found):
        if live_engine(locate(target)[0]) is None and found.reached("verified"):
            if discard_old:
                raise ValueError(
                    f"{folder.target} is a file, and nothing tells that it is served, so {folder.source} is yours to "
                    "delete; leave out --discard-old"
                )
            folder.remove()
            return f"{folder.target} is whole; {folder.source} is left, and may go when nobody needs it"
        if not found.reached("switched") or found.name is None:
            raise ValueError(
                f"{folder.target} is not served yet ({found.step}); nothing old goes before --step switch --serve-as "
                "NAME"
            )
        engine, location = _engine(target)
        if not _is_same(engine.served(_name_location(target, found.name)), location):
            raise ValueError(f"{found.name} does not lead to {folder.target} any more; --step switch again")
        if not discard_old:
            folder.remove()
            return f"{found.name} leads to {folder.target}; {folder.source} is left, and may go when nobody needs it"
        scheme, old = locate(source)
        old_engine = live_engine(scheme)
        if old_engine is None:
            raise ValueError(f"{folder.source} is a file, which is yours to delete; leave out --discard-old")
        _require_followed(source, folder, found, read=True)
        old_engine.discard(old)
        folder.remove()
        return f"{found.name} leads to {folder.target}; {folder.source} was deleted"


def discard(source: str, target: str, *, state: str | Path | None = None) -> str:
    """Undo a migration before its switch: delete what it wrote, never the source.

    Returns:
        What was done.

    Raises:
        FileExistsError: If the target is of another origin.
        ValueError: If a name leads to the target, or no migration of these was begun.
    """
    with _held(source, target, state) as (folder, found):
        if found.reached("switched") or _is_served(target, found):
            raise ValueError(f"{found.name} leads to {folder.target}; --step switch-back first")
        if locate(source) == locate(target):
            raise ValueError(f"source and target are both {folder.target}; nothing is deleted")
        scheme, location = locate(target)
        engine = live_engine(scheme)
        # Refuses whatever is there of another origin.
        open_target(target, EmbeddingSpace.from_dict(found.space), found.provenance).close()
        if engine is None:
            _discard_files(Path(location))
        else:
            if scheme != "zarr" and (there := _digest_or_none(target)) is not None and there == _digest_or_none(source):
                raise ValueError(f"{folder.source} and {folder.target} are one table; nothing is deleted")
            engine.discard(location)
        folder.remove()
        return f"{folder.target} was deleted; {folder.source} is as it was"


def status(source: str, target: str, *, state: str | Path | None = None) -> str:
    """How far a migration is, in a sentence."""
    folder = state_folder(source, target, state)
    found = folder.read()
    return str(found) if found else f"no migration of {folder.source} to {folder.target} was begun; begin: --step run"


@contextmanager
def _held(source: str, target: str, state: str | Path | None) -> Iterator[tuple[StateFolder, MigrationState]]:
    """A migration that was begun, with nobody else at work on it."""
    folder = state_folder(source, target, state)
    folder.require()
    with folder.alone():
        yield folder, folder.require()


def _is_served(target: str, found: MigrationState) -> bool:
    """Whether a name was switched to the target, also by a switch that died before it could say so."""
    if found.reached("switched") or found.name is None:
        return found.reached("switched")
    engine, location = _engine(target)
    return _is_same(engine.served(_name_location(target, found.name)), location)


def _require_followed(source: str, folder: StateFolder, found: MigrationState, *, read: bool = False) -> None:
    """Make sure that nothing came to the source since it was last looked at; one that is gone takes no more.

    Args:
        source: Its URI.
        folder: The migration's.
        found: Its state.
        read: Whether to read every row of a source whose digest does not tell; else such a one passes.

    Raises:
        ValueError: If something did.
    """
    now = _digest_or_none(source)
    if now is None:
        return
    if not tells_contents(locate(source)[0]):
        changes = not_brought_over(open_source(source), folder, BATCH_ROWS) if read else SourceChanges()
        if changes.count:
            raise ValueError(f"{source_changed(folder, changes)}; --step run brings that over")
    elif now != found.seen:
        raise ValueError(f"{folder.source} changed since it was last looked at; --step run brings that over")


def _digest_or_none(uri: str) -> str | None:
    try:
        return digest(uri)
    except FileNotFoundError:
        return None


def _discard_files(path: Path) -> None:
    partial, card = partial_path(path), GalleryCard.beside(path)
    names = sorted({name.split("/")[0] for name in card.files}) if card else []
    if card is not None:
        card_path(path).unlink()
    for entry in (path.parent / name for name in names):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
    if partial.is_dir():
        if card is None and path.is_file():  # put in place by a run that died before it wrote the card
            path.unlink()
        shutil.rmtree(partial)


def _engine(target: str) -> tuple[LiveEngine, str]:
    scheme, location = locate(target)
    engine: Any = live_engine(scheme)
    if engine is None or not hasattr(engine, "serve"):
        raise ValueError(
            f"{redact(target)} is a file, which no name can be led to; tell what searches it where it is, and end "
            "with --step finalise"
        )
    return engine, location


def _name_location(target: str, name: str) -> str:
    """Where a name is, as the target's engine takes it; a bare name is beside the target."""
    scheme, location = locate(target)
    if re.match(r"[A-Za-z][A-Za-z0-9+]*:", name):
        other, place = locate(name)
        if other != scheme:
            raise ValueError(f"{redact(name)} is of the kind {other}, expected {scheme} as the target is")
        return _with_credentials(target, place) if "//" in place else place
    if "/" in name:
        return name
    if not name:
        raise ValueError("--serve-as names nothing; give the name of a view, alias or link")
    path, mark, query = location.partition("?")
    head, slash, last = path.rpartition("/")
    schema, dot, _ = last.partition(".")
    if scheme == "postgresql" and dot and "." not in name:
        name = f"{schema}.{name}"
    return f"{head}{slash}{name}{mark}{query}"


def _with_credentials(target: str, location: str) -> str:
    """A location without a password, with what the target's has to log in."""
    own = re.match(r"(//[^/?]*@)", locate(target)[1])
    if not own or not location.startswith("//"):
        return location
    return own[1] + re.sub(r"^//([^/?]*@)?", "", location)


def _is_same(led_to: str | None, location: str) -> bool:
    """Whether a name leads to a location, whatever options and passwords the two are written with."""
    if led_to is None:
        return False
    if location.startswith("//"):
        ends = [re.sub(r"^//([^/]*@)?", "", each.partition("?")[0]).split("/") for each in (led_to, location)]
        names = [end[-1].rpartition(".") for end in ends]
        same_schema = names[0][0] == names[1][0] or not names[1][0] or not names[0][0]
        return ends[0][:-1] == ends[1][:-1] and names[0][2] == names[1][2] and same_schema
    return Path(led_to).resolve() == Path(location).resolve()
