"""Resolves groups, places in groups, and dependencies of new jobs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from itertools import count
from typing import Final, NamedTuple, TextIO, cast
from uuid import UUID, uuid4

import psycopg2
import psycopg2.extensions

from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.job_fields import is_stored
from rythmiq_ray.model import Input, JobSpec, NewGroup, NewJob
from rythmiq_ray.queue.connection import fetch, translated
from rythmiq_ray.queue.sql import queries
from rythmiq_ray.queue.stream import Stream

_SQL: Final = queries("groups")
_CHARACTERS: Final = 64 * 1024
_NULL: Final = "\\N"
MAX_DEPENDENCIES: Final = 1_000_000
"""The most dependencies of one enqueue; a dependency on a group counts as one, however many members it has."""
NO_MEMBERS: Final = "group: has no new jobs: unfinished jobs hold their unique keys, or they name other groups"
"""The fault of a new group that would have no members, and so would never end."""

Connection = psycopg2.extensions.connection


class Place(NamedTuple):
    """The group of a new job, and its place there."""

    group_id: UUID | None = None
    number: int | None = None
    """Its place among the members."""
    waits_for: int = 0
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """A job or a group that another job waits for."""

    id: UUID
    is_job: bool


@dataclass(slots=True)
class Plan:
    """The places of a batch of new jobs, and their dependencies as (job, source, needs)."""

    places: list[Place]
    dependencies: list[tuple[UUID, Source, str]] = field(default_factory=list)
    sources: set[Source] = field(default_factory=set)
    """Jobs and groups they wait for that existed before."""
    groups: dict[UUID, NewGroup] = field(default_factory=dict)
    """Groups to create."""
    specs: dict[int, JobSpec] = field(default_factory=dict)
    """Specs with ids instead of names in inputs from other jobs, by the job's index; only of jobs with such inputs."""


def plan(
    connection: Connection,
    jobs: Sequence[NewJob],
    ids: Sequence[UUID],
    group: tuple[UUID, NewGroup] | None,
    held: Collection[int] = (),
) -> Plan:
    """Finds groups and dependencies of ``jobs``, which will have these ``ids``. Writes nothing.

    ``group``: a new group for jobs that name none. ``held``: places of jobs that are not added, because unfinished jobs
    hold their unique keys; their ids are those of the holders, and other jobs can name them. Raises InvalidJob with a
    fault for each unknown name, for jobs that would wait for themselves, and for a new group without members.
    """
    joined = _Joined(connection, [job for at, job in enumerate(jobs) if at not in held] if held else jobs, group)
    groups = [joined.of(job) for job in jobs]
    limits = {group_id: (limited, count(first)) for group_id, (limited, first) in joined.limits().items()}
    waits = _Waits(connection, jobs, ids, groups, joined, held)
    places = []
    dependencies: list[tuple[UUID, Source, str]] = []
    specs: dict[int, JobSpec] = {}
    last: UUID | None = None
    limited, numbers = False, count()
    for at, job in enumerate(jobs):
        if at in held:
            places.append(Place())
            continue
        found = waits.of(at, job) if waits.wanted else {}
        if waits.wanted and stored_inputs(job.spec):
            specs[at] = waits.spec_of(at, job, found)
        if found:
            dependencies += ((ids[at], source, needs) for source, needs in found.items())
        group_id = groups[at]
        if group_id is None:
            places.append(Place(waits_for=len(found), blocked=bool(found)))
            continue
        if group_id is not last:
            last, (limited, numbers) = group_id, limits[group_id]
        places.append(Place(group_id, next(numbers), len(found), limited or bool(found)))
    if len(dependencies) > MAX_DEPENDENCIES:
        waits.faults.append(f"after: {len(dependencies):,} dependencies; the most is {MAX_DEPENDENCIES:,}: use a group")
    if group is not None and next(limits[group[0]][1]) == 0:
        waits.faults.append(NO_MEMBERS)
    if waits.faults:
        raise InvalidJob(waits.faults)
    if dependencies:
        waits.refuse_circles(dependencies)
    new = {job_id for at, job_id in enumerate(ids) if at not in held} if dependencies else set()
    sources = {source for _, source, _ in dependencies if source.id not in new and source.id not in joined.made}
    return Plan(places, dependencies, sources, joined.made, specs)


def write_groups(connection: Connection, new: Mapping[UUID, NewGroup]) -> None:
    """Inserts new groups, without members yet."""
    for group_id, group in new.items():
        parameters = {
            "group_id": group_id,
            "name": group.name,
            "user_id": group.user_id,
            "labels": json.dumps(dict(group.labels)),
            "max_parallel": group.max_parallel,
            "stop_after_failures": group.stop_after_failures,
            "notify": group.notify,
        }
        fetch(connection, _SQL["create"], parameters)


