-- What a driver does to the queue. %(now)s is NULL but in tests of time, where it stands for the clock.
-- Every write about an attempt is fenced: job_id AND attempt AND driver_id, else it changes nothing. Where rows are given
-- by their ids, the fence is written so that no index serves it (IS NOT DISTINCT FROM; phase, which only running jobs have):
-- by stale statistics the planner would else find the few rows by reading all that the driver has.

-- name: session
-- A driver's statements are all made for ordered indexes. By stale statistics, say after the first large enqueue, the
-- planner would read and sort the whole queue for each claim.
SET enable_seqscan = off;
SET enable_bitmapscan = off;
LISTEN rythmiq

-- name: register
INSERT INTO rythmiq.drivers (driver_id, hostname, pid, version, started_at, heartbeat_at, lease_expires_at)
VALUES (%(driver_id)s, %(hostname)s, %(pid)s, %(version)s,
        coalesce(%(now)s, now()), coalesce(%(now)s, now()), coalesce(%(now)s, now()) + make_interval(secs => %(lease_s)s))

-- name: renew
-- The heartbeat; no row comes back once the lease is over, because others may have taken the jobs by then.
UPDATE rythmiq.drivers
SET heartbeat_at = coalesce(%(now)s, now()),
    lease_expires_at = coalesce(%(now)s, now()) + make_interval(secs => %(lease_s)s)
WHERE driver_id = %(driver_id)s AND lease_expires_at > coalesce(%(now)s, now())
RETURNING driver_id

-- name: resign
-- Ends the lease now: whatever this driver still holds may be taken over at once.
UPDATE rythmiq.drivers
SET lease_expires_at = least(lease_expires_at, coalesce(%(now)s, now())), stopped_at = coalesce(%(now)s, now())
WHERE driver_id = %(driver_id)s

-- name: claim
-- Takes the next jobs and opens their attempts: the path is in the row before anything exists there.
WITH next AS MATERIALIZED (
    SELECT job_id
    FROM rythmiq.jobs
    WHERE state IN ('QUEUED', 'RETRYING')
      AND next_visible_at <= coalesce(%(now)s, now())
      AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s::text[]))
      AND EXISTS (SELECT FROM rythmiq.drivers
                  WHERE driver_id = %(driver_id)s AND lease_expires_at > coalesce(%(now)s, now()))
    ORDER BY priority DESC, next_visible_at, job_id
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE rythmiq.jobs AS j
    SET state = 'RUNNING', phase = 'submitting', attempt = j.attempt + 1, driver_id = %(driver_id)s,
        remote_path = 'rythmiq/' || j.job_id || '/' || (j.attempt + 1), remote_id = NULL, remote_status = NULL,
        started_at = coalesce(%(now)s, now()), updated_at = coalesce(%(now)s, now())
    FROM next
    WHERE j.job_id = next.job_id
    RETURNING j.*
), opened AS (
    INSERT INTO rythmiq.attempts (job_id, attempt, driver_id, remote_path, started_at)
    SELECT job_id, attempt, driver_id, remote_path, started_at FROM claimed
)
SELECT * FROM claimed ORDER BY priority DESC, next_visible_at, job_id

-- name: adopt
-- Takes over running jobs that nobody holds: given back, or their driver's lease is over. orphaned_s is
-- how long ago their former driver may last have acted.
WITH orphans AS MATERIALIZED (
    SELECT j.job_id, d.lease_expires_at AS orphaned_at
    FROM rythmiq.drivers AS d
    JOIN rythmiq.jobs AS j ON j.driver_id = d.driver_id
    WHERE d.lease_expires_at <= coalesce(%(now)s, now()) AND j.state = 'RUNNING'
      AND (%(queues)s::text[] IS NULL OR j.queue = ANY(%(queues)s::text[]))
    LIMIT %(limit)s
    FOR UPDATE OF j SKIP LOCKED
), released AS MATERIALIZED (
    SELECT job_id, updated_at AS orphaned_at
    FROM rythmiq.jobs
    WHERE driver_id IS NULL AND state = 'RUNNING'
      AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s::text[]))
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), adopted AS (
    UPDATE rythmiq.jobs AS j
    SET driver_id = %(driver_id)s, updated_at = coalesce(%(now)s, now())
    FROM (SELECT * FROM orphans UNION ALL SELECT * FROM released) AS o
    WHERE j.job_id = o.job_id
      AND EXISTS (SELECT FROM rythmiq.drivers
                  WHERE driver_id = %(driver_id)s AND lease_expires_at > coalesce(%(now)s, now()))
    RETURNING j.*, extract(epoch FROM coalesce(%(now)s, now()) - o.orphaned_at)::double precision AS orphaned_s
), noted AS (
    UPDATE rythmiq.attempts AS a
    SET driver_id = %(driver_id)s
    FROM adopted
    WHERE a.job_id = adopted.job_id AND a.attempt = adopted.attempt
)
SELECT * FROM adopted

