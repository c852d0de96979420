-- Schedules, kept by users. Drivers fire the due times.

-- name: add
INSERT INTO rythmiq.schedules (name, cron, time_zone, job, sweep, overlap, catch_up, next_at)
VALUES (%(name)s, %(cron)s, %(time_zone)s, %(job)s::jsonb, %(sweep)s::jsonb, %(overlap)s, %(catch_up)s, %(next_at)s)
ON CONFLICT (name) DO UPDATE
SET cron = excluded.cron, time_zone = excluded.time_zone, job = excluded.job, sweep = excluded.sweep,
    overlap = excluded.overlap, catch_up = excluded.catch_up, next_at = excluded.next_at
WHERE %(replace)s
RETURNING name

-- name: list
SELECT s.*, coalesce(j.state, CASE WHEN g.group_id IS NULL THEN NULL WHEN g.finished_at IS NULL THEN 'RUNNING'
                                   WHEN g.failed > 0 THEN 'FAILED' WHEN g.cancelled > 0 THEN 'CANCELLED'
                                   ELSE 'SUCCEEDED' END) AS last_state
FROM rythmiq.schedules AS s
LEFT JOIN rythmiq.jobs AS j ON j.job_id = s.last_job_id
LEFT JOIN rythmiq.groups AS g ON g.group_id = s.last_group_id
WHERE %(name)s::text IS NULL OR s.name = %(name)s
ORDER BY s.name

-- name: pause
UPDATE rythmiq.schedules SET paused = true, reason = %(reason)s WHERE name = %(name)s RETURNING name

-- name: resume
UPDATE rythmiq.schedules SET paused = false, reason = NULL, next_at = %(next_at)s WHERE name = %(name)s RETURNING name

-- name: remove
DELETE FROM rythmiq.schedules WHERE name = %(name)s RETURNING name

-- name: run
SELECT rythmiq.run_schedule(%(name)s, now()) AS made

-- name: now
SELECT clock_timestamp() AS now
