-- Running jobs, and attempts that began within the minute before "moment", of each scope that has any. The latter are
-- counted only where a limit asks for them.
CREATE FUNCTION rythmiq.usage(moment timestamptz) RETURNS TABLE (scope text, name text, running bigint, begun bigint)
LANGUAGE sql STABLE AS $$
    WITH used AS (
        SELECT coalesce(j.user_id, '') AS user_id, j.queue, j.group_id, 1 AS running, 0 AS begun
        FROM rythmiq.jobs AS j WHERE j.state = 'RUNNING'
        UNION ALL
        SELECT coalesce(j.user_id, ''), j.queue, j.group_id, 0, 1
        FROM rythmiq.attempts AS a JOIN rythmiq.jobs AS j USING (job_id)
        WHERE a.started_at > moment - interval '1 minute'
          AND EXISTS (SELECT FROM rythmiq.limits AS l WHERE l.per_minute IS NOT NULL)
    )
    SELECT CASE grouping(u.queue, u.user_id, u.group_id) WHEN 7 THEN 'account' WHEN 3 THEN 'queue' WHEN 5 THEN 'user'
                                                         ELSE 'group' END,
           coalesce(u.queue, u.user_id, u.group_id::text, ''), sum(u.running), sum(u.begun)
    FROM used AS u
    GROUP BY GROUPING SETS ((), (u.queue), (u.user_id), (u.group_id))
$$;