def write_dependencies(connection: Connection, plan: Plan) -> None:
    """Inserts the dependencies of all added jobs, and counts those that are satisfied."""
    lines = (
        f"{job_id}\t{source.id if source.is_job else _NULL}\t{_NULL if source.is_job else source.id}\t{needs}\n"
        for job_id, source, needs in plan.dependencies
    )
    with translated(), connection.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
        cursor.copy_expert(_SQL["copy_dependencies"], cast("TextIO", Stream(lines)), _CHARACTERS)
    if plan.sources:
        fetch(connection, _SQL["settle_sources"], _by_kind(plan.sources))


class _Joined:
    """The groups that new jobs join: existing ones by name or id, and new ones."""

    def __init__(self, connection: Connection, jobs: Sequence[NewJob], group: tuple[UUID, NewGroup] | None) -> None:
        self._connection = connection
        self._default = None if group is None else group[0]
        self._ids: dict[str | None, UUID | None] = {None: self._default}
        self.made: dict[UUID, NewGroup] = {} if group is None else dict([group])
        self.names: dict[str, UUID] = {}
        """Group ids by the names that the jobs use."""
        faults = []
        for wanted in sorted({str(job.group) for job in jobs if job.group is not None}):
            if (as_id := id_of(wanted)) is None:
                self._ids[wanted] = self.names[wanted] = self._named(wanted)
            elif fetch(connection, _SQL["limits"], {"ids": [as_id]}):
                self._ids[wanted] = as_id
            else:
                faults.append(f"group: there is no group {wanted}")
        if faults:
            raise InvalidJob(faults)

    def of(self, job: NewJob) -> UUID | None:
        return self._default if job.group is None else self._ids.get(str(job.group))

    @property
    def old(self) -> list[UUID]:
        """Groups that existed before."""
        return [group for group in self._ids.values() if group is not None and group not in self.made]

    def limits(self) -> dict[UUID, tuple[bool, int]]:
        """For each group: whether it limits running members, and the next member's place."""
        rows = []
        if self.old:
            fetch(self._connection, _SQL["lock_groups"], {"ids": self.old})
            rows = fetch(self._connection, _SQL["limits"], {"ids": self.old})
        made = {group_id: (group.max_parallel is not None, 0) for group_id, group in self.made.items()}
        return made | {row["group_id"]: (row["limited"], row["next_index"]) for row in rows}

    def _named(self, name: str) -> UUID:
        fetch(self._connection, _SQL["lock_name"], {"name": name})
        for row in fetch(self._connection, _SQL["unfinished_named"], {"name": name}):
            found: UUID = row["group_id"]
            return found
        made = uuid4()
        self.made[made] = NewGroup(name=name)
        return made


