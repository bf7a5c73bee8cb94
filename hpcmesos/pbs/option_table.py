"""The options of every q-command, once: the parser, the help texts and the man pages all read this table.

Each set is the union of what Torque 6.1.3 and OpenPBS 23.06 accept (their man pages, section 1B and 8B).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Option:
    """One option. A name of one letter is written ``-x``, a longer one ``--name``."""

    name: str
    value: str | None  # what the argument is called in texts; None: a flag
    text: str

    @property
    def written(self) -> str:
        return f"-{self.name}" if len(self.name) == 1 else f"--{self.name}"


@dataclass(frozen=True, slots=True)
class Command:
    """A command, its operands as the synopsis shows them, and its options."""

    name: str
    operands: str
    summary: str
    options: tuple[Option, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)  # whole words that stand for an option

    def find(self, name: str) -> Option | None:
        return next((option for option in self.options if option.name == name), None)


_COMMON = (
    Option("help", None, "show this text"),
    Option("version", None, "show the version"),
    Option("about", None, "show the version"),
)

_JOB = {
    option.name: option
    for option in (
        Option("a", "date_time", "start no earlier than [[[[CC]YY]MM]DD]hhmm[.SS]"),
        Option("A", "account", "charge this account"),
        Option("c", "spec", "checkpoint: n, s, c, c=MINUTES, w, enabled, periodic, shutdown, ..."),
        Option("e", "[host:]path", "standard error; a directory takes the default name NAME.eSEQ"),
        Option("h", None, "hold the job"),
        Option("j", "oe|eo|n", "join standard error into output, or output into error"),
        Option("k", "o|e|oe|n", "keep output in the home directory; with d (doe): at its final place"),
        Option("l", "resources", "NAME=VALUE,... e.g. nodes=2:ppn=4:gpus=4,walltime=01:00:00,mem=8gb"),
        Option("L", "request", "resource request of Torque 6 (kept, not used)"),
        Option("m", "n|p|abefj", "when to send mail"),
        Option("M", "user,...", "whom to send mail"),
        Option("n", None, "whole nodes for this job alone"),
        Option("N", "name", "the job's name, at most 236 characters, no blanks"),
        Option("o", "[host:]path", "standard output; a directory takes the default name NAME.oSEQ"),
        Option("p", "priority", "-1024 to 1023"),
        Option("P", "project", "the job's project"),
        Option("q", "queue", "queue, queue@server or @server"),
        Option("r", "y|n", "whether the job may be run again"),
        Option("R", "oe", "files to remove when the job ends well"),
        Option("S", "path", "the shell that reads the script"),
        Option("t", "ranges", "array: 0-9, 1,5,7-9 or 0-99%5 (at most 5 at once)"),
        Option("u", "user,...", "user names on execution hosts"),
        Option("v", "NAME[=VALUE],...", "variables of the job; a name alone takes its value from here"),
        Option(
            "W",
            "attribute=value,...",
            "depend, umask, block, group_list, stagein, gpubind, gpu_idle, mps, ring, constraints, secret, ...",
        ),
    )
}

_SUBMIT_ONLY = (
    Option("b", "seconds", "how long to try to reach the server (accepted, not used)"),
    Option("C", "prefix", "what a directive line begins with; '' reads none (default: #PBS)"),
    Option("d", "path", "working directory of the job (default: home directory)"),
    Option("D", "path", "root directory of the job (kept, not used)"),
    Option("E", None, "accepted, not used"),
    Option("f", None, "accepted, not used"),
    Option("F", "arguments", "arguments of the script"),
    Option("I", None, "interactive: a terminal on the job's first node"),
    Option("J", "first-last[:step][%limit]", "array, as OpenPBS writes it"),
    Option("K", "seconds", "kill delay (kept, not used)"),
    Option("T", "name", "also run the site's prologue.NAME and epilogue.NAME"),
    Option("V", None, "all variables of this environment"),
    Option("w", "path", "working directory, also told as PBS_O_WORKDIR"),
    Option("x", None, "with -I: run the operand instead of a shell"),
    Option("X", None, "with -I: its programs show their windows on the X server here"),
    Option("z", None, "do not print the job's id"),
    Option("image", "name", "run in containers of this Docker image, on every node of the job"),
    Option("dry-run", None, "tell what was understood, where and when it would start, and submit nothing"),
)


def _flags(letters: str) -> Iterable[Option]:
    """Options that are accepted for the sake of scripts and change nothing."""
    return (Option(letter, None, "accepted, not used") for letter in letters)


_JOBS = "job_id ..."

COMMANDS: Mapping[str, Command] = {
    command.name: command
    for command in (
        Command(
            "qsub",
            "[script | - | -- program [argument ...]]",
            "submit a job",
            (*_JOB.values(), *_SUBMIT_ONLY, *_COMMON),
            {"-wd": "w"},
        ),
        Command(
            "msub",
            "[script | - | -- program [argument ...]]",
            "submit a job (Moab's name)",
            (*_JOB.values(), *_SUBMIT_ONLY, Option("xml", None, "print the id as XML"), *_COMMON),
            {"-wd": "w"},
        ),
        Command(
            "qalter",
            _JOBS,
            "change a job that has not ended",
            (
                *(option for option in _JOB.values() if option.name not in "hLR"),
                Option("h", "u|o|s|n", "set the holds"),
                Option("x", "resource", "accepted, not used"),
                *_COMMON,
            ),
        ),
        Command(
            "qstat",
            "[job_id ... | queue ... | @server ...]",
            "show jobs, queues or the server",
            (
                Option("a", None, "the wide table"),
                Option("i", None, "the wide table of jobs that do not run"),
                Option("r", None, "the wide table of jobs that run"),
                Option("u", "user,...", "the wide table of these users' jobs"),
                Option("n", None, "add the nodes of each job"),
                Option("s", None, "add the comment of each job"),
                Option("1", None, "one line for each job or attribute"),
                Option("f", None, "all attributes"),
                Option("x", None, "Torque: XML; OpenPBS: finished jobs too"),
                Option("H", None, "finished jobs too"),
                Option("F", "json|dsv", "format of -f"),
                Option("D", "delimiter", "delimiter of -F dsv"),
                Option("t", None, "show the elements of arrays"),
                Option("J", None, "only arrays"),
                Option("Q", None, "queues"),
                Option("q", None, "queues and their limits"),
                Option("B", None, "the server"),
                Option("w", None, "wider columns"),
                Option("T", None, "estimated start times"),
                Option("W", "argument", "accepted, not used"),
                *_flags("cCeElpGMR"),
                Option(
                    "why",
                    None,
                    "why each job waits; with -f or -F json: its place, when it starts, all factors",
                ),
                *_COMMON,
            ),
        ),
        Command(
            "qdel",
            _JOBS,
            "delete jobs",
            (
                Option("W", "delay|force", "seconds between SIGTERM and SIGKILL; force: SIGKILL at once"),
                Option("m", "message", "a comment for the job"),
                Option("p", None, "purge: drop the job even if its node does not answer (operators)"),
                Option("t", "ranges", "only these elements of an array"),
                Option("x", None, "finished jobs too"),
                Option("b", "seconds", "how long to try to reach the server (accepted, not used)"),
                *_flags("ac"),
                *_COMMON,
            ),
        ),
        Command(
            "qhold",
            _JOBS,
            "hold jobs",
            (
                Option("h", "u|o|s|n", "kinds of hold (default: u)"),
                Option("t", "ranges", "only these elements of an array"),
                *_COMMON,
            ),
        ),
        Command(
            "qrls",
            _JOBS,
            "release holds",
            (
                Option("h", "u|o|s|n", "kinds of hold (default: u)"),
                Option("t", "ranges", "only these elements of an array"),
                *_COMMON,
            ),
        ),
        Command(
            "qrerun",
            _JOBS,
            "put running jobs back into their queue",
            (
                Option("m", "message", "a comment for the job"),
                Option("W", "force", "as -f"),
                *_flags("f"),
                *_COMMON,
            ),
        ),
        Command(
            "qrun",
            _JOBS,
            "start jobs now, before all others (operators)",
            (
                Option("H", "node[+node ...]", "on these nodes"),
                Option("a", None, "do not wait until they have started"),
                *_COMMON,
            ),
        ),
        Command(
            "qsig",
            _JOBS,
            "send a signal to jobs",
            (
                Option("s", "signal", "name or number (default: SIGTERM); suspend and resume (operators)"),
                *_flags("a"),
                *_COMMON,
            ),
        ),
        Command(
            "qmsg",
            f"message {_JOBS}",
            "write a line into the output of jobs that run",
            (
                Option("E", None, "into standard error (default)"),
                Option("O", None, "into standard output"),
                *_COMMON,
            ),
        ),
        Command("qmove", f"destination {_JOBS}", "move jobs to another queue", _COMMON),
        Command("qorder", "job_id job_id", "exchange the places of two jobs", _COMMON),
        Command(
            "showq",
            "",
            "jobs that run, wait and are held, as Maui shows them",
            (
                Option("w", "user=NAME", "of this user only"),
                Option("u", "NAME", "of this user only"),
                Option("xml", None, "XML"),
                *_flags("birv"),
                *_COMMON,
            ),
        ),
        *(
            Command(name, _JOBS, summary, (Option("xml", None, "XML"), *_flags("v"), *_COMMON))
            for name, summary in (
                ("checkjob", "everything about jobs, as Maui tells it"),
                ("showstart", "when jobs start at the earliest"),
            )
        ),
        Command(
            "mdiag",
            "job_id ...",
            "everything about jobs, as Moab tells it",
            (
                Option("j", None, "jobs (the only object that is served)"),
                Option("xml", None, "XML"),
                *_flags("v"),
                *_COMMON,
            ),
        ),
        Command("canceljob", _JOBS, "delete jobs", _COMMON),
        Command(
            "mjobctl",
            "job_id[,job_id ...]",
            "delete jobs",
            (Option("c", None, "cancel them (the only action that is served)"), *_COMMON),
        ),
        Command(
            "tracejob",
            _JOBS,
            "tell what happened to jobs",
            (
                Option("a", None, "no accounting records"),
                Option("s", None, "no records of the server"),
                Option("n", "days", "how many days to look back (default: all)"),
                Option("w", "columns", "fold lines at this width"),
                *_flags("lmqvz"),
                *(Option(name, "argument", "accepted, not used") for name in "pfc"),
                *_COMMON,
            ),
        ),
        Command(
            "qmgr",
            "[server ...]",
            "show and change queues, the server and nodes",
            (
                Option("a", None, "stop at the first directive that fails"),
                Option("c", "directive", "do this; without -c the directives come from standard input"),
                Option("e", None, "print each directive before it is done"),
                Option("n", None, "check the grammar, do nothing"),
                Option("z", None, "no error messages"),
                *_COMMON,
            ),
        ),
        Command(
            "qterm",
            "",
            "stop the master that is asked; jobs go on",
            (Option("t", "quick", "the only way that is served: no job ends with its master"), *_COMMON),
        ),
        *(
            Command(name, "queue ...", summary, _COMMON)
            for name, summary in (
                ("qenable", "let queues take jobs"),
                ("qdisable", "let queues take no jobs"),
                ("qstart", "let jobs of queues start"),
                ("qstop", "let no jobs of queues start"),
            )
        ),
        Command(
            "qselect",
            "",
            "list the ids of jobs",
            (
                *(_JOB[name] for name in "aAlNpPqru"),
                Option(
                    "c", "[op]checkpoint", "jobs with this checkpoint; op is .eq. .ne. .ge. .gt. .le. or .lt."
                ),
                Option("h", "kinds", "jobs with exactly these holds; n: none"),
                Option("s", "letters", "jobs in these states"),
                Option("t", "letter[op]date_time", "by time: a c e g m q s t, e.g. s.gt.01010000"),
                Option("T", None, "the elements of arrays, as Torque always does"),
                Option("J", None, "arrays only"),
                Option("x", None, "finished jobs too"),
                Option("H", None, "finished jobs too"),
                *_flags("e"),
                *_COMMON,
            ),
        ),
        Command(
            "pbsnodes",
            "[node ...]",
            "show nodes, or take them out of use and back",
            (
                Option("a", None, "all nodes, all attributes"),
                Option(
                    "l", None, "list nodes by state: [free|offline|down|busy|job-exclusive|active|up|all]"
                ),
                Option("n", None, "with -l: add the notes"),
                Option("x", None, "XML"),
                Option("F", "json|dsv", "format"),
                Option("D", "delimiter", "delimiter of -F dsv"),
                Option("o", None, "mark as offline: no new jobs"),
                Option("c", None, "take the offline mark back"),
                Option("r", None, "Torque: as -c, until the node reports; OpenPBS: as -c"),
                Option("N", "note", "set the note; '' clears it"),
                Option("C", "comment", "as -N"),
                Option("A", "note", "append to the note"),
                Option("gpu", "index|uuid", "with -o and -c: one GPU of the node, not the node; -N says why"),
                Option("gone", None, "the node is lost for good: its jobs may run elsewhere (operators)"),
                *(Option(name, "argument", "accepted, not used") for name in "ms"),
                *_flags("dHjLpqSv"),
                *_COMMON,
            ),
        ),
    )
}
