-- Listings, all with the same filters. psycopg2 sends values as literals, so the planner drops a filter that is not
-- given.

-- name: filter
(%(groups)s::uuid[] IS NULL OR j.group_id = ANY(%(groups)s::uuid[]))
AND (%(ids)s::uuid[] IS NULL OR j.job_id = ANY(%(ids)s::uuid[]))
AND (%(queues)s::text[] IS NULL OR j.queue = ANY(%(queues)s::text[]))
AND (%(users)s::text[] IS NULL OR j.user_id = ANY(%(users)s::text[]))
AND (%(states)s::text[] IS NULL OR j.state = ANY(%(states)s::text[]))
AND (%(name)s::text IS NULL OR j.name ~ %(name)s)
AND (%(labels)s::jsonb IS NULL OR j.labels @> %(labels)s::jsonb)
AND (%(errors)s::text[] IS NULL OR j.error_code = ANY(%(errors)s::text[]))
AND (%(since)s::timestamptz IS NULL OR j.created_at >= %(since)s)
AND (%(until)s::timestamptz IS NULL OR j.created_at < %(until)s)

-- name: jobs
-- The newest first; ids are UUIDs of version 7, so their order is the order of creation.
SELECT j.* FROM rythmiq.jobs AS j
WHERE :filter AND (%(before)s::uuid IS NULL OR j.job_id < %(before)s)
ORDER BY j.job_id DESC
LIMIT %(limit)s

-- name: jobs_of_group
-- The members of one group, the last one first. Each state is read in index order, so a page costs the same for any
-- number of members.
SELECT j.*
FROM (VALUES ('BLOCKED'), ('QUEUED'), ('RETRYING'), ('RUNNING'), ('SUCCEEDED'), ('FAILED'), ('CANCELLED')) AS s(state)
CROSS JOIN LATERAL (
    SELECT j.* FROM rythmiq.jobs AS j
    WHERE j.group_id = %(group_id)s AND j.state = s.state AND :filter
      AND (%(before)s::uuid IS NULL OR (j.group_index, j.job_id)
           < (SELECT b.group_index, b.job_id FROM rythmiq.jobs AS b WHERE b.job_id = %(before)s))
    ORDER BY j.group_index DESC, j.job_id DESC
    LIMIT %(limit)s
) AS j
ORDER BY j.group_index DESC, j.job_id DESC
LIMIT %(limit)s

-- name: ids
SELECT j.job_id, j.state FROM rythmiq.jobs AS j WHERE :filter ORDER BY j.job_id

-- name: members
-- The members of these groups, by group and then in the group's order.
SELECT j.* FROM rythmiq.jobs AS j
WHERE j.group_id = ANY(%(groups)s::uuid[]) AND :filter
ORDER BY j.group_id, j.group_index, j.job_id

-- name: total
SELECT count(*) AS total FROM (SELECT FROM rythmiq.jobs AS j WHERE :filter LIMIT %(most)s) AS found

-- name: counts
-- Jobs by state, each counted up to a limit; running ones by phase and remote status.
-- Each state is a literal, so that the planner can use the partial indexes.
SELECT 'BLOCKED' AS state, NULL AS phase, NULL AS remote_status, count(*) AS jobs
FROM (SELECT FROM rythmiq.jobs AS j WHERE j.state = 'BLOCKED' AND :filter LIMIT %(most)s) AS found
UNION ALL
SELECT 'QUEUED', NULL, NULL, count(*)
FROM (SELECT FROM rythmiq.jobs AS j WHERE j.state = 'QUEUED' AND :filter LIMIT %(most)s) AS found
UNION ALL
SELECT 'RETRYING', NULL, NULL, count(*)
FROM (SELECT FROM rythmiq.jobs AS j WHERE j.state = 'RETRYING' AND :filter LIMIT %(most)s) AS found
UNION ALL
SELECT 'SUCCEEDED', NULL, NULL, count(*)
FROM (SELECT FROM rythmiq.jobs AS j
      WHERE j.state = 'SUCCEEDED' AND j.finished_at IS NOT NULL AND :filter LIMIT %(most)s) AS found
UNION ALL
SELECT 'FAILED', NULL, NULL, count(*)
FROM (SELECT FROM rythmiq.jobs AS j
      WHERE j.state = 'FAILED' AND j.finished_at IS NOT NULL AND :filter LIMIT %(most)s) AS found
UNION ALL
SELECT 'CANCELLED', NULL, NULL, count(*)
FROM (SELECT FROM rythmiq.jobs AS j
      WHERE j.state = 'CANCELLED' AND j.finished_at IS NOT NULL AND :filter LIMIT %(most)s) AS found
UNION ALL
SELECT j.state, j.phase, j.remote_status, count(*)
FROM rythmiq.jobs AS j WHERE j.state = 'RUNNING' AND :filter GROUP BY j.state, j.phase, j.remote_status

