"""qmgr: its grammar, the attributes' types, and that what print writes can be read again."""

from __future__ import annotations

import pytest

from hpcmesos.errors import BadDirective, InvalidValue, ReadOnlyAttribute, UnknownAttribute
from hpcmesos.pbs.manager import Change, lines, parse_line
from hpcmesos.pbs.manager_attributes import apply, limit_of, resources, total_limit
from hpcmesos.pbs.manager_render import listed, printed_queues, printed_server
from hpcmesos.pbs.personalities import Personality


@pytest.mark.parametrize(
    ("line", "verb", "kind", "names", "changes"),
    [
        ("create queue q2", "create", "queue", ("q2",), ()),
        ("c q a,b enabled=true", "create", "queue", ("a", "b"), (Change("enabled", "=", "true"),)),
        ("set queue q2@srv started = True", "set", "queue", ("q2",), (Change("started", "=", "True"),)),
        (
            "s q q2 queue_type=execution,enabled=t,resources_max.walltime=1:00:00,max_run='[u:PBS_GENERIC=4]'",
            "set",
            "queue",
            ("q2",),
            (
                Change("queue_type", "=", "execution"),
                Change("enabled", "=", "t"),
                Change("resources_max.walltime", "=", "1:00:00"),
                Change("max_run", "=", "[u:PBS_GENERIC=4]"),
            ),
        ),
        (
            "set server managers += alice@*",
            "set",
            "server",
            (),
            (Change("managers", "+=", "alice@*"),),
        ),
        ('set server comment = "a, b"', "set", "server", (), (Change("comment", "=", "a, b"),)),
        (
            "set server hpcm scheduling = false",
            "set",
            "server",
            ("hpcm",),
            (Change("scheduling", "=", "false"),),
        ),
        ("l s managers", "list", "server", (), (Change("managers"),)),
        (
            "unset queue q2 max_run,acl_users",
            "unset",
            "queue",
            ("q2",),
            (Change("max_run"), Change("acl_users")),
        ),
        ("p s", "print", "server", (), ()),
        ("d n n1", "delete", "node", ("n1",), ()),
        ("list nodes n1 state", "list", "node", ("n1",), (Change("state"),)),
    ],
)
def test_directives(
    line: str, verb: str, kind: str, names: tuple[str, ...], changes: tuple[Change, ...]
) -> None:
    found = parse_line(line)
    assert (found.verb, found.kind, found.names, found.changes) == (verb, kind, names, changes)


def test_every_object_of_a_server() -> None:
    assert parse_line("p q @default").every
    assert not parse_line("p q").every


@pytest.mark.parametrize("line", ["foo", "set thing x a = 1"])
def test_unknown_words(line: str) -> None:
    with pytest.raises(InvalidValue, match="Illegal"):
        parse_line(line)


@pytest.mark.parametrize(
    "line",
    ["set", "create queue", "set queue q", "set queue q a", 'set queue q a = "b', "set queue q a = 'b' c"],
)
def test_lines_that_cannot_be_read_say_where(line: str) -> None:
    with pytest.raises(BadDirective) as caught:
        parse_line(line)
    assert line in str(caught.value)


def test_lines_are_joined_and_comments_dropped() -> None:
    assert list(lines("# one\nset queue q \\\nstarted = True\n\n  # two\nquit\n")) == [
        "set queue q started = True",
        "quit",
    ]


def test_values_are_kept_as_they_are_shown() -> None:
    now = apply(
        "queue",
        {},
        [
            Change("queue_type", "=", "e"),
            Change("enabled", "=", "t"),
            Change("resources_max.walltime", "=", "90"),
            Change("resources_default.mem", "=", "4GB"),
            Change("acl_users", "+=", "ann, bob"),
            Change("acl_users", "-=", "ann"),
            Change("max_user_run", "=", "4"),
            Change("silence", "=", "fence:300"),
            Change("log_limit", "=", "64MB"),
        ],
    )
    assert now == {
        "queue_type": "Execution",
        "enabled": "True",
        "resources_max.walltime": "00:01:30",
        "resources_default.mem": "4gb",
        "acl_users": "bob",
        "max_user_run": "4",
        "silence": "fence:300",
        "log_limit": "64mb",
    }
    assert apply("queue", now, [Change("resources_max"), Change("acl_users")]).keys() == {
        "queue_type",
        "enabled",
        "resources_default.mem",
        "max_user_run",
        "silence",
        "log_limit",
    }
    assert resources(now, "resources_default") == {"mem": "4gb"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (Change("foo", "=", "1"), UnknownAttribute),
        (Change("enabled.x", "=", "1"), UnknownAttribute),
        (Change("total_jobs", "=", "1"), ReadOnlyAttribute),
        (Change("started", "=", "maybe"), InvalidValue),
        (Change("queue_type", "=", "x"), InvalidValue),
        (Change("Priority", "=", "high"), InvalidValue),
        (Change("resources_max", "=", "1"), InvalidValue),
        (Change("resources_max.mem", "=", "much"), InvalidValue),
        (Change("log_limit", "=", "much"), InvalidValue),
        (Change("log_limit", "=", "1kb"), InvalidValue),  # nothing would stay between head and tail
        (Change("log_limit", "+=", "1mb"), InvalidValue),
        (Change("enabled", "+=", "true"), InvalidValue),
        (Change("silence", "=", "fence"), InvalidValue),
        (Change("max_run", "=", "four"), InvalidValue),
    ],
)
def test_refused_changes(change: Change, error: type[Exception]) -> None:
    now = {"enabled": "True"}
    with pytest.raises(error):
        apply("queue", now, [Change("started", "=", "True"), change])
    assert now == {"enabled": "True"}