-- name: release
-- Gives back all that waits, in one UPDATE; another driver takes it over while Camber goes on computing.
UPDATE rythmiq.jobs
SET driver_id = NULL, updated_at = coalesce(%(now)s, now())
WHERE driver_id = %(driver_id)s AND state = 'RUNNING' AND phase = 'waiting'
RETURNING job_id

-- name: advance
-- Notes progress: phase, remote id and remote status. Returns the ids that were still ours.
UPDATE rythmiq.jobs AS j
SET phase = v.phase, remote_id = coalesce(v.remote_id, j.remote_id),
    remote_status = coalesce(v.remote_status, j.remote_status), updated_at = coalesce(%(now)s, now())
FROM jsonb_to_recordset(%(rows)s::jsonb)
    AS v(job_id uuid, attempt integer, phase text, remote_id bigint, remote_status text)
WHERE j.job_id = v.job_id AND j.attempt = v.attempt
  AND j.driver_id IS NOT DISTINCT FROM %(driver_id)s AND j.phase IS NOT NULL
RETURNING j.job_id

-- name: finish
-- Ends attempts: the job's row, the attempt's row and its artifacts in one statement. A job that is to be retried
-- and was cancelled meanwhile is CANCELLED. Returns the ids that were still ours, those among them that an earlier call
-- ended whose answer was lost.
WITH v AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(rows)s::jsonb) AS v(
        job_id uuid, attempt integer, state text, retry_delay_s double precision, exit_code integer,
        error_code text, error_message text, retryable boolean, artifact_uri text, cost_credits double precision,
        remote_id bigint, remote_status text, artifacts jsonb)
), finished AS (
    UPDATE rythmiq.jobs AS j
    SET state = CASE WHEN v.retry_delay_s IS NULL THEN v.state
                     WHEN j.cancel_requested_at IS NOT NULL THEN 'CANCELLED'
                     ELSE 'RETRYING' END,
        finished_at = CASE WHEN v.retry_delay_s IS NULL OR j.cancel_requested_at IS NOT NULL
                           THEN coalesce(%(now)s, now()) END,
        next_visible_at = coalesce(coalesce(%(now)s, now()) + make_interval(secs => v.retry_delay_s), j.next_visible_at),
        phase = NULL, updated_at = coalesce(%(now)s, now()),
        exit_code = v.exit_code, error_code = v.error_code, error_message = v.error_message,
        retryable = v.retryable, artifact_uri = v.artifact_uri,
        cost_credits = CASE WHEN v.cost_credits IS NULL THEN j.cost_credits
                            ELSE coalesce(j.cost_credits, 0) + v.cost_credits END,
        remote_id = coalesce(v.remote_id, j.remote_id), remote_status = coalesce(v.remote_status, j.remote_status)
    FROM v
    WHERE j.job_id = v.job_id AND j.attempt = v.attempt
      AND j.driver_id IS NOT DISTINCT FROM %(driver_id)s AND j.phase IS NOT NULL
    RETURNING j.remote_id AS its_remote_id, j.remote_status AS its_remote_status, v.*
), closed AS (
    UPDATE rythmiq.attempts AS a
    SET state = f.state, exit_code = f.exit_code, error_code = f.error_code, error_message = f.error_message,
        retryable = f.retryable, artifact_uri = f.artifact_uri, cost_credits = f.cost_credits,
        remote_id = f.its_remote_id, remote_status = f.its_remote_status, finished_at = coalesce(%(now)s, now())
    FROM finished AS f
    WHERE a.job_id = f.job_id AND a.attempt = f.attempt
), stored AS (
    INSERT INTO rythmiq.artifacts (job_id, attempt, name, uri, bytes, sha256, content_type)
    SELECT f.job_id, f.attempt, x.name, x.uri, x.bytes, x.sha256, x.content_type
    FROM finished AS f
    CROSS JOIN jsonb_to_recordset(f.artifacts)
        AS x(name text, uri text, bytes bigint, sha256 text, content_type text)
    ON CONFLICT DO NOTHING
)
SELECT job_id FROM finished
UNION ALL
SELECT j.job_id FROM v JOIN rythmiq.jobs AS j ON j.job_id = v.job_id AND j.attempt = v.attempt
WHERE j.driver_id = %(driver_id)s AND j.state <> 'RUNNING'
  AND (SELECT count(*) FROM finished) < (SELECT count(*) FROM v)

