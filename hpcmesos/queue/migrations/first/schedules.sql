-- hpcmesos cron.

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
