"""The pairs of bench_synthetic: a run of font_identities embedded by two of its networks, or arrays that are there.

An identity is a character. Maps are fitted to pairs of characters that neither network was trained on, because images
that a network was trained on lie closer together than any that it will meet, and judged by other characters, which no
network and no map has seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from font_files import file_digest, read_tar, tar_members
from font_long_tail import read_long_tail, sample_images
from font_set import LONG_TAIL, MANIFEST

from backbones.checkpoint import MODEL_FILE
from backbones.encoders.images import ImageBackbone, load_image_backbone
from backbones.options import AugmentOptions
from compat.pairs import Pairs

BALANCED, LONG_TAILED = "balanced", "long-tailed"
VIEW_SEED = 0
IDENTITIES, IDENTITIES_SEED = 1000, 0
"""Of the balanced pairs, at most, and how they are drawn."""
VIEWS = AugmentOptions(flip=0.0)
"""How an identity that has more samples than images is varied; characters have a right and a left side."""

Say = Callable[[str], object]


@dataclass(frozen=True)
class Labelled:
    """The same items embedded by both networks.

    Attributes:
        old: float32 [n, d_old].
        new: float32 [n, d_new].
        identities: Integer codes [n].
        originals: Equal for views of one image, integer codes [n].
    """

    old: np.ndarray
    new: np.ndarray
    identities: np.ndarray
    originals: np.ndarray

    def __len__(self) -> int:
        return len(self.old)

    def at(self, rows: np.ndarray) -> Labelled:
        """Some of the items."""
        return Labelled(self.old[rows], self.new[rows], self.identities[rows], self.originals[rows])


@dataclass(frozen=True)
class Source:
    """Everything that cells are fitted to and judged by.

    Attributes:
        fitted: Pairs of the training characters, by how many samples identities have (`balanced`, `long-tailed`).
        gallery: Items of the test characters that are searched.
        queries: Other items of theirs.
        digest: Changes with anything in here.
        about: Sentences for the report.
    """

    fitted: dict[str, Labelled]
    gallery: Labelled
    queries: Labelled
    digest: str
    about: str


def draw(data: Labelled, seed: int, pairs: int | None = None) -> Pairs:
    """The pairs of a cell: those of all identities, or of a sample of them that has about so many.

    Identities are numbered anew, in an order drawn by the seed. Characters come in the order of their code points, in
    which neighbours share a radical and look alike: `linear`, which pairs neighbouring numbers, would pair near ones.

    Args:
        data: What to draw from.
        seed: Chooses the sample, the numbers and the order of rows.
        pairs: How many; None takes all.
    """
    generator = np.random.default_rng(seed)
    names, codes, sizes = np.unique(data.identities, return_inverse=True, return_counts=True)
    chosen = np.arange(len(names)) if pairs is None else _sample(sizes, pairs, generator)
    number = np.full(len(names), -1)
    number[generator.permutation(chosen)] = np.arange(len(chosen))
    rows = generator.permutation(np.flatnonzero(number[codes] >= 0))
    drawn = Pairs.from_arrays(data.old[rows], data.new[rows], number[codes[rows]])
    return replace(drawn, originals=data.originals[rows])


def _sample(sizes: np.ndarray, pairs: int, generator: np.random.Generator) -> np.ndarray:
    # Every so manieth identity by size, from a start that is drawn: a small long tail has the shape of the large one.
    mixed = generator.permutation(len(sizes))
    order = mixed[np.argsort(-sizes[mixed], kind="stable")]
    step = max(1.0, sizes.sum() / pairs)
    return order[np.arange(generator.uniform(0, step), len(order), step).astype(int)]


def reduced(source: Source, identities: int) -> Source:
    """The same with so many identities in each part, to see things run."""

    def fewer(data: Labelled) -> Labelled:
        names, sizes = np.unique(data.identities, return_counts=True)
        kept = names[np.argsort(-sizes, kind="stable")[:identities]]
        rows = np.flatnonzero(np.isin(data.identities, kept))
        return data.at(rows)

    fitted = {name: fewer(data) for name, data in source.fitted.items()}
    return Source(fitted, fewer(source.gallery), fewer(source.queries), f"{source.digest} {identities}", source.about)


def fonts_source(folder: Path, old: str, new: str, cache: Path, say: Say) -> Source:
    """Images of a run of font_identities embedded by two of its networks; embeddings are kept in `cache`.

    Raises:
        FileNotFoundError: If the images or a network are not there.
        ValueError: If no training character is new to both networks, or it is not known which are.
    """
    manifest_file = folder / "set" / MANIFEST
    if not manifest_file.is_file():
        raise FileNotFoundError(f"no images in {folder / 'set'}; run benchmarks/font_identities.py or give --fonts")
    manifest = json.loads(manifest_file.read_text())
    networks = [_Network(folder, name, cache, say) for name in (old, new)]
    known = np.unique(np.concatenate([network.trained_on(folder / "set") for network in networks]))

    def images_of(tar: str) -> tuple[list[np.ndarray], list[str]]:
        images, item_ids = read_tar(folder / "set" / manifest["tars"][tar]["file"])
        return list(images), item_ids

    def some() -> tuple[list[np.ndarray], list[str]]:
        images, item_ids = images_of("train")
        characters = _characters(item_ids)
        unseen = np.setdiff1d(characters, known)
        if not len(unseen):
            raise ValueError(f"{old} or {new} saw every training character; name networks trained on a part of them")
        drawn = np.random.default_rng(IDENTITIES_SEED).permutation(unseen)[:IDENTITIES]
        rows = np.flatnonzero(np.isin(characters, drawn))
        return [images[row] for row in rows], [item_ids[row] for row in rows]

    def tail() -> tuple[list[np.ndarray], list[str]]:
        images, item_ids = images_of("train")
        samples = read_long_tail(folder / "set" / LONG_TAIL)
        made = sample_images(dict(zip(item_ids, images, strict=True)), samples, VIEWS, seed=VIEW_SEED)
        ids, _, views = zip(*made, strict=True)
        return list(views), list(ids)

    def embedded(part: str, key: str, read: Callable[[], tuple[list[np.ndarray], list[str]]]) -> Labelled:
        sides = [network.embedded(part, key, read) for network in networks]
        item_ids = sides[0][1]
        originals = [item_id.partition("#")[0] for item_id in item_ids]
        codes = np.unique(originals, return_inverse=True)[1]
        return Labelled(sides[0][0], sides[1][0], _characters(item_ids), codes)

    digests = {name: manifest["tars"][name]["sha256"] for name in ("train", "gallery", "queries")}
    some_key = _key(digests["train"], hashlib.sha256(known.tobytes()).hexdigest(), IDENTITIES, IDENTITIES_SEED)
    tail_key = _key(digests["train"], manifest["long_tail"]["sha256"], VIEWS)
    balanced, tailed = embedded(BALANCED, some_key, some), embedded(LONG_TAILED, tail_key, tail)
    tailed = tailed.at(np.flatnonzero(~np.isin(tailed.identities, known)))
    gallery, queries = (embedded(part, digests[part], partial(images_of, part)) for part in ("gallery", "queries"))
    digest = _key(*(network.digest for network in networks), *digests.values(), some_key, tail_key)
    counts = np.unique(tailed.identities, return_counts=True)[1]
    about = (
        f"Gallery by the network `{old}` ({networks[0].arch}), queries by `{new}` ({networks[1].arch}), both of "
        "font_identities. Maps are fitted to characters that neither network was trained on. Balanced: "
        f"{len(np.unique(balanced.identities)):,} of them, {manifest['tars']['train']['designs']} designs each. "
        f"Long-tailed: {len(counts):,} with {counts.min()} to {counts.max()} samples each, {len(tailed):,} in all, "
        "augmented views where an identity has more samples than designs. "
    )
    fitted = {BALANCED: balanced, LONG_TAILED: tailed}
    return Source(fitted, gallery, queries, digest, about + _about_test(gallery, queries))


def _characters(item_ids: Sequence[str]) -> np.ndarray:
    """Code points, int64 [n]."""
    return np.array([int(item_id[2:].split("/")[0], 16) for item_id in item_ids], np.int64)


def _key(*parts: object) -> str:
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()


class _Network:
    """A network of a run of font_identities, loaded when something is not embedded yet."""

    def __init__(self, folder: Path, name: str, cache: Path, say: Say) -> None:
        weights = folder / "networks" / name / MODEL_FILE
        if not weights.is_file():
            raise FileNotFoundError(
                f"{weights} is not there; train it with benchmarks/font_identities.py --only {name}, or name others "
                "with --old-network and --new-network"
            )
        self.name, self.digest, self._weights, self._cache, self._say = name, file_digest(weights), weights, cache, say
        card = json.loads(weights.with_name("card.json").read_text())
        self.arch: str = card["arch"]
        self._trained_on = Path(card.get("recipe", {}).get("data") or "")
        self._backbone: ImageBackbone | None = None

    def trained_on(self, folder: Path) -> np.ndarray:
        """Characters that it has seen, of a tar of the set in a folder.

        Raises:
            ValueError: If its card names no such tar.
        """
        tar = folder / self._trained_on.name
        if not self._trained_on.name or not tar.is_file():
            raise ValueError(f"the card of {self.name} names no tar of {folder} that it was trained on; train it anew")
        return _characters([item_id for item_id, _ in tar_members(tar)])

    def embedded(
        self, part: str, key: str, read: Callable[[], tuple[list[np.ndarray], list[str]]]
    ) -> tuple[np.ndarray, list[str]]:
        """Embeddings float32 [n, d] and item ids, from their files or made and kept; `key` changes with the images."""
        path = self._cache / f"{self.name}-{part}-{self.digest[:16]}-{key[:8]}.npy"
        ids = self._cache / f"{part}-{key[:8]}.json"
        if path.is_file() and ids.is_file():
            return np.load(path), json.loads(ids.read_text())
        images, item_ids = read()
        self._say(f"{self.name} embeds {len(images):,} images of {part}")
        if self._backbone is None:  # prepared once, so that all parts are embedded alike
            self._backbone = load_image_backbone(self.arch, self._weights)
            self._backbone.prepare(images)
        vectors = self._backbone.embed(images)
        self._cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial.npy")
        np.save(unfinished, vectors)
        ids.write_text(json.dumps(item_ids))
        unfinished.replace(path)
        return vectors, item_ids


def arrays_source(folder: Path) -> Source:
    """The font_identities/ folder of bench_maps: balanced alone, as there are no images to vary.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    folder = folder / "font_identities"
    tables = {name: pl.read_parquet(folder / name / "items.parquet") for name in ("train", "test")}
    names = pl.concat([tables["train"]["label"], tables["test"]["label"]]).cast(pl.String)
    codes = names.rank("dense").cast(pl.Int64).to_numpy()
    hashed = hashlib.sha256()

    def labelled(name: str, rows: Sequence[int] | np.ndarray, identities: np.ndarray) -> Labelled:
        sides = []
        for side in ("old_iresnet18", "new_iresnet50"):
            hashed.update(file_digest(path := folder / name / f"{side}.npy").encode())
            sides.append(np.load(path, allow_pickle=False)[rows].astype(np.float32))
        return Labelled(sides[0], sides[1], identities[rows], np.arange(len(rows)))

    train, test = codes[: len(tables["train"])], codes[len(tables["train"]) :]
    split = tables["test"]["split"]
    gallery, queries = (
        labelled("test", np.flatnonzero((split == part).to_numpy()), test) for part in ("gallery", "query")
    )
    fitted = labelled("train", np.arange(len(train)), train)
    about = f"Balanced alone: {len(fitted):,} pairs of {len(np.unique(train)):,} identities, as they were found. "
    return Source({BALANCED: fitted}, gallery, queries, hashed.hexdigest(), about + _about_test(gallery, queries))


def _about_test(gallery: Labelled, queries: Labelled) -> str:
    return (
        f"Judged by {len(np.unique(queries.identities)):,} characters, none of them trained on: {len(queries):,} "
        f"queries in a gallery of {len(gallery):,}."
    )
