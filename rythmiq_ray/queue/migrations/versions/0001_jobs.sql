-- The four tables of rythmiq-ray. Times are the database's; UUIDs of jobs are version 7, so they sort by age.

CREATE TABLE rythmiq.jobs (
    job_id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id             text,
    queue               text NOT NULL DEFAULT 'default',
    state               text NOT NULL DEFAULT 'QUEUED'
        CHECK (state IN ('QUEUED', 'RETRYING', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    phase               text CHECK (phase IN ('submitting', 'waiting', 'collecting')),
    priority            integer NOT NULL DEFAULT 0,
    spec                jsonb NOT NULL,
    attempt             integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    max_attempts        integer NOT NULL DEFAULT 3 CHECK (max_attempts >= 1),
    next_visible_at     timestamptz NOT NULL DEFAULT now(),
    unique_key          text,
    driver_id           uuid,
    remote_id           bigint,
    remote_status       text,
    remote_path         text,
    cancel_requested_at timestamptz,
    exit_code           integer,
    error_code          text,
    error_message       text,
    retryable           boolean,
    artifact_uri        text,
    cost_credits        double precision,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    started_at          timestamptz,
    finished_at         timestamptz,
    CHECK ((state = 'RUNNING') = (phase IS NOT NULL))
) WITH (
    -- Room on the page lets updates that touch no index stay on it; a queue's rows die young, so vacuum comes early.
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.05
);

COMMENT ON COLUMN rythmiq.jobs.priority IS 'higher goes first';
COMMENT ON COLUMN rythmiq.jobs.attempt IS 'number of the running or last attempt; 0 before the first';
COMMENT ON COLUMN rythmiq.jobs.remote_path IS 'the attempt''s own path under the stash owner''s root, written before anything is created there';
COMMENT ON COLUMN rythmiq.jobs.started_at IS 'when the running or last attempt was claimed';
COMMENT ON COLUMN rythmiq.jobs.error_code IS 'of the last attempt; the codes are in rythmiq_ray/errors.py';
COMMENT ON COLUMN rythmiq.jobs.cost_credits IS 'estimate over all attempts';

-- The claim's order. Finished and running rows are not in it, so they cost the claim nothing.
CREATE INDEX jobs_claimable ON rythmiq.jobs (priority DESC, next_visible_at, job_id)
    WHERE state IN ('QUEUED', 'RETRYING');
-- Which jobs a driver has: take-over, release, cancel.
CREATE INDEX jobs_running ON rythmiq.jobs (driver_id) WHERE state = 'RUNNING';
CREATE UNIQUE INDEX jobs_unique_key ON rythmiq.jobs (unique_key)
    WHERE unique_key IS NOT NULL AND state IN ('QUEUED', 'RETRYING', 'RUNNING');
CREATE INDEX jobs_finished ON rythmiq.jobs (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE rythmiq.attempts (
    job_id        uuid NOT NULL REFERENCES rythmiq.jobs ON DELETE CASCADE,
    attempt       integer NOT NULL,
    driver_id     uuid,
    remote_path   text NOT NULL,
    remote_id     bigint,
    remote_status text,
    state         text NOT NULL DEFAULT 'RUNNING' CHECK (state IN ('RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    exit_code     integer,
    error_code    text,
    error_message text,
    retryable     boolean,
    artifact_uri  text,
    cost_credits  double precision,
    started_at    timestamptz NOT NULL,
    finished_at   timestamptz,
    cleaned_at    timestamptz,
    PRIMARY KEY (job_id, attempt)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);

COMMENT ON COLUMN rythmiq.attempts.cleaned_at IS 'when the attempt''s path was removed from the stash';

-- What the janitor still has to remove.
CREATE INDEX attempts_uncleaned ON rythmiq.attempts (finished_at)
    WHERE finished_at IS NOT NULL AND cleaned_at IS NULL;

CREATE TABLE rythmiq.artifacts (
    job_id       uuid NOT NULL,
    attempt      integer NOT NULL,
    name         text NOT NULL,
    uri          text NOT NULL,
    bytes        bigint NOT NULL CHECK (bytes >= 0),
    sha256       text NOT NULL,
    content_type text NOT NULL,
    PRIMARY KEY (job_id, attempt, name),
    FOREIGN KEY (job_id, attempt) REFERENCES rythmiq.attempts ON DELETE CASCADE
);

CREATE TABLE rythmiq.drivers (
    driver_id        uuid PRIMARY KEY,
    hostname         text NOT NULL,
    pid              integer NOT NULL,
    version          text NOT NULL,
    started_at       timestamptz NOT NULL DEFAULT now(),
    heartbeat_at     timestamptz NOT NULL DEFAULT now(),
    lease_expires_at timestamptz NOT NULL,
    stopped_at       timestamptz
);

COMMENT ON TABLE rythmiq.drivers IS 'one heartbeat for all of a driver''s jobs; once the lease is over, any driver may take them';

-- Wakes drivers also where rows are inserted by hand. One notification a statement, and Postgres folds equal ones.
CREATE FUNCTION rythmiq.notify_enqueued() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('rythmiq', 'enqueued');
    RETURN NULL;
END
$$;

CREATE TRIGGER jobs_enqueued AFTER INSERT ON rythmiq.jobs
    FOR EACH STATEMENT EXECUTE FUNCTION rythmiq.notify_enqueued();
