"""The recorded samples of qstat, reproduced by the real command over a real database.

Fields are masked by name, with the reason; what is left is compared byte for byte, and is 90 % of each sample at least.
"""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime
from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from hpcmesos.api_schema import CommandReply, CommandRequest
from hpcmesos.model import Cause
from hpcmesos.pbs.resources import build
from hpcmesos.queue.records import AttemptKey, AttemptRecord, NodeRecord, ShareRecord, StartRecord

if TYPE_CHECKING:
    from .api_kit import Api

pytest_plugins = ["tests.integration.database_kit", "tests.integration.api_kit"]

GOLDEN = Path(__file__).parents[1] / "golden"
ENVIRON = {
    "HOME": "/home/ann",
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin",
    "MAIL": "/var/mail/ann",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
}
VALUES = {
    "cpupercent": "invented in the samples",
    "start_count": "1 in the samples even of the job that waits",
    "substate": "92 in the samples even of the job that failed; OpenPBS itself says 93",
    "timestamp": "of the moment",
    "pbs_version": "ours",
}
"""Fields whose values are not compared."""
FIELDS = {
    "vmem": "not measured",
    "eligible_time": "OpenPBS itself shows it only where a site wants it",
    "egroup": "ann is no user of this machine",
    "comment": "our own words for it",
    "end_cause": "an extension",
    "run_count": "the samples lack what OpenPBS shows",
    "Submit_Host": "the samples lack what OpenPBS shows",
}
"""Fields that are left out on both sides."""
SCRIPT = b"#!/bin/sh\n#PBS -N bench%d\n#PBS -l nodes=2:ppn=2,mem=1gb,walltime=01:00:00\ntrue\n"
JOBS = {101: None, 102: None, 103: 0, 105: 3}
"""Exit statuses; 101 runs, 102 waits."""


def ask(api: Api, command: str, *argv: str, personality: str = "torque", script: bytes = b"") -> CommandReply:
    """As ann's client on host login1 sends it."""
    request = CommandRequest(
        argv=list(argv),
        cwd="/home/ann/runs",
        host="login1",
        environ=ENVIRON | ({"TZ": "UTC"} if command == "qstat" else {}),
        script=base64.b64encode(script).decode() if script else None,
        script_path="job.sh" if script else None,
        personality=personality,
    )
    with api.client(api.token_of("ann")) as client:
        return client._call("POST", f"/v1/commands/{command}", CommandReply, request)


@pytest.fixture(scope="module")
def api_settings() -> dict[str, object]:
    return {"server": "hpcmaster", "keep_completed": 1e9}


@pytest.fixture(scope="module", autouse=True)
def jobs(api: Api) -> None:
    """The samples' four jobs: submitted by the command, run by the leader's hand, at the samples' times."""
    with api.leader.transaction() as tx:
        for name in ("n01", "n02"):
            tx.upsert_node(NodeRecord(name=name, cpus=8, mem=1 << 34, address="127.0.0.1"))
    with psycopg.connect(api.database.owner, autocommit=True) as database:
        for seq, status in JOBS.items():
            database.execute("SELECT setval('job_ids', %s, false)", [seq])
            assert ask(api, "qsub", "job.sh", script=SCRIPT % seq).stdout == f"{seq}.hpcmaster\n"
            if seq != 102:
                run(api, seq, status)
        set_times(database)


def run(api: Api, seq: int, status: int | None) -> None:
    key = AttemptKey(seq, None, 1)
    shares = tuple(
        ShareRecord(attempt=key, node=node, position=position, cpus=2, mem=0, slots=2)
        for position, node in enumerate(("n01", "n02"))
    )
    with api.leader.transaction() as tx:
        assert tx.apply_starts([StartRecord(attempt=key, shares=shares)])
    if status is not None:
        cause = Cause.APP if status else Cause.OK
        ended = datetime(2026, 3, 3, 10, 2, tzinfo=UTC)
        api.end(AttemptRecord(key=key, ended_at=ended, cause=cause, code=status), status)


