-- Queues, settings, who leads, and what the leader is asked and has to tell.

CREATE TABLE queues (
    name TEXT NOT NULL,
    enabled BOOLEAN DEFAULT true NOT NULL,
    started BOOLEAN DEFAULT true NOT NULL,
    priority INTEGER DEFAULT 0 NOT NULL,
    attributes JSONB DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT queues_pkey PRIMARY KEY (name)
);

CREATE TABLE settings (
    name TEXT NOT NULL,
    value JSONB DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT settings_pkey PRIMARY KEY (name)
);

CREATE TABLE leadership (
    term BIGINT NOT NULL,
    holder TEXT DEFAULT '' NOT NULL,
    address TEXT DEFAULT '' NOT NULL,
    timeline INTEGER DEFAULT 0 NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT leadership_pkey PRIMARY KEY (term)
);

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

INSERT INTO leadership (term, expires_at) VALUES (0, 'epoch');
INSERT INTO queues (name) VALUES ('batch');
