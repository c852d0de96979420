-- The service's own table, beside the schema rythmiq. A login of rythmiq_enqueue owns it.
CREATE TABLE orders (
    order_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer text NOT NULL,
    job_id   uuid NOT NULL UNIQUE
);
