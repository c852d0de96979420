-- Statements of the CLI and the client; none needs a lease.

-- name: server
SELECT current_setting('server_version') AS version, current_user::text AS role, clock_timestamp() AS now

-- name: jobs_between
-- For ids given by their first digits: all jobs in a range of ids.
SELECT * FROM rythmiq.jobs WHERE job_id BETWEEN %(low)s AND %(high)s ORDER BY job_id LIMIT 2

-- name: attempts
SELECT * FROM rythmiq.attempts WHERE job_id = %(job_id)s ORDER BY attempt

-- name: artifacts
SELECT * FROM rythmiq.artifacts
WHERE job_id = %(job_id)s AND (%(attempt)s::integer IS NULL OR attempt = %(attempt)s)
ORDER BY attempt, name

-- name: cancel
-- Jobs that wait end at once; a running one is left to its driver, which is told. Rows are locked in the order of their
-- ids here and wherever else a statement waits for them, so that two of them never wait for each other.
WITH target AS MATERIALIZED (
    SELECT job_id
    FROM rythmiq.jobs
    WHERE state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING')
      AND (%(ids)s::uuid[] IS NULL OR job_id = ANY(%(ids)s::uuid[]))
      AND (%(queue)s::text IS NULL OR queue = %(queue)s)
      AND (%(groups)s::uuid[] IS NULL OR group_id = ANY(%(groups)s::uuid[]))
      AND (%(ids)s::uuid[] IS NOT NULL OR %(queue)s::text IS NOT NULL OR %(groups)s::uuid[] IS NOT NULL)
    ORDER BY job_id
    FOR NO KEY UPDATE
), asked AS (
    UPDATE rythmiq.jobs AS j
    SET cancel_requested_at = coalesce(cancel_requested_at, now()), updated_at = now(),
        state = CASE WHEN state = 'RUNNING' THEN state ELSE 'CANCELLED' END,
        finished_at = CASE WHEN state = 'RUNNING' THEN NULL ELSE now() END,
        error_code = CASE WHEN state = 'RUNNING' THEN error_code ELSE 'cancelled' END,
        error_message = CASE WHEN state = 'RUNNING' THEN error_message ELSE 'cancelled before it started' END,
        retryable = CASE WHEN state = 'RUNNING' THEN retryable ELSE false END
    FROM target
    WHERE j.job_id = target.job_id
    RETURNING j.job_id, j.state
), told AS (
    SELECT pg_notify('rythmiq', 'cancel') WHERE EXISTS (SELECT FROM asked WHERE state = 'RUNNING')
)
SELECT asked.job_id, asked.state FROM asked LEFT JOIN told ON true

-- name: retry
-- Gives ended jobs one attempt more, at once.
SELECT put_back AS job_id FROM rythmiq.retry(%(ids)s::uuid[], %(downstream)s) AS put_back

