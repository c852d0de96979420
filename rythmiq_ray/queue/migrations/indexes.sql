-- Indexes of tables that may be large when they come: each is built CONCURRENTLY after the migrations, by its name.
-- What is not there yet costs time and nothing else.

-- name: jobs_lanes
-- The claim's order in each lane: a queue's and a user's jobs of one priority.
CREATE INDEX CONCURRENTLY jobs_lanes
    ON rythmiq.jobs (priority, queue, (coalesce(user_id, '')), next_visible_at, job_id)
    WHERE state IN ('QUEUED', 'RETRYING')

-- name: jobs_running_scopes
-- What runs, by user, queue and group.
CREATE INDEX CONCURRENTLY jobs_running_scopes ON rythmiq.jobs ((coalesce(user_id, '')), queue, group_id) INCLUDE (user_id)
    WHERE state = 'RUNNING'

-- name: attempts_started
-- How many attempts were begun within a minute.
CREATE INDEX CONCURRENTLY attempts_started ON rythmiq.attempts (started_at)

-- name: attempts_kept
-- Paths that are kept until a time, for the janitor.
CREATE INDEX CONCURRENTLY attempts_kept ON rythmiq.attempts (keep_until) WHERE keep_until IS NOT NULL

-- name: jobs_ended
-- What retention and prune look for: each end's oldest.
CREATE INDEX CONCURRENTLY jobs_ended ON rythmiq.jobs (state, finished_at) WHERE finished_at IS NOT NULL

-- name: attempts_stored
-- Attempts whose artifacts are still there, for the retention of artifacts alone.
CREATE INDEX CONCURRENTLY attempts_stored ON rythmiq.attempts (finished_at)
    WHERE artifact_uri IS NOT NULL AND finished_at IS NOT NULL

-- name: jobs_unfinished_key
-- A unique key is held by one unfinished job. It takes the place of jobs_unique_key, which did not know BLOCKED.
CREATE UNIQUE INDEX CONCURRENTLY jobs_unfinished_key ON rythmiq.jobs (unique_key)
    WHERE unique_key IS NOT NULL AND state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING')

-- name: jobs_group
-- A group's members by state, in their order, with what they cost.
CREATE INDEX CONCURRENTLY jobs_group ON rythmiq.jobs (group_id, state, group_index, job_id) INCLUDE (cost_credits)
    WHERE group_id IS NOT NULL

-- name: jobs_places
-- Members that wait for a place in their group.
CREATE INDEX CONCURRENTLY jobs_places ON rythmiq.jobs (group_id, group_index, job_id)
    WHERE state = 'BLOCKED' AND waits_for = 0

-- name: jobs_blocked
-- Few beside the others, so that they are counted without a look at those.
CREATE INDEX CONCURRENTLY jobs_blocked ON rythmiq.jobs (job_id) WHERE state = 'BLOCKED'

-- name: jobs_retrying
CREATE INDEX CONCURRENTLY jobs_retrying ON rythmiq.jobs (job_id) WHERE state = 'RETRYING'

-- name: jobs_user
-- A user's jobs, newest first.
CREATE INDEX CONCURRENTLY jobs_user ON rythmiq.jobs (user_id, job_id DESC) WHERE user_id IS NOT NULL

-- name: jobs_name
-- Jobs by name, newest first.
CREATE INDEX CONCURRENTLY jobs_name ON rythmiq.jobs (name, job_id DESC) WHERE name IS NOT NULL
