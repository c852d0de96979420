-- What a row says beside its end: warnings, attempts that do not count, and what is kept at Camber to be collected again.
-- Columns with constant defaults alone: no table is rewritten, and programs of 0.1.0 go on working beside.

ALTER TABLE rythmiq.jobs
    ADD COLUMN warnings      jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN free_attempts integer NOT NULL DEFAULT 0,
    ADD COLUMN collect_until timestamptz,
    ADD COLUMN submitted_at  timestamptz,
    ADD COLUMN running_at    timestamptz,
    ADD COLUMN ended_at      timestamptz,
    ADD COLUMN waits_for     text;

COMMENT ON COLUMN rythmiq.jobs.warnings IS 'sentences about the last attempt that did not end it';
COMMENT ON COLUMN rythmiq.jobs.free_attempts IS 'attempts that never ran and do not count against max_attempts';
COMMENT ON COLUMN rythmiq.jobs.collect_until IS
    'up to this the last attempt''s path is kept, and a claim collects what is in it instead of beginning a new attempt';

COMMENT ON COLUMN rythmiq.jobs.submitted_at IS 'when the remote job of the running or last attempt was first known';
COMMENT ON COLUMN rythmiq.jobs.running_at IS 'when it was first seen to run';
COMMENT ON COLUMN rythmiq.jobs.ended_at IS 'when it was first seen to have ended';
COMMENT ON COLUMN rythmiq.jobs.waits_for IS 'why a running attempt does not get on, in words';

ALTER TABLE rythmiq.attempts
    ADD COLUMN warnings   jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN keep_until timestamptz,
    ADD COLUMN free       boolean NOT NULL DEFAULT false,
    ADD COLUMN submitted_at timestamptz,
    ADD COLUMN running_at   timestamptz,
    ADD COLUMN ended_at     timestamptz;

COMMENT ON COLUMN rythmiq.attempts.keep_until IS 'before this the path is not removed, because what is in it was not stored';

COMMENT ON COLUMN rythmiq.drivers.stopped_at IS
    'when it gave up its lease, or when the lease ended that others then took its jobs by; it never renews after that';
