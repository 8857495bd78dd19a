"""Which rows are relevant, and how their grades travel with them."""

import numpy as np
import pytest

from compat.metrics.relevance import Relevance


def test_a_doubled_judgement_keeps_its_highest_grade():
    query, row = np.array([1, 0, 1, 1, 1]), np.array([4, 2, 4, 0, 4])
    relevance = Relevance.by_judgement(3, query, row, np.array([1.0, 2.0, 3.0, 0.5, 2.0]))
    assert relevance.rows.tolist() == [2, 0, 4]
    assert relevance.offsets.tolist() == [0, 1, 3, 3]
    assert relevance.grades is not None
    assert relevance.grades.tolist() == [2.0, 0.5, 3.0]
    assert relevance.counts.tolist() == [1, 2, 0]
    assert relevance.queries.tolist() == [0, 1, 1]


def test_without_grades_there_are_none():
    assert Relevance.by_judgement(1, np.array([0]), np.array([0])).grades is None
    assert Relevance.by_label(np.array([3]), np.array([3]), np.array([-1])).grades is None


def test_no_judgements_at_all():
    empty = np.empty(0, np.int64)
    assert Relevance.by_judgement(2, empty, empty, np.empty(0)).counts.tolist() == [0, 0]


@pytest.mark.parametrize("grade", [0.0, -1.0, np.nan, np.inf])
def test_a_grade_is_a_number_above_zero(grade):
    with pytest.raises(ValueError, match=r"judgement 1 has grade \S+, expected a number above 0"):
        Relevance.by_judgement(1, np.array([0, 0]), np.array([0, 1]), np.array([1.0, grade]))


def test_each_judgement_has_a_grade():
    with pytest.raises(ValueError, match="found 1 grades, expected one for each of 2 judgements"):
        Relevance.by_judgement(1, np.array([0, 0]), np.array([0, 1]), np.ones(1))


def test_grades_move_with_their_rows():
    relevance = Relevance.by_judgement(1, np.array([0, 0]), np.array([0, 2]), np.array([1.0, 2.0]))
    moved = relevance.moved(np.array([2, 1, 0]))
    assert moved.rows.tolist() == [2, 0]
    assert moved.grades is not None
    assert moved.grades.tolist() == [1.0, 2.0]


def test_the_own_item_moves_too():
    relevance = Relevance.by_label(np.array([7, 7]), np.array([7, 7]), np.array([0, -1]))
    moved = relevance.moved(np.array([1, 0]))
    assert moved.excluded.tolist() == [1, -1]
    assert moved.rows.tolist() == [0, 1, 0]