def test_limits_of_both_families() -> None:
    form = "[u:PBS_GENERIC=4],[u:ann=9],[p:chem=2]"
    assert [limit_of(form, "u", name) for name in ("bob", "ann", "an")] == [4, 9, 4]
    assert [limit_of(form, "p", name) for name in ("chem", "", "che.")] == [2, None, None]
    assert limit_of(form, "g", "ann") is None
    assert total_limit({"max_run": "[o:PBS_ALL=7]"}, "max_running", "max_run") == 7
    assert total_limit({}, "max_running", "max_run") is None


QUEUES = {
    "batch": {"queue_type": "Execution", "enabled": "True", "started": "True"},
    "gpu": {
        "queue_type": "Execution",
        "Priority": "50",
        "acl_users": "ann,bob",
        "max_run": "[u:PBS_GENERIC=4]",
        "resources_default.nodes": "1:ppn=4",
        "comment": 'nights, and "week-ends"',
        "enabled": "True",
        "started": "False",
    },
}
SERVER = {"scheduling": "True", "default_queue": "batch", "managers": "ann@*,root@localhost"}


def test_what_print_writes_makes_the_same_again() -> None:
    text = printed_queues(QUEUES.items()) + printed_server(SERVER)
    queues: dict[str, dict[str, str]] = {}
    server: dict[str, str] = {}
    for line in lines(text):
        directive = parse_line(line)
        if directive.verb == "create":
            queues[directive.names[0]] = {}
        elif directive.kind == "queue":
            queues[directive.names[0]] = apply("queue", queues[directive.names[0]], directive.changes)
        else:
            server = apply("server", server, directive.changes)
    assert queues == QUEUES
    assert server == SERVER


def test_a_printed_queue() -> None:
    assert printed_queues([("batch", QUEUES["batch"])]) == (
        "#\n# Create queues and set their attributes.\n#\n"
        "#\n# Create and define queue batch\n#\n"
        "create queue batch\n"
        "set queue batch queue_type = Execution\n"
        "set queue batch enabled = True\n"
        "set queue batch started = True\n"
    )


def test_a_listed_queue_in_both_families() -> None:
    one = {"queue_type": "Execution", "enabled": "True"}
    torque = listed("queue", "batch", one, Personality.TORQUE)
    assert torque == "Queue batch\n\tqueue_type = Execution\n\tenabled = True\n\n"
    pbspro = listed("queue", "batch", one, Personality.PBSPRO)
    assert pbspro == "Queue batch\n    queue_type = Execution\n    enabled = True\n\n"


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("gpu_idle_action", "cancel", "cancel"),
        ("gpu_idle_threshold", "10", "10"),
        ("gpu_idle_window", "1800", "00:30:00"),
        ("gpu_idle_exempt", "u:ann,name:note*,asked,asked", "u:ann,name:note*,asked"),
        ("gpu_idle_action", "kill", None),
        ("gpu_idle_threshold", "0", None),
        ("gpu_idle_threshold", "101", None),
        ("gpu_idle_window", "5", None),
        ("gpu_idle_exempt", "ann", None),
    ],
)
def test_idle_gpus(name: str, value: str, kept: str | None) -> None:
    for kind in ("queue", "server"):
        if kept is not None:
            assert apply(kind, {}, [Change(name, "=", value)]) == {name: kept}
            continue
        with pytest.raises(InvalidValue, match=name):
            apply(kind, {}, [Change(name, "=", value)])


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("acl_hosts", "-fd00*"),
        ("acl_hosts", "-FE80*"),
        ("acl_hosts", "-f[cd]*"),
        ("acl_hosts", "-2a02*"),
        ("acl_hosts", "-fe8[0-9a-f]*"),
        ("acl_users", "-ann@fd00*"),
    ],
)
def test_a_bar_says_whether_it_means_addresses(name: str, entry: str) -> None:
    """As a name with wildcards it would keep out everybody who comes over TLS."""
    for operator in ("=", "+="):
        with pytest.raises(InvalidValue, match=r"write addresses with a colon, as in fd00:\*"):
            apply("queue", {name: "ann"}, [Change(name, operator, f"{entry},ann")])
    assert apply("queue", {name: f"{entry},ann"}, [Change(name, "-=", entry)]) == {name: "ann"}


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("acl_hosts", "-fd00:*,-10.*,-2001*,-10.[0-9]*,*"),
        ("acl_hosts", "-cafe*,-a100*,-frontend*,-fe*.site.org,-fe*login,-*.de,-3*com,*"),
        ("acl_hosts", "fd00*"),
        ("acl_users", "-fd00*,-fe*@login1,ann@fd00*"),
    ],
)
def test_bars_that_are_clear(name: str, entries: str) -> None:
    assert apply("queue", {}, [Change(name, "=", entries)]) == {name: entries}
