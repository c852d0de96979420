"""The queue in Postgres, and the project's only SQL: named statements in ``.sql`` files, one file for each module."""

from rythmiq_ray.queue.connection import connect
from rythmiq_ray.queue.producer import enqueue, enqueue_group, enqueue_many, insert, insert_group
from rythmiq_ray.queue.queue import (
    Adopted,
    Bounds,
    Delivery,
    Ending,
    LeftOver,
    Notification,
    Progress,
    Queue,
    Refusal,
    Stored,
    Written,
)
from rythmiq_ray.queue.schema import check_database, check_schema
from rythmiq_ray.queue.session import Heartbeat

__all__ = [
    "Adopted",
    "Bounds",
    "Delivery",
    "Ending",
    "Heartbeat",
    "LeftOver",
    "Notification",
    "Progress",
    "Queue",
    "Refusal",
    "Stored",
    "Written",
    "check_database",
    "check_schema",
    "connect",
    "enqueue",
    "enqueue_group",
    "enqueue_many",
    "insert",
    "insert_group",
]
