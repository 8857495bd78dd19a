"""Qdrant's embedded mode keeps its points as pickles, and reading a pickle can run anything.

So before a folder is opened, every point in it is read by an unpickler that knows Qdrant's own record of a point and
nothing else.
"""

from __future__ import annotations

import io
import pickle
import sqlite3
from pathlib import Path
from typing import Any

from stores.chunks import DamagedStore

_ALLOWED = {("qdrant_client.http.models.models", "PointStruct")}


class _PointReader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise ValueError(f"it holds {module_name}.{global_name}"[:120])
        return super().find_class(module_name, global_name)


def require_harmless(folder: Path) -> None:
    """Read every point that is kept in a folder of Qdrant's embedded mode.

    Raises:
        DamagedStore: If a collection's file cannot be read.
        ValueError: If a pickle holds anything but a point.
    """
    for path in sorted(folder.glob("collection/*/storage.sqlite")):
        try:
            # Not read-only: what a killed process left half written, SQLite takes back first.
            database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True)
            try:
                for (value,) in database.execute("SELECT point FROM points"):
                    _PointReader(io.BytesIO(value)).load()
            finally:
                database.close()
        except (sqlite3.Error, pickle.UnpicklingError, EOFError, TypeError, KeyError, IndexError) as error:
            reason = str(error).split("\n")[0][:200]
            if "no such table" in reason:  # of a process that died while it made the file
                continue
            raise DamagedStore(f"{path} cannot be read ({reason}); restore it from a copy") from None
        except (ValueError, AttributeError, ImportError) as error:
            raise ValueError(
                f"{path} is not opened, because its pickles are not plain points ({str(error)[:200]}); ask whoever "
                "made it for another format"
            ) from None
