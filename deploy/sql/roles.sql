-- The roles of rythmiq-ray: each may do its work and nothing else. Plain SQL for psql or any client, in one transaction:
--
--     psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f deploy/sql/roles.sql
--
-- Run it as the role that ran `rythmiq migrate` (it needs CREATEROLE the first time), after each migration. To run it
-- again is fine: rights that a role was given by hand in the schema are taken back. Nobody logs in as one of these roles;
-- logins are made members:
--
--     CREATE ROLE driver_1 LOGIN PASSWORD '…' IN ROLE rythmiq_worker;

BEGIN;

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['rythmiq_worker', 'rythmiq_retention', 'rythmiq_enqueue', 'rythmiq_reader',
                                  'rythmiq_operator'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        END IF;
    END LOOP;
    IF NOT pg_has_role('rythmiq_operator', 'rythmiq_reader', 'MEMBER') THEN
        GRANT rythmiq_reader TO rythmiq_operator;
    END IF;
END
$$;

REVOKE ALL ON SCHEMA rythmiq
    FROM PUBLIC, rythmiq_worker, rythmiq_retention, rythmiq_enqueue, rythmiq_reader, rythmiq_operator;
REVOKE ALL ON ALL TABLES IN SCHEMA rythmiq
    FROM PUBLIC, rythmiq_worker, rythmiq_retention, rythmiq_enqueue, rythmiq_reader, rythmiq_operator;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA rythmiq
    FROM rythmiq_worker, rythmiq_retention, rythmiq_enqueue, rythmiq_reader, rythmiq_operator;
GRANT USAGE ON SCHEMA rythmiq
    TO rythmiq_worker, rythmiq_retention, rythmiq_enqueue, rythmiq_reader, rythmiq_operator;

-- A driver. It changes how a job stands, never what it is: not its spec, its user, its queue or its priority.
GRANT SELECT ON rythmiq.jobs, rythmiq.attempts, rythmiq.drivers, rythmiq.groups, rythmiq.unsettled TO rythmiq_worker;
GRANT EXECUTE ON FUNCTION rythmiq.settle_left(integer) TO rythmiq_worker;
GRANT SELECT ON rythmiq.schedules, rythmiq.limits, rythmiq.account TO rythmiq_worker;
GRANT UPDATE (one) ON rythmiq.account TO rythmiq_worker; -- to lock its row
GRANT EXECUTE ON FUNCTION rythmiq.check_budgets(), rythmiq.roles_of(name),
    rythmiq.adjust_account(double precision, double precision, double precision, double precision) TO rythmiq_worker;
GRANT EXECUTE ON FUNCTION rythmiq.fire_schedule(text, timestamptz, timestamptz, timestamptz[]) TO rythmiq_worker;
GRANT SELECT, UPDATE (tries, next_at, delivered_at, error), DELETE ON rythmiq.notifications TO rythmiq_worker;
GRANT UPDATE (state, phase, attempt, next_visible_at, driver_id, remote_id, remote_status, remote_path, exit_code,
              error_code, error_message, retryable, artifact_uri, cost_credits, updated_at, started_at, finished_at,
              warnings, free_attempts, collect_until, submitted_at, running_at, ended_at, wait_reason, credits_per_hour)
    ON rythmiq.jobs TO rythmiq_worker;
GRANT INSERT ON rythmiq.attempts, rythmiq.artifacts, rythmiq.drivers TO rythmiq_worker;
GRANT UPDATE (driver_id, remote_id, remote_status, state, exit_code, error_code, error_message, retryable, artifact_uri,
              cost_credits, finished_at, cleaned_at, warnings, keep_until, free, submitted_at, running_at, ended_at)
    ON rythmiq.attempts TO rythmiq_worker;
GRANT SELECT, UPDATE (uri, bytes, sha256, content_type) ON rythmiq.artifacts TO rythmiq_worker;
GRANT UPDATE (heartbeat_at, lease_expires_at, stopped_at) ON rythmiq.drivers TO rythmiq_worker;

-- What the keys retention.* need beside that, for drivers that have them: to delete what ended, and nothing else. A login
-- is made a member of both, rythmiq_worker and rythmiq_retention.
GRANT SELECT ON rythmiq.jobs, rythmiq.attempts, rythmiq.artifacts, rythmiq.groups, rythmiq.dependencies
    TO rythmiq_retention;
GRANT UPDATE (artifact_uri, warnings) ON rythmiq.jobs TO rythmiq_retention;
GRANT UPDATE (artifact_uri) ON rythmiq.attempts TO rythmiq_retention;
GRANT DELETE ON rythmiq.jobs, rythmiq.artifacts TO rythmiq_retention;

-- Whoever puts jobs in: an API gateway, a cron. It sees of others' jobs their ids, states and unique keys, which tell
-- it who holds a key, and no spec, no user and no result; triggers let it add to its own groups alone.
GRANT INSERT (job_id, user_id, queue, priority, spec, max_attempts, next_visible_at, unique_key, name, labels, params,
              group_id, group_index, waits_for, notify, traceparent, state)
    ON rythmiq.jobs TO rythmiq_enqueue;
GRANT SELECT (job_id, state, unique_key, name, group_id, group_index) ON rythmiq.jobs TO rythmiq_enqueue;
GRANT INSERT (group_id, name, user_id, labels, max_parallel, stop_after_failures, notify) ON rythmiq.groups TO rythmiq_enqueue;
GRANT SELECT (group_id, name, max_parallel, places, created_at, finished_at, enqueued_by) ON rythmiq.groups TO rythmiq_enqueue;
GRANT INSERT (job_id, on_job_id, on_group_id, needs) ON rythmiq.dependencies TO rythmiq_enqueue;
GRANT SELECT ON rythmiq.dependencies TO rythmiq_enqueue;
GRANT EXECUTE ON FUNCTION rythmiq.settle_sources(uuid[], uuid[]) TO rythmiq_enqueue;
-- Of its own jobs it sees how they stand, and may cancel them.
GRANT SELECT ON rythmiq.job_status TO rythmiq_enqueue;
GRANT EXECUTE ON FUNCTION rythmiq.cancel(uuid) TO rythmiq_enqueue, rythmiq_operator;
-- Whoever is on call bounds every scope, whoever puts jobs in its own groups; the functions check that.
GRANT EXECUTE ON FUNCTION rythmiq.set_limit(text, text, integer, integer), rythmiq.unset_limit(text, text),
    rythmiq.set_budget(text, text, double precision, text, boolean), rythmiq.unset_budget(text, text, text),
    rythmiq.pause(text, text, text, boolean), rythmiq.resume(text, text) TO rythmiq_enqueue, rythmiq_operator;
GRANT EXECUTE ON FUNCTION rythmiq.drain(uuid) TO rythmiq_operator;

-- Dashboards, support: `rythmiq jobs`, `show`, `logs`, `artifacts`, `top`, `report`.
GRANT SELECT ON ALL TABLES IN SCHEMA rythmiq TO rythmiq_reader;

-- On call: a reader, and `rythmiq cancel`, `retry`, `collect` and `prune`.
GRANT UPDATE (state, max_attempts, next_visible_at, cancel_requested_at, error_code, error_message, retryable,
              updated_at, finished_at, collect_until, waits_for)
    ON rythmiq.jobs TO rythmiq_operator;
GRANT EXECUTE ON FUNCTION rythmiq.retry(uuid[], boolean), rythmiq.settle_sources(uuid[], uuid[]),
    rythmiq.hold_dependencies(uuid[]) TO rythmiq_operator;
GRANT INSERT (name, cron, time_zone, job, sweep, overlap, catch_up, paused, reason, next_at),
    UPDATE (cron, time_zone, job, sweep, overlap, catch_up, paused, reason, next_at), DELETE
    ON rythmiq.schedules TO rythmiq_operator;
GRANT EXECUTE ON FUNCTION rythmiq.run_schedule(text, timestamptz) TO rythmiq_operator;
GRANT UPDATE (keep_until) ON rythmiq.attempts TO rythmiq_operator;
GRANT DELETE ON rythmiq.jobs, rythmiq.drivers TO rythmiq_operator;

COMMIT;
