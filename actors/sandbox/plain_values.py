"""Plain Python values as JSON and back: what a program's process and its judge tell each other.

    None, bool, str       themselves
    other plain values    [kind, content], e.g. ["int", "0x7b"], ["tuple", [...]]
    int, str, ... itself  ["type", "int"]
    everything else       ["ref", number]: an object that stays in the program's process

A subclass (Counter, namedtuple, an `int` whose `__eq__` lies) is sent as the plain value in it. Used on both sides.
"""

from collections.abc import Callable

MAX_DEPTH = 100
_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, type(None), object)
}
_SEQUENCES: dict[str, Callable[[list[object]], object]] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset,
}  # fmt: skip


class NotPlainError(ValueError):
    """A value that cannot be sent, or a message that holds none."""


def encode(value: object, *, refer: Callable[[object], int], depth: int = 0) -> object:
    """`refer` gives the number of an object that is no plain value, or raises NotPlainError."""
    if depth > MAX_DEPTH:
        raise NotPlainError("nested too deeply")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return ["int", hex(int.__index__(value))]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", [float.hex(value.real), float.hex(value.imag)]]
    if isinstance(value, bytes | bytearray):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, dict):
        pairs = [[encode(part, refer=refer, depth=depth + 1) for part in pair] for pair in dict.items(value)]
        return ["dict", pairs]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            items = kind.__iter__(value)  # type: ignore[arg-type]
            return [kind.__name__, [encode(item, refer=refer, depth=depth + 1) for item in items]]
    if isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return ["type", value.__name__]
    item_of = getattr(type(value), "item", None)  # a scalar of numpy
    if item_of is not None and type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return encode(item_of(value), refer=refer, depth=depth + 1)
    return ["ref", refer(value)]


def decode(message: object, *, resolve: Callable[[int], object]) -> object:
    """The plain value; `resolve` gives what stands for the object of a number. Raises NotPlainError."""
    if message is None or isinstance(message, bool | str):
        return message
    if not isinstance(message, list) or len(message) != 2:
        raise NotPlainError("no value")
    kind, content = message
    try:
        if kind == "int" and len(content) < 1_000_000:
            return int(content, 16)
        if kind == "float":
            return float.fromhex(content)
        if kind == "complex":
            return complex(*(float.fromhex(part) for part in content))
        if kind == "bytes":
            return bytes.fromhex(content)
        if kind == "dict":
            return {decode(key, resolve=resolve): decode(value, resolve=resolve) for key, value in content}
        if kind in _SEQUENCES:
            return _SEQUENCES[kind]([decode(item, resolve=resolve) for item in content])
        if kind == "type":
            return _TYPES[content]
        if kind == "ref" and isinstance(content, int):
            return resolve(content)
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise NotPlainError(str(error)) from error
    raise NotPlainError(f"no value of kind {kind!r}")