-- name: unserved
SELECT rythmiq.unserved(%(queues)s::text[]) AS queue

-- name: groups
SELECT g.* FROM rythmiq.groups AS g
WHERE (%(users)s::text[] IS NULL OR g.user_id = ANY(%(users)s::text[]))
  AND (%(name)s::text IS NULL OR g.name ~ %(name)s)
  AND (%(labels)s::jsonb IS NULL OR g.labels @> %(labels)s::jsonb)
  AND (%(unfinished)s::boolean IS NULL OR (g.finished_at IS NULL) = %(unfinished)s)
  AND (%(since)s::timestamptz IS NULL OR g.created_at >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR g.created_at < %(until)s)
  AND (%(before)s::uuid IS NULL OR (g.created_at, g.group_id)
       < (SELECT b.created_at, b.group_id FROM rythmiq.groups AS b WHERE b.group_id = %(before)s))
ORDER BY g.created_at DESC, g.group_id DESC
LIMIT %(limit)s

-- name: groups_total
SELECT count(*) AS total FROM rythmiq.groups AS g
WHERE (%(users)s::text[] IS NULL OR g.user_id = ANY(%(users)s::text[]))
  AND (%(name)s::text IS NULL OR g.name ~ %(name)s)
  AND (%(labels)s::jsonb IS NULL OR g.labels @> %(labels)s::jsonb)
  AND (%(unfinished)s::boolean IS NULL OR (g.finished_at IS NULL) = %(unfinished)s)
  AND (%(since)s::timestamptz IS NULL OR g.created_at >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR g.created_at < %(until)s)

-- name: groups_by_id
SELECT g.* FROM rythmiq.groups AS g WHERE g.group_id = ANY(%(ids)s::uuid[]) ORDER BY g.created_at, g.group_id

-- name: between
-- Jobs and groups in a range of ids, at most two of each: enough to tell whether the first digits of an id are unique.
(SELECT job_id AS id, true AS is_job FROM rythmiq.jobs WHERE job_id BETWEEN %(low)s AND %(high)s ORDER BY job_id LIMIT 2)
UNION ALL
(SELECT group_id, false FROM rythmiq.groups WHERE group_id BETWEEN %(low)s AND %(high)s ORDER BY group_id LIMIT 2)

-- name: named
-- An unfinished group with that name, else the newest one; after it the newest job with that name.
(SELECT group_id AS id, false AS is_job FROM rythmiq.groups
 WHERE name = %(name)s ORDER BY (finished_at IS NULL) DESC, created_at DESC LIMIT 1)
UNION ALL
(SELECT job_id, true FROM rythmiq.jobs WHERE name = %(name)s ORDER BY job_id DESC LIMIT 1)

-- name: by_remote_id
SELECT job_id AS id, true AS is_job FROM rythmiq.jobs WHERE remote_id = %(remote_id)s ORDER BY job_id DESC LIMIT 1

-- name: pace
-- When the first attempt of a group's members began, what they have cost so far, and how many have a cost.
SELECT (SELECT min(a.started_at) FROM rythmiq.jobs AS j JOIN rythmiq.attempts AS a USING (job_id)
        WHERE j.group_id = %(group_id)s) AS began_at,
       (SELECT sum(j.cost_credits) FROM rythmiq.jobs AS j WHERE j.group_id = %(group_id)s) AS credits,
       (SELECT count(*) FROM rythmiq.jobs AS j WHERE j.group_id = %(group_id)s AND j.cost_credits IS NOT NULL) AS priced

-- name: group_errors
-- Errors of a group's FAILED members, counted together if they differ only in numbers, with one member of each.
SELECT j.error_code, count(*) AS jobs, (array_agg(j.job_id ORDER BY j.job_id))[1] AS job_id,
       (array_agg(j.error_message ORDER BY j.job_id))[1] AS error_message
FROM rythmiq.jobs AS j
WHERE j.group_id = %(group_id)s AND j.state = 'FAILED'
GROUP BY j.error_code, regexp_replace(left(coalesce(j.error_message, ''), 500), '[0-9]+', '#', 'g')
ORDER BY count(*) DESC
LIMIT %(limit)s

-- name: ended
-- Which of these jobs and groups have ended, and how.
SELECT j.job_id AS id, j.state, 1 AS members, (j.finished_at IS NOT NULL)::integer AS ended, 0 AS failed
FROM rythmiq.jobs AS j WHERE j.job_id = ANY(%(jobs)s::uuid[])
UNION ALL
SELECT g.group_id, CASE WHEN g.finished_at IS NULL THEN 'RUNNING' WHEN g.failed > 0 THEN 'FAILED'
                        WHEN g.cancelled > 0 THEN 'CANCELLED' ELSE 'SUCCEEDED' END,
       g.members, g.succeeded + g.failed + g.cancelled, g.failed
