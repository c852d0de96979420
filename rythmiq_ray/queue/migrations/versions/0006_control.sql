-- Limits, turns between users, pauses and budgets, which hold for all drivers together; and costs.

ALTER TABLE rythmiq.drivers ADD COLUMN draining_at timestamptz;
ALTER TABLE rythmiq.jobs ADD COLUMN credits_per_hour double precision;

-- In rythmiq.limits, * stands for each user. Not validated, because that reads the whole table; see complete_migration.
ALTER TABLE rythmiq.jobs ADD CONSTRAINT jobs_user_check CHECK (user_id <> '*') NOT VALID;

COMMENT ON COLUMN rythmiq.drivers.draining_at IS 'since then it ends what it has, takes nothing new, and goes';
COMMENT ON COLUMN rythmiq.jobs.credits_per_hour IS 'of the running or last attempt, by the price that its driver knows';

CREATE TABLE rythmiq.limits (
    scope          text NOT NULL CHECK (scope IN ('account', 'queue', 'user', 'group')),
    name           text NOT NULL DEFAULT '',
    max_running    integer CHECK (max_running >= 0),
    per_minute     integer CHECK (per_minute >= 0),
    credits        double precision CHECK (credits >= 0 AND credits < 'infinity'),
    period         text CHECK (period IN ('day', 'month', 'all')),
    paused         boolean NOT NULL DEFAULT false,
    cancel_running boolean NOT NULL DEFAULT false,
    reason         text,
    set_by         name NOT NULL DEFAULT session_user,
    set_at         timestamptz NOT NULL DEFAULT now(),
    spent          double precision,
    over           text[] NOT NULL DEFAULT '{}',
    CHECK ((credits IS NULL) = (period IS NULL)),
    CHECK ((scope = 'account') = (name = ''))
) WITH (fillfactor = 50);

CREATE UNIQUE INDEX limits_scope ON rythmiq.limits (scope, name, (coalesce(period, '')));

COMMENT ON TABLE rythmiq.limits IS 'a row for a scope, and one more for each period of a budget; all of them hold';
COMMENT ON COLUMN rythmiq.limits.name IS 'of the queue or user, * for each user; of a group its id; empty for the account';
COMMENT ON COLUMN rythmiq.limits.cancel_running IS 'once it is paused or the budget is reached, what runs is cancelled too';
COMMENT ON COLUMN rythmiq.limits.spent IS 'of the budget, when a driver looked last: of * the most of any user';
COMMENT ON COLUMN rythmiq.limits.over IS 'the names that have reached the budget; of * they are users';

CREATE TABLE rythmiq.costs (
    day      date NOT NULL,
    user_id  text NOT NULL,
    queue    text NOT NULL,
    group_id uuid NOT NULL,
    labels   jsonb NOT NULL,
    part     integer NOT NULL DEFAULT 0,
    credits  double precision NOT NULL,
    jobs     bigint NOT NULL,
    group_name text
) WITH (fillfactor = 70);

-- Hashes, because an index entry cannot hold a long text.
CREATE UNIQUE INDEX costs_key ON rythmiq.costs (day, md5(user_id), md5(queue), group_id, md5(labels::text), part);

COMMENT ON TABLE rythmiq.costs IS 'what ended, by the day in UTC on which it ended; it stays when jobs are pruned';
COMMENT ON COLUMN rythmiq.costs.group_id IS 'all zeros where a job is in no group';
COMMENT ON COLUMN rythmiq.costs.part IS 'another row of the same key, where a session held the first one';

-- The part of the migration that reads the whole table of jobs. `rythmiq migrate` calls it after its other work is
-- committed, and then drops it: readers do not wait, and writers wait only for this part. It counts again what the
-- trigger below has counted until then.
CREATE FUNCTION rythmiq.complete_migration() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE rythmiq.jobs IN SHARE ROW EXCLUSIVE MODE;
    UPDATE rythmiq.jobs SET user_id = NULL WHERE user_id = '*';
    DELETE FROM rythmiq.costs;
    INSERT INTO rythmiq.costs (day, user_id, queue, group_id, labels, credits, jobs)
    SELECT (coalesce(j.finished_at, j.updated_at) AT TIME ZONE 'UTC')::date, coalesce(j.user_id, ''), j.queue,
           coalesce(j.group_id, '00000000-0000-0000-0000-000000000000'), j.labels - 'scheduled_at', sum(j.cost_credits),
           count(*)
    FROM rythmiq.jobs AS j
    WHERE j.cost_credits > 0 AND j.cost_credits < 'infinity' AND isfinite(coalesce(j.finished_at, j.updated_at))
    GROUP BY 1, 2, 3, 4, 5;
END
$$;

