from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from hpcmesos.model import Cause, JobState, Request
from hpcmesos.queue import accounting
from hpcmesos.queue.records import AttemptKey, AttemptRecord, JobRecord, ShareRecord

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = AttemptKey(12, None, 1)
SHARES = [
    ShareRecord(attempt=KEY, node="n1", position=0, cpus=2, mem=0, slots=2),
    ShareRecord(attempt=KEY, node="n2", position=1, cpus=2, mem=0, slots=1),
]
JOB = JobRecord(
    seq=12,
    index=None,
    server="hpcm",
    name="my job",
    owner="alice",
    queue="batch",
    state=JobState.COMPLETE,
    priority=0,
    request=Request(),
    holds="",
    not_before=None,
    created_at=NOON,
    modified_at=NOON,
    queued_at=NOON,
    started_at=NOON + timedelta(seconds=5),
    ended_at=NOON + timedelta(seconds=65),
    exit_status=271,
    cause=Cause.DELETED,
    comment="",
    attempt=1,
    charged_attempts=1,
    rerunable=True,
    excluded=(),
    dependencies=(),
    submit_host="login",
    egroup="staff",
    submission={"resource_list": {"walltime": "01:00:00", "nodes": "2:ppn=2"}},
)
EPOCH = int(NOON.timestamp())


def test_queued_and_deleted() -> None:
    assert str(accounting.queued(JOB, NOON)) == "03/01/2026 12:00:00;Q;12.hpcm;queue=batch"
    assert str(accounting.deleted(JOB, "bob", NOON)) == "03/01/2026 12:00:00;D;12.hpcm;requestor=bob@hpcm"


def test_started() -> None:
    line = str(accounting.started(JOB, SHARES, NOON))
    assert line == (
        "03/01/2026 12:00:00;S;12.hpcm;user=alice group=staff jobname=my_job queue=batch"
        f" ctime={EPOCH} qtime={EPOCH} etime={EPOCH} start={EPOCH + 5} owner=alice@login"
        " exec_host=n1/0+n1/1+n2/0 Resource_List.nodes=2:ppn=2 Resource_List.walltime=01:00:00"
    )


def test_ended() -> None:
    attempt = AttemptRecord(
        key=KEY, ended_at=JOB.ended_at, usage={"cput": 61.5, "mem": 2048 * 1024, "walltime": 60}
    )
    line = str(accounting.ended(JOB, attempt, SHARES, NOON))
    assert line.endswith(
        f"total_execution_slots=3 unique_node_count=2 end={EPOCH + 65} Exit_status=271"
        " resources_used.cput=00:01:01 resources_used.mem=2048kb resources_used.walltime=00:01:00"
    )


def test_one_file_a_day_in_the_zone(tmp_path: Path) -> None:
    east = timezone(timedelta(hours=14))
    files = accounting.AccountingFiles(tmp_path / "accounting", east)
    files.append([accounting.queued(JOB, NOON - timedelta(hours=3)), accounting.requeued(JOB, NOON)])
    files.append([accounting.aborted(JOB, NOON)])
    written = {path.name: path.read_text() for path in (tmp_path / "accounting").iterdir()}
    assert written == {
        "20260301": "03/01/2026 23:00:00;Q;12.hpcm;queue=batch\n",
        "20260302": "03/02/2026 02:00:00;R;12.hpcm;queue=batch\n03/02/2026 02:00:00;A;12.hpcm;queue=batch\n",
    }
