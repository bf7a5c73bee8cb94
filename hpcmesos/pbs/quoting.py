"""Quotes in the values of options: ``'...'``, ``"..."`` and ``\\`` (qsub(1B) of both families, -v and -W)."""

from __future__ import annotations

from hpcmesos.errors import InvalidValue

_QUOTES = "'\""
_ESCAPABLE = "\\'\", \t"


def split_list(text: str, separator: str = ",") -> tuple[str, ...]:
    """Splits at separators outside quotes, drops the quotes and the blanks around the pieces, and empty pieces.

    Raises:
        InvalidValue: when a quote is not closed.
    """
    if not text:
        return ()
    pieces = (_strip_quotes(piece.strip()) for piece in _split_raw(text, separator))
    return tuple(piece for piece in pieces if piece)


def unquote(text: str) -> str:
    """The text without its quotes; one whose quotes do not pair is taken as it stands."""
    try:
        _split_raw(text, "")
    except InvalidValue:
        return text
    return _strip_quotes(text)


def split_words(line: str) -> tuple[str, ...]:
    """The words of a directive line.

    Quotes around a whole word go. Quotes inside a word stay for the list grammar of ``-v`` and ``-W``, so that
    ``-v A,"B=x,y"`` means in a directive what it says. A word that begins with ``#`` begins a comment.

    Raises:
        InvalidValue: when a quote is not closed.
    """
    return tuple(
        _strip_outer(piece) for piece in _split_raw(line.replace("\t", " "), " ", comments=True) if piece
    )


def _split_raw(text: str, separator: str, *, comments: bool = False) -> list[str]:
    """Splits at unquoted separators; quotes and backslashes stay in the pieces."""
    pieces = [""]
    quote = ""
    escaped = False
    for char in text:
        if comments and char == "#" and not pieces[-1]:
            break
        if not escaped and not quote and char == separator:
            pieces.append("")
            continue
        pieces[-1] += char
        if escaped:
            escaped = False
        elif char == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if char == quote else quote
        elif char in _QUOTES:
            quote = char
    if quote:
        raise InvalidValue(f"unbalanced quote {quote} in: {text}")
    return pieces


def _strip_quotes(text: str) -> str:
    result: list[str] = []
    quote = ""
    escaped = False
    for char in text:
        if escaped:
            result.append(char if char in _ESCAPABLE else f"\\{char}")
            escaped = False
        elif char == "\\" and quote != "'":
            escaped = True
        elif char == quote:
            quote = ""
        elif not quote and char in _QUOTES:
            quote = char
        else:
            result.append(char)
    return "".join(result) + ("\\" if escaped else "")


def _strip_outer(word: str) -> str:
    quote = word[0]
    if quote in _QUOTES and len(word) > 1 and word.endswith(quote) and quote not in word[1:-1]:
        return word[1:-1]
    return word