-- Adds to rythmiq.costs. The label scheduled_at is left out: it differs in each run of a schedule, so each would get a
-- row of its own.
CREATE FUNCTION rythmiq.jobs_priced() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    parts integer := 0;
BEGIN
    LOOP
        BEGIN
            INSERT INTO rythmiq.costs AS c (day, user_id, queue, group_id, labels, part, credits, jobs, group_name)
            SELECT (now() AT TIME ZONE 'UTC')::date, coalesce(n.user_id, ''), n.queue,
                   coalesce(n.group_id, '00000000-0000-0000-0000-000000000000'), n.labels - 'scheduled_at', parts,
                   sum(coalesce(n.cost_credits, 0) - coalesce(o.cost_credits, 0)),
                   count(*) FILTER (WHERE o.cost_credits IS NULL), max(g.name)
            FROM new_rows AS n JOIN old_rows AS o USING (job_id) LEFT JOIN rythmiq.groups AS g ON g.group_id = n.group_id
            WHERE n.cost_credits IS DISTINCT FROM o.cost_credits AND n.cost_credits < 'infinity'
              AND coalesce(o.cost_credits, 0) < 'infinity'
            GROUP BY 2, 3, 4, 5
            ORDER BY 2, 3, 4, 5 -- All sessions use the same order, so that two never deadlock.
            ON CONFLICT (day, md5(user_id), md5(queue), group_id, md5(labels::text), part) DO UPDATE
            SET credits = c.credits + excluded.credits, jobs = c.jobs + excluded.jobs;
            RETURN NULL;
        EXCEPTION WHEN lock_not_available THEN
            IF parts <> 0 THEN RAISE; END IF;
            parts := pg_backend_pid();
        END;
    END LOOP;
END
$$;

CREATE TRIGGER jobs_priced AFTER UPDATE ON rythmiq.jobs
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION rythmiq.jobs_priced();

-- The credits of a running job. NULL if its price or times are out of range: such a value would spoil every sum.
CREATE FUNCTION rythmiq.estimated_credits(an_hour double precision, since timestamptz, until timestamptz)
RETURNS double precision LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN an_hour BETWEEN 0 AND 1e9 AND isfinite(since) AND isfinite(until)
                THEN an_hour * greatest(0, extract(epoch FROM until - since)) / 3600 END
$$;

CREATE VIEW rythmiq.spending AS
SELECT c.day, c.user_id, c.queue, c.group_id, c.group_name, c.labels, c.credits, c.jobs, false AS running
FROM rythmiq.costs AS c
UNION ALL
SELECT (now() AT TIME ZONE 'UTC')::date, coalesce(j.user_id, ''), j.queue,
       coalesce(j.group_id, '00000000-0000-0000-0000-000000000000'), g.name, j.labels - 'scheduled_at',
       rythmiq.estimated_credits(j.credits_per_hour, j.running_at, coalesce(j.ended_at, now())), 1, true
FROM rythmiq.jobs AS j LEFT JOIN rythmiq.groups AS g USING (group_id)
WHERE j.state = 'RUNNING' AND rythmiq.estimated_credits(j.credits_per_hour, j.running_at, coalesce(j.ended_at, now())) >= 0;

COMMENT ON VIEW rythmiq.spending IS 'what ended, and beside it what runs, by its price and the time that it has run';

-- ------------------------------------------------------------------------------------------------------------- groups

