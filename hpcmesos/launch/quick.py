"""The C halves of ``json``, ``socket`` and ``signal``, for programs that live for milliseconds.

Their Python halves (enum, re, selectors) take 13 ms to import, twice as long as the interpreter itself to start. What
an interpreter does not have falls back to the standard module. Not for the shepherd.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing for its constant costs 8 ms
if TYPE_CHECKING:
    from typing import Any


def _either(quick: str, standard: str) -> Any:
    try:
        return __import__(quick)
    except ImportError:
        return __import__(standard)


socket = _either("_socket", "socket")
signal = _either("_signal", "signal")


class _Rules:
    """What the C scanner asks its maker: plain JSON."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def _codec() -> Any:
    try:
        native: Any = __import__("_json")
        scan = native.make_scanner(_Rules)
        encode = native.make_encoder(
            None, None, native.encode_basestring_ascii, None, ":", ",", False, False, True
        )
        if scan('{"a":[1,"b"]}', 0)[0] == {"a": [1, "b"]} and "".join(encode({"a": [1]}, 0)) == '{"a":[1]}':
            return (lambda text: scan(text.strip(), 0)[0]), (lambda value: "".join(encode(value, 0)))
    except (ImportError, AttributeError, TypeError, StopIteration):
        pass
    standard: Any = __import__("json")
    return standard.loads, standard.dumps


_loads, _dumps = _codec()


def loads(text: str) -> Any:
    """The value of a JSON text. Raises ValueError when it is none."""
    try:
        return _loads(text)
    except (StopIteration, SystemError) as error:  # the C scanner alone has no better words
        raise ValueError("not JSON") from error


def dumps(value: object) -> str:
    """JSON in ASCII without blanks."""
    return str(_dumps(value))
