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

-- name: lock_groups
-- Two who add to a group at once give its members places one after the other. In one order, so that two who add to
-- several never wait for each other both.
SELECT pg_advisory_xact_lock(hashtextextended('rythmiq.group ' || g.id, 0))
FROM (SELECT unnest(%(ids)s::uuid[]) AS id ORDER BY 1) AS g

-- name: limits
-- Groups by id, whether each bounds its members, and the next one's place.
SELECT g.group_id, coalesce(g.places, g.max_parallel) IS NOT NULL AS limited,
       coalesce((SELECT max(j.group_index) + 1 FROM rythmiq.jobs AS j WHERE j.group_id = g.group_id), 0) AS next_index
FROM rythmiq.groups AS g
WHERE g.group_id = ANY(%(ids)s::uuid[])
  AND (g.enqueued_by = session_user OR (SELECT rythmiq.sees_all(session_user)))

-- name: known
-- Which of these ids are of jobs, and which of groups, of those that the login may see.
SELECT job_id AS id, true AS is_job FROM rythmiq.job_status WHERE job_id = ANY(%(ids)s::uuid[])
UNION ALL
SELECT group_id, false FROM rythmiq.groups
WHERE group_id = ANY(%(ids)s::uuid[]) AND (enqueued_by = session_user OR (SELECT rythmiq.sees_all(session_user)))

-- name: members_named
-- The name by its place in the array: the client's encoding may not hold it.
SELECT job_id, group_id, array_position(%(names)s::text[], name) - 1 AS place
FROM rythmiq.job_status WHERE group_id = ANY(%(groups)s::uuid[]) AND name = ANY(%(names)s::text[])

-- name: groups_named
-- The newest group of each name, the login's own before others'.
SELECT DISTINCT ON (name) group_id, array_position(%(names)s::text[], name) - 1 AS place FROM rythmiq.groups
WHERE name = ANY(%(names)s::text[]) AND (enqueued_by = session_user OR (SELECT rythmiq.sees_all(session_user)))
ORDER BY name, enqueued_by IS DISTINCT FROM session_user, created_at DESC

-- name: leads_to
SELECT rythmiq.leads_to(%(jobs)s::uuid[], %(groups)s::uuid[]) AS group_id

-- name: copy_dependencies
COPY rythmiq.dependencies (job_id, on_job_id, on_group_id, needs) FROM STDIN

-- name: settle_sources
-- What has ended of the jobs and groups that others were just made to wait for counts at once.
SELECT rythmiq.settle_sources(%(jobs)s::uuid[], %(groups)s::uuid[])
