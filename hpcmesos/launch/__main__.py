"""``python -IS .../hpcmesos/launch/__main__.py NAME ARGS``: starts one of the programs of this room.

Works without ``site`` and without the environment of the user. The directory that holds the package goes to the end of
``sys.path``: nothing that lies beside it may stand before the standard library.
"""

import sys

_PROGRAMS = (
    "shepherd",
    "starter",
    "remote_shell",
    "mpiexec",
    "rank_wrapper",
    "pbsdsh",
    "qstub",
    "command",
    "ring",
    "deliver",
)


def main() -> None:
    here = __file__.rpartition("/")[0]
    if sys.path and sys.path[0].rstrip("/") == here:  # run by directory
        del sys.path[0]
    sys.path.append(here.rpartition("/")[0].rpartition("/")[0])
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in _PROGRAMS:
        sys.stderr.write(f"hpcmesos: no program '{name}' here; one of {', '.join(_PROGRAMS)}\n")
        raise SystemExit(2)
    module = __import__(f"hpcmesos.launch.{name}", fromlist=["main"])
    raise SystemExit(module.main(sys.argv[2:]))


main()
