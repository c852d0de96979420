-- Notifications: one row for each end of a job or group with a notify URL, delivered by any live driver as a signed
-- POST.

CREATE TABLE rythmiq.notifications (
    notification_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    job_id       uuid,
    group_id     uuid,
    url          text NOT NULL,
    body         jsonb NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    tries        integer NOT NULL DEFAULT 0,
    next_at      timestamptz DEFAULT now(),
    delivered_at timestamptz,
    error        text,
    CHECK (num_nonnulls(job_id, group_id) = 1)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);

COMMENT ON COLUMN rythmiq.notifications.next_at IS 'when it is tried next; NULL once it was delivered or given up';
COMMENT ON COLUMN rythmiq.notifications.error IS 'why the last try did not deliver it';

CREATE INDEX notifications_due ON rythmiq.notifications (next_at) WHERE next_at IS NOT NULL;
CREATE INDEX notifications_untried ON rythmiq.notifications (notification_id) WHERE next_at IS NOT NULL AND tries = 0;
CREATE INDEX notifications_done ON rythmiq.notifications (created_at) WHERE next_at IS NULL;
CREATE INDEX notifications_job ON rythmiq.notifications (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX notifications_group ON rythmiq.notifications (group_id) WHERE group_id IS NOT NULL;

-- The body that Standard Webhooks asks for: type, timestamp, data.
CREATE FUNCTION rythmiq.notification(kind text, data jsonb) RETURNS jsonb LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object('type', kind, 'data', data,
                              'timestamp', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
$$;

CREATE FUNCTION rythmiq.job_to_tell() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO rythmiq.notifications (job_id, url, body)
    VALUES (NEW.job_id, NEW.notify, rythmiq.notification('job.ended', jsonb_build_object(
        'job_id', NEW.job_id, 'name', NEW.name, 'group_id', NEW.group_id, 'state', NEW.state, 'attempt', NEW.attempt,
        'exit_code', NEW.exit_code, 'error_code', NEW.error_code, 'error_message', NEW.error_message,
        'user_id', NEW.user_id, 'enqueued_by', NEW.enqueued_by, 'queue', NEW.queue, 'labels', NEW.labels, 'params', NEW.params,
        'cost_credits', NEW.cost_credits, 'artifact_uri', NEW.artifact_uri, 'created_at', NEW.created_at,
        'started_at', NEW.started_at, 'finished_at', NEW.finished_at)));
    RETURN NULL;
END
$$;

CREATE FUNCTION rythmiq.group_to_tell() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO rythmiq.notifications (group_id, url, body)
    VALUES (NEW.group_id, NEW.notify, rythmiq.notification('group.ended', jsonb_build_object(
        'group_id', NEW.group_id, 'name', NEW.name,
        'state', CASE WHEN NEW.failed > 0 THEN 'FAILED' WHEN NEW.cancelled > 0 THEN 'CANCELLED' ELSE 'SUCCEEDED' END,
        'members', NEW.members, 'succeeded', NEW.succeeded, 'failed', NEW.failed, 'cancelled', NEW.cancelled,
        'user_id', NEW.user_id, 'enqueued_by', NEW.enqueued_by, 'labels', NEW.labels, 'created_at', NEW.created_at,
        'finished_at', NEW.finished_at)));
    RETURN NULL;
END
$$;

CREATE TRIGGER jobs_to_tell AFTER UPDATE ON rythmiq.jobs FOR EACH ROW
    WHEN (NEW.notify IS NOT NULL AND NEW.state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
          AND OLD.state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))
    EXECUTE FUNCTION rythmiq.job_to_tell();
CREATE TRIGGER groups_to_tell AFTER UPDATE ON rythmiq.groups FOR EACH ROW
    WHEN (NEW.notify IS NOT NULL AND NEW.members > 0 AND NEW.finished_at IS NOT NULL AND OLD.finished_at IS NULL)
    EXECUTE FUNCTION rythmiq.group_to_tell();

REVOKE EXECUTE ON FUNCTION rythmiq.job_to_tell(), rythmiq.group_to_tell() FROM PUBLIC;