-- A limit or a pause of a group sets its "places": members without a place are BLOCKED, so no claim has to look at
-- them. A group that another session has locked is left to the drivers; until then the claim itself keeps to the limit.
CREATE FUNCTION rythmiq.place_group(id uuid) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    bound integer;
BEGIN
    PERFORM FROM rythmiq.groups AS g WHERE g.group_id = id FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        INSERT INTO rythmiq.unsettled (group_id) SELECT g.group_id FROM rythmiq.groups AS g WHERE g.group_id = id;
        PERFORM pg_notify('rythmiq', 'unsettled');
        RETURN;
    END IF;
    SELECT min(CASE WHEN l.paused OR l.over <> '{}' THEN 0 ELSE l.max_running END) INTO bound
    FROM rythmiq.limits AS l WHERE l.scope = 'group' AND l.name = id::text;
    UPDATE rythmiq.groups AS g SET places = least(bound, CASE WHEN bound IS NOT NULL THEN g.max_parallel END)
    WHERE g.group_id = id
      AND g.places IS DISTINCT FROM least(bound, CASE WHEN bound IS NOT NULL THEN g.max_parallel END);
    IF bound IS NOT NULL THEN
        UPDATE rythmiq.jobs AS j SET state = 'BLOCKED', updated_at = now()
        WHERE j.job_id IN (
            SELECT q.job_id FROM rythmiq.jobs AS q
            WHERE q.group_id = id AND q.state IN ('QUEUED', 'RETRYING')
            ORDER BY q.group_index, q.job_id
            OFFSET greatest(0, bound - (SELECT count(*) FROM rythmiq.jobs AS r WHERE r.group_id = id AND r.state = 'RUNNING'))
            FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
    PERFORM rythmiq.settle_soon('{}', ARRAY[id]);
END
$$;

CREATE FUNCTION rythmiq.limits_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    old_name text := CASE WHEN TG_OP <> 'INSERT' AND OLD.scope = 'group' THEN OLD.name END;
    new_name text := CASE WHEN TG_OP <> 'DELETE' AND NEW.scope = 'group' THEN NEW.name END;
BEGIN
    IF new_name IS NOT NULL THEN PERFORM rythmiq.place_group(new_name::uuid); END IF;
    IF old_name IS NOT NULL AND old_name IS DISTINCT FROM new_name THEN PERFORM rythmiq.place_group(old_name::uuid); END IF;
    PERFORM pg_notify('rythmiq', 'limits');
    RETURN NULL;
END
$$;

CREATE TRIGGER limits_new AFTER INSERT OR DELETE ON rythmiq.limits
    FOR EACH ROW EXECUTE FUNCTION rythmiq.limits_changed();
CREATE TRIGGER limits_changed AFTER UPDATE ON rythmiq.limits FOR EACH ROW
    WHEN ((OLD.scope, OLD.name, OLD.max_running, OLD.per_minute, OLD.paused, OLD.over)
          IS DISTINCT FROM (NEW.scope, NEW.name, NEW.max_running, NEW.per_minute, NEW.paused, NEW.over))
    EXECUTE FUNCTION rythmiq.limits_changed();

CREATE FUNCTION rythmiq.group_gone() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM rythmiq.limits AS l WHERE l.scope = 'group' AND l.name = OLD.group_id::text;
    RETURN NULL;
END
$$;

CREATE TRIGGER groups_gone AFTER DELETE ON rythmiq.groups FOR EACH ROW EXECUTE FUNCTION rythmiq.group_gone();

-- -------------------------------------------------------------------------------------------------------- set and unset

CREATE FUNCTION rythmiq.as_uuid(value text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN value ~* '^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$' THEN value::uuid END
$$;

-- Raises an error unless the login may limit this scope: it is an operator or the owner, or it enqueued that group and
-- no other login has limited it. Returns the name as it is stored.
CREATE FUNCTION rythmiq.check_scope(of_scope text, of_name text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stored text := coalesce(of_name, '');
    mine record;
    own boolean;
BEGIN
    IF of_scope NOT IN ('account', 'queue', 'user', 'group') OR of_scope IS NULL THEN
        PERFORM rythmiq.refuse('scope', 'must be account, queue, user or group');
    END IF;
    IF (of_scope = 'account') <> (stored = '') THEN
        PERFORM rythmiq.refuse('name', 'is for a queue, a user or a group');
    END IF;
    IF octet_length(stored) > 2000 THEN
        PERFORM rythmiq.refuse('name', 'has more than 2000 bytes, which no index holds');
    END IF;
    SELECT r.roles, r.trusted INTO mine FROM rythmiq.roles_of(session_user) AS r;
    IF of_scope = 'group' THEN
        SELECT g.group_id::text, g.enqueued_by = session_user INTO stored, own
        FROM rythmiq.groups AS g WHERE g.group_id = rythmiq.as_uuid(of_name);
        IF NOT FOUND THEN
            PERFORM rythmiq.refuse('name', 'there is no group ' || of_name);
        END IF;
    END IF;
    IF NOT mine.trusted AND own IS NOT TRUE THEN
        RAISE insufficient_privilege USING MESSAGE = 'this login may bound the groups that it put in, and nothing else';
    END IF;
    IF NOT mine.trusted AND EXISTS (SELECT FROM rythmiq.limits AS l
                                    WHERE l.scope = of_scope AND l.name = stored AND NOT l.set_by = ANY(mine.roles)) THEN
        RAISE insufficient_privilege USING MESSAGE = 'somebody else has bounded this group, and this login may not change that';
    END IF;
    RETURN stored;
END
$$;

CREATE FUNCTION rythmiq.set_limit(scope text, name text, max_running integer, per_minute integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    $2 := rythmiq.check_scope($1, $2);
    IF $3 < 0 OR $4 < 0 OR coalesce($3, $4) IS NULL THEN
        PERFORM rythmiq.refuse('max_running', 'and per_minute: give one of them, 0 or more');
    END IF;
    INSERT INTO rythmiq.limits AS l (scope, name, max_running, per_minute) VALUES ($1, $2, $3, $4)
    ON CONFLICT (scope, name, (coalesce(period, ''))) DO UPDATE
    SET max_running = coalesce($3, l.max_running), per_minute = coalesce($4, l.per_minute),
        set_by = session_user, set_at = now();
END
$$;

CREATE FUNCTION rythmiq.unset_limit(scope text, name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_one boolean;
BEGIN
    $2 := rythmiq.check_scope($1, $2);
    UPDATE rythmiq.limits AS l SET max_running = NULL, per_minute = NULL
    WHERE l.scope = $1 AND l.name = $2 AND coalesce(l.max_running, l.per_minute) IS NOT NULL;
    found_one := FOUND;
    DELETE FROM rythmiq.limits AS l
    WHERE l.scope = $1 AND l.name = $2 AND NOT l.paused AND l.credits IS NULL
      AND coalesce(l.max_running, l.per_minute) IS NULL;
    RETURN found_one;
END
$$;

CREATE FUNCTION rythmiq.set_budget(scope text, name text, credits double precision, period text, cancel_running boolean)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    $2 := rythmiq.check_scope($1, $2);
    IF $3 IS NULL OR NOT ($3 >= 0 AND $3 < 'infinity') THEN
        PERFORM rythmiq.refuse('credits', 'must be a number, 0 or more');
    END IF;
    IF $4 IS NULL OR $4 NOT IN ('day', 'month', 'all') THEN
        PERFORM rythmiq.refuse('period', 'must be day, month or all');
    END IF;
    INSERT INTO rythmiq.limits (scope, name, credits, period, cancel_running)
    VALUES ($1, $2, $3, $4, coalesce($5, false))
    ON CONFLICT (scope, name, (coalesce(period, ''))) DO UPDATE
    SET credits = $3, cancel_running = coalesce($5, false), set_by = session_user, set_at = now();
    PERFORM rythmiq.check_budgets();
END
$$;

CREATE FUNCTION rythmiq.unset_budget(scope text, name text, period text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    $2 := rythmiq.check_scope($1, $2);
    DELETE FROM rythmiq.limits AS l
    WHERE l.scope = $1 AND l.name = $2 AND l.period IS NOT NULL AND ($3 IS NULL OR l.period = $3);
    RETURN FOUND;
END
$$;

-- Requests cancellation of the jobs that run in these queues, groups or users, or in the account. Returns how many.
CREATE FUNCTION rythmiq.cancel_running(scope text, names text[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    jobs integer;
BEGIN
    UPDATE rythmiq.jobs AS j SET cancel_requested_at = now(), updated_at = now()
    WHERE j.job_id IN (
        SELECT r.job_id FROM rythmiq.jobs AS r
        WHERE r.state = 'RUNNING' AND r.cancel_requested_at IS NULL
          AND CASE $1 WHEN 'account' THEN true WHEN 'queue' THEN r.queue = ANY($2)
                      WHEN 'group' THEN r.group_id::text = ANY($2)
                      ELSE '*' = ANY($2) OR coalesce(r.user_id, '') = ANY($2) END
        ORDER BY r.job_id
        FOR NO KEY UPDATE SKIP LOCKED);
    GET DIAGNOSTICS jobs = ROW_COUNT;
    IF jobs > 0 THEN PERFORM pg_notify('rythmiq', 'cancel'); END IF;
    RETURN jobs;
END
$$;

CREATE FUNCTION rythmiq.pause(scope text, name text, reason text, cancel_running boolean) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    $2 := rythmiq.check_scope($1, $2);
    INSERT INTO rythmiq.limits (scope, name, paused, cancel_running, reason) VALUES ($1, $2, true, coalesce($4, false), $3)
    ON CONFLICT (scope, name, (coalesce(period, ''))) DO UPDATE
    SET paused = true, cancel_running = coalesce($4, false), reason = $3, set_by = session_user, set_at = now();
    RETURN CASE WHEN $4 THEN rythmiq.cancel_running($1, ARRAY[$2]) ELSE 0 END;
END
$$;

CREATE FUNCTION rythmiq.resume(scope text, name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_one boolean;
BEGIN
    $2 := rythmiq.check_scope($1, $2);
    UPDATE rythmiq.limits AS l SET paused = false, cancel_running = false, reason = NULL
    WHERE l.scope = $1 AND l.name = $2 AND l.paused;
    found_one := FOUND;
    DELETE FROM rythmiq.limits AS l
    WHERE l.scope = $1 AND l.name = $2 AND l.credits IS NULL
      AND coalesce(l.max_running, l.per_minute) IS NULL;
    RETURN found_one;
END
$$;

CREATE FUNCTION rythmiq.drain(id uuid) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('rythmiq', 'limits');
    UPDATE rythmiq.drivers AS d SET draining_at = coalesce(d.draining_at, now())
    WHERE d.driver_id = id AND d.stopped_at IS NULL AND d.lease_expires_at > now();
    RETURN FOUND;
END
$$;

-- Updates how much of each budget is spent and who has reached it, all in one pass over the costs. It looks for jobs to
-- cancel each time, because a row that another session has locked is skipped.
CREATE FUNCTION rythmiq.check_budgets() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    b record;
    today CONSTANT date := (now() AT TIME ZONE 'UTC')::date;
    this_month CONSTANT date := date_trunc('month', today)::date;
    first_day CONSTANT date := (SELECT CASE WHEN bool_or(l.period = 'all') THEN '-infinity'::date
                                            WHEN bool_or(l.period = 'month') THEN this_month ELSE today END
                                FROM rythmiq.limits AS l);
BEGIN
    FOR b IN
        WITH held AS MATERIALIZED (
            SELECT * FROM rythmiq.limits AS l WHERE l.credits IS NOT NULL
            ORDER BY l.scope, l.name, l.period FOR NO KEY UPDATE SKIP LOCKED
        ), spent AS MATERIALIZED (
            SELECT s.user_id, s.queue, s.group_id, sum(s.credits) AS credits,
                   coalesce(sum(s.credits) FILTER (WHERE s.day >= this_month), 0) AS of_month,
                   coalesce(sum(s.credits) FILTER (WHERE s.day >= today), 0) AS of_day
            FROM rythmiq.spending AS s
            WHERE s.day >= first_day AND EXISTS (SELECT FROM held)
            GROUP BY s.user_id, s.queue, s.group_id
        ), sums AS (
            SELECT h.scope, h.name, h.period, k.who,
                   sum(CASE h.period WHEN 'day' THEN s.of_day WHEN 'month' THEN s.of_month ELSE s.credits END) AS credits
            FROM spent AS s
            CROSS JOIN LATERAL (VALUES ('account', '', ''), ('queue', s.queue, s.queue), ('user', s.user_id, s.user_id),
                                       ('user', '*', s.user_id), ('group', s.group_id::text, s.group_id::text))
                AS k(scope, name, who)
            JOIN held AS h ON h.scope = k.scope AND h.name = k.name
            GROUP BY h.scope, h.name, h.period, k.who
        )
        SELECT h.scope, h.name, h.period, h.cancel_running, coalesce(max(t.credits), 0) AS most,
               CASE WHEN h.credits = 0 THEN ARRAY[h.name]
                    ELSE coalesce(array_agg(t.who ORDER BY t.who) FILTER (WHERE t.credits >= h.credits), '{}') END AS reached
        FROM held AS h LEFT JOIN sums AS t ON t.scope = h.scope AND t.name = h.name AND t.period = h.period
        GROUP BY h.scope, h.name, h.period, h.cancel_running, h.credits
    LOOP
        UPDATE rythmiq.limits AS l SET spent = b.most, over = b.reached
        WHERE l.scope = b.scope AND l.name = b.name AND l.period = b.period
          AND (l.spent, l.over) IS DISTINCT FROM (b.most, b.reached);
        IF b.cancel_running AND b.reached <> '{}' THEN PERFORM rythmiq.cancel_running(b.scope, b.reached); END IF;
    END LOOP;
    PERFORM rythmiq.cancel_running(l.scope, ARRAY[l.name]) FROM rythmiq.limits AS l WHERE l.paused AND l.cancel_running;
END
$$;

-- The limit that camber.max_in_flight=auto has found, for all drivers of the account together.
CREATE TABLE rythmiq.account (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    found_limit double precision,
    lowered_at  timestamptz
);

COMMENT ON TABLE rythmiq.account IS 'one row, which also is what drivers lock while they choose their next jobs';

INSERT INTO rythmiq.account DEFAULT VALUES;

CREATE FUNCTION rythmiq.adjust_account(first double precision, grown double precision, share double precision,
                                       sent_age_s double precision) RETURNS SETOF rythmiq.account
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    sent_at CONSTANT timestamptz := CASE WHEN share IS NOT NULL THEN now() - make_interval(secs => sent_age_s) END;
BEGIN
    -- A refused create that was sent before the limit was last lowered says nothing about the lower limit. So a burst
    -- of refusals lowers it only once, also when several drivers report them.
    RETURN QUERY UPDATE rythmiq.account AS a
        SET found_limit = CASE WHEN sent_at >= coalesce(a.lowered_at, '-infinity')
                               THEN greatest(1, coalesce(a.found_limit, first) * share)
                               ELSE least(100000, coalesce(a.found_limit, first) + grown) END,
            lowered_at = CASE WHEN sent_at >= coalesce(a.lowered_at, '-infinity') THEN now() ELSE a.lowered_at END
        RETURNING a.*;
EXCEPTION WHEN lock_not_available THEN
    RETURN QUERY SELECT a.one, coalesce(a.found_limit, first), a.lowered_at FROM rythmiq.account AS a;
END
$$;

-- -------------------------------------------------------------------------------------------------------------- claims

-- The users from "low" to below "high" who have waiting jobs of a priority and queue, and when the first of each is
-- claimable.
CREATE FUNCTION rythmiq.users_between(of_priority integer, of_queue text, low text, high text)
RETURNS TABLE (who text, visible_at timestamptz) LANGUAGE sql STABLE AS $$
    WITH RECURSIVE walk AS (
        (SELECT coalesce(j.user_id, '') AS who, j.next_visible_at FROM rythmiq.jobs AS j
         WHERE j.state IN ('QUEUED', 'RETRYING') AND j.priority = of_priority AND j.queue = of_queue
           AND coalesce(j.user_id, '') >= low AND (high IS NULL OR coalesce(j.user_id, '') < high)
         ORDER BY coalesce(j.user_id, ''), j.next_visible_at LIMIT 1)
        UNION ALL
        SELECT next.who, next.next_visible_at
        FROM walk CROSS JOIN LATERAL (
            SELECT coalesce(j.user_id, '') AS who, j.next_visible_at FROM rythmiq.jobs AS j
            WHERE j.state IN ('QUEUED', 'RETRYING') AND j.priority = of_priority AND j.queue = of_queue
              AND coalesce(j.user_id, '') > walk.who AND (high IS NULL OR coalesce(j.user_id, '') < high)
            ORDER BY coalesce(j.user_id, ''), j.next_visible_at LIMIT 1
        ) AS next
    )
    SELECT walk.who, walk.next_visible_at FROM walk
$$;

-- The queues that have waiting jobs of a priority. The condition on attempt is always true; it prevents an index-only
-- scan, which would copy all entries of a page to use the first one.
CREATE FUNCTION rythmiq.queues_waiting(of_priority integer) RETURNS SETOF text LANGUAGE sql STABLE AS $$
    WITH RECURSIVE walk AS (
        (SELECT j.queue FROM rythmiq.jobs AS j
         WHERE j.state IN ('QUEUED', 'RETRYING') AND j.priority = of_priority AND j.attempt >= 0
         ORDER BY j.queue LIMIT 1)
        UNION ALL
        SELECT next.queue
        FROM walk CROSS JOIN LATERAL (
            SELECT j.queue FROM rythmiq.jobs AS j
            WHERE j.state IN ('QUEUED', 'RETRYING') AND j.priority = of_priority AND j.queue > walk.queue
              AND j.attempt >= 0
            ORDER BY j.queue LIMIT 1
        ) AS next
    )
    SELECT walk.queue FROM walk
$$;

-- How many more jobs each limited scope has room for; if a scope has several rows, the smallest counts. "used" has
-- running jobs and the attempts that began within the last minute.
CREATE FUNCTION rythmiq.rooms(moment timestamptz) RETURNS TABLE (scope text, name text, room bigint)
LANGUAGE sql STABLE AS $$
    WITH used AS (
        SELECT coalesce(j.user_id, '') AS user_id, j.queue, j.group_id, 1 AS running, 0 AS begun
        FROM rythmiq.jobs AS j WHERE j.state = 'RUNNING'
        UNION ALL
        SELECT coalesce(j.user_id, ''), j.queue, j.group_id, 0, 1
        FROM rythmiq.attempts AS a JOIN rythmiq.jobs AS j USING (job_id)
        WHERE a.started_at > moment - interval '1 minute'
          AND EXISTS (SELECT FROM rythmiq.limits AS l WHERE l.per_minute IS NOT NULL)
    ), scopes AS MATERIALIZED (
        SELECT CASE grouping(u.queue, u.user_id, u.group_id) WHEN 7 THEN 'account' WHEN 3 THEN 'queue' WHEN 5 THEN 'user'
                                                             ELSE 'group' END AS scope,
               coalesce(u.queue, u.user_id, u.group_id::text, '') AS name, sum(u.running) AS running, sum(u.begun) AS begun
        FROM used AS u
        GROUP BY GROUPING SETS ((), (u.queue), (u.user_id), (u.group_id))
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
                ELSE least(coalesce(b.max_running, CASE WHEN b.scope = 'user' THEN e.max_running END) - coalesce(s.running, 0),
                           coalesce(b.per_minute, CASE WHEN b.scope = 'user' THEN e.per_minute END) - coalesce(s.begun, 0))
                END::bigint
    FROM bounds AS b LEFT JOIN scopes AS s ON s.scope = b.scope AND s.name = b.name, each_user AS e
    UNION ALL
    SELECT s.scope, s.name,
           CASE WHEN e.paused THEN 0 ELSE least(e.max_running - s.running, e.per_minute - s.begun) END::bigint
    FROM scopes AS s, each_user AS e
    WHERE s.scope = 'user' AND (e.paused OR coalesce(e.max_running, e.per_minute) IS NOT NULL)
      AND NOT EXISTS (SELECT FROM bounds AS b WHERE b.scope = s.scope AND b.name = s.name)
    UNION ALL
    SELECT 'user', o.who, 0 FROM each_user AS e, unnest(e.over) AS o(who)
    UNION ALL
    SELECT 'user', '*', CASE WHEN e.paused THEN 0 ELSE least(e.max_running, e.per_minute) END FROM each_user AS e
$$;

-- Locks and returns the next jobs to be claimed: the highest priority first, users in turn, each user's oldest first,
-- and no job for which a limit has no room. Drivers choose one after the other, so that no two use the same room.
CREATE FUNCTION rythmiq.next_jobs(served text[], wanted integer, account integer, age_s double precision, after text,
                                  skipped uuid[], only_one uuid, at timestamptz) RETURNS SETOF uuid
LANGUAGE plpgsql ROWS 100 SET lock_timeout = '2s' AS $$
DECLARE
    moment CONSTANT timestamptz := coalesce(at, now());
    age CONSTANT interval := make_interval(secs => age_s);
    most_lanes CONSTANT integer := greatest(2 * wanted, 100);
    room bigint := wanted;
    users jsonb := '{}';
    queues jsonb := '{}';
    groups jsonb := '{}';
    each_user bigint;
    slices jsonb;
    depth integer := 1;
    deepest integer;
    share bigint;
    lane_queues text[];
    lane_users text[];
    chosen uuid[];
    cut boolean;
    bounded boolean;
BEGIN
    bounded := EXISTS (SELECT FROM rythmiq.limits);
    IF bounded OR account IS NOT NULL THEN
        BEGIN
            -- A row rather than an advisory lock, because any login can take and keep an advisory lock.
            PERFORM FROM rythmiq.account FOR NO KEY UPDATE;
        EXCEPTION WHEN lock_not_available THEN
            RETURN;
        END;
    END IF;
    IF bounded THEN
        SELECT coalesce(jsonb_object_agg(r.name, r.free) FILTER (WHERE r.scope = 'user' AND r.name <> '*'), '{}'),
               coalesce(jsonb_object_agg(r.name, r.free) FILTER (WHERE r.scope = 'queue'), '{}'),
               coalesce(jsonb_object_agg(r.name, r.free) FILTER (WHERE r.scope = 'group' AND r.name <> ''), '{}'),
               min(r.free) FILTER (WHERE r.scope = 'user' AND r.name = '*'),
               least(room, min(r.free) FILTER (WHERE r.scope = 'account'))
        INTO users, queues, groups, each_user, room
        FROM (SELECT x.scope, x.name, min(x.room) AS free FROM rythmiq.rooms(moment) AS x
              WHERE x.room IS NOT NULL GROUP BY x.scope, x.name) AS r;
    END IF;
    IF account IS NOT NULL AND NOT EXISTS (SELECT FROM rythmiq.limits AS l
                                           WHERE l.scope = 'account' AND l.max_running IS NOT NULL) THEN
        room := least(room, account - (SELECT count(*) FROM rythmiq.jobs AS j WHERE j.state = 'RUNNING'));
    END IF;
    IF room <= 0 THEN
        RETURN;
    END IF;

    -- Jobs below the highest priority count as one step higher for each age_s that they have waited. A slice is a
    -- priority, the class that its jobs count as, and the range of next_visible_at that belongs to that class.
    WITH RECURSIVE heads AS (
        (SELECT j.priority, j.next_visible_at, 0 AS rank FROM rythmiq.jobs AS j
         WHERE j.state IN ('QUEUED', 'RETRYING') ORDER BY j.priority DESC, j.next_visible_at LIMIT 1)
        UNION ALL
        SELECT next.priority, next.next_visible_at, heads.rank + (heads.next_visible_at <= moment)::integer
        FROM heads CROSS JOIN LATERAL (
            SELECT j.priority, j.next_visible_at FROM rythmiq.jobs AS j
            WHERE j.state IN ('QUEUED', 'RETRYING') AND j.priority < heads.priority
            ORDER BY j.priority DESC, j.next_visible_at LIMIT 1
        ) AS next
        WHERE heads.rank < 99
    )
    SELECT jsonb_agg(jsonb_build_object(
               'class', h.rank - k.steps, 'priority', h.priority,
               'until', CASE WHEN k.steps = 0 THEN moment ELSE moment - k.steps * age END,
               'since', CASE WHEN age IS NOT NULL AND k.steps < h.rank THEN moment - (k.steps + 1) * age END))
    INTO slices
    FROM heads AS h
    CROSS JOIN LATERAL generate_series(0, CASE WHEN age IS NULL THEN 0 ELSE h.rank END) AS k(steps)
    WHERE h.next_visible_at <= CASE WHEN k.steps = 0 THEN moment ELSE moment - k.steps * age END;
    IF slices IS NULL THEN
        RETURN;
    END IF;
    SELECT max((s ->> 'class')::integer) INTO deepest FROM jsonb_array_elements(slices) AS s;

    -- With only one user in one queue there are no turns to take.
    IF NOT bounded AND jsonb_array_length(slices) = 1 THEN
        SELECT array_agg(l.queue), array_agg(l.who) INTO lane_queues, lane_users
        FROM (
            SELECT q.queue, u.who
            FROM (SELECT DISTINCT s.queue FROM unnest(served) AS s(queue)
                  UNION ALL
                  SELECT w.queue FROM rythmiq.queues_waiting((slices -> 0 ->> 'priority')::integer) AS w(queue)
                  WHERE served IS NULL) AS q
            CROSS JOIN LATERAL (
                SELECT w.who
                FROM rythmiq.users_between((slices -> 0 ->> 'priority')::integer, q.queue, '', NULL) AS w LIMIT 2
            ) AS u
            LIMIT 2
        ) AS l;
        IF lane_users IS NULL THEN
            RETURN;
        END IF;
        IF cardinality(lane_users) = 1 THEN
            RETURN QUERY
                SELECT j.job_id FROM rythmiq.jobs AS j
                WHERE j.state IN ('QUEUED', 'RETRYING') AND j.priority = (slices -> 0 ->> 'priority')::integer
                  AND j.queue = lane_queues[1] AND coalesce(j.user_id, '') = lane_users[1] AND j.next_visible_at <= moment
                  AND (only_one IS NULL OR j.job_id = only_one)
                  AND (skipped IS NULL OR j.job_id <> ALL(skipped))
                ORDER BY j.next_visible_at, j.job_id
                LIMIT room
                FOR NO KEY UPDATE SKIP LOCKED;
            RETURN;
        END IF;
    END IF;

    LOOP
        WITH slice AS MATERIALIZED (
            SELECT s.* FROM jsonb_to_recordset(slices) AS s(class integer, priority integer, since timestamptz, until timestamptz)
            WHERE s.class < depth
        ), open_queues AS MATERIALIZED (
            SELECT s.*, q.queue, coalesce((queues ->> q.queue)::bigint, room) AS of_queue
            FROM slice AS s
            CROSS JOIN LATERAL (
                SELECT DISTINCT u.queue FROM unnest(served) AS u(queue)
                UNION ALL
                SELECT w.queue FROM rythmiq.queues_waiting(s.priority) AS w(queue) WHERE served IS NULL
            ) AS q
            WHERE coalesce((queues ->> q.queue)::bigint, 1) > 0
        ), lanes AS MATERIALIZED (
            SELECT o.*, u.who, coalesce((users ->> u.who)::bigint, each_user, room) AS of_user
            FROM (SELECT * FROM open_queues ORDER BY class, random()) AS o
            CROSS JOIN LATERAL (
                SELECT w.* FROM rythmiq.users_between(o.priority, o.queue, coalesce(after, ''), NULL) AS w
                UNION ALL
                SELECT w.* FROM rythmiq.users_between(o.priority, o.queue, '', after) AS w WHERE after > ''
            ) AS u
            WHERE coalesce((users ->> u.who)::bigint, each_user, 1) > 0 AND u.visible_at <= o.until
              -- Only users with a claimable job become lanes: the others would use up most_lanes.
              AND (groups = '{}' OR EXISTS (
                  SELECT FROM rythmiq.jobs AS j
                  WHERE j.state IN ('QUEUED', 'RETRYING') AND j.priority = o.priority AND j.queue = o.queue
                    AND coalesce(j.user_id, '') = u.who AND j.next_visible_at <= o.until
                    AND coalesce((groups ->> j.group_id::text)::bigint, 1) > 0))
            LIMIT most_lanes
        ), used AS MATERIALIZED (
            SELECT coalesce(r.user_id, '') AS who, count(*) AS running
            FROM rythmiq.jobs AS r WHERE r.state = 'RUNNING' GROUP BY 1
        ), counted AS MATERIALIZED (
            SELECT l.*, least(l.of_user, l.of_queue, room,
                              coalesce(share, greatest(2 * room / count(*) OVER (), 1))) AS part,
                   least(l.of_user, l.of_queue, room) AS whole,
                   coalesce(u.running, 0) AS running
            FROM lanes AS l LEFT JOIN used AS u USING (who)
        ), candidates AS MATERIALIZED (
            SELECT c.*, first.*
            FROM counted AS c
            CROSS JOIN LATERAL (
                SELECT j.job_id, coalesce(j.group_id::text, '') AS group_id, j.next_visible_at
                FROM rythmiq.jobs AS j
                WHERE j.state IN ('QUEUED', 'RETRYING') AND j.priority = c.priority AND j.queue = c.queue
                  AND coalesce(j.user_id, '') = c.who AND (c.since IS NULL OR j.next_visible_at > c.since) AND j.next_visible_at <= c.until
                  AND (groups = '{}' OR coalesce((groups ->> j.group_id::text)::bigint, 1) > 0)
                  AND (only_one IS NULL OR j.job_id = only_one)
                  AND (skipped IS NULL OR j.job_id <> ALL(skipped))
                ORDER BY j.next_visible_at, j.job_id
                LIMIT c.part
                FOR NO KEY UPDATE SKIP LOCKED
            ) AS first
        ), turns AS (
            SELECT c.*, c.running + row_number() OVER (PARTITION BY c.class, c.who ORDER BY c.next_visible_at, c.job_id) AS turn
            FROM candidates AS c
        ), fitting AS (
            SELECT t.*, row_number() OVER (PARTITION BY t.who ORDER BY t.class, t.turn, t.next_visible_at, t.job_id) AS nth_of_user,
                   row_number() OVER (PARTITION BY t.queue ORDER BY t.class, t.turn, t.next_visible_at, t.job_id) AS nth_of_queue,
                   row_number() OVER (PARTITION BY t.group_id ORDER BY t.class, t.turn, t.next_visible_at, t.job_id) AS nth_of_group
            FROM turns AS t
        ), taken AS (
            SELECT f.job_id, f.class, f.turn, f.next_visible_at FROM fitting AS f
            WHERE f.nth_of_user <= f.of_user AND f.nth_of_queue <= f.of_queue
              AND f.nth_of_group <= coalesce((groups ->> f.group_id)::bigint, room)
            ORDER BY f.class, f.turn, f.next_visible_at, f.job_id
            LIMIT room
        )
        SELECT array_agg(t.job_id ORDER BY t.class, t.turn, t.next_visible_at, t.job_id),
               EXISTS (SELECT FROM candidates AS c WHERE c.part < c.whole
                       GROUP BY c.class, c.priority, c.queue, c.who, c.part HAVING count(*) >= c.part)
        INTO chosen, cut
        FROM taken AS t;
        EXIT WHEN coalesce(cardinality(chosen), 0) >= room OR (NOT cut AND depth > deepest);
        IF cut THEN share := room; ELSE depth := depth * 8; END IF;
    END LOOP;
    RETURN QUERY SELECT unnest(chosen);
END
$$;

-- The roles that a login is a member of, itself first, and whether it is the tables' owner or an operator. NULL and
-- false for a login that was dropped.
CREATE FUNCTION rythmiq.roles_of(login name) RETURNS TABLE (roles name[], trusted boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(r.rolname ORDER BY r.rolname <> login, r.rolname),
           coalesce(bool_or(r.rolname = 'rythmiq_operator'
                            OR r.oid = (SELECT c.relowner FROM pg_class AS c WHERE c.oid = 'rythmiq.jobs'::regclass)), false)
    FROM pg_roles AS me JOIN pg_roles AS r ON pg_has_role(me.oid, r.oid, 'MEMBER')
    WHERE me.rolname = login
$$;

REVOKE EXECUTE ON FUNCTION rythmiq.place_group(uuid), rythmiq.check_scope(text, text),
    rythmiq.set_limit(text, text, integer, integer), rythmiq.unset_limit(text, text),
    rythmiq.set_budget(text, text, double precision, text, boolean), rythmiq.unset_budget(text, text, text),
    rythmiq.cancel_running(text, text[]), rythmiq.pause(text, text, text, boolean), rythmiq.resume(text, text),
    rythmiq.drain(uuid), rythmiq.check_budgets(), rythmiq.roles_of(name),
    rythmiq.adjust_account(double precision, double precision, double precision, double precision) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION rythmiq.jobs_priced(), rythmiq.limits_changed(), rythmiq.group_gone() FROM PUBLIC;
