"""A linear map inside a real PostgreSQL beside the same map in Python."""

import numpy as np
import pytest
import torch
from planted import plant, space
from real_postgres import postgres, schema

from compat.migration.sql import bridge_function
from compat.options import Direction
from compat.transformers import build_network
from compat.transformers.artefact import Transformer, WrongSpace
from compat.transformers.hubness import HubnessCorrection
from compat.transformers.linear import LinearMap
from stores.space import EmbeddingSpace

__all__ = ["postgres", "schema"]


def linear(source=12, target=8, *, centred=True, normalized=False, direction: Direction = "new-to-old", seed=0):
    generator = np.random.default_rng(seed)
    weight, bias = generator.normal(size=(source, target)), generator.normal(size=target) * 0.2
    centre = generator.normal(size=source) * 0.2 if centred else None
    old, new = EmbeddingSpace("old", None, target, normalized), EmbeddingSpace('new "B"\n', None, source, False)
    return Transformer("ridge", direction, new, old, LinearMap.from_arrays(weight, bias, centre))


def literal(vector):
    return "[" + ",".join(map(str, vector.tolist())) + "]"


def numbers(text):
    return np.array(text[1:-1].split(","), np.float32)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
def test_the_function_maps_as_the_transformer_does(postgres, schema, centred, normalized):
    transformer = linear(centred=centred, normalized=normalized)
    postgres.execute(bridge_function(transformer, f"{schema}.to old"))
    queries = np.random.default_rng(1).normal(size=(20, 12)).astype(np.float32) * np.logspace(-3, 3, 20)[:, None]
    queries[7] = 0
    expected = transformer.transform(queries.astype(np.float32))
    for query, mapped in zip(queries.astype(np.float32), expected, strict=True):
        [(found,)] = postgres.execute(f'SELECT {schema}."to old"(%s)', [literal(query)])
        np.testing.assert_allclose(numbers(found), mapped, atol=1e-4)


def test_a_bridged_query_finds_the_same_items_as_one_that_was_mapped_before(postgres, schema):
    world = plant(identities=40, samples=5, old_dim=8, new_dim=12)
    weight = np.linalg.lstsq(world.new, world.old, rcond=None)[0]
    network = LinearMap.from_arrays(weight, np.zeros(8), world.new.mean(axis=0) * 0.01)
    transformer = Transformer("ridge", "new-to-old", space("new", 12), space("old", 8), network)
    postgres.execute(bridge_function(transformer, f"{schema}.bridge"))
    postgres.execute(f"CREATE TABLE {schema}.gallery (item_id int, embedding vector(8))")
    postgres.execute(
        f"INSERT INTO {schema}.gallery SELECT * FROM unnest(%s::int[], %s::vector[])",
        [list(range(200)), [literal(vector) for vector in world.old]],
    )
    unit = world.old / np.linalg.norm(world.old, axis=1, keepdims=True)
    for query, mapped in zip(world.new[::9], transformer.transform(world.new[::9]), strict=True):
        expected = np.argsort(-(unit @ mapped), kind="stable")[:5].tolist()
        for call in (f"{schema}.bridge(%s)", f"(SELECT {schema}.bridge(%s))"):
            found = postgres.execute(
                f"SELECT item_id FROM {schema}.gallery ORDER BY embedding <=> {call} LIMIT 5", [literal(query)]
            )
            assert [item for (item,) in found] == expected


def test_what_sql_cannot_compute_is_refused():
    transformer = linear()
    mlp = Transformer("mlp", "new-to-old", transformer.source, transformer.target, build_network("mlp", 12, 8))
    with pytest.raises(ValueError, match=r"mlp is no linear map.*compat\.export"):
        bridge_function(mlp, "bridge")
    with pytest.raises(WrongSpace, match=r"old-to-new.*compat\.migrate"):
        bridge_function(linear(direction="old-to-new"), "bridge")
    bank = torch.nn.functional.normalize(torch.randn(30, 8), dim=1).numpy()
    corrected = Transformer(
        "ridge",
        "new-to-old",
        transformer.source,
        transformer.target,
        transformer.network,
        correction=HubnessCorrection(0.5, bank, bank, np.empty(0, np.uint64)),
    )
    with pytest.raises(ValueError, match="without_correction"):
        bridge_function(corrected, "bridge")
    bridge_function(corrected.without_correction(), "bridge")
    for name in ("", "a.b.c", "x" * 60, "a."):
        with pytest.raises(ValueError, match="cannot name the function"):
            bridge_function(transformer, name)
