"""Pickles that hold plain data only: lists, tuples, bytes, numbers and numpy's truth values and bytes.

Published face verification sets are pickles. A pickle names functions and has them called, so a foreign one can run
anything. Here the opcodes are looked through first, and what plain data do not need is refused. Then a name is looked
up in a short list of stand-ins of our own, none of which does more than pack data together or can be changed by a
pickle, and whatever is not in the list is refused before anything is called.

A pickle can also be small and ask for much memory, by a place far up in the memo or by naming the same data again and
again. What it makes is therefore bounded by the size of its file.
"""

import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

PLAIN_KINDS = {"b1": np.bool_, "?": np.bool_, "u1": np.uint8, "i8": np.int64, "i4": np.int32}
# of every protocol, what lists, tuples, bytes, texts, numbers and calls of named functions are written with
_PLAIN_OPCODES = """PROTO FRAME STOP MARK POP POP_MARK DUP GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST LIST APPEND APPENDS
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GLOBAL STACK_GLOBAL REDUCE BUILD"""
PLAIN_OPCODES = frozenset(_PLAIN_OPCODES.split())
OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}
# An opcode makes at most a few hundred bytes. An image and its answer take some 50 opcodes and thousands of bytes.
FREE_OPCODES = 100_000
BYTES_PER_OPCODE = 16

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
        of bytes (uint8) become bytes, Python 2's strings are bytes. Tuples become lists; lists of lists of lists, and
        dictionaries, are refused.

    Raises:
        OSError: where `path` cannot be read.
        ValueError: for a damaged pickle, one that asks for more memory than its size warrants, and one that names
            anything else, which is never called.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            _check_opcodes(file, size)
            file.seek(0)
            return _resolved(_PlainUnpickler(file, _StandIns(size)).load())
        except PICKLE_ERRORS as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(
                f"{path} cannot be read as plain data ({reason}); get the file from its publisher"
            ) from error


def _check_opcodes(file: IO[bytes], size: int) -> None:
    """Refuse opcodes that plain data do not need, more of them than `size` bytes warrant, and places beyond reason.

    `pickletools.genops` would do, but for protocol 0 of Python 2, whose strings it takes for ASCII.
    """
    most = FREE_OPCODES + size // BYTES_PER_OPCODE
    for count in range(most):
        code = file.read(1)
        opcode = OPCODES.get(code)
        if opcode is None:
            raise pickle.UnpicklingError(f"byte {code.hex()} at {file.tell() - 1} is no opcode" if code else "it ends")
        if opcode.name not in PLAIN_OPCODES:
            raise pickle.UnpicklingError(f"it holds the opcode {opcode.name}, which plain data do not need")
        if opcode.name == "STOP":
            return
        if opcode.arg is None:
            continue
        # texts that end with their line need no look, and the reader of STRING would fail at Python 2's
        argument: Any = file.readline() if opcode.name == "STRING" else opcode.arg.reader(file)
        # every object in the memo was made by an opcode before it
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count:
            raise pickle.UnpicklingError(f"its opcode {count} uses place {argument} of the memo")
        if opcode.name == "FRAME" and argument > size:
            raise pickle.UnpicklingError(f"it has a frame of {argument} bytes")
    raise pickle.UnpicklingError(f"it has more than {most} opcodes in {size} bytes")


class _Named:
    """What a pickle gets for a name: it can be called, and nothing else.

    A pickle sets the attributes of any object that allows it, of functions their defaults. This one has no attributes
    and refuses a state.
    """

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes what it names, which is not allowed")


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], stand_ins: "_StandIns") -> None:
        super().__init__(file, encoding="bytes")
        self._allowed = stand_ins.by_name()

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _Named(self._allowed[module_name, global_name])
        except KeyError:
            raise pickle.UnpicklingError(f"it calls for {module_name}.{global_name}, which is not allowed") from None


