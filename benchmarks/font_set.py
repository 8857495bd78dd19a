"""Image sets of characters in type designs: an identity is a character, an image of it is one design's drawing.

Training and test share neither a character nor a family of designs. Everything is written as uncompressed tar files
with members `U+4E00/noto-sans.png`, beside a manifest that says what was drawn from what. The same fonts, options and
versions of Pillow and FreeType give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from font_files import file_digest, png_bytes, replace_file, tar_members, write_folder, write_tar
from font_glyphs import Drawn, draw, families, kanji
from font_long_tail import long_tail, write_long_tail
from font_packages import DESIGNS, FONTS, Design, font_files
from PIL import __version__ as pillow_version
from PIL import features

MANIFEST = "manifest.json"
LONG_TAIL = "long_tail.csv"
COMPARED_CHARACTERS = 150

Names = tuple[str, str]
"""A character and a design."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What is drawn.

    Attributes:
        fonts: Searched for the files of the designs, with all folders below it.
        side: Of an image in pixels.
        seed: Which characters and designs are for training, which test characters get which designs, the long tail.
        train_characters: Identities to train on; fewer where fonts share fewer.
        subsets: Further, smaller training sets, each holding the next.
        test_characters: Identities to test with.
        train_designs: Families of designs to train on; the others are for testing.
        gallery_designs: Images of a test character that are in the gallery, each of another design.
        query_designs: Images of it that are queries, of further designs.
        coverage: Share of the kanji that a design must draw; those of all designs that do are what can be drawn.
        kanji_step: Take every so manieth kanji only.
        most_samples: Of the commonest identity of the long tail; the rarest has one.
        folders: Write plain folders of images too.
    """

    fonts: Path = FONTS
    side: int = 32
    seed: int = 0
    train_characters: int = 4000
    subsets: tuple[int, ...] = (1000, 300)
    test_characters: int = 1000
    train_designs: int = 16
    gallery_designs: int = 2
    query_designs: int = 4
    coverage: float = 0.95
    kanji_step: int = 1
    most_samples: int = 200
    folders: bool = False

    def __post_init__(self) -> None:
        if not 16 <= self.side <= 256:
            raise ValueError(f"side is {self.side}, expected 16 to 256 pixels")
        if list(self.subsets) != sorted(self.subsets, reverse=True):
            raise ValueError(f"subsets are {self.subsets}, expected falling sizes, each part of the one before")

    @property
    def test_images(self) -> int:
        """Images of a test character."""
        return self.gallery_designs + self.query_designs


def identity(character: str) -> str:
    """The name of a character's folder, U+4E00."""
    return f"U+{ord(character):04X}"


