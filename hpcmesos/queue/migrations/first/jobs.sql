-- Jobs that are not history yet, their attempts, and what these hold.

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

CREATE TABLE idempotency_keys (
    "user" TEXT NOT NULL,
    key TEXT NOT NULL,
    digest BYTEA NOT NULL,
    seqs BIGINT[] NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY ("user", key)
);

CREATE INDEX idempotency_keys_created_at ON idempotency_keys (created_at);
