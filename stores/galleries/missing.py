"""A gallery that is not there, told with those that are."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 5


def missing(location: object, kind: str, there: Iterable[str] | None) -> FileNotFoundError:
    """The error of a gallery that is not there.

    Args:
        location: Where it was looked for, without secrets.
        kind: What it would be: a table, a collection.
        there: Names of those in the same place; None where nobody can tell.
    """
    told = f"no gallery at {location}: there is no such {kind}"
    if there is None:
        return FileNotFoundError(f"{told}; correct the name")
    names = sorted(there)
    if not names:
        return FileNotFoundError(f"{told}, nor another; correct the place, or fill it by python -m stores.convert")
    others = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return FileNotFoundError(f"{told}, found {', '.join(names[:_SHOWN])}{others}; name one of them")