class _Waits:
    """Resolves the names and ids that new jobs wait for."""

    def __init__(
        self,
        connection: Connection,
        jobs: Sequence[NewJob],
        ids: Sequence[UUID],
        groups: Sequence[UUID | None],
        joined: _Joined,
        held: Collection[int],
    ) -> None:
        self._connection = connection
        self._jobs, self._ids, self._groups, self._joined = jobs, ids, groups, joined
        self._cache: dict[tuple[UUID | None, str], tuple[Source, ...] | None] = {}
        self._named: defaultdict[tuple[UUID | None, str], list[UUID]] = defaultdict(list)
        self._known: dict[UUID, Source] = {}
        self._groups_named: dict[str, UUID] = {}
        self.faults: list[str] = []
        new = (job for at, job in enumerate(jobs) if at not in held) if held else jobs
        waiting = (job for job in new if job.after or job.after_ended or stored_inputs(job.spec))
        self.wanted = wanted = {str(reference) for job in waiting for reference in references(job)}
        """Ids and names that some of them wait for."""
        if not wanted:
            return
        for at, job in enumerate(jobs):
            # One that is not added may name a group that nobody joins.
            if job.name is not None and (groups[at] is not None or job.group is None):
                self._named[groups[at], job.name].append(ids[at])
        asked = [as_id for reference in wanted if (as_id := id_of(reference)) is not None]
        if asked:
            rows = fetch(connection, _SQL["known"], {"ids": asked})
            self._known = {row["id"]: Source(row["id"], row["is_job"]) for row in rows}
        names = [reference for reference in wanted if id_of(reference) is None]
        if names and joined.old:
            for row in fetch(connection, _SQL["members_named"], {"groups": joined.old, "names": names}):
                self._named[row["group_id"], names[row["place"]]].append(row["job_id"])
        if names:
            rows = fetch(connection, _SQL["groups_named"], {"names": names})
            self._groups_named = {names[row["place"]]: row["group_id"] for row in rows}

    def of(self, at: int, job: NewJob) -> dict[Source, str]:
        """The job's dependencies, each with ``succeeded`` or ``ended``; notes a fault for each unknown name."""
        found: dict[Source, str] = {}
        for needs, field_name, references in (
            ("ended", "after_ended", job.after_ended),
            ("succeeded", "after", job.after),
        ):
            for reference in references:
                sources = self._resolved(self._groups[at], str(reference))
                if sources is None:
                    where = f"job {at + 1}: " if len(self._jobs) > 1 else ""
                    self.faults.append(
                        f"{where}{field_name}: there is no job or group {str(reference)!r}: give a whole id, a group's"
                        " name, or the name of a job of the same group"
                    )
                for source in sources or ():
                    found[source] = needs
        return found

    def spec_of(self, at: int, job: NewJob, found: dict[Source, str]) -> JobSpec:
        """The spec with ids instead of names in its ``job:`` and ``group:`` inputs; each becomes a dependency too."""
        inputs: list[Input] = []
        for number, item in enumerate(job.spec.inputs):
            if not is_stored(item.uri):
                inputs.append(item)
                continue
            kind, _, rest = item.uri.partition(":")
            reference, _, glob = rest.partition("/")
            sources = self._resolved(self._groups[at], reference)
            source = next((each for each in sources or () if each.is_job == (kind == "job")), None)
            if source is None:
                where = f"job {at + 1}: " if len(self._jobs) > 1 else ""
                self.faults.append(f"{where}inputs[{number}].uri: there is no {kind} {reference!r}")
                continue
            found.setdefault(source, "succeeded")
            inputs.append(replace(item, uri=f"{kind}:{source.id}/{glob}"))
        return replace(job.spec, inputs=tuple(inputs))

    def refuse_circles(self, dependencies: Sequence[tuple[UUID, Source, str]]) -> None:
        """Raises InvalidJob if a job would wait for itself, through other jobs or its own group."""
        above: defaultdict[UUID, set[UUID]] = defaultdict(set)
        for job_id, source, _ in dependencies:
            above[job_id].add(source.id)
        awaited = {source.id for _, source, _ in dependencies if not source.is_job}
        for job_id, group in zip(self._ids, self._groups, strict=True):
            if group in awaited and group is not None:
                above[group].add(job_id)
        try:
            TopologicalSorter(above).prepare()
        except CycleError as error:
            names = {job_id: job.name or str(job_id) for job_id, job in zip(self._ids, self._jobs, strict=True)}
            names |= {group: f"group {name}" for name, group in self._joined.names.items()}
            circle = " waits for ".join(names.get(node, f"group {node}") for node in reversed(error.args[1]))
            raise InvalidJob([f"after: {circle}: a circle never ends"]) from None
        if not self._joined.old:
            return
        awaited_ids = _by_kind({source for _, source, _ in dependencies})
        # Groups alone grow: what leads to none now never will, so that nobody need wait for others who add to groups.
        if not fetch(self._connection, _SQL["leads_to"], awaited_ids):
            return
        fetch(self._connection, _SQL["lock_graph"], {})
        for row in fetch(self._connection, _SQL["leads_to"], awaited_ids):
            if (group := row["group_id"]) in self._joined.old:
                raise InvalidJob(
                    [f"after: what these jobs wait for waits for their group {group}: a circle never ends"]
                )

    def _resolved(self, group: UUID | None, reference: str) -> tuple[Source, ...] | None:
        key = group, reference
        if key not in self._cache:
            self._cache[key] = self._resolve(group, reference)
        return self._cache[key]

    def _resolve(self, group: UUID | None, reference: str) -> tuple[Source, ...] | None:
        if (as_id := id_of(reference)) is not None:
            return (self._known[as_id],) if as_id in self._known else None
        if members := self._named.get((group, reference)):
            return tuple(Source(job_id, True) for job_id in dict.fromkeys(members))
        found = self._joined.names.get(reference) or self._groups_named.get(reference)
        return None if found is None else (Source(found, False),)


def id_of(text: str) -> UUID | None:
    """The reference as a UUID; None if it is a name."""
    try:
        return UUID(text) if len(text) in (32, 36) else None
    except ValueError:
        return None


def stored_inputs(spec: JobSpec) -> bool:
    """Whether a job has inputs from other jobs."""
    return bool(spec.inputs) and any(is_stored(item.uri) for item in spec.inputs)


def references(job: NewJob) -> Iterator[str | UUID]:
    """What the job waits for: ids and names."""
    yield from job.after
    yield from job.after_ended
    for item in job.spec.inputs:
        if is_stored(item.uri):
            yield item.uri.partition(":")[2].partition("/")[0]


def _by_kind(sources: Collection[Source]) -> dict[str, list[UUID]]:
    return {
        "jobs": [source.id for source in sources if source.is_job],
        "groups": [source.id for source in sources if not source.is_job],
    }
