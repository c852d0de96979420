-- Groups, dependencies and the state BLOCKED.
-- New columns have only constant defaults, so no table is rewritten. Programs of 0.1.0 can go on running: triggers do
-- what follows from the end of a job, whichever program ends it.

ALTER TABLE rythmiq.jobs RENAME COLUMN waits_for TO wait_reason;
ALTER TABLE rythmiq.jobs
    ADD COLUMN name        text,
    ADD COLUMN labels      jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN group_id    uuid,
    ADD COLUMN group_index integer,
    ADD COLUMN params      jsonb,
    ADD COLUMN waits_for   integer NOT NULL DEFAULT 0,
    ADD COLUMN notify      text,
    ADD COLUMN traceparent text,
    ADD COLUMN enqueued_by name;

-- Not validated, because that would read the whole table. No row breaks it: the former check allowed fewer states.
ALTER TABLE rythmiq.jobs DROP CONSTRAINT jobs_state_check;
ALTER TABLE rythmiq.jobs ADD CONSTRAINT jobs_state_check
    CHECK (state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED')) NOT VALID;

COMMENT ON COLUMN rythmiq.jobs.params IS 'of a member of a sweep: the variables in which it differs from the others';
COMMENT ON COLUMN rythmiq.jobs.waits_for IS 'how many of its dependencies are not satisfied yet';
ALTER TABLE rythmiq.jobs ADD CONSTRAINT jobs_notify_check CHECK (notify ~ '^https?://[^\s/?#@]+([/?#]\S*)?$') NOT VALID;

COMMENT ON COLUMN rythmiq.jobs.notify IS 'a URL that gets a signed POST each time the job has ended';
COMMENT ON COLUMN rythmiq.jobs.traceparent IS 'the trace of whoever put it in, as W3C Trace Context writes it';
COMMENT ON COLUMN rythmiq.jobs.enqueued_by IS 'the login that put it in; NULL for jobs from before this column';

-- Whether a login may see every job: it owns the tables, or is a member of a role that reads them. NULL, as in rows
-- that are older than enqueued_by, counts as the owner. A login that was dropped sees nothing.
CREATE FUNCTION rythmiq.sees_all(login name) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT login IS NULL OR EXISTS (
        SELECT FROM pg_roles AS me JOIN pg_roles AS r ON pg_has_role(me.oid, r.oid, 'MEMBER')
        WHERE me.rolname = login
          AND (r.rolname IN ('rythmiq_reader', 'rythmiq_operator', 'rythmiq_worker')
               OR r.oid = (SELECT relowner FROM pg_class WHERE oid = 'rythmiq.jobs'::regclass)))
$$;

-- The login for which jobs are enqueued: the session's, or the one that wrote the schedule that is due. Any login can
-- set rythmiq.enqueuer, so it is used only inside functions that run as the owner.
CREATE FUNCTION rythmiq.enqueuer() RETURNS name LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(CASE WHEN current_user = (SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c
                                              WHERE c.oid = 'rythmiq.jobs'::regclass)
                         THEN nullif(current_setting('rythmiq.enqueuer', true), '')::name END, session_user)
$$;

-- Not in ADD COLUMN: existing rows would get the login that migrates. The function is called only if rythmiq.enqueuer
-- is set, because it would make a bulk load slow.
ALTER TABLE rythmiq.jobs ALTER COLUMN enqueued_by SET DEFAULT
    CASE WHEN coalesce(current_setting('rythmiq.enqueuer', true), '') = '' THEN session_user ELSE rythmiq.enqueuer() END;

CREATE TABLE rythmiq.groups (
    group_id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name                text,
    user_id             text,
    labels              jsonb NOT NULL DEFAULT '{}',
    max_parallel        integer CHECK (max_parallel >= 1),
    stop_after_failures integer CHECK (stop_after_failures >= 1),
    places              integer CHECK (places >= 0),
    notify              text CHECK (notify ~ '^https?://[^\s/?#@]+([/?#]\S*)?$'),
    members             integer NOT NULL DEFAULT 0,
    succeeded           integer NOT NULL DEFAULT 0,
    failed              integer NOT NULL DEFAULT 0,
    cancelled           integer NOT NULL DEFAULT 0,
    stopped_at          timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    finished_at         timestamptz,
    enqueued_by         name DEFAULT rythmiq.enqueuer()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);

COMMENT ON TABLE rythmiq.groups IS 'what was submitted as one thing; it goes with its last member';
COMMENT ON COLUMN rythmiq.groups.max_parallel IS 'so many members may be queued or running at once; the others are BLOCKED';
COMMENT ON COLUMN rythmiq.groups.places IS 'what holds in place of max_parallel while the group is paused or has a limit';
COMMENT ON COLUMN rythmiq.groups.notify IS 'a URL that gets a signed POST each time the last member has ended';
COMMENT ON COLUMN rythmiq.groups.stopped_at IS 'when stop_after_failures was reached and the rest was cancelled';
COMMENT ON COLUMN rythmiq.groups.finished_at IS 'when the last member ended; NULL again once one is retried or added';

CREATE INDEX groups_name ON rythmiq.groups (name, created_at DESC);
CREATE INDEX groups_created ON rythmiq.groups (created_at DESC, group_id DESC);
CREATE INDEX groups_unfinished ON rythmiq.groups (created_at) WHERE finished_at IS NULL;

CREATE TABLE rythmiq.dependencies (
    job_id      uuid NOT NULL REFERENCES rythmiq.jobs ON DELETE CASCADE,
    on_job_id   uuid,
    on_group_id uuid,
    needs       text NOT NULL DEFAULT 'succeeded' CHECK (needs IN ('succeeded', 'ended')),
    satisfied   boolean NOT NULL DEFAULT false,
    CHECK (num_nonnulls(on_job_id, on_group_id) = 1)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

COMMENT ON TABLE rythmiq.dependencies IS 'job_id waits for the end of on_job_id, or of every member of on_group_id';

CREATE UNIQUE INDEX dependencies_of_jobs ON rythmiq.dependencies (job_id, on_job_id) WHERE on_job_id IS NOT NULL;
CREATE UNIQUE INDEX dependencies_of_groups ON rythmiq.dependencies (job_id, on_group_id) WHERE on_group_id IS NOT NULL;
CREATE INDEX dependencies_job ON rythmiq.dependencies (job_id);
CREATE INDEX dependencies_on_job ON rythmiq.dependencies (on_job_id) WHERE on_job_id IS NOT NULL;
CREATE INDEX dependencies_on_group ON rythmiq.dependencies (on_group_id) WHERE on_group_id IS NOT NULL;

CREATE TABLE rythmiq.unsettled (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id   uuid,
    group_id uuid,
    stop     boolean NOT NULL DEFAULT false
);

COMMENT ON TABLE rythmiq.unsettled IS
    'jobs and groups of which drivers look again at what follows from their end: another session was in the way, or'
    ' they may have ended while a job that depends on them was being enqueued';

CREATE TYPE rythmiq.job_change AS (job_id uuid, group_id uuid, before text, after text);
COMMENT ON TYPE rythmiq.job_change IS
    'a job''s state before and after; NULL before its row was there, and after it is gone. Without a job it is about its'
    ' group alone: RUNNING to look at it again, STOPPED to cancel what is left of it, NULL if its row is gone';

CREATE FUNCTION rythmiq.ended(state text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT state IN ('SUCCEEDED', 'FAILED', 'CANCELLED') $$;

-- Does what follows from the end of jobs and of their groups: updates the counters, releases or cancels dependents,
-- cancels the rest of a stopped group, and gives places that became free to other members. It repeats, because jobs
-- that are cancelled here have dependents too. Locks are taken in the order of ids: groups, then jobs. "refill" are
-- groups in which only a place may have become free.
CREATE FUNCTION rythmiq.settle(changes rythmiq.job_change[], refill uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    finished uuid[];
    stopping uuid[];
    satisfied uuid[];
    gone      uuid[];
    touched  uuid[] := refill;
    more     rythmiq.job_change[];
    released bigint := 0;
    stopped  bigint := 0;
    count    bigint;
    limited  record;
BEGIN
    PERFORM set_config('rythmiq.settling', 'on', true);  -- Keeps the triggers from calling this function again.
    WHILE cardinality(changes) > 0 LOOP
        WITH delta AS (
            SELECT c.group_id,
                   count(*) FILTER (WHERE c.before IS NULL) - count(*) FILTER (WHERE c.after IS NULL) AS members,
                   count(*) FILTER (WHERE c.after = 'SUCCEEDED') - count(*) FILTER (WHERE c.before = 'SUCCEEDED')
                       AS succeeded,
                   count(*) FILTER (WHERE c.after = 'FAILED') - count(*) FILTER (WHERE c.before = 'FAILED') AS failed,
                   count(*) FILTER (WHERE c.after = 'CANCELLED') - count(*) FILTER (WHERE c.before = 'CANCELLED')
                       AS cancelled,
                   bool_or(c.after IN ('FAILED', 'STOPPED')) AS one_more
            FROM unnest(changes) AS c
            WHERE c.group_id IS NOT NULL
            GROUP BY c.group_id
        ), locked AS MATERIALIZED (
            SELECT delta.* FROM delta JOIN rythmiq.groups AS g USING (group_id)
            ORDER BY g.group_id
            FOR NO KEY UPDATE OF g
        ), counted AS (
            UPDATE rythmiq.groups AS g
            SET members = g.members + d.members, succeeded = g.succeeded + d.succeeded,
                failed = g.failed + d.failed, cancelled = g.cancelled + d.cancelled,
                finished_at = CASE WHEN g.members + d.members <= g.succeeded + d.succeeded + g.failed + d.failed
                                        + g.cancelled + d.cancelled
                                   THEN coalesce(g.finished_at, now()) END,
                stopped_at = CASE WHEN g.failed + d.failed >= g.stop_after_failures THEN coalesce(g.stopped_at, now()) END
            FROM locked AS d
            WHERE g.group_id = d.group_id
            RETURNING g.*, d.one_more
        )
        SELECT array_agg(c.group_id) FILTER (WHERE c.finished_at IS NOT NULL),
               array_agg(c.group_id) FILTER (WHERE c.stopped_at IS NOT NULL AND c.finished_at IS NULL AND c.one_more),
               coalesce(array_agg(c.group_id), '{}') || touched
        INTO finished, stopping, touched
        FROM counted AS c;

        SELECT array_agg(c.group_id) INTO gone FROM unnest(changes) AS c WHERE c.job_id IS NULL AND c.after IS NULL;

        -- Dependencies that are now satisfied. The flag counts each only once, however often its job ends.
        WITH met AS (
            UPDATE rythmiq.dependencies AS d
            SET satisfied = true
            FROM unnest(changes) AS c
            WHERE d.on_job_id = c.job_id AND NOT d.satisfied AND (c.after IS NULL OR rythmiq.ended(c.after))
              AND (d.needs = 'ended' OR c.after = 'SUCCEEDED')
            RETURNING d.job_id
        ), met_by_groups AS (
            UPDATE rythmiq.dependencies AS d
            SET satisfied = true
            FROM unnest(finished || gone) AS f(group_id) LEFT JOIN rythmiq.groups AS g USING (group_id)
            WHERE d.on_group_id = f.group_id AND NOT d.satisfied
              AND (d.needs = 'ended' OR (g.members > 0 AND g.succeeded = g.members))
            RETURNING d.job_id
        )
        SELECT array_agg(m.job_id) INTO satisfied FROM (SELECT * FROM met UNION ALL SELECT * FROM met_by_groups) AS m;

        -- A separate statement sees jobs that a retry made BLOCKED while the statement above waited for its locks.
        WITH fewer AS (
            SELECT s.job_id, count(*)::integer AS met FROM unnest(satisfied) AS s(job_id) GROUP BY s.job_id
        ), locked AS MATERIALIZED (
            SELECT fewer.job_id, fewer.met, coalesce(g.places, g.max_parallel) AS places
            FROM fewer JOIN rythmiq.jobs AS j USING (job_id) LEFT JOIN rythmiq.groups AS g ON g.group_id = j.group_id
            WHERE j.state = 'BLOCKED'
            ORDER BY j.job_id
            FOR NO KEY UPDATE OF j
        ), ready AS (
            UPDATE rythmiq.jobs AS j
            SET waits_for = greatest(j.waits_for - m.met, 0), updated_at = now(),
                state = CASE WHEN j.waits_for > m.met OR m.places IS NOT NULL THEN j.state
                             WHEN j.attempt > 0 THEN 'RETRYING' ELSE 'QUEUED' END,
                next_visible_at = greatest(j.next_visible_at, now())
            FROM locked AS m
            WHERE j.job_id = m.job_id
            RETURNING j.state, j.group_id
        )
        SELECT released + count(*) FILTER (WHERE r.state <> 'BLOCKED'),
               touched || coalesce(array_agg(DISTINCT r.group_id) FILTER (WHERE r.group_id IS NOT NULL), '{}')
        INTO released, touched
        FROM ready AS r;

        -- Dependencies that can no longer be satisfied.
        WITH lost AS (
            SELECT DISTINCT ON (l.job_id) l.job_id, l.why
            FROM (
                SELECT d.job_id, 'it needs job ' || d.on_job_id
                                 || coalesce(', which is ' || c.after, ', whose row was deleted') AS why
                FROM unnest(changes) AS c JOIN rythmiq.dependencies AS d ON d.on_job_id = c.job_id
                WHERE NOT d.satisfied AND d.needs = 'succeeded'
                  AND (c.after IS NULL OR c.after IN ('FAILED', 'CANCELLED'))
                UNION ALL
                SELECT d.job_id, 'it needs group ' || coalesce(g.name, d.on_group_id::text)
                                 || coalesce(', of which ' || g.failed || ' failed and ' || g.cancelled
                                             || ' were cancelled', ', whose jobs were deleted')
                FROM unnest(finished || gone) AS f(group_id)
                JOIN rythmiq.dependencies AS d ON d.on_group_id = f.group_id
                LEFT JOIN rythmiq.groups AS g USING (group_id)
                WHERE NOT d.satisfied AND d.needs = 'succeeded'
            ) AS l
            ORDER BY l.job_id
        ), locked AS MATERIALIZED (
            SELECT lost.* FROM lost JOIN rythmiq.jobs AS j USING (job_id)
            WHERE j.state = 'BLOCKED'
            ORDER BY j.job_id
            FOR NO KEY UPDATE OF j
        ), ended AS (
            UPDATE rythmiq.jobs AS j
            SET state = 'CANCELLED', finished_at = now(), updated_at = now(), retryable = false,
                error_code = 'dependency_failed', error_message = l.why
            FROM locked AS l
            WHERE j.job_id = l.job_id
            RETURNING j.job_id, j.group_id
        )
        SELECT array_agg(ROW(e.job_id, e.group_id, 'BLOCKED', 'CANCELLED')::rythmiq.job_change)
        INTO more
        FROM ended AS e;

        IF cardinality(stopping) > 0 THEN
            -- A job that another session has locked may be claimed right now, so drivers check the group again later.
            WITH rest AS (
                SELECT j.job_id, j.state FROM rythmiq.jobs AS j
                WHERE j.group_id = ANY(stopping) AND j.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING')
                  AND j.cancel_requested_at IS NULL
                FOR NO KEY UPDATE SKIP LOCKED
            ), asked AS (
                UPDATE rythmiq.jobs AS j
                SET cancel_requested_at = now(), updated_at = now(),
                    state = CASE WHEN rest.state = 'RUNNING' THEN rest.state ELSE 'CANCELLED' END,
                    finished_at = CASE WHEN rest.state <> 'RUNNING' THEN now() END,
                    error_code = CASE WHEN rest.state = 'RUNNING' THEN j.error_code ELSE 'cancelled' END,
                    error_message = CASE WHEN rest.state = 'RUNNING' THEN j.error_message
                                         ELSE 'its group stopped: stop_after_failures was reached' END,
                    retryable = CASE WHEN rest.state = 'RUNNING' THEN j.retryable ELSE false END
                FROM rest
                WHERE j.job_id = rest.job_id
                RETURNING j.job_id, j.group_id, rest.state AS before, j.state AS after
            )
            SELECT more || array_agg(ROW(a.job_id, a.group_id, a.before, a.after)::rythmiq.job_change)
                               FILTER (WHERE a.before <> 'RUNNING'),
                   stopped + count(*) FILTER (WHERE a.before = 'RUNNING')
            INTO more, stopped
            FROM asked AS a;
            INSERT INTO rythmiq.unsettled (group_id, stop)
            SELECT s.group_id, true FROM unnest(stopping) AS s(group_id)
            WHERE EXISTS (SELECT FROM rythmiq.jobs AS j
                          WHERE j.group_id = s.group_id AND j.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING')
                            AND j.cancel_requested_at IS NULL)
              AND NOT EXISTS (SELECT FROM rythmiq.unsettled AS u WHERE u.group_id = s.group_id AND u.stop);
        END IF;

        PERFORM pg_notify('rythmiq_events', json_build_object('job_id', c.job_id, 'state', c.after)::text)
        FROM unnest(more) AS c;
        changes := more;
    END LOOP;

    FOR limited IN
        SELECT g.group_id, coalesce(g.places, g.max_parallel) AS places FROM rythmiq.groups AS g
        WHERE g.group_id = ANY(touched)
          AND EXISTS (SELECT FROM rythmiq.jobs AS b WHERE b.group_id = g.group_id AND b.state = 'BLOCKED' AND b.waits_for = 0)
        ORDER BY g.group_id
        FOR NO KEY UPDATE
    LOOP
        UPDATE rythmiq.jobs AS j
        SET state = CASE WHEN j.attempt > 0 THEN 'RETRYING' ELSE 'QUEUED' END, updated_at = now(),
            next_visible_at = greatest(j.next_visible_at, now())
        WHERE j.job_id IN (
            SELECT b.job_id FROM rythmiq.jobs AS b
            WHERE b.group_id = limited.group_id AND b.state = 'BLOCKED' AND b.waits_for = 0
            ORDER BY b.group_index, b.job_id
            LIMIT CASE WHEN limited.places IS NOT NULL THEN greatest(0, limited.places - (
                SELECT count(*) FROM rythmiq.jobs AS a
                WHERE a.group_id = limited.group_id AND a.state IN ('QUEUED', 'RETRYING', 'RUNNING'))) END
            FOR NO KEY UPDATE SKIP LOCKED);
        GET DIAGNOSTICS count = ROW_COUNT;
        released := released + count;
    END LOOP;

    IF released > 0 THEN PERFORM pg_notify('rythmiq', 'enqueued'); END IF;
    IF stopped > 0 THEN PERFORM pg_notify('rythmiq', 'cancel'); END IF;
    PERFORM set_config('rythmiq.settling', '', true);
END
$$;

-- Like settle, but waits only briefly for other sessions and never keeps a job from ending: if a row is locked or
-- cannot be changed, the work is left to the drivers.
CREATE FUNCTION rythmiq.settle_soon(changes rythmiq.job_change[], refill uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
BEGIN
    PERFORM rythmiq.settle(changes, refill);
EXCEPTION WHEN OTHERS THEN
    IF SQLSTATE NOT IN ('55P03', '40P01') THEN RAISE WARNING USING MESSAGE = 'rythmiq.settle: ' || SQLERRM, ERRCODE = SQLSTATE; END IF;
    INSERT INTO rythmiq.unsettled (job_id)
    SELECT c.job_id FROM unnest(changes) AS c
    WHERE (c.after IS NULL OR rythmiq.ended(c.after))
      AND EXISTS (SELECT FROM rythmiq.dependencies AS d WHERE d.on_job_id = c.job_id AND NOT d.satisfied);
    INSERT INTO rythmiq.unsettled (group_id, stop)
    SELECT g.group_id, bool_or(g.stop)
    FROM (SELECT c.group_id, coalesce(c.after IN ('FAILED', 'STOPPED'), false) AS stop FROM unnest(changes) AS c
          UNION ALL SELECT unnest(refill), false) AS g
    WHERE g.group_id IS NOT NULL
    GROUP BY g.group_id;
    PERFORM pg_notify('rythmiq', 'unsettled');
END
$$;

CREATE FUNCTION rythmiq.jobs_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changes rythmiq.job_change[];
BEGIN
    IF current_setting('rythmiq.settling', true) = 'on' THEN RETURN NULL; END IF;
    SELECT array_agg(ROW(n.job_id, n.group_id, o.state, n.state)::rythmiq.job_change)
    INTO changes
    FROM new_rows AS n JOIN old_rows AS o USING (job_id)
    WHERE rythmiq.ended(n.state) <> rythmiq.ended(o.state);
    IF changes IS NULL THEN RETURN NULL; END IF;
    PERFORM pg_notify('rythmiq_events', json_build_object('job_id', c.job_id, 'state', c.after)::text)
    FROM unnest(changes) AS c
    WHERE rythmiq.ended(c.after);
    IF EXISTS (SELECT FROM unnest(changes) AS c WHERE c.group_id IS NOT NULL)
       OR EXISTS (SELECT FROM rythmiq.dependencies AS d
                  WHERE d.on_job_id IN (SELECT c.job_id FROM unnest(changes) AS c) AND NOT d.satisfied) THEN
        PERFORM rythmiq.settle_soon(changes, '{}');
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION rythmiq.jobs_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    grown uuid[];
    known bigint;
BEGIN
    WITH more AS (
        SELECT n.group_id, count(*) AS members, bool_or(n.state = 'BLOCKED' AND n.waits_for = 0) AS placed,
               count(*) FILTER (WHERE n.state = 'SUCCEEDED') AS succeeded,
               count(*) FILTER (WHERE n.state = 'FAILED') AS failed,
               count(*) FILTER (WHERE n.state = 'CANCELLED') AS cancelled
        FROM new_rows AS n
        WHERE n.group_id IS NOT NULL
        GROUP BY n.group_id
    ), counted AS (
        UPDATE rythmiq.groups AS g
        SET members = g.members + more.members, succeeded = g.succeeded + more.succeeded,
            failed = g.failed + more.failed, cancelled = g.cancelled + more.cancelled, finished_at = NULL
        FROM more
        WHERE g.group_id = more.group_id
          AND (g.enqueued_by = session_user OR (SELECT rythmiq.sees_all(session_user)))
        RETURNING g.group_id, more.placed
    )
    SELECT array_agg(c.group_id) FILTER (WHERE c.placed), count(*) INTO grown, known FROM counted AS c;
    IF known < (SELECT count(DISTINCT n.group_id) FROM new_rows AS n) THEN
        RAISE foreign_key_violation USING MESSAGE = 'a group of these jobs is not there';
    END IF;
    IF grown IS NOT NULL THEN PERFORM rythmiq.settle_soon('{}', grown); END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION rythmiq.jobs_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changes rythmiq.job_change[];
BEGIN
    SELECT array_agg(ROW(o.job_id, o.group_id, o.state, NULL)::rythmiq.job_change)
    INTO changes
    FROM old_rows AS o
    WHERE o.group_id IS NOT NULL OR NOT rythmiq.ended(o.state);
    IF changes IS NULL THEN RETURN NULL; END IF;
    PERFORM rythmiq.settle_soon(changes, '{}');
    DELETE FROM rythmiq.groups AS g
    WHERE g.members <= 0 AND g.group_id IN (SELECT c.group_id FROM unnest(changes) AS c);
    RETURN NULL;
END
$$;

CREATE TRIGGER jobs_updated AFTER UPDATE ON rythmiq.jobs
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION rythmiq.jobs_updated();
CREATE TRIGGER jobs_inserted AFTER INSERT ON rythmiq.jobs
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION rythmiq.jobs_inserted();
CREATE TRIGGER jobs_deleted AFTER DELETE ON rythmiq.jobs
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION rythmiq.jobs_deleted();

CREATE FUNCTION rythmiq.dependencies_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT rythmiq.sees_all(session_user) AND EXISTS (
        SELECT FROM new_rows AS n JOIN rythmiq.jobs AS j USING (job_id) WHERE j.enqueued_by IS DISTINCT FROM session_user) THEN
        RAISE insufficient_privilege USING MESSAGE = 'a login lets the jobs wait that it put in, and no others';
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER dependencies_inserted AFTER INSERT ON rythmiq.dependencies
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION rythmiq.dependencies_inserted();

-- A role that may only enqueue can give a new job the state QUEUED or BLOCKED, and no other.
CREATE FUNCTION rythmiq.refuse_state() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT has_column_privilege('rythmiq.jobs', 'attempt', 'INSERT') THEN
        RAISE insufficient_privilege USING MESSAGE = 'a new job is QUEUED or BLOCKED, not ' || NEW.state;
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER jobs_new BEFORE INSERT ON rythmiq.jobs
    FOR EACH ROW WHEN (NEW.state <> 'QUEUED' AND NEW.state <> 'BLOCKED') EXECUTE FUNCTION rythmiq.refuse_state();

-- Called after dependencies on these jobs and groups were written: those that have already ended count at once. The
-- others may be ending in a transaction that cannot see the new dependencies yet, so drivers check them again.
CREATE FUNCTION rythmiq.settle_sources(jobs uuid[], groups uuid[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changes rythmiq.job_change[];
BEGIN
    INSERT INTO rythmiq.unsettled (job_id)
    SELECT s.job_id FROM unnest(jobs) AS s(job_id)
    WHERE NOT EXISTS (SELECT FROM rythmiq.jobs AS j WHERE j.job_id = s.job_id AND rythmiq.ended(j.state));
    INSERT INTO rythmiq.unsettled (group_id) SELECT unnest(groups);
    PERFORM pg_notify('rythmiq', 'unsettled');
    SELECT array_agg(ROW(j.job_id, NULL, 'RUNNING', j.state)::rythmiq.job_change)
    INTO changes
    FROM rythmiq.jobs AS j
    WHERE j.job_id = ANY(jobs) AND rythmiq.ended(j.state);
    SELECT coalesce(changes, '{}') || array_agg(ROW(NULL, g.group_id, 'RUNNING', 'RUNNING')::rythmiq.job_change)
    INTO changes
    FROM rythmiq.groups AS g
    WHERE g.group_id = ANY(groups) AND g.finished_at IS NOT NULL;
    IF changes IS NOT NULL THEN PERFORM rythmiq.settle_soon(changes, '{}'); END IF;
END
$$;

-- Called by drivers now and then: settles the jobs and groups in rythmiq.unsettled. Returns how many were handled;
-- those that another session has locked stay.
CREATE FUNCTION rythmiq.settle_left(most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    entry   record;
    state   text;
    handled integer := 0;
BEGIN
    FOR entry IN
        SELECT u.id, u.job_id, u.group_id, u.stop FROM rythmiq.unsettled AS u ORDER BY u.id LIMIT most FOR UPDATE SKIP LOCKED
    LOOP
        IF entry.job_id IS NOT NULL THEN
            SELECT j.state INTO state FROM rythmiq.jobs AS j WHERE j.job_id = entry.job_id FOR SHARE SKIP LOCKED;
            IF NOT FOUND THEN
                CONTINUE WHEN EXISTS (SELECT FROM rythmiq.jobs AS j WHERE j.job_id = entry.job_id);
                state := NULL;
            END IF;
            IF state IS NULL OR rythmiq.ended(state) THEN
                PERFORM rythmiq.settle_soon(
                    ARRAY[ROW(entry.job_id, NULL, 'RUNNING', state)::rythmiq.job_change], '{}');
            END IF;
        ELSE
            PERFORM FROM rythmiq.groups AS g WHERE g.group_id = entry.group_id FOR NO KEY UPDATE SKIP LOCKED;
            IF NOT FOUND THEN
                CONTINUE WHEN EXISTS (SELECT FROM rythmiq.groups AS g WHERE g.group_id = entry.group_id);
                PERFORM rythmiq.settle_soon(
                    ARRAY[ROW(NULL, entry.group_id, 'RUNNING', NULL)::rythmiq.job_change], '{}');
            ELSE
                UPDATE rythmiq.groups AS g
                SET members = c.members, succeeded = c.succeeded, failed = c.failed, cancelled = c.cancelled
                FROM (SELECT count(*) AS members, count(*) FILTER (WHERE j.state = 'SUCCEEDED') AS succeeded,
                             count(*) FILTER (WHERE j.state = 'FAILED') AS failed,
                             count(*) FILTER (WHERE j.state = 'CANCELLED') AS cancelled
                      FROM rythmiq.jobs AS j WHERE j.group_id = entry.group_id) AS c
                WHERE g.group_id = entry.group_id
                  AND (g.members, g.succeeded, g.failed, g.cancelled)
                      IS DISTINCT FROM (c.members, c.succeeded, c.failed, c.cancelled);
                PERFORM rythmiq.place_group(entry.group_id);
                PERFORM rythmiq.settle_soon(
                    ARRAY[ROW(NULL, entry.group_id, 'RUNNING', CASE WHEN entry.stop THEN 'STOPPED' ELSE 'RUNNING' END
                             )::rythmiq.job_change], ARRAY[entry.group_id]);
            END IF;
        END IF;
        DELETE FROM rythmiq.unsettled AS u WHERE u.id = entry.id;
        handled := handled + 1;
    END LOOP;
    RETURN handled;
END
$$;

CREATE FUNCTION rythmiq.hold_dependencies(jobs uuid[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT FROM rythmiq.dependencies AS d WHERE d.job_id = ANY(jobs) ORDER BY d.ctid FOR NO KEY UPDATE
$$;
COMMENT ON FUNCTION rythmiq.hold_dependencies IS 'locks them for rythmiq.retry, whose caller may not change them';

-- Gives ended jobs one more attempt; with "downstream" also the jobs that were cancelled because they needed them. A
-- job that waits for others becomes BLOCKED again. Left alone are jobs whose dependencies can never be satisfied, jobs
-- whose unique key another job holds, and all but one of several jobs with the same key. Returns the ids of the retried
-- jobs.
CREATE FUNCTION rythmiq.retry(ids uuid[], downstream boolean) RETURNS SETOF uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    chosen uuid[];
    more   uuid[];
BEGIN
    SELECT coalesce(array_agg(j.job_id), '{}') INTO chosen
    FROM rythmiq.jobs AS j WHERE j.job_id = ANY(ids) AND j.state IN ('FAILED', 'CANCELLED');
    more := chosen;
    WHILE downstream AND cardinality(more) > 0 LOOP
        SELECT array_agg(DISTINCT j.job_id) INTO more
        FROM rythmiq.jobs AS j JOIN rythmiq.dependencies AS d USING (job_id)
        WHERE j.state = 'CANCELLED' AND j.error_code = 'dependency_failed' AND NOT j.job_id = ANY(chosen)
          AND NOT d.satisfied
          AND (d.on_job_id = ANY(more)
               OR d.on_group_id IN (SELECT m.group_id FROM rythmiq.jobs AS m WHERE m.job_id = ANY(more)));
        chosen := chosen || coalesce(more, '{}');
    END LOOP;
    -- Dependencies are locked too: one that is counted as unmet here must not be satisfied meanwhile.
    PERFORM FROM rythmiq.jobs AS j WHERE j.job_id = ANY(chosen) ORDER BY j.job_id FOR NO KEY UPDATE;
    PERFORM rythmiq.hold_dependencies(chosen);
    LOOP
        SELECT array_agg(j.job_id) INTO more
        FROM rythmiq.jobs AS j
        WHERE j.job_id = ANY(chosen) AND j.state IN ('FAILED', 'CANCELLED')
          AND (j.unique_key IS NULL OR NOT EXISTS (
              SELECT FROM rythmiq.jobs AS other
              WHERE other.unique_key = j.unique_key
                AND (other.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING')
                     OR (other.job_id = ANY(chosen) AND other.job_id < j.job_id))))
          AND NOT EXISTS (
              SELECT FROM rythmiq.dependencies AS d
              WHERE d.job_id = j.job_id AND NOT d.satisfied AND d.needs = 'succeeded'
                AND CASE WHEN d.on_job_id IS NOT NULL
                         THEN NOT d.on_job_id = ANY(chosen) AND NOT EXISTS (
                             SELECT FROM rythmiq.jobs AS s WHERE s.job_id = d.on_job_id AND NOT rythmiq.ended(s.state))
                         ELSE NOT EXISTS (
                             SELECT FROM rythmiq.jobs AS m
                             WHERE m.group_id = d.on_group_id
                               AND (m.job_id = ANY(chosen) OR NOT rythmiq.ended(m.state))) END);
        EXIT WHEN more IS NULL OR cardinality(more) = cardinality(chosen);
        chosen := more;
    END LOOP;
    RETURN QUERY
        UPDATE rythmiq.jobs AS j
        SET state = CASE WHEN w.unmet > 0 OR coalesce(g.places, g.max_parallel) IS NOT NULL THEN 'BLOCKED' ELSE 'RETRYING' END,
            waits_for = w.unmet, next_visible_at = now(), finished_at = NULL, cancel_requested_at = NULL,
            updated_at = now(),
            -- An attempt at the largest integer is left to the claim, which ends the job with an error.
            max_attempts = greatest(j.max_attempts, least(j.attempt, 2147483646) + 1 - j.free_attempts),
            -- Outputs that never became complete are fetched again only by `collect`; a retry runs the command again.
            collect_until = CASE WHEN j.error_code = 'artifact_corrupt' THEN NULL ELSE j.collect_until END,
            -- A driver of 0.1.0 fails on an error code that it does not know.
            error_code = CASE WHEN j.error_code IN ('artifacts_not_stored', 'dependency_failed') THEN NULL
                              ELSE j.error_code END
        FROM rythmiq.jobs AS k
        LEFT JOIN rythmiq.groups AS g ON g.group_id = k.group_id
        CROSS JOIN LATERAL (
            SELECT count(*)::integer AS unmet FROM rythmiq.dependencies AS d
            WHERE d.job_id = k.job_id AND NOT d.satisfied
        ) AS w
        WHERE j.job_id = k.job_id AND k.job_id = ANY(more)
        RETURNING j.job_id;
    PERFORM pg_notify('rythmiq', 'enqueued');
    PERFORM rythmiq.settle_sources(array_agg(DISTINCT d.on_job_id), array_agg(DISTINCT d.on_group_id))
    FROM rythmiq.dependencies AS d
    WHERE d.job_id = ANY(more) AND NOT d.satisfied
    HAVING count(*) > 0;
END
$$;

REVOKE EXECUTE ON FUNCTION rythmiq.settle(rythmiq.job_change[], uuid[]), rythmiq.settle_soon(rythmiq.job_change[], uuid[]),
    rythmiq.settle_sources(uuid[], uuid[]), rythmiq.settle_left(integer), rythmiq.hold_dependencies(uuid[]),
    rythmiq.retry(uuid[], boolean) FROM PUBLIC;
-- Otherwise any login could attach these triggers to a table of its own and pass them made-up rows.
REVOKE EXECUTE ON FUNCTION rythmiq.jobs_updated(), rythmiq.jobs_inserted(), rythmiq.jobs_deleted(),
    rythmiq.dependencies_inserted() FROM PUBLIC;
