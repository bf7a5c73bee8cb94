"""Which calls of the Docker Engine's API a job may make, and what each of them becomes; pure.

A call that is not in the table is refused, and so is a parameter that its row does not name: older and newer Engines
understand more than we have thought about.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any
from urllib.parse import parse_qsl, urlencode

from hpcmesos.agent import docker_create
from hpcmesos.agent.docker_create import Creation, Grant, Refused
from hpcmesos.launch.container_marks import OWN, STATE

_VERSION = re.compile(r"(/v\d+\.\d+)?(/.*)", re.ASCII)
_CONTAINER = r"(?P<container>[A-Za-z0-9][A-Za-z0-9_.-]*)"
_EXECUTION = r"(?P<execution>[0-9a-f]{64})"
_IMAGE = r"(?P<image>[A-Za-z0-9]([A-Za-z0-9_.:@-]|/(?=[A-Za-z0-9]))*)"  # one way to read each character


class Kind(Enum):
    """What has to be done about a call besides passing it on."""

    PLAIN = auto()
    LIST = auto()  # of containers: the job's own alone
    CREATE = auto()
    CONTAINER = auto()  # is about one container, which has to be the job's
    EXECUTE = auto()  # makes a command in such a container
    EXECUTION = auto()  # is about such a command
    PULL = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """``parameters``: those that may be given. ``hijacks``: its connection may become a stream of both sides.

    ``starts``: something of the job's is there afterwards, which whoever ends the job has to see.
    """

    methods: str
    path: str
    parameters: str = ""
    kind: Kind = Kind.CONTAINER
    hijacks: bool = False
    starts: bool = False

    def match(self, method: str, path: str) -> re.Match[str] | None:
        return re.fullmatch(self.path, path, re.ASCII) if method in self.methods.split() else None


_OF = f"/containers/{_CONTAINER}"
ROUTES = (
    Route("GET HEAD", "/_ping", kind=Kind.PLAIN),
    Route("GET", "/version", kind=Kind.PLAIN),
    Route("GET", "/info", kind=Kind.PLAIN),
    Route("GET", "/images/json", "all filters digests shared-size manifests", Kind.PLAIN),
    Route("GET", f"/images/{_IMAGE}/json", "platform manifests", Kind.PLAIN),
    Route("POST", "/images/create", "fromImage tag platform", Kind.PULL),
    Route("GET", "/containers/json", "all limit size filters", Kind.LIST),
    Route("POST", "/containers/create", "name platform", Kind.CREATE, starts=True),
    Route("GET", f"{_OF}/json", "size"),
    Route("GET", f"{_OF}/logs", "follow stdout stderr since until timestamps tail details"),
    Route("GET", f"{_OF}/stats", "stream one-shot"),
    Route("POST", f"{_OF}/start", "detachKeys", starts=True),
    Route("POST", f"{_OF}/restart", "t signal", starts=True),
    Route("POST", f"{_OF}/stop", "t signal"),
    Route("POST", f"{_OF}/kill", "signal"),
    Route("POST", f"{_OF}/wait", "condition"),
    Route("POST", f"{_OF}/resize", "h w"),
    Route("POST", f"{_OF}/attach", "detachKeys logs stream stdin stdout stderr", hijacks=True),
    Route("POST", f"{_OF}/exec", kind=Kind.EXECUTE),
    Route("DELETE", _OF, "v force"),
    Route("POST", f"/exec/{_EXECUTION}/start", kind=Kind.EXECUTION, hijacks=True),
    Route("POST", f"/exec/{_EXECUTION}/resize", "h w", Kind.EXECUTION),
    Route("GET", f"/exec/{_EXECUTION}/json", kind=Kind.EXECUTION),
)
LARGEST_COMMAND = 1 << 16
"""Bytes of the request of `docker exec`: the Engine keeps what it is told for as long as the container is there."""
KNOWN = "run, ps, logs, wait, kill, stop, restart, rm, inspect, exec, attach, stats, images and pull"
"""What of the docker command works in jobs."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call for the Engine. ``prefix``: the version that its caller speaks. ``body``: None for none.

    ``container``, ``execution``: what it is about, as its caller names it.
    """

    route: Route
    method: str
    prefix: str
    path: str
    query: tuple[tuple[str, str], ...]
    container: str = ""
    execution: str = ""
    creation: Creation | None = None
    body: Any = None

    @property
    def target(self) -> str:
        return f"{self.prefix}{self.path}" + (f"?{urlencode(self.query)}" if self.query else "")

    def about(self, identifier: str) -> Call:
        """The same about the container of that whole id: its name may be another's by then."""
        path = self.path.replace(f"/containers/{self.container}", f"/containers/{identifier}", 1)
        return replace(self, path=path, container=identifier)


