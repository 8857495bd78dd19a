"""Pick the items to embed with the other model too: `python -m compat.sample --store STORE --n N --out TABLE`.

A map is fitted to items that both models embedded. Where embedding is dear, embed few, and these: the central item of
each of N clusters of the gallery. On real pairs, at N = 200 and 500, maps fitted to them beat maps fitted to random
picks by 4 to 8 points of recall@1 on texts, and by little or nothing, but never to their loss, on noisy images
(`python benchmarks/bench_sample.py --data DIR`; `benchmarks/results/sample.md`).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stores.command_line import run_command

ENDINGS = (".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Which items of what are picked.

    Attributes:
        store: Store of the old model's embeddings.
        n: How many items to pick.
        out: The table to write, .csv or .parquet: item_id, and label where there are labels, in the store's order.
        sample_rows: Vectors that the clusters are found on, drawn at random where the store holds more; they are held
            in memory.
        seed: The same seed picks the same items.
    """

    store: Path
    n: int
    out: Path
    sample_rows: int = 50_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.out.suffix not in ENDINGS:
            raise ValueError(f"--out must end in {' or '.join(ENDINGS)}, found {self.out.name}")
        for name, least in (("n", 1), ("sample_rows", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")


def sample(options: SampleOptions) -> str:
    """Pick the items, write the table (whole or not at all) and return one line of what was picked.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If the store does not hold that many items.
    """
    from compat.training.sampling import pick_rows
    from stores.galleries.zarr_store import open_complete

    with open_complete(options.store) as store:
        if len(store) < options.n:
            raise ValueError(f"{options.store} holds {len(store)} items, expected --n {options.n} or more")
        picked = pick_rows(store, options.n, sample_rows=options.sample_rows, seed=options.seed)
        items = store.items
        table = items.select([name for name in ("item_id", "label") if name in items.columns])[picked.rows]
    temporary = options.out.with_name(f".{options.out.name}.partial")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    if options.out.suffix == ".csv":
        table.write_csv(temporary)
    else:
        table.write_parquet(temporary)
    temporary.replace(options.out)
    labels = ""
    if "label" in table.columns:
        found, there = (rows["label"].drop_nulls().n_unique() for rows in (table, items))
        labels = f", {found} of {there} labels"
    return f"{len(table)} of {len(items)} items, the central ones of {picked.clusters} clusters{labels}: {options.out}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_command(
        SampleOptions,
        lambda options: print(sample(options)),
        argv,
        prog="python -m compat.sample",
        description=str(__doc__),
    )


if __name__ == "__main__":
    sys.exit(main())
