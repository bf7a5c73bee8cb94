-- What the API processes and the leader may do. Roles belong to the whole server: another database's migration may have made
-- them, or be making them now.

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
