"""A linear map as a function of PostgreSQL, so that new queries search an old gallery inside the database."""

from __future__ import annotations

import numpy as np

from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.linear import LinearMap

_MOST_INLINE = 1990  # numbers of a vector in a page of 8 KiB
_LONGEST_NAME = 63 - len("_weights")
_EPS = float(np.finfo(np.float32).eps)


def bridge_function(transformer: Transformer, name: str) -> str:
    """SQL that makes the table `name_weights` and the function `name(vector) returns vector` from a transformer.

    The function maps a new model's raw query as `Transformer.transform` does. Search with

        SELECT item_id FROM gallery ORDER BY embedding <=> (SELECT name($1)) LIMIT 10

    where the inner SELECT makes sure that the query is mapped once and not for every row. The script is one
    transaction; `DROP FUNCTION name; DROP TABLE name_weights` undoes it. It needs pgvector and PostgreSQL 14 or later.

    With the direction u = x / |x|, the centre c, and W and b of the map, the function computes
    y = (W u - W c) / |u - c| + b, where |u - c|^2 = 1 - 2 u c + |c|^2.

    Args:
        transformer: A `new-to-old` map of a linear family, without a hubness correction.
        name: What to call the function, perhaps `schema.name`; names are taken as they are written.

    Raises:
        WrongSpace: If the transformer maps the gallery.
        ValueError: If it is no linear map, carries a correction, or the name cannot be one.
    """
    network = transformer.network
    if not isinstance(network, LinearMap):
        raise ValueError(
            f"{transformer.family} is no linear map, and SQL computes only those; map queries in the service: "
            "python -m compat.export --format onnx or numpy"
        )
    if transformer.direction != "new-to-old":
        raise WrongSpace(
            "this transformer maps the gallery (old-to-new), expected one that maps queries (new-to-old); migrate the "
            "gallery with python -m compat.migrate"
        )
    if transformer.correction is not None:
        raise ValueError(
            "the transformer carries a hubness correction, which needs an extra dimension in the gallery; leave it "
            "out: transformer.without_correction()"
        )
    function, weights = _quoted(name)
    weight, bias, centre = _arrays(network)
    source, target = weight.shape[1], weight.shape[0]
    rows = [f"(0, {_vector(centre)}, {_number(float(centre @ centre))}, 0)"]
    shifts = weight.astype(np.float64) @ centre.astype(np.float64)
    rows += [
        f"({number}, {_vector(row)}, {_number(shift)}, {_number(offset)})"
        for number, (row, shift, offset) in enumerate(zip(weight, shifts, bias, strict=True), start=1)
    ]
    storage = "PLAIN" if source <= _MOST_INLINE else "EXTERNAL"
    mapped = "array_agg((-(unit.direction <#> w.weight) - w.shift) / unit.distance + w.bias ORDER BY w.number)::vector"
    result = f"l2_normalize({mapped})" if transformer.target.normalized else mapped
    values = ",\n".join(rows)
    return f"""\
-- Maps {_comment(str(transformer.source))} to {_comment(str(transformer.target))}; {transformer.family}, transformer
-- {transformer.digest()}
BEGIN;
CREATE TABLE {weights} (
    number integer PRIMARY KEY, weight vector({source}) STORAGE {storage} NOT NULL,
    shift double precision NOT NULL, bias double precision NOT NULL
);
INSERT INTO {weights} VALUES
{values};
CREATE FUNCTION {function}(query vector) RETURNS vector({target}) LANGUAGE sql STABLE STRICT PARALLEL SAFE
RETURN (
    SELECT {result}
    FROM {weights} AS w,
        (SELECT u.direction,
                sqrt(greatest(1 + 2 * (u.direction <#> c.weight) + c.shift, {_EPS!r})) AS distance
         FROM (SELECT l2_normalize(query) AS direction) AS u, {weights} AS c WHERE c.number = 0) AS unit
    WHERE w.number > 0
);
ANALYZE {weights};
COMMIT;
"""


def _arrays(network: LinearMap) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    state = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    return state["affine.weight"], state["affine.bias"], state["centre"]


def _quoted(name: str) -> tuple[str, str]:
    parts = name.split(".")
    if len(parts) > 2 or not all(0 < len(part.encode()) <= _LONGEST_NAME and "\0" not in part for part in parts):
        raise ValueError(
            f"{name[:80]!r} cannot name the function, expected name or schema.name, each up to {_LONGEST_NAME} bytes"
        )
    quoted = ['"' + part.replace('"', '""') + '"' for part in (*parts[:-1], parts[-1], f"{parts[-1]}_weights")]
    return ".".join(quoted[:-1]), ".".join([*quoted[:-2], quoted[-1]])


def _vector(numbers: np.ndarray) -> str:
    return "'[" + ",".join(map(_number, numbers.tolist())) + "]'"


def _number(value: float) -> str:
    return f"{value:.9g}"


def _comment(told: str) -> str:
    return " ".join(told.split())
