-- A driver's statements. %(now)s is NULL, except in tests, where it replaces the clock.
-- Every write about an attempt is fenced by job_id AND attempt AND driver_id, and otherwise changes nothing. Where rows are
-- selected by their ids, the fence is written so that no index fits it (IS NOT DISTINCT FROM; phase, which only running jobs
-- have): with stale statistics the planner would otherwise read all rows of the driver to find a few.
-- No statement waits for a row lock: locked rows are skipped, and reported if the caller has to know.
-- %(only)s is one id when a batch failed because of one row and each row is run alone; %(skipped)s are rows left out by that.

-- name: session
-- All statements of a driver are written for ordered indexes. With stale statistics, as after the first large enqueue, the
-- planner would otherwise read and sort the whole queue for each claim.
SET enable_seqscan = off;
SET enable_bitmapscan = off;
LISTEN rythmiq

-- name: register
INSERT INTO rythmiq.drivers (driver_id, hostname, pid, version, started_at, heartbeat_at, lease_expires_at, queues)
SELECT %(driver_id)s, %(hostname)s, %(pid)s, %(version)s, at, at, at + make_interval(secs => %(lease_s)s),
       %(queues)s::text[]
FROM (SELECT coalesce(%(now)s, clock_timestamp()) AS at) AS clock

-- name: renew
-- The heartbeat. It returns no row once the lease has ended, because others may have taken over the jobs. clock_timestamp() is
-- read after the row is locked; now() would be the time before a wait for a session that ended the lease.
UPDATE rythmiq.drivers
SET heartbeat_at = coalesce(%(now)s, clock_timestamp()),
    lease_expires_at = coalesce(%(now)s, clock_timestamp()) + make_interval(secs => %(lease_s)s)
WHERE driver_id = %(driver_id)s AND stopped_at IS NULL AND lease_expires_at > coalesce(%(now)s, clock_timestamp())
RETURNING driver_id

-- name: resign
-- Ends the lease now: whatever this driver still holds may be taken over at once.
UPDATE rythmiq.drivers
SET lease_expires_at = least(lease_expires_at, coalesce(%(now)s, clock_timestamp())),
    stopped_at = coalesce(stopped_at, %(now)s, clock_timestamp())
WHERE driver_id = %(driver_id)s

-- name: claim
-- Claims the next jobs and opens their attempts: the path is in the row before anything is created. A job whose last attempt's
-- files are kept gets that attempt again, to collect them. The lock on the driver's own row stops others from ending its lease
-- meanwhile; it does not block the heartbeat.
WITH me AS MATERIALIZED (
    SELECT driver_id FROM rythmiq.drivers
    WHERE driver_id = %(driver_id)s AND stopped_at IS NULL AND lease_expires_at > coalesce(%(now)s, clock_timestamp())
      AND draining_at IS NULL
    FOR KEY SHARE SKIP LOCKED
), next AS MATERIALIZED (
    -- Rows that changed since this statement began are looked at again as they are: they are locked by now.
    SELECT j.job_id, j.attempt, j.collect_until
    FROM me
    CROSS JOIN LATERAL rythmiq.next_jobs(%(queues)s::text[], %(limit)s, %(account)s, %(age_s)s, %(after)s,
                                         %(skipped)s::uuid[], %(only)s::uuid, %(now)s) AS n(job_id)
    JOIN rythmiq.jobs AS j ON j.job_id = n.job_id
    -- Written so that no partial index serves it: by stale statistics it would be read whole.
    WHERE j.state NOT IN ('BLOCKED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED')
    FOR NO KEY UPDATE OF j SKIP LOCKED
), kept AS MATERIALIZED (
    SELECT a.job_id
    FROM next JOIN rythmiq.attempts AS a USING (job_id, attempt)
    WHERE next.collect_until > coalesce(%(now)s, now())
      AND a.keep_until > coalesce(%(now)s, now()) AND a.cleaned_at = 'infinity'
), held AS MATERIALIZED (
    SELECT a.job_id
    FROM next JOIN rythmiq.attempts AS a USING (job_id, attempt)
    WHERE job_id IN (SELECT job_id FROM kept)
    FOR NO KEY UPDATE OF a SKIP LOCKED
), claimed AS (
    UPDATE rythmiq.jobs AS j
    SET state = 'RUNNING', driver_id = %(driver_id)s, updated_at = coalesce(%(now)s, now()),
        phase = CASE WHEN again THEN 'collecting' ELSE 'submitting' END,
        attempt = CASE WHEN again THEN j.attempt ELSE j.attempt + 1 END,
        remote_path = CASE WHEN again THEN j.remote_path ELSE 'rythmiq/' || j.job_id || '/' || (j.attempt + 1) END,
        remote_id = CASE WHEN again THEN j.remote_id END,
        remote_status = CASE WHEN again THEN j.remote_status END,
        started_at = CASE WHEN again THEN j.started_at ELSE coalesce(%(now)s, now()) END,
        submitted_at = CASE WHEN again THEN j.submitted_at END,
        running_at = CASE WHEN again THEN j.running_at END,
        ended_at = CASE WHEN again THEN coalesce(j.ended_at, %(now)s, now()) END,
        wait_reason = NULL, credits_per_hour = NULL
    FROM (SELECT job_id, job_id IN (SELECT job_id FROM kept) AS again FROM next) AS n
    WHERE j.job_id = n.job_id AND (NOT again OR n.job_id IN (SELECT job_id FROM held))
    RETURNING j.*
), opened AS (
    INSERT INTO rythmiq.attempts (job_id, attempt, driver_id, remote_path, started_at)
    SELECT job_id, attempt, driver_id, remote_path, started_at FROM claimed WHERE phase = 'submitting'
), opened_again AS (
    UPDATE rythmiq.attempts AS a
    SET state = 'RUNNING', finished_at = NULL, driver_id = %(driver_id)s
    FROM claimed
    WHERE a.job_id = claimed.job_id AND a.attempt = claimed.attempt AND claimed.phase = 'collecting'
)
SELECT job_id FROM claimed

