"""Retention: what ended long ago goes, files first, in small batches; off unless ``retention.*`` says how long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final
from uuid import UUID

from rythmiq_ray.config import RetentionConfig
from rythmiq_ray.errors import NotFound, RythmiqError
from rythmiq_ray.names import belongs_to
from rythmiq_ray.queue import Queue, Stored
from rythmiq_ray.telemetry.logs import get_logger

log = get_logger("driver")

BATCH: Final = 100
"""Jobs or attempts at a time: a statement of some milliseconds, and a few hundred deletes in the store."""
PAUSE_S: Final = 60.0
"""Between two looks that found nothing more."""


class Retention:
    """Rows are deleted by the driver's loop, files in a thread, and no transaction is open meanwhile.

    Times are seconds of :mod:`rythmiq_ray.clock`.
    """

    def __init__(
        self, config: RetentionConfig, queue: Queue, *, delete: Callable[[str], None], wake: Callable[[], None]
    ) -> None:
        """``delete`` removes one stored file by its URI, and may take long; ``wake`` wakes the loop."""
        self._config = config
        self._queue = queue
        self._delete = delete
        self._wake = wake
        self._deleted: SimpleQueue[list[Stored]] = SimpleQueue()
        """Batches whose files are gone, to be noted in the table."""
        self._deleting = False
        self._refused: set[UUID] = set()
        """Jobs with a file that the store would not delete; they are left to another driver, or to the next start."""
        self.due_at: float | None = 0.0 if self._on else None
        """When it looks next; None = never."""

    @property
    def _on(self) -> bool:
        config = self._config
        return (config.succeeded_s, config.failed_s, config.artifacts_s) != (None, None, None)

    def look_round(self, now: float) -> None:
        """Deletes a batch of what is due, if it is time. Raises DatabaseUnavailable."""
        while not self._deleted.empty():
            self._queue.forget_artifacts(self._deleted.get())
            self._deleting, self.due_at = False, now
        if self.due_at is None or now < self.due_at:
            return
        self._delete_files()
        self.due_at = now if self._delete_rows() else now + PAUSE_S

    def _delete_rows(self) -> bool:
        """Whether there may be more."""
        config = self._config
        if config.succeeded_s is None and config.failed_s is None:
            return False
        gone = self._queue.delete_expired(
            BATCH,
            succeeded_s=config.succeeded_s,
            failed_s=config.failed_s,
            files_first=config.artifacts_s is not None,
        )
        if gone:
            log.info("Jobs past their retention deleted", jobs=len(gone))
        return len(gone) >= BATCH

    def _delete_files(self) -> None:
        if self._config.artifacts_s is None or self._deleting:
            return
        due = self._queue.expired_artifacts(BATCH, older_than_s=self._config.artifacts_s, but=self._refused)
        if due:
            self._deleting = True
            threading.Thread(target=self._work, args=(due,), name="rythmiq-retention", daemon=True).start()

    def _work(self, due: list[Stored]) -> None:
        gone: list[Stored] = []
        for stored in due:
            try:
                for uri in stored.uris:
                    if not belongs_to(stored.job_id, uri):
                        raise NotFound("its rows name a file that is not its own")
                    self._delete(uri)
            except Exception as error:  # noqa: BLE001 - whatever a row names, the files of others go
                self._refused.add(stored.job_id)
                said = error.message if isinstance(error, RythmiqError) else type(error).__name__
                log.warning("Files past their retention cannot be deleted", jobId=stored.job_id, error=said)
            else:
                gone.append(stored)
        if gone:
            log.info("Files past their retention deleted", attempts=len(gone))
        self._deleted.put(gone)
        self._wake()
