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
from rythmiq_ray.queue import Notification, Queue, Told
from rythmiq_ray.telemetry.logs import get_logger
from rythmiq_ray.webhooks import Answer

log = get_logger("driver")

BATCH: Final = 100
THREADS: Final = 8
FAULTS_OF_A_HOST: Final = 3
"""After this many failures in one batch, the batch's other notifications to that host are not tried: one host must not
delay the others."""
HOLD_FACTOR: Final = 2.0
"""A driver keeps a batch for twice as long as sending it can take; then another driver may take it."""
KEEP_S: Final = 30 * 86_400.0
"""How long the row of a notification is kept after it was delivered or given up."""
FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 6 * 3600.0


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
        self._sent: SimpleQueue[list[Told]] = SimpleQueue()
        self._sending = False

    @property
    def busy(self) -> bool:
        """Whether a batch is being sent, or its outcomes are not written yet."""
        return self._sending

    def look_round(self, *, due: bool) -> None:
        """Writes the outcomes of the last batch; takes another one if some are ``due``. Raises DatabaseUnavailable."""
        while not self._sent.empty():
            self._queue.told(self._sent.get())
            self._sending = False
        if not due or self._sending:
            return
        hold_s = HOLD_FACTOR * self._config.timeout_s * (1 + BATCH / THREADS)
        if batch := self._queue.take_notifications(BATCH, hold_s=hold_s, keep_s=KEEP_S):
            self._sending = True
            threading.Thread(target=self._work, args=(batch,), name="rythmiq-notifier", daemon=True).start()

    def _work(self, batch: Iterable[Notification]) -> None:
        faults: Counter[str] = Counter()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="rythmiq-notify") as pool:
            told = list(pool.map(lambda one: self._try(one, faults), batch))
        self._sent.put(told)
        self._wake()

    def _try(self, one: Notification, faults: Counter[str]) -> Told:
        host = _host_of(one.url)
        about = {"jobId": one.job_id} if one.job_id is not None else {"groupId": one.group_id}
        if faults[host] >= FAULTS_OF_A_HOST:
            answer = Answer(error="others to this host had no answer just now")
        else:
            try:
                answer = self._send(str(one.notification_id), one.url, one.body)
            except Exception as error:  # noqa: BLE001 - a bad row must not affect others
                answer = Answer(error=f"{type(error).__name__} while it was sent", final=True)
        if answer.error is None:
            log.info("Notification delivered", **about, host=host)
            self._told("delivered")
            return Told(notification_id=one.notification_id, error=None, again_s=None)
        faults[host] += 1
        if answer.final or one.tries >= self._config.max_attempts:
            self._told("given_up")
            log.error("Notification given up", **about, host=host, error=answer.error, tries=one.tries)
            return Told(notification_id=one.notification_id, error=answer.error, again_s=None)
        again_s = pause_s(one.tries)
        self._told("retried")
        log.warning("Notification not delivered", **about, host=host, error=answer.error, retryIn=f"{again_s:.0f}s")
        return Told(notification_id=one.notification_id, error=answer.error, again_s=again_s)


def _host_of(url: str) -> str:
    """The host for the log: the rest of a URL may be a secret."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
