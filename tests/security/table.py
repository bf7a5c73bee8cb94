"""``python -m tests.security.table``: docs/security-attacks.md from the cases themselves."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.security.cases import Case

TARGET = Path(__file__).resolve().parents[2] / "docs" / "security-attacks.md"
MODULES = ("api", "identity", "input", "load", "leader", "node", "docker", "peer", "number", "exhaustion")
HEAD = """# The table of attacks

Made from `tests/security/` by `python -m tests.security.table`; a test compares. Each fails in one line and changes
nothing; its twin, the rightful request, goes through; and with its guard switched off the attack goes through.
"""


def cases(module: Any) -> Iterator[Case[Any]]:
    """Of its lists, in the order of the file."""
    seen: set[int] = set()
    for value in vars(module).values():
        for one in value if isinstance(value, list | tuple) else ():
            if isinstance(one, Case) and id(one) not in seen:
                seen.add(id(one))
                yield one


def table() -> str:
    parts, count = [], 0
    for name in MODULES:
        module = importlib.import_module(f"tests.security.test_{name}_attacks")
        title = (module.__doc__ or "").strip().splitlines()[0].rstrip(".")
        found = [f"- {one.name}" for one in cases(module)]
        count += len(found)
        parts += [f"\n## {title} ({len(found)})\n", *found]
    return "\n".join([HEAD, f"{count} attacks.", *parts]) + "\n"


def main() -> None:
    TARGET.write_text(table())


if __name__ == "__main__":
    main()
