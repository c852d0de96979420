-- Parameters are psycopg2's %(name)s; a literal percent sign is %%.

-- name: insert_many
-- Adds jobs from a JSON array; a unique key that an unfinished job holds adds nothing. Returns the ids added.
INSERT INTO rythmiq.jobs
    (job_id, user_id, queue, priority, spec, max_attempts, next_visible_at, unique_key)
SELECT v.job_id, v.user_id, v.queue, v.priority, v.spec, v.max_attempts,
       now() + make_interval(secs => v.delay_s), v.unique_key
FROM jsonb_to_recordset(%(jobs)s::jsonb) AS v(
    job_id uuid, user_id text, queue text, priority integer, spec jsonb, max_attempts integer,
    delay_s double precision, unique_key text)
ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND state IN ('QUEUED', 'RETRYING', 'RUNNING') DO NOTHING
RETURNING job_id

-- name: holders
-- The unfinished jobs that hold these unique keys.
SELECT unique_key, job_id
FROM rythmiq.jobs
WHERE unique_key = ANY(%(keys)s) AND state IN ('QUEUED', 'RETRYING', 'RUNNING')

-- name: copy
-- Bulk load for jobs without a unique key, which COPY could not resolve.
COPY rythmiq.jobs (job_id, user_id, queue, priority, spec, max_attempts, next_visible_at) FROM STDIN

-- name: now
SELECT now() AS now
