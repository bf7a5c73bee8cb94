-- Tokens, certificates, authorities, secrets.

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