-- name: claimed
-- The rows just claimed. They are not in the claim's own answer: if a frozen driver did not read large rows, the claim's
-- transaction would stay open and block the claims of all other drivers.
SELECT * FROM rythmiq.jobs
WHERE job_id = ANY(%(ids)s::uuid[]) AND driver_id IS NOT DISTINCT FROM %(driver_id)s AND phase IS NOT NULL
ORDER BY priority DESC, next_visible_at, job_id

-- name: claimable
-- What a claim would take, to take each alone.
SELECT rythmiq.next_jobs(%(queues)s::text[], %(limit)s, %(account)s, %(age_s)s, %(after)s, %(skipped)s::uuid[], NULL,
                         %(now)s) AS job_id

-- name: refuse
-- Ends a queued job that cannot be claimed.
UPDATE rythmiq.jobs
SET state = 'FAILED', finished_at = coalesce(%(now)s, now()), updated_at = coalesce(%(now)s, now()),
    error_code = 'invalid_job', error_message = %(message)s, retryable = false
WHERE job_id = (SELECT job_id FROM rythmiq.jobs
                WHERE job_id = %(job_id)s AND state IN ('QUEUED', 'RETRYING')
                FOR NO KEY UPDATE SKIP LOCKED)
RETURNING job_id, attempt

-- name: adopt
-- Takes over running jobs that nobody holds: given back, their driver's lease is over, or their driver has no row (it was
-- deleted by hand, or a restore left it out). orphaned_s is how long ago their former driver may last have acted.
-- The former driver's row is locked first. A renewal under way holds it, also while its commit takes long, and is left
-- alone; else the row is read again as it is now. Its lease is then ended for good: stopped_at stops renewals of this
-- version. One of 0.1.0 that waits for the lock asks for lease_expires_at > now(), the time when it began, which is
-- later than the heartbeat before it: so the lease is set back to that heartbeat. stopped_at keeps the lease's true end
-- for the batches that follow.
WITH RECURSIVE me AS MATERIALIZED (
    SELECT driver_id FROM rythmiq.drivers
    WHERE driver_id = %(driver_id)s AND stopped_at IS NULL AND lease_expires_at > coalesce(%(now)s, clock_timestamp())
    FOR KEY SHARE SKIP LOCKED
), dead AS MATERIALIZED (
    SELECT driver_id, coalesce(stopped_at, lease_expires_at) AS orphaned_at
    FROM rythmiq.drivers AS d
    WHERE lease_expires_at <= coalesce(%(now)s, now())
      AND EXISTS (SELECT FROM me)
      AND EXISTS (SELECT FROM rythmiq.jobs AS j
                  WHERE j.driver_id = d.driver_id AND j.state = 'RUNNING'
                    AND (%(queues)s::text[] IS NULL OR j.queue = ANY(%(queues)s::text[]))
                    AND (%(only)s::uuid IS NULL OR j.job_id = %(only)s))
    FOR UPDATE SKIP LOCKED
), ended AS (
    UPDATE rythmiq.drivers AS d
    SET stopped_at = d.lease_expires_at, lease_expires_at = least(d.lease_expires_at, d.heartbeat_at)
    FROM dead
    WHERE d.driver_id = dead.driver_id AND d.stopped_at IS NULL
), orphans AS MATERIALIZED (
    SELECT j.job_id, dead.orphaned_at
    FROM dead JOIN rythmiq.jobs AS j ON j.driver_id = dead.driver_id
    WHERE j.state = 'RUNNING' AND j.phase IN ('submitting', 'waiting', 'collecting')
      AND (%(queues)s::text[] IS NULL OR j.queue = ANY(%(queues)s::text[]))
      AND (%(only)s::uuid IS NULL OR j.job_id = %(only)s)
      AND (%(skipped)s::uuid[] IS NULL OR j.job_id <> ALL(%(skipped)s::uuid[]))
    LIMIT %(limit)s
    FOR NO KEY UPDATE OF j SKIP LOCKED
), holders AS (
    -- From one driver to the next in the index, however many jobs each has.
    (SELECT driver_id FROM rythmiq.jobs
     WHERE state = 'RUNNING' AND driver_id IS NOT NULL ORDER BY driver_id LIMIT 1)
    UNION ALL
    SELECT next.driver_id
    FROM holders CROSS JOIN LATERAL (
        SELECT driver_id FROM rythmiq.jobs
        WHERE state = 'RUNNING' AND driver_id > holders.driver_id ORDER BY driver_id LIMIT 1
    ) AS next
), lost AS MATERIALIZED (
    SELECT j.job_id, j.updated_at AS orphaned_at
    FROM (SELECT driver_id FROM holders
          WHERE NOT EXISTS (SELECT FROM rythmiq.drivers AS d WHERE d.driver_id = holders.driver_id)) AS unknown
    JOIN rythmiq.jobs AS j ON j.driver_id = unknown.driver_id
    WHERE j.state = 'RUNNING' AND j.phase IN ('submitting', 'waiting', 'collecting')
      AND EXISTS (SELECT FROM me)
      AND (%(queues)s::text[] IS NULL OR j.queue = ANY(%(queues)s::text[]))
      AND (%(only)s::uuid IS NULL OR j.job_id = %(only)s)
      AND (%(skipped)s::uuid[] IS NULL OR j.job_id <> ALL(%(skipped)s::uuid[]))
    LIMIT %(limit)s
    FOR NO KEY UPDATE OF j SKIP LOCKED
), released AS MATERIALIZED (
    SELECT job_id, updated_at AS orphaned_at
    FROM rythmiq.jobs
    WHERE driver_id IS NULL AND state = 'RUNNING' AND phase IN ('submitting', 'waiting', 'collecting')
      AND EXISTS (SELECT FROM me)
      AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s::text[]))
      AND (%(only)s::uuid IS NULL OR job_id = %(only)s)
      AND (%(skipped)s::uuid[] IS NULL OR job_id <> ALL(%(skipped)s::uuid[]))
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
), adopted AS (
    UPDATE rythmiq.jobs AS j
    SET driver_id = %(driver_id)s, updated_at = coalesce(%(now)s, now())
    FROM (SELECT * FROM orphans UNION ALL SELECT * FROM lost UNION ALL SELECT * FROM released) AS o
    WHERE j.job_id = o.job_id
    RETURNING j.*, o.orphaned_at
), found_again AS (
    -- A row that is missing, by hand or by a restore, would keep the attempt's artifacts out of the table.
    INSERT INTO rythmiq.attempts (job_id, attempt, driver_id, remote_path, started_at)
    SELECT job_id, attempt, driver_id, remote_path, coalesce(started_at, %(now)s, now())
    FROM adopted
    WHERE remote_path IS NOT NULL
      AND NOT EXISTS (SELECT FROM rythmiq.attempts AS a WHERE a.job_id = adopted.job_id AND a.attempt = adopted.attempt)
    ON CONFLICT DO NOTHING
), noted AS (
    UPDATE rythmiq.attempts AS a
    SET driver_id = %(driver_id)s
    FROM (SELECT a.job_id, a.attempt FROM adopted JOIN rythmiq.attempts AS a USING (job_id, attempt)
          FOR NO KEY UPDATE OF a SKIP LOCKED) AS free
    WHERE a.job_id = free.job_id AND a.attempt = free.attempt
)
SELECT adopted.*, seconds.*
FROM adopted
CROSS JOIN LATERAL (
    SELECT max(since) FILTER (WHERE name = 'orphaned') AS orphaned_s,
           coalesce(max(since) FILTER (WHERE name = 'age'), 0) AS age_s,
           coalesce(max(since) FILTER (WHERE name = 'submitted'), 0) AS submitted_s,
           max(since) FILTER (WHERE name = 'running') AS running_s
    FROM (
        -- Postgres subtracts no infinite dates.
        SELECT name, extract(epoch FROM clock.now - greatest(clock.now - interval '10 years',
                                                             least(clock.now, at)))::double precision AS since
        FROM (VALUES ('orphaned', orphaned_at), ('age', started_at), ('submitted', submitted_at),
                     ('running', running_at)) AS moments(name, at),
             (SELECT coalesce(%(now)s, now()) AS now) AS clock
        WHERE at IS NOT NULL
    ) AS measured
) AS seconds

