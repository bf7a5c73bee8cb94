"""The promises about rows, as queries that must find nothing."""

from __future__ import annotations

import psycopg

from hpcmesos.queue.states import INITIAL, TRANSITIONS

_INDEXES = """
    WITH indexes AS (
        SELECT seq, index, todo, deleted FROM jobs, jsonb_array_elements(array_spec -> 'ranges') AS piece,
            generate_series((piece ->> 0)::int, (piece ->> 1)::int, (piece ->> 2)::int) AS index
        WHERE array_spec IS NOT NULL),
    rows AS (
        SELECT seq, element FROM jobs WHERE element >= 0 UNION ALL
        SELECT seq, element FROM jobs_history WHERE element >= 0)"""

CHECKS: dict[str, str] = {
    "a GPU in two live allocations": """
        SELECT gpu FROM allocations WHERE gpu IS NOT NULL GROUP BY gpu HAVING count(*) > 1""",
    "a port in two live allocations": """
        SELECT host, port FROM allocations WHERE port IS NOT NULL GROUP BY host, port HAVING count(*) > 1""",
    "used counters differ from the live shares": """
        SELECT name, cpus_used, mem_used, sum(cpus_live), sum(mem_live) FROM (
            SELECT n.name, n.cpus_used, n.mem_used, coalesce(s.cpus, 0) AS cpus_live, coalesce(s.mem, 0) AS mem_live
            FROM nodes n LEFT JOIN shares s ON s.node = n.name AND s.released_at IS NULL) AS live
        GROUP BY name, cpus_used, mem_used
        HAVING cpus_used <> sum(cpus_live) OR mem_used <> sum(mem_live)""",
    "a node's used counters above what it has": """
        SELECT name FROM nodes WHERE NOT (cpus_used BETWEEN 0 AND cpus AND mem_used BETWEEN 0 AND mem)""",
    "a complete job without its end, or one that ran without an exit status": """
        SELECT seq, element FROM (
            SELECT seq, element, state, ended_at, exit_status, attempt FROM jobs
            UNION ALL SELECT seq, element, state, ended_at, exit_status, attempt FROM jobs_history) AS every
        WHERE (state = 'C') <> (ended_at IS NOT NULL)
           OR (state = 'C' AND attempt > 0 AND exit_status IS NULL)""",
    "a running job without a live attempt": """
        SELECT j.seq, j.element FROM jobs j LEFT JOIN attempts a
            ON (a.seq, a.element, a.number) = (j.seq, j.element, j.attempt) AND a.ended_at IS NULL
        WHERE j.state = 'R' AND a.seq IS NULL AND j.array_spec IS NULL""",
    "a live attempt of a job that neither runs nor ends": """
        SELECT a.seq, a.element, a.number FROM attempts a JOIN jobs j USING (seq, element)
        WHERE a.ended_at IS NULL AND (j.state NOT IN ('R', 'E') OR j.attempt <> a.number)""",
    "an attempt without a share": """
        SELECT seq, element, number FROM attempts
        EXCEPT SELECT seq, element, number FROM shares""",
    "a gang whose positions have a hole": """
        SELECT seq, element, number FROM shares GROUP BY seq, element, number
        HAVING min(position) <> 0 OR max(position) <> count(*) - 1""",
    "an allocation without a live share": """
        SELECT a.* FROM allocations a LEFT JOIN shares s
            ON (s.seq, s.element, s.number, s.node) = (a.seq, a.element, a.number, a.node) AND s.released_at IS NULL
        WHERE s.seq IS NULL""",
    "live allocations differ from what the live shares hold": """
        SELECT unnest(gpus) FROM shares WHERE released_at IS NULL
        EXCEPT SELECT gpu FROM allocations""",
    "a GPU allocated on another node than its own": """
        SELECT g.uuid FROM allocations a JOIN gpus g ON g.uuid = a.gpu WHERE g.node <> a.node""",
    "a GPU that is allocated without an allocation": """
        SELECT uuid FROM gpus
        WHERE state = 'allocated' AND uuid NOT IN (SELECT gpu FROM allocations WHERE gpu IS NOT NULL)""",
    "a GPU in an allocation that counts as free or cleaning": """
        SELECT uuid FROM gpus JOIN allocations ON gpu = uuid WHERE state IN ('free', 'cleaning')""",
    "GPUs' states do not sum up to the installed": """
        SELECT node FROM gpus GROUP BY node HAVING count(*) <> count(*) FILTER (
            WHERE state IN ('free', 'allocated', 'cleaning', 'quarantined', 'lost', 'unknown-attempt'))""",
    "an event that does not follow from the one before": """
        SELECT id, seq, before, source FROM (
            SELECT id, seq, source, lag(target) OVER (PARTITION BY seq, element ORDER BY id) AS before
            FROM events WHERE source IS NOT NULL) AS chain
        WHERE before IS NOT NULL AND before <> source""",
    "a job's last event that does not lead to its state": """
        SELECT j.seq, j.element, j.state, e.target FROM (
            SELECT seq, element, state FROM jobs UNION ALL SELECT seq, element, state FROM jobs_history) AS j
        JOIN (SELECT DISTINCT ON (seq, element) seq, element, target FROM events
              WHERE target IS NOT NULL ORDER BY seq, element, id DESC) AS e USING (seq, element)
        WHERE j.state <> e.target""",
    "an array's row that lacks something, or another row that has it": """
        SELECT seq, element FROM (
            SELECT seq, element, array_spec, todo, deleted, succeeded, failed FROM jobs UNION ALL
            SELECT seq, element, array_spec, todo, deleted, succeeded, failed FROM jobs_history) AS every
        WHERE num_nonnulls(array_spec, todo, deleted, succeeded, failed) NOT IN (0, 5)
           OR (element >= 0 AND array_spec IS NOT NULL)""",
    "an element that has a row and waits without one, or was deleted": """
        SELECT e.seq, e.element FROM (
            SELECT seq, element FROM jobs UNION ALL SELECT seq, element FROM jobs_history) AS e
        JOIN jobs p ON p.seq = e.seq AND p.element = -1
        WHERE e.element >= 0 AND (e.element <@ p.todo OR e.element <@ p.deleted OR p.array_spec IS NULL)""",
    "an element that waits, and was deleted": "SELECT seq FROM jobs WHERE todo && deleted",
    "an index of an array that is nowhere, or a row of none": f"""
        {_INDEXES}
        SELECT seq, index FROM (
            SELECT seq, index FROM indexes WHERE NOT (index <@ todo OR index <@ deleted)
            EXCEPT SELECT seq, element FROM rows
        ) AS nowhere
        UNION ALL (SELECT seq, element FROM rows WHERE seq IN (SELECT seq FROM indexes) EXCEPT
            SELECT seq, index FROM indexes)""",
    "an array whose counts are not those of its elements": """
        SELECT p.seq, p.succeeded, p.failed, counted.* FROM jobs p CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE exit_status = 0) AS good,
                   count(*) FILTER (WHERE exit_status IS DISTINCT FROM 0) AS bad FROM (
                SELECT exit_status FROM jobs WHERE seq = p.seq AND element >= 0 AND state = 'C' UNION ALL
                SELECT exit_status FROM jobs_history WHERE seq = p.seq AND element >= 0) AS over) AS counted
        WHERE p.array_spec IS NOT NULL AND (p.succeeded, p.failed) <> (good, bad)""",
    "an array above its slot limit": """
        SELECT p.seq, count(*) FROM jobs p JOIN jobs e ON e.seq = p.seq AND e.element >= 0 AND e.state IN ('R', 'E')
        WHERE p.array_spec IS NOT NULL GROUP BY p.seq, p.array_spec
        HAVING count(*) > (p.array_spec ->> 'limit')::int""",
    "an array that is complete before its elements": """
        SELECT p.seq FROM jobs p JOIN jobs e ON e.seq = p.seq AND e.element >= 0 AND e.state <> 'C'
        WHERE p.array_spec IS NOT NULL AND p.state = 'C'""",
    "a complete job in two places": "SELECT seq, element FROM jobs INTERSECT SELECT seq, element FROM jobs_history",
}

