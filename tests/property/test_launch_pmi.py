"""PMI-1 as programs speak it: any pieces, any order, any nonsense."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmesos.launch import pmi

WORD = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=20)
KEY = WORD.filter(lambda word: "=" not in word)


def local(ranks: int = 2, size: int = 4) -> pmi.Local:
    return pmi.Local(range(ranks), size, "kvs", "(vector,(0,2,2))")


def ask(node: pmi.Local, line: str, rank: int = 0) -> str:
    return node.hear(rank, f"{line}\n".encode()).decode()


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (
            "cmd=init pmi_version=1 pmi_subversion=1",
            "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0",
        ),
        ("cmd=get_maxes", "cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024"),
        ("cmd=get_appnum", "cmd=appnum appnum=0"),
        ("cmd=get_my_kvsname", "cmd=my_kvsname kvsname=kvs"),
        ("cmd=get_universe_size", "cmd=universe_size size=4"),
        ("cmd=put kvsname=kvs key=a value=b", "cmd=put_result rc=0 msg=success"),
        ("cmd=get kvsname=kvs key=a", "cmd=get_result rc=-1 msg=key_a_not_found value=unknown"),
        (
            "cmd=get kvsname=kvs key=PMI_process_mapping",
            "cmd=get_result rc=0 msg=success value=(vector,(0,2,2))",
        ),
        ("cmd=finalize", "cmd=finalize_ack"),
        ("cmd=lookup_name service=x", "cmd=lookup_result rc=-1 msg=not_supported"),
        ("mcmd=spawn\nnprocs=2\nexecname=a\nendcmd", "cmd=spawn_result rc=-1 msg=not_supported"),
    ],
)
def test_answers(line: str, answer: str) -> None:
    assert ask(local(), line) == f"{answer}\n"


@pytest.mark.parametrize("line", ["nonsense", "cmd=", "cmd=what", "key=value", "cmd=put " + "x" * 5000])
def test_what_is_no_pmi(line: str) -> None:
    with pytest.raises(pmi.PmiError):
        ask(local(), line)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([4], "(vector,(0,1,4))"),
        ([2, 2, 2], "(vector,(0,3,2))"),
        ([4, 4, 1, 4], "(vector,(0,2,4),(2,1,1),(3,1,4))"),
    ],
)
def test_the_mapping(counts: list[int], text: str) -> None:
    assert pmi.mapping(counts) == text


def test_abort_and_the_bounds_of_a_put() -> None:
    node = local()
    assert "rc=-1" in ask(node, "cmd=put key=k value=" + "v" * 1025)
    assert "rc=-1" in ask(node, f"cmd=put key={'k' * 65} value=v")
    assert ask(node, "cmd=abort exitcode=7", rank=1) == ""
    assert ask(node, "cmd=abort exitcode=8", rank=0) == ""
    assert node.abort == (1, 7, "")


def test_a_rank_that_ends_leaves_the_others_in_the_barrier() -> None:
    node = local(ranks=3)
    ask(node, "cmd=init", 1)
    node.leave(1)
    assert node.missing() is None
    assert node.left_open(1)
    ask(node, "cmd=barrier_in", 0)
    assert node.missing() == 1


@given(st.lists(st.tuples(KEY, WORD), max_size=8), st.data())
def test_any_pieces_are_the_same_commands(words: list[tuple[str, str]], data: st.DataObject) -> None:
    lines = [f"cmd=put {key}={value}\n" for key, value in words]
    stream = "".join(lines).encode()
    reader, seen = pmi.Reader(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        seen += list(reader.feed(stream[:size]))
        stream = stream[size:]
    assert seen == [pmi.parse(line) for line in lines]


@given(st.binary(max_size=300))
def test_any_bytes_are_answered_or_refused(data: bytes) -> None:
    with contextlib.suppress(pmi.PmiError):
        assert local().hear(0, data + b"\n") is not None


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.dictionaries(KEY, WORD, max_size=8),
    st.randoms(use_true_random=False),
)
def test_what_was_put_is_everywhere_after_the_barrier(
    counts: list[int], puts: dict[str, str], random
) -> None:
    first = [sum(counts[:i]) for i in range(len(counts))]
    nodes = [pmi.Local(range(f, f + n), sum(counts), "kvs", "") for f, n in zip(first, counts, strict=True)]
    everyone = [(node, rank) for node in nodes for rank in node.ranks]
    for key, value in puts.items():
        node, rank = random.choice(everyone)
        assert "rc=0" in ask(node, f"cmd=put key={key} value={value}", rank)
    barrier, released = pmi.Barrier(len(nodes)), None
    random.shuffle(everyone)
    for node, rank in everyone:
        assert released is None
        assert ask(node, "cmd=barrier_in", rank) == ""
        if (part := node.complete()) is not None:
            released = barrier.arrive(nodes.index(node), part)
    assert released == puts
    for node in nodes:
        assert node.release(released) == b"cmd=barrier_out\n"
        for key, value in puts.items():
            assert ask(node, f"cmd=get key={key}", min(node.ranks)).endswith(f"value={value}\n")
    assert not barrier.pending


def test_what_ranks_put_in_all_barriers_together_is_bounded() -> None:
    node = local(ranks=1, size=1)
    value = "v" * pmi.VALUE_MAX
    with pytest.raises(pmi.PmiError, match="more than"):
        for barrier in range(1 + pmi.MOST_KNOWN // (pmi.VALUE_MAX * pmi.MAX_PUTS)):
            node.release({f"{barrier}.{key}": value for key in range(pmi.MAX_PUTS)})
    assert sum(len(key) + len(text) for key, text in node.known.items()) <= pmi.MOST_KNOWN
