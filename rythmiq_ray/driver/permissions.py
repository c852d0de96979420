"""What a job may be given because of the login that put it in: secrets by grant, and stored files of other jobs.

A row without a login is from before logins were recorded, and counts as the owner's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from uuid import UUID

from rythmiq_ray.artifacts.reach import Reach, reach_of
from rythmiq_ray.config import Config
from rythmiq_ray.errors import ErrorCode
from rythmiq_ray.model import ErrorInfo, Job
from rythmiq_ray.queue import Queue
from rythmiq_ray.secret import Secret

SECRET_PREFIX: Final = "RYTHMIQ_SECRET_"  # noqa: S105 - where secrets are found, not one


class Permissions:
    """Decides by the logins' roles as of the last time that :meth:`look_up` saw one of their jobs."""

    def __init__(self, config: Config, queue: Queue, environ: Mapping[str, str]) -> None:
        """``environ``: where the secrets are."""
        self._config = config
        self._queue = queue
        self._environ = environ
        self._logins: dict[str, tuple[frozenset[str], bool]] = {}
        """By login: its roles, and whether it is trusted with all secrets while no grants are configured."""

    def look_up(self, jobs: Iterable[Job]) -> dict[UUID, tuple[str, ...]]:
        """Asks Postgres once for all these jobs. Returns, by job, the inputs that its login may not see, in words.

        Raises DatabaseUnavailable.
        """
        jobs = list(jobs)
        for login in {job.enqueued_by for job in jobs if job.spec.secrets and job.enqueued_by is not None}:
            self._logins[login] = self._queue.roles_of(login)
        return self._out_of_reach(jobs)

    def refusal(self, job: Job, out_of_reach: tuple[str, ...]) -> ErrorInfo | None:
        """Why the job may not be submitted; None if it may. ``out_of_reach``: what :meth:`look_up` returned for it."""
        if out_of_reach:
            return ErrorInfo(code=ErrorCode.INVALID_JOB, message="; ".join(out_of_reach))
        if refused := self._refused_secrets(job):
            message = f"the login {job.enqueued_by} has no grant for {', '.join(refused)}"
            return ErrorInfo(code=ErrorCode.SECRET_REFUSED, message=message)
        missing = [SECRET_PREFIX + name for name in job.spec.secrets if not self._environ.get(SECRET_PREFIX + name)]
        if missing:
            message = f"the driver's environment lacks {', '.join(missing)}"
            return ErrorInfo(code=ErrorCode.SECRET_MISSING, message=message)
        return None

    def secrets(self, job: Job) -> dict[str, Secret]:
        """The secrets of a job that :meth:`refusal` does not refuse, by name."""
        return {name: Secret(self._environ[SECRET_PREFIX + name]) for name in job.spec.secrets}

    def _refused_secrets(self, job: Job) -> list[str]:
        if not job.spec.secrets or job.enqueued_by is None:
            return []
        roles, trusted = self._logins.get(job.enqueued_by, (frozenset(), False))
        grants = self._config.secrets.grants
        if not grants:
            return [] if trusted else list(job.spec.secrets)
        of_all = grants.get("*", ())
        return [name for name in job.spec.secrets if roles.isdisjoint((*of_all, *grants.get(name, ())))]

    def _out_of_reach(self, jobs: list[Job]) -> dict[UUID, tuple[str, ...]]:
        reached: dict[UUID, dict[int, UUID | Reach]] = {}
        wanted: dict[str, set[UUID]] = {}
        for job in jobs:
            found = {at: reach_of(item.uri, self._config.artifacts) for at, item in enumerate(job.spec.inputs)}
            reached[job.job_id] = {at: reach for at, reach in found.items() if reach is not Reach.NOTHING}
            if reached[job.job_id] and job.enqueued_by is not None:
                wanted.setdefault(job.enqueued_by, set()).update(x for x in found.values() if isinstance(x, UUID))
        seen = {login: self._queue.may_see(login, ids) for login, ids in wanted.items()}
        faults: dict[UUID, tuple[str, ...]] = {}
        for job in jobs:
            sees_all, own = seen.get(job.enqueued_by or "", (True, frozenset()))
            said = f"names files of jobs that the login {job.enqueued_by} did not enqueue"
            faults[job.job_id] = tuple(
                f"inputs[{at}].uri: {said}"
                for at, reach in reached[job.job_id].items()
                if not sees_all and reach not in own
            )
        return faults
