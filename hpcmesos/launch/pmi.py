"""PMI-1, by which programs of the MPICH family find each other, for the ranks of one node. No I/O.

Ranks send lines ``cmd=NAME key=value ...``. What a rank puts becomes visible to all at the next barrier, so that one
exchange between the nodes for each barrier is enough; everything else is answered on the node.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KVSNAME_MAX, KEY_MAX, VALUE_MAX = 256, 64, 1024
MAX_LINE = 4096
"""Bytes of a line, at most: the longest put needs less."""
MAX_PUTS = 4096
"""Keys that one rank may put between two barriers: they are held by a process that serves others too."""


MOST_KNOWN = 64 * 1024 * 1024
"""Bytes of keys and values that all ranks of a step may have put, ever; 50,000 of the longest are less."""


class PmiError(Exception):
    """A rank sent what is no PMI-1."""


def parse(line: str) -> dict[str, str]:
    """The words of a line, ``cmd`` among them. Raises PmiError when it has none."""
    words = dict(word.partition("=")[::2] for word in line.split())
    if "mcmd" in words:
        words["cmd"] = words.pop("mcmd")
    if not words.get("cmd"):
        raise PmiError(f"no command in {line[:80]!r}")
    return words


def render(command: str, **words: object) -> bytes:
    """The line of an answer."""
    return " ".join([f"cmd={command}", *(f"{k}={v}" for k, v in words.items())]).encode("utf-8") + b"\n"


def mapping(counts: list[int]) -> str:
    """PMI_process_mapping of ranks placed block by block: (first node, nodes, ranks on each) for each run of nodes."""
    blocks: list[list[int]] = []
    for node, count in enumerate(counts):
        if blocks and blocks[-1][2] == count:
            blocks[-1][1] += 1
        else:
            blocks.append([node, 1, count])
    return "(vector," + ",".join(f"({first},{nodes},{count})" for first, nodes, count in blocks) + ")"


class Reader:
    """Cuts what one rank sends into commands, whatever the pieces are."""

    def __init__(self) -> None:
        self._rest = b""
        self._long = ""  # first line of a command that ends with ``endcmd``; what else it says is not served

    def feed(self, data: bytes) -> Iterator[dict[str, str]]:
        """Yields each whole command. Raises PmiError."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in [*lines, self._rest]:
            if len(line) > MAX_LINE:
                raise PmiError(f"a line of {len(line)} bytes")
        for line in lines:
            text = line.decode("utf-8", "replace")
            if self._long or text.startswith("mcmd="):
                self._long = self._long or text
                if text == "endcmd":
                    yield parse(self._long)
                    self._long = ""
            elif text:
                yield parse(text)


class Rank:
    """Where one rank stands."""

    def __init__(self) -> None:
        self.reader = Reader()
        self.begun = self.finalized = self.waiting = self.gone = False
        self.passed = False  # a barrier, and has asked for nothing since
        self.puts: dict[str, str] = {}


