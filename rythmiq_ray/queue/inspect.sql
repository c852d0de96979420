-- What the CLI reads and asks for; no lease is needed for any of it.

-- name: jobs
-- The newest jobs first; ids are UUIDs of version 7, so their order is the order of creation.
SELECT * FROM rythmiq.jobs
WHERE (%(states)s::text[] IS NULL OR state = ANY(%(states)s::text[]))
  AND (%(queues)s::text[] IS NULL OR queue = ANY(%(queues)s::text[]))
  AND (%(user_id)s::text IS NULL OR user_id = %(user_id)s)
  AND (%(before)s::uuid IS NULL OR job_id < %(before)s)
ORDER BY job_id DESC
LIMIT %(limit)s

-- name: jobs_between
-- For ids given by their first digits: all jobs in a range of ids.
SELECT * FROM rythmiq.jobs WHERE job_id BETWEEN %(low)s AND %(high)s ORDER BY job_id LIMIT 2

-- name: attempts
SELECT * FROM rythmiq.attempts WHERE job_id = %(job_id)s ORDER BY attempt

-- name: artifacts
SELECT * FROM rythmiq.artifacts
WHERE job_id = %(job_id)s AND (%(attempt)s::integer IS NULL OR attempt = %(attempt)s)
ORDER BY attempt, name

-- name: counts
SELECT queue, state, phase, count(*) AS jobs FROM rythmiq.jobs GROUP BY queue, state, phase ORDER BY queue, state, phase

-- name: cancel
-- Queued jobs end at once; a running one is left to its driver, which is told.
WITH asked AS (
    UPDATE rythmiq.jobs
    SET cancel_requested_at = coalesce(cancel_requested_at, now()), updated_at = now(),
        state = CASE WHEN state = 'RUNNING' THEN state ELSE 'CANCELLED' END,
        finished_at = CASE WHEN state = 'RUNNING' THEN NULL ELSE now() END,
        error_code = CASE WHEN state = 'RUNNING' THEN error_code ELSE 'cancelled' END,
        error_message = CASE WHEN state = 'RUNNING' THEN error_message ELSE 'cancelled before it started' END,
        retryable = CASE WHEN state = 'RUNNING' THEN retryable ELSE false END
    WHERE state IN ('QUEUED', 'RETRYING', 'RUNNING')
      AND (%(ids)s::uuid[] IS NULL OR job_id = ANY(%(ids)s::uuid[]))
      AND (%(queue)s::text IS NULL OR queue = %(queue)s)
      AND (%(ids)s::uuid[] IS NOT NULL OR %(queue)s::text IS NOT NULL)
    RETURNING job_id, state
), told AS (
    SELECT pg_notify('rythmiq', 'cancel') WHERE EXISTS (SELECT FROM asked WHERE state = 'RUNNING')
)
SELECT asked.job_id, asked.state FROM asked LEFT JOIN told ON true

-- name: retry
-- Gives ended jobs one attempt more, at once; a job whose unique key another one holds now is left alone.
UPDATE rythmiq.jobs AS j
SET state = 'RETRYING', next_visible_at = now(), finished_at = NULL, cancel_requested_at = NULL, updated_at = now(),
    max_attempts = greatest(j.max_attempts, j.attempt + 1)
WHERE j.job_id = ANY(%(ids)s::uuid[]) AND j.state IN ('FAILED', 'CANCELLED')
  AND (j.unique_key IS NULL OR NOT EXISTS (
      SELECT FROM rythmiq.jobs AS other
      WHERE other.unique_key = j.unique_key AND other.state IN ('QUEUED', 'RETRYING', 'RUNNING')))
RETURNING j.job_id, pg_notify('rythmiq', 'enqueued')

-- name: prunable
-- Ended jobs of a certain age, oldest first, each with the URIs of what it stored. A job of which a path is still to
-- be removed from the stash stays until the janitor has been.
SELECT j.job_id, j.state, j.finished_at,
       array(SELECT x.uri FROM rythmiq.artifacts AS x WHERE x.job_id = j.job_id
             UNION
             SELECT a.artifact_uri FROM rythmiq.attempts AS a WHERE a.job_id = j.job_id AND a.artifact_uri IS NOT NULL
       ) AS uris
FROM rythmiq.jobs AS j
WHERE j.finished_at < now() - make_interval(secs => %(older_than_s)s)
  AND j.state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
  AND NOT EXISTS (SELECT FROM rythmiq.attempts AS a WHERE a.job_id = j.job_id AND a.cleaned_at IS NULL)
ORDER BY j.finished_at
LIMIT %(limit)s
FOR UPDATE OF j SKIP LOCKED

-- name: prune
DELETE FROM rythmiq.jobs WHERE job_id = ANY(%(ids)s::uuid[]) AND state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
RETURNING job_id

-- name: prune_drivers
-- Drivers long gone that hold nothing.
DELETE FROM rythmiq.drivers AS d
WHERE d.lease_expires_at < now() - make_interval(secs => %(older_than_s)s)
  AND NOT EXISTS (SELECT FROM rythmiq.jobs AS j WHERE j.driver_id = d.driver_id AND j.state = 'RUNNING')