-- name: adoptable
-- What a take-over would take, to take each alone.
SELECT job_id
FROM rythmiq.jobs
WHERE state = 'RUNNING'
  AND (driver_id IS NULL
       OR driver_id NOT IN (SELECT driver_id FROM rythmiq.drivers WHERE lease_expires_at > coalesce(%(now)s, now())))
  AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s::text[]))
  AND (%(skipped)s::uuid[] IS NULL OR job_id <> ALL(%(skipped)s::uuid[]))
LIMIT %(limit)s

-- name: release
-- Gives back all that waits, in one UPDATE; another driver takes it over while Camber goes on computing.
UPDATE rythmiq.jobs AS j
SET driver_id = NULL, updated_at = coalesce(%(now)s, now())
FROM (SELECT job_id FROM rythmiq.jobs
      WHERE driver_id = %(driver_id)s AND state = 'RUNNING' AND phase = 'waiting'
        AND (%(only)s::uuid IS NULL OR job_id = %(only)s)
      FOR NO KEY UPDATE SKIP LOCKED) AS mine
WHERE j.job_id = mine.job_id
RETURNING j.job_id

-- name: disown
-- Gives back what the table says is this driver's and the driver does not know of: the answer to a claim that was lost.
UPDATE rythmiq.jobs AS j
SET driver_id = NULL, updated_at = coalesce(%(now)s, now())
FROM (SELECT job_id FROM rythmiq.jobs
      WHERE driver_id = %(driver_id)s AND state = 'RUNNING' AND NOT job_id = ANY(%(known)s::uuid[])
        AND (%(only)s::uuid IS NULL OR job_id = %(only)s)
      FOR NO KEY UPDATE SKIP LOCKED) AS mine
WHERE j.job_id = mine.job_id
RETURNING j.job_id

-- name: held
-- The running jobs that are this driver's, to take each alone.
SELECT job_id FROM rythmiq.jobs WHERE driver_id = %(driver_id)s AND state = 'RUNNING'

