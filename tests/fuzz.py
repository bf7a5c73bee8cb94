"""Strategies for what people, programs and cats type at qsub, qalter and qmgr."""

from __future__ import annotations

from hypothesis import strategies as st

from hpcmesos.pbs.manager import OBJECTS, VERBS
from hpcmesos.pbs.manager_attributes import ATTRIBUTES
from hpcmesos.pbs.option_table import COMMANDS

_NAMES = sorted({name for known in ATTRIBUTES.values() for name in known})
_LETTERS = {
    name: sorted({option.written for option in COMMANDS[name].options} - {"-I", "-x", "-X"})
    for name in ("qsub", "qalter")
}
# Not block=true: it waits, as it should.
_VALUES = [
    *(
        "nodes=2:ppn=4:gpus=1",
        "gpus=0.5",
        "select=1:ncpus=2+1",
        "walltime=1:2:3",
        "mem=4gb",
        "procs=0",
        "nodes=999999",
    ),
    *(
        "depend=afterok:1",
        "depend=on:1",
        "umask=022",
        "umask=999",
        "block=true",
        "x=a:b",
        "group_list=root",
        "stagein=a@b:c",
    ),
    *(
        "0-9:2%3",
        "0-99999999",
        "2359",
        "u",
        "oe",
        "all",
        "12[]",
        "1[0]",
        "-1024",
        "y",
        "n",
        "abe",
        "a@b.c",
        'A,B=c,"D=e f"',
    ),
    *(
        "/dev/null",
        "~/x",
        "../../etc/passwd",
        "batch",
        "@server",
        "nosuch@",
        "'",
        '"',
        "\\",
        "$(id)",
        "`id`",
        ";",
        "--",
    ),
]
_ODD = st.text(alphabet=st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
_PUNCTUATION = st.text(alphabet="-=:,+.%[]\\'\"#@nodesgpumlwt0123456789 ", max_size=24)


def _words(command: str) -> st.SearchStrategy[list[str]]:
    word = st.one_of(st.sampled_from(_LETTERS[command]), st.sampled_from(_VALUES), _PUNCTUATION, _ODD)
    option = st.tuples(st.sampled_from(_LETTERS[command]), st.sampled_from(_VALUES)).map(list)
    return st.lists(st.one_of(option, word.map(lambda one: [one])), max_size=5).map(
        lambda parts: [word for part in parts for word in part]
    )


qsub_words = _words("qsub")
qalter_words = _words("qalter")
_directives = st.lists(qsub_words.map(lambda words: "#PBS " + " ".join(words)), max_size=3)
qsub_script = st.one_of(
    _directives.map(lambda lines: "\n".join(["#!/bin/sh", *lines, "true", ""]).encode("utf-8", "replace")),
    st.binary(max_size=200),
)
"""A script's bytes."""
_qmgr_word = st.one_of(
    st.sampled_from([*VERBS, *OBJECTS, *_NAMES, "=", "+=", "-=", ",", "@", "q1", "True", "'a b'", '"'] * 2),
    st.text(alphabet="=,.@'\"#\\+- abq1[]:", max_size=8),
    _ODD,
)
_qmgr_set = st.tuples(
    st.sampled_from(["set", "unset", "list", "print"]),
    st.sampled_from(["server", "queue batch", "queue nosuch", "node node1"]),
    st.sampled_from(_NAMES),
    st.sampled_from(["", "= 5", "= True", "+= a", "= 'x y'", "= 1:00:00", "= nonsense"]),
).map(" ".join)
qmgr_text = st.one_of(st.lists(_qmgr_word, max_size=8).map(" ".join), _qmgr_set)
"""A directive, or what looks like one."""
