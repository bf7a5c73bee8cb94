"""qsub's words, directives and resources."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hpcmesos.errors import BadDependency, InvalidScript, InvalidValue, UsageError
from hpcmesos.model import Chunk, Placement
from hpcmesos.pbs import resources
from hpcmesos.pbs.arrays import parse_array
from hpcmesos.pbs.directives import check_script, scan
from hpcmesos.pbs.option_table import COMMANDS
from hpcmesos.pbs.options import help_text, parse
from hpcmesos.pbs.submission import (
    MAX_SCRIPT_BYTES,
    Submission,
    SubmitContext,
    build_submission,
    environment_names,
    needs,
)
from hpcmesos.pbs.values import parse_execution_time

CONTEXT = SubmitContext(
    cwd="/home/ann/jobs",
    umask=0o022,
    host="login1",
    user="ann",
    home="/home/ann",
    environ={"PATH": "/bin", "SHELL": "/bin/bash", "FOO": "from here", "SECRET": "x"},
    server="hpcm",
    now=datetime(2026, 1, 31, 12, 0, tzinfo=UTC),
)


def submit(*argv: str, script: str | None = "echo\n") -> Submission:
    return build_submission(argv, script, CONTEXT)


def chunks(text: str) -> tuple[Chunk, ...]:
    return resources.build(resources.collect([text])).request.chunks


# Words


def test_options_may_follow_operands_and_be_clustered() -> None:
    parsed = parse("qstat", ["12", "-fx", "13", "-Fjson", "--why"])
    assert parsed.options == (("f", None), ("x", None), ("F", "json"), ("why", None))
    assert parsed.operands == ("12", "13")
    assert parsed.rest is None


def test_words_after_two_dashes_are_left_alone() -> None:
    parsed = parse("qsub", ["-N", "x", "--", "prog", "-l", "--"])
    assert parsed.options == (("N", "x"),)
    assert parsed.rest == ("prog", "-l", "--")


def test_an_argument_may_look_like_an_option() -> None:
    assert parse("qsub", ["-p", "-5", "-lwalltime=1", "-wd", "/tmp"]).options == (
        ("p", "-5"),
        ("l", "walltime=1"),
        ("w", "/tmp"),
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-Y"], "invalid option -- 'Y'; see qsub --help"),
        (["-N"], "option requires an argument -- 'N'; see qsub --help"),
        (["--nope"], "unrecognized option '--nope'; see qsub --help"),
        (["--help=1"], "option '--help' takes no argument"),
    ],
)
def test_usage_errors_name_the_word(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse("qsub", argv)
    assert str(caught.value) == message


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_without_doubles(command: str) -> None:
    names = [option.name for option in COMMANDS[command].options]
    assert len(names) == len(set(names))
    assert help_text(command).startswith(f"usage: {command} [options]")


# Directives


def test_scan_follows_the_rules_of_torque() -> None:
    script = (
        "\n#!/bin/sh\n#\n# comment\n  #PBS -N 'x y' # it's a comment\n: colon\n"
        '#PBS -c "n" -W depend="afterok:1"\n#PBSPRO -N no\n#pbs -N no\n'
        "#PBS -l nodes=2 \\\n#PBS -j oe\n\necho\n#PBS -N late\n"
    )
    assert scan(script) == (
        *("-N", "x y", "-c", "n", "-W", 'depend="afterok:1"'),
        *("-l", "nodes=2", "-j", "oe"),
    )


def test_other_prefixes() -> None:
    script = "#XX -N a\n#PBS -N b\n"
    assert scan(script, "#XX") == ("-N", "a")
    assert scan(script, "") == ()


def test_dos_line_ends_are_refused_with_the_line() -> None:
    with pytest.raises(InvalidScript, match="line 2 has a DOS line end"):
        scan("#!/bin/sh\n#PBS -N x\r\n")


def test_check_script_tells_what_is_wrong() -> None:
    assert check_script(b"echo \xff\n").encode("utf-8", "surrogateescape") == b"echo \xff\n"
    with pytest.raises(InvalidScript, match="NUL byte in line 2"):
        check_script(b"echo\nx\0")
    with pytest.raises(InvalidScript, match="larger than 1 MiB"):
        check_script(b"#" * (MAX_SCRIPT_BYTES + 1))


def test_a_wrong_directive_names_its_line() -> None:
    with pytest.raises(InvalidScript, match=r"directive in line 2: option requires an argument -- 'N'"):
        submit("x.sh", script="#!/bin/sh\n#PBS -N\n#PBS -l nodes=1\n")


# Resources


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nodes=2", (Chunk(2),)),
        ("nodes=2:ppn=4", (Chunk(2, cpus=4, slots=4),)),
        ("nodes=2:gpus=4", (Chunk(2, cpus=1, gpus=4, slots=4),)),
        ("nodes=2:ppn=2:gpus=4:shared", (Chunk(2, cpus=2, gpus=4, slots=2),)),
        ("nodes=1:fast:nvlink", (Chunk(1, features=("fast", "nvlink")),)),
        ("nodes=n01:ppn=2+n02", (Chunk(host="n01", cpus=2, slots=2), Chunk(host="n02"))),
        ("nodes=2:ppn=1:mem=1024", (Chunk(2, mem=1024),)),
        ("nodes=2,mem=3b", (Chunk(2, mem=2),)),
        ("nodes=2:ppn=2,pmem=1kb", (Chunk(2, cpus=2, slots=2, mem=2048),)),
        ("nodes=2,gpus=4", (Chunk(2, gpus=2, slots=2),)),
        ("nodes=2,ncpus=8", (Chunk(2, cpus=4),)),
        ("procs=6", (Chunk(6),)),
        ("ncpus=4,ngpus=2", (Chunk(cpus=4, gpus=2),)),
        ("select=2:ncpus=4:mpiprocs=2:ngpus=1:mem=1kb", (Chunk(2, cpus=4, gpus=1, mem=1024, slots=2),)),
        ("select=ncpus=2+host=n01", (Chunk(cpus=2), Chunk(host="n01"))),
        ("select=2", (Chunk(2),)),
    ],
)
def test_shapes(text: str, expected: tuple[Chunk, ...]) -> None:
    assert chunks(text) == expected


def test_placement() -> None:
    def placement(text: str) -> Placement:
        return resources.build(resources.collect([text])).request.placement

    assert placement("nodes=2") is Placement.SCATTER
    assert placement("procs=2") is Placement.FREE
    assert placement("select=2") is Placement.FREE
    assert placement("select=2,place=vscatter:excl") is Placement.SCATTER
    assert placement("select=2,place=pack") is Placement.PACK


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes=1:gpus=0.5", "gpus=0.5: whole GPUs only; the nearest valid form is gpus=1"),
        ("gpus=.5", "the nearest valid form is gpus=1"),
        ("select=1:ngpus=1.5", "the nearest valid form is ngpus=2"),
        ("nodes=2,gpus=3", "the nearest valid form is gpus=4"),
        ("nodes=0", "at least 1 is needed"),
        ("nodes=2,procs=2", "exclude each other"),
        ("select=1,ncpus=2", "exclude each other"),
        ("nodes=1:pnn=2", "unknown 'pnn'; known are gpus, host, mem, ngpus, ppn"),
        ("nodes=1:gpus=1,gpus=1", "asked for twice"),
        ("nodes=1:ppn=2:ppn=3", "given twice"),
        ("walltime=abc", "walltime=abc is no duration"),
        ("walltime=-5", "walltime=-5 is no duration"),
        ("walltime=" + "9" * 5000, "no duration"),
        ("mem=4xb", "no size"),
        ("foo", "illegal -l value 'foo'"),
        ("gpu=2", "gpu=2: GPUs are asked for by gpus=; the nearest valid form is gpus=2"),
        ("nodes=1,num_gpus=4", "the nearest valid form is gpus=4"),
        ("gres=gpu:tesla:2", "the nearest valid form is gpus=2"),
        ("select=2:ncpus=1:gpu=1", "select=2:ncpus=1:gpu=1: gpu=1: GPUs are asked for by gpus="),
        ("walltime=60,signal=USR1@60", "a walltime of 00:01:00 is too short for it"),
        ("signal=USR9@60", "Unknown/illegal signal name USR9; write SIGNAL@TIME, e.g. signal=USR1@120"),
        ("signal=USR1@soon", "'soon' is no duration"),
        ("signal=0@60", "write SIGNAL@TIME"),
    ],
)
def test_wrong_resources_say_what_to_write(text: str, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        chunks(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_first_directive_wins_and_the_command_line_beats_it() -> None:
    script = "#PBS -l nodes=2,walltime=10\n#PBS -l walltime=20,mem=2gb,software=x\necho\n"
    found = submit("-l", "mem=4gb", "x.sh", script=script)
    assert found.resource_list == {
        "mem": "4gb",
        "ncpus": "2",
        "nodect": "2",
        "nodes": "2",
        "software": "x",
        "walltime": "00:00:10",
    }
    assert list(found.resource_list) == sorted(found.resource_list)
    assert found.request.walltime == 10
    assert found.request.chunks[0].mem == 2 << 30


def test_nothing_asked_is_one_node() -> None:
    assert submit("x.sh").resource_list == {"ncpus": "1", "nodect": "1", "nodes": "1"}


def test_odd_sizes_are_shown_in_kilobytes() -> None:
    assert submit("-l", "mem=2000", "x.sh").resource_list["mem"] == "2kb"
    assert submit("-l", "mem=1K", "x.sh").resource_list["mem"] == "1kb"
    assert submit("-l", "mem=2048MB", "x.sh").resource_list["mem"] == "2048mb"


# The whole


def test_command_line_over_directives_over_server_defaults() -> None:
    context = SubmitContext(
        cwd="/w",
        umask=0,
        host="h",
        user="u",
        home="/",
        environ={},
        server="s",
        now=CONTEXT.now,
        default_options=("-A", "default", "-p", "1", "-m", "n"),
    )
    found = build_submission(["-p", "3", "x.sh"], "#PBS -p 2 -A mine\n#PBS -A last\n", context)
    assert (found.priority, found.account, found.mail_points) == (3, "last", "n")


def test_defaults() -> None:
    found = submit("dir/my job.sh")
    assert found.name == "my_job.sh"
    assert (found.queue, found.umask, found.workdir, found.shell) == (None, 0o077, None, None)
    assert (found.join, found.keep, found.rerunable, found.argv) == ("n", "n", True, None)
    assert submit("-").name == "STDIN"


def test_environment_block_and_asked_variables() -> None:
    found = submit("-v", "FOO,BAR=1,'B=x,y',MISSING,PBS_O_HOME=no", "-q", "gpu@hpcm", "x.sh")
    assert found.environment == {
        "PBS_O_QUEUE": "gpu",
        "PBS_O_HOME": "/home/ann",
        "PBS_O_LOGNAME": "ann",
        "PBS_O_PATH": "/bin",
        "PBS_O_SHELL": "/bin/bash",
        "PBS_O_WORKDIR": "/home/ann/jobs",
        "PBS_O_HOST": "login1",
        "PBS_O_SERVER": "hpcm",
        "PBS_O_SYSTEM": "Linux",
        "FOO": "from here",
        "BAR": "1",
        "B": "x,y",
    }
    assert submit("-V", "x.sh").environment["SECRET"] == "x"


def test_command_lines_variables_beat_directives() -> None:
    assert (
        submit("-v", "A=2", "x.sh", script="#PBS -v A=1,B=1\n").environment.items()
        >= {"A": "2", "B": "1"}.items()
    )


def test_needs_and_environment_names() -> None:
    assert needs(["-N", "x", "job.sh", "-W", "umask=022"]).script == "job.sh"
    assert needs([]).script == "-"
    assert needs(["--", "true"]).script is None
    assert needs(["-I"]).interactive
    assert needs(["--version"]).information == "version"
    with pytest.raises(UsageError, match="one script at a time"):
        needs(["a", "b"])
    asked = environment_names(["-v", "A,B=1"], "#PBS -v C\n")
    assert not asked.all
    assert {"A", "C", "PATH", "SHELL"} <= set(asked.names)
    assert "B" not in asked.names
    assert environment_names([], "#PBS -V\n").all


def test_program_without_shell() -> None:
    found = submit("-N", "t", "--", "/bin/echo", "-l", "a b", script=None)
    assert found.argv == ("/bin/echo", "-l", "a b")
    assert submit("--", "/bin/echo", script=None).name == "echo"
    with pytest.raises(UsageError, match="no program"):
        submit("--", script=None)


def test_paths() -> None:
    def out(*argv: str, index: int | None = None, name: str = "n") -> str:
        return submit(*argv, "x.sh").stdout_path.render("7[3].hpcm" if index else "7.hpcm", 7, index, name)

    assert out() == "/home/ann/jobs/n.o7"
    assert out(index=3) == "/home/ann/jobs/n.o7-3"
    assert out("-o", "logs/") == "/home/ann/jobs/logs/n.o7"
    assert out("-o", "../a.log") == "/home/ann/a.log"
    assert out("-o", "a.log", index=3) == "/home/ann/jobs/a.log-3"
    assert out("-o", "/dev/null", index=3) == "/dev/null"
    assert out("-o", "other:/tmp/${PBS_JOBID}.out") == "/tmp/7.hpcm.out"
    assert out("-o", "/tmp/a.^array_index^", index=3) == "/tmp/a.3"
    assert submit("-o", "other:/tmp/x", "x.sh").stdout_path.host == "other"
    assert submit("x.sh").stderr_path.render("7.hpcm", 7, None, "n") == "/home/ann/jobs/n.e7"
    assert (
        submit("-o", "a", "x.sh").stdout_path.as_directory().render("1.h", 1, None, "n")
        == "/home/ann/jobs/a/n.o1"
    )


def test_attributes() -> None:
    found = submit(
        *("-W", 'umask=022,depend="afterok:1:2.hpcm,afterany:3",x=advres:r1'),
        *("-Wblock=true", "-W", "x=GRES:gpu@1,group_list=a,b", "-W", "gpubind=none,ring=check,stagein=a@h:b"),
        "x.sh",
    )
    assert found.umask == 0o022
    assert [str(term) for term in found.dependencies] == ["afterok:1:2.hpcm", "afterany:3"]
    assert found.block
    assert found.extra == {"x": "advres:r1,GRES:gpu@1", "stagein": "a@h:b"}
    assert found.group_list == ("a", "b")
    assert (found.gpubind, found.ring) == ("none", "check")


def test_other_options() -> None:
    found = submit(
        "-S", "/bin/sh@n1,/bin/csh", "-F", "a 'b c'", "-d", "sub", "-h", "-z", "-j", "oe", "-r", "n", "x.sh"
    )
    assert found.shell == "/bin/sh"
    assert found.script_args == ("a", "b c")
    assert found.workdir == "/home/ann/jobs/sub"
    assert (found.hold, found.silent, found.join, found.rerunable) == (True, True, "oe", False)
    assert submit("-l", "wd", "x.sh").workdir == "/home/ann/jobs"
    assert submit("-q", "@", "x.sh").queue is None


@pytest.mark.parametrize(
    ("text", "torque", "openpbs"), [("022", 0o22, 0o22), ("22", 22, 0o22), ("0", 0, 0), ("511", 0o777, 0o511)]
)
def test_a_plain_umask_is_decimal_in_torque_and_octal_in_openpbs(
    text: str, torque: int, openpbs: int
) -> None:
    for decimal, mask in ((True, torque), (False, openpbs)):
        context = replace(CONTEXT, decimal_umask=decimal)
        assert build_submission(["-W", f"umask={text}", "x.sh"], "echo\n", context).umask == mask


@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        (["-p", "2000"], InvalidValue),
        (["-N", "a b"], InvalidValue),
        (["-N", "x" * 237], InvalidValue),
        (["-W", "umask=999"], InvalidValue),
        (["-W", "gpubind=half"], InvalidValue),
        (["-W", "depend=afterwhatever:1"], BadDependency),
        (["-W", "depend=afterok"], BadDependency),
        (["-W", "depend=on:x"], BadDependency),
        (["-a", "9999"], InvalidValue),
        (["-j", "x"], InvalidValue),
        (["-v", "A='x"], InvalidValue),
        (["-I", "-t", "0-1"], UsageError),
    ],
)
def test_wrong_values_are_refused(argv: list[str], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        submit(*argv, "x.sh")


def test_arrays_in_both_spellings() -> None:
    assert submit("-t", "5,0-3%2", "x.sh").array == parse_array("0-3,5%2")
    spec = parse_array("0-9:2%3")
    assert (spec.ranges, spec.limit, spec.size) == (((0, 8, 2),), 3, 5)
    assert 4 in spec
    assert 5 not in spec
    for wrong in ("", "5-1", "1-3,2", "a", "1%0", "1-5:0"):
        with pytest.raises(InvalidValue):
            parse_array(wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1300", "2026-01-31T13:00:00"),
        ("1100.30", "2026-02-01T11:00:30"),
        ("301200", "2026-03-30T12:00:00"),
        ("02281200", "2026-02-28T12:00:00"),
        ("2712311200", "2027-12-31T12:00:00"),
        ("203001020304.05", "2030-01-02T03:04:05"),
    ],
)
def test_execution_time(text: str, expected: str) -> None:
    assert parse_execution_time(text, CONTEXT.now) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


def test_constraints_are_read_whole() -> None:
    built = submit("-W", "umask=022,constraints=rack:GROUP_BY:2,hostname:UNLIKE:node[12],block=true")
    rules = built.request.constraints
    assert [str(rule) for rule in rules] == ["rack:GROUP_BY:2", "hostname:UNLIKE:node[12]"]
    assert (built.umask, built.block) == (0o022, True)


@pytest.mark.parametrize(
    ("text", "framework"),
    [
        ("framework=tensorflow:ps=1,worker=3", "tensorflow:worker=3,ps=1"),
        ("framework=tensorflow:worker=3:ps=1,umask=022", "tensorflow:worker=3,ps=1"),
        ("umask=022,framework=tfmesos:ps=1,worker=1,block=1", "tfmesos:worker=1,ps=1"),
        ("framework=torchrun:c10d,gpubind=rank", "torchrun:c10d"),
        ("framework=jax", "jax"),
    ],
)
def test_a_framework_is_read_whole(text: str, framework: str) -> None:
    built = submit("-l", "nodes=2:ppn=2", "-W", text)
    assert built.request.framework == framework
    assert not built.extra


@pytest.mark.parametrize(
    ("resources", "text", "why"),
    [
        ("nodes=1:ppn=2", "tensorflow:ps=1,worker=2", "3 tasks take a slot each, the job has 2"),
        ("nodes=2:ppn=2:gpus=1", "torch", "4 tasks train on a GPU each, the job has 2 slots with one"),
        ("nodes=1:gpus=1+1", "torchrun", "no GPU on some nodes; ask for GPUs on every node"),
        ("nodes=1", "tensorflow:wroker=1", "tensorflow has no role 'wroker'; write tensorflow:worker=1"),
        ("nodes=1", "torch:", "torch has no role ''"),
        ("nodes=1", "keras", "no such framework"),
    ],
)
def test_a_framework_that_does_not_fit_is_refused(resources: str, text: str, why: str) -> None:
    with pytest.raises(InvalidValue, match=why):
        submit("-l", resources, "-W", f"framework={text}")


@pytest.mark.parametrize(
    "words", [["--image", "a.b:5000/train:3"], ["-W", "image=a.b:5000/train:3,umask=022"]]
)
def test_a_job_with_an_image_goes_to_nodes_that_serve_containers(words: list[str]) -> None:
    built = submit(*words, "-l", "nodes=1:gpus=2:big+2:ppn=2", "-W", "image_pull=always", "job.sh")
    assert (built.image, built.image_pull) == ("a.b:5000/train:3", "always")
    assert [chunk.features for chunk in built.request.chunks] == [("big", "docker"), ("docker",)]
    assert built.request.contained
    assert built.request.in_containers() == built.request
    assert not submit("-l", "nodes=2", "job.sh").request.contained


@pytest.mark.parametrize("image", ["-x", "a b", "/root", ""])
def test_what_is_no_image_is_refused_or_none(image: str) -> None:
    if image:
        with pytest.raises(InvalidValue, match="illegal image"):
            submit(f"--image={image}", "job.sh")
    else:
        assert submit("--image=", "job.sh").image is None


def test_mps_is_for_whole_gpus_on_the_host() -> None:
    assert submit("-l", "nodes=2:gpus=1", "-W", "mps=true").mps
    assert not submit("-l", "nodes=2:gpus=1", "-W", "mps=false").mps
    for words in (["-l", "nodes=1"], ["-l", "nodes=1:gpus=1:mig-1g.10gb"]):
        with pytest.raises(InvalidValue, match="mps=true is for jobs with whole GPUs"):
            submit(*words, "-W", "mps=true")
    with pytest.raises(InvalidValue, match="the service runs outside of containers"):
        submit("-l", "gpus=1", "-W", "mps=true", "--image", "debian")


def test_a_profile_is_a_feature_in_both_forms() -> None:
    (nodes,) = chunks("nodes=2:gpus=1:mig-1g.10gb")
    (select,) = chunks("select=2:ngpus=1:mig-1g.10gb=true")
    assert (nodes.count, nodes.gpus, nodes.features) == (2, 1, ("mig-1g.10gb",))
    assert (select.count, select.gpus, select.features) == (2, 1, ("mig-1g.10gb",))


def test_who_lets_gpus_idle_says_so() -> None:
    assert submit("-W", "gpu_idle=allowed").gpu_idle == "allowed"
    with pytest.raises(InvalidValue, match="one of allowed, watched"):
        submit("-W", "gpu_idle=please")
