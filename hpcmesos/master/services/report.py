"""What was used, by whom, where and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date

from hpcmesos import api_schema
from hpcmesos.errors import InvalidValue
from hpcmesos.master.services.site import Site
from hpcmesos.queue.usage_days import UsageDay

_HOUR = 3600.0
KEYS: Mapping[str, Callable[[UsageDay], str]] = {
    "user": lambda one: one.owner,
    "project": lambda one: one.project or "-",
    "queue": lambda one: one.queue,
    "month": lambda one: f"{one.day:%Y-%m}",
    "day": lambda one: one.day.isoformat(),
}


def usage(site: Site, since: str, until: str, by: str) -> list[api_schema.UsageRow]:
    """Days (UTC) from ``since`` up to and without ``until``, summed by the keys in ``by``, in their order.

    Raises:
        InvalidValue: no day, or nothing that one can sum by.
    """
    names = list(dict.fromkeys(by.split(",")))
    if unknown := [name for name in names if name not in KEYS]:
        raise InvalidValue(f"cannot report by '{unknown[0][:40]}'; one of {', '.join(KEYS)}")
    sums: dict[tuple[str, ...], list[float]] = {}
    for one in site.store.usage(_day(since), _day(until)):
        total = sums.setdefault(tuple(KEYS[name](one) for name in names), [0, 0.0, 0.0, 0.0])
        for place, amount in enumerate((one.runs, one.gpu_seconds, one.cpu_seconds, one.lost_gpu_seconds)):
            total[place] += amount
    return [
        api_schema.UsageRow(
            key=list(key),
            runs=int(runs),
            gpu_hours=gpus / _HOUR,
            cpu_hours=cpus / _HOUR,
            lost_gpu_hours=lost / _HOUR,
        )
        for key, (runs, gpus, cpus, lost) in sorted(sums.items())
    ]


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidValue(f"'{text[:40]}' is no day; write 2026-12-01") from None
