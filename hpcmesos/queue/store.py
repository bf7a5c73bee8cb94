"""The API's door to the database: insert jobs, wishes and tokens, read everything, change nothing else.

Synchronous and thread-safe. Every method is one short transaction and may raise DatabaseUnavailable.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import date, datetime, timedelta
from functools import cache
from types import MappingProxyType
from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    Connection,
    Insert,
    Row,
    Text,
    and_,
    bindparam,
    case,
    delete,
    event,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import array, insert

from hpcmesos.errors import DatabaseUnavailable, IllegalTransition, KeyReused, Unauthenticated
from hpcmesos.model import JobState, Scope
from hpcmesos.queue import audit, servers
from hpcmesos.queue import tables as t
from hpcmesos.queue.deliveries import Deliveries
from hpcmesos.queue.engine import begin, make_engine
from hpcmesos.queue.hints import CHANNEL
from hpcmesos.queue.reads import Reads, read_timeline
from hpcmesos.queue.records import AuthorityRecord, NewJob, RequestKey, Submitted, TokenRecord
from hpcmesos.queue.room import Kind, bounded, claim_room
from hpcmesos.queue.rows import new_job_values
from hpcmesos.queue.states import INITIAL
from hpcmesos.queue.usage_days import UsageDay, read_usage

_HISTORY_LIMITS = {"statement_timeout": 30_000}  # ms
_HISTORY_PATIENCE = 5.0  # seconds that a second one waits for the first

_ROTATION = 0x6870636D63617274  # advisory lock: one at a time begins to replace the certificate authority
SUBMIT = "submit"
"""``kind`` of the inbox rows of new jobs."""
_PLACE_PATIENCE = 30.0  # seconds, as for a connection
_ENOUGH: Mapping[Kind, int] = MappingProxyType({})  # where no limit is set


class Store(Reads):
    """Reads, and the writes that API processes may do. ``url``: any PostgreSQL URL; ``pool``: most connections."""

    def __init__(self, url: str, *, application: str = "hpcmesos-api", pool: int = 8) -> None:
        super().__init__(make_engine(url, application, pool=pool))
        event.listen(self._engine, "connect", _note_timeline)
        self._narrow = threading.BoundedSemaphore(max(1, pool // 2))
        self._led = 0  # the timeline on which a leader was last seen to lead
        hints = make_engine(url, f"{application}-notify", pool=1)
        self._hints = hints.execution_options(isolation_level="AUTOCOMMIT")
        self.deliveries = Deliveries(self._engine)
        # Who looks through months of history, one at a time, takes no connection from those who submit and ask.
        self._history = make_engine(
            url, f"{application}-history", pool=1, patience=_HISTORY_PATIENCE, limits=_HISTORY_LIMITS
        )

    def close(self) -> None:
        """Closes every connection; unusable afterwards."""
        super().close()
        self._hints.dispose()
        self._history.dispose()

    # submissions and wishes; wake the leader with notify() afterwards

    def submit(
        self, new: NewJob, key: str | None = None, digest: bytes = b"", room: Mapping[Kind, int] = _ENOUGH
    ) -> Submitted:
        """Inserts job, script, inbox row (kind ``submit``) and idempotency key in one transaction.

        The same owner and key with the same digest is answered with the first job. ``room``: see claim_room().

        Raises:
            KeyReused: the key came with another digest.
            TooManyJobs: others have taken the room.
        """
        return self.submit_many([new], key, digest, room)[0]

    def submit_many(
        self,
        news: Sequence[NewJob],
        key: str | None = None,
        digest: bytes = b"",
        room: Mapping[Kind, int] = _ENOUGH,
    ) -> list[Submitted]:
        """As submit(), for many jobs of one owner: all or none; one key for the whole call."""
        if not news:
            return []
        if any(new.state not in INITIAL for new in news):
            raise IllegalTransition("a job begins queued, held or waiting")
        given = {"the_user": news[0].owner, "the_key": key, "the_digest": digest, "many": len(news)}
        with self._place(room), begin(self._engine) as connection:
            if room:
                bounded(connection)
            self._check_timeline(connection)
            # Waits for a twin that is being committed now; then the twin's answer is ours.
            seqs = connection.scalar(_taking_ids(key is not None), given)
            if seqs is None:
                assert key is not None
                return [Submitted(seq, True) for seq in _replay(connection, news[0].owner, key, digest)]
            claim_room(connection, room)
            insert_jobs(connection, dict(zip(seqs, news, strict=True)))
        return [Submitted(seq, False) for seq in seqs]

    @contextmanager
    def _place(self, room: Mapping[Kind, int]) -> Iterator[None]:
        """Who waits for room leaves connections to those who do not."""
        if not room:
            yield
            return
        if not self._narrow.acquire(timeout=_PLACE_PATIENCE):
            raise DatabaseUnavailable(
                "too many submissions wait for one another, for limits are set; try again"
            )
        try:
            yield
        finally:
            self._narrow.release()

    def _check_timeline(self, connection: Connection) -> None:
        """A failover may have lost the last jobs: no number is given out before a leader has made them jump."""
        if (now := connection.info["timeline"]) == self._led:
            return
        led = connection.scalar(select(t.leadership.c.timeline))
        if led not in (0, now):  # the server may have been promoted under this connection
            now = connection.info["timeline"] = read_timeline(connection)
        if led not in (0, now):
            raise DatabaseUnavailable("the database has failed over, and nobody leads on it yet; try again")
        self._led = now

    def wish(
        self,
        kind: str,
        seq: int | None,
        user: str,
        payload: Mapping[str, Any],
        via: str = "",
        key: RequestKey | None = None,
    ) -> int:
        """Puts a user's wish into the inbox; answers its id, for inbox_pending(). ``via``: how the user came.

        Under a ``key`` that came before nothing is put there: the id is the first wish's. Raises KeyReused.
        """
        row = {"kind": kind, "seq": seq, "user": user, "payload": dict(payload), "via": via}
        with begin(self._single) as connection:
            if key is None:
                return int(
                    connection.execute(insert(t.inbox).values(row).returning(t.inbox.c.id)).scalar_one()
                )
            named = {**row, "key": key.key, "digest": key.digest}
            given = {f"the_{name}": value for name, value in named.items()}
            # Waits for a twin that is being committed now; then the twin's wish is ours.
            if (new := connection.scalar(_wishing_once(), given)) is not None:
                return int(new)
            return _replay(connection, user, key.key, key.digest)[0]

    def claim(self, user: str, key: RequestKey) -> None:
        """From now on the key stands for this request. Raises KeyReused: it stands for another."""
        kept = select(_KEY.digest).where(_KEY.user == user, _KEY.key == key.key)
        row = {"user": user, "key": key.key, "digest": key.digest, "seqs": []}
        with begin(self._single) as connection:
            if (digest := connection.scalar(kept)) is None:
                connection.execute(insert(t.idempotency_keys).values(row).on_conflict_do_nothing())
                digest = connection.scalar(kept)
        _check_same(digest, key.digest)

    def wished(self, user: str, key: RequestKey) -> int | None:
        """The id of the wish that came under this key; None: none did. Raises KeyReused."""
        found = self.submitted(user, key)
        return None if found is None else found[0]

    def submitted(self, user: str, key: RequestKey) -> list[int] | None:
        """The jobs that came under this key, in their order; None: none did. Raises KeyReused."""
        kept = select(_KEY.key).where(_KEY.user == user, _KEY.key == key.key)
        with begin(self._single) as connection:
            if connection.execute(kept).first() is None:
                return None
            return _replay(connection, user, key.key, key.digest)

    def inbox_pending(self, ids: Sequence[int]) -> set[int]:
        """Those of ``ids`` that no leader has taken yet."""
        with begin(self._single) as connection:
            return set(connection.scalars(select(t.inbox.c.id).where(t.inbox.c.id == func.any(list(ids)))))

    def notify(self) -> None:
        """Hints the leader to look at the inbox; on a connection of its own, so that its commit, which takes a lock on
        the whole database, holds up no submission.
        """
        with begin(self._hints) as connection:
            connection.execute(select(func.pg_notify(CHANNEL, "")))

    # what looks through history

    def changes(
        self, since: datetime, *, user: str | None = None, seq: int | None = None, limit: int = 1000
    ) -> list[audit.Change]:
        """Who changed what since then, oldest first; the newest ``limit``. Raises DatabaseUnavailable after 30 s."""
        with begin(self._history) as connection:
            return audit.read(connection, since=since, user=user, seq=seq, limit=limit)

    def usage(self, since: date, until: date) -> list[UsageDay]:
        """Use by day from ``since`` up to and without ``until``; what runs now counts until now. Raises
        DatabaseUnavailable after 30 s.
        """
        with begin(self._history) as connection:
            return read_usage(connection, since, until)

    # certificates

    def note_certificate(
        self,
        serial: str,
        node: str,
        expires_at: datetime,
        via: str,
        authority: str = "",
        trusts: str = "",
        role: str = "agent",
    ) -> None:
        """One is issued; before its node gets it, so that none is good that cannot be revoked."""
        row = {"serial": serial, "node": node, "expires_at": expires_at, "issued_via": via}
        row |= {"authority": authority, "trusts": trusts, "role": role}
        with begin(self._single) as connection:
            connection.execute(insert(t.certificates).values(row))

    def revoke_certificates(self, node: str, by: str, via: str) -> int:
        """Ends all of a node that are good; answers how many."""
        kept = t.certificates.c
        ended = update(t.certificates).where(kept.node == node, kept.revoked_at.is_(None))
        values = {"revoked_at": func.now(), "revoked_by": by, "revoked_via": via}
        with begin(self._single) as connection:
            return connection.execute(ended.values(values)).rowcount

    # certificate authorities

    def begin_rotation(self, old: AuthorityRecord, new: AuthorityRecord, by: str, via: str) -> bool:
        """A new authority is trusted beside the old one, which goes on signing. False: there are two already."""
        kept = t.authorities.c
        with begin(self._engine) as connection:
            connection.execute(select(func.pg_advisory_xact_lock(_ROTATION)))
            row = {field.name: getattr(old, field.name) for field in fields(AuthorityRecord)}
            connection.execute(insert(t.authorities).values(row).on_conflict_do_nothing())
            trusted = select(func.count()).select_from(t.authorities).where(kept.dropped_at.is_(None))
            if connection.scalar(trusted) != 1:
                return False
            row = {field.name: getattr(new, field.name) for field in fields(AuthorityRecord)}
            connection.execute(insert(t.authorities).values(row | {"made_by": by, "made_via": via}))
            return True

    def let_sign(self, fingerprint: str, forced_via: str = "") -> None:
        """From now on this authority signs; a second time changes nothing."""
        kept = t.authorities.c
        change = update(t.authorities).where(kept.fingerprint == fingerprint, kept.signs_since.is_(None))
        with begin(self._single) as connection:
            connection.execute(change.values(signs_since=func.now(), forced_via=forced_via))

    def drop_authority(self, fingerprint: str, forced_via: str = "") -> None:
        """It is trusted no more, and its key forgotten; never the last one."""
        kept, others = t.authorities.c, t.authorities.alias().c
        newer = select(others.fingerprint).where(others.signs_since > kept.signs_since)
        change = update(t.authorities).where(
            kept.fingerprint == fingerprint, kept.dropped_at.is_(None), newer.exists()
        )
        values = {"dropped_at": func.now(), "sealed_key": None, "forced_via": forced_via}
        with begin(self._single) as connection:
            connection.execute(change.values(values))

    # secrets

    def put_secret(self, owner: str, name: str, sealed: bytes, via: str) -> None:
        """Keeps a sealed secret, in place of an older one."""
        row = {"sealed": sealed, "via": via, "changed_at": func.now()}
        new = insert(t.secrets).values(owner=owner, name=name, **row)
        kept = new.on_conflict_do_update(index_elements=["owner", "name"], set_=row).returning(*_SECRET)
        with begin(self._single) as connection:
            connection.execute(_noting_secret(kept.cte("kept"), "secret set", via))

    def remove_secret(self, owner: str, name: str, via: str) -> bool:
        """Whether there was one."""
        gone = delete(t.secrets).where(t.secrets.c.owner == owner, t.secrets.c.name == name)
        noting = _noting_secret(gone.returning(*_SECRET).cte("gone"), "secret removed", via)
        with begin(self._single) as connection:
            return connection.execute(noting.returning(t.secret_changes.c.name)).first() is not None

    # tokens

    def create_token(
        self,
        kind: str,
        user: str | None,
        node: str | None,
        lifetime: timedelta,
        created_by: str,
        *,
        scope: Scope = Scope.ALL,
        parent: str | None = None,
        until: datetime | None = None,
        via: str = "",
    ) -> str:
        """A new credential in plain text; only its hash is kept.

        ``parent``: id of the token by which it is made, ``until``: when that one ends.
        """
        token = secrets.token_urlsafe(32)
        row = {
            "hash": _hash(token),
            "id": _hash(token).hex()[:12],
            "kind": kind,
            "user": user,
            "node": node,
            "scope": scope.value,
            "parent": parent,
            "created_by": created_by,
            "created_via": via,
            "expires_at": func.least(func.now() + lifetime, until),  # it takes NULL for no limit
        }
        with begin(self._single) as connection:
            connection.execute(insert(t.tokens).values(row))
        return token

    def verify_token(self, token: str) -> TokenRecord:
        """Who shows a "user" token. Raises Unauthenticated when it is unknown, expired, revoked or of another kind."""
        wanted = select(*_TOKEN_COLUMNS).where(*_good(token, "user"))
        with begin(self._single) as connection:
            row = connection.execute(wanted).first()
        if row is None:
            raise Unauthenticated("the token is unknown, expired or revoked: ask for a new one")
        return _token_record(row)

    def tokens(self, user: str | None = None) -> list[TokenRecord]:
        """Tokens that are still good, oldest first; of one user, or all."""
        wanted = select(*_TOKEN_COLUMNS).where(
            t.tokens.c.expires_at > func.now(), t.tokens.c.revoked_at.is_(None)
        )
        if user is not None:
            wanted = wanted.where(t.tokens.c.user == user)
        with begin(self._single) as connection:
            return [_token_record(row) for row in connection.execute(wanted.order_by(t.tokens.c.created_at))]

    def revoke_tokens(self, ids: Sequence[str], user: str | None, by: str, via: str = "") -> list[str]:
        """Ends these tokens and all that were made by them; answers the ids of those that were good until now.

        ``user``: only this user's; None: anybody's.
        """
        mine = t.tokens.c.id == func.any(list(ids))
        if user is not None:
            mine = and_(mine, t.tokens.c.user == user)
        line = select(t.tokens.c.id).where(mine).cte("line", recursive=True)
        line = line.union(select(t.tokens.c.id).where(t.tokens.c.parent == line.c.id))
        ended = (
            update(t.tokens)
            .where(t.tokens.c.id.in_(select(line.c.id)), t.tokens.c.revoked_at.is_(None))
            .values(revoked_at=func.now(), revoked_by=by, revoked_via=via)
            .returning(t.tokens.c.id)
        )
        with begin(self._single) as connection:
            return sorted(connection.scalars(ended))

    def consume_join_token(self, token: str, node: str, via: str = "", kind: str = "join") -> TokenRecord:
        """Uses up a "join" token for ``node``, or one of another ``kind`` that is for one use.

        Raises Unauthenticated when it is unknown, expired, revoked, used, of another kind, or another node's.
        """
        mine = or_(t.tokens.c.node.is_(None), t.tokens.c.node == node)
        used = update(t.tokens).where(*_good(token, kind), t.tokens.c.used_at.is_(None), mine)
        with begin(self._single) as connection:
            given = {"used_at": func.now(), "used_via": via, "node": node}
            row = connection.execute(used.values(given).returning(*_TOKEN_COLUMNS)).first()
        if row is None:
            raise Unauthenticated(
                f"the join token is unknown, expired, revoked, used, or not for node {node}"
            )
        return _token_record(row)


def _note_timeline(connection: Any, record: Any) -> None:
    record.info["timeline"] = servers.read_timeline(connection)


_SECRET = (t.secrets.c.owner, t.secrets.c.name)


def _noting_secret(changed: CTE, action: str, via: str) -> Insert:
    """Makes the change, and says so where the audit looks."""
    words = select(changed.c.owner, changed.c.name, literal(action), literal(via))
    return insert(t.secret_changes).from_select(["owner", "name", "action", "via"], words)


_TOKEN_COLUMNS = [t.tokens.c[field.name] for field in fields(TokenRecord)]


def _token_record(row: Row[Any]) -> TokenRecord:
    values = row._asdict()
    return TokenRecord(**{**values, "scope": Scope(values["scope"])})


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _good(token: str, kind: str) -> tuple[Any, ...]:
    return (
        t.tokens.c.hash == _hash(token),
        t.tokens.c.kind == kind,
        t.tokens.c.expires_at > func.now(),
        t.tokens.c.revoked_at.is_(None),
    )


def _replay(connection: Connection, user: str, key: str, digest: bytes) -> list[int]:
    """The jobs that this key, which is taken, made, or the wish. Raises KeyReused."""
    keys = t.idempotency_keys
    row = connection.execute(
        select(keys.c.digest, keys.c.seqs).where(keys.c.user == user, keys.c.key == key)
    ).one()
    _check_same(row.digest, digest)
    return list(row.seqs)


def _check_same(kept: bytes | None, digest: bytes) -> None:
    """``kept`` None: the key was swept just now. Raises KeyReused."""
    if kept is not None and bytes(kept) != digest:
        raise KeyReused("this idempotency key came before with another request: use a new key")


@cache
def _taking_ids(keyed: bool) -> Any:
    """Ids for ``many`` jobs, under a key or not, and their inbox rows; one statement. NULL: the key is taken."""
    numbers = select(t.job_ids.next_value()).select_from(func.generate_series(1, bindparam("many")))
    ids = func.array(numbers.scalar_subquery(), type_=ARRAY(BigInteger))
    if keyed:
        names = {"user": "the_user", "key": "the_key", "digest": "the_digest"}
        row = {name: bindparam(given, type_=_KEY[name].type) for name, given in names.items()}
        new = insert(t.idempotency_keys).values(**row, seqs=ids).on_conflict_do_nothing()
        taken = new.returning(_KEY.seqs).cte("taken")
    else:
        taken = select(ids.label("seqs")).cte("taken")
    rows = select(literal(SUBMIT), func.unnest(taken.c.seqs), bindparam("the_user", type_=Text))
    told = insert(t.inbox).from_select(["kind", "seq", "user"], rows)
    return select(taken.c.seqs).add_cte(told.cte("told"))


@cache
def _wishing_once() -> Any:
    """A wish's inbox row under a key; one statement. Its id; NULL: the key is taken."""
    names = {"user": "the_user", "key": "the_key", "digest": "the_digest"}
    row = {name: bindparam(given, type_=_KEY[name].type) for name, given in names.items()}
    new = insert(t.idempotency_keys).values(**row, seqs=array([t.inbox_ids.next_value()]))
    taken = new.on_conflict_do_nothing().returning(_KEY.seqs).cte("taken")
    columns = ("kind", "seq", "user", "payload", "via")
    values = [bindparam(f"the_{name}", type_=t.inbox.c[name].type) for name in columns]
    rows = select(taken.c.seqs[1], *values)
    return insert(t.inbox).from_select(["id", *columns], rows).returning(t.inbox.c.id)


