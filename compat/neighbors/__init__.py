"""Nearest neighbours: exact by blocked products, approximate through FAISS or pynndescent."""

from compat.neighbors.approximate import ApproximateIndex, nearest_approximate, recall_against
from compat.neighbors.exact import ExactIndex, nearest, search_rows
from compat.neighbors.rows import ArrayRows, Rows, comparable_rows, require_finite, take_rows, unit_rows

__all__ = [
    "ApproximateIndex",
    "ArrayRows",
    "ExactIndex",
    "Rows",
    "comparable_rows",
    "nearest",
    "nearest_approximate",
    "recall_against",
    "require_finite",
    "search_rows",
    "take_rows",
    "unit_rows",
]
