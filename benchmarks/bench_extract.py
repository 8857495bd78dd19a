"""Extraction against a bare forward loop of the same engine, and against the float32 loop that people write."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from table import interleaved, markdown, publish
from torch.utils.data import DataLoader, Dataset

from backbones.encoders.encoder import EngineName
from backbones.encoders.images import ImageBackbone, load_image_backbone
from backbones.encoders.openvino import is_installed
from backbones.options import TrainOptions
from backbones.train import train
from compat.demo import DemoOptions, lay_out_faces
from compat.extract import ExtractOptions, extract

FILE_SIDE = 250  # pixels of the JPEG files, as in LFW
SIZES = (36, 112)
START_IMAGES = 16


class Files(Dataset):
    """The JPEG files as people load them: Pillow, resize, to a float tensor."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.paths[row]) as image:
            pixels = np.asarray(image.convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC))
        return (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() - 127.5) / 127.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--weights", type=Path, help="folder of a trained iresnet18; only its own size is measured")
    parser.add_argument("--epochs", type=int, default=2, help="of the training on faces, without --weights")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--save", action="store_true", help="write results/extract.md")
    options = parser.parse_args()
    engines: list[EngineName] = ["torch", "openvino"] if is_installed() else ["torch"]
    loops, ends = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        people = DemoOptions(out=folder / "faces")
        lay_out_faces(people)
        photographs = sorted((folder / "faces" / "images").rglob("*.pgm"))
        jpegs = write_jpegs(photographs, folder / "jpegs", options.images)
        networks = [options.weights] if options.weights else []
        for weights in networks or (trained(folder, size, options.epochs) for size in options.sizes):
            for engine in engines:
                backbone = load_image_backbone("iresnet18", weights, engine=engine)
                loops.append(loop_row(backbone, engine, jpegs, options.repetitions))
                ends.append(end_row(folder, weights, engine, backbone, jpegs, options.repetitions))
    text = "\n\n".join(
        [
            markdown(
                [
                    "input",
                    "engine",
                    "precision",
                    "lowest cosine to fp32",
                    "images/s",
                    "of the bare loop",
                    "times eager",
                ],
                loops,
            ),
            "The loop in memory: uint8 images to embeddings, through `ImageBackbone.embed`, without flip averaging. "
            "The bare loop calls the same engine on normalised batches of the same size; eager is the float32 "
            "network as it was trained, in batches of 64.",
            markdown(
                ["input", "engine", "images/s", "usual images/s", "times", "passes of the network", "start, s"], ends
            ),
            f"From JPEG files ({FILE_SIDE} px) to a committed store, through `compat.extract` with the model's flip "
            "averaging; usual is a DataLoader with two workers and the eager network, with the same flip averaging and "
            "without a store. `start` is loading the model and choosing its engine, the time of the first images; the "
            "rate is that of the others.",
            f"iresnet18, {options.images} images of ORL faces, {torch.get_num_threads()} threads, medians of "
            f"{options.repetitions} turns.",
        ]
    )
    command = f"python benchmarks/bench_extract.py --images {options.images} --repetitions {options.repetitions}"
    packages = ["torch", "pillow", *(["openvino"] if len(engines) > 1 else [])]
    publish("extract", command, text, packages, save=options.save)


def write_jpegs(photographs: list[Path], folder: Path, count: int) -> Path:
    """Write `count` JPEG files, photographs repeated at varying quality, in one folder per person."""
    for number in range(count):
        source = photographs[number % len(photographs)]
        path = folder / source.parent.name / f"{source.stem}-{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.crop((left, top, left + side, top + side)).convert("RGB")
            square.resize((FILE_SIDE, FILE_SIDE)).save(path, quality=85 + number % 10)
    return folder


def trained(folder: Path, size: int, epochs: int) -> Path:
    """Train iresnet18 on the demo's training people: the guard must see weights that mean something."""
    made = train(
        TrainOptions(
            arch="iresnet18",
            data=folder / "faces" / "images" / "train",
            out=folder / f"network{size}",
            input_size=size,
            epochs=epochs,
            batch_size=32,
            learning_rate=0.03,
        )
    )
    return made.weights.parent


def loop_row(backbone: ImageBackbone, engine: str, jpegs: Path, repetitions: int) -> list[str]:
    """Our loop, the bare loop of the same engine and the eager loop, on decoded images."""
    settings = backbone.preprocessing
    backbone.preprocessing = type(settings).from_dict(settings.to_dict() | {"flip_average": False})
    images = [backbone.read(path) for path in sorted(jpegs.rglob("*.jpg"))]
    facts = backbone.prepare(images[:64])
    size = backbone.micro_batch
    inputs = backbone.preprocessing.normalize(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)).contiguous()
    full = [batch for batch in inputs.split(size) if len(batch) == size]
    images = images[: size * len(full)]

    def bare() -> object:
        with torch.inference_mode():
            return [backbone.engine(batch) for batch in full]

    def eager() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([backbone.network(batch) for batch in inputs[: len(images)].split(64)])

    work: dict[str, Callable[[], object]] = {"ours": lambda: backbone.embed(images), "bare": bare, "eager": eager}
    for run in work.values():
        run()  # allocations and just-in-time kernels of the first call
    seconds = interleaved(work, repetitions)
    lowest = torch.cosine_similarity(torch.from_numpy(backbone.embed(images)), eager()).min()
    backbone.preprocessing = settings
    return [
        f"{settings.size} px",
        engine,
        str(facts["precision"]),
        f"{float(lowest):.6f}",
        f"{len(images) / seconds['ours']:,.0f}",
        f"{seconds['bare'] / seconds['ours']:.3f}",
        f"{seconds['eager'] / seconds['ours']:.2f}",
    ]


def end_row(
    folder: Path, weights: Path, engine: EngineName, backbone: ImageBackbone, jpegs: Path, repetitions: int
) -> list[str]:
    """From files to a store, against a DataLoader and the eager network; the start is measured on a few files."""
    paths = sorted(jpegs.rglob("*.jpg"))
    few = folder / "few"
    for path in paths[:START_IMAGES]:
        (few / path.parent.name).mkdir(parents=True, exist_ok=True)
        (few / path.parent.name / path.name).write_bytes(path.read_bytes())
    counter = iter(range(10**6))
    size, flips = backbone.preprocessing.size, backbone.preprocessing.flip_average

    def ours(data: Path) -> object:
        out = folder / f"store-{size}-{engine}-{next(counter)}"
        return extract(ExtractOptions(backbone="iresnet18", weights=weights, data=data, out=out, engine=engine))

    def usual() -> object:
        found = []
        with torch.no_grad():
            for batch in DataLoader(Files(paths, size), batch_size=64, num_workers=2):
                embeddings = backbone.network(batch)
                found.append((embeddings + backbone.network(batch.flip(3))) / 2 if flips else embeddings)
        return torch.cat(found)

    work = {"ours": lambda: ours(jpegs), "start": lambda: ours(few), "usual": usual}
    seconds = interleaved(work, max(1, repetitions // 2))
    rate = (len(paths) - START_IMAGES) / max(seconds["ours"] - seconds["start"], 1e-9)
    usual_rate = len(paths) / seconds["usual"]
    return [
        f"{size} px",
        engine,
        f"{rate:,.0f}",
        f"{usual_rate:,.0f}",
        f"{rate / usual_rate:.2f}",
        "2 per image" if flips else "1 per image",
        f"{seconds['start']:.1f}",
    ]


if __name__ == "__main__":
    main()