EACH_SECOND = tuple(
    what for what in CHECKS if "GPU" in what or "allocation" in what or "used counters" in what
)
"""What is about GPUs and what is given out, and looks at nothing but live rows."""

SETTLED: dict[str, str] = {
    "an attempt is over, its node is up, and still holds its share": """
        SELECT s.seq, s.element, s.number, s.node FROM shares s JOIN nodes n ON n.name = s.node
        JOIN attempts a USING (seq, element, number)
        WHERE s.released_at IS NULL AND a.ended_at IS NOT NULL AND n.up""",
    "a GPU of a node that is up is still being cleaned": """
        SELECT uuid FROM gpus JOIN nodes ON name = node WHERE state = 'cleaning' AND up""",
}
"""What holds once every node has reported."""

DRAINED = {"an inbox row that no leader has taken": "SELECT id, kind, seq FROM inbox"}

EDGES = """
    SELECT id, seq, source, target FROM events
    WHERE source IS NOT NULL AND source <> target AND NOT (source || target = ANY(%s))
"""
FIRST = """
    SELECT id, seq, source FROM (
        SELECT DISTINCT ON (seq, element) id, seq, source FROM events
        WHERE source IS NOT NULL AND element = -1 ORDER BY seq, element, id) AS first
    WHERE NOT (source = ANY(%s))
"""


