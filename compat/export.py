"""Export a transformer: `python -m compat.export --transformer DIR --format onnx --out FILE.onnx`.

`onnx` is for any runtime, `numpy` a .npz of plain arrays for Python without torch, `faiss` the old FAISS index itself,
written anew so that it takes the new model's queries as they are. What was written is compared with the transformer
before it gets its name.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stores.command_line import run_command

if TYPE_CHECKING:
    from compat.exporting.written import Exported

SUFFIXES = {"onnx": (".onnx",), "numpy": (".npz",), "faiss": (".faiss", ".index")}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export, as what, and where to.

    Attributes:
        transformer: Folder of a transformer.
        format: `onnx` for any family; `numpy` for all but msresnet; `faiss` for linear families and mlp of direction
            new-to-old.
        out: The file to write (.onnx, .npz, .faiss or .index); not there yet, or the same export.
        index: For faiss: the index file of the old gallery's vectors, which is left alone.
        serve: For onnx and numpy: whether queries come out as an index with the transformer's hubness correction takes
            them, unit length and a 1 appended.
        uncorrected: For faiss: whether to leave the transformer's hubness correction out, for an index without room.
        unit: For faiss: whether mapped queries are scaled to unit length; `auto` where the old model's vectors are, or
            the index compares them by inner product in place of the cosine. An index that compares by distance has
            to hold unit vectors for any map but an mlp that learned their lengths.
        check: For faiss: whether to search the result and compare, which takes the index into memory once.
        tolerance: Largest difference from the transformer: of a vector as a share of its length, of a score as a share
            of the largest.
    """

    transformer: Path
    format: Literal["onnx", "numpy", "faiss"]
    out: Path
    index: Path | None = None
    serve: Literal["yes", "no"] = "no"
    uncorrected: Literal["yes", "no"] = "no"
    unit: Literal["auto", "yes", "no"] = "auto"
    check: Literal["yes", "no"] = "yes"
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        allowed = SUFFIXES[self.format]
        wanted = f"{' or '.join(allowed)} for --format {self.format}"
        if self.out.is_dir():
            raise ValueError(f"--out {self.out} is a folder; name a file that ends in {wanted}")
        if self.out.suffix not in allowed:
            found = f"ends in {self.out.suffix!r}" if self.out.suffix else "has no ending"
            raise ValueError(f"--out {self.out} {found}, expected {wanted}")
        if self.format == "faiss" and self.index is None:
            raise ValueError("--format faiss writes an index anew; name the old gallery's with --index")
        unused: dict[str, Any] = {"serve": "no"}
        if self.format != "faiss":
            unused = {"index": None, "uncorrected": "no", "unit": "auto", "check": "yes"}
        for name, default in unused.items():
            if getattr(self, name) != default:
                raise ValueError(f"--{name} has no meaning with --format {self.format}; leave it out")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, found {self.tolerance}")


def export(options: ExportOptions) -> "Exported":
    """Export a transformer.

    Raises:
        FileExistsError: If something else is at `out`.
        FileNotFoundError: If the transformer, the index, or the folder of `out` is missing.
        ImportError: If a package that the format needs is not installed.
        ValueError: If the transformer or the index does not allow it, or the file gives other results.
    """
    from compat.transformers.artefact import load_transformer

    transformer = load_transformer(options.transformer)
    if options.format == "onnx":
        from compat.exporting.onnx_file import export_onnx

        return export_onnx(transformer, options.out, serve=options.serve == "yes", tolerance=options.tolerance)
    if options.format == "numpy":
        from compat.exporting.array_file import export_arrays

        return export_arrays(transformer, options.out, serve=options.serve == "yes", tolerance=options.tolerance)
    from compat.exporting.faiss_file import export_index

    return export_index(
        transformer,
        str(options.index),
        options.out,
        uncorrected=options.uncorrected == "yes",
        unit=options.unit,
        check=options.check == "yes",
        tolerance=options.tolerance,
    )


def _export_and_tell(options: ExportOptions) -> None:
    exported = export(options)
    print(exported)
    if exported.recipe:
        print(f"without this toolkit:\n\n{exported.recipe}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        ExportOptions,
        _export_and_tell,
        argv,
        prog="python -m compat.export",
        description=str(__doc__),
        switches=("serve", "uncorrected", "check"),
    )


if __name__ == "__main__":
    sys.exit(main())
