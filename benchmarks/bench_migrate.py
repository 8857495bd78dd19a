"""How fast a gallery is migrated, beside bare loops over the same bytes, and that memory does not grow with it.

Parts: `stores`, store to store beside a bare loop, at several sizes; `postgres`, table to table beside binary COPY;
`engines`, every engine in and out; `memory`, anonymous memory from 100,000 to 10,000,000 rows. Ratios are of runs that
take turns. Ten million rows of 64 numbers take 5 GB in the folder.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path

from migrate_engines import engines
from migrate_memory import memory
from migrate_postgres import postgres
from migrate_stores import stores
from table import publish

PARTS = ("stores", "postgres", "engines", "memory")
MEMORY_DIMS = {64: (100_000, 1_000_000, 10_000_000), 512: (100_000, 1_000_000)}
PACKAGES = {"numpy": "numpy", "torch": "torch", "isotrieve": "isotrieve", "psycopg": "psycopg", "lancedb": "lancedb"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--dim", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--engine-rows", type=int, default=100_000, help="rows of the parts postgres and engines")
    parser.add_argument("--memory-rows", type=int, default=10_000_000, help="more rows than these are left out")
    parser.add_argument("--postgres", help="a database, postgresql://.../DATABASE/{table}; one is started without")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where galleries are written; a temporary folder without")
    parser.add_argument("--save", action="store_true", help="write results/migrate.md")
    options = parser.parse_args()
    dim = min(options.dim)
    texts = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if "stores" in options.part:
            sizes = [(rows, each) for each in options.dim for rows in options.rows]
            texts.append(f"## Store to store\n\n{stores(folder, sizes, options.repetitions)}")
        if "postgres" in options.part:
            found = postgres(folder, options.postgres, options.engine_rows, dim, options.repetitions)
            texts.append(f"## PostgreSQL\n\n{found}")
        if "engines" in options.part:
            found = engines(folder, options.postgres, options.engine_rows, dim, options.repetitions)
            texts.append(f"## Engines\n\n{found}")
        if "memory" in options.part:
            sizes = [(rows, each) for each, counts in MEMORY_DIMS.items() for rows in counts]
            few = [size for size in sizes if size[0] <= options.memory_rows]
            texts.append(f"## Memory\n\n{memory(folder, few)}")
    command = f"python benchmarks/bench_migrate.py --part {' '.join(options.part)}"
    command += f" --rows {' '.join(map(str, options.rows))} --dim {' '.join(map(str, options.dim))}"
    command += f" --engine-rows {options.engine_rows} --memory-rows {options.memory_rows}"
    command += f" --repetitions {options.repetitions}"
    packages = [name for name, module in PACKAGES.items() if find_spec(module) is not None]
    publish("migrate", command, "\n\n".join(texts), packages, save=options.save)


if __name__ == "__main__":
    main()
