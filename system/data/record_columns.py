"""Records as JSON with their arrays beside it, exactly: what is read back is what was written, bit for bit.

A record becomes a JSON object of its fields. An array becomes its shape there, and its numbers go behind those of the
same field of all other records, into one column: thousands of short arrays are a few long ones, which compress well.
The types of the dataclasses say how to read; the file names no class and no function, so that reading executes nothing.

Called by step_files.py. Groups for reading, with rounded numbers, are written by group_files.py.
"""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
from numpy.typing import NDArray

from system.data.json_values import JsonValue

AnyArray = NDArray[Any]
_NARROW_TYPES = (np.uint8, np.int8, np.uint16, np.int16, np.int32)


def require_storable(kind: type) -> None:
    """Raises TypeError unless `kind` is a dataclass of plain values, arrays, tuples and other such dataclasses."""
    if not is_dataclass(kind):
        raise TypeError(f"{kind} is no dataclass")
    _codec(kind, "", None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """`arrays` by column, integers in the narrowest type that holds them; `dtypes` are those that they had."""

    arrays: Mapping[str, AnyArray]
    dtypes: Mapping[str, str]


def to_columns(record: object, kind: type, *, opaque: type | None) -> tuple[JsonValue, Columns]:
    """JSON and columns of a `kind`. Fields of type Any hold an `opaque`; None leaves them out.

    Raises TypeError for a field of a type that has no place in a record.
    """
    writer = _Writer()
    tree = _codec(kind, "", opaque).write(record, writer)
    whole = {name: np.concatenate(parts) for name, parts in writer.parts.items()}
    return tree, Columns(
        arrays={name: _narrowed(array) for name, array in whole.items()},
        dtypes={name: array.dtype.str for name, array in whole.items()},
    )


def from_columns(tree: Any, kind: type, *, columns: Columns, opaque: type | None) -> Any:
    """The record that was written.

    Raises KeyError, TypeError or ValueError where the file holds something else than a `kind`.
    """
    reader = _Reader(columns)
    record = _codec(kind, "", opaque).read(tree, reader)
    reader.require_all_taken()
    return record


def _narrowed(array: AnyArray) -> AnyArray:
    if array.dtype.kind not in "iu" or not array.size:
        return array
    low, high = int(array.min()), int(array.max())
    for dtype in _NARROW_TYPES:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return array.astype(dtype, copy=False)
    return array


class _Writer:
    """Collects what goes into each column, in the order of the walk."""

    def __init__(self) -> None:
        self.parts: dict[str, list[AnyArray]] = {}

    def put(self, column: str, array: AnyArray) -> list[int]:
        self.parts.setdefault(column, []).append(array.reshape(-1))
        return list(array.shape)


class _Reader:
    """Takes from each column in the same order."""

    def __init__(self, columns: Columns) -> None:
        self._arrays = {name: array.astype(columns.dtypes[name]) for name, array in columns.arrays.items()}
        self._taken = dict.fromkeys(self._arrays, 0)

    def take(self, column: str, shape: list[int]) -> AnyArray:
        start = self._taken[column]
        end = start + math.prod(shape)
        if end > len(self._arrays[column]):
            raise ValueError(f"the column {column} is too short")
        self._taken[column] = end
        return self._arrays[column][start:end].reshape(shape)

    def require_all_taken(self) -> None:
        left = [name for name, taken in self._taken.items() if taken != len(self._arrays[name])]
        if left:
            raise ValueError(f"nothing takes the end of the columns {', '.join(left)}")


@dataclass(frozen=True, slots=True, eq=False)
class _Codec:
    write: Callable[[Any, _Writer], Any]
    read: Callable[[Any, _Reader], Any]


@functools.cache
def _codec(kind: Any, column: str, opaque: type | None) -> _Codec:
    """How a value of type `kind` is written and read; its arrays go into `column`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return _codec(opaque, column, None) if opaque is not None else _NOTHING
    if isinstance(kind, type) and is_dataclass(kind):
        return _record_codec(kind, opaque)
    if origin is np.ndarray:
        return _Codec(
            lambda value, writer: writer.put(column, np.asarray(value)),
            lambda value, reader: reader.take(column, value),
        )
    if origin in (Union, types.UnionType):
        return _optional_codec(arguments, column, opaque)
    if origin is tuple:
        return _tuple_codec(arguments, column, opaque)
    if kind is float:
        return _FLOAT
    if kind in (int, str, bool):
        return _Codec(lambda value, writer: kind(value), lambda value, reader: kind(value))
    if origin is Literal:
        return _PLAIN
    raise TypeError(f"{column} is of type {kind}, which has no place in a record")


def _record_codec(kind: type, opaque: type | None) -> _Codec:
    hints = typing.get_type_hints(kind)
    codecs = [(each.name, _codec(hints[each.name], f"{kind.__name__}.{each.name}", opaque)) for each in fields(kind)]

    def write(value: Any, writer: _Writer) -> JsonValue:
        return {name: codec.write(getattr(value, name), writer) for name, codec in codecs}

    def read(value: Any, reader: _Reader) -> Any:
        return kind(**{name: codec.read(value[name], reader) for name, codec in codecs})

    return _Codec(write, read)


def _optional_codec(arguments: tuple[Any, ...], column: str, opaque: type | None) -> _Codec:
    (inner_kind,) = [argument for argument in arguments if argument is not type(None)]
    if inner_kind == tuple[Any, ...] and opaque is None:
        return _NOTHING
    inner = _codec(inner_kind, column, opaque)
    return _Codec(
        lambda value, writer: None if value is None else inner.write(value, writer),
        lambda value, reader: None if value is None else inner.read(value, reader),
    )


def _tuple_codec(arguments: tuple[Any, ...], column: str, opaque: type | None) -> _Codec:
    if arguments[-1] is Ellipsis:
        inner = _codec(arguments[0], column, opaque)
        return _Codec(
            lambda value, writer: [inner.write(each, writer) for each in value],
            lambda value, reader: tuple(inner.read(each, reader) for each in value),
        )
    members = [_codec(argument, column, opaque) for argument in arguments]
    return _Codec(
        lambda value, writer: [codec.write(each, writer) for codec, each in zip(members, value, strict=True)],
        lambda value, reader: tuple(codec.read(each, reader) for codec, each in zip(members, value, strict=True)),
    )


_PLAIN = _Codec(lambda value, writer: value, lambda value, reader: value)
_NOTHING = _Codec(lambda value, writer: None, lambda value, reader: None)
# JSON has neither NaN nor infinities: they are texts that float() reads
_FLOAT = _Codec(
    lambda value, writer: float(value) if math.isfinite(value) else str(float(value)),
    lambda value, reader: float(value),
)
