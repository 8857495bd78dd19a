"""Pickles that hold plain data only: lists, tuples, bytes, numbers and numpy's truth values and bytes.

Published face verification sets are pickles. A pickle names functions and has them called, so a foreign one can run
anything. Here a name is looked up in a short list of stand-ins of our own, none of which does more than pack data
together, and whatever is not in the list is refused before anything is called.
"""

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

PLAIN_KINDS = {"b1": np.bool_, "?": np.bool_, "u1": np.uint8, "i8": np.int64, "i4": np.int32}

# What the unpickler raises on damaged files; MemoryError where one claims to hold more bytes than there is memory.
PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ImportError,
    OverflowError,
    MemoryError,
    RecursionError,
    struct.error,
)


def load_plain(path: Path) -> Any:
    """Read a pickle of plain data, written by Python 2 or 3, with old or new numpy.

    Returns:
        The data; numpy scalars become Python's, arrays of truth values and numbers become lists, one-dimensional arrays
        of bytes (uint8) become bytes, Python 2's strings are bytes.

    Raises:
        OSError: where `path` cannot be read.
        ValueError: for a damaged pickle and for one that names anything else, of which nothing has been called.
    """
    with path.open("rb") as file:
        try:
            return _resolved(_PlainUnpickler(file, encoding="bytes").load())
        except PICKLE_ERRORS as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(
                f"{path} cannot be read as plain data ({reason}); get the file from its publisher"
            ) from error


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedReader, *, encoding: str) -> None:
        super().__init__(file, encoding=encoding)

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it calls for {module_name}.{global_name}, which is not allowed") from None


class _Dtype:
    """Stands for numpy.dtype."""

    def __init__(self, kind: object = b"", *_: object) -> None:
        text = kind.decode("ascii") if isinstance(kind, bytes) else kind
        if not isinstance(text, str) or (text not in PLAIN_KINDS and text != "O8"):
            raise pickle.UnpicklingError(f"it holds arrays of {text!r}, which is not allowed")
        self.kind = text

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment; the kinds allowed have one byte, or the order of every machine met here."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in (">", b">"):
            raise pickle.UnpicklingError("it holds big-endian arrays, which are not allowed")

    def values(self, data: bytes) -> list[Any]:
        return np.frombuffer(data, dtype=PLAIN_KINDS[self.kind]).tolist()


class _Array:
    """Stands for numpy.ndarray, made by `_array` and filled by its state."""

    def __init__(self) -> None:
        self.content: Any = []

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, Any]) -> None:
        _, shape, dtype, _, data = state
        self.content = _array_content(data, dtype, shape)


def _array_content(data: Any, dtype: _Dtype, shape: tuple[int, ...]) -> Any:
    if len(shape) != 1:
        raise pickle.UnpicklingError(f"it holds an array of shape {shape}, expected one dimension")
    if isinstance(data, str):  # a Python 2 string that was written as text
        data = data.encode("latin1")
    if dtype.kind == "O8":
        return list(data)
    return bytes(data) if dtype.kind == "u1" else dtype.values(bytes(data))


def _array(*_: object) -> _Array:
    """Stand for numpy's `_reconstruct`."""
    return _Array()


def _array_of_buffer(data: Any, dtype: _Dtype, shape: tuple[int, ...], _: object = None) -> _Array:
    """Stand for numpy's `_frombuffer`."""
    array = _Array()
    array.content = _array_content(data, dtype, shape)
    return array


def _scalar(dtype: _Dtype, data: Any) -> Any:
    """Stand for numpy's `scalar`."""
    return dtype.values(data.encode("latin1") if isinstance(data, str) else data)[0]


def _bytes(text: object = "", encoding: object = "latin1") -> bytes:
    """Stand for `bytes`, `bytearray` and `_codecs.encode`, by which Python 3 writes bytes in Python 2's protocols."""
    if isinstance(text, str) and encoding in ("latin1", "latin-1", b"latin1", b"latin-1"):
        return text.encode("latin1")
    if isinstance(text, bytes):
        return text
    raise pickle.UnpicklingError("it makes bytes from something else than latin1 text, which is not allowed")


def _resolved(content: Any, depth: int = 0) -> Any:
    """Replace the stand-ins for arrays by what they hold."""
    if isinstance(content, _Array):
        content = content.content
    if isinstance(content, bytearray):
        return bytes(content)
    if isinstance(content, list | tuple) and depth < 3:  # (images, same), each a list of scalars or arrays of bytes
        return [_resolved(part, depth + 1) for part in content]
    return content


ALLOWED: dict[tuple[str, str], Any] = {
    **{
        (module, name): stand_in
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name, stand_in in (("scalar", _scalar), ("_reconstruct", _array))
    },
    ("numpy.core.numeric", "_frombuffer"): _array_of_buffer,
    ("numpy._core.numeric", "_frombuffer"): _array_of_buffer,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _bytes,
    **{(module, name): _bytes for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray")},
}
