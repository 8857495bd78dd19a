"""A small map and a migration with it, for processes that are killed: nothing else is imported here."""

import numpy as np
from planted import space

from compat.migration.run import migrate_gallery
from compat.transformers.artefact import Transformer
from compat.transformers.linear import LinearMap

OLD, NEW = space("old", 8), space("new", 12)


def turned(seed=0):
    """A map that turns the old space into twelve dimensions."""
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(12, 12)))[0][:8]
    return Transformer("procrustes", "old-to-new", OLD, NEW, LinearMap.from_arrays(turn, np.zeros(12)))


def work(source, target):
    """Migrate in small batches."""
    migrate_gallery(str(source), turned(), str(target), batch_rows=4)


def work_with_tables(source, target, state):
    """The same with a table of somebody's own, or to a server that others may end."""
    migrate_gallery(source, turned(), target, batch_rows=4, source_space="old", state=state)


def work_until_the_server_dies(source, target, state):
    """The same; to lose the server is one plain error."""
    try:
        work_with_tables(source, target, state)
    except ConnectionError as error:
        told = str(error)
        if "\n" in told or not ("run again" in told or "start it" in told):
            raise
