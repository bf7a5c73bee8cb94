"""The status commands' texts, column for column, against what Torque and OpenPBS print."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime, timedelta, timezone

import pytest

from hpcmesos.pbs.arrays import parse_array
from hpcmesos.pbs.facts import GpuFacts, JobFacts, NodeFacts, QueueFacts, ServerFacts
from hpcmesos.pbs.nodes import nodes_json, nodes_list, nodes_text, nodes_xml
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.render import View, render_jobs, render_nodes, render_queues, render_server
from hpcmesos.pbs.render_full import full
from hpcmesos.pbs.render_text import alternate, plain, queue_limits, queues, server_table, why
from hpcmesos.pbs.render_xml import jobs_xml
from hpcmesos.pbs.status import parse_pbsnodes, parse_qstat

VARIABLES = {
    "PBS_O_QUEUE": "batch",
    "PBS_O_HOME": "/home/ann",
    "PBS_O_LOGNAME": "ann",
    "PBS_O_PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin",
    "PBS_O_MAIL": "/var/mail/ann",
    "PBS_O_SHELL": "/bin/bash",
    "PBS_O_LANG": "C.UTF-8",
    "PBS_O_WORKDIR": "/home/ann/jobs",
    "PBS_O_HOST": "login1",
    "PBS_O_SERVER": "hpcmaster",
    "PBS_O_SYSTEM": "Linux",
}


def at(minute: int) -> datetime:
    return datetime(2026, 3, 3, 10, minute, tzinfo=UTC)


def job(number: int, state: str, **changes: object) -> JobFacts:
    ran = state in "RC"
    values: dict[str, object] = {
        "id": f"{number}.hpcmaster",
        "name": f"bench{number}",
        "owner": "ann",
        "submit_host": "login1",
        "state": state,
        "queue": "batch",
        "server": "hpcmaster",
        "ctime": at(0),
        "qtime": at(0),
        "mtime": at(1),
        "etime": at(0),
        "start_time": at(1) if ran else None,
        "exec_host": (("n01", 2), ("n02", 2)) if ran else (),
        "resource_list": {
            "nodes": "2:ppn=2",
            "mem": "1gb",
            "ncpus": "4",
            "nodect": "2",
            "walltime": "01:00:00",
        },
        "resources_used": {"cput": "00:00:12", "mem": "10240kb", "walltime": "00:01:02"} if ran else {},
        "session_id": 4711 if ran else None,
        "environment": VARIABLES,
        "output_path": f"login1:/home/ann/jobs/bench{number}.o{number}",
        "error_path": f"login1:/home/ann/jobs/bench{number}.e{number}",
        "workdir": "/home/ann/jobs",
        "submit_args": "job.sh",
        "group": "users",
        "run_count": 1 if ran else 0,
    }
    return JobFacts(**(values | changes))  # type: ignore[arg-type]  # each as its field


RUNNING = job(101, "R", walltime_remaining=3538)
QUEUED = job(102, "Q", pending_reason="needs 8 GPUs; 3 are free")
COMPLETE = job(103, "C", exit_status=3, comp_time=at(2), cause="APP")
VIEW = View(server="hpcmaster", version="0.1.0", now=at(5), zone=UTC)


def test_plain_table_of_torque() -> None:
    assert plain([RUNNING, QUEUED, COMPLETE]) == (
        "Job ID                    Name             User            Time Use S Queue\n"
        "------------------------- ---------------- --------------- -------- - -----\n"
        "101.hpcmaster              bench101         ann             00:00:12 R batch          \n"
        "102.hpcmaster              bench102         ann                    0 Q batch          \n"
        "103.hpcmaster              bench103         ann             00:00:12 C batch          \n"
    )


def test_plain_table_of_openpbs_marks_cut_names_and_finished_jobs() -> None:
    long_name = job(7, "C", name="queued_job_with_long_name")
    assert plain([RUNNING, long_name], Personality.PBSPRO) == (
        "Job id            Name             User              Time Use S Queue\n"
        "----------------  ---------------- ----------------  -------- - -----\n"
        "101.hpcmaster     bench101         ann               00:00:12 R batch           \n"
        "7.hpcmaster       queued_job_with* ann               00:00:12 F batch           \n"
    )


def test_no_job_prints_nothing_at_all() -> None:
    assert plain([]) == ""
    assert alternate([], "hpcm") == ""


def test_long_names_keep_their_tail_in_torque() -> None:
    row = plain([job(1, "Q", name="parsl.torque.1772532000.1")]).splitlines()[2]
    assert row.split()[1] == "....1772532000.1"
    assert row.split()[4] == "Q"


def test_alternate_table_of_torque() -> None:
    header = " " * 82 + "Req'd       Req'd       Elap\n"
    assert alternate([RUNNING, QUEUED], "hpcmaster") == (
        "\nhpcmaster: \n"
        + header
        + "Job ID                  Username    Queue    Jobname          SessID  NDS   TSK   "
        "Memory      Time    S   Time\n"
        "----------------------- ----------- -------- ---------------- ------ ----- ------ --------- --------- "
        "- ---------\n"
        "101.hpcmaster           ann         batch    bench101           4711     2      4       1gb  01:00:00 "
        "R  00:01:02\n"
        "102.hpcmaster           ann         batch    bench102            --      2      4       1gb  01:00:00 "
        "Q       -- \n"
    )


def test_alternate_table_of_openpbs() -> None:
    big = job(142, "H", resource_list={"ncpus": "1000", "nodect": "1", "mem": "1500mb"})
    assert alternate([RUNNING, big], "pbs01", Personality.PBSPRO).splitlines()[-2:] == [
        "101.hpcmaster   ann      batch    bench101     4711   2   4    1gb 01:00 R 00:01",
        "142.hpcmaster   ann      batch    bench142      --    1 10*  1500m   --  H   -- ",
    ]


def test_nodes_and_comments_follow_each_row() -> None:
    lines = alternate([RUNNING, QUEUED], "s", with_nodes=True, with_comment=True).splitlines()[5:]
    assert lines[1:3] == ["   n01/0+n01/1+n02/0+n02/1", "    -- "]
    assert lines[4:] == ["    -- ", "   needs 8 GPUs; 3 are free"]


def test_nodes_on_the_same_line() -> None:
    lines = alternate([RUNNING, QUEUED], "s", with_nodes=True, one_line=True).splitlines()[5:]
    assert lines[0].endswith("R  00:01:02  n01/0+n01/1+n02/0+n02/1")
    assert lines[1].split()[-2:] == ["--", "--"]


def test_many_nodes_fold_after_a_plus_and_lose_their_domains() -> None:
    wide = job(1, "R", exec_host=tuple((f"gpu{n:03}.cluster.example", 1) for n in range(40)))
    lines = alternate([wide], "s", with_nodes=True).splitlines()[6:]
    assert len(lines) > 1
    assert max(map(len, lines)) <= 80
    joined = "".join(line.strip() for line in lines)
    assert joined == "+".join(f"gpu{n:03}/0" for n in range(40))


FULL_RUNNING = """\
Job Id: 101.hpcmaster
    Job_Name = bench101
    Job_Owner = ann@login1
    resources_used.cput = 00:00:12
    resources_used.mem = 10240kb
    resources_used.walltime = 00:01:02
    job_state = R
    queue = batch
    server = hpcmaster
    Checkpoint = u
    ctime = Tue Mar  3 10:00:00 2026
    Error_Path = login1:/home/ann/jobs/bench101.e101
    exec_host = n01/0+n01/1+n02/0+n02/1
    Hold_Types = n
    Join_Path = n
    Keep_Files = n
    Mail_Points = a
    mtime = Tue Mar  3 10:01:00 2026
    Output_Path = login1:/home/ann/jobs/bench101.o101
    Priority = 0
    qtime = Tue Mar  3 10:00:00 2026
    Rerunable = True
    Resource_List.mem = 1gb
    Resource_List.ncpus = 4
    Resource_List.nodect = 2
    Resource_List.nodes = 2:ppn=2
    Resource_List.walltime = 01:00:00
    session_id = 4711
    substate = 42
    Variable_List = PBS_O_QUEUE=batch,PBS_O_HOME=/home/ann,PBS_O_LOGNAME=ann,
