"""Show what a store holds and whether it is sound: `python -m stores.inspect STORE`.

Space, provenance, layout, norms, columns, labels and splits, and a damage check of every file. No vector and no item
id is shown. The exit code is 0 for a sound store, 1 for a damaged one, 2 for a mistake in the command.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stores.command_line import progress, run_command

if TYPE_CHECKING:
    from stores.inspection import Inspection

DAMAGED = 1
_PROBLEMS_SHOWN = 10
_UNITS = ("kB", "MB", "GB", "TB")


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """What to look at.

    Attributes:
        store: Folder of the store.
        check: Whether to read every file and compare it with its checksum. Without it the norms are those of a sample
            of the vectors, and damage elsewhere goes unnoticed.
        json: Print one JSON object and nothing else; `--json` alone means yes.
    """

    store: str = field(kw_only=False)
    check: Literal["yes", "no"] = "yes"
    json: Literal["yes", "no"] = "no"


def inspect(options: InspectOptions) -> None:
    """Print what a store holds; see `stores.inspection.inspect_store`.

    Raises:
        SystemExit: With code 1, if the store is damaged.
        FileNotFoundError: If there is no store.
        ValueError: If it is a gallery of another kind, or of another format version.
    """
    from dataclasses import fields
    from json import dumps

    from stores.chunks import DamagedStore
    from stores.galleries import locate, redact
    from stores.inspection import Inspection, inspect_store

    scheme, location = locate(options.store)
    if scheme != "zarr":
        raise ValueError(
            f"{redact(options.store)} is a gallery of the kind {scheme}, and only stores can be inspected; "
            f"copy it into one: python -m stores.convert {redact(options.store)} STORE"
        )
    bars: dict[str, Iterator[int]] = {}

    def step(what: str, done: int, total: int) -> None:
        if done == 1:
            bars[what] = iter(progress(range(total), what))
        next(bars[what], None)
        if done == total:
            next(bars[what], None)  # past the last one, which takes the bar away

    try:
        found = inspect_store(location, check=options.check == "yes", on_step=step)
    except DamagedStore as error:  # store.json itself: nothing else can be told
        problems, text = [str(error)], ""
        told = dict.fromkeys(entry.name for entry in fields(Inspection))
        told |= {"path": location, "sound": False, "problems": problems}
    else:
        problems, told, text = list(found.problems), found.to_dict(), inspection_text(found)
    sys.stdout.write(f"{dumps(told, indent=2)}\n" if options.json == "yes" else text)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        print(f"error: {location} is damaged: {_shown(problems[0])}{more}", file=sys.stderr)
        raise SystemExit(DAMAGED)


def inspection_text(found: "Inspection") -> str:
    """What was found, as aligned plain text for a terminal."""
    space, layout, norms, labels = found.space, found.layout, found.norms, found.labels
    page: dict[str, Any] = {"store": found.path, "state": _state(found)}
    if found.problems:
        more = len(found.problems) - _PROBLEMS_SHOWN
        rest = [f"and {more:,} more, which --json names"] if more > 0 else []
        page["damage"] = (*found.problems[:_PROBLEMS_SHOWN], *rest)
    if found.notes:
        page["notes"] = found.notes
    page["space"] = space | {"fingerprint": space["fingerprint"] or "none, the space goes by its name"}
    page["rows"] = f"{found.rows:,}" if found.rows else "0, the store is empty"
    page["layout"] = {
        "format version": found.format_version,
        "dtype": layout.dtype,
        "chunks": f"{layout.chunks:,} of {layout.chunk_rows:,} rows"
        + (f", {layout.shard_chunks:,} in a file" if layout.shard_chunks > 1 else ""),
        "compression": layout.compression,
        "item parts": f"{layout.item_parts:,}",
        "on disk": f"{_size(layout.bytes_total)}: vectors {_size(layout.bytes_vectors)}, items "
        f"{_size(layout.bytes_items)}",
    }
    if norms:
        page["norms"] = {
            "vectors read": f"{norms.rows:,}",
            "minimum": norms.minimum,
            **{f"{float(share):.0%} quantile": value for share, value in norms.quantiles.items()},
            "maximum": norms.maximum,
            "unit length": f"{norms.unit_length:,} ({norms.unit_length_share:.1%})",
            "zero": f"{norms.zero:,}",
            "not finite": f"{norms.not_finite:,}",
        }
    if layout.rows_forgotten:
        page["forgotten"] = f"{layout.rows_forgotten:,} rows, whose bytes are there until the store is compacted"
    if found.columns:
        page["columns"] = {
            column.name: f"{column.type}, {f'{column.nulls:,} absent' if column.nulls else 'none absent'}"
            for column in found.columns
        }
    if labels:
        per_label = f"minimum {labels.minimum}, median {_half(labels.median)}, maximum {labels.maximum}"
        largest = {"largest": {str(label): f"{rows:,}" for label, rows in labels.largest}} if labels.largest else {}
        page["labels"] = {
            "different": f"{labels.labels:,}",
            "rows without": f"{labels.unlabelled:,}",
            "rows per label": per_label if labels.labels else "none",
            **largest,
        }
    if found.splits:
        page["splits"] = {split: f"{rows:,}" for split, rows in found.splits.items()}
    page["provenance"] = found.provenance or "none was given"
    return "".join(f"{line}\n" for line in _lines(page))


def _state(found: "Inspection") -> str:
    words = {True: "sound, every file was read", False: "DAMAGED", None: "not checked, nothing found on the way"}
    endings = {
        True: ", written to its end",
        False: f"; UNFINISHED, {found.rows:,} rows so far: run the command that writes it again",
        None: "",  # whoever wrote it keeps no record of that
    }
    return words[found.sound] + endings[found.complete]


def _lines(entries: Mapping[str, Any], indent: int = 0) -> Iterator[str]:
    """Names and values below each other, the values of one level aligned, nested ones indented."""
    flat = [key for key, value in entries.items() if not _nests(value)]
    width = max((len(_shown(key)) for key in flat), default=0)
    for key, value in entries.items():
        name = " " * indent + _shown(key)
        if not _nests(value):
            yield f"{name:<{indent + width}}  {_shown(value)}"
            continue
        yield name
        if isinstance(value, tuple):
            yield from (f"{' ' * indent}  - {_shown(line)}" for line in value)
        elif isinstance(value, list):
            yield from _lines({str(number): entry for number, entry in enumerate(value, start=1)}, indent + 2)
        else:
            yield from _lines(value, indent + 2)


def _nests(value: Any) -> bool:
    return bool(value) and (isinstance(value, (dict, tuple)) or (isinstance(value, list) and any(map(_nests, value))))


def _shown(value: Any) -> str:
    """A value on one line. What comes from outside may hold anything, also what steers a terminal."""
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return "".join(character if character.isprintable() else "?" for character in str(value))


def _half(number: float | None) -> str:
    return "none" if number is None else f"{number:.1f}".removesuffix(".0")


def _size(count: float) -> str:
    if count < 1000:
        return f"{count:.0f} bytes"
    power = min(int(math.log10(count)) // 3, 4)
    return f"{count / 1000**power:.1f} {_UNITS[power - 1]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        InspectOptions,
        inspect,
        argv,
        prog="python -m stores.inspect",
        description=str(__doc__),
        switches=["json"],
    )


if __name__ == "__main__":
    sys.exit(main())
