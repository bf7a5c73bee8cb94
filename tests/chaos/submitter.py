"""Submits jobs as the user who runs it: a JSON object a line on standard input, an answer a line on standard output.

``{"key", "argv", "script", "cwd"}`` -> ``{"key", "id"}`` or ``{"key", "error"}``. The key is the idempotency key:
a submission that has to be repeated makes one job.
"""

from __future__ import annotations

import json
import sys

from hpcmesos.client import Client
from hpcmesos.errors import HpcmesosError

PATIENCE = 180.0
"""Seconds that a submission waits for masters and PostgreSQL to come back."""


def main() -> None:
    with Client(socket=sys.argv[1:], patience=PATIENCE) as client:
        for line in sys.stdin:
            job = json.loads(line)
            answer = {"key": job["key"]}
            try:
                reply = client.command(
                    "qsub", job["argv"], script=job["script"].encode(), cwd=job["cwd"], key=job["key"]
                )
                answer |= {"id": reply.stdout.strip()} if reply.code == 0 else {"error": reply.stderr}
            except HpcmesosError as error:
                answer["error"] = f"{type(error).__name__}: {error}"
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
