-- Groups and dependencies. Parameters are psycopg2's %(name)s.

-- name: lock_name
-- Serializes sessions that create a group with the same name, so that they create only one.
SELECT pg_advisory_xact_lock(hashtextextended('rythmiq.group ' || %(name)s, 0))

-- name: lock_graph
-- Serializes additions to existing groups: otherwise two sessions could together create a circle that neither sees.
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
-- Serializes sessions that add to the same groups, so that no group_index is given twice. Ordered by id, so that two
-- sessions never deadlock.
SELECT pg_advisory_xact_lock(hashtextextended('rythmiq.group ' || g.id, 0))
FROM (SELECT unnest(%(ids)s::uuid[]) AS id ORDER BY 1) AS g

-- name: limits
-- For each group, whether it limits how many members run, and the next group_index.
SELECT g.group_id, coalesce(g.places, g.max_parallel) IS NOT NULL AS limited,
       rythmiq.next_group_index(g.group_id) AS next_index
FROM rythmiq.groups AS g
WHERE g.group_id = ANY(%(ids)s::uuid[])
  AND (g.enqueued_by = session_user OR (SELECT rythmiq.sees_all(session_user)))

-- name: known
-- Which of these ids are jobs and which are groups, among those that the login may see.
SELECT job_id AS id, true AS is_job FROM rythmiq.job_status WHERE job_id = ANY(%(ids)s::uuid[])
UNION ALL
SELECT group_id, false FROM rythmiq.groups
WHERE group_id = ANY(%(ids)s::uuid[]) AND (enqueued_by = session_user OR (SELECT rythmiq.sees_all(session_user)))

-- name: members_named
-- Names are returned as indexes of the array, because the client's encoding may not hold their text.
SELECT job_id, group_id, array_position(%(names)s::text[], name) - 1 AS place
FROM rythmiq.job_status WHERE group_id = ANY(%(groups)s::uuid[]) AND name = ANY(%(names)s::text[])

-- name: groups_named
-- The newest group with each name; the login's own groups come before others'.
SELECT DISTINCT ON (name) group_id, array_position(%(names)s::text[], name) - 1 AS place FROM rythmiq.groups
WHERE name = ANY(%(names)s::text[]) AND (enqueued_by = session_user OR (SELECT rythmiq.sees_all(session_user)))
ORDER BY name, enqueued_by IS DISTINCT FROM session_user, created_at DESC

-- name: leads_to
SELECT rythmiq.leads_to(%(jobs)s::uuid[], %(groups)s::uuid[]) AS group_id

-- name: copy_dependencies
COPY rythmiq.dependencies (job_id, on_job_id, on_group_id, needs) FROM STDIN

-- name: settle_sources
-- Satisfies new dependencies on jobs and groups that have already ended.
SELECT rythmiq.settle_sources(%(jobs)s::uuid[], %(groups)s::uuid[])
