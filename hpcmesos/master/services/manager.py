"""qmgr, qenable, qdisable, qstart, qstop: queues, the server and nodes as administrators see and change them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpcmesos.api_schema import CommandReply, CommandRequest, Need
from hpcmesos.errors import (
    BadDirective,
    HpcmesosError,
    InvalidValue,
    QueueBusy,
    ReadOnlyAttribute,
    StateError,
    UnknownAttribute,
    UnknownNode,
    UnknownQueue,
    UsageError,
)
from hpcmesos.master import auth
from hpcmesos.master.auth import Caller
from hpcmesos.master.objects import changed_queue, flat
from hpcmesos.master.services import wishes
from hpcmesos.master.services.nodes import facts as node_facts
from hpcmesos.master.services.replies import VERSION, Refusals, error_number, exit_code, information
from hpcmesos.master.services.site import FRESH, Site, server_attributes
from hpcmesos.master.services.submit import decoded
from hpcmesos.pbs import manager_render as render
from hpcmesos.pbs.manager import Change, Directive, lines, parse_line
from hpcmesos.pbs.manager_attributes import NODE_ATTRIBUTES, READ_ONLY, apply, known
from hpcmesos.pbs.nodes import nodes_text
from hpcmesos.pbs.options import parse
from hpcmesos.pbs.personalities import Personality
from hpcmesos.pbs.render_text import state_count
from hpcmesos.queue.records import QueueRecord

_SWITCHES: Mapping[str, tuple[str, str]] = {
    "qenable": ("enabled", "True"),
    "qdisable": ("enabled", "False"),
    "qstart": ("started", "True"),
    "qstop": ("started", "False"),
}
_FAREWELL = 0.2  # seconds until a master that was told to stop does: its answer is on its way by then
_SWITCH_FAILED = 2  # what these four exit with, whatever the error


def qmgr(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Runs the directives of ``-c``, else those of standard input; what goes wrong with one is told, the next goes on.

    When it returns, its changes hold in every API process.
    """
    personality = Personality(request.personality)
    if told := information("qmgr", request.argv, personality):
        return told
    words = parse("qmgr", request.argv)
    text = words.last("c")
    if text is None:
        if request.script is None:
            return CommandReply(need=Need(script="-", terminal=["qmgr-shell"]))
        text = (decoded(request.script) or b"").decode("utf-8", "replace")
    session = _Session(site, caller, personality, silent=words.has("z"))
    for line in lines(text):
        if words.has("e"):
            session.out.append(f"{line.strip()}\n")
        if not session.run(line, check_only=words.has("n")) and words.has("a"):
            break
        if session.over:
            break
    session.settle()
    return CommandReply(stdout="".join(session.out), stderr="".join(session.complaints), code=session.code)


