"""Three models in a row: every accuracy is that of a plain search, straight or through the model between."""

import numpy as np
import pytest
from planted import open_store, plant

from compat.evaluation.chain import evaluate_chain
from compat.evaluation.compatibility import evaluate
from compat.options import FitOptions
from compat.pairs import join_pairs
from compat.training.fit import fit_transformer
from compat.transformers.artefact import WrongSpace

RIDGE = FitOptions(transformer="ridge", strength=0.1)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Models of 8, 12 and 10 dimensions see 40 people; the newest sees them best."""
    folder = tmp_path_factory.mktemp("chain")
    first = plant(40, 6, 8, 12, noise=0.7, new_noise=0.5)
    second = plant(40, 6, 8, 10, noise=0.7, new_noise=0.2)  # the same people: the same seed
    views = {"a": first.old, "b": first.new, "c": second.new}
    held = np.arange(len(first.labels)) % 6 > 0
    ids = np.array([f"i{row}" for row in range(len(held))])

    def store(model, rows, part):
        details = {"name": model, "ids": ids[rows], "labels": first.labels[rows]}
        return open_store(folder / f"{model}-{part}", views[model][rows], **details)

    galleries = [store(model, held, "gallery") for model in "abc"]
    queries = [store(model, ~held, "queries") for model in "abc"]
    bridges = {
        (later, earlier): fit_transformer(join_pairs(galleries[earlier], galleries[later]), RIDGE)
        for later, earlier in ((1, 0), (2, 1), (2, 0))
    }
    return galleries, queries, bridges


def recall(gallery, queries, **given):
    settings = evaluate(gallery, queries, **given).settings
    found = settings["transformed" if given else "new_to_new"].measures
    assert found is not None
    return found["recall_at_1"].value


def test_each_accuracy_is_what_evaluate_measures(chain):
    galleries, queries, bridges = chain
    lines = []
    accuracy, summary = evaluate_chain(galleries, queries, bridges, on_setting=lines.append)
    for later in range(3):
        assert accuracy[later, later] == pytest.approx(recall(galleries[later], queries[later]))
        assert np.isnan(accuracy[later, later + 1 :]).all()
        for earlier in range(later):
            straight = recall(galleries[earlier], queries[later], transformer=bridges[later, earlier])
            assert accuracy[later, earlier] == pytest.approx(straight)
    met = [accuracy[1, 0] > accuracy[0, 0], accuracy[2, 0] > accuracy[0, 0], accuracy[2, 1] > accuracy[1, 1]]
    assert summary.average_compatibility == pytest.approx(np.mean(met))
    assert len(lines) == 6


def test_where_no_map_leads_straight_queries_go_through_the_model_between(chain):
    galleries, queries, bridges = chain
    neighbours = {key: bridges[key] for key in ((1, 0), (2, 1))}
    accuracy, _ = evaluate_chain(galleries, queries, neighbours)
    rows = np.arange(len(queries[2]))
    mapped = bridges[1, 0].transform(bridges[2, 1].transform(queries[2].take(rows)))
    gallery = galleries[0].take(np.arange(len(galleries[0])))
    nearest = (mapped @ (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).T).argmax(axis=1)
    right = galleries[0].items["label"].to_numpy()[nearest] == queries[2].items["label"].to_numpy()
    assert accuracy[2, 0] == pytest.approx(right.mean())


def test_what_does_not_fit_is_refused(chain):
    galleries, queries, bridges = chain
    with pytest.raises(ValueError, match="no transformer leads from model 2 to model 0, nor to 1"):
        evaluate_chain(galleries, queries, {(1, 0): bridges[1, 0]})
    with pytest.raises(WrongSpace):
        evaluate_chain(galleries, queries, {(1, 0): bridges[2, 0], (2, 1): bridges[2, 1]})
    with pytest.raises(ValueError, match="found 3, 2"):
        evaluate_chain(galleries, queries[:2], bridges)