FROM rythmiq.groups AS g WHERE g.group_id = ANY(%(groups)s::uuid[])

-- name: stored
-- The artifacts of each job's last attempt that stored any.
SELECT x.job_id, x.attempt, x.name, x.uri, x.bytes, x.sha256, x.content_type
FROM rythmiq.artifacts AS x
WHERE x.job_id = ANY(%(ids)s::uuid[])
  AND x.attempt = (SELECT max(y.attempt) FROM rythmiq.artifacts AS y WHERE y.job_id = x.job_id)
  AND (%(name)s::text IS NULL OR x.name = %(name)s)
ORDER BY x.job_id, x.name

-- name: needs
SELECT coalesce(d.on_job_id, d.on_group_id) AS id, d.on_job_id IS NOT NULL AS is_job, coalesce(j.name, g.name) AS name,
       d.needs, d.satisfied,
       coalesce(j.state, CASE WHEN g.group_id IS NULL THEN NULL WHEN g.finished_at IS NULL THEN 'RUNNING'
                              WHEN g.failed > 0 THEN 'FAILED' WHEN g.cancelled > 0 THEN 'CANCELLED'
                              ELSE 'SUCCEEDED' END) AS state
FROM rythmiq.dependencies AS d
LEFT JOIN rythmiq.jobs AS j ON j.job_id = d.on_job_id
LEFT JOIN rythmiq.groups AS g ON g.group_id = d.on_group_id
WHERE d.job_id = %(job_id)s
ORDER BY d.satisfied, id

-- name: queues
-- Unfinished jobs by queue, with the age of the oldest claimable job and the number of live drivers.
SELECT u.queue, sum(u.blocked)::bigint AS blocked, sum(u.queued)::bigint AS queued, sum(u.retrying)::bigint AS retrying,
       sum(u.running)::bigint AS running, max(u.oldest_s) AS oldest_s,
       (SELECT count(*) FROM rythmiq.drivers AS d
        WHERE d.stopped_at IS NULL AND d.lease_expires_at > now() AND (d.queues IS NULL OR u.queue = ANY(d.queues))
       ) AS drivers
FROM (
    SELECT j.queue, 0 AS blocked, count(*) - count(*) FILTER (WHERE j.state = 'RETRYING') AS queued,
           count(*) FILTER (WHERE j.state = 'RETRYING') AS retrying, 0 AS running,
           extract(epoch FROM now() - min(j.next_visible_at) FILTER (WHERE j.next_visible_at <= now()))::double precision
               AS oldest_s
    FROM rythmiq.jobs AS j WHERE j.state IN ('QUEUED', 'RETRYING') GROUP BY j.queue
    UNION ALL
    SELECT j.queue, count(*), 0, 0, 0, NULL FROM rythmiq.jobs AS j WHERE j.state = 'BLOCKED' GROUP BY j.queue
    UNION ALL
    SELECT j.queue, 0, 0, 0, count(*), NULL FROM rythmiq.jobs AS j WHERE j.state = 'RUNNING' GROUP BY j.queue
) AS u
GROUP BY u.queue
ORDER BY u.queue

-- name: drivers
-- Live drivers, those that ended not long ago, and those that still hold jobs; with the number of jobs in each phase.
SELECT d.driver_id, d.hostname, d.pid, d.version, d.started_at, d.heartbeat_at, d.lease_expires_at, d.stopped_at, d.queues,
       d.stopped_at IS NULL AND d.lease_expires_at > now() AS alive,
       d.draining_at IS NOT NULL AS draining, held.submitting, held.waiting, held.collecting
FROM rythmiq.drivers AS d
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE j.phase = 'submitting') AS submitting, count(*) FILTER (WHERE j.phase = 'waiting') AS waiting,
           count(*) FILTER (WHERE j.phase = 'collecting') AS collecting
    FROM rythmiq.jobs AS j WHERE j.driver_id = d.driver_id AND j.state = 'RUNNING'
) AS held
WHERE d.stopped_at IS NULL AND d.lease_expires_at > now()
   OR greatest(d.lease_expires_at, d.stopped_at) > now() - make_interval(secs => %(gone_s)s)
   OR held.submitting + held.waiting + held.collecting > 0
ORDER BY alive DESC, d.started_at DESC

-- name: ahead
-- How many jobs of a queue are claimed before a given one, counted up to a limit.
SELECT count(*) AS jobs FROM (
    SELECT FROM rythmiq.jobs AS o
    WHERE o.queue = %(queue)s AND o.state IN ('QUEUED', 'RETRYING') AND o.next_visible_at <= now()
      AND (o.priority > %(priority)s
           OR (o.priority = %(priority)s AND (o.next_visible_at, o.job_id) < (%(next_visible_at)s, %(job_id)s::uuid)))
    LIMIT %(most)s
) AS before
