"""The first tables, the partitions' functions, the roles.

Frozen: later changes are later revisions.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

_TABLES = """
CREATE SEQUENCE job_ids;

CREATE TABLE jobs (
    seq BIGINT NOT NULL,
    element INTEGER DEFAULT -1 NOT NULL,
    server TEXT NOT NULL,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    queue TEXT NOT NULL,
    state TEXT NOT NULL,
    priority INTEGER DEFAULT 0 NOT NULL,
    request JSONB NOT NULL,
    spec_version SMALLINT DEFAULT 1 NOT NULL,
    holds TEXT DEFAULT '' NOT NULL,
    not_before timestamptz,
    created_at timestamptz DEFAULT now() NOT NULL,
    modified_at timestamptz DEFAULT now() NOT NULL,
    queued_at timestamptz,
    started_at timestamptz,
    ended_at timestamptz,
    exit_status INTEGER,
    cause TEXT,
    comment TEXT DEFAULT '' NOT NULL,
    attempt INTEGER DEFAULT 0 NOT NULL,
    charged_attempts INTEGER DEFAULT 0 NOT NULL,
    rerunable BOOLEAN DEFAULT true NOT NULL,
    suspended BOOLEAN DEFAULT false NOT NULL,
    excluded TEXT[] DEFAULT '{}' NOT NULL,
    dependencies JSONB DEFAULT '[]'::jsonb NOT NULL,
    submit_host TEXT DEFAULT '' NOT NULL,
    project TEXT DEFAULT '' NOT NULL,
    egroup TEXT DEFAULT '' NOT NULL,
    submission JSONB DEFAULT '{}'::jsonb NOT NULL,
    array_spec JSONB,
    todo INT4MULTIRANGE,
    deleted INT4MULTIRANGE,
    succeeded INTEGER,
    failed INTEGER,
    CONSTRAINT jobs_pkey PRIMARY KEY (seq, element),
    CONSTRAINT jobs_state CHECK (state IN ('Q', 'H', 'W', 'R', 'E', 'C')),
    CONSTRAINT jobs_complete_means_ended CHECK ((state = 'C') = (ended_at IS NOT NULL)),
    CONSTRAINT jobs_cause CHECK (cause IS NULL OR cause IN (
        'OK', 'APP', 'SIGNAL', 'WALLTIME', 'OOM', 'DELETED', 'NODE_LOST', 'GPU_LOST',
        'GPU_IDLE', 'PREEMPTED', 'START_FAILED'))
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

CREATE INDEX jobs_ended ON jobs (ended_at) WHERE ended_at IS NOT NULL;

CREATE INDEX jobs_live ON jobs (seq, element) WHERE ended_at IS NULL;

CREATE INDEX jobs_owner ON jobs (owner);

CREATE TABLE job_scripts (
    seq BIGINT NOT NULL,
    script BYTEA NOT NULL,
    CONSTRAINT job_scripts_pkey PRIMARY KEY (seq)
);

CREATE TABLE jobs_history (
    seq BIGINT NOT NULL,
    element INTEGER DEFAULT -1 NOT NULL,
    server TEXT NOT NULL,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    queue TEXT NOT NULL,
    state TEXT NOT NULL,
    priority INTEGER DEFAULT 0 NOT NULL,
    request JSONB NOT NULL,
    spec_version SMALLINT DEFAULT 1 NOT NULL,
    holds TEXT DEFAULT '' NOT NULL,
    not_before timestamptz,
    created_at timestamptz DEFAULT now() NOT NULL,
    modified_at timestamptz DEFAULT now() NOT NULL,
    queued_at timestamptz,
    started_at timestamptz,
    ended_at timestamptz NOT NULL,
    exit_status INTEGER,
    cause TEXT,
    comment TEXT DEFAULT '' NOT NULL,
    attempt INTEGER DEFAULT 0 NOT NULL,
    charged_attempts INTEGER DEFAULT 0 NOT NULL,
    rerunable BOOLEAN DEFAULT true NOT NULL,
    suspended BOOLEAN DEFAULT false NOT NULL,
    excluded TEXT[] DEFAULT '{}' NOT NULL,
    dependencies JSONB DEFAULT '[]'::jsonb NOT NULL,
    submit_host TEXT DEFAULT '' NOT NULL,
    project TEXT DEFAULT '' NOT NULL,
    egroup TEXT DEFAULT '' NOT NULL,
    submission JSONB DEFAULT '{}'::jsonb NOT NULL,
    array_spec JSONB,
    todo INT4MULTIRANGE,
    deleted INT4MULTIRANGE,
    succeeded INTEGER,
    failed INTEGER,
    CONSTRAINT jobs_history_pkey PRIMARY KEY (seq, element, ended_at)
) PARTITION BY RANGE (ended_at);

CREATE TABLE attempts_history (
    seq BIGINT NOT NULL,
    element INTEGER DEFAULT -1 NOT NULL,
    number INTEGER NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    started_at timestamptz,
    ended_at timestamptz,
    cause TEXT,
    code INTEGER,
    signal INTEGER,
    forced BOOLEAN DEFAULT false NOT NULL,
    culprit TEXT,
    message TEXT DEFAULT '' NOT NULL,
    usage JSONB DEFAULT '{}'::jsonb NOT NULL,
    stdout_tail BYTEA DEFAULT ''::bytea NOT NULL,
    stderr_tail BYTEA DEFAULT ''::bytea NOT NULL,
    stdout_path TEXT DEFAULT '' NOT NULL,
    stderr_path TEXT DEFAULT '' NOT NULL,
    undelivered TEXT DEFAULT '' NOT NULL,
    ending JSONB,
    job_ended_at timestamptz NOT NULL,
    CONSTRAINT attempts_history_pkey PRIMARY KEY (seq, element, number, job_ended_at)
) PARTITION BY RANGE (job_ended_at);

CREATE TABLE shares_history (
    seq BIGINT NOT NULL,
    element INTEGER DEFAULT -1 NOT NULL,
    number INTEGER NOT NULL,
    position INTEGER NOT NULL,
    node TEXT NOT NULL,
    cpus INTEGER NOT NULL,
    mem BIGINT NOT NULL,
    slots INTEGER NOT NULL,
    gpus TEXT[] DEFAULT '{}' NOT NULL,
    ports INTEGER[] DEFAULT '{}' NOT NULL,
    released_at timestamptz,
    job_ended_at timestamptz NOT NULL,
    CONSTRAINT shares_history_pkey PRIMARY KEY (seq, element, number, position, job_ended_at)
) PARTITION BY RANGE (job_ended_at);

CREATE TABLE steps_history (
    seq BIGINT NOT NULL,
    element INTEGER DEFAULT -1 NOT NULL,
    number INTEGER NOT NULL,
    step TEXT NOT NULL,
    command JSONB DEFAULT '[]'::jsonb NOT NULL,
    code INTEGER,
    first_failed INTEGER,
    ranks JSONB DEFAULT '[]'::jsonb NOT NULL,
    job_ended_at timestamptz NOT NULL,
    CONSTRAINT steps_history_pkey PRIMARY KEY (seq, element, number, step, job_ended_at)
) PARTITION BY RANGE (job_ended_at);

CREATE SEQUENCE event_ids;

CREATE TABLE events (
    id BIGINT DEFAULT nextval('event_ids') NOT NULL,
    at timestamptz DEFAULT now() NOT NULL,
    seq BIGINT,
    element INTEGER,
    kind TEXT NOT NULL,
    source TEXT,
    target TEXT,
    payload JSONB DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT events_pkey PRIMARY KEY (id, at)
) PARTITION BY RANGE (at);

CREATE INDEX events_seq ON events (seq);

CREATE SEQUENCE inbox_ids;

CREATE TABLE inbox (
    id BIGINT DEFAULT nextval('inbox_ids') NOT NULL,
    kind TEXT NOT NULL,
    seq BIGINT,
    "user" TEXT NOT NULL,
    via TEXT DEFAULT '' NOT NULL,
    payload JSONB DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT inbox_pkey PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

CREATE TABLE idempotency_keys (
    "user" TEXT NOT NULL,
    key TEXT NOT NULL,
    digest BYTEA NOT NULL,
    seqs BIGINT[] NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY ("user", key)
);

CREATE INDEX idempotency_keys_created_at ON idempotency_keys (created_at);

CREATE TABLE nodes (
    name TEXT NOT NULL,
    cpus INTEGER NOT NULL,
    cpus_used INTEGER DEFAULT 0 NOT NULL,
    mem BIGINT NOT NULL,
    mem_used BIGINT DEFAULT 0 NOT NULL,
    up BOOLEAN DEFAULT true NOT NULL,
    offline BOOLEAN DEFAULT false NOT NULL,
    gone BOOLEAN DEFAULT false NOT NULL,
    address TEXT DEFAULT '' NOT NULL,
    peer_port INTEGER DEFAULT 0 NOT NULL,
    boot_id TEXT DEFAULT '' NOT NULL,
    journal TEXT DEFAULT '' NOT NULL,
    version TEXT DEFAULT '' NOT NULL,
    hostname TEXT DEFAULT '' NOT NULL,
    os TEXT DEFAULT '' NOT NULL,
    isolation TEXT DEFAULT '' NOT NULL,
    features TEXT[] DEFAULT '{}' NOT NULL,
    declared BOOLEAN DEFAULT false NOT NULL,
    note TEXT DEFAULT '' NOT NULL,
    changed_at timestamptz DEFAULT now() NOT NULL,
    ends_at timestamptz,
    CONSTRAINT nodes_pkey PRIMARY KEY (name),
    CONSTRAINT nodes_cpus_used CHECK (cpus_used BETWEEN 0 AND cpus),
    CONSTRAINT nodes_mem_used CHECK (mem_used BETWEEN 0 AND mem)
) WITH (fillfactor = 50);

CREATE TABLE queues (
    name TEXT NOT NULL,
    enabled BOOLEAN DEFAULT true NOT NULL,
    started BOOLEAN DEFAULT true NOT NULL,
    priority INTEGER DEFAULT 0 NOT NULL,
    attributes JSONB DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT queues_pkey PRIMARY KEY (name)
);

CREATE TABLE tokens (
    hash BYTEA NOT NULL,
    kind TEXT NOT NULL,
    "user" TEXT,
    node TEXT,
    created_by TEXT NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    id TEXT NOT NULL,
    scope TEXT DEFAULT 'all' NOT NULL,
    parent TEXT,
    created_via TEXT DEFAULT '' NOT NULL,
    revoked_at timestamptz,
    revoked_by TEXT,
    used_via TEXT DEFAULT '' NOT NULL,
    revoked_via TEXT DEFAULT '' NOT NULL,
    CONSTRAINT tokens_pkey PRIMARY KEY (hash),
    CONSTRAINT tokens_id_key UNIQUE (id),
    CONSTRAINT tokens_kind CHECK (kind IN ('user', 'join', 'gateway')),
    CONSTRAINT tokens_scope CHECK (scope IN ('read', 'jobs', 'all'))
);

CREATE TABLE certificates (
    serial TEXT NOT NULL,
    node TEXT NOT NULL,
    issued_at timestamptz DEFAULT now() NOT NULL,
    expires_at timestamptz NOT NULL,
    issued_via TEXT DEFAULT '' NOT NULL,
    revoked_at timestamptz,
    revoked_by TEXT,
    revoked_via TEXT DEFAULT '' NOT NULL,
    authority TEXT DEFAULT '' NOT NULL,
    trusts TEXT DEFAULT '' NOT NULL,
    role TEXT DEFAULT '' NOT NULL,
    CONSTRAINT certificates_pkey PRIMARY KEY (serial)
);
CREATE INDEX certificates_node ON certificates (node);

CREATE TABLE authorities (
    fingerprint TEXT NOT NULL,
    certificate TEXT NOT NULL,
    sealed_key BYTEA,
    made_at timestamptz DEFAULT now() NOT NULL,
    made_by TEXT DEFAULT '' NOT NULL,
    made_via TEXT DEFAULT '' NOT NULL,
    not_before timestamptz NOT NULL,
    signs_since timestamptz,
    dropped_at timestamptz,
    forced_via TEXT DEFAULT '' NOT NULL,
    CONSTRAINT authorities_pkey PRIMARY KEY (fingerprint)
);

CREATE TABLE gateways (
    name TEXT NOT NULL,
    seen_at timestamptz,
    CONSTRAINT gateways_pkey PRIMARY KEY (name)
);

CREATE TABLE deliveries (
    attempt TEXT NOT NULL,
    stream TEXT NOT NULL,
    gateway TEXT NOT NULL,
    owner TEXT NOT NULL,
    path TEXT NOT NULL,
    name TEXT NOT NULL,
    umask INTEGER NOT NULL,
    append BOOLEAN DEFAULT false NOT NULL,
    size BIGINT NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    done_at timestamptz,
    trouble TEXT DEFAULT '' NOT NULL,
    CONSTRAINT deliveries_pkey PRIMARY KEY (attempt, stream)
);

CREATE INDEX deliveries_waiting ON deliveries (gateway) WHERE done_at IS NULL;

CREATE TABLE secrets (
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    sealed BYTEA NOT NULL,
    via TEXT DEFAULT '' NOT NULL,
    changed_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT secrets_pkey PRIMARY KEY (owner, name)
);

CREATE TABLE secret_changes (
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    action TEXT NOT NULL,
    via TEXT DEFAULT '' NOT NULL,
    at timestamptz DEFAULT now() NOT NULL
);

CREATE INDEX secret_changes_at ON secret_changes (at);

CREATE TABLE leadership (
    term BIGINT NOT NULL,
    holder TEXT DEFAULT '' NOT NULL,
    address TEXT DEFAULT '' NOT NULL,
    timeline INTEGER DEFAULT 0 NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT leadership_pkey PRIMARY KEY (term)
);

CREATE TABLE schedules (
    owner TEXT DEFAULT '' NOT NULL,
    name TEXT NOT NULL,
    rule TEXT NOT NULL,
    timezone TEXT DEFAULT 'UTC' NOT NULL,
    since timestamptz DEFAULT now() NOT NULL,
    next_due timestamptz,
    paused BOOLEAN DEFAULT false NOT NULL,
    missed TEXT DEFAULT 'once' NOT NULL,
    overlap TEXT DEFAULT 'allow' NOT NULL,
    deadline INTEGER DEFAULT 60 NOT NULL,
    retries INTEGER DEFAULT 0 NOT NULL,
    retry_delay INTEGER DEFAULT 60 NOT NULL,
    parents TEXT[] DEFAULT '{}' NOT NULL,
    fed JSONB DEFAULT '{}'::jsonb NOT NULL,
    job JSONB,
    script BYTEA,
    CONSTRAINT schedules_pkey PRIMARY KEY (owner, name),
    CONSTRAINT schedules_missed CHECK (missed IN ('skip', 'once', 'all')),
    CONSTRAINT schedules_overlap CHECK (overlap IN ('allow', 'skip', 'replace'))
);

CREATE INDEX schedules_next_due ON schedules (next_due) WHERE next_due IS NOT NULL;

CREATE TABLE notices (
    id BIGINT GENERATED ALWAYS AS IDENTITY NOT NULL,
    channel TEXT NOT NULL,
    recipient TEXT DEFAULT '' NOT NULL,
    content JSONB DEFAULT '{}'::jsonb NOT NULL,
    tries INTEGER DEFAULT 0 NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    next_try timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT notices_pkey PRIMARY KEY (id),
    CONSTRAINT notices_channel CHECK (channel IN ('mail', 'webhook'))
);

CREATE INDEX notices_turn ON notices (channel, recipient, id) INCLUDE (next_try);

CREATE TABLE usage_days (
    day DATE NOT NULL,
    owner TEXT NOT NULL,
    project TEXT NOT NULL,
    queue TEXT NOT NULL,
    runs INTEGER NOT NULL,
    gpu_seconds FLOAT NOT NULL,
    cpu_seconds FLOAT NOT NULL,
    lost_gpu_seconds FLOAT NOT NULL,
    CONSTRAINT usage_days_pkey PRIMARY KEY (day, owner, project, queue)
);

CREATE TABLE settings (
    name TEXT NOT NULL,
    value JSONB DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT settings_pkey PRIMARY KEY (name)
);

CREATE TABLE attempts (
    seq BIGINT NOT NULL,
    element INTEGER DEFAULT -1 NOT NULL,
    number INTEGER NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    started_at timestamptz,
    ended_at timestamptz,
    cause TEXT,
    code INTEGER,
    signal INTEGER,
    forced BOOLEAN DEFAULT false NOT NULL,
    culprit TEXT,
    message TEXT DEFAULT '' NOT NULL,
    usage JSONB DEFAULT '{}'::jsonb NOT NULL,
    stdout_tail BYTEA DEFAULT ''::bytea NOT NULL,
    stderr_tail BYTEA DEFAULT ''::bytea NOT NULL,
    stdout_path TEXT DEFAULT '' NOT NULL,
    stderr_path TEXT DEFAULT '' NOT NULL,
    undelivered TEXT DEFAULT '' NOT NULL,
    ending JSONB,
    CONSTRAINT attempts_pkey PRIMARY KEY (seq, element, number),
    CONSTRAINT attempts_seq_fkey FOREIGN KEY (seq, element) REFERENCES jobs (seq, element),
    CONSTRAINT attempts_ended_has_cause CHECK ((cause IS NULL) = (ended_at IS NULL)),
    CONSTRAINT attempts_cause CHECK (cause IS NULL OR cause IN (
        'OK', 'APP', 'SIGNAL', 'WALLTIME', 'OOM', 'DELETED', 'NODE_LOST', 'GPU_LOST',
        'GPU_IDLE', 'PREEMPTED', 'START_FAILED'))
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

CREATE TABLE gpus (
    uuid TEXT NOT NULL,
    node TEXT NOT NULL,
    index INTEGER NOT NULL,
    model TEXT DEFAULT '' NOT NULL,
    memory BIGINT DEFAULT 0 NOT NULL,
    numa INTEGER,
    pci TEXT DEFAULT '' NOT NULL,
    simulated BOOLEAN DEFAULT false NOT NULL,
    state TEXT DEFAULT 'free' NOT NULL,
    links INTEGER[] DEFAULT '{}' NOT NULL,
    note TEXT DEFAULT '' NOT NULL,
    parent TEXT DEFAULT '' NOT NULL,
    profile TEXT DEFAULT '' NOT NULL,
    CONSTRAINT gpus_pkey PRIMARY KEY (uuid),
    CONSTRAINT gpus_state CHECK (state IN (
        'free', 'allocated', 'cleaning', 'quarantined', 'lost', 'unknown-attempt')),
    CONSTRAINT gpus_node_fkey FOREIGN KEY (node) REFERENCES nodes (name)
) WITH (fillfactor = 50);

CREATE INDEX gpus_node ON gpus (node);

CREATE TABLE schedule_runs (
    owner TEXT DEFAULT '' NOT NULL,
    schedule TEXT NOT NULL,
    due timestamptz NOT NULL,
    try SMALLINT DEFAULT 0 NOT NULL,
    fired_at timestamptz DEFAULT now() NOT NULL,
    seq BIGINT,
    outcome TEXT DEFAULT '' NOT NULL,
    retry_at timestamptz,
    CONSTRAINT schedule_runs_pkey PRIMARY KEY (owner, schedule, due, try),
    CONSTRAINT schedule_runs_owner_fkey FOREIGN KEY (owner, schedule) REFERENCES schedules (owner, name)
        ON DELETE CASCADE
);

CREATE INDEX schedule_runs_open ON schedule_runs (seq) WHERE seq IS NOT NULL AND outcome = '';

CREATE INDEX schedule_runs_retry ON schedule_runs (retry_at) WHERE retry_at IS NOT NULL;

CREATE TABLE shares (
    seq BIGINT NOT NULL,
    element INTEGER DEFAULT -1 NOT NULL,
    number INTEGER NOT NULL,
    position INTEGER NOT NULL,
    node TEXT NOT NULL,
    cpus INTEGER NOT NULL,
    mem BIGINT NOT NULL,
    slots INTEGER NOT NULL,
    gpus TEXT[] DEFAULT '{}' NOT NULL,
    ports INTEGER[] DEFAULT '{}' NOT NULL,
    released_at timestamptz,
    CONSTRAINT shares_pkey PRIMARY KEY (seq, element, number, position),
    CONSTRAINT shares_seq_fkey FOREIGN KEY (seq, element, number) REFERENCES attempts (seq, element, number),
    CONSTRAINT shares_node_fkey FOREIGN KEY (node) REFERENCES nodes (name)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

CREATE INDEX shares_live ON shares (node) WHERE released_at IS NULL;

CREATE UNIQUE INDEX shares_one_per_node ON shares (seq, element, number, node);

CREATE TABLE steps (
    seq BIGINT NOT NULL,
    element INTEGER DEFAULT -1 NOT NULL,
    number INTEGER NOT NULL,
    step TEXT NOT NULL,
    command JSONB DEFAULT '[]'::jsonb NOT NULL,
    code INTEGER,
    first_failed INTEGER,
    ranks JSONB DEFAULT '[]'::jsonb NOT NULL,
    CONSTRAINT steps_pkey PRIMARY KEY (seq, element, number, step),
    CONSTRAINT steps_seq_fkey FOREIGN KEY (seq, element, number) REFERENCES attempts (seq, element, number)
);

CREATE TABLE allocations (
    seq BIGINT NOT NULL,
    element INTEGER DEFAULT -1 NOT NULL,
    number INTEGER NOT NULL,
    node TEXT NOT NULL,
    gpu TEXT,
    port INTEGER,
    host TEXT,
    CONSTRAINT allocations_seq_fkey FOREIGN KEY (seq, element, number) REFERENCES attempts (seq, element, number),
    CONSTRAINT allocations_one_thing CHECK (num_nonnulls(gpu, port) = 1),
    CONSTRAINT allocations_port_has_host CHECK ((port IS NULL) = (host IS NULL)),
    CONSTRAINT allocations_gpu_fkey FOREIGN KEY (gpu) REFERENCES gpus (uuid)
);

CREATE INDEX allocations_attempt ON allocations (seq, element, number);

CREATE UNIQUE INDEX allocations_one_per_gpu ON allocations (gpu) WHERE gpu IS NOT NULL;

CREATE UNIQUE INDEX allocations_one_per_port ON allocations (host, port) WHERE port IS NOT NULL;
"""

_ROWS = """
INSERT INTO leadership (term, expires_at) VALUES (0, 'epoch');
INSERT INTO queues (name) VALUES ('batch');
"""

_PARTITIONS = """
CREATE FUNCTION hpcmesos_make_partitions(first date, last date) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    parent text;
    child text;
    day date;
    made integer := 0;
BEGIN
    FOREACH parent IN ARRAY ARRAY['events', 'jobs_history', 'attempts_history', 'shares_history', 'steps_history'] LOOP
        FOR day IN SELECT generate_series(first, last, '1 day')::date LOOP
            child := parent || '_' || to_char(day, 'YYYYMMDD');
            CONTINUE WHEN to_regclass(child) IS NOT NULL;
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', child, parent);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                           parent, child, day::timestamptz, (day + 1)::timestamptz);
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END $$;

CREATE FUNCTION hpcmesos_drop_partitions(before date) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    child regclass;
    dropped integer := 0;
BEGIN
    FOR child IN
        SELECT inhrelid::regclass FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent IN ('events'::regclass, 'jobs_history'::regclass, 'attempts_history'::regclass,
                            'shares_history'::regclass, 'steps_history'::regclass)
          AND relkind = 'r'
          -- CASE, for the planner may look at the names of all tables before it joins.
          AND CASE WHEN relname ~ '[0-9]{8}$' THEN to_date(right(relname, 8), 'YYYYMMDD') < before ELSE false END
    LOOP
        EXECUTE format('DROP TABLE %s', child);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;

REVOKE ALL ON FUNCTION hpcmesos_make_partitions(date, date), hpcmesos_drop_partitions(date) FROM PUBLIC;
SELECT hpcmesos_make_partitions((now() AT TIME ZONE 'UTC')::date, (now() AT TIME ZONE 'UTC')::date + 7);
"""

# Roles belong to the whole server: another database's migration may have made them, or be making them now.
_ROLES = """
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['hpcmesos_api', 'hpcmesos_leader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted)
           AND (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;

    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hpcmesos_api') THEN
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO hpcmesos_api;
        GRANT INSERT ON jobs, job_scripts, inbox, idempotency_keys, tokens, secret_changes TO hpcmesos_api;
        GRANT UPDATE (node, used_at, used_via, revoked_at, revoked_by, revoked_via) ON tokens TO hpcmesos_api;
        GRANT INSERT, UPDATE, DELETE ON secrets, gateways, deliveries TO hpcmesos_api;
        GRANT INSERT, UPDATE (revoked_at, revoked_by, revoked_via) ON certificates TO hpcmesos_api;
        GRANT INSERT, UPDATE (sealed_key, signs_since, dropped_at, forced_via) ON authorities TO hpcmesos_api;
        GRANT USAGE ON SEQUENCE job_ids, inbox_ids TO hpcmesos_api;
    END IF;

    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hpcmesos_leader') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO hpcmesos_leader;
        REVOKE ALL ON tokens, authorities, alembic_version FROM hpcmesos_leader;
        REVOKE INSERT, UPDATE, DELETE ON secrets, secret_changes, certificates, gateways, deliveries
            FROM hpcmesos_leader;
        REVOKE INSERT, DELETE ON leadership FROM hpcmesos_leader;
        GRANT SELECT ON alembic_version TO hpcmesos_leader;
        GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public TO hpcmesos_leader;
        GRANT EXECUTE ON FUNCTION hpcmesos_make_partitions(date, date), hpcmesos_drop_partitions(date)
            TO hpcmesos_leader;
    END IF;
END $$;
"""


def upgrade() -> None:
    driver = (
        op.get_bind().connection.driver_connection
    )  # takes several statements at once, and leaves % alone
    assert driver is not None
    for script in (_TABLES, _ROWS, _PARTITIONS, _ROLES):
        driver.execute(script)