def check_moment(url: str) -> list[str]:
    """Violations of what is cheap enough to look at each second, under load."""
    with psycopg.connect(url, connect_timeout=2) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        found = {what: connection.execute(CHECKS[what]).fetchall() for what in EACH_SECOND}
    return [f"{what}: {row}" for what, rows in found.items() for row in rows[:5]]


def check_invariants(url: str, *, drained: bool = False, settled: bool = False) -> list[str]:
    """Violations over the whole database, as lines for people; ``url``: of a role that reads everything.

    ``drained``: the inbox must be empty, too. ``settled``: every node has reported, so nothing is being cleaned.
    """
    checks = CHECKS | (DRAINED if drained else {}) | (SETTLED if settled else {})
    legal = [f"{source}{target}" for source, target in TRANSITIONS]
    violations = []
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        found = {what: connection.execute(query).fetchall() for what, query in checks.items()}
        found["an edge that the transition table does not have"] = connection.execute(
            EDGES, [legal]
        ).fetchall()
        initial = [str(state) for state in INITIAL]
        found["a job that began in another state than an initial one"] = connection.execute(
            FIRST, [initial]
        ).fetchall()
    for what, rows in found.items():
        violations += [f"{what}: {row}" for row in rows[:5]]
    return violations


_PEAK = """
    SELECT max(running) FROM (
        SELECT sum(CASE WHEN target = 'R' AND source = 'Q' THEN 1
                        WHEN target IN ('Q', 'H', 'W', 'C') AND source IN ('R', 'E') THEN -1 ELSE 0 END)
            OVER (ORDER BY id) AS running
        FROM events WHERE seq = %s AND element >= 0 AND source IS NOT NULL) AS sums
"""


def most_at_once(url: str, seq: int) -> int:
    """How many elements of an array ran at once at most, by the public order of events."""
    with psycopg.connect(url) as connection:
        [(most,)] = connection.execute(_PEAK, [seq]).fetchall()
    return int(most or 0)


def element_codes(url: str, seq: int) -> dict[int, int | None]:
    """Exit statuses of an array's elements that have a row, in history too."""
    places = ("jobs", "jobs_history")
    query = " UNION ALL ".join(
        f"SELECT element, exit_status FROM {place} WHERE seq = %(seq)s AND element >= 0" for place in places
    )
    with psycopg.connect(url) as connection:
        rows = connection.execute(query, {"seq": seq}).fetchall()
    assert len(rows) == len({element for element, _ in rows}), "an element has two rows"
    return dict(rows)
