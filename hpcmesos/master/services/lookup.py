"""From what a user writes to rows of jobs, and what a caller may see of them."""

from __future__ import annotations

from hpcmesos.errors import InvalidValue, Unauthorized, UnknownJob
from hpcmesos.master.auth import Caller
from hpcmesos.master.services.site import Site
from hpcmesos.model import JobId
from hpcmesos.queue.records import JobRecord

_LARGEST_SEQ = 2**63 - 1
_LARGEST_INDEX = 2**31 - 1


def parse_id(site: Site, text: str) -> JobId:
    """The id that ``text`` names on this server.

    Raises:
        UnknownJob: the text is no id, or another server's.
    """
    try:
        job = JobId.parse(text, site.settings.server)
    except InvalidValue as error:
        raise UnknownJob(f"Unknown Job Id {text}") from error
    if job.server != site.settings.server or job.seq > _LARGEST_SEQ or (job.index or 0) > _LARGEST_INDEX:
        raise UnknownJob(f"Unknown Job Id {text}")
    return job


def find(site: Site, text: str) -> JobRecord:
    """The job that ``text`` names, in history too; a bare number also names an array.

    Raises:
        UnknownJob: there is none.
    """
    job = parse_id(site, text)
    record = site.store.job(job.seq, job.index)
    if record is None:
        raise UnknownJob(f"Unknown Job Id {job}")
    return record


def find_own(site: Site, caller: Caller, text: str) -> JobRecord:
    """As find(), for what only the owner and operators may do.

    Raises:
        Unauthorized: the job is another user's.
    """
    record = find(site, text)
    if not caller.may_touch(record.owner):
        raise Unauthorized(f"Unauthorized Request  {id_of(record)}")
    return record


def full_id(site: Site, text: str) -> str:
    """An operand with the server's name, as the servers' own messages show it."""
    return text if "." in text else f"{text}.{site.settings.server}"


def id_of(record: JobRecord) -> JobId:
    """The id as users see it."""
    return JobId(record.seq, record.server, record.index, record.todo is not None and record.index is None)
