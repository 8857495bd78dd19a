"""Items read and decoded in threads, ahead of the network that takes them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from backbones.encoder import Item

Content = TypeVar("Content")
BATCHES_AHEAD = 2


class Reading(NamedTuple, Generic[Content]):
    """An item with what was read of it, or with None and the reason why it cannot be read."""

    item: Item
    content: Content | None
    reason: str


def read_ahead(
    items: Iterable[Item],
    read: Callable[[Item], Content],
    *,
    batch_size: int,
    workers: int,
) -> Iterator[list[Reading[Content]]]:
    """Yield the items in their order in batches, while `workers` threads read those of the next `BATCHES_AHEAD`.

    Args:
        items: taken in as they are read, never all at once.
        read: called in the threads; its ValueError or OSError says that the item cannot be read.
        batch_size: items in a batch.
        workers: threads.
    """

    def attempt(item: Item) -> Reading[Content]:
        try:
            return Reading(item, read(item), "")
        except (ValueError, OSError) as error:
            return Reading(item, None, str(error) or type(error).__name__)

    remaining = iter(items)
    ahead: deque[list[Future[Any]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            while len(ahead) <= BATCHES_AHEAD and (batch := list(islice(remaining, batch_size))):
                ahead.append([pool.submit(attempt, item) for item in batch])
            if not ahead:
                return
            yield [future.result() for future in ahead.popleft()]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
