-- For programs in any language: functions to enqueue and cancel, and a view to follow jobs. And the queues that a
-- driver serves.

ALTER TABLE rythmiq.drivers ADD COLUMN queues text[];

COMMENT ON COLUMN rythmiq.drivers.queues IS 'what it serves; NULL = all, and drivers from before this column';

CREATE FUNCTION rythmiq.unserved(queues text[]) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT q.queue FROM unnest(queues) AS q(queue)
    WHERE EXISTS (SELECT FROM rythmiq.drivers AS d WHERE d.stopped_at IS NULL AND d.lease_expires_at > now())
      AND NOT EXISTS (
        SELECT FROM rythmiq.drivers AS d
        WHERE d.stopped_at IS NULL AND d.lease_expires_at > now() AND (d.queues IS NULL OR q.queue = ANY(d.queues)))
$$;

COMMENT ON FUNCTION rythmiq.unserved IS 'of these queues those that no living driver serves, where there is one at all';

CREATE FUNCTION rythmiq.new_job_id() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    -- Version 7 of RFC 9562, with fractions of a millisecond after the milliseconds: ids made later sort later.
    SELECT (lpad(to_hex(floor(t.us / 1000)::bigint), 12, '0') || '7'
            || lpad(to_hex((mod(t.us, 1000) * 4096 / 1000)::integer), 3, '0')
            || substr(replace(gen_random_uuid()::text, '-', ''), 17))::uuid
    FROM (SELECT floor(extract(epoch FROM clock_timestamp()) * 1000000) AS us) AS t
$$;

