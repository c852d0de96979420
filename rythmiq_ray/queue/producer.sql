-- Parameters are psycopg2's %(name)s; a literal percent sign is %%.

-- name: insert_many
-- Adds jobs from a JSON array; a unique key that an unfinished job holds adds nothing. Returns the ids added. Rows come
-- in the order of their keys: two that bring the same keys in other orders would each wait for the other.
INSERT INTO rythmiq.jobs
    (job_id, user_id, queue, priority, spec, max_attempts, next_visible_at, unique_key, name, labels, params, group_id,
     group_index, waits_for, notify, traceparent, state)
SELECT v.job_id, v.user_id, v.queue, v.priority, v.spec, v.max_attempts,
       now() + make_interval(secs => v.delay_s), v.unique_key, v.name, v.labels, v.params, v.group_id,
       v.group_index, v.waits_for, v.notify, v.traceparent, v.state
FROM jsonb_to_recordset(%(jobs)s::jsonb) AS v(
    job_id uuid, user_id text, queue text, priority integer, spec jsonb, max_attempts integer,
    delay_s double precision, unique_key text, name text, labels jsonb, params jsonb, group_id uuid,
    group_index integer, waits_for integer, notify text, traceparent text, state text)
ORDER BY v.unique_key COLLATE "C", v.job_id
ON CONFLICT DO NOTHING
RETURNING job_id

-- name: holders
-- The unfinished jobs that hold these unique keys, by the keys' places in a JSON array: the client's encoding may not
-- have the characters of the keys themselves.
SELECT asked.place - 1 AS place, j.job_id
FROM jsonb_array_elements_text(%(keys)s::jsonb) WITH ORDINALITY AS asked(unique_key, place)
JOIN rythmiq.jobs AS j ON j.unique_key = asked.unique_key AND j.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING')

-- name: copy
-- Bulk load for jobs without a unique key, which COPY could not resolve.
COPY rythmiq.jobs (job_id, user_id, queue, priority, spec, max_attempts, next_visible_at) FROM STDIN (ENCODING 'UTF8')

-- name: copy_placed
-- The same for jobs that have a name, a group or dependencies.
COPY rythmiq.jobs (job_id, user_id, queue, priority, spec, max_attempts, next_visible_at, name, labels, params, group_id,
                   group_index, waits_for, notify, traceparent, state)
FROM STDIN (ENCODING 'UTF8')

-- name: now
SELECT now() AS now
