-- Queries of the console and the report, beside the listings. No statement reads a whole table: each is bounded, or selects by
-- an index.

-- name: ends
-- How many jobs ended in each step of time, of each way to end the newest up to a bound.
SELECT s.state, floor(extract(epoch FROM f.finished_at) / %(step_s)s)::bigint AS step, count(*) AS jobs
FROM (VALUES ('SUCCEEDED'), ('FAILED'), ('CANCELLED')) AS s(state)
CROSS JOIN LATERAL (
    SELECT j.finished_at FROM rythmiq.jobs AS j
    WHERE j.state = s.state AND j.finished_at IS NOT NULL AND j.finished_at >= %(since)s AND j.finished_at <= now()
    ORDER BY j.finished_at DESC
    LIMIT %(most)s
) AS f
GROUP BY s.state, step
ORDER BY step

-- name: ends_by_queue
-- The same by queue, in the last whole steps and the one that goes on, whose number stands in every row: the clock is
-- the database's. There is a row also where none ended.
SELECT n.step AS now, e.step, e.queue, e.state, e.jobs
FROM (SELECT floor(extract(epoch FROM now()) / %(step_s)s)::bigint AS step) AS n
LEFT JOIN LATERAL (
    SELECT floor(extract(epoch FROM f.finished_at) / %(step_s)s)::bigint AS step, f.queue, s.state, count(*) AS jobs
    FROM (VALUES ('SUCCEEDED'), ('FAILED'), ('CANCELLED')) AS s(state)
    CROSS JOIN LATERAL (
        SELECT j.queue, j.finished_at FROM rythmiq.jobs AS j
        WHERE j.state = s.state AND j.finished_at IS NOT NULL AND j.finished_at <= now()
          AND j.finished_at >= to_timestamp((n.step - %(steps)s) * %(step_s)s)
        ORDER BY j.finished_at DESC
        LIMIT %(most)s
    ) AS f
    GROUP BY 1, 2, 3
) AS e ON true

-- name: errors
-- With which errors jobs FAILED lately, the most frequent first, each with its newest job; of the newest up to a bound.
SELECT f.error_code, count(*) AS jobs, (array_agg(f.job_id ORDER BY f.finished_at DESC))[1] AS job_id,
       (array_agg(f.error_message ORDER BY f.finished_at DESC))[1] AS error_message
FROM (
    SELECT j.error_code, j.error_message, j.job_id, j.finished_at FROM rythmiq.jobs AS j
    WHERE j.state = 'FAILED' AND j.finished_at IS NOT NULL AND j.finished_at >= %(since)s
    ORDER BY j.finished_at DESC
    LIMIT %(most)s
) AS f
GROUP BY f.error_code
ORDER BY count(*) DESC
LIMIT %(limit)s

-- name: alike_errors
-- The same; messages that differ only in numbers count as one.
SELECT f.error_code, count(*) AS jobs, (array_agg(f.job_id ORDER BY f.finished_at DESC))[1] AS job_id,
       (array_agg(f.error_message ORDER BY f.finished_at DESC))[1] AS error_message
FROM (
    SELECT j.error_code, j.error_message, j.job_id, j.finished_at FROM rythmiq.jobs AS j
    WHERE j.state = 'FAILED' AND j.finished_at IS NOT NULL AND j.finished_at >= %(since)s
    ORDER BY j.finished_at DESC
    LIMIT %(most)s
) AS f
GROUP BY f.error_code, regexp_replace(left(coalesce(f.error_message, ''), 500), '[0-9]+', '#', 'g')
ORDER BY count(*) DESC
LIMIT %(limit)s

-- name: running
-- What running jobs wait for: reasons in words, and how many the service has not started, since when.
SELECT j.wait_reason, j.phase = 'waiting' AND coalesce(j.running_at, j.ended_at) IS NULL AND j.submitted_at IS NOT NULL
           AS pending, count(*) AS jobs,
       min(CASE WHEN j.phase = 'waiting' THEN j.submitted_at ELSE j.started_at END) AS since,
       (array_agg(j.job_id ORDER BY j.submitted_at))[1] AS job_id
FROM rythmiq.jobs AS j
WHERE j.state = 'RUNNING'
GROUP BY 1, 2
ORDER BY count(*) DESC
LIMIT 50

-- name: unstored
-- Attempts whose files are kept at the service because they could not be stored, up to a bound, and the first to go.
SELECT count(*) AS attempts, min(k.keep_until) AS until,
       (array_agg(k.job_id ORDER BY k.keep_until))[1] AS job_id