CREATE FUNCTION rythmiq.refuse(field text, said text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = field || ': ' || said, COLUMN = field;
END
$$;

CREATE FUNCTION rythmiq.duration_s(value jsonb, field text) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found text[];
    said CONSTANT text := 'must be seconds, or a text such as 90s, 2h or 1d';
BEGIN
    IF jsonb_typeof(value) = 'number' THEN
        -- A JSON number may be too large for a double.
        RETURN round(least(greatest((value #>> '{}')::numeric, -1e12), 1e12), 9)::double precision;
    END IF;
    found := regexp_match(coalesce(CASE WHEN jsonb_typeof(value) = 'string' THEN value #>> '{}' END, ''),
                          '^\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h|d|w)?\s*$');
    IF found IS NULL THEN
        PERFORM rythmiq.refuse(field, said);
    END IF;
    RETURN found[1]::double precision * CASE coalesce(found[2], 's')
        WHEN 'ms' THEN 0.001 WHEN 's' THEN 1 WHEN 'm' THEN 60 WHEN 'h' THEN 3600 WHEN 'd' THEN 86400 ELSE 604800 END;
END
$$;

CREATE FUNCTION rythmiq.check_text(job jsonb, field text, lowest integer, highest integer) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    value CONSTANT jsonb := job -> field;
    found CONSTANT text := value #>> '{}';
BEGIN
    IF value IS NULL THEN
        RETURN NULL;
    END IF;
    IF jsonb_typeof(value) <> 'string' THEN
        PERFORM rythmiq.refuse(field, 'must be a string');
    END IF;
    IF length(found) NOT BETWEEN lowest AND highest THEN
        PERFORM rythmiq.refuse(field, 'must have ' || lowest || ' to ' || highest || ' characters');
    END IF;
    IF found ~ '[\x01-\x1f\x7f-\x9f]' THEN
        PERFORM rythmiq.refuse(field, 'holds a control character');
    END IF;
    RETURN found;
END
$$;

CREATE FUNCTION rythmiq.check_integer(job jsonb, field text, lowest integer, highest integer, otherwise integer)
RETURNS integer LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    value CONSTANT jsonb := job -> field;
BEGIN
    IF value IS NULL THEN
        RETURN otherwise;
    END IF;
    IF jsonb_typeof(value) <> 'number' OR (value #>> '{}')::numeric <> trunc((value #>> '{}')::numeric)
       OR (value #>> '{}')::numeric NOT BETWEEN lowest AND highest THEN
        PERFORM rythmiq.refuse(field, 'must be a whole number from ' || lowest || ' to ' || highest);
    END IF;
    RETURN (value #>> '{}')::numeric::integer;
END
$$;

CREATE FUNCTION rythmiq.check_texts(job jsonb, field text, pattern text, said text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    value CONSTANT jsonb := coalesce(job -> field, '[]');
    item jsonb;
    at integer := 0;
BEGIN
    IF jsonb_typeof(value) <> 'array' THEN
        PERFORM rythmiq.refuse(field, 'must be a list');
    END IF;
    IF jsonb_array_length(value) > 1000 THEN
        PERFORM rythmiq.refuse(field, 'has more than 1000 entries');
    END IF;
    FOR item IN SELECT jsonb_array_elements(value) LOOP
        IF jsonb_typeof(item) <> 'string' OR (item #>> '{}') !~ pattern OR length(item #>> '{}') > 900 THEN
            PERFORM rythmiq.refuse(field || '[' || at || ']', said);
        END IF;
        at := at + 1;
    END LOOP;
    RETURN value;
END
$$;

CREATE FUNCTION rythmiq.check_pairs(job jsonb, field text, pattern text, said text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    value CONSTANT jsonb := coalesce(job -> field, '{}');
    pair record;
BEGIN
    IF jsonb_typeof(value) <> 'object' THEN
        PERFORM rythmiq.refuse(field, 'must be an object');
    END IF;
    FOR pair IN SELECT * FROM jsonb_each(value) LOOP
        IF pair.key !~ pattern THEN
            PERFORM rythmiq.refuse(field || '.' || pair.key, said);
        END IF;
        IF jsonb_typeof(pair.value) <> 'string' THEN
            PERFORM rythmiq.refuse(field || '.' || pair.key, 'must be a string');
        END IF;
    END LOOP;
    RETURN value;
END
$$;

-- Whether a file may have this name, relative to the working directory. Characters that change the direction of text
-- are among those that it must not contain.
CREATE FUNCTION rythmiq.is_name(name text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT octet_length(name) <= 900 AND name !~ '(^|/)\.{0,2}(/|$)'
       AND name !~ '[\x01-\x1f\x7f-\x9f\\\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]'
       AND name !~ '(^|/)[\s\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]|[\s\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000](/|$)'
       AND NOT EXISTS (SELECT FROM unnest(string_to_array(name, '/')) AS part WHERE octet_length(part) > 255)
$$;

CREATE FUNCTION rythmiq.check_outputs(job jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    value CONSTANT jsonb := rythmiq.check_texts(job, 'outputs', '', 'must be a string');
    path text;
    paths text[] := '{}';
BEGIN
    FOR place IN 0 .. jsonb_array_length(value) - 1 LOOP
        path := regexp_replace(regexp_replace(value ->> place, '^(\./)+', ''), '/$', '');
        IF NOT rythmiq.is_name(path) THEN
            PERFORM rythmiq.refuse('outputs[' || place || ']', 'must be a relative glob that stays inside');
        END IF;
        IF path !~ '[*?\[]' THEN
            path := lower(path);
            IF path ~ '^((run\.sh|job\.json|log\.txt|manifest\.json)(/|$)|rythmiq-)' THEN
                PERFORM rythmiq.refuse('outputs[' || place || ']', 'is a name that rythmiq uses itself');
            END IF;
        END IF;
        IF path = ANY(paths) THEN
            PERFORM rythmiq.refuse('outputs[' || place || ']', 'is there twice');
        END IF;
        paths := paths || path;
    END LOOP;
    RETURN value;
END
$$;

-- The jobs or the group that a reference means, among those that the login may see. A reference is an id, the name of
-- jobs in the same group, or the name of a group. The login's own groups come first, so that no other login's group can
-- take over a name.
CREATE FUNCTION rythmiq.referred(reference text, within uuid) RETURNS TABLE (id uuid, is_job boolean)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF reference ~* '^[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}$' THEN
        RETURN QUERY SELECT j.job_id, true FROM rythmiq.job_status AS j WHERE j.job_id = reference::uuid
            UNION ALL SELECT g.group_id, false FROM rythmiq.groups AS g
            WHERE g.group_id = reference::uuid AND (g.enqueued_by = session_user OR rythmiq.sees_all(session_user));
        RETURN;
    END IF;
    RETURN QUERY SELECT j.job_id, true FROM rythmiq.job_status AS j WHERE j.group_id = within AND j.name = reference;
    IF NOT FOUND THEN
        RETURN QUERY SELECT g.group_id, false FROM rythmiq.groups AS g
            WHERE g.name = reference AND (g.enqueued_by = session_user OR rythmiq.sees_all(session_user))
            ORDER BY g.enqueued_by IS DISTINCT FROM rythmiq.enqueuer(), g.created_at DESC LIMIT 1;
    END IF;
END
$$;

-- The given groups, and every group that these jobs and groups wait for, directly or through others. It includes the
-- groups that cancelled jobs would wait for again after a retry.
CREATE FUNCTION rythmiq.leads_to(jobs uuid[], groups uuid[]) RETURNS SETOF uuid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE above(job_id, group_id) AS (
        SELECT unnest(jobs), NULL::uuid
        UNION
        SELECT NULL::uuid, unnest(groups)
        UNION
        SELECT next.job_id, next.group_id
        FROM above CROSS JOIN LATERAL (
            SELECT d.on_job_id AS job_id, d.on_group_id AS group_id
            FROM rythmiq.dependencies AS d WHERE d.job_id = above.job_id AND NOT d.satisfied
            UNION ALL
            SELECT j.job_id, NULL FROM rythmiq.jobs AS j
            WHERE j.group_id = above.group_id AND j.state IN ('BLOCKED', 'CANCELLED')
        ) AS next
    )
    SELECT above.group_id FROM above WHERE above.group_id IS NOT NULL
$$;

CREATE FUNCTION rythmiq.check_inputs(job jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    value CONSTANT jsonb := coalesce(job -> 'inputs', '[]');
    port CONSTANT text := '(:([0-5]?[0-9]{0,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?';
    item jsonb;
    uri text;
    name text;
    own text;
    several boolean;
    key text;
    keys text[] := '{}';
    made jsonb := '[]';
    at integer := 0;
BEGIN
    IF jsonb_typeof(value) <> 'array' THEN
        PERFORM rythmiq.refuse('inputs', 'must be a list of objects with uri and name');
    END IF;
    IF jsonb_array_length(value) > 1000 THEN
        PERFORM rythmiq.refuse('inputs', 'has more than 1000 entries');
    END IF;
    FOR item IN SELECT jsonb_array_elements(value) LOOP
        IF jsonb_typeof(item) <> 'object' OR jsonb_typeof(item -> 'uri') IS DISTINCT FROM 'string' THEN
            PERFORM rythmiq.refuse('inputs[' || at || '].uri', 'is missing');
        END IF;
        SELECT k INTO key FROM jsonb_object_keys(item) AS k WHERE k NOT IN ('uri', 'name') ORDER BY k LIMIT 1;
        IF FOUND THEN
            PERFORM rythmiq.refuse('inputs[' || at || '].' || key, 'is not a field of an input');
        END IF;
        IF coalesce(jsonb_typeof(item -> 'name'), 'null') NOT IN ('null', 'string') THEN
            PERFORM rythmiq.refuse('inputs[' || at || '].name', 'must be a string');
        END IF;
        uri := item ->> 'uri';
        IF uri !~ ('^(s3://[A-Za-z0-9][A-Za-z0-9._-]{0,254}/+[^/]|file://(localhost)?/(.*[^/])$|(job|group):[^/]+/.'
                   || '|https?://([^\s/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])' || port || '([/?#]\S*)?$)')
           OR uri ~ '[\x01-\x1f\x7f-\x9f]' OR uri ~ '^s3://.*/\.{1,2}(/|$)' OR octet_length(uri) > 8192 THEN
            PERFORM rythmiq.refuse('inputs[' || at || '].uri',
                'must be s3://bucket/key, file:///path, http://…, https://…, job:ID/GLOB or group:ID/GLOB');
        END IF;
        several := uri ~ '^(group:|job:.*[*?\[]|s3://.*([*]|/$))';
        own := CASE
            WHEN several AND uri ~ '^s3://.*/$' THEN regexp_replace(uri, '^.*/([^/]+)/+$', '\1/')
            WHEN several THEN './'
            ELSE regexp_replace(regexp_replace(uri, CASE WHEN uri ~ '^http' THEN '[?#].*$' ELSE '$^' END, ''), '^.*/', '')
        END;
        -- A single file that goes into a folder keeps its own name there; several files always go into a folder.
        name := coalesce(item ->> 'name', own);
        name := CASE WHEN name = '' THEN name
                     WHEN several THEN regexp_replace(name, '/?$', '/')
                     WHEN name ~ '/$' THEN regexp_replace(name, '^\./', '') || own ELSE name END;
        key := lower(normalize(regexp_replace(name, '/$', '')));
        IF name <> './' AND NOT rythmiq.is_name(regexp_replace(name, '/$', ''))
           OR key ~ '^((run\.sh|job\.json)(/|$)|rythmiq-)' THEN
            PERFORM rythmiq.refuse('inputs[' || at || '].name', 'is no name of a file in the working directory');
        END IF;
        IF NOT several THEN
            IF EXISTS (SELECT FROM unnest(keys) AS k
                       WHERE k = key OR starts_with(k, key || '/') OR starts_with(key, k || '/')) THEN
                PERFORM rythmiq.refuse('inputs[' || at || '].name', 'clashes with another input');
            END IF;
            keys := keys || key;
        END IF;
        made := made || jsonb_build_array(jsonb_build_object('uri', uri, 'name', name));
        at := at + 1;
    END LOOP;
    RETURN made;
END
$$;

CREATE FUNCTION rythmiq.enqueue(job jsonb) RETURNS uuid LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    -- Names that bash or rythmiq uses itself.
    taken CONSTANT text := '(?!(BASH(_(ALIASES|ARGC|ARGV|CMDS|ENV|LINENO|SOURCE|VERSINFO|VERSION)|OPTS)?|EUID|IFS|OLDPWD'
        || '|OPTERR|OPTIND|PPID|PS4|PWD|SHELLOPTS|SHLVL|UID)$|[Rr][Yy][Tt][Hh][Mm][Ii][Qq]_)';
    env_name CONSTANT text := '^' || taken || '[A-Za-z_][A-Za-z0-9_]{0,254}$';
    made CONSTANT uuid := rythmiq.new_job_id();
    known CONSTANT text[] := ARRAY['command', 'engine', 'node_size', 'num_nodes', 'gpu', 'inputs', 'outputs', 'env', 'secrets',
        'timeout', 'timeout_s', 'retry_exit_codes', 'queue', 'priority', 'max_attempts', 'user_id', 'unique_key', 'delay',
        'delay_s', 'name', 'labels', 'params', 'group', 'after', 'after_ended', 'notify', 'traceparent'];
    spec jsonb;
    value jsonb;
    word text;
    wanted text;
    params jsonb;
    labels jsonb;
    delay_s double precision := 0;
    unique_key text;
    joined uuid;
    grouped boolean := false;
    limited boolean := false;
    index integer;
    awaited uuid[] := '{}';
    awaited_groups uuid[] := '{}';
    waits integer := 0;
    need_ids uuid[] := '{}';
    need_jobs boolean[] := '{}';
    need_words text[] := '{}';
    holder uuid;
    added uuid;
    place integer;
BEGIN
    IF job IS NULL OR jsonb_typeof(job) <> 'object' THEN
        PERFORM rythmiq.refuse('job', 'must be an object');
    END IF;
    SELECT key INTO word FROM jsonb_object_keys(job) AS key WHERE NOT key = ANY(known) ORDER BY key LIMIT 1;
    IF FOUND THEN
        PERFORM rythmiq.refuse(word, 'is not a field of a job');
    END IF;

    -- What is null is as if it were left out.
    SELECT coalesce(jsonb_object_agg(f.key, f.value), '{}') INTO job
    FROM jsonb_each(job) AS f WHERE jsonb_typeof(f.value) <> 'null';

    value := job -> 'command';
    IF jsonb_typeof(value) IS DISTINCT FROM 'string' THEN
        PERFORM rythmiq.refuse('command', CASE WHEN value IS NULL THEN 'is missing' ELSE 'must be a string' END);
    END IF;
    IF (job ->> 'command') !~ '\S' THEN
        PERFORM rythmiq.refuse('command', 'is empty');
    END IF;
    IF octet_length(job ->> 'command') > 262144 THEN
        PERFORM rythmiq.refuse('command', 'has more than 262144 bytes');
    END IF;
    spec := jsonb_build_object('command', job ->> 'command');
    FOREACH word IN ARRAY ARRAY['engine', 'node_size'] LOOP
        wanted := coalesce(rythmiq.check_text(job, word, 1, 50), CASE word WHEN 'engine' THEN 'base' ELSE 'xsmall' END);
        IF wanted !~ '^[A-Za-z0-9_]+$' THEN
            PERFORM rythmiq.refuse(word, 'there is no ' || quote_literal(wanted));
        END IF;
        spec := spec || jsonb_build_object(word, wanted);
    END LOOP;
    IF job ? 'num_nodes' THEN
        spec := spec || jsonb_build_object('num_nodes', rythmiq.check_integer(job, 'num_nodes', 1, 100, 1));
    END IF;
    IF job ? 'gpu' THEN
        IF jsonb_typeof(job -> 'gpu') <> 'boolean' THEN
            PERFORM rythmiq.refuse('gpu', 'must be true or false');
        END IF;
        spec := spec || jsonb_build_object('gpu', job -> 'gpu');
    END IF;
    IF job ? 'outputs' THEN
        spec := spec || jsonb_build_object('outputs', rythmiq.check_outputs(job));
    END IF;
    IF job ? 'params' THEN
        params := rythmiq.check_pairs(job, 'params', env_name, 'is no name of a variable, or one that is taken');
    END IF;
    value := rythmiq.check_pairs(job, 'env', env_name, 'is no name of a variable, or one that is taken')
             || coalesce(params, '{}');
    IF (SELECT count(*) > 1000 OR sum(e.bytes) > 262144 OR max(e.bytes) > 131071
        FROM (SELECT octet_length(key) + octet_length(value) + 1 AS bytes FROM jsonb_each_text(value)) AS e) THEN
        PERFORM rythmiq.refuse('env', 'has more than 1000 variables, or too many bytes: 262144 in all, 131071 in one');
    END IF;
    IF value <> '{}' THEN
        spec := spec || jsonb_build_object('env', value);
    END IF;
    IF job ? 'secrets' THEN
        spec := spec || jsonb_build_object('secrets', rythmiq.check_texts(job, 'secrets',
            '^' || taken || '[A-Z][A-Z0-9_]{0,254}$', 'must be the name of a secret: capitals, digits and _'));
        SELECT s.name INTO word FROM jsonb_array_elements_text(job -> 'secrets') AS s(name)
        GROUP BY s.name HAVING count(*) > 1 OR value ? s.name LIMIT 1;
        IF FOUND THEN
            PERFORM rythmiq.refuse('secrets', quote_literal(word) || ' is there twice, or in env or params too');
        END IF;
    END IF;
    FOREACH word IN ARRAY ARRAY['timeout', 'timeout_s'] LOOP
        IF job ? word THEN
            IF rythmiq.duration_s(job -> word, word) NOT BETWEEN 0.001 AND 2592000 THEN
                PERFORM rythmiq.refuse(word, 'must be above 0 and 30 days at most');
            END IF;
            spec := spec || jsonb_build_object('timeout_s', rythmiq.duration_s(job -> word, word));
        END IF;
    END LOOP;
    IF job ? 'retry_exit_codes' THEN
        IF jsonb_typeof(job -> 'retry_exit_codes') <> 'array' OR jsonb_array_length(job -> 'retry_exit_codes') > 1000 OR EXISTS (
            SELECT FROM jsonb_array_elements(job -> 'retry_exit_codes') AS code
            WHERE jsonb_typeof(code) <> 'number' OR (code #>> '{}') !~ '^([1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])$') THEN
            PERFORM rythmiq.refuse('retry_exit_codes', 'must be a list of whole numbers from 1 to 255');
        END IF;
        spec := spec || jsonb_build_object('retry_exit_codes', job -> 'retry_exit_codes');
    END IF;
    labels := rythmiq.check_pairs(job, 'labels', '^[^\x01-\x1f\x7f-\x9f]{1,63}$', 'must be a text of 1 to 63 characters');
    SELECT key INTO word FROM jsonb_each_text(labels) WHERE length(value) > 200 OR value ~ '[\x01-\x1f\x7f-\x9f]' LIMIT 1;
    IF FOUND THEN
        PERFORM rythmiq.refuse('labels.' || word, 'must be a text of at most 200 characters, without control characters');
    END IF;
    IF (SELECT count(*) > 64 FROM jsonb_object_keys(labels)) THEN
        PERFORM rythmiq.refuse('labels', 'are more than 64');
    END IF;
    FOREACH word IN ARRAY ARRAY['delay', 'delay_s'] LOOP
        IF job ? word THEN
            delay_s := rythmiq.duration_s(job -> word, word);
            IF delay_s NOT BETWEEN 0 AND 31536000 THEN
                PERFORM rythmiq.refuse(word, 'must be 0 or more and a year at most');
            END IF;
        END IF;
    END LOOP;

    IF job ->> 'notify' !~ '^https?://[^\s/?#@]+([/?#]\S*)?$' THEN
        PERFORM rythmiq.refuse('notify', 'must be an http or https URL without credentials in it');
    END IF;
    IF job ->> 'traceparent' !~ '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$' THEN
        PERFORM rythmiq.refuse('traceparent', 'must be one of W3C Trace Context, version 00');
    END IF;
    IF job ->> 'user_id' = '*' THEN
        PERFORM rythmiq.refuse('user_id', 'must not be *, which is each user in limits');
    END IF;
    unique_key := rythmiq.check_text(job, 'unique_key', 1, 500);
    SELECT j.job_id INTO holder FROM rythmiq.jobs AS j
    WHERE j.unique_key = rythmiq.check_text(job, 'unique_key', 1, 500)
      AND j.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING');
    IF FOUND THEN
        RETURN holder;
    END IF;

    wanted := rythmiq.check_text(job, 'group', 1, 200);
    IF wanted ~* '^[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}$' THEN
        SELECT g.group_id INTO joined FROM rythmiq.groups AS g
        WHERE g.group_id = wanted::uuid AND (g.enqueued_by = session_user OR rythmiq.sees_all(session_user));
        IF NOT FOUND THEN
            PERFORM rythmiq.refuse('group', 'there is no group ' || wanted);
        END IF;
    ELSIF wanted IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('rythmiq.group ' || wanted, 0));
        SELECT g.group_id INTO joined FROM rythmiq.groups AS g
        WHERE g.name = wanted AND g.finished_at IS NULL AND g.enqueued_by = rythmiq.enqueuer()
        ORDER BY g.created_at DESC LIMIT 1;
        IF NOT FOUND THEN
            joined := gen_random_uuid();
            INSERT INTO rythmiq.groups (group_id, name) VALUES (joined, wanted);
            grouped := true;
        END IF;
    END IF;
    IF joined IS NOT NULL THEN
        -- Serializes sessions that add to the same group, so that no group_index is given twice.
        PERFORM pg_advisory_xact_lock(hashtextextended('rythmiq.group ' || joined, 0));
        SELECT coalesce(g.places, g.max_parallel) IS NOT NULL INTO limited FROM rythmiq.groups AS g WHERE g.group_id = joined;
        SELECT coalesce(max(j.group_index) + 1, 0) INTO index FROM rythmiq.jobs AS j WHERE j.group_id = joined;
    END IF;

    -- What it waits for: after, after_ended, and the jobs and groups whose files are inputs.
    FOREACH word IN ARRAY ARRAY['after_ended', 'after'] LOOP
        place := 0;
        FOR wanted IN SELECT jsonb_array_elements_text(rythmiq.check_texts(job, word, '^.{1,200}$', 'must be an id or a name')) LOOP
            SELECT need_ids || array_agg(r.id), need_jobs || array_agg(r.is_job),
                   need_words || array_agg(CASE word WHEN 'after' THEN 'succeeded' ELSE 'ended' END), count(*)
            INTO need_ids, need_jobs, need_words, waits
            FROM rythmiq.referred(wanted, joined) AS r;
            IF waits = 0 THEN
                PERFORM rythmiq.refuse(word || '[' || place || ']', 'there is no job or group ' || quote_literal(wanted));
            END IF;
            place := place + 1;
        END LOOP;
    END LOOP;
    value := rythmiq.check_inputs(job);
    FOR place IN 0 .. jsonb_array_length(value) - 1 LOOP
        wanted := value -> place ->> 'uri';
        CONTINUE WHEN wanted !~ '^(job|group):[^/]';
        SELECT r.id INTO added FROM rythmiq.referred(split_part(split_part(wanted, '/', 1), ':', 2), joined) AS r
        WHERE r.is_job = (wanted ~ '^job:') LIMIT 1;
        IF NOT FOUND THEN
            PERFORM rythmiq.refuse('inputs[' || place || '].uri', 'there is no ' || split_part(wanted, '/', 1));
        END IF;
        IF NOT added = ANY(need_ids) THEN
            need_ids := need_ids || added;
            need_jobs := need_jobs || (wanted ~ '^job:');
            need_words := need_words || 'succeeded'::text;
        END IF;
        value := jsonb_set(value, ARRAY[place::text, 'uri'],
            to_jsonb(split_part(wanted, ':', 1) || ':' || added || substr(wanted, strpos(wanted, '/'))));
    END LOOP;
    IF value <> '[]' THEN
        spec := spec || jsonb_build_object('inputs', value);
    END IF;
    SELECT count(DISTINCT n.id), coalesce(array_agg(DISTINCT n.id) FILTER (WHERE n.is_job), '{}'),
           coalesce(array_agg(DISTINCT n.id) FILTER (WHERE NOT n.is_job), '{}')
    INTO waits, awaited, awaited_groups FROM unnest(need_ids, need_jobs) AS n(id, is_job);
    -- Only a group can get new members. Dependencies that reach no group now never will, so no lock is needed for them.
    IF joined IS NOT NULL AND waits > 0 AND EXISTS (SELECT FROM rythmiq.leads_to(awaited, awaited_groups)) THEN
        -- Without the lock two sessions could together create a circle that neither sees.
        PERFORM pg_advisory_xact_lock(hashtextextended('rythmiq.graph', 0));
        IF joined IN (SELECT rythmiq.leads_to(awaited, awaited_groups)) THEN
            PERFORM rythmiq.refuse('after', 'what this job waits for waits for its group: a circle never ends');
        END IF;
    END IF;

    INSERT INTO rythmiq.jobs (job_id, user_id, queue, priority, spec, max_attempts, next_visible_at, unique_key, name, labels,
                              params, group_id, group_index, waits_for, notify, traceparent, state)
    VALUES (made, rythmiq.check_text(job, 'user_id', 0, 200), coalesce(rythmiq.check_text(job, 'queue', 1, 100), 'default'),
            rythmiq.check_integer(job, 'priority', -1000, 1000, 0), spec,
            rythmiq.check_integer(job, 'max_attempts', 1, 100, 3), now() + make_interval(secs => delay_s), unique_key,
            rythmiq.check_text(job, 'name', 1, 200), labels, params, joined, index, waits,
            rythmiq.check_text(job, 'notify', 1, 2000), rythmiq.check_text(job, 'traceparent', 55, 55),
            CASE WHEN waits > 0 OR limited THEN 'BLOCKED' ELSE 'QUEUED' END)
    ON CONFLICT DO NOTHING
    RETURNING job_id INTO added;
    IF NOT FOUND THEN
        IF grouped THEN
            -- The new group would have no members and never end.
            RAISE serialization_failure USING MESSAGE = 'unique_key: another session took it, try again';
        END IF;
        -- Another job took the key meanwhile. It may have ended since, so all is tried again.
        RETURN rythmiq.enqueue(job);
    END IF;
    INSERT INTO rythmiq.dependencies (job_id, on_job_id, on_group_id, needs)
    SELECT made, CASE WHEN n.is_job THEN n.id END, CASE WHEN NOT n.is_job THEN n.id END,
           CASE WHEN bool_or(n.needs = 'succeeded') THEN 'succeeded' ELSE 'ended' END
    FROM unnest(need_ids, need_jobs, need_words) AS n(id, is_job, needs) GROUP BY n.id, n.is_job;
    IF waits > 0 THEN
        PERFORM rythmiq.settle_sources(awaited, awaited_groups);
    END IF;
    RETURN made;
END
$$;

COMMENT ON FUNCTION rythmiq.enqueue IS 'adds a job, in the caller''s transaction: the fields are those of `rythmiq schema`; a fault
is SQLSTATE 22023 and begins with its field; what Camber offers is not checked';

CREATE VIEW rythmiq.job_status WITH (security_barrier) AS
SELECT j.job_id, j.name, j.labels, j.group_id, j.group_index, j.params, j.user_id, j.queue, j.state, j.phase, j.priority,
       j.attempt, j.max_attempts, j.waits_for, j.wait_reason, j.exit_code, j.error_code, j.error_message, j.warnings,
       j.cost_credits, j.cancel_requested_at, j.created_at, j.started_at, j.finished_at, j.enqueued_by,
       j.artifact_uri,
       (SELECT coalesce(jsonb_agg(jsonb_build_object('name', x.name, 'uri', x.uri, 'bytes', x.bytes, 'sha256', x.sha256,
                                                     'content_type', x.content_type) ORDER BY x.name), '[]')
        FROM rythmiq.artifacts AS x WHERE x.job_id = j.job_id AND x.attempt = j.attempt) AS artifacts
FROM rythmiq.jobs AS j
WHERE (SELECT rythmiq.sees_all(session_user)) OR j.enqueued_by = session_user;

COMMENT ON VIEW rythmiq.job_status IS 'how jobs stand, without their specs: of a login that enqueues its own ones';

CREATE FUNCTION rythmiq.cancel(id uuid) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    all_of CONSTANT boolean := pg_has_role(session_user,
            (SELECT relowner FROM pg_class WHERE oid = 'rythmiq.jobs'::regclass), 'MEMBER')
        OR EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = 'rythmiq_operator' AND pg_has_role(session_user, r.oid, 'MEMBER'));
    now_is text;
BEGIN
    -- Every statement that waits for job rows locks them in the order of their ids, so that there is no deadlock.
    PERFORM FROM rythmiq.jobs AS j
    WHERE (j.job_id = id OR j.group_id = id) AND j.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING')
      AND (all_of OR j.enqueued_by = session_user)
    ORDER BY j.job_id FOR NO KEY UPDATE;
    UPDATE rythmiq.jobs AS j
    SET cancel_requested_at = coalesce(cancel_requested_at, now()), updated_at = now(),
        state = CASE WHEN state = 'RUNNING' THEN state ELSE 'CANCELLED' END,
        finished_at = CASE WHEN state = 'RUNNING' THEN NULL ELSE now() END,
        error_code = CASE WHEN state = 'RUNNING' THEN error_code ELSE 'cancelled' END,
        error_message = CASE WHEN state = 'RUNNING' THEN error_message ELSE 'cancelled before it started' END,
        retryable = CASE WHEN state = 'RUNNING' THEN retryable ELSE false END
    WHERE (j.job_id = id OR j.group_id = id) AND j.state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING')
      AND (all_of OR j.enqueued_by = session_user);
    PERFORM pg_notify('rythmiq', 'cancel');
    SELECT j.state INTO now_is FROM rythmiq.jobs AS j WHERE j.job_id = id AND (all_of OR j.enqueued_by = session_user);
    IF NOT FOUND THEN
        SELECT CASE WHEN g.finished_at IS NULL THEN 'RUNNING' WHEN g.failed > 0 THEN 'FAILED'
                    WHEN g.cancelled > 0 THEN 'CANCELLED' ELSE 'SUCCEEDED' END
        INTO now_is FROM rythmiq.groups AS g WHERE g.group_id = id AND (all_of OR g.enqueued_by = session_user);
    END IF;
    IF now_is IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'P0002', MESSAGE = 'there is no job or group ' || id || ' that this login put in';
    END IF;
    RETURN now_is;
END
$$;

COMMENT ON FUNCTION rythmiq.cancel IS 'cancels a job or a group that the login put in, and returns its state: RUNNING where its driver
is still to stop it; SQLSTATE P0002 where there is none';

REVOKE ALL ON FUNCTION rythmiq.cancel(uuid) FROM PUBLIC;