-- name: advance
-- Writes progress: phase, remote id, remote status, their first times, and the wait reason. Returns for each row whether it was
-- written or is locked by another session; rows in neither group are no longer this driver's.
WITH v AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(rows)s::jsonb) AS v(
        job_id uuid, attempt integer, phase text, remote_id bigint, remote_status text,
        running boolean, wait_reason text, credits_per_hour double precision)
), mine AS MATERIALIZED (
    SELECT j.job_id
    FROM v JOIN rythmiq.jobs AS j ON j.job_id = v.job_id AND j.attempt = v.attempt
    WHERE j.driver_id IS NOT DISTINCT FROM %(driver_id)s AND j.phase IS NOT NULL
    FOR NO KEY UPDATE OF j SKIP LOCKED
), written AS (
    UPDATE rythmiq.jobs AS j
    SET phase = v.phase, remote_id = coalesce(v.remote_id, j.remote_id),
        remote_status = coalesce(v.remote_status, j.remote_status), updated_at = coalesce(%(now)s, now()),
        submitted_at = CASE WHEN v.remote_id IS NULL THEN j.submitted_at
                            ELSE coalesce(j.submitted_at, %(now)s, now()) END,
        running_at = CASE WHEN v.running THEN coalesce(j.running_at, %(now)s, now()) ELSE j.running_at END,
        ended_at = CASE WHEN v.phase = 'collecting' THEN coalesce(j.ended_at, %(now)s, now()) ELSE j.ended_at END,
        wait_reason = v.wait_reason,
        -- What is collected again had ended before, and its cost is counted.
        credits_per_hour = CASE WHEN j.ended_at IS NULL THEN coalesce(v.credits_per_hour, j.credits_per_hour)
                                ELSE j.credits_per_hour END
    FROM mine JOIN v USING (job_id)
    WHERE j.job_id = mine.job_id
    RETURNING j.job_id
)
SELECT job_id, true AS written FROM written
UNION ALL
SELECT j.job_id, false
FROM v JOIN rythmiq.jobs AS j ON j.job_id = v.job_id AND j.attempt = v.attempt
WHERE j.driver_id IS NOT DISTINCT FROM %(driver_id)s AND j.phase IS NOT NULL
  AND j.job_id NOT IN (SELECT job_id FROM written)
  AND (SELECT count(*) FROM written) < (SELECT count(*) FROM v)

-- name: finish
-- Ends attempts: the job's row, the attempt's row and its artifacts in one statement. A job that is to be retried
-- and was cancelled meanwhile is CANCELLED. Where nobody knows what it cost, what it ran counts by its price. Tells of each
-- as advance does; those are ours too that an earlier call ended whose answer was lost.
WITH v AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(rows)s::jsonb) AS v(
        job_id uuid, attempt integer, state text, retry_delay_s double precision, exit_code integer,
        error_code text, error_message text, retryable boolean, artifact_uri text, cost_credits double precision,
        remote_id bigint, remote_status text, artifacts jsonb, warnings jsonb, keep_s double precision,
        collect_again boolean, free boolean)
), locked AS MATERIALIZED (
    SELECT j.job_id, j.attempt,
           coalesce(v.cost_credits, rythmiq.estimated_credits(j.credits_per_hour, j.running_at,
                                                              coalesce(j.ended_at, %(now)s, now()))) AS its_cost
    FROM v JOIN rythmiq.jobs AS j ON j.job_id = v.job_id AND j.attempt = v.attempt
    WHERE j.driver_id IS NOT DISTINCT FROM %(driver_id)s AND j.phase IS NOT NULL
    FOR NO KEY UPDATE OF j SKIP LOCKED
), with_attempt AS MATERIALIZED (
    SELECT a.job_id, a.cost_credits, locked.its_cost
    FROM locked JOIN rythmiq.attempts AS a USING (job_id, attempt)
    FOR NO KEY UPDATE OF a SKIP LOCKED
), mine AS MATERIALIZED (
    SELECT job_id, cost_credits, its_cost FROM with_attempt
    UNION ALL
    SELECT job_id, NULL, its_cost FROM locked
    WHERE NOT EXISTS (SELECT FROM rythmiq.attempts AS a WHERE a.job_id = locked.job_id AND a.attempt = locked.attempt)
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
        retryable = v.retryable, artifact_uri = v.artifact_uri, warnings = v.warnings,
        collect_until = CASE WHEN v.collect_again
                             THEN coalesce(%(now)s, now()) + make_interval(secs => v.keep_s) END,
        wait_reason = NULL,
        free_attempts = j.free_attempts + v.free::integer,
        cost_credits = CASE WHEN mine.its_cost IS NULL THEN j.cost_credits
                            -- What is collected again was counted before.
                            ELSE coalesce(j.cost_credits, 0) - coalesce(mine.cost_credits, 0) + mine.its_cost END,
        remote_id = coalesce(v.remote_id, j.remote_id), remote_status = coalesce(v.remote_status, j.remote_status)
    FROM mine JOIN v USING (job_id)
    WHERE j.job_id = mine.job_id
    RETURNING j.remote_id AS its_remote_id, j.remote_status AS its_remote_status, j.submitted_at, j.running_at,
              j.ended_at, mine.its_cost, v.*
), closed AS (
    UPDATE rythmiq.attempts AS a
    SET state = f.state, exit_code = f.exit_code, error_code = f.error_code, error_message = f.error_message,
        retryable = f.retryable, artifact_uri = f.artifact_uri, warnings = f.warnings, free = f.free,
        cost_credits = coalesce(f.its_cost, a.cost_credits),
        keep_until = coalesce(%(now)s, now()) + make_interval(secs => f.keep_s),
        -- A janitor of 0.1.0 knows no keep_until and takes what has no such date.
        cleaned_at = CASE WHEN f.keep_s IS NOT NULL THEN 'infinity'::timestamptz END,
        submitted_at = f.submitted_at, running_at = f.running_at, ended_at = f.ended_at,
        remote_id = f.its_remote_id, remote_status = f.its_remote_status, finished_at = coalesce(%(now)s, now())
    FROM finished AS f
    WHERE a.job_id = f.job_id AND a.attempt = f.attempt
), stored AS (
    INSERT INTO rythmiq.artifacts (job_id, attempt, name, uri, bytes, sha256, content_type)
    SELECT f.job_id, f.attempt, x.name, x.uri, x.bytes, x.sha256, x.content_type
    FROM finished AS f
    CROSS JOIN jsonb_to_recordset(f.artifacts)
        AS x(name text, uri text, bytes bigint, sha256 text, content_type text)
    -- What is collected again may have been stored in part before.
    ON CONFLICT (job_id, attempt, name) DO UPDATE
    SET uri = excluded.uri, bytes = excluded.bytes, sha256 = excluded.sha256, content_type = excluded.content_type
)
SELECT job_id, true AS written FROM finished
UNION ALL
SELECT j.job_id, j.state <> 'RUNNING'
FROM v JOIN rythmiq.jobs AS j ON j.job_id = v.job_id AND j.attempt = v.attempt
WHERE j.driver_id IS NOT DISTINCT FROM %(driver_id)s
  AND j.job_id NOT IN (SELECT job_id FROM finished)
  AND (SELECT count(*) FROM finished) < (SELECT count(*) FROM v)

