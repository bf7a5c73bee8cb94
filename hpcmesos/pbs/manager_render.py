"""What qmgr's ``list`` and ``print`` write. Pure; ``print`` can be read by qmgr again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hpcmesos.pbs.manager_attributes import is_list, members
from hpcmesos.pbs.personalities import Personality

_TITLES = {"server": "Server", "queue": "Queue", "node": "Node"}
_NEEDS_QUOTES = frozenset(" \t,'\"#\\")

HELP = """General syntax: command [object][@server] [name attribute[.resource] OP value]
Available commands:
active                 The active command will set the active objects.
create                 The create command will create the specified object on the server.
delete                 The delete command will delete the specified object from the server.
set                    The set command sets the value for an attribute on the specified object.
unset                  The unset command will unset an attribute on the specified object.
list                   The list command will list out all the attributes for the specified object.
print                  The print command's output can be fed back into qmgr as input.
quit                   The quit command will exit from qmgr.
"""


def listed(kind: str, name: str, attributes: Mapping[str, str], personality: Personality) -> str:
    """One object with its attributes, and an empty line."""
    indent = "\t" if personality is Personality.TORQUE else "    "
    rows = "".join(f"{indent}{key} = {_one_line(value)}\n" for key, value in attributes.items())
    return f"{_TITLES[kind]} {name}\n{rows}\n"


def printed_queues(queues: Iterable[tuple[str, Mapping[str, str]]]) -> str:
    """The commands that make these queues."""
    parts = ["#\n# Create queues and set their attributes.\n#\n"]
    for name, attributes in queues:
        parts.append(f"#\n# Create and define queue {name}\n#\ncreate queue {name}\n")
        parts += _settings("queue", name, attributes)
    return "".join(parts)


def printed_server(attributes: Mapping[str, str]) -> str:
    """The commands that set the server's attributes."""
    return "#\n# Set server attributes.\n#\n" + "".join(_settings("server", "", attributes))


def printed_nodes(nodes: Iterable[tuple[str, Mapping[str, str]]]) -> str:
    """The commands that set what an administrator can set of these nodes; nodes come by themselves."""
    parts = ["#\n# Set node attributes.\n#\n"]
    for name, attributes in nodes:
        parts += _settings("node", name, attributes)
    return "".join(parts)


def _settings(kind: str, name: str, attributes: Mapping[str, str]) -> list[str]:
    target = f"{kind} {name}" if name else kind
    rows: list[str] = []
    for key, value in attributes.items():
        words = members(value) if is_list(kind, key) else [value]
        for number, word in enumerate(words):
            rows.append(f"set {target} {key} {'+=' if number else '='} {_quoted(word)}\n")
    return rows


def _quoted(text: str) -> str:
    if text and not _NEEDS_QUOTES & set(text):
        return text
    return f"'{text}'" if '"' in text else f'"{text}"'


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")
