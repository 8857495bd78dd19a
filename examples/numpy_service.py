"""Map vectors in a service that has numpy and no torch: python -m compat.export --format numpy wrote the file.

python examples/numpy_service.py map.npz < queries.jsonl
"""

import json
import sys
from argparse import ArgumentParser

import numpy as np


def main(file: str) -> None:
    """Print each line's vector mapped, as JSON."""
    from compat.exporting.arrays import load_map

    mapped = load_map(file)
    for line in sys.stdin:
        print(json.dumps(mapped(np.array([json.loads(line)], np.float32))[0].tolist()))


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("file")
    try:
        main(**vars(parser.parse_args()))
    except (ValueError, OSError) as mistake:
        parser.error(str(mistake))