class _Dtype:
    """Stands for a numpy.dtype."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment; the kinds allowed have one byte, or the order of every machine met here."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in (">", b">"):
            raise pickle.UnpicklingError("it holds big-endian arrays, which are not allowed")


class _Array:
    """Stands for a numpy.ndarray, which is made empty and filled by its state."""

    __slots__ = ("_stand_ins", "content")

    def __init__(self, stand_ins: "_StandIns") -> None:
        self._stand_ins = stand_ins
        self.content: Any = []

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, Any]) -> None:
        _, shape, dtype, _, data = state
        self.content = self._stand_ins.array_content(data, dtype, shape)


class _StandIns:
    """The functions that a pickle may name; what they make in all is bounded by the size of its file.

    Args:
        size: of the file in bytes. An honest one has every array, scalar and text once, which becomes bytes and then
            perhaps numbers.
    """

    def __init__(self, size: int) -> None:
        self._left = 2 * size

    def by_name(self) -> dict[tuple[str, str], Callable[..., Any]]:
        """Return them by module and name."""
        return {
            **{
                (module, name): stand_in
                for module in ("numpy.core.multiarray", "numpy._core.multiarray")
                for name, stand_in in (("scalar", self._scalar), ("_reconstruct", self._array))
            },
            ("numpy.core.numeric", "_frombuffer"): self._array_of_buffer,
            ("numpy._core.numeric", "_frombuffer"): self._array_of_buffer,
            ("numpy", "dtype"): self._dtype,
            ("numpy", "ndarray"): self._array,
            ("_codecs", "encode"): self._bytes,
            **{
                (module, name): self._bytes for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray")
            },
        }

    def array_content(self, data: Any, dtype: _Dtype, shape: tuple[int, ...]) -> Any:
        """Return what an array holds: bytes of uint8, else a list."""
        if len(shape) != 1:
            raise pickle.UnpicklingError(f"it holds an array of shape {shape}, expected one dimension")
        if dtype.kind == "O8":
            if not isinstance(data, list):
                raise pickle.UnpicklingError("it holds an array of objects that is no list")
            return data
        content = self._content(data)
        return content if dtype.kind == "u1" else self._numbers(content, dtype)

    def _content(self, data: object) -> bytes:
        """Return bytes, from a Python 2 string that was written as text too."""
        if isinstance(data, bytes):
            return data
        if not isinstance(data, bytearray | str):
            raise pickle.UnpicklingError("it makes bytes from something else than latin1 text, which is not allowed")
        self._spend(len(data))
        return data.encode("latin1") if isinstance(data, str) else bytes(data)

    def _numbers(self, content: bytes, dtype: _Dtype) -> list[Any]:
        self._spend(len(content))
        return np.frombuffer(content, dtype=PLAIN_KINDS[dtype.kind]).tolist()

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise pickle.UnpicklingError("it uses the same data again and again")

    def _dtype(self, kind: object = b"", *_: object) -> _Dtype:
        text = kind.decode("ascii") if isinstance(kind, bytes) else kind
        if not isinstance(text, str) or (text not in PLAIN_KINDS and text != "O8"):
            raise pickle.UnpicklingError(f"it holds arrays of {str(text)[:40]!r}, which is not allowed")
        return _Dtype(text)

    def _array(self, *_: object) -> _Array:
        """Stand for numpy's `_reconstruct`."""
        return _Array(self)

    def _array_of_buffer(self, data: Any, dtype: _Dtype, shape: tuple[int, ...], _: object = None) -> _Array:
        """Stand for numpy's `_frombuffer`."""
        array = _Array(self)
        array.content = self.array_content(data, dtype, shape)
        return array

    def _scalar(self, dtype: _Dtype, data: Any) -> Any:
        """Stand for numpy's `scalar`."""
        return self._numbers(self._content(data), dtype)[0]

    def _bytes(self, text: object = "", encoding: object = "latin1") -> bytes:
        """Stand for `bytes`, `bytearray`, `_codecs.encode`, by which Python 3 writes bytes in Python 2's protocols."""
        if encoding not in ("latin1", "latin-1", b"latin1", b"latin-1"):
            raise pickle.UnpicklingError("it makes bytes from something else than latin1 text, which is not allowed")
        return self._content(text)


def _resolved(content: Any) -> Any:
    """Replace the stand-ins for arrays by what they hold, two lists deep: (images, same), each of bytes or answers."""
    parts = _held(content)
    if not isinstance(parts, list | tuple):
        return parts
    return _once_each(parts, lambda part: _once_each(part, _leaf) if isinstance(part, list | tuple) else part)


def _once_each(parts: list[Any] | tuple[Any, ...], resolve: Callable[[Any], Any]) -> list[Any]:
    """Resolve each part, but one that is there several times only once, or a small file could grow without bounds."""
    known: dict[int, Any] = {}  # by identity, which holds while `parts` does
    found = []
    for part in parts:
        if id(part) not in known:
            known[id(part)] = resolve(_held(part))
        found.append(known[id(part)])
    return found


def _held(content: Any) -> Any:
    if isinstance(content, _Array):
        content = content.content
    return bytes(content) if isinstance(content, bytearray) else content


def _leaf(content: Any) -> Any:
    if isinstance(content, list | tuple):
        raise pickle.UnpicklingError("it holds lists in lists in lists, expected lists of images and answers")
    return content
