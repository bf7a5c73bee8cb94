"""The one error tree.

Only leaves are raised. Each leaf has a stable ``code`` (for programs), an ``exit_code`` (for the q-commands: the PBS
server's error number & 255, T:pbs_error_db.h and O:pbs_error.h) and an ``http_status``. ``str(error)`` is the one line
that a user reads: what is wrong, where, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class HpcmesosError(Exception):
    """Root of the tree; never raised itself."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    transient: ClassVar[bool] = False  # True: the same request may succeed later, unchanged


class Rejection(HpcmesosError):
    """The request is refused; nothing was changed."""

    http_status = 400


class UsageError(Rejection):
    code = "usage"
    exit_code = 2


class InvalidValue(Rejection):
    """A malformed resource, time, size or option value (PBSE_BADATVAL 15014, & 255 = 166 OpenPBS, 168 Torque)."""

    code = "invalid-value"
    exit_code = 168


class InvalidScript(Rejection):
    """The job script is missing, unreadable, too large, or holds bytes that no script may hold."""

    code = "invalid-script"
    exit_code = 1


class NeverFits(Rejection):
    """No set of known nodes, up or down, could ever hold the request (PBSE_EXCQRESC 15046 & 255 = 190)."""

    code = "never-fits"
    exit_code = 190


class NoRoom(Rejection):
    """There is no room now (PBSE_RESCUNAV 15046 & 255 = 198)."""

    code = "no-room"
    exit_code = 198
    http_status = 409


class UnknownQueue(Rejection):
    code = "unknown-queue"  # PBSE_UNKQUE, Torque 172
    exit_code = 172
    http_status = 404


class QueueDisabled(Rejection):
    code = "queue-disabled"
    exit_code = 175
    http_status = 409


class ArrayTooLarge(Rejection):
    """More elements than the site lets one array have; as OpenPBS' qsub exits."""

    code = "array-too-large"
    exit_code = 3
    http_status = 400


class QueueExists(Rejection):
    code = "queue-exists"  # PBSE_QUEEXIST, OpenPBS 15025
    exit_code = 179
    http_status = 409


class QueueBusy(Rejection):
    """A queue that holds jobs cannot be deleted (PBSE_QUEBUSY)."""

    code = "queue-busy"
    exit_code = 181
    http_status = 409


class QueueDenied(Rejection):
    """An access list of a queue or the server leaves the caller out (PBSE_QACESS 15024 & 255)."""

    code = "queue-denied"
    exit_code = 176
    http_status = 403


class QueueLimit(Rejection):
    """The request is outside the limits of its queue or the server (PBSE_EXCQRESC)."""

    code = "queue-limit"
    exit_code = 190


class TooManyJobs(Rejection):
    """The queue, or its owner in it, has as many jobs as are allowed (PBSE_MAXQUED, PBSE_MAXUSERQUED)."""

    code = "too-many-jobs"
    exit_code = 228
    http_status = 409


class TooFast(Rejection):
    """The user submits faster than the site allows; nothing was stored."""

    code = "too-fast"
    exit_code = 228  # as for too many jobs: what scripts that try again know
    http_status = 429


class BadDirective(Rejection):
    """A line that qmgr cannot read; the message has the line and marks where."""

    code = "bad-directive"
    exit_code = 4


class UnknownAttribute(Rejection):
    code = "unknown-attribute"  # PBSE_NOATTR 15002 & 255
    exit_code = 154


class ReadOnlyAttribute(Rejection):
    code = "read-only-attribute"  # PBSE_ATTRRO 15003 & 255
    exit_code = 155
    http_status = 403


class UnknownJob(Rejection):
    code = "unknown-job"  # PBSE_UNKJOBID 15001 & 255
    exit_code = 153
    http_status = 404


class UnknownSchedule(Rejection):
    code = "unknown-schedule"
    exit_code = 153
    http_status = 404


class UnknownNode(Rejection):
    code = "unknown-node"
    exit_code = 178
    http_status = 404


class JobFinished(Rejection):
    """The job is complete; PBSE_BADSTATE in Torque's words."""

    code = "job-finished"
    exit_code = 170
    http_status = 409


class WrongState(Rejection):
    code = "wrong-state"
    exit_code = 170
    http_status = 409


class RunningJob(Rejection):
    """What cannot change any more once the job runs (PBSE_MODATRRUN)."""

    code = "running-job"
    exit_code = 169
    http_status = 409


class NotRerunable(Rejection):
    code = "not-rerunable"  # PBSE_NORERUN
    exit_code = 192
    http_status = 409


class BadSignal(Rejection):
    code = "bad-signal"  # PBSE_UNKSIG
    exit_code = 167


class BadDependency(Rejection):
    code = "bad-dependency"
    exit_code = 208
    http_status = 400


class KeyReused(Rejection):
    """The idempotency key came before with another body."""

    code = "key-reused"
    exit_code = 1
    http_status = 409


class Unauthorized(Rejection):
    """The caller is known and may not do this (PBSE_PERM 15007 & 255)."""

    code = "unauthorized"
    exit_code = 159
    http_status = 403


class Unauthenticated(Rejection):
    """The caller showed no or a wrong credential."""

    code = "unauthenticated"
    exit_code = 159
    http_status = 401


class RootRefused(Rejection):
    code = "root-refused"
    exit_code = 1
    http_status = 403


class Unavailable(HpcmesosError):
    """Something that we need does not answer now; the same request may succeed later."""

    http_status = 503
    transient = True


class MasterUnreachable(Unavailable):
    code = "master-unreachable"
    exit_code = 255


class DatabaseUnavailable(Unavailable):
    code = "database-unavailable"
    exit_code = 255


class LogStoreUnavailable(Unavailable):
    """This master cannot keep output now; another one may, or this one when its disk has room."""

    code = "log-store-unavailable"
    exit_code = 255


class LostLeadership(Unavailable):
    """This process is no longer the leader; it must stop acting at once."""

    code = "lost-leadership"


class SchemaMismatch(HpcmesosError):
    code = "schema-mismatch"
    exit_code = 3


class ConfigError(HpcmesosError):
    code = "config"
    exit_code = 2


class StateError(HpcmesosError):
    """A local state directory, lock or daemon is not as it must be."""

    code = "state"
    exit_code = 1


class IllegalTransition(HpcmesosError):
    """A program error: an edge that the transition table does not have."""

    code = "illegal-transition"


class ProtocolError(HpcmesosError):
    """A peer sent what the protocol does not allow."""

    code = "protocol"


def leaves(root: type[HpcmesosError] = HpcmesosError) -> dict[str, type[HpcmesosError]]:
    """Every leaf of the tree by its code; clients use it to raise again what the server answered."""
    subclasses = root.__subclasses__()
    if not subclasses:
        return {root.code: root}
    return {code: leaf for child in subclasses for code, leaf in leaves(child).items()}