def build(
    options: BuildOptions,
    out: Path,
    *,
    designs: Sequence[Design] = DESIGNS,
    characters: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Draw everything into a folder, or find it done, and return the manifest.

    Args:
        options: What is drawn.
        out: The folder.
        designs: Faces to draw with.
        characters: Identities to choose from; the kanji of JIS X 0208 unless given.

    Raises:
        FileNotFoundError: If the fonts' folder is missing.
        ValueError: If fonts are too few, or the folder holds a set drawn with other options.
    """
    manifest = _found_or_built(options, out, designs, characters)
    if options.folders:
        for name, about in manifest["tars"].items():
            write_folder(out / name, tar_members(out / about["file"]))
    return manifest


def _found_or_built(
    options: BuildOptions, out: Path, designs: Sequence[Design], characters: Sequence[str] | None
) -> dict[str, Any]:
    wanted = json.loads(json.dumps(asdict(options), default=str))
    del wanted["fonts"], wanted["folders"]  # neither changes an image: the fonts' digests say what was drawn
    if (out / MANIFEST).is_file():
        manifest = json.loads((out / MANIFEST).read_text())
        if manifest["options"] != wanted:
            odd = [name for name in wanted if manifest["options"].get(name) != wanted[name]]
            raise ValueError(f"{out} was drawn with other {', '.join(odd)}; remove it or name another --out")
        return manifest
    files = font_files(options.fonts, designs)
    found = [design for design in designs if design.name in files]
    least = options.train_designs + options.test_images
    if len(found) < least:
        raise ValueError(
            f"found {len(found)} designs below {options.fonts}, expected {least}; --packages says how to get them"
        )
    characters = (kanji() if characters is None else list(characters))[:: options.kanji_step]
    drawn = {d.name: draw(files[d.name], characters, options.side, index=d.index) for d in found}
    kept, dropped = _one_per_family(drawn, options.coverage)
    if len(kept) < least:
        raise ValueError(
            f"{len(kept)} of {len(found)} designs are families of their own, expected {least}; install more fonts"
        )
    present = np.logical_and.reduce([drawn[name].present for name in kept])
    shared = {characters[i]: int(i) for i in np.flatnonzero(present)}
    splits, split_of = _splits(list(shared), kept, options)
    out.mkdir(parents=True, exist_ok=True)
    tars = {}
    for name, members in splits.items():
        images = [(f"{identity(c)}/{d}.png", png_bytes(drawn[d].images[shared[c]])) for c, d in members]
        tars[name] = write_tar(out, name, images) | {
            "identities": len({c for c, _ in members}),
            "designs": len({d for _, d in members}),
        }
    tail = long_tail(
        [f"{identity(c)}/{d}.png" for c, d in splits["train"]], most=options.most_samples, seed=options.seed
    )
    manifest = {
        "format_version": 1,
        "options": wanted,
        "made_with": {"pillow": pillow_version, "freetype": features.version("freetype2")},
        "characters": len(characters),
        "shared_characters": len(shared),
        "designs": [
            {
                **asdict(design),
                "split": split_of[design.name],
                "sha256": file_digest(files[design.name]),
                "drawn": int(drawn[design.name].present.sum()),
                "not_drawn": int((~drawn[design.name].present).sum()),
            }
            for design in found
            if design.name in split_of
        ],
        "dropped": dropped,
        "not_found": [design.name for design in designs if design.name not in files],
        "tars": tars,
        "long_tail": write_long_tail(out / LONG_TAIL, tail)
        | {
            "seed": options.seed,
            "most_samples": options.most_samples,
            "identities": len({n.split("/")[0] for n, _ in tail}),
        },
    }
    replace_file(out / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    return manifest


def _one_per_family(drawn: dict[str, Drawn], coverage: float) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the first design of each family that draws enough, and why the others are left out."""
    dropped = []
    enough = []
    for name, design in drawn.items():
        if (share := float(design.present.mean())) >= coverage:
            enough.append(name)
        else:
            dropped.append({"name": name, "reason": f"draws {share:.3f} of the kanji, expected {coverage}"})
    if not enough:
        return [], dropped
    common = np.flatnonzero(np.logical_and.reduce([drawn[name].present for name in enough]))
    compared = common[:: max(1, len(common) // COMPARED_CHARACTERS)][:COMPARED_CHARACTERS]
    first = families([drawn[name].images[compared] for name in enough])
    kept = [name for i, name in enumerate(enough) if first[i] == i]
    dropped += [
        {"name": name, "reason": f"one family with {enough[first[i]]}"}
        for i, name in enumerate(enough)
        if first[i] != i
    ]
    return kept, dropped


def _splits(
    characters: list[str], designs: list[str], options: BuildOptions
) -> tuple[dict[str, list[Names]], dict[str, str]]:
    """Members of each tar, sorted, and which split each design is in."""
    generator = np.random.default_rng(options.seed)
    shuffled = [characters[i] for i in generator.permutation(len(characters))]
    mixed = [designs[i] for i in generator.permutation(len(designs))]
    train_designs, test_designs = mixed[: options.train_designs], mixed[options.train_designs :]
    test = shuffled[: options.test_characters]
    train = shuffled[options.test_characters :][: options.train_characters]
    largest = max(options.subsets, default=1)
    if len(test) < options.test_characters or len(train) < largest:
        raise ValueError(
            f"the fonts share {len(characters)} characters, expected {options.test_characters} to test with and "
            f"{largest} to train on; install more fonts or ask for less"
        )
    splits = {"train": [(c, d) for c in train for d in train_designs]}
    for size in options.subsets:
        splits[f"train-{size}"] = [(c, d) for c in train[:size] for d in train_designs]
    splits["gallery"], splits["queries"] = [], []
    for character in test:
        own = [test_designs[i] for i in generator.permutation(len(test_designs))[: options.test_images]]
        splits["gallery"] += [(character, d) for d in own[: options.gallery_designs]]
        splits["queries"] += [(character, d) for d in own[options.gallery_designs :]]
    split_of = dict.fromkeys(train_designs, "train") | dict.fromkeys(test_designs, "test")
    return {name: sorted(members) for name, members in splits.items()}, split_of
