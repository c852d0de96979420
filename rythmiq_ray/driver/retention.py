"""Retention: deletes old ended jobs, files first, in small batches. Off unless ``retention.*`` is set."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final
from uuid import UUID

from rythmiq_ray.artifacts import is_own
from rythmiq_ray.clock import now_s
from rythmiq_ray.config import RetentionConfig
from rythmiq_ray.errors import StoreUnavailable
from rythmiq_ray.queue import Queue, Stored
from rythmiq_ray.queue.connection import StatementTimeout
from rythmiq_ray.telemetry.logs import get_logger

log = get_logger("driver")

BATCH: Final = 100
"""Jobs or attempts in a batch: a statement of a few milliseconds, and a few hundred deletes in the store."""
PAUSE_S: Final = 60.0
"""Pause after a round that found nothing more to delete."""
REFUSED_S: Final = 3600.0
"""Pause before files that the store refused to delete are tried again."""


class Retention:
    """Deletes rows in the driver's loop and files in a thread. No transaction is open while files are deleted.

    Times are seconds of :mod:`rythmiq_ray.clock`.
    """

    def __init__(
        self,
        config: RetentionConfig,
        queue: Queue,
        *,
        delete: Callable[[str], None],
        wake: Callable[[], None],
        clock: Callable[[], float] = now_s,
    ) -> None:
        """``delete`` removes a stored file by its URI, and may take long; ``wake`` wakes the loop."""
        self._config = config
        self._queue = queue
        self._delete = delete
        self._wake = wake
        self._clock = clock
        self._batch = BATCH
        self._deleted: SimpleQueue[list[Stored]] = SimpleQueue()
        self._to_forget: list[Stored] = []
        """Attempts whose files were deleted, which the table does not say yet."""
        self._deleting = False
        self._refused: dict[UUID, float] = {}
        """Jobs with a file that could not be deleted, and when that was tried."""
        self.due_at: float | None = 0.0 if config.on else None
        """When the next round begins; None = never."""

    def tick(self, now: float) -> None:
        """Deletes a batch if a round is due. Raises DatabaseUnavailable."""
        while not self._deleted.empty():
            gone = self._deleted.get()
            self._to_forget += gone
            self._deleting = False
            if gone:
                self.due_at = now
        if self.due_at is None or now < self.due_at:
            return
        self.due_at = now + PAUSE_S
        try:
            self._forget()
            self._delete_files(now)
            if self._delete_rows():
                self.due_at = now
        except StatementTimeout:
            self._batch = max(1, self._batch // 2)

    def _forget(self) -> None:
        while self._to_forget:
            self._queue.forget_artifacts(self._to_forget[: self._batch])
            del self._to_forget[: self._batch]

    def _delete_rows(self) -> bool:
        """Deletes a batch of rows; returns whether there may be more."""
        config = self._config
        if config.succeeded_s is None and config.failed_s is None:
            return False
        gone = self._queue.delete_expired(
            self._batch,
            succeeded_s=config.succeeded_s,
            failed_s=config.failed_s,
            files_first=config.artifacts_s is not None,
        )
        if gone:
            log.info("Jobs past their retention deleted", jobs=len(gone))
        return len(gone) >= self._batch

    def _delete_files(self, now: float) -> None:
        if self._config.artifacts_s is None or self._deleting:
            return
        self._refused = {job_id: at for job_id, at in self._refused.items() if now - at < REFUSED_S}
        due = self._queue.expired_artifacts(self._batch, older_than_s=self._config.artifacts_s, but=self._refused)
        if due:
            self._deleting = True
            threading.Thread(target=self._work, args=(due,), name="rythmiq-retention", daemon=True).start()

    def _work(self, due: list[Stored]) -> None:
        gone: list[Stored] = []
        for stored in due:
            try:
                self._delete_all(stored)
            except Exception as error:  # noqa: BLE001 - whatever URI a row holds, a fault concerns that job alone
                self._refused[stored.job_id] = self._clock()
                reason = error.message if isinstance(error, StoreUnavailable) else type(error).__name__
                log.warning("Files past their retention cannot be deleted", jobId=stored.job_id, error=reason)
                if isinstance(error, StoreUnavailable):
                    break  # The store may refuse all files, so the next round tries another one first.
            else:
                gone.append(stored)
        if gone:
            log.info("Files past their retention deleted", attempts=len(gone))
        self._deleted.put(gone)
        self._wake()

    def _delete_all(self, stored: Stored) -> None:
        """Deletes all files of an attempt, except files that are not below the job's own prefix."""
        for uri in stored.uris:
            if is_own(uri, stored.job_id):
                self._delete(uri)