-- name: ended_attempts
-- For traces: attempts that have ended, with all their times.
SELECT a.job_id, a.attempt, a.state, j.queue, j.name, j.user_id, j.traceparent, j.group_id,
       coalesce((SELECT b.finished_at FROM rythmiq.attempts AS b
                 WHERE b.job_id = a.job_id AND b.attempt = a.attempt - 1), j.created_at) AS enqueued_at,
       a.started_at, a.submitted_at, a.running_at, a.ended_at, a.finished_at, a.remote_id, a.exit_code, a.error_code,
       a.error_message, a.cost_credits
FROM jsonb_to_recordset(%(rows)s::jsonb) AS v(job_id uuid, attempt integer)
JOIN rythmiq.attempts AS a USING (job_id, attempt) JOIN rythmiq.jobs AS j USING (job_id)
WHERE isfinite(j.created_at) AND isfinite(a.started_at) AND isfinite(a.finished_at)

-- name: ended_groups
-- For traces: those of these groups that ended at one of these times, with their first members. A group ends at the time of
-- the transaction that ended it, so of all drivers that ask only that one gets it.
SELECT g.group_id, g.name, g.members, g.created_at, g.finished_at,
       CASE WHEN g.failed > 0 THEN 'FAILED' WHEN g.cancelled > 0 THEN 'CANCELLED' ELSE 'SUCCEEDED' END AS state,
       (SELECT coalesce(jsonb_agg(jsonb_build_array(m.job_id, m.attempt, m.traceparent)), '[]')
        FROM (SELECT j.job_id, j.attempt, j.traceparent FROM rythmiq.jobs AS j
              WHERE j.group_id = g.group_id ORDER BY j.group_index, j.job_id LIMIT %(limit)s) AS m) AS first
FROM rythmiq.groups AS g
WHERE g.group_id = ANY(%(ids)s::uuid[]) AND g.finished_at = ANY(%(at)s::timestamptz[]) AND isfinite(g.created_at)

-- name: cancel_requests
-- This driver's jobs that somebody has cancelled.
SELECT job_id FROM rythmiq.jobs
WHERE driver_id = %(driver_id)s AND state = 'RUNNING' AND cancel_requested_at IS NOT NULL

-- name: unfinished
-- Whether a job is claimable, scheduled or running, or may become so by rythmiq.settle_left; with "telling", also whether a
-- notification was never tried.
SELECT EXISTS (
    SELECT FROM rythmiq.jobs
    WHERE state IN ('QUEUED', 'RETRYING') AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s::text[]))
) OR EXISTS (
    SELECT FROM rythmiq.jobs
    WHERE state = 'RUNNING' AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s::text[]))
) OR EXISTS (SELECT FROM rythmiq.unsettled)
  OR (%(telling)s AND EXISTS (SELECT FROM rythmiq.notifications WHERE next_at IS NOT NULL AND tries = 0)) AS unfinished

-- name: due_schedules
SELECT name, cron, time_zone, next_at, catch_up, coalesce(%(now)s, clock_timestamp()) AS now
FROM rythmiq.schedules
WHERE NOT paused AND next_at <= coalesce(%(now)s, clock_timestamp())
ORDER BY next_at
LIMIT %(limit)s

-- name: fire_schedule
SELECT rythmiq.fire_schedule(%(schedule)s, %(was)s, %(next_at)s, %(times)s::timestamptz[]) AS fired

