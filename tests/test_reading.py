"""Items read ahead of the network."""

import threading
import time

import pytest

from backbones.datasets.reading import BATCHES_AHEAD, read_ahead
from backbones.datasets.texts import TextItem


def items(count):
    return (TextItem(number, None, b"x") for number in range(count))


def test_order_batches_and_what_cannot_be_read():
    def read(item):
        time.sleep(0.002 * (item.item_id % 3))
        if item.item_id == 4:
            raise ValueError("torn")
        return item.item_id * 10

    batches = list(read_ahead(items(10), read, batch_size=4, workers=3))
    assert [[r.content for r in batch] for batch in batches] == [[0, 10, 20, 30], [None, 50, 60, 70], [80, 90]]
    assert batches[1][0].reason == "torn"
    assert [r.item.item_id for batch in batches for r in batch] == list(range(10))


def test_reading_goes_on_while_the_taker_works_but_not_far_ahead():
    read_so_far = []
    taken = iter(items(1000))

    batches = read_ahead(taken, lambda item: read_so_far.append(item.item_id), batch_size=5, workers=2)
    next(batches)
    deadline = time.monotonic() + 5
    while len(read_so_far) < 5 * (1 + BATCHES_AHEAD) and time.monotonic() < deadline:
        time.sleep(0.001)  # nobody asks for more, and still the next batches are read
    assert len(read_so_far) == 5 * (1 + BATCHES_AHEAD)
    batches.close()
    assert next(taken).item_id == 5 * (1 + BATCHES_AHEAD)


def test_an_error_that_is_no_broken_item_ends_it_and_its_threads():
    def read(item):
        raise KeyError("a mistake in the encoder")

    before = threading.active_count()
    with pytest.raises(KeyError):
        list(read_ahead(items(50), read, batch_size=5, workers=2))
    assert threading.active_count() == before