def read(grant: Grant, method: str, target: str, body: bytes) -> Call:
    """What a request becomes.

    Raises:
        Refused: it is not for jobs.
    """
    whole, _, query = target.partition("?")
    prefix, path = found.groups() if (found := _VERSION.fullmatch(whole)) else ("", whole)
    for route in ROUTES:
        if match := route.match(method, path):
            break
    else:
        raise Refused(f"{method} {whole[:200]} is refused in a job, where of docker there is {KNOWN}")
    names = match.groupdict()
    call = Call(
        route,
        method,
        prefix or "",
        path,
        _parameters(route, query),
        names.get("container", ""),
        names.get("execution", ""),
    )
    match route.kind:
        case Kind.LIST:
            return replace(call, query=_own_alone(grant, call.query))
        case Kind.CREATE:
            return replace(call, creation=docker_create.creation(grant, _json(body)))
        case Kind.EXECUTE if len(body) > LARGEST_COMMAND:
            raise Refused(f"a command in a container has at most {LARGEST_COMMAND} bytes; put it into a file")
        case Kind.EXECUTE:
            return replace(call, body=docker_create.execution(grant, _json(body)))
        case Kind.PULL if not grant.pull:
            raise Refused(
                "images are not pulled on this node for this job (image_pull=never): name one that is here"
            )
        case Kind.EXECUTION if route.hijacks:
            return replace(call, body={name: bool(_json(body).get(name)) for name in ("Detach", "Tty")})
    return call


def all_own(grant: Grant) -> str:
    """What answers all containers of the job."""
    return f"/containers/json?{urlencode(_own_alone(grant, (('all', '1'),)))}"


def is_own(grant: Grant, found: Mapping[str, Any]) -> bool:
    """Whether a container was made by this job; ``found``: what the Engine says of it.

    Labels alone do not tell, for a container has those of its image too, which anybody may have made.
    """
    labels = found["Config"].get("Labels") or {}
    marked = all(labels.get(name) == grant.labels[name] for name in (STATE, OWN))
    return marked and found["HostConfig"].get("CgroupParent") == grant.cgroup


def _parameters(route: Route, query: str) -> tuple[tuple[str, str], ...]:
    try:
        found = parse_qsl(query, strict_parsing=True, max_num_fields=50) if query else []
    except ValueError:
        raise Refused("the request's parameters cannot be read") from None
    known = route.parameters.split()
    if unknown := next((name for name, value in found if value and name not in known), None):
        raise Refused(f"parameter {unknown[:100]} is refused in a job: leave it away")
    kept = tuple((name, value) for name, value in found if name in known)
    if len({name for name, _ in kept}) != len(kept):
        raise Refused("a parameter is given twice")
    return kept


def _own_alone(grant: Grant, query: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Labels that are filtered by have all to fit. Clients send ``{"label": {"a=b": true}}`` or ``{"label": ["a=b"]}``;
    the Engine takes either, but no mixture.
    """
    given = dict(query)
    filters = {name: _values(value) for name, value in _json(given.pop("filters", "{}").encode()).items()}
    marks = [f"{name}={grant.labels[name]}" for name in (STATE, OWN)]
    filters["label"] = [*filters.get("label", []), *marks]
    return (*given.items(), ("filters", json.dumps(filters)))


def _values(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [name for name, wanted in value.items() if wanted]
    if not isinstance(value, list):
        raise Refused("the filters cannot be read")
    return [str(one) for one in value]


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise Refused("the request's body is no JSON") from None
    if not isinstance(value, dict):
        raise Refused("the request's body is no JSON object")
    return value
