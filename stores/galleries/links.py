"""Names of galleries in folders: a symbolic link that leads to one, moved to another in one step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from stores.durable import WriterLock, sync_folder


def lead(link: Path, folder: Path) -> None:
    """Let a link lead to a folder, in one step: whoever follows it finds the old folder or the new one.

    Raises:
        FileExistsError: If something that is no link has that name.
    """
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is a gallery and no link, and is never replaced; rename it first")
    link.parent.mkdir(parents=True, exist_ok=True)
    where = os.path.relpath(folder, link.parent)
    if where.startswith(os.pardir):  # through folders that may be links themselves
        where = str(folder.resolve())
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(where)
    temporary.replace(link)
    sync_folder(link.parent)


def leads_to(link: Path) -> Path | None:
    """The folder that a link leads to; None where there is no link of that name."""
    if not link.is_symlink():
        return None
    return Path(os.path.normpath(link.parent / link.readlink()))


def discard_folder(folder: Path, mark: str) -> None:
    """Delete a gallery's folder; one that is gone already is passed over.

    Args:
        folder: The gallery.
        mark: What a folder must hold to be one, so that no other is deleted by mistake.

    Raises:
        ValueError: If it is a link, or a link beside it leads to it, or it is no gallery.
        StoreLocked: If another process is writing it.
    """
    hidden = folder.with_name(f".{folder.name}.discarded")
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link; name the gallery that it leads to")
    if folder.exists():
        if not (folder / mark).exists():
            raise ValueError(f"{folder} is no gallery: it has no {mark}; remove it yourself")
        for entry in folder.parent.iterdir():
            if entry.is_symlink() and entry.resolve() == folder.resolve():
                raise ValueError(f"the link {entry} leads to {folder}; let it lead to another gallery first")
        lock = WriterLock(folder)
        lock.acquire()
        try:
            shutil.rmtree(hidden, ignore_errors=True)
            folder.rename(hidden)  # at once, so that nobody finds half a gallery
            sync_folder(folder.parent)
        finally:
            lock.release()
    if hidden.exists():  # also of a process that died here
        shutil.rmtree(hidden)
        sync_folder(folder.parent)
