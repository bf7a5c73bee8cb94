"""Options that PBS clients pass, one line each: all are taken, answered on stdout, and nothing comes on stderr.

Numbers are those of the list of what clients need: submission (2 to 6), qstat (7), nodes (12), tracejob (13),
administration (14), Moab and Maui (15).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from tests.e2e.cluster_kit import LiveCluster

pytestmark = pytest.mark.full
SCRIPT = "\n#!/bin/bash\n#PBS -l walltime=60\ntrue\n"  # an empty first line, as some clients write it
SUBMIT = [
    "-l walltime=60,mem=10mb -l nodes=1:ppn=1",
    "-lwalltime=00:01:00 -lnodes=1:ppn=1",
    "-l nodes=1:ppn=2:gpus=1,walltime=1:5:0",
    "-l nodes=node1:ppn=1+node2:ppn=1",
    "-l procs=3",
    "-l ncpus=1 -l wd -l mem=1GB",
    "-l select=1:ncpus=1:mem=104857600 -l place=free",
    "-l select=2:ncpus=1:mpiprocs=1:ngpus=1 -l place=scatter",
    "-l nodes=1,pmem=10mb,vmem=500mb,pvmem=500mb,cput=60,file=1gb,nice=5,naccesspolicy=singleuser",
    "-l nodes=1 -l gres=x -l qos=high -l software=a -l arch=x86 -l other=y",
    "-l mem=1B", "-l mem=13kB", "-l mem=1024K", "-l mem=500M", "-l mem=2048kb",
    "-W umask=022 -W x=NACCESSPOLICY:SINGLEJOB",
    "-W depend=on:1", "-a 209912312359", "-a 203012312359.30", "-A acc -P proj", "-N " + "n" * 200,
    "-N parsl.torque.1772532000.1", "-q batch@hpcm", "-q @", "-S /bin/bash", "-V", "-v A,B=c", "-v A=b,C='d e'",
    "-j oe", "-j eo", "-j n", "-k oe", "-k n", "-k doe", "-o /dev/null -e /dev/null", "-o out/ -e err/",
    "-o out.$PBS_JOBID", "-o out.^array_index^ -J 1-2", "-m n", "-m abe -M a@b.c,d", "-p -1024", "-p 1023",
    "-r y", "-r n", "-c n", "-c enabled", "-c s", "-d /tmp", "-w /tmp", "-F 'a b'", "-z", "-f", "-n",
    "-t 0-2%1", "-t 1,3,5-6", "-J 0-8:2", "-W umask=27,x=a", "-C '#PBX'", "-L x=1",
]  # fmt: skip
ASK = [
    "qstat", "qstat {job}", "qstat {bare}",
    "qstat -f {job}", "qstat -f -1 {job}", "qstat -f1 {job}", "qstat -f -x {job}",
    "qstat -xf {job}", "qstat -x", "qstat -a", "qstat -i",
    "qstat -r", "qstat -n", "qstat -n -1", "qstat -s", "qstat -t",
    "qstat -u {user}", "qstat -a -u {user}", "qstat -e", "qstat -l {job}",
    "qstat -Q", "qstat -Q -f", "qstat -q", "qstat -B",
    "qstat -B -f", "qstat batch", "qstat @hpcm",
    "qstat -f -F json", "qstat -F json -f {job}", "qstat {job} {job} -f -F json",
    "qstat -f -F dsv", "qstat -G", "qstat -M", "qstat -x -f -F json {job}", "qstat -w", "qstat -H",
    "qselect -u {user}", "qselect -u {user},root -s QH", "qselect -N held", "qselect -q batch", "qselect -s H -T",
    "qselect -x", "qselect -l nodes=1", "qselect -p.gt.-5",
    "qselect -a.gt.202001010000", "qselect -P proj", "qselect -A acc",
    "pbsnodes", "pbsnodes -a", "pbsnodes -x",
    "pbsnodes -l all", "pbsnodes -l free", "pbsnodes -n -l all", "pbsnodes node1",
    "pbsnodes -s hpcm -a", "pbsnodes -q", "pbsnodes -a -F json",
    "pbsnodes -aSj", "pbsnodes -aSj -F json", "pbsnodes -v node1",
    "pbsnodes -L -a", "pbsnodes -H node1", "qnodes -x", "qnodes -a",
    "tracejob {job}", "tracejob -q {bare}", "tracejob -n 2 {job}", "tracejob -v {job}", "tracejob -a -s -l -m {job}",
    "tracejob -m -l -a -n 1 {job}", "tracejob -z {job}", "tracejob -w 80 {job}", "tracejob -p /var/spool/torque {job}",
    "tracejob -f job -c 5 {job}",
    "qmgr -c 'list server'", "qmgr -c 'list server pbs_version'",
    "qmgr -c 'print server'", "qmgr -c 'list queue batch'",
    "qmgr -c 'list node node1'", "qmgr -c 'p s'", "qmgr -c 'l q @hpcm'", "qmgr -a -c 'l s'",
    "showq", "showq -w user={user}", "showq --xml",
    "showq --xml -w user={user}", "checkjob {job}", "checkjob -v {bare}",
    "mdiag -j {job} --xml", "showstart {job}",
]  # fmt: skip


@pytest.fixture(scope="module")
def held(shared_cluster: LiveCluster) -> Iterator[str]:
    """A job that waits, of which to ask."""
    job = shared_cluster.qsub(SCRIPT, "-h", "-N", "held", "-A", "acc", "-P", "proj")
    yield job
    shared_cluster.run("qdel", job)


@pytest.mark.parametrize("words", SUBMIT)
@pytest.mark.parametrize("personality", ["torque", "pbspro"])
def test_submissions_are_taken(cluster: LiveCluster, personality: str, words: str) -> None:
    path = f"{cluster.state}/bin/{personality}:{cluster.environ['PATH']}"
    environ = {"PATH": path, "A": "1"}
    done = cluster.run("qsub", "-h", *shlex.split(words), stdin=SCRIPT, environ=environ)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert len(done.stdout.splitlines()) == (0 if "-z" in words else 1)
    if job := done.stdout.strip():
        shown = cluster.run("qstat", "-f", "-F", "json", job, environ=environ, check=True)
        assert list(json.loads(shown.stdout)["Jobs"])
        assert len(job) <= 15
    cluster.run("qdel", "all", check=True)


@pytest.mark.parametrize("words", ASK)
def test_questions_are_answered(cluster: LiveCluster, held: str, words: str) -> None:
    values = {"job": held, "bare": held.split(".")[0], "user": cluster.user or "root"}
    argv = shlex.split(words.format(**values))
    done = cluster.run(*argv)
    assert (done.returncode, done.stderr) == (0, ""), done
    if "-F json" in words:
        assert json.loads(done.stdout)
    elif "xml" in words or words in ("pbsnodes -x", "qnodes -x", "qstat -x"):
        assert ElementTree.fromstring(done.stdout) is not None