-- name: take_notifications
-- Those that are due, for as long as a driver may need to deliver them; and those that are done with for long go.
WITH old AS (
    SELECT notification_id FROM rythmiq.notifications
    WHERE next_at IS NULL AND created_at < coalesce(%(now)s, now()) - make_interval(secs => %(keep_s)s)
    ORDER BY created_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM rythmiq.notifications AS n USING old WHERE n.notification_id = old.notification_id
), due AS MATERIALIZED (
    SELECT notification_id FROM rythmiq.notifications
    WHERE next_at <= coalesce(%(now)s, now())
    ORDER BY next_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE rythmiq.notifications AS n
SET tries = n.tries + 1, next_at = coalesce(%(now)s, now()) + make_interval(secs => %(hold_s)s)
FROM due
WHERE n.notification_id = due.notification_id
RETURNING n.notification_id, n.job_id, n.group_id, n.url, n.body::text AS body, n.tries

-- name: record_deliveries
-- What became of notifications: delivered, to be tried again, or given up. A row that another session holds, or that
-- another driver has taken since, is left alone: it is told again.
WITH v AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(rows)s::jsonb)
        AS v(notification_id uuid, error text, again_s double precision, tries integer, tried boolean)
), mine AS MATERIALIZED (
    SELECT n.notification_id FROM v JOIN rythmiq.notifications AS n USING (notification_id)
    WHERE n.tries = v.tries AND n.delivered_at IS NULL
    FOR NO KEY UPDATE OF n SKIP LOCKED
)
UPDATE rythmiq.notifications AS n
SET delivered_at = CASE WHEN v.error IS NULL THEN coalesce(%(now)s, clock_timestamp()) END, error = v.error,
    tries = n.tries - (NOT v.tried)::integer,
    next_at = coalesce(%(now)s, clock_timestamp()) + make_interval(secs => v.again_s)
FROM mine JOIN v USING (notification_id)
WHERE n.notification_id = mine.notification_id

-- name: settle_left
-- What follows from the end of jobs and groups, where another session was in the way when they ended. Also the groups that
-- may have ended by that, and when.
WITH delayed AS MATERIALIZED (
    SELECT DISTINCT group_id FROM (SELECT group_id FROM rythmiq.unsettled ORDER BY id LIMIT %(limit)s) AS u
    WHERE group_id IS NOT NULL
)
SELECT array(SELECT group_id FROM delayed) AS groups, rythmiq.settle_left(%(limit)s) AS handled, now() AS at

-- name: control_state
-- Updates budgets. Returns whether this driver is being drained, what else it has to do, and which of these jobs are in a scope
-- that was paused or whose budget was reached after their claim.
SELECT rythmiq.check_budgets() IS NULL AS checked,
       EXISTS (SELECT FROM rythmiq.unsettled) AS unsettled,
       (SELECT min(max_running) FROM rythmiq.limits WHERE scope = 'account') AS account_limit,
       EXISTS (SELECT FROM rythmiq.schedules
               WHERE NOT paused AND next_at <= coalesce(%(now)s, clock_timestamp())) AS schedules_due,
       EXISTS (SELECT FROM rythmiq.notifications WHERE next_at <= coalesce(%(now)s, now())) AS notifications_due,
       EXISTS (SELECT FROM rythmiq.drivers WHERE driver_id = %(driver_id)s AND draining_at IS NOT NULL) AS draining,
       array(SELECT j.job_id FROM rythmiq.jobs AS j
             WHERE j.job_id = ANY(%(ids)s::uuid[])
               AND EXISTS (SELECT FROM rythmiq.limits AS l
                           WHERE (l.paused OR l.over <> '{}')
                             AND CASE l.scope WHEN 'account' THEN true WHEN 'queue' THEN l.name = j.queue
                                              WHEN 'group' THEN l.name = j.group_id::text
                                              ELSE l.name = coalesce(j.user_id, '')
                                                   OR l.name = '*' AND (l.paused OR ARRAY[coalesce(j.user_id, ''), '*'] && l.over)
                                 END)) AS closed

-- name: roles_of
SELECT roles::text[], trusted FROM rythmiq.roles_of(%(login)s::name)

-- name: adjust_account
SELECT found_limit, extract(epoch FROM now() - lowered_at)::double precision AS lowered_s,
       (SELECT count(*) FROM rythmiq.jobs WHERE state = 'RUNNING') AS running
FROM rythmiq.adjust_account(%(first)s, %(grown)s, %(share)s, %(sent_age_s)s)

-- name: cleaned
-- Notes that paths are gone, so that nothing is there to be collected again. Tells which rows another session holds.
WITH v AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(rows)s::jsonb) AS v(job_id uuid, attempt integer)
), mine AS MATERIALIZED (
    SELECT a.job_id, a.attempt
    FROM v JOIN rythmiq.attempts AS a USING (job_id, attempt)
    FOR NO KEY UPDATE OF a SKIP LOCKED
), written AS (
    UPDATE rythmiq.attempts AS a
    SET cleaned_at = coalesce(%(now)s, now()), keep_until = NULL
    FROM mine
    WHERE a.job_id = mine.job_id AND a.attempt = mine.attempt
    RETURNING a.job_id, a.attempt
), forgotten AS (
    UPDATE rythmiq.jobs AS j
    SET collect_until = NULL
    FROM (SELECT j.job_id FROM mine JOIN rythmiq.jobs AS j USING (job_id, attempt)
          WHERE j.collect_until IS NOT NULL
          FOR NO KEY UPDATE OF j SKIP LOCKED) AS kept
    WHERE j.job_id = kept.job_id
)
SELECT a.job_id, a.attempt
FROM v JOIN rythmiq.attempts AS a USING (job_id, attempt)
WHERE (SELECT count(*) FROM written) < (SELECT count(*) FROM v)
  AND NOT EXISTS (SELECT FROM written AS w WHERE w.job_id = a.job_id AND w.attempt = a.attempt)