FROM (
    SELECT a.job_id, a.keep_until FROM rythmiq.attempts AS a
    WHERE a.keep_until > now() AND (a.cleaned_at IS NULL OR a.cleaned_at = 'infinity')
    ORDER BY a.keep_until
    LIMIT %(most)s
) AS k

-- name: queues
-- What is unfinished by queue, each state up to a bound. Queues, each with the priorities in it, are found by steps from
-- one to the next in the index of the claim, which has all that is counted: a queue costs the same however many jobs
-- wait in it. Those that are RETRYING have an index of their own.
WITH RECURSIVE lanes AS (
    (SELECT j.priority, j.queue FROM rythmiq.jobs AS j
     WHERE j.state IN ('QUEUED', 'RETRYING') ORDER BY j.priority, j.queue LIMIT 1)
    UNION ALL
    SELECT n.priority, n.queue
    FROM lanes CROSS JOIN LATERAL (
        SELECT j.priority, j.queue FROM rythmiq.jobs AS j
        WHERE j.state IN ('QUEUED', 'RETRYING') AND (j.priority, j.queue) > (lanes.priority, lanes.queue)
        ORDER BY j.priority, j.queue LIMIT 1
    ) AS n
), claimable AS (
    SELECT n.queue, least(sum(c.waiting), %(most)s)::bigint AS waiting, min(c.oldest_at) AS oldest_at
    FROM (SELECT priority, queue FROM lanes LIMIT %(queues)s) AS n
    CROSS JOIN LATERAL (
        SELECT count(*) AS waiting, min(q.next_visible_at) FILTER (WHERE q.next_visible_at <= now()) AS oldest_at
        FROM (SELECT j.next_visible_at FROM rythmiq.jobs AS j
              WHERE j.priority = n.priority AND j.queue = n.queue AND j.state IN ('QUEUED', 'RETRYING')
              LIMIT %(most)s) AS q
    ) AS c
    GROUP BY n.queue
), retrying AS (
    SELECT r.queue, count(*) AS retrying
    FROM (SELECT j.queue FROM rythmiq.jobs AS j WHERE j.state = 'RETRYING' LIMIT %(most)s) AS r GROUP BY r.queue
), blocked AS (
    SELECT b.queue, count(*) AS blocked
    FROM (SELECT j.queue FROM rythmiq.jobs AS j WHERE j.state = 'BLOCKED' LIMIT %(most)s) AS b GROUP BY b.queue
), running AS (
    SELECT j.queue, count(*) AS running,
           count(*) FILTER (WHERE j.phase = 'waiting' AND j.running_at IS NULL AND j.ended_at IS NULL) AS pending
    FROM rythmiq.jobs AS j WHERE j.state = 'RUNNING' GROUP BY j.queue
)
SELECT queue, coalesce(b.blocked, 0) AS blocked, greatest(0, coalesce(c.waiting, 0) - coalesce(t.retrying, 0)) AS queued,
       least(coalesce(t.retrying, 0), coalesce(c.waiting, 0)) AS retrying, coalesce(r.running, 0) AS running, coalesce(r.pending, 0) AS pending,
       CASE WHEN isfinite(c.oldest_at) THEN extract(epoch FROM now() - c.oldest_at)::double precision END AS oldest_s,
       (SELECT count(*) FROM rythmiq.drivers AS d
        WHERE d.stopped_at IS NULL AND d.lease_expires_at > now() AND (d.queues IS NULL OR queue = ANY(d.queues))
       ) AS drivers
FROM claimable AS c LEFT JOIN retrying AS t USING (queue) FULL JOIN blocked AS b USING (queue)
     FULL JOIN running AS r USING (queue)
ORDER BY queue

-- name: window
-- The newest matching jobs among a limited number of rows after a given job.
SELECT j.* FROM (
    SELECT j.* FROM rythmiq.jobs AS j
    WHERE :those AND (%(before)s::uuid IS NULL OR j.job_id < %(before)s)
    ORDER BY j.job_id DESC
    LIMIT %(window)s
) AS j
WHERE :filter
ORDER BY j.job_id DESC
LIMIT %(limit)s

-- name: window_end
SELECT j.job_id FROM rythmiq.jobs AS j
WHERE :those AND (%(before)s::uuid IS NULL OR j.job_id < %(before)s)
ORDER BY j.job_id DESC
OFFSET %(window)s - 1 LIMIT 1

-- name: those_of_all
true

-- name: those_of_user
j.user_id = %(user)s

-- name: those_of_name
j.name = %(exact)s

-- name: those_of_time
j.job_id < %(until_id)s AND j.job_id >= %(since_id)s

