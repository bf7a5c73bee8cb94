"""The pure halves of the programs inside jobs, and what they may import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmesos.launch import mpiexec, pbsdsh, protocol, quick, rank_wrapper, remote_shell
from tests.e2e.cluster_kit import wait_until

LAUNCH = Path(protocol.__file__).parent / "__main__.py"
WRAPPER = ["W", "--"]


def wrapped(line: str) -> str | None:
    words = mpiexec.wrap(line.split(), WRAPPER)
    return None if words is None else " ".join(words)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("./a.out -n 3", "W -- ./a.out -n 3"),
        ("-n 8 python train.py", "-n 8 W -- python train.py"),
        ("-genv X y -l -ppn 2 a", "-genv X y -l -ppn 2 W -- a"),
        ("--mca btl tcp -x FOO --map-by ppr:1:node a b", "--mca btl tcp -x FOO --map-by ppr:1:node W -- a b"),
        ("-perhost 2 -rr a", "-perhost 2 -rr W -- a"),
        ("--timeout=3 a", "--timeout=3 W -- a"),
        ("-n 1 a x : -n 2 b", "-n 1 W -- a x : -n 2 W -- b"),
        ("-configfile F", None),
        ("-n 2 -s all a", None),
        ("-n 2", None),
        ("-n 1 a :", None),
        ("", None),
    ],
)
def test_where_the_wrapper_goes(line: str, expected: str | None) -> None:
    assert wrapped(line) == expected


def test_the_next_launcher_is_never_a_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("ours", f"#!/bin/sh\nexec python -IS {LAUNCH} mpiexec\n"), ("real", "#!/bin/sh\n")):
        (tmp_path / name).mkdir()
        program = tmp_path / name / "mpiexec"
        program.write_text(text)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/ours:{tmp_path}/real")
    assert mpiexec.find_launcher("mpiexec") == f"{tmp_path}/real/mpiexec"
    monkeypatch.setenv("PATH", f"{tmp_path}/ours")
    monkeypatch.setenv("HPCMESOS_MPI", f"{tmp_path}/real")
    assert mpiexec.find_launcher("mpiexec") == f"{tmp_path}/real/mpiexec"


def test_remote_shell_reads_what_ssh_reads() -> None:
    assert remote_shell.parse(["-n", "-x", "-l", "me", "h", "a b", "c"]) == ("h", "a b c", False)
    assert remote_shell.parse(["-q", "me@h", "-n"]) == ("h", "-n", True)
    assert remote_shell.main(["-z", "h", "x"]) == 2
    assert remote_shell.main(["h"]) == 2


def test_pbsdsh_chooses_slots() -> None:
    slots = ["a", "a", "b"]
    assert pbsdsh.choose(slots, {}) == slots
    assert pbsdsh.choose(slots, {"-u": ""}) == ["a", "b"]
    assert pbsdsh.choose(slots, {"-h": "b"}) == ["b"]
    assert pbsdsh.choose(slots, {"-h": "c"}) == ["c"], "it may be called so elsewhere"
    assert pbsdsh.choose(slots, {"-n": "1"}) == ["a"]
    assert pbsdsh.choose(slots, {"-c": "4"}) == ["a", "a", "b", "a"]
    assert pbsdsh.choose(slots, {"-c": "x"}) == []
    assert pbsdsh.quote("it's") == "'it'\\''s'"


@pytest.mark.parametrize(
    ("share", "rank", "size", "bind", "expected"),
    [
        ("g0,g1,g2,g3", 1, 2, "rank", ["g2", "g3"]),
        ("g0", 1, 2, "rank", ["g0"]),
        ("g0,g1", 0, 2, "none", ["g0", "g1"]),
        ("", 0, 2, "rank", []),
    ],
)
def test_gpus_of_a_rank(
    share: str, rank: int, size: int, bind: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCMESOS_GPUS", share)
    monkeypatch.setenv("HPCMESOS_GPUBIND", bind)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", share)
    assert rank_wrapper.choose_gpus(rank, size) == expected


def test_frames_in_any_pieces() -> None:
    frames = [(protocol.MESSAGE, b'{"a":1}'), (protocol.STDIN_END, b""), (protocol.STDOUT, b"x" * 1000)]
    data = b"".join(protocol.frame(kind, body) for kind, body in frames)
    for size in (1, 3, 7, len(data)):
        parser = protocol.Parser()
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        assert [f for piece in pieces for f in parser.feed(piece)] == frames


@pytest.mark.parametrize("data", [b"\0\0\0\0J", b"\xff\xff\xff\xffJ"])
def test_no_frame(data: bytes) -> None:
    with pytest.raises(protocol.FrameError):
        list(protocol.Parser().feed(data))


@pytest.mark.parametrize("body", [b"[1]", b"{", b"", b"\xff"])
def test_no_message(body: bytes) -> None:
    with pytest.raises(protocol.FrameError):
        protocol.decode(body)


def test_json_keeps_what_it_is_given() -> None:
    value = {"text": 'a "b" \n é \udcff', "list": [1, -2.5, True, None, {}], "deep": {"x": []}}
    assert quick.loads(quick.dumps(value)) == value


@pytest.mark.parametrize(
    "program", ["remote_shell", "mpiexec", "rank_wrapper", "pbsdsh", "qstub", "run", "command"]
)
def test_programs_of_milliseconds_import_nothing_heavy(program: str) -> None:
    code = f"import sys; sys.path.append({str(LAUNCH.parents[2])!r}); import hpcmesos.launch.{program}; "
    code += "print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        "asyncio",
        "ssl",
        "subprocess",
        "typing",
        "re",
        "enum",
        "json",
        "socket",
        "signal",
        "dataclasses",
        "contextlib",
    }
    assert not heavy & set(loaded)


COUNTS = """
import os, signal, time
signal.signal(signal.SIGUSR1, lambda number, frame: print("got it", flush=True))
open("up", "w").close()
while not os.path.exists("over"):
    time.sleep(0.01)
"""


def test_a_rank_hears_once_what_is_sent_to_its_process_group(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-IS",
        str(LAUNCH),
        "rank_wrapper",
        "0.1",
        "--",
        sys.executable,
        "-IS",
        "-c",
        COUNTS,
    ]
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("HPCMESOS_", "PMI_"))
    }
    with subprocess.Popen(
        words, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as wrapper:
        wait_until((tmp_path / "up").exists, "the rank")
        wrapper.send_signal(signal.SIGSTOP)  # it hears of it later: else two of a kind may come as one
        os.killpg(wrapper.pid, signal.SIGUSR1)
        assert wrapper.stdout is not None
        first = wrapper.stdout.readline()
        wrapper.send_signal(signal.SIGCONT)
        (tmp_path / "over").touch()
        rest, _ = wrapper.communicate(timeout=30)
    assert (first, rest, wrapper.returncode) == ("got it\n", "", 0)
