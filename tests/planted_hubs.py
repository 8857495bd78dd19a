"""Two models whose vectors share a direction, so that gallery vectors near it are hubs, and a map with a correction."""

from dataclasses import replace

import numpy as np
from planted import World, plant, space

from compat.options import Direction
from compat.transformers.artefact import Transformer
from compat.transformers.hubness import HubnessCorrection, item_hashes
from compat.transformers.linear import LinearMap

PEOPLE, PICTURES, HUBS = 40, 5, 12
ROWS = PEOPLE * PICTURES + HUBS
ASKED = np.arange(0, PEOPLE * PICTURES, PICTURES)
HELD = np.setdiff1d(np.arange(ROWS), ASKED)
IDS = [f"i{row}" for row in range(ROWS)]


def plant_hubs(old_dim: int = 8, new_dim: int = 12) -> World:
    """Picture 0 of everybody is to be asked, `HELD` are the others; the last `HUBS` rows are nobody's and near all."""
    world = plant(PEOPLE, PICTURES, old_dim, new_dim, noise=0.4)
    generator = np.random.default_rng(1)
    sides = []
    for vectors in (world.old, world.new):
        shared = generator.normal(size=vectors.shape[1])
        shared *= 4 / np.linalg.norm(shared)
        hubs = shared + 0.1 * generator.normal(size=(HUBS, vectors.shape[1]))
        sides.append(np.concatenate([vectors + shared, hubs]).astype(np.float32))
    old, new = sides
    return World(old, new, np.concatenate([world.labels, 1000 + np.arange(HUBS)]))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def half(vectors):
    """Unit rows as an artefact keeps them."""
    return unit(vectors.astype(np.float64)).astype(np.float16).astype(np.float32)


def corrected_map(
    world: World, direction: Direction, *, strength: float = 0.5, ids: bool = True, galleries=None
) -> Transformer:
    """The least-squares map between directions of the rows `HELD`, corrected by them."""
    old, new = unit(world.old[HELD].astype(np.float64)), unit(world.new[HELD].astype(np.float64))
    source, target = (new, old) if direction == "new-to-old" else (old, new)
    solution = np.linalg.lstsq(np.pad(source, ((0, 0), (0, 1)), constant_values=1), target, rcond=None)[0]
    network = LinearMap.from_arrays(solution[:-1], solution[-1])
    old_space, new_space = space("old", old.shape[1]), space("new", new.shape[1])
    source_space, target_space = (new_space, old_space) if direction == "new-to-old" else (old_space, new_space)
    plain = Transformer("ridge", direction, source_space, target_space, network)
    bank = plain.transform(world.new[HELD]) if direction == "new-to-old" else world.new[HELD]
    hashes = item_hashes([IDS[row] for row in HELD]) if ids else np.empty(0, np.uint64)
    correction = HubnessCorrection(strength, half(bank), half(world.old[HELD]), hashes, galleries=galleries or {})
    return replace(plain, correction=correction)


def slow_offsets(gallery, bank, strength, own=None, neighbours=10):
    """Minus a share of the mean of the largest cosines, one row after the other; `own[i]` are bank rows left out."""
    offsets = []
    for i, row in enumerate(unit(gallery.astype(np.float64))):
        cosines = [float(row @ query) for j, query in enumerate(bank) if own is None or j not in own[i]]
        nearest = sorted(cosines, reverse=True)[:neighbours]
        offsets.append(-strength * sum(nearest) / len(nearest))
    return np.array(offsets)
