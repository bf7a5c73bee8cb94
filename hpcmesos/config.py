"""Settings: flags > HPCMESOS_* > config.toml > defaults; one frozen object made in each root (a daemon or a command).

``load(MasterSettings, flags, environ, path)`` merges the sources; every field is named the same in all of them
(``HPCMESOS_DATABASE_URL``, ``database_url = "..."``, ``--database-url``).
"""

from __future__ import annotations

import dataclasses
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hpcmesos.errors import ConfigError

T = TypeVar("T")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterSettings:
    """One master: a supervisor, one leader candidate, ``api_processes`` API processes.

    ``state``: directory of the CA, the certificates and pid files. ``socket``: unix socket of the API (<= 107 bytes).
    ``listen``: host:port of the TLS API; ``link``: host:port where agents dial; port 0: any, published.
    ``leader_database_url``, ``api_database_url``: per role; empty: ``database_url``.
    """

    database_url: str
    state: Path
    socket: Path
    leader_database_url: str = ""
    api_database_url: str = ""
    listen: str = "127.0.0.1:0"
    link: str = "127.0.0.1:0"
    api_processes: int = 2
    server: str = "hpcm"
    cluster: str = ""  # an identifier of this cluster; seeds simulated GPU ids
    default_queue: str = "batch"
    managers: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    manager_groups: tuple[str, ...] = ()  # groups, on the masters or in a claim, whose members are managers
    operator_groups: tuple[str, ...] = ()
    munge: bool = False  # MUNGE credentials are taken over TLS; all hosts share key and user ids then
    munge_socket: str = ""  # munged's; empty: the library's default
    oidc_issuer: str = ""  # URL of an OpenID provider whose JWTs name users; empty: none
    oidc_audience: str = ""  # the "aud" that its tokens must have
    oidc_user_claim: str = "preferred_username"
    oidc_groups_claim: str = "groups"
    oidc_project_claim: str = ""  # project of jobs that name none; empty: none
    oidc_keys_url: str = ""  # of its JWK set; empty: as its discovery document says
    root_jobs: bool = False  # True: root may submit; an embedded cluster of root needs it
    single_user: str = ""  # embedded as a normal user: only this user's jobs; empty: everybody's
    kill_delay: float = 10.0  # seconds between SIGTERM and SIGKILL
    prepare_timeout: float = 30.0
    image_timeout: float = 600.0  # instead, for jobs in containers: a node may have to get the image first
    node_silence: float = 15.0  # s without a pong until a link is cut; s without a link until a node is down
    fence_command: str = ""  # run with the name of a node that is down and holds jobs; 0 says that it is off
    mail: str = ""  # smtp://HOST:PORT, smtp+tls:// or smtps://USER@HOST, sendmail:PATH; empty: none
    mail_password_file: str = ""  # of USER
    mail_from: str = ""  # qmgr's mail_from and mail_domain win
    mail_domain: str = ""  # of users without @ in -M; empty: the submit host; "never": they get none
    webhook: str = ""  # URL that gets a signed POST for every job that starts or ends; empty: none
    webhook_secret_file: str = ""
    certificate_days: float = 365.0  # of nodes and masters; renewed when a third is left
    lease: float = 3.0  # seconds of leadership after the last renewal
    max_attempts: int = 3
    submit_rate: float = (
        1000.0  # jobs a second that one user may submit in the long run (an array is one); 0: any
    )
    submit_burst: float = 100_000.0  # jobs at once after a rest
    max_array_size: int = 1_000_000  # elements of one array
    keep_completed: float = 300.0  # seconds that plain qstat shows finished jobs (Torque)
    keep_history_days: int = 30
    job_path: tuple[str, ...] = ()  # directories put before the job's login PATH, behind our launchers' front
    log_store: str = ""  # directory of output that lies nowhere else, one for all masters; empty: STATE/logs
    log_store_mib: int = 10_240  # of all; the oldest of who has most goes first
    log_stream_mib: int = 1024  # of one stream, there and while it lies on a node; the middle of more goes
    shared_paths: tuple[str, ...] = ("/",)  # trees that nodes and submit hosts see alike
    mpi_network: str = ""  # CIDR for MPI traffic; empty: the stacks choose
    migrate: bool = False  # embedded clusters and tests migrate themselves
    log_level: str = "INFO"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """One agent and its shepherd.

    ``master``: "unix:PATH" or "https://HOST:PORT" of an API, where the agent joins and asks who leads; several masters
    are separated by commas. ``sockets``: directory of the unix sockets (short path). ``cpus``, ``memory``: declared
    values; None: found. ``gpus``: "none", "auto" (NVML), "simulated:N", "uuid:GPU-...,GPU-..." or
    "mig:PROFILE".
    """

    node: str
    master: str
    state: Path
    sockets: Path
    address: str = "127.0.0.1"
    peer_port: int = 0
    cpus: int | None = None
    memory: int | None = None
    gpus: str = "auto"
    features: tuple[str, ...] = ()
    cluster: str = ""
    join_token_file: Path | None = None
    cgroups: str = "auto"  # "auto", "none", or the v2 directory under which attempts' cgroups are made
    limits: tuple[str, ...] = ("memory", "devices")  # of: memory, cpu, devices, pids=NUMBER, nofile=NUMBER
    private_tmp: bool = False  # each attempt has a /tmp and /var/tmp of its own, for as long as it lives
    prolog: Path | None = (
        None  # program that runs here before each attempt; a node where it fails is not fit for the job
    )
    prolog_timeout: float = 20.0  # less than the master's prepare_timeout
    health_program: Path | None = None  # runs each health_interval; while it fails the node takes no new jobs
    health_interval: float = 300.0
    gang_silence: float = 20.0  # seconds without the head's (a member's) ping until this side ends its part
    gang_ping: float = 2.0
    site_scripts: Path = Path(
        "/etc/hpcmesos/scripts"
    )  # prologue, epilogue and their kin; it need not be there
    site_script_timeout: float = 300.0  # seconds that one of them may take
    clean_timeout: float = 60.0  # seconds until a GPU that is not clean is quarantined
    docker: str = (
        "auto"  # URL of the Docker Engine; "auto": DOCKER_HOST or its usual socket; "none": no containers
    )
    container_paths: tuple[str, ...] = ("/home", "/tmp", "/var/tmp")  # noqa: S108  seen in containers; PATH:ro
    docker_in_jobs: bool = False  # jobs find a Docker socket of their own in DOCKER_HOST; docs/containers.md
    image_pull: str = (
        "missing"  # which images are pulled where the job does not say: "always", "missing", "never"
    )
    log_level: str = "INFO"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """The gateway of a login host without a master. ``node``: the host's name, as its users' commands say it.

    ``master``: https://HOST:PORT, several separated by commas. ``socket``: where the host's commands find it.
    """

    master: str
    state: Path
    node: str = field(default_factory=socket.gethostname)
    socket: Path = Path("/run/hpcmesos/api.sock")
    address: str = "127.0.0.1"  # stands in its certificate; nobody dials it
    join_token_file: Path | None = None
    log_level: str = "INFO"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Where commands find the API: ``url`` (https://HOST:PORT of one master or of several, separated by commas) with
    the bearer token in ``token_file`` or by MUNGE, else ``socket``.
    """

    socket: Path = Path("/run/hpcmesos/api.sock")
    url: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None
    munge: bool = False  # shows MUNGE credentials in place of a token
    munge_socket: str = ""  # munged's; empty: the library's default
    submit_filter: Path = Path("/etc/hpcmesos/submit_filter")  # if it is there, it sees every script first
    timeout: float = 60.0
    personality: str = "torque"
    state: Path | None = None
    config: Path | None = field(default=None)


def load(
    kind: type[T],
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    path: Path | None = None,
) -> T:
    """Merges flags (None = not given), ``HPCMESOS_*`` and the table of ``path`` (TOML) over the defaults of ``kind``.

    Raises:
        ConfigError: an unknown key in the file, a value of the wrong type, or a missing required value.
    """
    hints = get_type_hints(kind)
    table = _read_table(path, set(hints)) if path else {}
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        variable = f"HPCMESOS_{name.upper()}"
        if flags.get(name) is not None:
            values[name] = _convert(name, flags[name], hint)
        elif variable in environ:
            values[name] = _convert(variable, environ[variable], hint)
        elif name in table:
            values[name] = _convert(name, table[name], hint)
    required = {
        f.name
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]  # of a dataclass
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(values)):
        raise ConfigError(
            f"missing setting {missing[0]}: give --{missing[0].replace('_', '-')} or HPCMESOS_{missing[0].upper()}"
        )
    if (level := str(values.get("log_level", "INFO"))).upper() not in _LEVELS:
        raise ConfigError(f"log_level: '{level}' is none of {', '.join(_LEVELS)}")
    return kind(**values)


def _read_table(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if unknown := sorted(set(table) - known):
        raise ConfigError(f"{path}: unknown setting '{unknown[0]}'")
    return table


def _convert(name: str, value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` wants it; text lists are separated by commas."""
    text = str(hint)
    try:
        if "tuple" in text:
            return tuple(value.split(",")) if isinstance(value, str) and value else tuple(value or ())
        if "Path" in text:
            return Path(value).absolute()
        if "bool" in text:
            return (
                value
                if isinstance(value, bool)
                else {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
            )
        if "float" in text:
            return float(value)
        if "int" in text:
            return int(value)
        return str(value)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{name}: '{value}' is not a valid value") from error