-- name: window_of_time
-- Of a stretch of time, by the time that ids hold. Ids of rows that were inserted by hand hold none, and sort behind
-- all others (from "odd" on), so those are looked through as well.
SELECT j.* FROM (
    (SELECT j.* FROM rythmiq.jobs AS j
     WHERE j.job_id >= %(odd)s AND (%(before)s::uuid IS NULL OR j.job_id < %(before)s)
     ORDER BY j.job_id DESC
     LIMIT %(window)s)
    UNION ALL
    (SELECT j.* FROM rythmiq.jobs AS j
     WHERE :those AND (%(before)s::uuid IS NULL OR j.job_id < %(before)s)
     ORDER BY j.job_id DESC
     LIMIT %(window)s)
) AS j
WHERE :filter
ORDER BY j.job_id DESC
LIMIT %(limit)s

-- name: few
-- Jobs of states in which there are few: each state is a literal, by which its index is found.
SELECT j.* FROM (
    SELECT j.* FROM rythmiq.jobs AS j WHERE 'BLOCKED' = ANY(%(states)s) AND j.state = 'BLOCKED'
    UNION ALL
    SELECT j.* FROM rythmiq.jobs AS j WHERE 'QUEUED' = ANY(%(states)s) AND j.state = 'QUEUED'
    UNION ALL
    SELECT j.* FROM rythmiq.jobs AS j WHERE 'RETRYING' = ANY(%(states)s) AND j.state = 'RETRYING'
    UNION ALL
    SELECT j.* FROM rythmiq.jobs AS j WHERE 'RUNNING' = ANY(%(states)s) AND j.state = 'RUNNING'
    UNION ALL
    SELECT j.* FROM rythmiq.jobs AS j
    WHERE 'SUCCEEDED' = ANY(%(states)s) AND j.state = 'SUCCEEDED' AND j.finished_at IS NOT NULL
    UNION ALL
    SELECT j.* FROM rythmiq.jobs AS j
    WHERE 'FAILED' = ANY(%(states)s) AND j.state = 'FAILED' AND j.finished_at IS NOT NULL
    UNION ALL
    SELECT j.* FROM rythmiq.jobs AS j
    WHERE 'CANCELLED' = ANY(%(states)s) AND j.state = 'CANCELLED' AND j.finished_at IS NOT NULL
) AS j
WHERE :filter AND (%(before)s::uuid IS NULL OR j.job_id < %(before)s)
ORDER BY j.job_id DESC
LIMIT %(limit)s

-- name: points
-- A group's members as little as a chart needs of them.
SELECT j.job_id, j.group_index, j.state, j.name, j.params, j.cost_credits, j.error_code,
       CASE WHEN isfinite(coalesce(j.ended_at, j.finished_at)) AND isfinite(coalesce(j.running_at, j.started_at))
            THEN greatest(0, extract(epoch FROM coalesce(j.ended_at, j.finished_at)
                                                - coalesce(j.running_at, j.started_at)))::double precision END AS seconds
FROM rythmiq.jobs AS j
WHERE j.group_id = %(group_id)s
ORDER BY j.group_index, j.job_id
LIMIT %(most)s

-- name: running_of
-- How many members of these groups run.
SELECT j.group_id, count(*) AS jobs FROM rythmiq.jobs AS j
WHERE j.group_id = ANY(%(groups)s::uuid[]) AND j.state = 'RUNNING'
GROUP BY j.group_id

-- name: member
SELECT j.job_id FROM rythmiq.jobs AS j WHERE j.group_id = %(group_id)s AND j.group_index = %(place)s LIMIT 1

-- name: file_names
-- Names of files that some members of a group stored.
SELECT DISTINCT x.name, x.bytes <= %(bytes)s AS small
FROM (SELECT j.job_id FROM rythmiq.jobs AS j
      WHERE j.group_id = %(group_id)s AND j.state = 'SUCCEEDED' ORDER BY j.group_index LIMIT 20) AS m
JOIN rythmiq.artifacts AS x USING (job_id)
ORDER BY x.name
LIMIT 100

-- name: day
-- What ended in a stretch of time and what it cost, by user and queue.
SELECT j.user_id, j.queue, count(*) AS jobs, count(*) FILTER (WHERE j.state = 'FAILED') AS failed,
       sum(j.cost_credits) FILTER (WHERE j.cost_credits < 'Infinity') AS credits
FROM rythmiq.jobs AS j
WHERE j.finished_at >= %(since)s AND j.finished_at < %(until)s
GROUP BY j.user_id, j.queue

-- name: groups_of_time
-- Groups that were made in a stretch of time, those with most members first.
SELECT g.* FROM (
    SELECT g.* FROM rythmiq.groups AS g
    WHERE g.created_at >= %(since)s ORDER BY g.created_at DESC LIMIT 1000
) AS g
ORDER BY g.members DESC
LIMIT %(limit)s
