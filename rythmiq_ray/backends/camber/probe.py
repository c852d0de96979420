"""Finds out which routes, field names and envelope the live service has, because that part of the contract is inferred.

Nothing is created, changed or removed. A request only reads, or has a value of a wrong type, or names a job or file
that cannot exist; the service's error message then shows what it knows. The routes and names to try are data
(:mod:`rythmiq_ray.backends.camber.candidates`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

from rythmiq_ray.backends.camber import candidates
from rythmiq_ray.backends.camber.answers import Answer, printable
from rythmiq_ray.backends.camber.transport import Request, Transport, Unanswered
from rythmiq_ray.config import CamberConfig, CamberRoute
from rythmiq_ray.errors import BackendRefusedKey, BackendUnavailable
from rythmiq_ray.secret import MASK, Secret

_NO_JOB: Final = 2**53 - 1
"""An id that no job has, because ids are small."""
_WRONG: Final[dict[str, object]] = {}
"""A value that no field accepts: an object."""
_TYPE_FAULT: Final = re.compile(r"Unmarshal type error.*\bfield=([\w.\-]+)", re.IGNORECASE)
_GONE: Final = re.compile(r"not found|no such|not exist|unknown (job|file|path)", re.IGNORECASE)
_DOMAIN_FAILURE: Final = 2
_COMPLAINTS: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
_STASH: Final = ("stash_list", "stash_read", "stash_write", "stash_remove")


@dataclass(frozen=True)
class Note:
    """The finding about one operation."""

    operation: str
    outcome: str
    """``ok`` = as configured, ``differs`` = as the layer says, ``unknown``, or ``fault``."""
    said: str


@dataclass(frozen=True)
class Learnt:
    """All findings of a probe."""

    notes: Sequence[Note]
    layer: Mapping[str, Any]
    """The differences from the configuration, as a configuration layer; empty if there are none."""


def probe(config: CamberConfig, key: Callable[[], Secret]) -> Learnt:
    """Tests each inferred route and name with the service.

    Raises BackendUnavailable if it does not answer, and BackendRefusedKey.
    """
    transport = Transport(config.endpoint, key, 1)
    try:
        found = _Probe(config, transport, key)
        found.run()
        return Learnt(found.notes, found.layer())
    finally:
        transport.close()


@dataclass
class _Probe:
    _config: CamberConfig
    _transport: Transport
    _key: Callable[[], Secret]
    notes: list[Note] = field(default_factory=list)
    _routes: dict[str, CamberRoute] = field(default_factory=dict)
    _fields: dict[str, dict[str, str]] = field(
        default_factory=lambda: {"create": {}, "job": {}, "list": {}, "stash": {}}
    )
    _envelope: str | None = None
    _owner: str = ""
    _stranger: tuple[int, str] = (HTTPStatus.NOT_FOUND, "Not Found")
    """Status and message of the answer to a route that does not exist."""

    def run(self) -> None:
        stranger = self._ask(CamberRoute(method="GET", path=f"/rythmiq-{uuid4().hex[:12]}"))
        self._stranger = (stranger.status, stranger.message)
        self._me()
        jobs = self._list()
        self._get(jobs)
        self._create()
        self._logs()
        self._cancel()
        self._stash()

    def layer(self) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        if self._envelope is not None and self._envelope != self._config.envelope:
            tree["envelope"] = self._envelope
        routes = {
            operation: {"method": route.method, "path": route.path}
            for operation, route in self._routes.items()
            if route != self._config.routes[operation]
        }
        if routes:
            tree["routes"] = routes
        configured = self._config.fields
        now = {"create": configured.create, "job": configured.job, "list": configured.list, "stash": configured.stash}
        fields: dict[str, dict[str, str]] = {}
        for place, names in self._fields.items():
            changed = {ours: theirs for ours, theirs in names.items() if now[place].get(ours, ours) != theirs}
            if changed:
                fields[place] = changed
        if fields:
            tree["fields"] = fields
        return {"camber": tree} if tree else {}

    # ------------------------------------------------------------------------------------------------ operations

    def _me(self) -> None:
        for route in self._tried("me"):
            answer = self._ask(route)
            if answer.ok and (found := _within(answer.json, lambda data: isinstance(data.get("username"), str))):
                key, data = found
                self._envelope = key or None
                self._owner = data["username"]
                said = f"answers as {self._owner!r}" + (
                    f", in the envelope {key!r}" if key else ", without an envelope"
                )
                self._learnt("me", route, said, changed=bool(key) and key != self._config.envelope)
                return
        raise BackendUnavailable("Camber's answer to me names no user by any known route (is camber.endpoint right?)")

    def _list(self) -> list[dict[str, Any]]:
        """The jobs on the first page, with the service's names."""
        ids = candidates.JOB["job_id"]
        for route in self._tried("list"):
            answer = self._ask(route)
            jobs = _array(answer.json, ids) if answer.ok else None
            if jobs is None:
                continue
            if not jobs:
                self._learnt(
                    "list", route, "the list is empty: names of a job and of paging are unknown until it has two"
                )
                return []
            names = {ours: _first(theirs, jobs[0]) for ours, theirs in candidates.JOB.items()}
            self._fields["job"] = {ours: theirs for ours, theirs in names.items() if theirs}
            paging = self._paging(route, len(jobs), self._fields["job"]["job_id"])
            missing = [ours for ours in ("job_id", "job_status", "mount_dir") if not names[ours]]
            said = f"{len(jobs)} jobs on the first page"
            if missing:
                said += f"; no field is known for {', '.join(missing)}: a job has {', '.join(sorted(jobs[0]))}"
            changed = self._renamed("job") or self._renamed("list")
            self._note("list", route, "fault" if missing else None, f"{said}; {paging}", changed)
            return jobs
        self._unknown("list")
        return []

    def _paging(self, route: CamberRoute, count: int, job_id: str) -> str:
        if count < 2:
            return "one job alone: names of paging are unknown until there are two"
        configured = self._config.fields.list
        pairs = [(configured.get("page", "page"), configured.get("size", "size")), *candidates.PAGING]
        for page, size in dict.fromkeys(pairs):
            first, second = (
                _array(self._ask(route, {page: number, size: "1"}).json, (job_id,)) for number in ("1", "2")
            )
            if first and second and len(first) == len(second) == 1 and first[0][job_id] != second[0][job_id]:
                self._fields["list"] = {"page": page, "size": size}
                return f"paging by {page} and {size}"
        return "no known names of paging have an effect"

    def _get(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        name = self._fields["job"].get("job_id", "job_id")
        for route in self._tried("get"):
            if jobs:
                answer = self._ask(_of(route, jobs[0][name]))
                if answer.ok and _within(answer.json, lambda data: data.get(name) == jobs[0][name]):
                    self._learnt("get", route, f"gives job {jobs[0][name]}")
                    return
            elif self._is_gone(self._ask(_of(route, _NO_JOB))):
                self._learnt("get", route, "says that there is no such job")
                return
        self._unknown("get")

    def _logs(self) -> None:
        self._by_missing_job("logs")

    def _cancel(self) -> None:
        self._by_missing_job("cancel", none="jobs are ended by the marker file alone")

    def _by_missing_job(self, operation: str, none: str = "") -> None:
        for route in self._tried(operation):
            if self._is_gone(self._ask(_of(route, _NO_JOB))):
                self._learnt(operation, route, "says that there is no such job")
                return
        self._unknown(operation, none)

    def _create(self) -> None:
        configured = self._config.fields.create
        options = {
            ours: tuple(dict.fromkeys((configured.get(ours, ours), *names)))
            for ours, names in candidates.CREATE.items()
        }
        everything = {name: _WRONG for names in options.values() for name in names}
        for route in self._tried("create"):
            answer = self._ask_create(route, everything)
            if (known := _field(answer)) is not None and known in everything:
                names = self._names_of(route, everything, known)
                self._fields["create"] = {
                    ours: theirs
                    for ours, tried in options.items()
                    if (theirs := next((name for name in tried if name in names), None))
                }
                missing = [ours for ours in options if ours not in self._fields["create"]]
                said = "takes " + ", ".join(self._fields["create"].values())
                if missing:
                    said += f"; no field is known for {', '.join(missing)}"
                needed = {"command", "mount_dir"}.intersection(missing)
                self._note("create", route, "fault" if needed else None, said, self._renamed("create"))
                return
            if not self._is_stranger(answer) and answer.status in _COMPLAINTS:
                self._note("create", route, "unknown", f"is there, and names no field: {answer.message}", False)
                return
        self._unknown("create")

    def _names_of(self, route: CamberRoute, everything: Mapping[str, object], known: str) -> set[str]:
        """The names that a create has. No request holds a command of the right type, so that none can be created."""
        names = {known}
        # A service that complains in the order of what was sent names any field that stands before the known one.
        others = [name for name in everything if name != known]
        found = {name for name in others if _field(self._ask_create(route, {name: _WRONG, known: _WRONG})) == name}
        if found:
            return names | found
        # One that complains in its own order names its first field until that is left out.
        left = dict(everything)
        while known in left:
            del left[known]
            if not left or (following := _field(self._ask_create(route, left))) is None:
                break
            names.add(known := following)
        return names

    def _stash(self) -> None:
        root = f"stash://{self._owner}/"
        missing = f"{root}rythmiq/doctor/{uuid4().hex}/probe.txt"
        self._stash_list(root)
        name = self._stash_read(missing)
        self._stash_write()
        self._stash_remove(missing, name)

    def _stash_list(self, root: str) -> None:
        names = self._path_names()
        for route in self._tried("stash_list"):
            name = _field(self._ask(route, json=dict.fromkeys(names, _WRONG)))
            if name not in names:
                continue
            answer = self._ask(route, json={name: root, "recursive": False})
            entries = _array(answer.json, (*candidates.STASH_PATH, *candidates.STASH_ENTRY["name"])) or []
            self._fields["stash"]["path"] = name
            if entries:
                options = candidates.STASH_ENTRY.items()
                self._fields["stash"] |= {
                    ours: theirs
                    for ours, theirs in ((ours, _first(theirs, entries[0])) for ours, theirs in options)
                    if theirs and theirs != name
                }
            said = f"takes {name}" + ("" if entries else "; the stash is empty: names of an entry are unknown")
            self._learnt("stash_list", route, said, changed=self._renamed("stash"))
            return
        self._unknown("stash_list")

    def _stash_read(self, missing: str) -> str | None:
        """The parameter by which a file is read."""
        for route in self._tried("stash_read"):
            for name in self._path_names():
                if self._is_gone(self._ask(route, {name: missing})):
                    self._learnt("stash_read", route, f"takes {name}")
                    listed = self._fields["stash"].setdefault("path", name)
                    if listed != name:
                        said = f"takes {name}, and stash_list {listed}: camber.fields.stash.path can name one alone"
                        self.notes[-1] = Note("stash_read", "fault", said)
                    return name
        self._unknown("stash_read")
        return None

    def _stash_write(self) -> None:
        for route in self._tried("stash_write"):
            answer = self._ask(route)  # without a place, so that there is nothing to write to
            if answer.status in _COMPLAINTS and not self._is_stranger(answer):
                self._learnt("stash_write", route, f"is there: {answer.message}")
                return
        self._unknown("stash_write")

    def _stash_remove(self, missing: str, name: str | None) -> None:
        """Asked only where the path and the name of its parameter are known from reading.

        A service that did not know the parameter could take its absence for the whole stash.
        """
        read = self._routes.get("stash_read")
        for route in self._tried("stash_remove"):
            if name is None or read is None or route.path != read.path:
                continue
            answer = self._ask(route, {name: missing})
            if answer.accepted or self._is_gone(answer):
                self._learnt("stash_remove", route, f"takes {name}")
                return
        self._unknown("stash_remove", "asked only on the path of stash_read, where it can harm nothing")

    # -------------------------------------------------------------------------------------------------- asking

    def _tried(self, operation: str) -> Iterator[CamberRoute]:
        yield self._config.routes[operation]
        configured = self._config.routes[operation]
        for method, path in candidates.ROUTES[operation]:
            route = CamberRoute(method=method, path=path)
            if route != configured:
                yield route

    def _path_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self._config.fields.stash.get("path", "path"), *candidates.STASH_PATH)))

    def _ask_create(self, route: CamberRoute, body: Mapping[str, object]) -> Answer:
        answer = self._ask(route, json=body)
        if answer.ok:
            said = answer.body[:200].decode(errors="replace").replace(self._key().reveal(), MASK)
            raise BackendUnavailable(
                f"{route.method} {route.path} took a request that holds no command, and answered {answer.status}:"
                f" {printable(said)}: look whether it created a job; the probe ends here"
            )
        return answer

    def _ask(self, route: CamberRoute, params: Mapping[str, str] | None = None, *, json: object = None) -> Answer:
        request = Request(
            method=route.method,
            path=f"{route.path}?{urlencode(params)}" if params else route.path,
            json=json,
            connect_timeout_s=self._config.connect_timeout_s,
            timeout_s=self._config.read_timeout_s,
            fresh=route.method != "GET",
        )
        try:
            answer = self._transport.call(request)
        except Unanswered as error:
            raise BackendUnavailable(f"{route.method} {route.path}: {error}") from error
        if answer.status == HTTPStatus.UNAUTHORIZED:
            words = answer.message.replace(self._key().reveal(), MASK)
            raise BackendRefusedKey(f"Camber refused the key: {words or answer.status}")
        return answer

    def _is_stranger(self, answer: Answer) -> bool:
        """Whether the service has no such route."""
        bare = answer.status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED) and answer.code is None
        return bare or (answer.status, answer.message) == self._stranger or answer.status == HTTPStatus.NOT_IMPLEMENTED

    def _is_gone(self, answer: Answer) -> bool:
        """Whether it says that what was named is not there, which shows that it knows what was named."""
        if answer.ok or self._is_stranger(answer):
            return False
        return answer.code == _DOMAIN_FAILURE or bool(_GONE.search(answer.message))

    # ------------------------------------------------------------------------------------------------- what was found

    def _renamed(self, place: str) -> bool:
        now = getattr(self._config.fields, place)
        return any(now.get(ours, ours) != theirs for ours, theirs in self._fields[place].items())

    def _learnt(self, operation: str, route: CamberRoute, said: str, *, changed: bool = False) -> None:
        self._note(operation, route, None, said, changed)

    def _note(self, operation: str, route: CamberRoute, outcome: str | None, said: str, changed: bool) -> None:
        self._routes[operation] = route
        differs = changed or route != self._config.routes[operation]
        self.notes.append(
            Note(operation, outcome or ("differs" if differs else "ok"), f"{route.method} {route.path} {said}")
        )

    def _unknown(self, operation: str, said: str = "") -> None:
        words = f"no known route answers as {operation} should"
        self.notes.append(Note(operation, "unknown", f"{words}: {said}" if said else words))


