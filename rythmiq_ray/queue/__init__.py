"""The queue in Postgres, and the only SQL of the project: ``.sql`` files of named statements, one use each."""

from rythmiq_ray.queue.connection import connect
from rythmiq_ray.queue.producer import enqueue, enqueue_group, enqueue_many, insert, insert_group
from rythmiq_ray.queue.queue import (
    Adopted,
    Bounds,
    Ending,
    LeftOver,
    Notification,
    Progress,
    Queue,
    Refusal,
    Stored,
    Told,
    Written,
)
from rythmiq_ray.queue.schema import check_database, check_schema
from rythmiq_ray.queue.session import Heartbeat

__all__ = [
    "Adopted",
    "Bounds",
    "Ending",
    "Heartbeat",
    "LeftOver",
    "Notification",
    "Progress",
    "Queue",
    "Refusal",
    "Stored",
    "Told",
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
