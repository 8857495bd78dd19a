"""Write an encoder as one ONNX file: `python -m backbones.export --backbone iresnet18 --weights W --out FILE.onnx`.

Its preprocessing and model card are inside, so that `--backbone onnx:FILE` needs nothing else. The file is written only
where it gives the embeddings that the encoder itself gives in float32.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backbones.command_line import run_command


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export and how it is checked.

    Attributes:
        backbone: A built-in network, or `module:function` returning a text encoder of this package
            (`backbones.encoders.texts:minilm`).
        out: The ONNX file; not there yet.
        weights: model.safetensors that `backbones.train` wrote, for a built-in network.
        data: Items to compare the two on, the first 16 of them; noise or a few sentences by default.
        flip_average: Whether its users average over the image and its mirror image; by default as it was trained for.
        opset: Version of the ONNX operators.
        tolerance: Largest difference of a component, as a share of the embedding's norm.
    """

    backbone: str
    out: Path
    weights: Path | None = None
    data: Path | None = None
    flip_average: bool | None = None
    opset: int = 20
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if self.opset < 18:
            raise ValueError(f"opset must be at least 18, which the exporter needs, found {self.opset}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, found {self.tolerance}")


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written.

    Attributes:
        path: The file.
        opset: Version of its operators.
        difference: Largest difference of a component that was found, as a share of the embedding's norm.
        items: How many items it was found on.
    """

    path: Path
    opset: int
    difference: float
    items: int

    def __str__(self) -> str:
        return (
            f"{self.path}, opset {self.opset}, any batch size: differs from the encoder by at most "
            f"{self.difference:.1e} of the norm on {self.items} items"
        )


def export(options: ExportOptions) -> ExportResult:
    """Write an encoder as an ONNX file with its preprocessing inside.

    Raises:
        FileExistsError: where something is at `out`.
        FileNotFoundError: where the folder of `out` or the weights are missing.
        ImportError: where onnx, onnxscript or onnxruntime is not installed.
        ValueError: where the encoder cannot be exported, or the file's embeddings are not the encoder's.
    """
    from backbones.encoders.load import load_backbone
    from backbones.encoders.onnx_export import write_onnx

    if options.out.exists():
        raise FileExistsError(f"{options.out} exists and is never overwritten; name another --out or remove it")
    if not options.out.parent.is_dir():
        raise FileNotFoundError(f"the folder {options.out.parent} of --out does not exist; make it, or name another")
    backbone = load_backbone(options.backbone, weights=options.weights, flip_average=options.flip_average)
    difference, items = write_onnx(
        backbone, options.out, data=options.data, opset=options.opset, tolerance=options.tolerance
    )
    return ExportResult(path=options.out, opset=options.opset, difference=difference, items=items)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        ExportOptions,
        lambda options: print(export(options)),
        argv,
        prog="python -m backbones.export",
        description=str(__doc__),
    )


if __name__ == "__main__":
    sys.exit(main())
