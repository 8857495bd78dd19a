"""Letting a name lead to the migrated gallery, back to what it led to before, and tidying up when all is well.

The order is kept: a gallery is served once it was checked, the old one may go once the new one is served, and nothing
that a name leads to is ever deleted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from compat.migration.changes import SourceChanges, not_brought_over, source_changed
from compat.migration.copying import BATCH_ROWS, OnRows, WatchedSource
from compat.migration.names import is_same, name_location, naming_engine, one_place, with_credentials
from compat.migration.state import (
    MigrationState,
    NoMigration,
    StateFolder,
    live_engine,
    same_gallery,
    state_folder,
    tells_contents,
)
from stores.galleries import digest, locate, open_source, open_target, redact
from stores.galleries.card import GalleryCard, card_path, partial_path
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
        engine, location = naming_engine(target)
        place = name_location(target, name)
        led_to = engine.served(place)
        there = is_same(led_to, location)
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
    """Let the name lead again to what it led to before the switch; a new name to the old gallery, see `way_back`.

    Raises:
        ValueError: If there was no switch, or there is nothing that the name can lead to.
    """
    with _held(source, target, state) as (folder, found):
        if found.name is None or not (found.reached("switched") or _is_served(target, found)):
            raise ValueError(f"no name was switched to {folder.target}; there is nothing to switch back")
        back = _way_back(source, target, found)
        if back is None:
            raise ValueError(_no_way_back(folder, found.name))
        engine, _ = naming_engine(target)
        engine.serve(name_location(target, found.name), with_credentials(target, locate(back)[1]))
        return folder.write(replace(found.at("verified"), name=None, before=None))


def way_back(source: str, target: str, name: str | None = None, *, state: str | Path | None = None) -> str:
    """What `switch_back` will do, or does after a switch of this name, in a sentence.

    A name that led nowhere before the switch is let lead to the old gallery, where one name can lead to both.
    """
    folder = state_folder(source, target, state)
    found = folder.read() or MigrationState(source=folder.source, target=folder.target)
    if name and found.name != redact(name):
        engine, location = naming_engine(target)
        led_to = engine.served(name_location(target, name))
        before = None if led_to is None or is_same(led_to, location) else redact(f"{locate(target)[0]}:{led_to}")
        found = replace(found, name=redact(name), before=before)
    back = _way_back(source, target, found)
    if back is None:
        return _no_way_back(folder, found.name or "the name")
    return f"--step switch-back lets {found.name or 'the name'} lead to {redact(back)}"


def _way_back(source: str, target: str, found: MigrationState) -> str | None:
    """URI that a name is led to when it is switched back; None where it led nowhere and cannot lead to the source."""
    if found.before is not None:
        return found.before
    scheme, there = locate(source)
    if scheme != locate(target)[0] or live_engine(scheme) is None or not one_place(scheme, source, target):
        return None
    try:
        own = open_source(source).space is not None
    except (OSError, ValueError):
        return None
    # A view shows any table; a link or an alias leads to a gallery of the toolkit's only.
    return f"{scheme}:{there}" if own or scheme == "postgresql" else None


def _no_way_back(folder: StateFolder, name: str) -> str:
    return (
        f"{name} did not exist before the switch and cannot lead to {folder.source}, so there is nothing to go back "
        f"to; remove {name} with the tools of its engine to undo the switch, and --step discard deletes {folder.target}"
    )


def finalise(
    source: str,
    target: str,
    *,
    discard_old: bool = False,
    state: str | Path | None = None,
    on_look: OnRows | None = None,
) -> str:
    """End a migration whose gallery is served: forget its state, and on request delete the old gallery.

    A file, which no name leads to, is taken for served, and nothing old is deleted then.

    Args:
        source: URI of the old gallery.
        target: URI of the new one.
        discard_old: Whether to delete the old one.
        state: Folder of the migration's state; None for the usual one.
        on_look: Called with (rows read, rows in all) while the old gallery is read a last time; another thread does.

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
        engine, location = naming_engine(target)
        if not is_same(engine.served(name_location(target, found.name)), location):
            raise ValueError(f"{found.name} does not lead to {folder.target} any more; --step switch again")
        if not discard_old:
            folder.remove()
            return f"{found.name} leads to {folder.target}; {folder.source} is left, and may go when nobody needs it"
        scheme, old = locate(source)
        old_engine = live_engine(scheme)
        if old_engine is None:
            raise ValueError(f"{folder.source} is a file, which is yours to delete; leave out --discard-old")
        _require_followed(source, folder, found, read=True, on_look=on_look)
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
        if _is_served(target, found):
            if _way_back(source, target, found) is None:
                raise ValueError(_no_way_back(folder, str(found.name)))
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
    """How far a migration is, and what comes next, in a sentence."""
    folder = state_folder(source, target, state)
    found = folder.read()
    if found is None:
        ended = _ended(source, folder, target)
        return ended or f"no migration of {folder.source} to {folder.target} was begun; begin: --step run"
    if not found.reached("switched"):
        return str(found)
    told = f"{folder.source} to {folder.target}: "
    try:
        there = _is_served(target, found)
    except OSError:  # no server answers
        return str(found)
    if not there:
        return f"{told}{found.name} does not lead to it any more; --step switch --serve-as NAME again"
    return f"{told}{found.name} leads to it; --step finalise comes next ({way_back(source, target, state=state)})"


def _ended(source: str, folder: StateFolder, target: str) -> str | None:
    """What is to be said of a migration that is final, so that only its gallery tells of it; None of any other."""
    try:
        written = open_source(target)
    except (OSError, ValueError):
        return None
    if not same_gallery(written.provenance.get("migrated_from"), source):
        return None
    told = f"{folder.source} to {folder.target}: finished; {folder.target} is complete ({len(written)} vectors)"
    if _digest_or_none(source) is None:
        return f"{told}, and {folder.source} is gone"
    return f"{told}; --step run brings over what changed in {folder.source} since"


@contextmanager
def _held(source: str, target: str, state: str | Path | None) -> Iterator[tuple[StateFolder, MigrationState]]:
    """A migration that was begun, with nobody else at work on it."""
    folder = state_folder(source, target, state)
    try:
        folder.require()
    except NoMigration as error:
        raise NoMigration(_ended(source, folder, target) or str(error)) from None
    with folder.alone():
        yield folder, folder.require()


def _is_served(target: str, found: MigrationState) -> bool:
    """Whether a name was switched to the target, also by a switch that died before it could say so."""
    if found.name is None:
        return False
    engine, location = naming_engine(target)
    return is_same(engine.served(name_location(target, found.name)), location)


def _require_followed(
    source: str, folder: StateFolder, found: MigrationState, *, read: bool = False, on_look: OnRows | None = None
) -> None:
    """Make sure that nothing came to the source since it was last looked at; one that is gone takes no more.

    Args:
        source: Its URI.
        folder: The migration's.
        found: Its state.
        read: Whether to read every row of a source whose digest does not tell; else such a one passes.
        on_look: Called with (rows read, rows in all) while it is read.

    Raises:
        ValueError: If something did.
    """
    now = _digest_or_none(source)
    if now is None:
        return
    if not tells_contents(locate(source)[0]):
        changes = SourceChanges()
        if read:
            gallery = open_source(source)
            watched = WatchedSource(gallery, on_look) if on_look else gallery
            changes = not_brought_over(watched, folder, BATCH_ROWS)
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