-- name: uncleaned
-- Ended attempts whose path nobody removed, because their driver died or the removal failed, or because what was in it
-- had to be kept until now.
SELECT j.*, a.attempt AS ended_attempt, a.remote_path AS ended_path, a.remote_id AS ended_remote_id
FROM (
    (SELECT job_id, attempt, remote_path, remote_id
     FROM rythmiq.attempts
     WHERE cleaned_at IS NULL AND finished_at IS NOT NULL
       AND finished_at <= coalesce(%(now)s, now()) - make_interval(secs => %(older_than_s)s)
       AND NOT job_id = ANY(%(but)s::uuid[])
     ORDER BY finished_at
     LIMIT %(limit)s)
    UNION ALL
    (SELECT job_id, attempt, remote_path, remote_id
     FROM rythmiq.attempts
     WHERE keep_until <= coalesce(%(now)s, now()) AND cleaned_at = 'infinity' AND finished_at IS NOT NULL
       AND NOT job_id = ANY(%(but)s::uuid[])
     ORDER BY keep_until
     LIMIT %(limit)s)
) AS a JOIN rythmiq.jobs AS j USING (job_id)
LIMIT %(limit)s

-- name: expired_artifacts
-- Attempts of ended jobs whose stored files are to be deleted, oldest first, each with their URIs; not what an unfinished
-- job depends on, which may have them as inputs. Nothing is locked.
SELECT a.job_id, a.attempt,
       array(SELECT x.uri FROM rythmiq.artifacts AS x WHERE x.job_id = a.job_id AND x.attempt = a.attempt
             UNION
             SELECT a.artifact_uri) AS uris
