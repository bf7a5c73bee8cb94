"""What every Python rank gets along: it ends MPI on a failure, else nobody sees it. With an MPI that only tells."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from hpcmesos.launch import programs

MPI = """
import os
def Is_initialized(): return True
def Is_finalized(): return False
class COMM_WORLD:
    def Get_size(): return int(os.environ.get("RANKS", "2"))
    def Abort(code): print("abort", code, flush=True); os._exit(code)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").touch()
    (tmp_path / "mpi4py" / "MPI.py").write_text(MPI)
    return tmp_path


def python(home: Path, code: str, *options: str, **environ: str) -> tuple[int, str]:
    """(exit code, stdout) of a rank; the script is a file, as it mostly is."""
    script = home / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, *options, str(script)],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": programs.python_path(str(home)), **environ},
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("pass", 0, ""),
        ("raise ValueError", 1, "abort 1\n"),
        ("sys.exit(3)", 3, "abort 3\n"),
        ("sys.exit('wrong')", 1, "abort 1\n"),
        ("sys.exit()", 0, ""),
        ("sys.exit(0)", 0, ""),
        ("raise KeyboardInterrupt", 130, "abort 130\n"),
        ("\ntry: sys.exit(3)\nexcept SystemExit as error: print(error.code)", 0, "3\n"),
        ("\ntry: sys.exit(3)\nexcept SystemExit: pass\nsys.exit(0)", 0, ""),
        ("\ntry: sys.exit(3)\nexcept SystemExit as error: kept = error", 0, ""),
        ("\ndef f():\n  try: sys.exit(3)\n  finally: print('cleaned')\nf()", 3, "cleaned\nabort 3\n"),
        ("\nimport threading\nt = threading.Thread(target=sys.exit, args=(3,)); t.start(); t.join()", 0, ""),
        ("import _thread; _thread.start_new_thread(sys.exit, (3,)); print(end='')", 0, ""),
        ("import os\nif os.fork() == 0: sys.exit(4)\nprint(os.wait()[1] >> 8)", 0, "4\n"),
    ],
)
def test_how_a_rank_ends(home: Path, end: str, code: int, said: str) -> None:
    assert python(home, f"import sys, mpi4py.MPI\n{end.lstrip()}") == (code, said)


@pytest.mark.parametrize("end", ["raise ValueError", "sys.exit(1)"])
def test_without_mpi_or_alone_nothing_is_aborted(home: Path, end: str) -> None:
    assert python(home, f"import sys; {end}") == (1, "")
    assert python(home, f"import sys, mpi4py.MPI; {end}", RANKS="1") == (1, "")
    assert python(home, f"import sys; {end}", "-I") == (1, "")
    assert python(home, f"import sys; {end}", "-S") == (1, "")


def test_the_users_own_sitecustomize_runs(home: Path) -> None:
    (home / "sitecustomize.py").write_text("import sys; NAME = __name__; sys.mine = True\n")
    code = "import sys, sitecustomize; print(sys.mine, sitecustomize.NAME, sitecustomize.__file__)"
    assert python(home, code) == (0, f"True sitecustomize {home}/sitecustomize.py\n")
    assert python(home, f"{code}; import mpi4py.MPI; sys.exit(3)")[0] == 3


def test_in_a_virtual_environment(home: Path) -> None:
    venv.create(home / "venv", symlinks=True)
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": programs.python_path(str(home))}
    code = "import sys, mpi4py.MPI; print(sys.prefix); sys.exit(3)"
    command = [str(home / "venv" / "bin" / "python"), "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout) == (3, f"{home}/venv\nabort 3\n")
