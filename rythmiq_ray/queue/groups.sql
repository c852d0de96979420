-- Groups, and what waits for what. Parameters are psycopg2's %(name)s.

-- name: lock_name
-- Serializes sessions that create a group with the same name, so that they create only one.
SELECT pg_advisory_xact_lock(hashtextextended('rythmiq.group ' || %(name)s, 0))

-- name: lock_graph
-- Serializes additions to existing groups: two sessions could together close a circle that neither sees.
SELECT pg_advisory_xact_lock(hashtextextended('rythmiq.graph', 0))

-- name: unfinished_named
SELECT group_id FROM rythmiq.groups
WHERE name = %(name)s AND finished_at IS NULL AND enqueued_by = session_user
ORDER BY created_at DESC
LIMIT 1

-- name: create
INSERT INTO rythmiq.groups (group_id, name, user_id, labels, max_parallel, stop_after_failures, notify)
VALUES (%(group_id)s, %(name)s, %(user_id)s, %(labels)s::jsonb, %(max_parallel)s, %(stop_after_failures)s, %(notify)s)

-- name: limits
-- Groups by id, whether each bounds its members, and the next one's place.
SELECT g.group_id, coalesce(g.places, g.max_parallel) IS NOT NULL AS limited,
       coalesce((SELECT max(j.group_index) + 1 FROM rythmiq.jobs AS j WHERE j.group_id = g.group_id), 0) AS next_index
FROM rythmiq.groups AS g
WHERE g.group_id = ANY(%(ids)s::uuid[])

-- name: known
-- Which of these ids are of jobs, and which of groups.
SELECT job_id AS id, true AS is_job FROM rythmiq.jobs WHERE job_id = ANY(%(ids)s::uuid[])
UNION ALL
SELECT group_id, false FROM rythmiq.groups WHERE group_id = ANY(%(ids)s::uuid[])

-- name: members_named
-- The name by its place in the array: the client's encoding may not hold it.
SELECT job_id, group_id, array_position(%(names)s::text[], name) - 1 AS place
FROM rythmiq.jobs WHERE group_id = ANY(%(groups)s::uuid[]) AND name = ANY(%(names)s::text[])

-- name: groups_named
-- The newest group of each name.
SELECT DISTINCT ON (name) group_id, array_position(%(names)s::text[], name) - 1 AS place FROM rythmiq.groups
WHERE name = ANY(%(names)s::text[])
ORDER BY name, created_at DESC

-- name: waits_for_groups
-- Those of these groups for which one of these jobs and groups waits, directly or by way of others.
WITH RECURSIVE above(job_id, group_id) AS (
    SELECT unnest(%(jobs)s::uuid[]), NULL::uuid
    UNION
    SELECT NULL::uuid, unnest(%(groups)s::uuid[])
    UNION
    SELECT next.job_id, next.group_id
    FROM above CROSS JOIN LATERAL (
        SELECT d.on_job_id AS job_id, d.on_group_id AS group_id
        FROM rythmiq.dependencies AS d WHERE d.job_id = above.job_id AND NOT d.satisfied
        UNION ALL
        SELECT j.job_id, NULL FROM rythmiq.jobs AS j WHERE j.group_id = above.group_id AND j.state = 'BLOCKED'
    ) AS next
)
SELECT DISTINCT group_id FROM above WHERE group_id = ANY(%(joined)s::uuid[])

-- name: copy_dependencies
COPY rythmiq.dependencies (job_id, on_job_id, on_group_id, needs) FROM STDIN

-- name: settle_sources
-- What has ended of the jobs and groups that others were just made to wait for counts at once.
SELECT rythmiq.settle_sources(%(jobs)s::uuid[], %(groups)s::uuid[])