class Local:
    """The ranks of one node. ``name``: of the key space that all ranks of the step share."""

    def __init__(self, ranks: Iterable[int], size: int, name: str, process_mapping: str) -> None:
        self.ranks = {rank: Rank() for rank in ranks}
        self.known = {"PMI_process_mapping": process_mapping}
        self._room = MOST_KNOWN
        self._size = size
        self._name = name
        self.abort: tuple[int, int, str] | None = None
        """(rank, code, what it said) once a rank has aborted."""

    def hear(self, number: int, data: bytes) -> bytes:
        """What a rank sent; the answers for it. A barrier is answered by `release`. Raises PmiError."""
        rank = self.ranks[number]
        return b"".join(self._answer(number, rank, words) for words in rank.reader.feed(data))

    def _answer(self, number: int, rank: Rank, words: dict[str, str]) -> bytes:
        rank.passed = False
        match words["cmd"]:
            case "init":
                rank.begun, rank.finalized = True, False
                return render("response_to_init", pmi_version=1, pmi_subversion=1, rc=0)
            case "get_maxes":
                return render("maxes", kvsname_max=KVSNAME_MAX, keylen_max=KEY_MAX, vallen_max=VALUE_MAX)
            case "get_appnum":
                return render("appnum", appnum=0)
            case "get_my_kvsname":
                return render("my_kvsname", kvsname=self._name)
            case "get_universe_size":
                return render("universe_size", size=self._size)
            case "put":
                return self._put(rank, words)
            case "get":
                return self._get(words.get("key", ""))
            case "barrier_in":
                rank.waiting = True
                return b""
            case "finalize":
                rank.finalized = True
                return render("finalize_ack")
            case "abort":
                code = words.get("exitcode", "")
                said = (number, int(code) if code.lstrip("-").isdigit() else 1, words.get("error_msg", ""))
                self.abort = self.abort or said
                return b""
            case "spawn" | "publish_name" | "unpublish_name" | "lookup_name" as other:
                result = {"publish_name": "publish_result", "unpublish_name": "unpublish_result"}
                return render(
                    result.get(other, other.replace("_name", "") + "_result"), rc=-1, msg="not_supported"
                )
            case other:
                raise PmiError(f"no command {other[:80]!r}")

    def _put(self, rank: Rank, words: dict[str, str]) -> bytes:
        key, value = words.get("key", ""), words.get("value", "")
        if not 0 < len(key) <= KEY_MAX or len(value) > VALUE_MAX or len(rank.puts) >= MAX_PUTS:
            return render("put_result", rc=-1, msg="out_of_bounds")
        rank.puts[key] = value
        return render("put_result", rc=0, msg="success")

    def _get(self, key: str) -> bytes:
        value = self.known.get(key)
        if value is None:
            found = (rank.puts[key] for rank in self.ranks.values() if key in rank.puts)
            value = next(found, None)
        if value is None:
            return render("get_result", rc=-1, msg=f"key_{key}_not_found", value="unknown")
        return render("get_result", rc=0, msg="success", value=value)

    def complete(self) -> dict[str, str] | None:
        """What the ranks of this node have put, once all of them wait in a barrier; each barrier is told once."""
        if not self.ranks or not all(rank.waiting for rank in self.ranks.values()):
            return None
        puts: dict[str, str] = {}
        for rank in self.ranks.values():
            rank.waiting = False
            puts |= rank.puts
            rank.puts = {}
        return puts

    def release(self, puts: dict[str, str]) -> bytes:
        """All ranks of the step have put ``puts`` and wait: the answer for each rank of this node. Raises PmiError."""
        self._room -= sum(len(key) + len(value) for key, value in puts.items())
        if self._room < 0:
            raise PmiError(f"the ranks have put more than {MOST_KNOWN} bytes")
        self.known |= puts
        for rank in self.ranks.values():
            rank.passed = True
        return render("barrier_out")

    def leave(self, number: int) -> None:
        """The rank's process has ended."""
        self.ranks[number].gone = True

    def missing(self) -> int | None:
        """A rank that others on this node wait for in vain, for it has ended."""
        if not any(rank.waiting for rank in self.ranks.values()):
            return None
        return next((n for n, rank in self.ranks.items() if rank.gone and not rank.waiting), None)

    def left_open(self, number: int) -> bool:
        """The rank began MPI and never finalized it.

        MPICH 5 says so only when the process exits; its MPI_Finalize ends with a barrier, its MPI_Init with questions.
        """
        rank = self.ranks[number]
        return rank.begun and not (rank.finalized or rank.passed)


class Barrier:
    """The nodes of a step in a barrier, as their common parent sees them."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._puts: dict[int, dict[str, str]] = {}

    @property
    def pending(self) -> bool:
        return bool(self._puts)

    def arrive(self, node: int, puts: dict[str, str]) -> dict[str, str] | None:
        """Everything that was put, once the last node is here."""
        self._puts[node] = puts
        if len(self._puts) < self._nodes:
            return None
        everything: dict[str, str] = {}
        for part in self._puts.values():
            everything |= part
        self._puts = {}
        return everything