def set_times(database: psycopg.Connection) -> None:
    minute = "'2026-03-03 10:0{}:00+00'".format
    database.execute(
        f"UPDATE jobs SET created_at = {minute(0)}, queued_at = {minute(0)}, modified_at = {minute(1)},"
        f" started_at = CASE WHEN attempt > 0 THEN timestamptz {minute(1)} END,"
        f" ended_at = CASE WHEN ended_at IS NOT NULL THEN timestamptz {minute(2)} END"
    )
    usage = {"cput": 12, "mem": 10240 * 1024, "walltime": 62, "session": 4711}
    database.execute(f"UPDATE attempts SET started_at = {minute(1)}, usage = %s", [json.dumps(usage)])


@pytest.fixture
def select(api: Api) -> None:
    """The same jobs as they are when OpenPBS' words ask for them."""
    words = {"select": "2:ncpus=2:mpiprocs=2", "place": "scatter", "mem": "1gb", "walltime": "01:00:00"}
    shown = json.dumps(dict(build(words).display))
    with psycopg.connect(api.database.owner, autocommit=True) as database:
        database.execute("UPDATE jobs SET submission = jsonb_set(submission, '{resource_list}', %s)", [shown])


def masked(text: str) -> str:
    """The text without the masked fields and values, in whichever of qstat's formats it is.

    Two things that the samples do otherwise than OpenPBS itself: the blanks around ``--`` in a table,
    and the order of what was used, which is the alphabet's.
    """
    form = "xml" if text.startswith("<?xml") else "json" if text.startswith("{") else "text"
    field, value = {
        "xml": (r"<{}>[^<]*</{}>", r"(<{}>)[^<]*()"),
        "json": (r'^ +"{}": .*\n', r'^( +"{}": ).*?(,?)$'),
        "text": (r"^    (?:\w+\.)?{} = .*\n(?:\t.*\n)*", r"^(    (?:\w+\.)?{} = ).*()$"),
    }[form]
    for name in FIELDS:
        text = re.sub(field.format(name, name), "", text, flags=re.M)
    for name in VALUES:
        text = re.sub(value.format(name), r"\1*\2", text, flags=re.M)
    text = re.sub(r" +--(?: +|$)", " -- ", text, flags=re.M)
    text = re.sub(r",(\n *\})", r"\1", text)  # before a masked last field of JSON
    return re.sub(
        r'(?:^ +(?:resources_used\.|"(?:cpu|cput|ncpus|mem|walltime)\w*").*\n)+', _sorted, text, flags=re.M
    )


def _sorted(lines: re.Match[str]) -> str:
    return "".join(sorted(f"{line.rstrip(',')}\n" for line in lines[0].splitlines()))


def check(api: Api, sample: str, *argv: str, personality: str) -> None:
    golden = (GOLDEN / sample).read_text()
    reply = ask(api, "qstat", *argv, personality=personality)
    assert (reply.stderr, reply.code) == ("", 0)
    lines = (masked(text).replace("><", ">\n<").split("\n") for text in (golden, reply.stdout))
    assert list(unified_diff(*lines, "sample", "ours", n=0, lineterm="")) == []
    assert len(masked(golden)) >= 0.9 * len(golden)


@pytest.mark.parametrize(
    ("sample", "argv"),
    [
        ("t_qstat.txt", []),
        ("t_qstat_a.txt", ["-a"]),
        ("t_qstat_f.txt", ["-f"]),
        ("t_qstat_f1.txt", ["-f", "-1"]),
        ("t_qstat_x.xml", ["-x"]),
    ],
)
def test_torque(api: Api, sample: str, argv: list[str]) -> None:
    check(api, sample, *argv, personality="torque")


@pytest.mark.usefixtures("select")
@pytest.mark.parametrize(
    ("sample", "argv"),
    [
        ("p_qstat.txt", []),
        ("p_qstat_a.txt", ["-a"]),
        ("p_qstat_f.txt", ["-f"]),
        ("p_qstat_x.txt", ["-x"]),
        ("p_qstat_fx.txt", ["-fx"]),
        ("p_qstat_json.txt", ["-f", "-x", "-F", "json"]),
    ],
)
def test_pbspro(api: Api, sample: str, argv: list[str]) -> None:
    check(api, sample, *argv, personality="pbspro")
