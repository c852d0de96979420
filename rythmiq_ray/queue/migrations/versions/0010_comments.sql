-- What the tables and columns of the first versions mean, as psql shows it with \d+. 0008 has the others.

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
