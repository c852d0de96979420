-- Schedules of jobs and sweeps. Any driver may fire a due time; each is fired exactly once.

CREATE TABLE rythmiq.schedules (
    name          text PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 200),
    cron          text NOT NULL,
    time_zone     text NOT NULL DEFAULT 'UTC',
    job           jsonb,
    sweep         jsonb,
    overlap       text NOT NULL DEFAULT 'skip' CHECK (overlap IN ('skip', 'queue', 'cancel')),
    catch_up      text NOT NULL DEFAULT 'one' CHECK (catch_up IN ('none', 'one', 'all')),
    paused        boolean NOT NULL DEFAULT false,
    reason        text,
    next_at       timestamptz NOT NULL,
    last_at       timestamptz,
    last_job_id   uuid,
    last_group_id uuid,
    last_outcome  text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    enqueued_by   name NOT NULL DEFAULT session_user,
    CHECK (num_nonnulls(job, sweep) = 1)
);

COMMENT ON TABLE rythmiq.schedules IS 'job is a line of `rythmiq schema`; sweep has jobs, a list of such lines, and what a group has';
COMMENT ON COLUMN rythmiq.schedules.last_outcome IS 'what became of the last due time: enqueued, skipped, or why it could not be enqueued';

-- The login that last wrote the job or sweep is the one whose secret grants its runs have.
CREATE FUNCTION rythmiq.schedule_written() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.enqueued_by := session_user;
    RETURN NEW;
END
$$;

CREATE TRIGGER schedules_written BEFORE UPDATE OF job, sweep ON rythmiq.schedules
    FOR EACH ROW EXECUTE FUNCTION rythmiq.schedule_written();

-- Enqueues a schedule's job or sweep once, as the login that wrote it. Returns the id of the job or group, NULL if the
-- run is skipped. Waits only briefly for rows that another session has locked.
CREATE FUNCTION rythmiq.run_schedule(schedule text, at timestamptz) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    s rythmiq.schedules;
    line jsonb;
    marks jsonb;
    made uuid;
    made_group uuid;
    unfinished boolean;
BEGIN
    SELECT * INTO STRICT s FROM rythmiq.schedules AS x WHERE x.name = schedule FOR UPDATE;
    unfinished := EXISTS (SELECT FROM rythmiq.jobs AS j WHERE j.job_id = s.last_job_id AND j.finished_at IS NULL)
        OR EXISTS (SELECT FROM rythmiq.groups AS g WHERE g.group_id = s.last_group_id AND g.finished_at IS NULL);
    IF unfinished AND s.overlap = 'skip' THEN
        UPDATE rythmiq.schedules AS x SET last_outcome = 'skipped: the run before is unfinished' WHERE x.name = schedule;
        RETURN NULL;
    END IF;
    IF unfinished AND s.overlap = 'cancel' THEN
        UPDATE rythmiq.jobs AS j
        SET cancel_requested_at = coalesce(cancel_requested_at, now()), updated_at = now(),
            state = CASE WHEN state = 'RUNNING' THEN state ELSE 'CANCELLED' END,
            finished_at = CASE WHEN state = 'RUNNING' THEN NULL ELSE now() END,
            error_code = CASE WHEN state = 'RUNNING' THEN error_code ELSE 'cancelled' END,
            error_message = CASE WHEN state = 'RUNNING' THEN error_message ELSE 'its schedule was due again' END,
            retryable = CASE WHEN state = 'RUNNING' THEN retryable ELSE false END
        WHERE (j.job_id = s.last_job_id OR j.group_id = s.last_group_id)
          AND j.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING');
        PERFORM pg_notify('rythmiq', 'cancel');
    END IF;
    PERFORM set_config('rythmiq.enqueuer', s.enqueued_by, true);
    marks := jsonb_build_object('schedule', s.name, 'scheduled_at', to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'));
    IF s.job IS NOT NULL THEN
        line := jsonb_build_object('name', s.name) || s.job
            || jsonb_build_object('labels', coalesce(s.job -> 'labels', '{}') || marks);
        made := rythmiq.enqueue(line);
    ELSE
        made_group := gen_random_uuid();
        INSERT INTO rythmiq.groups (group_id, name, user_id, labels, max_parallel, stop_after_failures, notify)
        VALUES (made_group, coalesce(s.sweep ->> 'name', s.name), s.sweep ->> 'user_id',
                coalesce(s.sweep -> 'labels', '{}') || marks, (s.sweep ->> 'max_parallel')::integer,
                (s.sweep ->> 'stop_after_failures')::integer, s.sweep ->> 'notify');
        FOR line IN SELECT jsonb_array_elements(s.sweep -> 'jobs') LOOP
            PERFORM rythmiq.enqueue(line || jsonb_build_object('group', made_group,
                'labels', coalesce(line -> 'labels', '{}') || marks));
        END LOOP;
    END IF;
    PERFORM set_config('rythmiq.enqueuer', '', true);
    DELETE FROM rythmiq.groups AS g
    WHERE g.group_id = made_group AND NOT EXISTS (SELECT FROM rythmiq.jobs AS j WHERE j.group_id = made_group);
    IF FOUND THEN
        UPDATE rythmiq.schedules AS x SET last_outcome = 'skipped: other jobs hold its unique keys' WHERE x.name = schedule;
        RETURN NULL;
    END IF;
    UPDATE rythmiq.schedules AS x
    SET last_at = at, last_job_id = made, last_group_id = made_group, last_outcome = 'enqueued'
    WHERE x.name = schedule;
    RETURN coalesce(made, made_group);
END
$$;

-- Fires due times of a schedule, unless another session has fired them or is doing so: only the session that still
-- finds next_at = "was" may fire. Returns how many runs were enqueued.
CREATE FUNCTION rythmiq.fire_schedule(schedule text, was timestamptz, following timestamptz, times timestamptz[])
RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz;
    fired integer := 0;
BEGIN
    PERFORM FROM rythmiq.schedules AS x WHERE x.name = schedule AND x.next_at = was AND NOT x.paused FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    UPDATE rythmiq.schedules AS x SET next_at = following WHERE x.name = schedule;
    FOREACH at IN ARRAY times LOOP
        BEGIN
            IF rythmiq.run_schedule(schedule, at) IS NOT NULL THEN
                fired := fired + 1;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            -- After an error that may pass (a conflict, a lock, a shutdown) the times stay due. After any other error
            -- this time is given up, so that it does not keep the following ones from being fired.
            IF SQLSTATE ~ '^(40|53|55P03|57|58)' THEN RAISE; END IF;
            UPDATE rythmiq.schedules AS x SET last_outcome = 'not enqueued: ' || SQLERRM WHERE x.name = schedule;
        END;
    END LOOP;
    RETURN fired;
EXCEPTION WHEN lock_not_available THEN
    RETURN 0;
END
$$;

REVOKE ALL ON FUNCTION rythmiq.run_schedule(text, timestamptz),
    rythmiq.fire_schedule(text, timestamptz, timestamptz, timestamptz[]) FROM PUBLIC;
