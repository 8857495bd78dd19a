"""Items read and decoded in threads, ahead of the network that takes them."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from backbones.datasets.items import Item

Input = TypeVar("Input")
Content = TypeVar("Content")
ItemType = TypeVar("ItemType", bound=Item)
BATCHES_AHEAD = 2


class Reading(NamedTuple, Generic[ItemType, Content]):
    """An item with what was read of it, or with None and the reason why it cannot be read."""

    item: ItemType
    content: Content | None
    reason: str


def map_ahead(
    batches: Iterable[Sequence[Input]], read: Callable[[Input], Content], *, workers: int
) -> Generator[list[Content], None, None]:
    """Yield what `read` makes of each batch, in order, while `workers` threads read the next `BATCHES_AHEAD`.

    Args:
        batches: taken in as they are read, never all at once.
        read: called in the threads; its first error ends it all.
        workers: threads.
    """
    remaining = iter(batches)
    ahead: deque[list[Future[Content]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            for batch in islice(remaining, 1 + BATCHES_AHEAD - len(ahead)):
                ahead.append([pool.submit(read, one) for one in batch])
            if not ahead:
                return
            yield [future.result() for future in ahead.popleft()]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_ahead(
    items: Iterable[ItemType],
    read: Callable[[ItemType], Content],
    *,
    batch_size: int,
    workers: int,
) -> Generator[list[Reading[ItemType, Content]], None, None]:
    """Yield the items in their order in batches, while `workers` threads read those of the next `BATCHES_AHEAD`.

    Args:
        items: taken in as they are read, never all at once.
        read: called in the threads; its ValueError or OSError says that the item cannot be read.
        batch_size: items in a batch.
        workers: threads.
    """

    def attempt(item: ItemType) -> Reading[ItemType, Content]:
        try:
            return Reading(item, read(item), "")
        except (ValueError, OSError) as error:
            return Reading(item, None, str(error) or type(error).__name__)

    yield from map_ahead(_batches(items, batch_size), attempt, workers=workers)


def _batches(items: Iterable[ItemType], size: int) -> Iterator[list[ItemType]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
