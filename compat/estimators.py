"""Maps between embedding spaces as a scikit-learn estimator.

    from compat.estimators import EmbeddingMap

    bridge = EmbeddingMap("ridge").fit(new_vectors, old_vectors)  # row i of both is one item
    mapped = bridge.transform(queries)
    bridge.transformer_.save("maps/ridge")  # what compat.evaluate, compat.migrate and compat.export take

It stands in a `Pipeline`, is cloned, and is searched over by `score`, the retrieval of held-out rows:
`GridSearchCV(EmbeddingMap("ridge"), {"strength": [1, 10]})`. Labels are needed nowhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import Tags, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("scikit-learn is not installed; run `pip install 'embedding-compat[estimators]'`") from error

from compat.metrics.relevance import Relevance
from compat.metrics.retrieval import relevant_ranks
from compat.neighbors import ArrayRows
from compat.options import Direction, FitOptions, Inputs, Precision
from compat.pairs import Pairs
from compat.training.fit import fit_transformer
from compat.transformers import CHOICES, PAIRED
from stores.space import EmbeddingSpace, is_normalized


class EmbeddingMap(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A map from the embeddings of one model to those of another, fitted to items that both embedded.

    Args:
        family: identity, procrustes, ridge, shrunk, whitened, reduced_rank, blend, mlp, residual_mlp, msresnet; or
            auto, the best of them by retrieval of held-out pairs.
        direction: Which model X is of: with `new-to-old` the new one's, and queries are what is mapped; with
            `old-to-new` the old one's, and the gallery is. It changes no mapped vector, but stands in the artefact.
        strength: Penalty of ridge and its kin, in units of the mean variance along a dimension; None chooses it.
        correction: Hubness correction that `transformer_` carries, 0 to 2; None lets auto choose. `transform` is the
            plain map, and `transformer_.serve_queries` and `serve_gallery` apply the correction.
        inputs: How linear families read a vector: raw, centred or centred_unit.
        epochs: Most passes of a network over the pairs.
        batch_size: Pairs in a step of a network.
        learning_rate: Largest step size of a network.
        width: Hidden units of residual_mlp; None for the usual number.
        precision: What networks are trained in: auto, fp32 or bf16.
        folds: Parts that pairs are divided into for choices and for stopping early.
        source_space: What the vectors of X are; None for a space without a model's fingerprint.
        target_space: What the vectors of y are.
        random_state: Seed, a RandomState or None; the same number gives the same map.

    Attributes:
        transformer_: The fitted `compat.transformers.artefact.Transformer`, to save and to serve.
        n_features_in_: Dimension of X.
        feature_names_in_: Column names of X, where it had some.
    """

    def __init__(
        self,
        family: str = "auto",
        *,
        direction: Direction = "new-to-old",
        strength: float | None = None,
        correction: float | None = 0.0,
        inputs: Inputs = "centred_unit",
        epochs: int = 30,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        width: int | None = None,
        precision: Precision = "auto",
        folds: int = 5,
        source_space: EmbeddingSpace | None = None,
        target_space: EmbeddingSpace | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.family = family
        self.direction: Direction = direction
        self.strength = strength
        self.correction = correction
        self.inputs: Inputs = inputs
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.width = width
        self.precision: Precision = precision
        self.folds = folds
        self.source_space = source_space
        self.target_space = target_space
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> EmbeddingMap:  # noqa: N803
        """Fit the map.

        Args:
            X: Floats [n, s], vectors of the source model.
            y: Floats [n, t], vectors of the target model; row i is the item of row i of X.
            groups: Identity labels [n], or None where each row is an identity of its own. Rows of one identity are held
                out together, and answer each other's queries when maps are compared.

        Raises:
            ValueError: If the arrays do not fit each other or hold NaN, or a parameter is out of range.
        """
        if self.family in PAIRED:
            raise ValueError(
                f"EmbeddingMap is one map and {self.family} is two, found family={self.family!r}, expected one of "
                f"{', '.join(CHOICES)}; fit both with compat.training.unified.fit_unified"
            )
        source, target = self._checked(X, y, reset=True)
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(np.iinfo(np.int32).max)
        options = FitOptions(
            transformer=self.family,
            direction=self.direction,
            correction=self.correction,
            inputs=self.inputs,
            strength=self.strength,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            width=self.width,
            precision=self.precision,
            folds=self.folds,
            seed=int(seed),
        )
        spaces = (
            self.source_space or EmbeddingSpace("source", None, source.shape[1], is_normalized(source)),
            self.target_space or EmbeddingSpace("target", None, target.shape[1], is_normalized(target)),
        )
        forward = self.direction == "new-to-old"
        (new, new_space), (old, old_space) = sorted(
            zip((source, target), spaces, strict=True), key=lambda side: (side[0] is source) != forward
        )
        labels = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        pairs = Pairs.from_arrays(old, new, labels, old_space=old_space, new_space=new_space)
        self.transformer_ = fit_transformer(pairs, options)
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Map vectors, floats [n, s], to float32 [n, t], of unit length where all of the targets fitted to were.

        Raises:
            ValueError: If the dimension is another than in `fit`, or a vector holds NaN.
        """
        check_is_fitted(self)
        vectors: Any = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        return self.transformer_.transform(vectors)

    def score(self, X: Any, y: Any) -> float:  # noqa: N803
        """Mean reciprocal rank of each row's own target among all of `y` by cosine, 0 to 1; ties count against it."""
        check_is_fitted(self)
        source, target = self._checked(X, y, reset=False)
        own = Relevance.by_item(np.arange(len(source)))
        ranks = relevant_ranks(self.transformer_.transform(source), ArrayRows(target), own)
        return float(np.mean(1.0 / ranks))

    def _checked(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        checked: Any = validate_data(
            self, X, y, dtype=[np.float32, np.float64], multi_output=True, ensure_min_samples=2, reset=reset
        )
        source, target = checked
        if target.ndim != 2:
            raise ValueError(
                f"y has shape {list(target.shape)}, expected [n, t]: the target model's vectors of the items in X; "
                "identity labels go to groups="
            )
        return np.asarray(source, np.float32), np.asarray(target, np.float32)

    @property
    def _n_features_out(self) -> int:
        return self.transformer_.target.dim

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.single_output = False
        tags.target_tags.two_d_labels = False
        tags.target_tags.multi_output = True
        if tags.transformer_tags is not None:
            tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
