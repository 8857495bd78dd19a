"""Applying transformers: many vectors, and one query at a time, against the bare matrix product or bare torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from table import interleaved, markdown, publish
from torch import nn

from compat.transformers.artefact import Transformer
from compat.transformers.linear import LinearMap
from compat.transformers.mlp import MLP
from compat.transformers.residual_mlp import ResidualMLP
from stores.space import EmbeddingSpace

CALLS = 200  # single queries timed together, one is too short for the clock


def serving(family: str, network: nn.Module, dim: int, *, unit: bool = False) -> Transformer:
    new, old = (EmbeddingSpace(name, None, dim, unit) for name in ("new", "old"))
    return Transformer(family, "new-to-old", new, old, network)


def bare_torch(network: nn.Module, vectors: np.ndarray) -> Callable[[], object]:
    """The network on all vectors at once, as torch is used without us."""
    tensor = torch.from_numpy(vectors)

    def run() -> object:
        with torch.inference_mode():
            return network(tensor)

    return run


def repeated(run: Callable[[], object]) -> Callable[[], None]:
    def many() -> None:
        for _ in range(CALLS):
            run()

    return many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/apply.md")
    options = parser.parse_args()
    dim = options.dim
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((options.rows, dim), dtype=np.float32)
    weight = generator.standard_normal((dim, dim), dtype=np.float32) / np.float32(dim**0.5)
    centre = np.full(dim, 0.5 / dim**0.5)
    linear, centred = (LinearMap.from_arrays(weight, np.zeros(dim), c) for c in (None, centre))
    residual = ResidualMLP.starting_at(centred)
    nn.init.normal_(residual.output.weight, std=0.01)
    mlp = MLP(dim, dim)
    maps = {
        "linear map": (serving("ridge", linear, dim), "numpy x @ W"),
        "linear map, centred": (serving("ridge", centred, dim), "numpy x @ W"),
        "linear map, centred, unit-length output": (serving("ridge", centred, dim, unit=True), "numpy x @ W"),
        "mlp": (serving("mlp", mlp, dim), "bare torch, mlp"),
        "residual_mlp": (serving("residual_mlp", residual, dim), "bare torch, residual_mlp"),
    }

    def candidates(x: np.ndarray) -> dict[str, Callable[[], object]]:
        found: dict[str, Callable[[], object]] = {
            "numpy x @ W": lambda: x @ weight,
            "bare torch, mlp": bare_torch(mlp, x),
            "bare torch, residual_mlp": bare_torch(residual, x),
        }
        for name, (transformer, _) in maps.items():
            found[name] = partial(transformer.transform, x)
        return found

    many = interleaved(candidates(vectors), options.repetitions)
    query = vectors[:1].copy()
    one = interleaved({name: repeated(run) for name, run in candidates(query).items()}, options.repetitions)
    rows = []
    for name in many:
        ceiling = maps[name][1] if name in maps else name
        throughput, latency = options.rows / many[name], one[name] / CALLS * 1e6
        ratios = [f"{many[ceiling] / many[name]:.2f}", f"{one[name] / one[ceiling]:.2f}"] if name in maps else ["", ""]
        rows.append([name, f"{throughput:,.0f}", ratios[0], f"{latency:.1f}", ratios[1]])
    text = markdown(["work", "vectors/s", "of the bare", "one query, µs", "times the bare"], rows)
    text += (
        f"\n\n{options.rows} vectors of {dim}-D float32 to {dim}-D through `Transformer.transform`, medians of "
        f"{options.repetitions} turns; a single query is a mean of {CALLS} calls. Bare torch runs the same network "
        f"on all of them at once."
    )
    command = f"python benchmarks/bench_apply.py --rows {options.rows} --dim {dim}"
    publish("apply", command, text, ["numpy", "torch"], save=options.save)


if __name__ == "__main__":
    main()