_KEY = t.idempotency_keys.c
_NEW_JOBS = insert(t.jobs).values(
    queued_at=case((bindparam("initial", type_=Text) == JobState.QUEUED.value, func.now()))
)
_NEW_SCRIPTS = insert(t.job_scripts)


_FEW = 20
"""Jobs up to which an INSERT is as good as COPY."""


def _copy_jobs(connection: Connection, news: Mapping[int, NewJob]) -> None:
    """A tenth of what an INSERT of each row costs both sides."""
    columns = [*new_job_values(0, next(iter(news.values()))), "queued_at"]
    names = ", ".join(f'"{name}"' for name in columns)
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor:
        with cursor.copy(f"COPY {t.jobs.fullname} ({names}) FROM STDIN") as copy:
            for row in _rows(news):
                copy.write_row(row)
        scripts = [(seq, new.script) for seq, new in news.items() if new.script is not None]
        if scripts:
            with cursor.copy(f"COPY {t.job_scripts.fullname} (seq, script) FROM STDIN") as copy:
                for script in scripts:
                    copy.write_row(script)


def _rows(news: Mapping[int, NewJob]) -> Iterator[list[Any]]:
    """The values of jobs' columns, as PostgreSQL reads them, and of ``queued_at``."""
    requests: dict[int, str] = {}  # of jobs that are alike it is one object
    for seq, new in news.items():
        row = new_job_values(seq, new)
        kept = id(new.request)
        if kept not in requests:
            requests[kept] = _json(new.request)
        row["request"] = requests[kept]
        for name in _JSON:
            if row[name] is not None:
                row[name] = _json(row[name])
        yield [*row.values(), "now" if new.state is JobState.QUEUED else None]


_JSON = ("dependencies", "submission", "array_spec")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def insert_jobs(connection: Connection, news: Mapping[int, NewJob]) -> None:
    """Jobs, by their ids, and their scripts. Their inbox rows belong into the same transaction."""
    if len(news) > _FEW:
        _copy_jobs(connection, news)
        return
    rows = [{**new_job_values(seq, new), "initial": new.state.value} for seq, new in news.items()]
    connection.execute(_NEW_JOBS, rows)
    scripts = [{"seq": seq, "script": new.script} for seq, new in news.items() if new.script is not None]
    if scripts:
        connection.execute(_NEW_SCRIPTS, scripts)
