-- Gateways, and the output that they have to write.

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