\tPBS_O_PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin,
\tPBS_O_MAIL=/var/mail/ann,PBS_O_SHELL=/bin/bash,PBS_O_LANG=C.UTF-8,
\tPBS_O_WORKDIR=/home/ann/jobs,PBS_O_HOST=login1,PBS_O_SERVER=hpcmaster,
\tPBS_O_SYSTEM=Linux
    etime = Tue Mar  3 10:00:00 2026
    euser = ann
    egroup = users
    queue_type = E
    submit_args = job.sh
    start_time = Tue Mar  3 10:01:00 2026
    start_count = 1
    fault_tolerant = False
    job_radix = 0
    submit_host = login1
    init_work_dir = /home/ann/jobs
    Walltime.Remaining = 3538

"""


def test_full_text_of_torque() -> None:
    assert full([RUNNING], Personality.TORQUE, UTC, show_variables=True) == FULL_RUNNING


def test_one_line_differs_in_nothing_but_the_folds() -> None:
    unfolded = full([RUNNING], Personality.TORQUE, UTC, show_variables=True, one_line=True)
    assert unfolded == FULL_RUNNING.replace("\n\t", "")


def test_variables_and_words_are_for_those_who_may_see_them() -> None:
    text = full([RUNNING], Personality.TORQUE, UTC)
    assert "Variable_List" not in text
    assert "submit_args" not in text


def test_times_are_in_the_zone_of_the_client() -> None:
    text = full([RUNNING], Personality.TORQUE, timezone(timedelta(hours=-11)))
    assert "    ctime = Mon Mar  2 23:00:00 2026\n" in text


@pytest.mark.parametrize(
    ("personality", "state", "field", "start"),
    [
        (Personality.TORQUE, "C", "exit_status", "start_time"),
        (Personality.PBSPRO, "F", "Exit_status", "stime"),
    ],
)
def test_finished_jobs_in_each_personality(
    personality: Personality, state: str, field: str, start: str
) -> None:
    lines = full([COMPLETE], personality, UTC).splitlines()
    assert f"    job_state = {state}" in lines
    assert f"    {field} = 3" in lines
    assert f"    {start} = Tue Mar  3 10:01:00 2026" in lines


def test_exec_host_of_openpbs_counts_slots() -> None:
    assert "    exec_host = n01/0*2+n02/0*2\n" in full([RUNNING], Personality.PBSPRO, UTC)


def test_patterns_of_clients_find_their_neighbours() -> None:
    squeezed = re.sub(
        r"\s", "", full([RUNNING, QUEUED, COMPLETE], Personality.TORQUE, UTC, show_variables=True)
    )
    assert re.findall(r"Job_Name=(.*?)Job_Owner", squeezed) == ["bench101", "bench102", "bench103"]
    assert re.findall(r"job_state=(.*?)queue=", squeezed) == ["R", "Q", "C"]
    assert re.findall(r"PBS_O_WORKDIR=(.*?),PBS", squeezed) == ["/home/ann/jobs"] * 3


def test_line_breaks_in_values_do_not_break_the_lines() -> None:
    text = full([job(1, "Q", environment={"A": "x\ny"})], Personality.TORQUE, UTC, show_variables=True)
    assert "    Variable_List = A=x\\ny\n" in text


def test_gpus_show_torques_form_and_their_uuids() -> None:
    text = full([job(1, "R", exec_gpus=(("n01", "SIM-1", 0), ("n02", "SIM-2", 3)))], Personality.TORQUE, UTC)
    assert "    exec_gpus = n01-gpu/0+n02-gpu/3\n" in text
    assert "    exec_gpu_uuids = n01/SIM-1+n02/SIM-2\n" in text


def test_xml_is_one_line_with_nested_resources_and_epoch_times() -> None:
    text = jobs_xml([COMPLETE], show_variables=True)
    declaration, line = text.splitlines()
    assert declaration == '<?xml version="1.0"?>'
    assert line.startswith("<Data><Job><Job_Id>103.hpcmaster</Job_Id><Job_Name>bench103</Job_Name>")
    root = ElementTree.fromstring(text)
    assert root.findtext(".//job_state") == "C"
    assert root.findtext(".//exit_status") == "3"
    assert root.findtext(".//Resource_List/nodes") == "2:ppn=2"
    assert root.findtext(".//ctime") == str(int(at(0).timestamp()))


def test_xml_without_jobs_is_a_document() -> None:
    assert jobs_xml([]) == '<?xml version="1.0"?>\n<Data></Data>\n'


def test_xml_survives_any_text() -> None:
    text = jobs_xml([job(1, "Q", comment='a<b>&\x01\udc80\n"c"')])
    assert ElementTree.fromstring(text).findtext(".//comment") == 'a<b>&??\n"c"'


def test_json_has_jobs_always() -> None:
    empty = json.loads(render_jobs(parse_qstat(["-f", "-F", "json"]), [], VIEW))
    assert empty == {
        "timestamp": int(at(5).timestamp()),
        "pbs_version": "0.1.0",
        "pbs_server": "hpcmaster",
        "Jobs": {},
    }


def test_json_is_the_same_in_both_personalities() -> None:
    query = parse_qstat(["-x", "-f", "-Fjson", "103"])
    found = json.loads(render_jobs(query, [job(103, "C", exit_status=3, name="12345")], VIEW))["Jobs"][
        "103.hpcmaster"
    ]
    assert found["job_state"] == "F"
    assert found["Exit_status"] == 3
    assert found["Job_Name"] == "12345"
    assert found["Resource_List"]["ncpus"] == 4
    assert found["Resource_List"]["walltime"] == "01:00:00"
    assert found["Variable_List"]["PBS_O_WORKDIR"] == "/home/ann/jobs"


def test_dsv_escapes_its_delimiter() -> None:
    text = render_jobs(parse_qstat(["-f", "-F", "dsv"]), [job(1, "Q", comment="a|b")], VIEW)
    assert text.startswith("Job Id: 1.hpcmaster|Job_Name=bench1|Job_Owner=ann@login1|")
    assert "|comment=a\\|b|" in text
    assert text.count("\n") == 1


def test_array_parent_names_its_request() -> None:
    parent = job(5, "R", id="5[].hpcm", array=parse_array("0-9%2"))
    assert "    job_array_request = 0-9%2\n" in full([parent], Personality.TORQUE, UTC)
    assert "    job_state = B\n" in full([parent], Personality.PBSPRO, UTC)


def test_why_is_one_line_a_job() -> None:
    assert why([RUNNING, QUEUED, COMPLETE]) == (
        "101.hpcmaster R runs on n01, n02\n"
        "102.hpcmaster Q needs 8 GPUs; 3 are free\n"
        "103.hpcmaster C has ended with exit status 3, cause APP\n"
    )


def test_why_says_what_became_of_jobs_that_do_not_wait() -> None:
    unrun = job(104, "C", cause="DELETED", comment="can never start: afterok:1 cannot be: job 1 is unknown")
    begun = job(
        106, "R", id="106[].hpcmaster", pending_reason="the array's own limit: 2 of its elements at once"
    )
    assert why([begun]) == (
        "106[].hpcmaster R runs on n01, n02; what waits of it: the array's own limit: 2 of its elements at once\n"
    )
    assert why([unrun, job(105, "S")]) == (
        "104.hpcmaster C was deleted before it ran; can never start: afterok:1 cannot be: job 1 is unknown\n"
        "105.hpcmaster S is suspended; an operator lets it go on: qsig -s resume\n"
    )


BATCH = QueueFacts(
    name="batch",
    counts={"R": 2, "Q": 3, "C": 1},
    limits={"walltime": "24:00:00"},
    max_running=9,
    attributes={
        "queue_type": "Execution",
        "Priority": "5",
        "resources_max.walltime": "24:00:00",
        "ring": "check",
    },
)
ROUTE = QueueFacts(name="in", routes=True, attributes={"queue_type": "Route", "route_destinations": "batch"})


def test_queue_tables() -> None:
    assert queues([BATCH]) == (
        "Queue              Max    Tot   Ena   Str   Que   Run   Hld   Wat   Trn   Ext T   Cpt\n"
        "----------------   ---   ----    --    --   ---   ---   ---   ---   ---   --- -   ---\n"
        "batch                9      6   yes   yes     3     2     0     0     0     0 E     1\n"
    )
    assert queues([BATCH], Personality.PBSPRO).splitlines()[2] == (
        "batch                9     6 yes yes     3     2     0     0     0     0 Exe*"
    )


def test_queue_limits() -> None:
    assert queue_limits([BATCH], "hpcm") == (
        "\nserver: hpcm\n\n"
        "Queue            Memory CPU Time Walltime Node  Run Que Lm  State\n"
        "---------------- ------ -------- -------- ----  --- --- --  -----\n"
        "batch              --      --    24:00:00   --    2   3  9   E R\n"
        "                                               ----- -----\n"
        "                                                   2     3\n"
    )


def test_server_table() -> None:
    server = ServerFacts(name="hpcm", counts={"R": 2, "Q": 1, "C": 4})
    assert server_table(server).splitlines()[2] == (
        "hpcm                 0     7     1     2     0     0     0     0     4 Active    "
    )
    assert render_server(parse_qstat(["-B", "-f"]), server, VIEW).startswith(
        "Server: hpcm\n    server_state = Active\n    total_jobs = 7\n"
    )


def test_full_queues() -> None:
    text = render_queues(parse_qstat(["-Q", "-f"]), [BATCH], VIEW)
    assert text.startswith(
        "Queue: batch\n    queue_type = Execution\n    Priority = 5\n    total_jobs = 6\n    state_count = "
    )
    assert text.endswith(
        "    resources_max.walltime = 24:00:00\n    ring = check\n    enabled = True\n    started = True\n\n"
    )
    assert queues([ROUTE]).splitlines()[2].split()[-2:] == ["R", "0"]
    assert queues([ROUTE], Personality.PBSPRO).splitlines()[2].endswith("Rou*")
    assert "    queue_type = Route\n" in render_queues(parse_qstat(["-Qf"]), [ROUTE], VIEW)


GPUS = (
    GpuFacts(index=0, uuid="SIM-aa", model="Simulated", state="allocated", simulated=True, job_id="1.hpcm"),
    GpuFacts(
        index=1,
        uuid="GPU-bb",
        model="H200, 141GB",
        state="free",
        memory=141 << 30,
        numa=1,
        nvlink_island=0,
        figures={
            "memory_used": 3 << 30,
            "utilization": 97.0,
            "temperature": 61.0,
            "power": 512.4,
            "rows_failed": 0,
        },
    ),
)
NODE = NodeFacts(
    name="n01",
    state=frozenset({"job-exclusive"}),
    np=2,
    features=("fast", "nvlink"),
    jobs=((0, "1.hpcm"), (1, "1.hpcm")),
    gpus=GPUS,
    memory_total=8 << 30,
    memory_available=6 << 30,
    load_average=0.5,
    rectime=at(0),
    declared=True,
)
DOWN = NodeFacts(name="n02", state=frozenset({"offline", "down"}), note="disk\nfailed")


def test_pbsnodes_of_torque() -> None:
    assert nodes_text([NODE]) == (
        "n01\n"
        "     state = job-exclusive\n"
        "     power_state = Running\n"
        "     np = 2\n"
        "     properties = fast,nvlink\n"
        "     ntype = cluster\n"
        "     jobs = 0/1.hpcm,1/1.hpcm\n"
        f"     status = rectime={int(at(0).timestamp())},state=free,loadave=0.50,ncpus=2,physmem=8388608kb,"
        "availmem=6291456kb,totmem=8388608kb,opsys=linux,declared=true\n"
        "     gpus = 2\n"
        "     gpu_status = gpu[0]=gpu_id=SIM-aa;gpu_product_name=Simulated;gpu_state=Exclusive;job=1.hpcm;"
        "simulated=true,gpu[1]=gpu_id=GPU-bb;gpu_product_name=H200  141GB;gpu_state=Unallocated;"
        "gpu_numa_node=1;gpu_nvlink_island=0;gpu_memory_total=144384MB;gpu_memory_used=3072MB;gpu_utilization=97%;gpu_temperature=61C;gpu_power=512W\n"
        "\n"
    )


def test_pbsnodes_of_openpbs_has_what_clients_grep() -> None:
    text = nodes_text([NODE], Personality.PBSPRO)
    assert "     Mom = n01\n" in text
    assert "     resources_available.ncpus = 2\n" in text
    assert "     jobs = 1.hpcm/0, 1.hpcm/1\n" in text
    assert text.endswith("\n\n")


def test_pbsnodes_dsv_is_a_line_for_each_node() -> None:
    lines = render_nodes(parse_pbsnodes(["-a", "-F", "dsv"]), [NODE, DOWN], VIEW).splitlines()
    assert lines[0].startswith("Name=n01|Mom=n01|ntype=PBS|state=")
    assert "|resources_available.host=n01|" in lines[0]
    jobs = ",".join(f"{job}/{slot}" for slot, job in NODE.jobs)
    assert f"|jobs={jobs}|" in lines[0]
    assert "|comment=disk failed" in lines[1]
    other = render_nodes(parse_pbsnodes(["-F", "dsv", "-D", "="]), [DOWN], VIEW)
    assert other.startswith("Name=n02=Mom=n02=")


def test_pbsnodes_list_names_the_unusable_nodes() -> None:
    assert nodes_list([NODE, DOWN]) == "n02                  down,offline\n"
    assert nodes_list([NODE, DOWN], frozenset({"all"})).count("\n") == 2
    assert nodes_list([NODE, DOWN], frozenset({"active"})) == "n01                  job-exclusive\n"
    assert render_nodes(parse_pbsnodes(["-l", "-n"]), [NODE, DOWN], VIEW) == (
        "n02                  down,offline               disk\nfailed\n".replace("\nf", " f")
    )


def test_pbsnodes_json_serves_both_readers() -> None:
    found = json.loads(nodes_json([NODE], now=at(5), version="0.1.0", server="hpcm"))["nodes"]["n01"]
    assert (found["state"], found["State"]) == ("job-exclusive", "job-exclusive")
    assert found["ncpus f/t"] == "0/2"
    assert found["ngpus f/t"] == "1/2"
    assert found["jobs"] == ["1.hpcm"]
    assert [gpu["simulated"] for gpu in found["gpus"]] == [True, False]
    assert [(gpu.get("numa_node"), gpu.get("nvlink_island")) for gpu in found["gpus"]] == [
        (None, None),
        (1, 0),
    ]


def test_pbsnodes_xml() -> None:
    root = ElementTree.fromstring(nodes_xml([NODE]))
    assert root.findtext("Node/name") == "n01"
    assert root.findtext("Node/np") == "2"
    assert root.findtext("Node/jobs") == "0/1.hpcm,1/1.hpcm"
