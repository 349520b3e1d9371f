-- The ledger proper: partitioned by month on the UUIDv7 of the request, append-only.

CREATE TABLE ledger_usagerecord (
    request_id uuid NOT NULL PRIMARY KEY,
    tenant_id bigint NOT NULL,
    key_id bigint NOT NULL,
    model varchar(200) NOT NULL,
    started_at timestamptz NOT NULL,
    local_date date NOT NULL,
    charge_currency varchar(3) NOT NULL,
    cost_currency varchar(3) NOT NULL,
    process_id uuid NOT NULL,
    catalogue_model_id bigint NOT NULL,
    deployment_id bigint,
    provider_id bigint,
    endpoint varchar(40) NOT NULL,
    stream boolean NOT NULL,
    status varchar(12) NOT NULL CHECK (status IN ('completed', 'failed', 'interrupted', 'unknown')),
    estimated boolean NOT NULL,
    http_status smallint NOT NULL,
    error_code varchar(64) NOT NULL,
    ended_at timestamptz NOT NULL,
    first_byte_ms integer,
    input_tokens bigint NOT NULL CHECK (input_tokens >= 0),
    cached_input_tokens bigint NOT NULL CHECK (cached_input_tokens >= 0),
    cache_write_tokens bigint NOT NULL CHECK (cache_write_tokens >= 0),
    output_tokens bigint NOT NULL CHECK (output_tokens >= 0),
    reasoning_tokens bigint NOT NULL CHECK (reasoning_tokens >= 0),
    charge bigint CHECK (charge >= 0),
    cost bigint CHECK (cost >= 0),
    charge_price_id bigint,
    cost_price_id bigint,
    lines jsonb NOT NULL,
    client_request_id varchar(512) NOT NULL,
    end_user varchar(256) NOT NULL,
    recorded_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
) PARTITION BY RANGE (request_id);

CREATE INDEX usagerecord_tenant ON ledger_usagerecord (tenant_id, request_id);
CREATE INDEX usagerecord_key ON ledger_usagerecord (key_id, request_id);
CREATE INDEX usagerecord_not_completed ON ledger_usagerecord (status, request_id) WHERE status <> 'completed';
CREATE INDEX usagerecord_xid ON ledger_usagerecord (recorded_xid);

ALTER TABLE ledger_adjustment ADD COLUMN recorded_xid xid8 NOT NULL DEFAULT pg_current_xact_id();
CREATE INDEX adjustment_xid ON ledger_adjustment (recorded_xid);
CREATE INDEX adjustment_tenant ON ledger_adjustment (tenant_id, id);

CREATE FUNCTION ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % on % is refused; correct it by an adjustment', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER append_only_rows BEFORE UPDATE OR DELETE ON ledger_usagerecord
    FOR EACH ROW EXECUTE FUNCTION ledger_is_append_only();
CREATE TRIGGER append_only_table BEFORE TRUNCATE ON ledger_usagerecord
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only();
CREATE TRIGGER append_only_rows BEFORE UPDATE OR DELETE ON ledger_adjustment
    FOR EACH ROW EXECUTE FUNCTION ledger_is_append_only();
CREATE TRIGGER append_only_table BEFORE TRUNCATE ON ledger_adjustment
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only();

-- The smallest UUIDv7 of an instant: 48 bits of milliseconds, then zeros.
CREATE FUNCTION ledger_uuid_at(instant timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM instant) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- Makes the partitions of this month and the next p_months. The application's role owns no table, so this
-- runs as the owner. Each partition gets its own TRUNCATE trigger: the parent's does not cover it. It wants the
-- table for itself, and everybody queues behind it while it waits for a long read: so it gives up, until next time.
CREATE FUNCTION ledger_ensure_partitions(p_months integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '1s' AS $$
DECLARE
    month timestamptz;
    part text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ledger_ensure_partitions'));
    FOR month IN
        SELECT m AT TIME ZONE 'UTC' FROM generate_series(
            date_trunc('month', now() AT TIME ZONE 'UTC') - interval '1 month',
            date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => p_months),
            interval '1 month') AS m
    LOOP
        part := 'ledger_usagerecord_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
        CONTINUE WHEN to_regclass('public.' || part) IS NOT NULL;
        EXECUTE format('CREATE TABLE %I PARTITION OF ledger_usagerecord FOR VALUES FROM (%L) TO (%L)', part,
            ledger_uuid_at(month),
            ledger_uuid_at((month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC'));
        EXECUTE format('CREATE TRIGGER append_only_table BEFORE TRUNCATE ON %I
            FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only()', part);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', part);
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;

-- The net under a clock that is far off: a record is never refused for want of a partition.
CREATE TABLE ledger_usagerecord_other PARTITION OF ledger_usagerecord DEFAULT;
CREATE TRIGGER append_only_table BEFORE TRUNCATE ON ledger_usagerecord_other
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only();

SELECT ledger_ensure_partitions(3);

-- Hot rows: room for HOT updates on the page, and vacuum that keeps up with them.
ALTER TABLE ledger_counter SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 500);
ALTER TABLE ledger_hold SET (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);
ALTER TABLE ledger_process SET (fillfactor = 50);
