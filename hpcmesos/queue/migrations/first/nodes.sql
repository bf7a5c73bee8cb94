-- Nodes and their GPUs.

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