def switch(command: str, site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """qenable, qdisable, qstart, qstop: operators may, too."""
    personality = Personality(request.personality)
    if told := information(command, request.argv, personality):
        return told
    queues = [name.partition("@")[0] for name in parse(command, request.argv).operands]
    if not queues:
        raise UsageError(f"name at least one queue: {command} queue ...")
    name, value = _SWITCHES[command]
    refusals = Refusals(command, personality)
    known_queues = site.queues.fresh()
    sent: list[int] = []
    for queue in queues:
        try:
            auth.check_operator(caller, "change queues")
            if queue not in known_queues:
                raise UnknownQueue(f"Unknown queue {queue}")
            payload = _payload("queue", queue, "set", [Change(name, "=", value)])
            sent.append(site.wish(caller, wishes.OBJECT, None, payload))
        except HpcmesosError as error:
            refusals.add(queue, error)
    _settle(site, sent)
    reply = refusals.reply()
    return CommandReply(stderr=reply.stderr, code=_SWITCH_FAILED if reply.code else 0)


def qterm(site: Site, caller: Caller, request: CommandRequest) -> CommandReply:
    """Stops the master that is asked; jobs and agents go on, and other masters take over."""
    if told := information("qterm", request.argv, Personality(request.personality)):
        return told
    kind = parse("qterm", request.argv).last("t") or "quick"
    if kind != "quick":
        raise UsageError(f"-t {kind} is not served: no job ends with its master; write -t quick")
    auth.check_manager(caller, "stop a master")
    if site.supervisor is None:
        raise StateError("this API process has no supervisor that could be stopped")
    threading.Timer(_FAREWELL, os.kill, (site.supervisor, signal.SIGTERM)).start()
    return CommandReply()


@dataclass(slots=True)
class _Session:
    """One run of qmgr: what is active, what was said and wished so far."""

    site: Site
    caller: Caller
    personality: Personality
    silent: bool = False
    active: dict[str, tuple[str, ...]] = field(default_factory=dict)
    out: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    code: int = 0
    over: bool = False
    line: int = 0  # the number of the one that runs

    def run(self, line: str, *, check_only: bool) -> bool:
        """One line; False: something was wrong."""
        self.line += 1
        try:
            directive = parse_line(line)
        except (InvalidValue, BadDirective) as error:
            self._complain(f"qmgr: {error}\n", error.exit_code if isinstance(error, BadDirective) else 1)
            return False
        good = True
        for name in [""] if check_only else self._targets(directive):
            try:
                self._one(directive, name)
            except HpcmesosError as error:
                asked = self.site.wished(self.caller, self._part(name)) is not None
                if asked and not isinstance(error, QueueBusy):
                    continue  # what the first try did is no reason to refuse the second
                number = error_number(error, self.personality)
                server = f"qmgr obj={name} svr=default: {_sentence(error)}\n"
                self._complain(
                    f"{server}qmgr: Error ({number}) returned from server\n",
                    exit_code(error, self.personality),
                )
                good = False
        return good

    def settle(self) -> None:
        """Waits until what was wished is done and every API process sees it."""
        _settle(self.site, self.sent)

    def _part(self, name: str) -> str:
        """What the line asks of one object, for `Site.wish`."""
        return f"{self.line} {name}"

    def _complain(self, text: str, code: int) -> None:
        if not self.silent:
            self.complaints.append(text)
        self.code = code

    def _targets(self, directive: Directive) -> Sequence[str]:
        """The objects that a directive is about; one empty name stands for the server, and for all together."""
        if directive.verb in ("active", "help", "quit", "exit") or directive.kind in ("", "server"):
            return [""]
        if directive.verb == "print" and not directive.names and directive.kind not in self.active:
            return [""]
        if directive.names:
            return directive.names
        if directive.every or (directive.kind not in self.active and directive.verb == "list"):
            return list(self.site.queues.fresh() if directive.kind == "queue" else self._node_names())
        return self.active.get(directive.kind) or [""]

    def _one(self, directive: Directive, name: str) -> None:
        match directive.verb:
            case "help":
                self.out.append(render.HELP)
            case "quit" | "exit":
                self.over = True
            case "active":
                self._activate(directive)
            case "list":
                self._list(directive, name)
            case "print":
                self._print(directive, name)
            case _:
                self._change(directive, name)

    def _activate(self, directive: Directive) -> None:
        if not directive.kind:
            self.out += [f"{kind}s: {','.join(names)}\n" for kind, names in self.active.items()]
        elif directive.names:
            for name in directive.names:
                self._check_known(directive.kind, name)
            self.active[directive.kind] = directive.names
        else:
            self.active.pop(directive.kind, None)

    def _check_known(self, kind: str, name: str) -> None:
        if kind == "queue" and name not in self.site.queues.fresh():
            raise UnknownQueue("Unknown queue")
        if kind == "node" and name not in self._node_names():
            raise UnknownNode("Unknown node")

    # --- shown

    def _list(self, directive: Directive, name: str) -> None:
        wanted = [change.name for change in directive.changes]
        for attribute in wanted:
            if not known(directive.kind, attribute):
                raise UnknownAttribute(f"Undefined attribute {attribute}")
        if directive.kind == "server":
            shown = {"server_state": "Active", **self._counted(None), **server_attributes(self.site)}
            shown["pbs_version"] = VERSION
            name = self.site.settings.server
        elif directive.kind == "queue":
            queue = self.site.queues.fresh().get(name)
            if queue is None:
                raise UnknownQueue("Unknown queue")
            attributes = flat(queue)
            first = {"queue_type": attributes.pop("queue_type")}
            shown = {**first, **self._counted(name), **attributes}
        else:
            shown = self._node(name)
        if wanted:
            shown = {key: value for key, value in shown.items() if _asked(key, wanted)}
        self.out.append(render.listed(directive.kind, name, shown, self.personality))

    def _print(self, directive: Directive, name: str) -> None:
        queues = self.site.queues.fresh()
        if directive.kind == "server":
            self.out.append(render.printed_queues((queue.name, flat(queue)) for queue in queues.values()))
            self.out.append(render.printed_server(server_attributes(self.site)))
        elif directive.kind == "queue":
            if name and name not in queues:
                raise UnknownQueue("Unknown queue")
            chosen = [queues[name]] if name else list(queues.values())
            self.out.append(render.printed_queues((queue.name, flat(queue)) for queue in chosen))
        else:
            names = [name] if name else self._node_names()
            settable = [(node, self._settable(node)) for node in names]
            self.out.append(render.printed_nodes(settable))

    def _counted(self, queue: str | None) -> dict[str, str]:
        counts = self.site.store.counts()
        found = sum(map(Counter, counts.values()), Counter[str]()) if queue is None else counts.get(queue, {})
        return {"total_jobs": str(sum(found.values())), "state_count": state_count(found)}

    def _node_names(self) -> list[str]:
        return [node.name for node in self.site.store.nodes()]

    def _node(self, name: str) -> dict[str, str]:
        chosen = [node for node in self.site.store.nodes() if node.name == name]
        if not chosen:
            raise UnknownNode("Unknown node")
        text = nodes_text(node_facts(self.site, chosen), self.personality)
        pairs = (line.strip().partition(" = ") for line in text.replace("\n\t", "").splitlines()[1:])
        return {key: value for key, equals, value in pairs if equals}

    def _settable(self, name: str) -> dict[str, str]:
        shown = self._node(name)
        kept = {key: value for key, value in shown.items() if key in NODE_ATTRIBUTES}
        offline = "offline" in kept.pop("state", "").split(",")
        return ({"state": "offline"} if offline else {}) | kept

    # --- changed

    def _change(self, directive: Directive, name: str) -> None:
        if directive.kind == "node":
            auth.check_operator(self.caller, "change nodes")
            self._change_node(directive, name)
            return
        auth.check_manager(self.caller, "change queues and the server")
        if directive.kind == "server":
            attributes = apply("server", self.site.server.fresh(), directive.changes)
            default = attributes.get("default_queue")
            if default is not None and default not in self.site.queues.fresh():
                raise UnknownQueue("Unknown queue")
        else:
            queues = self.site.queues.fresh()
            if not name:
                raise UnknownQueue("No queue is named or active")
            queue = changed_queue(queues, name, directive.verb, directive.changes)
            self._check_queue(name, queue)
        payload = _payload(directive.kind, name, directive.verb, directive.changes)
        self.sent.append(self.site.wish(self.caller, wishes.OBJECT, None, payload, self._part(name)))
        # The next directive must see this one done.
        self.site.notifier.poke()
        taken = wishes.await_taken(self.site.store, self.sent[-1:])
        gone = directive.kind == "queue" and directive.verb == "delete"
        if gone and taken and name in self.site.queues.fresh():
            raise QueueBusy("Queue is busy")  # a job has come in meanwhile

    def _check_queue(self, name: str, queue: QueueRecord | None) -> None:
        if queue is None:
            counts = self.site.store.counts().get(name, {})
            if any(number for state, number in counts.items() if state != "C"):
                raise QueueBusy("Queue is busy")

    def _change_node(self, directive: Directive, name: str) -> None:
        if directive.verb in ("create", "delete"):
            raise ReadOnlyAttribute(
                "nodes join by themselves (hpcmesos token create --join) and are given up by pbsnodes --gone"
            )
        self._check_known("node", name)
        for payload in _node_payloads(directive):
            wish = {"node": name, **payload}
            self.sent.append(self.site.wish(self.caller, wishes.NODE, None, wish))


def _node_payloads(directive: Directive) -> Iterator[Mapping[str, str | None]]:
    """The wishes about a node that set and unset stand for."""
    for change in directive.changes:
        if change.name in READ_ONLY["node"]:
            raise ReadOnlyAttribute(f"{change.name} is what the node's agent tells")
        if change.name not in NODE_ATTRIBUTES:
            raise UnknownAttribute(f"Undefined attribute {change.name}")
        if change.name != "state":
            yield {"action": "note", "note": change.value if change.operator else ""}
            continue
        offline = "offline" in change.value.split(",")
        if change.value not in ("offline", "free", "up"):
            raise InvalidValue(f"state = {change.value}: write offline or free")
        clear = change.operator == "-=" or not offline
        yield {"action": "clear" if clear else "offline", "note": None}


def _asked(key: str, wanted: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in wanted)


def _payload(kind: str, name: str, action: str, changes: Sequence[Change]) -> Mapping[str, Any]:
    """Of an OBJECT wish."""
    return {
        "kind": kind,
        "name": name,
        "action": action,
        "changes": [[change.name, change.operator, change.value] for change in changes],
    }


def _settle(site: Site, sent: Sequence[int]) -> None:
    """Until the leader has taken these wishes, and what API processes remember of queues and server is younger."""
    if not sent:
        return
    site.notifier.poke()
    wishes.await_taken(site.store, sent)
    time.sleep(FRESH)
    site.queues.fresh()
    site.server.fresh()


def _sentence(error: HpcmesosError) -> str:
    return " ".join(str(error).split())
