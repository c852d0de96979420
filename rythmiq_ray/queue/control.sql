-- Limits, pauses, budgets and costs, set and read by users.

-- name: limits
-- All limits, and how many jobs run in each scope; for * it is the number of the user who has most.
WITH used AS MATERIALIZED (
    SELECT * FROM rythmiq.usage(now())
)
SELECT l.scope, CASE WHEN l.scope = 'group' THEN coalesce(g.name, l.name) ELSE l.name END AS label, l.name, l.max_running,
       l.per_minute, l.credits, l.period, l.paused, l.cancel_running, l.reason, l.set_by::text, l.set_at, l.spent, l.over,
       coalesce((SELECT max(u.running) FROM used AS u
                 WHERE u.scope = l.scope AND (u.name = l.name OR (l.scope = 'user' AND l.name = '*'))), 0) AS running
FROM rythmiq.limits AS l LEFT JOIN rythmiq.groups AS g ON l.scope = 'group' AND g.group_id::text = l.name
ORDER BY l.scope, l.name, l.period NULLS FIRST

-- name: rooms
-- The scopes of a job that have no room now.
SELECT r.scope, r.name, min(r.room) AS room FROM rythmiq.rooms(now()) AS r
WHERE r.room <= 0 AND (r.scope = 'account' OR (r.scope = 'queue' AND r.name = %(queue)s)
                       OR (r.scope = 'user' AND r.name IN (coalesce(%(user_id)s, ''), '*'))
                       OR (r.scope = 'group' AND r.name = %(group_id)s::text))
GROUP BY r.scope, r.name

-- name: set_limit
SELECT rythmiq.set_limit(%(scope)s, %(name)s, %(max_running)s, %(per_minute)s)

-- name: unset_limit
SELECT rythmiq.unset_limit(%(scope)s, %(name)s) AS found

-- name: set_budget
SELECT rythmiq.set_budget(%(scope)s, %(name)s, %(credits)s, %(period)s, %(cancel_running)s)

-- name: unset_budget
SELECT rythmiq.unset_budget(%(scope)s, %(name)s, %(period)s) AS found

-- name: pause
SELECT rythmiq.pause(%(scope)s, %(name)s, %(reason)s, %(cancel_running)s) AS jobs

-- name: resume
SELECT rythmiq.resume(%(scope)s, %(name)s) AS found

-- name: rights
-- Which actions the login has the privileges for: a cancel updates rows, the others call functions.
SELECT current_user::text AS login,
       has_column_privilege('rythmiq.jobs', 'cancel_requested_at', 'UPDATE') AS cancel,
       has_function_privilege('rythmiq.retry(uuid[], boolean)', 'EXECUTE') AS retry,
       has_function_privilege('rythmiq.pause(text, text, text, boolean)', 'EXECUTE') AS pause,
       has_function_privilege('rythmiq.drain(uuid)', 'EXECUTE') AS drain

-- name: drain
SELECT rythmiq.drain(%(driver_id)s) AS found

-- name: cost
-- Credits by day, user, queue, group or the value of a label; a running job counts with the time that it has run.
SELECT CASE %(by)s WHEN 'group' THEN nullif(coalesce(max(k.group_name), k.key), '00000000-0000-0000-0000-000000000000')
                   ELSE k.key END AS key,
       sum(k.credits) AS credits, sum(k.jobs)::bigint AS jobs,
       coalesce(sum(k.credits) FILTER (WHERE k.running), 0) AS running_credits
FROM (
    SELECT s.*, CASE %(by)s WHEN 'day' THEN s.day::text WHEN 'user' THEN s.user_id WHEN 'queue' THEN s.queue
                            WHEN 'group' THEN s.group_id::text WHEN 'all' THEN 'all' ELSE s.labels ->> %(label)s END AS key
    FROM rythmiq.spending AS s
    WHERE (%(since)s::date IS NULL OR s.day >= %(since)s) AND (%(until)s::date IS NULL OR s.day < %(until)s)
      AND (%(users)s::text[] IS NULL OR s.user_id = ANY(%(users)s::text[]))
      AND (%(queues)s::text[] IS NULL OR s.queue = ANY(%(queues)s::text[]))
      AND (%(groups)s::uuid[] IS NULL OR s.group_id = ANY(%(groups)s::uuid[]))
      AND (%(labels)s::jsonb IS NULL OR s.labels @> %(labels)s::jsonb)
) AS k
GROUP BY k.key
ORDER BY CASE WHEN %(by)s = 'day' THEN 0 ELSE sum(k.credits) END DESC, k.key