-- name: cancel_requests
-- Which of this driver's jobs somebody wants ended.
SELECT job_id FROM rythmiq.jobs
WHERE driver_id = %(driver_id)s AND state = 'RUNNING' AND cancel_requested_at IS NOT NULL

-- name: disown
-- Gives back what the table says is this driver's and the driver does not know of: the answer to a claim that was lost.
UPDATE rythmiq.jobs
SET driver_id = NULL, updated_at = coalesce(%(now)s, now())
WHERE driver_id = %(driver_id)s AND state = 'RUNNING' AND NOT job_id = ANY(%(known)s::uuid[])
RETURNING job_id

-- name: unfinished
-- Whether anything is claimable, scheduled or running.
SELECT EXISTS (
    SELECT FROM rythmiq.jobs
    WHERE state IN ('QUEUED', 'RETRYING') AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s::text[]))
) OR EXISTS (
    SELECT FROM rythmiq.jobs
    WHERE state = 'RUNNING' AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s::text[]))
) AS unfinished

-- name: cleaned
UPDATE rythmiq.attempts AS a
SET cleaned_at = coalesce(%(now)s, now())
FROM jsonb_to_recordset(%(rows)s::jsonb) AS v(job_id uuid, attempt integer)
WHERE a.job_id = v.job_id AND a.attempt = v.attempt

-- name: uncleaned
-- Ended attempts whose path nobody removed, because their driver died or the removal failed.
SELECT j.*, a.attempt AS ended_attempt, a.remote_path AS ended_path, a.remote_id AS ended_remote_id
FROM rythmiq.attempts AS a JOIN rythmiq.jobs AS j USING (job_id)
WHERE a.cleaned_at IS NULL AND a.finished_at IS NOT NULL
  AND a.finished_at <= coalesce(%(now)s, now()) - make_interval(secs => %(older_than_s)s)
ORDER BY a.finished_at
LIMIT %(limit)s

-- name: depth
-- How many jobs wait, by queue and state, for metrics. At most %(limit)s rows are read, whatever the queue's length: up
-- to there the counts are exact, beyond it they are these rows' shares of the planner's own way to estimate, entries
-- a page of the index at the last vacuum or analyze times its pages now.
WITH first AS MATERIALIZED (
    SELECT queue, state
    FROM rythmiq.jobs
    WHERE state IN ('QUEUED', 'RETRYING')
    ORDER BY priority DESC, next_visible_at, job_id
    LIMIT %(limit)s
), seen AS (
    SELECT count(*) AS jobs FROM first
), estimated AS (
    SELECT pg_relation_size(oid) / current_setting('block_size')::bigint
           -- 120: measured, for an index that was never looked at or was empty then.
           * CASE WHEN relpages > 0 AND reltuples > 0 THEN reltuples / relpages ELSE 120 END AS jobs
    FROM pg_class WHERE oid = 'rythmiq.jobs_claimable'::regclass
)
SELECT queue, state,
       round(count(*) * CASE WHEN seen.jobs < %(limit)s THEN 1
                             ELSE greatest(1, estimated.jobs / seen.jobs) END)::bigint AS jobs
FROM first, seen, estimated
GROUP BY queue, state, seen.jobs, estimated.jobs

-- name: oldest_claimable
-- For how long the oldest claimable job has been so, in seconds: for each priority there is, at most 100 of them, the
-- first entry of the claim's index, which is that priority's oldest.
WITH RECURSIVE heads AS (
    (SELECT priority, next_visible_at
     FROM rythmiq.jobs
     WHERE state IN ('QUEUED', 'RETRYING')
     ORDER BY priority DESC, next_visible_at
     LIMIT 1)
    UNION ALL
    SELECT next.priority, next.next_visible_at
    FROM heads CROSS JOIN LATERAL (
        SELECT priority, next_visible_at
        FROM rythmiq.jobs
        WHERE state IN ('QUEUED', 'RETRYING') AND priority < heads.priority
        ORDER BY priority DESC, next_visible_at
        LIMIT 1
    ) AS next
)
SELECT coalesce(greatest(0, extract(epoch FROM coalesce(%(now)s, now()) - min(next_visible_at))), 0)::double precision
    AS seconds
FROM (SELECT next_visible_at FROM heads LIMIT 100) AS oldest
