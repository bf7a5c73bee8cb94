"""``python -m hpcmesos.agent``: an agent whose settings all come from HPCMESOS_* variables."""

from __future__ import annotations

import os

from hpcmesos.agent.daemon import run
from hpcmesos.config import AgentSettings, load

if __name__ == "__main__":
    raise SystemExit(run(load(AgentSettings, {}, os.environ)))