def _of(route: CamberRoute, job_id: object) -> CamberRoute:
    return CamberRoute(method=route.method, path=route.path.replace("{job_id}", str(job_id)))


def _field(answer: Answer) -> str | None:
    """The field whose type the service complains about, without the struct that it is in."""
    found = _TYPE_FAULT.search(answer.message)
    return found[1].rpartition(".")[2] if found and not answer.ok else None


def _first(names: Sequence[str], item: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in item), None)


def _within(body: object, is_it: Callable[[dict[str, Any]], bool]) -> tuple[str, dict[str, Any]] | None:
    """The object that is meant and the key it lies under, which is empty where it is the body itself."""
    if not isinstance(body, dict):
        return None
    for key, value in (("", body), *body.items()):
        if isinstance(value, dict) and is_it(value):
            return key, value
    return None


def _array(body: object, names: Sequence[str]) -> list[dict[str, Any]] | None:
    """The first array of objects with one of these names, at most two levels deep; empty where only empty ones are."""
    values = list(body.values()) if isinstance(body, dict) else [body]
    values += [item for value in values if isinstance(value, dict) for item in value.values()]
    arrays = [value for value in values if isinstance(value, list)]
    for array in arrays:
        items = [item for item in array if isinstance(item, dict) and any(name in item for name in names)]
        if items:
            return items
    return [] if any(not array for array in arrays) else None
