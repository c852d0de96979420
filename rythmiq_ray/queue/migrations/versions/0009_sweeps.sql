-- Large sweeps: a scheduled one is enqueued by one statement, and new members are counted without being sorted.

-- Enqueues the members of a scheduled sweep in its new group. If all differ only in command, name and the values of
-- their parameters, rythmiq.enqueue checks and adds the first one, and one statement the others. Members that are not
-- plainly right are all left to rythmiq.enqueue, which says what is wrong.
CREATE FUNCTION rythmiq.enqueue_members(made_group uuid, jobs jsonb, marks jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    head CONSTANT jsonb := jobs -> 0;
    own CONSTANT text[] := ARRAY['command', 'name', 'params'];
    shared CONSTANT jsonb := CASE WHEN jsonb_typeof(head) = 'object' THEN head - own END;
    one_by_one boolean;
    line jsonb;
    first uuid;
BEGIN
    one_by_one := head ?| ARRAY['unique_key', 'after', 'after_ended', 'inputs', 'secrets']
        OR jsonb_typeof(coalesce(head -> 'env', '{}')) <> 'object'
        OR EXISTS (
            SELECT FROM jsonb_array_elements(jobs) AS m(line)
            WHERE CASE WHEN jsonb_typeof(m.line) <> 'object' OR jsonb_typeof(m.line -> 'command') IS DISTINCT FROM 'string'
                            OR jsonb_typeof(coalesce(m.line -> 'name', '""')) <> 'string'
                            OR jsonb_typeof(coalesce(m.line -> 'params', '{}')) <> 'object' THEN true
                       ELSE m.line - own IS DISTINCT FROM shared OR (m.line ->> 'command') !~ '\S'
                            OR octet_length(m.line::text) > 131071  -- The smallest limit for any text or variable.
                            OR EXISTS (SELECT FROM jsonb_each(m.line -> 'params') AS p
                                       WHERE jsonb_typeof(p.value) <> 'string' OR (head -> 'params' ? p.key) IS NOT TRUE)
                  END);
    FOR line IN SELECT m.line FROM jsonb_array_elements(jobs) WITH ORDINALITY AS m(line, place)
                WHERE one_by_one OR m.place = 1 ORDER BY m.place LOOP
        first := rythmiq.enqueue(line || jsonb_build_object('group', made_group,
            'labels', coalesce(line -> 'labels', '{}') || marks));
    END LOOP;
    IF NOT one_by_one THEN
        INSERT INTO rythmiq.jobs (job_id, user_id, queue, priority, spec, max_attempts, next_visible_at, name, labels, params,
                                  group_id, group_index, notify, traceparent, state, enqueued_by)
        SELECT rythmiq.new_job_id(), j.user_id, j.queue, j.priority,
               j.spec - 'env' || jsonb_build_object('command', m.line -> 'command')
                   || CASE WHEN e.env = '{}' THEN '{}' ELSE jsonb_build_object('env', e.env) END,
               j.max_attempts, j.next_visible_at, rythmiq.check_text(m.line, 'name', 1, 200), j.labels, m.line -> 'params',
               j.group_id, j.group_index + m.place - 1, j.notify, j.traceparent,
               CASE WHEN coalesce(g.places, g.max_parallel) IS NULL THEN 'QUEUED' ELSE 'BLOCKED' END, j.enqueued_by
        FROM rythmiq.jobs AS j JOIN rythmiq.groups AS g USING (group_id)
        CROSS JOIN jsonb_array_elements(jobs) WITH ORDINALITY AS m(line, place)
        CROSS JOIN LATERAL (SELECT coalesce(m.line -> 'env', '{}') || coalesce(m.line -> 'params', '{}') AS env) AS e
        WHERE j.job_id = first AND m.place > 1
        ORDER BY m.place;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION rythmiq.enqueue_members(uuid, jsonb, jsonb) FROM PUBLIC;

-- Only the loop over the members changes in the one, and in the other only how the groups of new rows are counted,
-- which sorted all of them.
DO $do$
DECLARE
    change record;
    was text;
BEGIN
    FOR change IN SELECT * FROM (VALUES
        ('rythmiq.run_schedule(text, timestamptz)',
$was$        FOR line IN SELECT jsonb_array_elements(s.sweep -> 'jobs') LOOP
            PERFORM rythmiq.enqueue(line || jsonb_build_object('group', made_group,
                'labels', coalesce(line -> 'labels', '{}') || marks));
        END LOOP;
$was$,
$now$        PERFORM rythmiq.enqueue_members(made_group, s.sweep -> 'jobs', marks);
$now$),
        ('rythmiq.jobs_inserted()', 'known bigint;', 'known bigint; named bigint;'),
        ('rythmiq.jobs_inserted()',
         'count(*) INTO grown, known FROM', 'count(*), (SELECT count(*) FROM more) INTO grown, known, named FROM'),
        ('rythmiq.jobs_inserted()', '(SELECT count(DISTINCT n.group_id) FROM new_rows AS n)', 'named')) AS c(function, old, new)
    LOOP
        was := pg_get_functiondef(change.function::regprocedure);
        IF strpos(was, change.old) = 0 THEN
            RAISE EXCEPTION USING MESSAGE = change.function || ' is not that of revision 0008';
        END IF;
        EXECUTE replace(was, change.old, change.new);
    END LOOP;
END
$do$;