COMMENT ON FUNCTION rythmiq.usage IS
    'running jobs, and attempts begun in the last minute, by account, queue, user and group; jobs in no group have the name ''''';

-- How many more jobs each limited scope has room for; if a scope has several rows, the smallest counts.
CREATE OR REPLACE FUNCTION rythmiq.rooms(moment timestamptz) RETURNS TABLE (scope text, name text, room bigint)
LANGUAGE sql STABLE AS $$
    WITH used AS MATERIALIZED (
        SELECT u.* FROM rythmiq.usage(moment) AS u
    ), each_user AS (
        SELECT min(l.max_running) AS max_running, min(l.per_minute) AS per_minute, bool_or(l.paused OR o.who = '*') AS paused,
               array_agg(o.who) FILTER (WHERE o.who IS NOT NULL) AS over
        FROM rythmiq.limits AS l LEFT JOIN LATERAL unnest(l.over) AS o(who) ON true
        WHERE l.scope = 'user' AND l.name = '*'
    ), bounds AS (
        SELECT l.scope, l.name, min(l.max_running) AS max_running, min(l.per_minute) AS per_minute,
               bool_or(l.paused OR l.over <> '{}') AS closed
        FROM rythmiq.limits AS l WHERE NOT (l.scope = 'user' AND l.name = '*') GROUP BY l.scope, l.name
    )
    SELECT b.scope, b.name,
           CASE WHEN b.closed OR (b.scope = 'user' AND e.paused) THEN 0
                ELSE least(coalesce(b.max_running, CASE WHEN b.scope = 'user' THEN e.max_running END) - coalesce(u.running, 0),
                           coalesce(b.per_minute, CASE WHEN b.scope = 'user' THEN e.per_minute END) - coalesce(u.begun, 0))
                END::bigint
    FROM bounds AS b LEFT JOIN used AS u ON u.scope = b.scope AND u.name = b.name, each_user AS e
    UNION ALL
    SELECT u.scope, u.name,
           CASE WHEN e.paused THEN 0 ELSE least(e.max_running - u.running, e.per_minute - u.begun) END::bigint
    FROM used AS u, each_user AS e
    WHERE u.scope = 'user' AND (e.paused OR coalesce(e.max_running, e.per_minute) IS NOT NULL)
      AND NOT EXISTS (SELECT FROM bounds AS b WHERE b.scope = u.scope AND b.name = u.name)
    UNION ALL
    SELECT 'user', o.who, 0 FROM each_user AS e, unnest(e.over) AS o(who)
    UNION ALL
    SELECT 'user', '*', CASE WHEN e.paused THEN 0 ELSE least(e.max_running, e.per_minute) END FROM each_user AS e
$$;

-- The index of a group's next member. It asks for each state, because the index is by group and state.
CREATE FUNCTION rythmiq.next_group_index(id uuid) RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT coalesce(max(l.last) + 1, 0)
    FROM unnest(ARRAY['BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED']) AS s(state)
    CROSS JOIN LATERAL (
        SELECT max(j.group_index) AS last FROM rythmiq.jobs AS j WHERE j.group_id = id AND j.state = s.state
    ) AS l
$$;

-- rythmiq.enqueue read all members for that, so a sweep of n members took n * n steps. Only this statement changes.
DO $do$
DECLARE
    was CONSTANT text := pg_get_functiondef('rythmiq.enqueue(jsonb)'::regprocedure);
    slow CONSTANT text := 'SELECT coalesce(max(j.group_index) + 1, 0) INTO index FROM rythmiq.jobs AS j WHERE j.group_id = joined;';
BEGIN
    IF strpos(was, slow) = 0 THEN
        RAISE 'rythmiq.enqueue is not that of revision 0007';
    END IF;
    EXECUTE replace(was, slow, 'index := rythmiq.next_group_index(joined);');
END
$do$;

-- What psql's \d+ shows.
COMMENT ON TABLE rythmiq.groups IS 'jobs that were submitted together; a group is deleted with its last member';
COMMENT ON TABLE rythmiq.dependencies IS 'job_id needs on_job_id, or all members of on_group_id, to end first';
COMMENT ON TABLE rythmiq.unsettled IS
    'jobs and groups that ended while another session held a row that they affect: drivers settle the effects later';
COMMENT ON TABLE rythmiq.schedules IS
    'recurring jobs and sweeps: job is a line of `rythmiq schema`; sweep has such lines in "jobs", and the group''s fields';
COMMENT ON TABLE rythmiq.limits IS
    'limits, pauses and budgets: one row for each scope, and one for each budget period; all rows of a scope apply';
COMMENT ON TABLE rythmiq.costs IS 'credits of ended attempts, by the UTC day of their end; kept when jobs are pruned';
COMMENT ON TABLE rythmiq.account IS 'one row; drivers lock it while they choose jobs, so that limits hold for all together';
COMMENT ON VIEW rythmiq.spending IS 'rythmiq.costs, and an estimate of what running jobs have cost so far';
COMMENT ON VIEW rythmiq.job_status IS 'the state of jobs, without their specs; a login that enqueues sees only its own jobs';
COMMENT ON COLUMN rythmiq.jobs.params IS 'for a member of a sweep: the variables that distinguish it from the others';
COMMENT ON COLUMN rythmiq.jobs.waits_for IS 'the number of dependencies that are not satisfied yet';
COMMENT ON COLUMN rythmiq.jobs.notify IS 'a URL that receives a signed POST whenever the job has ended';
COMMENT ON COLUMN rythmiq.jobs.traceparent IS 'the W3C trace context of the program that enqueued it';
COMMENT ON COLUMN rythmiq.jobs.enqueued_by IS 'the login that enqueued it; NULL for jobs older than this column';
COMMENT ON COLUMN rythmiq.jobs.credits_per_hour IS 'the price of the current or last attempt, as its driver knows it';
COMMENT ON COLUMN rythmiq.groups.max_parallel IS 'the most members that may be queued or running at once; others are BLOCKED';
COMMENT ON COLUMN rythmiq.groups.places IS 'replaces max_parallel while the group is paused or has a limit';
COMMENT ON COLUMN rythmiq.groups.notify IS 'a URL that receives a signed POST whenever the last member has ended';
COMMENT ON COLUMN rythmiq.groups.stopped_at IS 'when stop_after_failures was reached and the other members were cancelled';
COMMENT ON COLUMN rythmiq.groups.finished_at IS 'when the last member ended; NULL again if one is retried or added';
COMMENT ON COLUMN rythmiq.drivers.queues IS 'the queues that it serves; NULL = all, also for drivers older than this column';
COMMENT ON COLUMN rythmiq.drivers.draining_at IS 'since when it finishes its jobs and claims no more';
COMMENT ON COLUMN rythmiq.schedules.last_outcome IS 'the result of the last due time: enqueued, skipped, or why it failed';
COMMENT ON COLUMN rythmiq.limits.name IS 'a queue, a user (* = each user), a group''s id, or empty for the account';
COMMENT ON COLUMN rythmiq.limits.cancel_running IS 'whether a pause, or a budget that is reached, also cancels running jobs';
COMMENT ON COLUMN rythmiq.limits.spent IS 'credits spent of the budget when a driver last checked; for *, the most of any user';
COMMENT ON COLUMN rythmiq.limits.over IS 'the names that have reached the budget; for *, these are users';
COMMENT ON COLUMN rythmiq.costs.group_id IS 'all zeros for jobs in no group';
COMMENT ON COLUMN rythmiq.costs.part IS 'a further row with the same key, written while another session held the first one';
COMMENT ON COLUMN rythmiq.notifications.next_at IS 'when the next try is due; NULL once delivered or given up';
COMMENT ON COLUMN rythmiq.notifications.error IS 'why the last try failed';
COMMENT ON FUNCTION rythmiq.unserved IS 'those of these queues that no live driver serves; none if no driver is running at all';
COMMENT ON FUNCTION rythmiq.enqueue IS
    'adds a job in the caller''s transaction; the fields are those of `rythmiq schema`. A fault is SQLSTATE 22023, and its'
    ' text begins with the field. Engine and node size are not checked against Camber''s offer';
COMMENT ON FUNCTION rythmiq.cancel IS
    'cancels a job or group that the login enqueued, and returns its state: RUNNING if its driver has to stop it first.'
    ' SQLSTATE P0002 if there is none';

COMMENT ON TABLE rythmiq.jobs IS 'one row for each job, with the state of its running or last attempt';
COMMENT ON COLUMN rythmiq.jobs.remote_path IS
    'the attempt''s own path below the stash owner''s root; written before anything is created there';
COMMENT ON COLUMN rythmiq.jobs.error_code IS 'why the last attempt did not succeed; README.md lists the codes';
COMMENT ON COLUMN rythmiq.jobs.cost_credits IS 'estimated cost of all attempts';
COMMENT ON COLUMN rythmiq.jobs.warnings IS 'problems of the last attempt that did not end it, one sentence each';
COMMENT ON COLUMN rythmiq.jobs.free_attempts IS 'number of attempts that never ran; they do not count towards max_attempts';
COMMENT ON COLUMN rythmiq.jobs.collect_until IS
    'until then the last attempt''s path is kept, and a claim collects its files instead of starting a new attempt';
COMMENT ON COLUMN rythmiq.jobs.submitted_at IS 'when the remote job of the running or last attempt became known';
COMMENT ON COLUMN rythmiq.jobs.running_at IS 'when that remote job was first seen running';
COMMENT ON COLUMN rythmiq.jobs.ended_at IS 'when that remote job was first seen to have ended';
COMMENT ON COLUMN rythmiq.jobs.wait_reason IS 'why a running attempt makes no progress';

COMMENT ON TABLE rythmiq.attempts IS 'one row for each attempt of a job';
COMMENT ON COLUMN rythmiq.attempts.keep_until IS
    'until then the attempt''s path is not removed, because its files could not be stored';

COMMENT ON TABLE rythmiq.artifacts IS 'one row for each stored file of an attempt';
COMMENT ON TABLE rythmiq.notifications IS 'one row for each POST to a notify URL';

COMMENT ON TABLE rythmiq.drivers IS
    'one row for each driver, with a heartbeat for all its jobs; after its lease has ended, other drivers take them over';
COMMENT ON COLUMN rythmiq.drivers.stopped_at IS
    'when the driver gave up its lease, or when the lease ended after which others took over its jobs; it is never renewed';

COMMENT ON TYPE rythmiq.job_change IS
    'a job''s state before and after a change; NULL if the row did not exist before, or no longer exists. Without a job it is'
    ' about the group: RUNNING to check it again, STOPPED to cancel its remaining members, NULL if its row is gone';
COMMENT ON FUNCTION rythmiq.hold_dependencies IS
    'locks dependencies on behalf of rythmiq.retry, whose caller has no right to change them';
