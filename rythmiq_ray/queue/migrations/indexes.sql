-- Indexes of tables that may be large when they come: each is built CONCURRENTLY after the migrations, by its name.
-- What is not there yet costs time and nothing else.

-- name: jobs_claimable_by_queue
-- The claim's order within each queue, for drivers that serve some queues only.
CREATE INDEX CONCURRENTLY jobs_claimable_by_queue
    ON rythmiq.jobs (queue, priority DESC, next_visible_at, job_id)
    WHERE state IN ('QUEUED', 'RETRYING')

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
