"""The twenty points of what clients need, one test for each; what has a file of its own is only touched here."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.e2e.cluster_kit import LiveCluster, wait_until

pytestmark = pytest.mark.full
TRUE = "#!/bin/sh\ntrue\n"
LONG = "#!/bin/sh\nexec sleep 1000\n"


def pro(cluster: LiveCluster) -> dict[str, str]:
    return {"PATH": cluster.environ["PATH"].replace("/bin/torque:", "/bin/pbspro:")}


def silent(
    cluster: LiveCluster, *words: str, user: str | None = None, environ: dict[str, str] | None = None
) -> str:
    """What a command that has to succeed prints; nothing on stderr."""
    done = cluster.run(*words, user=user, environ=environ)
    assert (done.returncode, done.stderr) == (0, ""), (words, done.stdout, done.stderr)
    return done.stdout


def number(job: str) -> str:
    return job.partition(".")[0]


def test_01_two_personalities_by_path_or_variable_and_one_json(cluster: LiveCluster) -> None:
    job = cluster.qsub(TRUE, "-h")
    torque = json.loads(silent(cluster, "qstat", "-f", "-F", "json", job))
    openpbs = json.loads(silent(cluster, "qstat", "-f", "-F", "json", job, environ=pro(cluster)))
    for found in (torque, openpbs):
        found.pop("timestamp")
    assert torque == openpbs
    assert silent(cluster, "qstat", "-B") != silent(cluster, "qstat", "-B", environ=pro(cluster))
    by_variable = silent(cluster, "hpcmesos", "qstat", "-B", environ={"HPCMESOS_PERSONALITY": "pbspro"})
    assert by_variable == silent(cluster, "qstat", "-B", environ=pro(cluster))
    silent(cluster, "qdel", job)


def test_02_qsub_takes_options_anywhere_and_says_one_line(cluster: LiveCluster) -> None:
    script = cluster.work() / "s02.sh"
    script.write_text("#!/bin/sh\ncat data02\n")
    (cluster.work() / "data02").write_text("kept")
    job = silent(cluster, "qsub", str(script), "-h", "-N", "permuted", "-lnodes=1:ppn=1").strip()
    script.write_text("#!/bin/sh\nexit 9\n")  # spooled when it was submitted
    silent(cluster, "qrls", job)
    assert cluster.wait(job)["Exit_status"] != 9
    assert cluster.run("qsub", "-Q").returncode == 2
    refused = cluster.run("qsub", "-l", "nodes=1:ppn=100000", stdin=TRUE)
    assert (refused.stdout, len(refused.stderr.splitlines())) == ("", 1)
    assert refused.returncode > 2
    assert cluster.wait(cluster.qsub(TRUE, "-"))["Exit_status"] == 0
    assert cluster.wait(cluster.run("qsub", "--", "/bin/true", check=True).stdout.strip())["Exit_status"] == 0


def test_03_directives(cluster: LiveCluster) -> None:
    script = (
        "\n#!/bin/sh\n#PBS -N first -l walltime=100\n#PBS -N second\n#PBS -l walltime=200,mem=10mb\n"
        "#PBS -v 'A=one two'\n#XYZ -p 7\ntrue\n#PBS -p 9\n"
    )
    shown = cluster.job(cluster.qsub(script, "-h", "-l", "mem=20mb"))
    assert (shown["Resource_List"]["mem"], shown["Resource_List"]["walltime"]) == ("20mb", "00:01:40")
    assert (shown["Priority"], shown["Variable_List"]["A"]) == (0, "one two")
    other = cluster.job(cluster.qsub(script, "-h", "-C", "#XYZ"))
    assert (other["Priority"], other["Job_Name"]) == (7, "STDIN")
    silent(cluster, "qdel", "all")


@pytest.mark.parametrize(
    ("words", "cpus"),
    [
        ("nodes=2:ppn=2", 4), ("nodes=node1:ppn=1+node2:ppn=1", 2), ("procs=3", 3), ("ncpus=2", 2),
        ("select=2:ncpus=1:mem=1K", 2), ("nodes=1,pmem=1mb,vmem=1gb,pvmem=1gb,naccesspolicy=shared", 1),
        ("nodes=1,walltime=1:2:3:4", 1), ("nodes=1,walltime=90", 1), ("size=8,mppwidth=4", 1),
    ],
)  # fmt: skip
def test_04_resources(cluster: LiveCluster, words: str, cpus: int) -> None:
    dry = silent(cluster, "qsub", "--dry-run", "-l", words, "--", "true")
    total = next(line for line in dry.splitlines() if line.startswith("total"))
    assert f" {cpus} CPU" in total


def test_05_all_of_qsubs_options(cluster: LiveCluster) -> None:
    me, group = cluster.user or "root", silent(cluster, "id", "-gn").strip()
    words = (
        f"-h -a 209912312359 -A acc -P proj -q batch -S /bin/sh -v A=1 -j oe -k doe -o out05 -e err05 -m n -M a@b -p 5"
        f" -r n -c n -d /tmp -u {me} -R oe -n -f -W group_list={group},umask=022,x=advres:r,depend=on:1 -V -F 'a b' -z"
    )
    assert silent(cluster, "qsub", *shlex.split(words), str(script_of(cluster))) == ""
    job = silent(cluster, "qsub", *shlex.split(words.removesuffix(" -z")), str(script_of(cluster))).strip()
    shown = cluster.job(job)
    assert (shown["Account_Name"], shown["project"], shown["Priority"]) == ("acc", "proj", 5)
    assert (shown["Join_Path"], shown["Rerunable"], shown["Mail_Points"]) == ("oe", "False", "n")
    silent(cluster, "qdel", "all")


def script_of(cluster: LiveCluster) -> Path:
    path = cluster.work() / "true.sh"
    path.write_text(TRUE)
    return path


def test_06_arrays_by_both_flags_and_an_element_once_more(cluster: LiveCluster) -> None:
    script = "#!/bin/sh\necho $PBS_ARRAYID $PBS_ARRAY_INDEX $PBS_JOBID\n[ $PBS_ARRAYID = 2 ] && exec sleep 1000\ntrue\n"
    array = cluster.qsub(script, "-t", "1-3%2", "-N", "six")
    seq = array.partition("[")[0]
    assert array == f"{seq}[].hpcm"
    element = f"{seq}[2].hpcm"
    written = cluster.work() / f"six.o{seq}-2"
    wait_until(lambda: written.exists() and written.read_text(), "the element runs")
    with cluster.client() as client:
        silent(cluster, "qrerun", element, user="")
        wait_until(lambda: written.read_text().count("\n") == 2, "the element runs again")
        assert len(client.job(element).attempts) == 2
        assert len(client.job(f"{seq}[1].hpcm").attempts) == 1  # the others were left alone
    silent(cluster, "qdel", element)
    cluster.wait(array)
    assert (cluster.work() / f"six.o{seq}-1").read_text() == f"1 1 {seq}[1].hpcm\n"
    other = silent(cluster, "qsub", "-J", "1-2", "-N", "six", "--", "/bin/true", environ=pro(cluster)).strip()
    cluster.wait(other)
    wait_until((cluster.work() / f"six.o{other.partition('[')[0]}.1").exists, "the file of an element")


def test_07_qstat_lists_what_is_asked_for_and_folds(cluster: LiveCluster) -> None:
    job = cluster.qsub(TRUE, "-h", "-v", "LONG=" + "x" * 300)
    mixed = cluster.run("qstat", job, "999999")
    assert (mixed.returncode, len(mixed.stdout.splitlines())) == (153, 3)
    assert "Unknown Job Id" in mixed.stderr
    full = silent(cluster, "qstat", "-f", job)
    assert full.startswith(f"Job Id: {job}\n    Job_Name = ")
    assert re.search(r"\n\t\S", full)
    assert full.endswith("\n\n")
    for name in ("Resource_List.nodect", "PBS_O_WORKDIR"):
        assert name in full.replace("\n\t", "")
    xml = silent(cluster, "qstat", "-x", job)
    declaration, line = xml.strip().splitlines()
    assert declaration == '<?xml version="1.0"?>'
    assert ElementTree.fromstring(line).findtext("Job/ctime", "").isdigit()
    silent(cluster, "qdel", job)
    assert "Jobs" in json.loads(silent(cluster, "qstat", "-f", "-F", "json"))


def test_08_finished_jobs(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\nexit 3\n")
    cluster.wait(job)
    assert "exit_status = 3" in silent(cluster, "qstat", "-f", job)
    assert silent(cluster, "qstat", job).splitlines()[2].split()[4] == "C"
    hidden = cluster.run("qstat", job, environ=pro(cluster))
    assert (hidden.returncode, "Job has finished" in hidden.stderr) == (35, True)
    assert "Exit_status = 3" in silent(cluster, "qstat", "-xf", job, environ=pro(cluster))
    unknown = cluster.run("qstat", "999999")
    assert (unknown.returncode, "Unknown Job Id" in unknown.stderr) == (153, True)


def test_09_qdel(cluster: LiveCluster) -> None:
    job = cluster.qsub(LONG)
    cluster.wait_state(job, "R")
    assert silent(cluster, "qdel", number(job)) == ""
    assert cluster.wait(job)["Exit_status"] in (143, 271)
    forced = cluster.qsub("#!/bin/sh\ntrap '' TERM\ntouch up09\nwhile :; do sleep 0.1; done\n", "-d", ".")
    wait_until((cluster.work() / "up09").exists, "it runs")
    silent(cluster, "qdel", "-W", "force", forced)
    assert cluster.wait(forced, 9)["Exit_status"] in (265, 271)  # sooner than kill_delay
    assert cluster.run("qdel", "999999").returncode == 153
    over = cluster.run("qdel", job)
    assert over.returncode != 0
    assert over.stderr.startswith("qdel: ")
    waiting = cluster.qsub(TRUE, "-h")
    silent(cluster, "qdel", waiting)
    assert "Exit_status" not in cluster.wait(waiting)
    for words in ("-W 0", "-W force", "-p", "-x", "-m text"):
        job = cluster.qsub(TRUE, "-h")
        silent(cluster, "qdel", *words.split(maxsplit=1), job, user="" if words == "-p" else None)


def test_10_signals_holds_and_changes(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\ntrap 'exit 7' USR1\ntouch up10\nwhile :; do sleep 0.1; done\n", "-d", ".")
    wait_until((cluster.work() / "up10").exists, "it runs")
    silent(cluster, "qsig", "-s", "suspend", job, user="")
    assert cluster.wait_state(job, "S")
    silent(cluster, "qsig", "-s", "resume", job, user="")
    cluster.wait_state(job, "R")
    silent(cluster, "qmsg", "-O", "hello", job)
    silent(cluster, "qsig", "-s", "SIGUSR1", number(job))
    assert cluster.wait(job)["Exit_status"] == 7
    one, two = cluster.qsub(TRUE, "-h"), cluster.qsub(TRUE, "-h")
    silent(cluster, "qhold", "-h", "o", one, user="")
    silent(cluster, "qrls", "-h", "uo", one, user="")
    silent(cluster, "qalter", "-N", "changed", two)
    assert cluster.job(two)["Job_Name"] == "changed"
    silent(cluster, "qmove", "batch", two)
    silent(cluster, "qrun", "-H", "node1", two, user="")
    assert cluster.wait(two)["exec_host"].startswith("node1/")
    blocker = cluster.qsub(LONG, "-l", "nodes=1:gpus=1")
    cluster.wait_state(blocker, "R")
    first, second = (cluster.qsub(TRUE, "-l", "nodes=4:gpus=4") for _ in range(2))
    silent(cluster, "qorder", first, second)
    silent(cluster, "qdel", first, second, blocker)


def test_11_qselect(cluster: LiveCluster) -> None:
    job = cluster.qsub(TRUE, "-h", "-N", "eleven", "-A", "acc11", "-p", "3", "-l", "walltime=60")
    me = cluster.user or "root"
    for words in (
        f"-u {me},root -s H", "-N eleven", "-A acc11", "-p.gt.2 -N eleven", "-q batch -N eleven",
        "-l walltime=60 -N eleven", "-h u -N eleven", "-r y -N eleven", "-H -N eleven", "-x -N eleven",
    ):  # fmt: skip
        assert job in silent(cluster, "qselect", *words.split()).split(), words
    silent(cluster, "qdel", job)


def test_12_pbsnodes(cluster: LiveCluster) -> None:
    job = cluster.qsub(LONG, "-l", "nodes=node1:ppn=1:gpus=1")
    cluster.wait_state(job, "R")
    text = silent(cluster, "pbsnodes", "node1")
    assert re.search(rf"\n     jobs = \d+/{re.escape(job)}", text)
    for field in ("state = ", "np = ", "status = rectime="):
        assert f"     {field}" in text
    node = ElementTree.fromstring(silent(cluster, "qnodes", "-x", "node1")).find("Node")
    assert node is not None
    assert node.findtext("name") == "node1"
    found = json.loads(silent(cluster, "pbsnodes", "-aSj", "-F", "json"))["nodes"]["node1"]
    assert found["state"] == found["State"]
    assert re.fullmatch(r"\d+/\d+", found["ncpus f/t"])
    dsv = silent(cluster, "pbsnodes", "-a", "-F", "dsv").splitlines()
    assert len(dsv) == 4
    assert dsv[0].startswith("Name=node1|Mom=node1|ntype=PBS|state=")
    silent(cluster, "pbsnodes", "-o", "-N", "why", "node4", user="")
    assert silent(cluster, "pbsnodes", "-l", "-n").split() == ["node4", "offline", "why"]
    silent(cluster, "pbsnodes", "-c", "-N", "", "node4", user="")
    silent(cluster, "qdel", job)


def test_13_tracejob_speaks_from_the_submission_on(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\nexit 4\n", "-h")
    assert silent(cluster, "tracejob", "-q", job).strip()
    silent(cluster, "qrls", job)
    cluster.wait(job)
    text = silent(cluster, "tracejob", "-v", job)
    assert "Exit_status=4" in text
    assert re.search(r"dequeuing from \S+, state COMPLETE", text)


def test_14_qmgr(cluster: LiveCluster) -> None:
    assert "pbs_version" in silent(cluster, "qmgr", "-c", "list server")
    for line in ("create queue q14 queue_type=e", "set queue q14 enabled=true", "unset queue q14 enabled"):
        silent(cluster, "qmgr", "-c", line, user="")
    for word in ("qenable", "qstart", "qdisable", "qstop"):
        silent(cluster, word, "q14", user="")
    assert "create queue q14" in silent(cluster, "qmgr", "-c", "print queue q14")
    silent(cluster, "qmgr", "-c", "delete queue q14", user="")
    assert "node1" in silent(cluster, "qmgr", "-c", "list node node1")


def test_15_moab_maui_and_pbsdsh(cluster: LiveCluster) -> None:
    script = cluster.work() / "s15.sh"
    script.write_text(TRUE)
    job = silent(cluster, "msub", str(script), "-h").split()[-1]
    assert job in silent(cluster, "checkjob", job) or number(job) in silent(cluster, "checkjob", job)
    assert ElementTree.fromstring(silent(cluster, "showq", "--xml")).tag == "Data"
    assert ElementTree.fromstring(silent(cluster, "mdiag", "-j", job, "--xml")).tag == "Data"
    silent(cluster, "canceljob", job)
    other = silent(cluster, "msub", str(script), "-h").split()[-1]
    silent(cluster, "mjobctl", "-c", other)
    dsh = cluster.qsub(
        "#!/bin/sh\npbsdsh -u sh -c 'echo $HPCMESOS_NODE'\npbsdsh -n 1 echo one\npbsdsh -h $HPCMESOS_NODE echo two\n",
        "-l", "nodes=2:ppn=2",
    )  # fmt: skip
    assert cluster.wait(dsh)["Exit_status"] == 0
    lines = cluster.output(dsh).split()
    assert len(set(lines[:2])) == 2
    assert lines[2:] == ["one", "two"]


def test_16_the_jobs_environment(cluster: LiveCluster) -> None:
    job = cluster.qsub(
        "#!/bin/sh\nenv\necho CWD=$(pwd)\necho LINES=$(wc -l <$PBS_NODEFILE) $(wc -l <$PBS_GPUFILE)\n",
        "-l", "nodes=2:ppn=2:gpus=1,walltime=60",
    )  # fmt: skip
    cluster.wait(job)
    found = dict(line.partition("=")[::2] for line in cluster.output(job).splitlines() if "=" in line)
    assert found["PBS_JOBID"] == job
    assert found["CWD"] == os.path.realpath(found["HOME"])
    assert found["LINES"] == "4 2"
    for name in [
        "PBS_ENVIRONMENT",
        "PBS_JOBNAME",
        "PBS_QUEUE",
        "PBS_O_HOST",
        "PBS_O_HOME",
        "PBS_O_LOGNAME",
        "PBS_O_PATH",
        "PBS_O_QUEUE",
        "PBS_O_SHELL",
        "PBS_O_WORKDIR",
        "PBS_NODENUM",
        "PBS_TASKNUM",
        "PBS_VNODENUM",
        "PBS_NUM_NODES",
        "PBS_NUM_PPN",
        "PBS_NP",
        "PBS_JOBCOOKIE",
        "PBS_MOMPORT",
        "PBS_VERSION",
        "PBS_SERVER",
        "PBS_WALLTIME",
        "PBS_JOBDIR",
        "TMPDIR",
        "CUDA_VISIBLE_DEVICES",
        "NCPUS",
    ]:
        assert found.get(name), name


def test_17_both_files_are_there_when_the_job_is_over(cluster: LiveCluster) -> None:
    for _ in range(5):
        job = cluster.qsub("#!/bin/sh\numask\n")
        cluster.wait(job)
        assert cluster.output(job).strip() == "0077"
        assert cluster.output(job, kind="e") == ""
        assert (cluster.work() / f"STDIN.e{number(job)}").stat().st_mode & 0o777 == 0o600


def test_18_accounting_lines(cluster: LiveCluster) -> None:
    job = cluster.qsub("#!/bin/sh\nexit 2\n", "-N", "acct")
    cluster.wait(job)
    directory = cluster.state / "master" / "accounting"
    if not directory.is_dir():
        directory = next(cluster.state.rglob("accounting"))

    def records() -> dict[str, str]:
        lines = [line for path in Path(directory).iterdir() for line in path.read_text().splitlines()]
        return {line.split(";")[1]: line for line in lines if line.split(";")[2] == job}

    wait_until(lambda: {"Q", "S", "E"} <= set(records()), "Q, S and E")
    assert re.match(r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d;E;", records()["E"])
    for word in (
        "user=",
        "jobname=acct",
        "queue=batch",
        "exec_host=",
        "Exit_status=2",
        "resources_used.walltime=",
    ):
        assert word in records()["E"]


def test_19_short_ids_quiet_commands_and_quick_answers(cluster: LiveCluster) -> None:
    job = cluster.qsub(TRUE, "-h")
    assert len(job) <= 15
    assert len(silent(cluster, "qstat", job).splitlines()[2].split()) == 6
    began = time.monotonic()
    for _ in range(10):
        silent(cluster, "qstat", job)
    assert time.monotonic() - began < 20
    silent(cluster, "qdel", job)


def test_20_whoever_links_a_library_is_told_what_there_is(cluster: LiveCluster) -> None:
    """Out of the command line's reach: no libtorque is served, and the page says so; programs have the HTTP API."""
    page = (Path(__file__).parents[2] / "docs" / "pbs.md").read_text()
    assert "libtorque" in page
    with cluster.client() as client:
        assert isinstance(client.jobs(), list)
