"""``qstat -f``, ``-Q -f`` and ``-B -f``: one attribute a line, long ones folded (T:src/cmds/qstat.c prt_attr)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import tzinfo

from hpcmesos.pbs.attributes import VARIABLES, Value, job_attributes, plain_text, variables_text
from hpcmesos.pbs.facts import JobFacts, QueueFacts, ServerFacts
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.render_text import state_count

_FOLD_COLUMNS = 77  # not counting the comma that a line ends with
_TAB_COLUMNS = 8
_FOLD = "\n\t"


def full(
    jobs: Iterable[JobFacts],
    personality: Personality,
    zone: tzinfo | None,
    *,
    show_variables: bool = False,
    one_line: bool = False,
) -> str:
    """All attributes of the jobs, an empty line after each; ``one_line`` does not fold."""
    columns = None if one_line else _FOLD_COLUMNS
    blocks: list[str] = []
    for job in jobs:
        attributes = job_attributes(job, personality, show_variables=show_variables)
        lines = (attribute_line(name, text, columns) for name, text in flatten(attributes, zone))
        blocks.append("\n".join((f"Job Id: {job.id}", *lines)) + "\n\n")
    return "".join(blocks)


def dsv(
    jobs: Iterable[JobFacts],
    personality: Personality,
    zone: tzinfo | None,
    *,
    show_variables: bool = False,
    delimiter: str = "|",
) -> str:
    """``qstat -f -F dsv`` of OpenPBS: one line for each job; delimiters inside values are escaped."""
    escaped = f"\\{delimiter}"
    lines: list[str] = []
    for job in jobs:
        attributes = flatten(job_attributes(job, personality, show_variables=show_variables), zone)
        fields = (f"{name}={text.replace(delimiter, escaped)}" for name, text in attributes)
        lines.append(delimiter.join((f"Job Id: {job.id}", *fields)) + "\n")
    return "".join(lines)


def full_queues(queues: Iterable[QueueFacts]) -> str:
    """``qstat -Q -f``."""
    return "".join(_block("Queue", queue.name, _queue_attributes(queue)) for queue in queues)


def full_server(server: ServerFacts) -> str:
    """``qstat -B -f``."""
    attributes = {
        "server_state": server.status,
        "total_jobs": str(sum(server.counts.values())),
        "state_count": state_count(server.counts),
        **server.attributes,
    }
    return _block("Server", server.name, attributes)


def flatten(attributes: Iterable[tuple[str, Value]], zone: tzinfo | None) -> Iterator[tuple[str, str]]:
    """Mappings as ``NAME.KEY``, Variable_List as one text; line breaks in values are written ``\\n``."""
    for name, value in attributes:
        if not isinstance(value, Mapping):
            yield name, _one_line(plain_text(value, zone))
        elif name == VARIABLES:
            yield name, _one_line(variables_text(value))
        else:
            yield from ((f"{name}.{key}", _one_line(text)) for key, text in value.items())


def attribute_line(name: str, text: str, columns: int | None) -> str:
    """``    NAME = TEXT``; beyond ``columns`` it goes on after a line break and a tab, best after a comma."""
    line = f"    {name} = "
    if columns is None or len(line) + len(text) <= columns:
        return line + text
    return line + _fold(text, len(line), columns)


def _fold(text: str, start: int, columns: int) -> str:
    pieces: list[str] = []
    column = start
    for token in _comma_tokens(text):
        if column + len(token.removesuffix(",")) > columns and pieces:
            pieces.append(_FOLD)
            column = _TAB_COLUMNS
        while column + len(token.removesuffix(",")) > columns:
            room = max(1, columns - column)
            pieces += (token[:room], _FOLD)
            token = token[room:]
            column = _TAB_COLUMNS
        pieces.append(token)
        column += len(token)
    return "".join(pieces)


def _comma_tokens(text: str) -> Iterator[str]:
    *heads, last = text.split(",")
    yield from (f"{head}," for head in heads)
    if last:
        yield last


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _block(kind: str, name: str, attributes: Mapping[str, str]) -> str:
    lines = (attribute_line(key, _one_line(value), _FOLD_COLUMNS) for key, value in attributes.items())
    return "\n".join((f"{kind}: {name}", *lines)) + "\n\n"


def _queue_attributes(queue: QueueFacts) -> dict[str, str]:
    """The type, the priority and the counts first, whether it is on last, as both families show them."""
    given = dict(queue.attributes)
    first = {name: given.pop(name) for name in ("queue_type", "Priority") if name in given}
    counts = {
        "total_jobs": str(sum(queue.counts.values())),
        "state_count": state_count(queue.counts),
    }
    last = {"enabled": str(queue.enabled), "started": str(queue.started)}
    kept = {name: value for name, value in given.items() if name not in last}
    return {"queue_type": "Execution"} | first | counts | kept | last