FROM rythmiq.attempts AS a JOIN rythmiq.jobs AS j USING (job_id)
WHERE a.artifact_uri IS NOT NULL AND a.finished_at < coalesce(%(now)s, now()) - make_interval(secs => %(older_than_s)s)
  AND a.cleaned_at <= coalesce(%(now)s, now()) -- not what may be collected again, under the same names
  AND j.state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
  AND NOT EXISTS (SELECT FROM rythmiq.dependencies AS d JOIN rythmiq.jobs AS k USING (job_id)
                  WHERE d.on_job_id = j.job_id AND k.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING'))
  AND NOT EXISTS (SELECT FROM rythmiq.dependencies AS d JOIN rythmiq.jobs AS k USING (job_id)
                  WHERE d.on_group_id = j.group_id AND k.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING'))
  AND NOT a.job_id = ANY(%(but)s::uuid[])
ORDER BY a.finished_at
LIMIT %(limit)s

-- name: forget_artifacts
-- Notes that the files of these attempts are gone; the job says so. What another session holds comes up again.
WITH mine AS MATERIALIZED (
    SELECT a.job_id, a.attempt
    FROM jsonb_to_recordset(%(rows)s::jsonb) AS v(job_id uuid, attempt integer)
    JOIN rythmiq.attempts AS a USING (job_id, attempt)
    WHERE a.finished_at IS NOT NULL
    FOR NO KEY UPDATE OF a SKIP LOCKED
), deleted AS (
    DELETE FROM rythmiq.artifacts AS x USING mine WHERE x.job_id = mine.job_id AND x.attempt = mine.attempt
), noted AS (
    UPDATE rythmiq.attempts AS a SET artifact_uri = NULL
    FROM mine WHERE a.job_id = mine.job_id AND a.attempt = mine.attempt
)
UPDATE rythmiq.jobs AS j
SET artifact_uri = NULL, warnings = j.warnings || '["its artifacts were deleted (retention.artifacts_s)"]'
FROM (SELECT j.job_id FROM mine JOIN rythmiq.jobs AS j USING (job_id, attempt)
      WHERE j.state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
      FOR NO KEY UPDATE OF j SKIP LOCKED) AS shown
WHERE j.job_id = shown.job_id

-- name: delete_expired
-- Deletes ended jobs of a certain age, a NULL age none; not those of which a path is to be removed or kept, nor, where
-- files have an age of their own, those that still have files.
DELETE FROM rythmiq.jobs
WHERE job_id IN (
    SELECT old.job_id
    FROM (VALUES ('SUCCEEDED', %(succeeded_s)s::double precision), ('FAILED', %(failed_s)s), ('CANCELLED', %(failed_s)s))
        AS ended(state, seconds)
    CROSS JOIN LATERAL (
        SELECT j.job_id
        FROM rythmiq.jobs AS j
        WHERE j.state = ended.state
          AND j.finished_at < coalesce(%(now)s, now()) - make_interval(secs => ended.seconds)
          AND NOT EXISTS (SELECT FROM rythmiq.attempts AS a
                          WHERE a.job_id = j.job_id
                            AND (a.cleaned_at IS NULL OR a.cleaned_at = 'infinity' OR (%(files_first)s AND a.artifact_uri IS NOT NULL)))
          AND NOT EXISTS (SELECT FROM rythmiq.groups AS g WHERE g.group_id = j.group_id AND g.finished_at IS NULL)
          AND NOT EXISTS (SELECT FROM rythmiq.dependencies AS d JOIN rythmiq.jobs AS k USING (job_id)
                          WHERE d.on_job_id = j.job_id AND k.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING'))
          AND NOT EXISTS (SELECT FROM rythmiq.dependencies AS d JOIN rythmiq.jobs AS k USING (job_id)
                          WHERE d.on_group_id = j.group_id AND k.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING'))
        ORDER BY j.finished_at
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ) AS old
)
RETURNING job_id

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
-- first entry of the claim's index, which is that priority's oldest. Postgres subtracts no infinite dates.
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
SELECT extract(epoch FROM coalesce(%(now)s, now())
                          - greatest(coalesce(%(now)s, now()) - interval '10 years',
                                     least(coalesce(%(now)s, now()), min(next_visible_at))))::double precision AS seconds
FROM (SELECT next_visible_at FROM heads LIMIT 100) AS oldest

-- name: stored_inputs
-- What jobs that SUCCEEDED stored and others have as inputs: of one job, or of each member of a group. A log is meant
-- only where it is named. Whoever put the asking job in gets what they may see: a spec may name any id.
WITH asked AS MATERIALIZED (
    SELECT a.*, rythmiq.sees_all(a.asker) AS sees_all FROM jsonb_to_recordset(%(asked)s::jsonb)
        AS a(place integer, number integer, job_id uuid, group_id uuid, pattern text, literal text, asker name)
), source AS (
    SELECT a.place, a.number, a.pattern, a.literal, j.job_id, j.attempt, j.group_index
    FROM asked AS a JOIN rythmiq.jobs AS j ON j.job_id = a.job_id
    WHERE j.state = 'SUCCEEDED' AND (j.enqueued_by = a.asker OR a.sees_all)
    UNION ALL
    SELECT a.place, a.number, a.pattern, a.literal, j.job_id, j.attempt, j.group_index
    FROM asked AS a JOIN rythmiq.jobs AS j ON j.group_id = a.group_id
    WHERE j.state = 'SUCCEEDED' AND (j.enqueued_by = a.asker OR a.sees_all)
)
SELECT s.place, s.number, s.group_index, x.name, x.uri
FROM source AS s JOIN rythmiq.artifacts AS x ON x.job_id = s.job_id AND x.attempt = s.attempt
WHERE x.name = s.literal OR (s.literal IS NULL AND x.name <> 'log.txt' AND x.name ~ s.pattern)
ORDER BY s.place, s.number, s.group_index, s.job_id, x.name

-- name: may_see
-- Of these jobs those that a login may see, and whether it may see all.
SELECT rythmiq.sees_all(%(login)s::name) AS sees_all,
       array(SELECT j.job_id FROM rythmiq.jobs AS j
             WHERE j.job_id = ANY(%(ids)s::uuid[]) AND j.enqueued_by = %(login)s::name) AS ids

-- name: bounds
-- What bounds and holds up the work of all drivers together, for metrics: of each scope how many names are paused, how
-- many have reached a budget, the largest share of a budget that is spent, how many use a limit up, and the largest share
-- of a limit that is used.
WITH bound AS MATERIALIZED (
    SELECT scope, name, min(max_running) AS max_running, min(per_minute) AS per_minute
    FROM rythmiq.limits WHERE coalesce(max_running, per_minute) IS NOT NULL
    GROUP BY scope, name
), each_user AS MATERIALIZED (
    SELECT max(max_running) AS max_running, max(per_minute) AS per_minute FROM bound WHERE scope = 'user' AND name = '*'
), share AS (
    SELECT u.scope, greatest(u.running / nullif(coalesce(own.max_running, each.max_running), 0)::double precision,
                             u.begun / nullif(coalesce(own.per_minute, each.per_minute), 0)::double precision,
                             CASE WHEN 0 IN (own.max_running, own.per_minute) THEN 1 END) AS used
    FROM rythmiq.usage(coalesce(%(now)s, now())) AS u
    LEFT JOIN bound AS own ON own.scope = u.scope AND own.name = u.name
    LEFT JOIN each_user AS each ON u.scope = 'user'
    WHERE EXISTS (SELECT FROM bound)
), shares AS (
    SELECT scope, count(*) FILTER (WHERE used >= 1) AS at_limit, max(used) AS used FROM share GROUP BY scope
), limits AS (
    SELECT scope, count(DISTINCT name) FILTER (WHERE paused) AS paused, count(DISTINCT name) FILTER (WHERE over <> '{}') AS over,
           max(CASE WHEN credits > 0 THEN spent / credits WHEN credits = 0 THEN 1 END)::double precision AS spent
    FROM rythmiq.limits GROUP BY scope
)
SELECT scope, coalesce(l.paused, 0) AS paused, coalesce(l.over, 0) AS over, coalesce(l.spent, 0) AS spent,
       coalesce(s.at_limit, 0) AS at_limit, coalesce(s.used, 0) AS used
FROM unnest(ARRAY['account', 'queue', 'user', 'group']) AS v(scope)
LEFT JOIN limits AS l USING (scope) LEFT JOIN shares AS s USING (scope)

-- name: left_over
-- For metrics: for how long the oldest unfinished group has been there, in seconds; how many attempts left what is not
-- stored yet; how many notifications wait; each counted up to %(limit)s.
SELECT coalesce((SELECT extract(epoch FROM coalesce(%(now)s, now()) - min(g.created_at)) FROM (
                     SELECT created_at FROM rythmiq.groups
                     WHERE finished_at IS NULL AND members > 0 AND isfinite(created_at)
                     ORDER BY created_at LIMIT 1) AS g), 0)::double precision AS oldest_group_s,
       (SELECT count(*) FROM (
            SELECT FROM rythmiq.attempts WHERE keep_until > coalesce(%(now)s, now()) AND cleaned_at = 'infinity'
            LIMIT %(limit)s) AS kept) AS unstored,
       (SELECT count(*) FROM (
            SELECT FROM rythmiq.notifications WHERE next_at IS NOT NULL LIMIT %(limit)s) AS told) AS notifications

-- name: unserved
SELECT queue FROM rythmiq.unserved(%(waiting)s::text[]) AS u(queue)
