-- What is over, a partition a day, and the functions by which the leader makes and drops partitions without owning tables.

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
