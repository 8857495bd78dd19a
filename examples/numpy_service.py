"""Map vectors in a service that has numpy and no torch: python -m compat.export --format numpy wrote the file.

python examples/numpy_service.py map.npz < queries.jsonl
"""

import json
import sys

import numpy as np


def main() -> None:
    """Print each line's vector mapped, as JSON."""
    from compat.exporting.arrays import load_map

    mapped = load_map(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(mapped(np.array([json.loads(line)], np.float32))[0].tolist()))


if __name__ == "__main__":
    main()
