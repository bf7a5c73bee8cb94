"""From what a user writes to rows of jobs, and what a caller may see of them."""

from __future__ import annotations

import re

from hpcmesos.errors import InvalidValue, Unauthorized, UnknownJob
from hpcmesos.master.auth import Caller
from hpcmesos.master.services.site import Site
from hpcmesos.model import JobId
from hpcmesos.pbs.arrays import parse_array
from hpcmesos.queue.arrays import Ranges, intersect, of
from hpcmesos.queue.records import JobRecord

_ELEMENTS = re.compile(r"(\d+)\[(\d*[-,:][-,:\d]*)\]((?:\.[A-Za-z0-9._-]+)?)", re.ASCII)
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
    if record is None or not names(job, record):
        raise UnknownJob(f"Unknown Job Id {job}")
    return record


def names(job: JobId, record: JobRecord) -> bool:
    """Whether users may mean the record by this id: an array's brackets may be left out, not added to a plain job."""
    return record.array_spec is not None or not job.array


def find_own(site: Site, caller: Caller, text: str) -> JobRecord:
    """As find(), for what only the owner and operators may do.

    Raises:
        Unauthorized: the job is another user's.
    """
    record = find(site, text)
    if not caller.may_touch(record.owner):
        raise Unauthorized(f"Unauthorized Request  {id_of(record)}")
    return record


def split_elements(text: str) -> tuple[str, str | None]:
    """``12[3-5].hpcm`` is the array ``12[].hpcm`` and ``3-5``; anything else is itself and None."""
    match = _ELEMENTS.fullmatch(text)
    return (text, None) if match is None else (f"{match[1]}[]{match[3]}", match[2])


def parse_elements(parent: JobRecord, text: str) -> Ranges:
    """The elements of an array that ``3-5`` or ``1,7-9:2`` names: those that it has.

    Raises:
        InvalidValue: the text is no range.
        UnknownJob: it names no element, or the job is no array.
    """
    asked = parse_array(text)
    spec = parent.array_spec
    found = () if spec is None else intersect(spec.hull, asked.hull)
    if any(step > 1 for _, _, step in asked.ranges):
        found = of(index for index in asked.members(found) if spec is not None and index in spec)
    if spec is None or not spec.count(found):
        raise UnknownJob(f"Unknown Job Id {parent.seq}[{text}].{parent.server}")
    return found


def full_id(site: Site, text: str) -> str:
    """An operand with the server's name, as the servers' own messages show it."""
    return text if "." in text else f"{text}.{site.settings.server}"


def id_of(record: JobRecord) -> JobId:
    """The id as users see it."""
    return record.id