-- name: collect
-- Puts jobs back of which the last attempt is kept, so that the next claim collects it. It is kept for a day more at
-- least, because drivers may be away: a claim after that time would begin a new attempt, and pay for it.
WITH target AS MATERIALIZED (
    SELECT j.job_id, j.attempt, j.unique_key
    FROM rythmiq.jobs AS j JOIN rythmiq.attempts AS a USING (job_id, attempt)
    WHERE j.job_id = ANY(%(ids)s::uuid[]) AND j.state IN ('FAILED', 'CANCELLED')
      AND j.collect_until > now() AND a.keep_until > now() AND a.cleaned_at = 'infinity'
    ORDER BY j.job_id
    FOR NO KEY UPDATE
), chosen AS (
    SELECT job_id, attempt, row_number() OVER (PARTITION BY unique_key ORDER BY job_id) AS place FROM target
), put_back AS (
    UPDATE rythmiq.jobs AS j
    SET state = 'RETRYING', next_visible_at = now(), finished_at = NULL, cancel_requested_at = NULL, updated_at = now(),
        collect_until = greatest(j.collect_until, now() + interval '1 day'), error_code = NULL
    FROM chosen
    WHERE j.job_id = chosen.job_id
      AND (j.unique_key IS NULL OR (chosen.place = 1 AND NOT EXISTS (
          SELECT FROM rythmiq.jobs AS other
          WHERE other.unique_key = j.unique_key AND other.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING'))))
    RETURNING j.job_id, j.attempt, j.collect_until
), kept AS (
    UPDATE rythmiq.attempts AS a
    SET keep_until = put_back.collect_until
    FROM put_back
    WHERE a.job_id = put_back.job_id AND a.attempt = put_back.attempt
)
SELECT job_id, pg_notify('rythmiq', 'enqueued') FROM put_back

-- name: kept
-- Why jobs were not queued again.
SELECT j.job_id, j.state, j.collect_until > now() AND a.keep_until > now() AND a.cleaned_at = 'infinity' AS kept,
       j.collect_until IS NOT NULL OR a.cleaned_at IS NOT NULL AS gone
FROM rythmiq.jobs AS j LEFT JOIN rythmiq.attempts AS a USING (job_id, attempt)
WHERE j.job_id = ANY(%(ids)s::uuid[])

-- name: prunable
-- Ended jobs of a certain age, oldest first, each with the URIs of what it stored. A job of which a path is still to
-- be removed from the stash, or kept there, stays until the janitor has been, and so do members of an unfinished group,
-- and jobs and members of groups that an unfinished job depends on. Nothing is locked: files are deleted next.
SELECT old.job_id,
       array(SELECT x.uri FROM rythmiq.artifacts AS x WHERE x.job_id = old.job_id
             UNION
             SELECT a.artifact_uri FROM rythmiq.attempts AS a WHERE a.job_id = old.job_id AND a.artifact_uri IS NOT NULL
       ) AS uris
FROM (VALUES ('SUCCEEDED'), ('FAILED'), ('CANCELLED')) AS ended(state)
CROSS JOIN LATERAL (
    SELECT j.job_id, j.finished_at
    FROM rythmiq.jobs AS j
    WHERE j.state = ended.state AND j.finished_at < now() - make_interval(secs => %(older_than_s)s)
      AND NOT EXISTS (SELECT FROM rythmiq.attempts AS a WHERE a.job_id = j.job_id
                  AND (a.cleaned_at IS NULL OR a.cleaned_at = 'infinity'))
      AND NOT EXISTS (SELECT FROM rythmiq.groups AS g WHERE g.group_id = j.group_id AND g.finished_at IS NULL)
      AND NOT EXISTS (SELECT FROM rythmiq.dependencies AS d JOIN rythmiq.jobs AS k USING (job_id)
                      WHERE d.on_job_id = j.job_id AND k.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING'))
      AND NOT EXISTS (SELECT FROM rythmiq.dependencies AS d JOIN rythmiq.jobs AS k USING (job_id)
                      WHERE d.on_group_id = j.group_id AND k.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING'))
      AND NOT j.job_id = ANY(%(but)s::uuid[])
      AND (%(only)s::uuid[] IS NULL OR j.job_id = ANY(%(only)s::uuid[]))
    ORDER BY j.finished_at
    LIMIT %(limit)s
) AS old
ORDER BY old.finished_at
LIMIT %(limit)s

-- name: prune
-- Deletes what is still so old and ended: a job may have been put back while its files were deleted.
DELETE FROM rythmiq.jobs
WHERE job_id IN (SELECT job_id
                 FROM rythmiq.jobs AS j
                 WHERE job_id = ANY(%(ids)s::uuid[]) AND state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
                   AND finished_at < now() - make_interval(secs => %(older_than_s)s)
                   AND NOT EXISTS (SELECT FROM rythmiq.attempts AS a WHERE a.job_id = j.job_id
                  AND (a.cleaned_at IS NULL OR a.cleaned_at = 'infinity'))
                 ORDER BY job_id
                 FOR UPDATE SKIP LOCKED)
RETURNING job_id

-- name: unprunable
-- How many jobs of that age stay, and why.
SELECT count(*) FILTER (WHERE kept) AS kept, count(*) FILTER (WHERE NOT kept) AS uncleaned
FROM (
    SELECT j.job_id, bool_or(coalesce(a.keep_until > now(), false)) AS kept
    FROM rythmiq.jobs AS j JOIN rythmiq.attempts AS a USING (job_id)
    WHERE j.finished_at < now() - make_interval(secs => %(older_than_s)s)
      AND j.state IN ('SUCCEEDED', 'FAILED', 'CANCELLED') AND (a.cleaned_at IS NULL OR a.cleaned_at = 'infinity')
    GROUP BY j.job_id
) AS stays

-- name: prune_drivers
-- Drivers long gone that hold nothing.
DELETE FROM rythmiq.drivers AS d
WHERE d.lease_expires_at < now() - make_interval(secs => %(older_than_s)s)
  AND NOT EXISTS (SELECT FROM rythmiq.jobs AS j WHERE j.driver_id = d.driver_id AND j.state = 'RUNNING')
