"""What a migration would do, found out beforehand from a sample; nothing that is written stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compat.migration.copying import BATCH_ROWS, ahead
from compat.migration.early import require_apart
from compat.migration.mappable import open_mappable, served_form
from compat.migration.progress import duration
from compat.migration.state import FILE_SCHEMES, live_engine, same_gallery, state_folder
from compat.migration.trial import existing_folder, try_migration
from compat.transformers.artefact import Transformer
from stores.galleries import locate, open_source, redact
from stores.galleries.gallery import GallerySource, notes_of
from stores.space import NORM_TOLERANCE, EmbeddingSpace
from stores.store import Batch

_LARGEST_HALF = float(np.finfo(np.float16).max)
_SAMPLES = 4  # places of the source that are looked at


@dataclass(frozen=True)
class PlanCheck:
    """Something that must hold before a migration begins: whether it does, and what was found, with a remedy."""

    name: str
    passed: bool
    found: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'FAILED'} {self.name}: {self.found}"


@dataclass(frozen=True)
class MigrationPlan:
    """What a migration would do.

    Attributes:
        source: URI of the old gallery, without a password.
        target: URI of the gallery to write, without a password.
        space: Space of what would be written.
        rows: Vectors.
        bytes: To be written, about; what indexes take is not in it.
        free_bytes: On the target's disk; None where it is another machine's.
        rows_per_second: Of the sample; 0 where none was taken.
        measured: What the sample went through.
        checks: What was looked at.
        creates: What would be made.
        notes: What whoever uses the vectors should know.
    """

    source: str
    target: str
    space: EmbeddingSpace
    rows: int
    bytes: int
    free_bytes: int | None
    rows_per_second: float
    measured: str
    checks: tuple[PlanCheck, ...]
    creates: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    @property
    def seconds(self) -> float | None:
        """How long it would take; None where no sample tells."""
        return self.rows / self.rows_per_second if self.rows_per_second else None

    def __str__(self) -> str:
        lines = [f"migrate {self.source} to {self.target}", f"  rows     {self.rows} vectors of {self.space}"]
        free = "" if self.free_bytes is None else f", {_size(self.free_bytes)} are free"
        lines.append(f"  bytes    about {_size(self.bytes)} to write{free}")
        if self.seconds is not None:
            lines.append(
                f"  time     about {duration(self.seconds)}, at {self.rows_per_second:.0f} rows/s ({self.measured})"
            )
        lines += [f"  creates  {each}" for each in self.creates]
        lines += [f"  {check}" for check in self.checks]
        lines += [f"  note     {note}" for note in self.notes]
        return "\n".join(lines)


def plan_migration(
    source: str,
    transformer: Transformer,
    target: str,
    *,
    correction: bool = True,
    batch_rows: int = BATCH_ROWS,
    sample_seconds: float = 2.0,
    source_space: str | None = None,
    state: str | Path | None = None,
) -> MigrationPlan:
    """Find out what a migration would do, from a sample of the source; see `compat.migration.run.migrate_gallery`.

    Args:
        source: URI of the old gallery.
        transformer: The map.
        target: URI of the gallery to write.
        correction: Whether to write the transformer's correction, if it carries one.
        batch_rows: Rows in memory at a time.
        sample_seconds: How long to try the migration at most; 0 tries nothing.
        source_space: Name of the space of a source that cannot tell.
        state: Folder of the migration's state.

    Raises:
        WrongSpace: If the transformer does not map this gallery.
        OSError: If a server cannot be reached, or refuses whom the URI names.
        ValueError: If the source is empty or damaged, or the target can be no gallery.
    """
    require_apart(source, target)
    served = served_form(transformer, correction=correction)
    gallery = open_mappable(source, served, source_space)
    scheme, location = locate(target)
    folder = state_folder(source, target, state)
    rows, space = len(gallery), served.served_space
    size = rows * (space.dim * (2 if "type=halfvec" in location or "dtype=float16" in location else 4) + 32)
    free = _free_bytes(location) if scheme in FILE_SCHEMES else None
    checks = _checks(gallery, served, target, batch_rows)
    if folder.read() is None:
        checks += (_place(source, transformer, target),)
    if free is not None and folder.read() is None:
        needed = size if live_engine(scheme) or scheme == "zarr" else 2 * size  # a file is built from a hidden store
        enough = f"{_size(needed)} needed, {_size(free)} free"
        remedy = "" if needed <= free else "; make room, or name a target elsewhere"
        checks += (PlanCheck("disk", needed <= free, enough + remedy),)
    speed, measured = (
        try_migration(gallery, served, target, batch_rows, sample_seconds) if sample_seconds > 0 else (0.0, "")
    )
    return MigrationPlan(
        source=redact(source),
        target=redact(target),
        space=space,
        rows=rows,
        bytes=size,
        free_bytes=free,
        rows_per_second=speed,
        measured=measured,
        checks=checks,
        creates=_creates(redact(target), str(folder.folder), space, scheme),
        notes=notes_of(gallery),
    )


def _checks(gallery: GallerySource, served: Transformer, target: str, batch_rows: int) -> tuple[PlanCheck, ...]:
    """Checks of the spaces, of a sample's norms, and of what the target's engine does to vectors."""
    scheme, location = locate(target)
    odd = seen = 0
    largest = 0.0
    for batch in _sample(gallery, min(batch_rows, 1024)):
        lengths = np.linalg.norm(batch.vectors, axis=1)
        seen += len(lengths)
        odd += int(np.count_nonzero(~(np.abs(lengths - 1) <= NORM_TOLERANCE)))
        mapped = served.serve_gallery(batch.vectors, batch.items["item_id"])
        largest = max(largest, float(np.abs(mapped).max(initial=0.0)))
    space = served.served_space
    checks = [
        PlanCheck("dimension", True, f"{gallery.dim} to {space.dim}"),
        PlanCheck("metric", True, _metric(scheme, space)),
        _norms(served.gallery_space, odd, seen),
        PlanCheck("numbers", bool(np.isfinite(largest)), "finite" if np.isfinite(largest) else "NaN or infinity"),
    ]
    if "type=halfvec" in location or "dtype=float16" in location:
        fits = largest <= _LARGEST_HALF
        remedy = "" if fits else f", more than {_LARGEST_HALF:g}; write full numbers"
        checks.append(PlanCheck("half precision", fits, f"the largest number of a sample is {largest:.3g}{remedy}"))
    return tuple(checks)


def _place(source: str, transformer: Transformer, target: str) -> PlanCheck:
    """Whether the target is free, or holds what this very migration wrote before its state went."""
    try:
        provenance = open_source(target).provenance
    except FileNotFoundError:
        return PlanCheck("target", True, "nothing is there yet")
    except ValueError as error:  # unfinished, or a table of somebody's own
        return PlanCheck(
            "target", True, f"something is there, which is left alone unless a run of this began it: {error}"
        )
    made_by = provenance.get("transformer")
    same = isinstance(made_by, dict) and made_by.get("digest") == transformer.digest()
    if same and same_gallery(provenance.get("migrated_from"), source):
        return PlanCheck("target", True, "this migration's result is there already")
    return PlanCheck(
        "target", False, f"{redact(target)} holds another gallery, which is left alone; name another target"
    )


def _norms(space: EmbeddingSpace, odd: int, seen: int) -> PlanCheck:
    if not space.normalized:
        return PlanCheck("norms", True, f"{space} says nothing of lengths; {seen - odd} of {seen} are of unit length")
    if not odd:
        return PlanCheck("norms", True, f"{seen} sampled vectors have unit length, as {space} says")
    return PlanCheck(
        "norms",
        False,
        f"{odd} of {seen} sampled vectors are not of unit length, as {space} says they are; they are another model's, "
        "or were changed: find out, or convert them with --normalized no and fit the map to that",
    )


def _metric(scheme: str, space: EmbeddingSpace) -> str:
    told = f"compared by {space.similarity.replace('_', ' ')}"
    if scheme == "qdrant" and space.similarity == "cosine":
        return f"{told}; Qdrant keeps unit vectors, and their lengths beside them"
    return told


def _sample(gallery: GallerySource, size: int) -> Iterator[Batch]:
    """Batches from the beginning, the end and between, where that can be had cheaply: at most so many rows each."""
    places = min(_SAMPLES, -(-len(gallery) // size))
    size = min(size, len(gallery) // places)  # so that no row is looked at twice
    for place in range(places):
        start = (len(gallery) - size) * place // max(1, places - 1)
        with closing(ahead(gallery.scan(size, start=start), 1)) as batches:
            yield from (batch for _, batch in zip(range(1), batches, strict=False))


def _free_bytes(location: str) -> int:
    return shutil.disk_usage(existing_folder(Path(location).absolute().parent)).free


def _creates(target: str, folder: str, space: EmbeddingSpace, scheme: str) -> tuple[str, ...]:
    what = {"zarr": "a store", "zarr+array": "a Zarr group"}.get(scheme, f"a file ({scheme})")
    if scheme not in FILE_SCHEMES:
        what = f"a gallery in {scheme}"
    return (f"{target}: {what} of {space.dim}-D vectors", f"{folder}: what the migration remembers, until it is final")


def _size(count: int) -> str:
    number, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{number:.4g} {unit}"
