"""Sends notifications to the URLs of ``--notify``. Any live driver sends them, each at least once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Final
from urllib.parse import urlsplit

from rythmiq_ray.config import NotifyConfig
from rythmiq_ray.queue import Delivery, Notification, Queue
from rythmiq_ray.telemetry.logs import get_logger
from rythmiq_ray.webhooks import Answer

log = get_logger("driver")

BATCH: Final = 100
THREADS: Final = 8
SILENCES_OF_A_HOST: Final = 3
"""After this many tries without an answer in one batch, the other notifications to that host are left for later: one
host that hangs must not delay the others."""
HOLD_FACTOR: Final = 2.0
"""A batch is reserved for its driver for twice as long as it can take; after that any driver takes it again."""
KEEP_S: Final = 30 * 86_400.0
"""How long the row of a notification is kept after its end."""
FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 6 * 3600.0
LEFT_OUT_PAUSE_S: Final = 30.0
"""Seconds until a notification that was not tried is due again."""


def pause_s(tries: int) -> float:
    """Seconds to wait before the next try, after this many tries."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 4.0 ** (min(tries, 20) - 1))


class Notifier:
    """Sends due notifications. The driver's loop reads and writes the rows, threads send; the loop never waits."""

    def __init__(
        self,
        config: NotifyConfig,
        queue: Queue,
        *,
        send: Callable[[str, str, str], Answer],
        wake: Callable[[], None],
        told: Callable[[str], None] = lambda _outcome: None,
    ) -> None:
        """``send`` makes one try with an id, a URL and a body; ``wake`` wakes the loop.

        ``told`` is called for each try with its outcome: ``delivered``, ``retried`` or ``given_up``.
        """
        self._config = config
        self._queue = queue
        self._send = send
        self._wake = wake
        self._told = told
        self._answers: SimpleQueue[Delivery] = SimpleQueue()
        self._unwritten: list[Delivery] = []
        self._sending = False
        self._sent = threading.Event()
        """Set when the current batch has ended, until the loop has seen it."""

    @property
    def busy(self) -> bool:
        """Whether a batch is being sent, or its outcomes are not written yet."""
        return self._sending or bool(self._unwritten) or not self._answers.empty()

    @property
    def ready(self) -> bool:
        """Whether a batch has ended, so that there are outcomes to write and perhaps more to send."""
        return self._sent.is_set()

    def tick(self, *, due: bool) -> None:
        """Writes the outcomes so far; takes another batch if some are ``due``. Raises DatabaseUnavailable."""
        if self._sent.is_set():
            self._sent.clear()
            self._sending = False
        while not self._answers.empty():
            self._unwritten.append(self._answers.get())
        if self._unwritten:
            self._queue.record_deliveries(self._unwritten)
            self._unwritten = []
        if not due or self._sending:
            return
        hold_s = HOLD_FACTOR * self._config.timeout_s * (1 + BATCH / THREADS)
        if batch := self._queue.take_notifications(BATCH, hold_s=hold_s, keep_s=KEEP_S):
            threading.Thread(target=self._work, args=(batch,), name="rythmiq-notifier", daemon=True).start()
            self._sending = True

    def _work(self, batch: Iterable[Notification]) -> None:
        silences: Counter[str] = Counter()
        try:
            with ThreadPoolExecutor(THREADS, thread_name_prefix="rythmiq-notify") as pool:
                tries = [pool.submit(self._try, one, silences) for one in batch]
            for each in tries:
                if (error := each.exception()) is not None:
                    log.error("The result of a notification was lost; it is sent again", error=type(error).__name__)
        finally:
            self._sent.set()
            self._wake()

    def _try(self, one: Notification, silences: Counter[str]) -> None:
        host = _host_of(one.url)
        if silences[host] >= SILENCES_OF_A_HOST:
            error = "not tried: this host has just not answered another notification"
            self._answers.put(Delivery.of(one, error=error, again_s=LEFT_OUT_PAUSE_S, tried=False))
            return
        try:
            answer = self._send(str(one.notification_id), one.url, one.body)
        except Exception as error:  # noqa: BLE001 - a bad row must not affect others
            answer = Answer(error=f"{type(error).__name__} while it was sent", final=True)
        if answer.silent:
            silences[host] += 1
        self._answers.put(self._outcome(one, answer, host))

    def _outcome(self, one: Notification, answer: Answer, host: str) -> Delivery:
        about = {"jobId": one.job_id} if one.job_id is not None else {"groupId": one.group_id}
        if answer.error is None:
            self._told("delivered")
            log.info("Notification delivered", **about, host=host)
            return Delivery.of(one, error=None, again_s=None)
        if answer.final or one.tries >= self._config.max_attempts:
            self._told("given_up")
            log.error("Notification given up", **about, host=host, error=answer.error, tries=one.tries)
            return Delivery.of(one, error=answer.error, again_s=None)
        self._told("retried")
        again_s = pause_s(one.tries)
        log.warning("Notification not delivered", **about, host=host, error=answer.error, retryIn=f"{again_s:.0f}s")
        return Delivery.of(one, error=answer.error, again_s=again_s)


def _host_of(url: str) -> str:
    """The host for the log: the rest of a URL may be a secret."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
