"""Maps as scikit-learn estimators: its own checks, and what people do with them."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from planted import environment, plant

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from compat.estimators import EmbeddingMap
from compat.options import FitOptions
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.transformers.artefact import load_transformer
from stores.space import EmbeddingSpace

ONE_DIMENSIONAL = "passes y [n]; targets are vectors, and labels passed as targets are a mistake to be told of"
EXPECTED_FAILURES = {
    "check_transformer_data_not_an_array": ONE_DIMENSIONAL,
    "check_transformer_general": ONE_DIMENSIONAL,
    "check_transformer_preserve_dtypes": ONE_DIMENSIONAL,
}
"""What each of these looks for is looked for below, with vectors as targets."""


@parametrize_with_checks([EmbeddingMap("ridge", strength=1.0)], expected_failed_checks=lambda _: EXPECTED_FAILURES)
def test_scikit_learn_finds_nothing_wrong(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def world():
    return plant(identities=40, samples=4, old_dim=8, new_dim=12, noise=0.2)


def test_it_is_the_map_that_the_toolkit_fits(world):
    fitted = EmbeddingMap("ridge", strength=2.0).fit(world.new, world.old)
    direct = fit_transformer(
        Pairs.from_arrays(world.old, world.new), FitOptions(transformer="ridge", strength=2.0, correction=0.0)
    )
    np.testing.assert_array_equal(fitted.transform(world.new), direct.transform(world.new))
    assert fitted.transformer_.direction == "new-to-old"
    back = EmbeddingMap("ridge", strength=2.0, direction="old-to-new").fit(world.old, world.new)
    assert (back.transformer_.source.dim, back.transformer_.target.dim) == (8, 12)
    assert back.transformer_.gallery_space.dim == 8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_fit_transform_lists_and_any_floats_are_one(world, dtype):
    x, y = world.new.astype(dtype), world.old.astype(dtype)
    whole = EmbeddingMap("ridge", strength=1.0).fit_transform(x, y)
    assert whole.dtype == np.float32
    fitted = EmbeddingMap("ridge", strength=1.0).fit(x.tolist(), y.tolist())
    np.testing.assert_allclose(fitted.transform(x.tolist()), whole, rtol=1e-5, atol=1e-6)
    assert list(fitted.get_feature_names_out()) == [f"embeddingmap{column}" for column in range(8)]


def test_labels_passed_as_targets_are_told_of(world):
    with pytest.raises(ValueError, match=r"y has shape \[160\], expected \[n, t\].*groups="):
        EmbeddingMap().fit(world.new, world.labels)


def test_a_family_of_two_maps_is_told_without_naming_a_command(world):
    with pytest.raises(ValueError, match=r"one map and unified is two, .*expected one of auto, identity.*") as raised:
        EmbeddingMap("unified").fit(world.new, world.old)
    assert "compat.train_transformer" not in str(raised.value)


def test_unit_targets_give_unit_vectors(world):
    targets = world.old / np.linalg.norm(world.old, axis=1, keepdims=True)
    mapped = EmbeddingMap("ridge", strength=1.0).fit_transform(world.new, targets)
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1.0, atol=1e-6)


def test_the_same_seed_gives_the_same_map(world):
    first, second, other = (
        EmbeddingMap("residual_mlp", epochs=2, random_state=seed).fit(world.new, world.old) for seed in (3, 3, 4)
    )
    assert first.transformer_.digest() == second.transformer_.digest() != other.transformer_.digest()
    drawn = EmbeddingMap("ridge", strength=1.0, random_state=np.random.RandomState(0)).fit(world.new, world.old)
    assert drawn.transformer_.training["options"]["seed"] == np.random.RandomState(0).randint(2**31 - 1)


def test_the_score_is_the_retrieval_of_each_rows_own_target(world):
    fitted = EmbeddingMap("ridge", strength=1.0).fit(world.new[80:], world.old[80:])
    mapped, targets = fitted.transform(world.new[:80]), world.old[:80]
    cosines = (mapped @ targets.T) / np.outer(np.linalg.norm(mapped, axis=1), np.linalg.norm(targets, axis=1))
    ranks = [1 + sum(row[other] >= row[i] - 1e-6 for other in range(80) if other != i) for i, row in enumerate(cosines)]
    assert fitted.score(world.new[:80], targets) == pytest.approx(np.mean(1 / np.array(ranks)))


def test_a_pipeline_classifies_new_queries_by_the_old_gallery(world):
    classifier = KNeighborsClassifier(1, metric="cosine").fit(world.old, world.labels)
    asked = slice(120, 160)
    bridge = EmbeddingMap("ridge", strength=1.0).fit(world.new[:120], world.old[:120])
    pipeline = make_pipeline(bridge, classifier)
    unmapped = KNeighborsClassifier(1, metric="cosine").fit(world.old, world.labels)
    assert pipeline.score(world.new[asked], world.labels[asked]) > 0.9
    assert unmapped.score(world.new[asked, :8], world.labels[asked]) < 0.5


def test_a_grid_search_finds_a_strength_by_identities_held_out(world):
    search = GridSearchCV(EmbeddingMap("ridge"), {"strength": [0.1, 1e6]}, cv=GroupKFold(4))
    search.fit(world.new, world.old, groups=world.labels)
    assert search.best_params_ == {"strength": 0.1}
    copy: Any = clone(search.best_estimator_)
    assert copy.get_params()["strength"] == 0.1
    assert search.cv_results_["mean_test_score"][0] > search.cv_results_["mean_test_score"][1]


def test_identities_stay_together_where_groups_tell_them(world):
    grouped = EmbeddingMap("ridge").fit(world.new, world.old, groups=[f"p{label}" for label in world.labels])
    single = EmbeddingMap("ridge").fit(world.new, world.old)
    assert grouped.transformer_.training["held_out"]["relevance"] == "label"
    assert single.transformer_.training["held_out"]["relevance"] == "item"


def test_what_was_fitted_is_saved_in_the_spaces_named(world, tmp_path):
    new, old = EmbeddingSpace("b", "f" * 8, 12, False), EmbeddingSpace("a", "e" * 8, 8, False)
    fitted = EmbeddingMap("procrustes", source_space=new, target_space=old).fit(world.new, world.old)
    fitted.transformer_.save(tmp_path / "map")
    loaded = load_transformer(tmp_path / "map")
    assert (loaded.source, loaded.target) == (new, old)
    np.testing.assert_array_equal(loaded.transform(world.new), fitted.transform(world.new))


def test_auto_chooses_and_corrects_nothing_unasked(world):
    fitted = EmbeddingMap().fit(world.new, world.old)
    assert fitted.transformer_.correction is None
    assert fitted.transformer_.training["chosen"]


def test_missing_scikit_learn_is_told_in_one_line():
    code = "import sys; sys.modules['sklearn'] = None; import compat.estimators"
    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert ran.stderr.splitlines()[-1].endswith("run `pip install 'embedding-compat[estimators]'`")
