"""Validation of a job before it is stored, and its JSON form: one object a line, with the names of the CLI's options.

Every fault is one sentence that starts with its field, e.g. ``node_size: there is no 'XSMAL'; did you mean XSMALL?``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Annotated, Any, Final, Required

from pydantic import AliasChoices, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from rythmiq_ray import job_fields as of
from rythmiq_ray.checks import Between, FaultList, Text, kind_of, place, quote, sentence, suggestion
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.job_fields import Duration, OneLine, default_name
from rythmiq_ray.model import EACH_USER, FORMER_NAMES, Input, JobSpec, NewGroup, NewJob

if TYPE_CHECKING:
    from rythmiq_ray.config import CamberCatalog

__all__ = [
    "Line",
    "check",
    "check_all",
    "check_group",
    "default_name",
    "json_schema",
    "parse",
    "parse_lines",
    "read_spec",
]

MAX_TIMEOUT_S: Final = 30 * 86_400
MAX_DELAY_S: Final = 365 * 86_400
MAX_INTEGER: Final = 2**31 - 1
"""What a column of Postgres holds."""


def _names(former: str) -> Any:
    """The pydantic field of a key that is also accepted under its former name."""
    return Field(validation_alias=AliasChoices(FORMER_NAMES[former], former))


@with_config(ConfigDict(extra="forbid", title="Job", use_attribute_docstrings=True, hide_input_in_errors=True))
class Line(TypedDict, total=False):
    """One job: a line of `rythmiq enqueue --file`. Missing fields have the defaults of JobSpec and NewJob."""

    command: Required[of.Command]
    """The command that bash runs in the job's working directory."""
    engine: Text
    """One of Camber's engines, in any case."""
    node_size: Text
    """One of Camber's node sizes, in any case."""
    num_nodes: Annotated[of.Integer, Between(1, 100)]
    """The number of nodes."""
    gpu: of.Flag
    """Whether the nodes have GPUs."""
    inputs: of.Inputs
    """Files that are put into the working directory before the command starts."""
    outputs: of.Outputs
    """Globs of the files to keep, relative to the working directory; ** crosses folders."""
    env: of.Env
    """Environment variables of the command."""
    secrets: of.Secrets
    """Names of environment variables whose values are the driver's RYTHMIQ_SECRET_<NAME>."""
    timeout: Annotated[Annotated[float, Duration(MAX_TIMEOUT_S)] | None, _names("timeout_s")]
    """How long the command may run: seconds, or text with a unit of s, m, h, d or w; null = the driver's default."""
    retry_exit_codes: of.ExitCodes | None
    """Exit codes that lead to another attempt; null = all but 0."""
    queue: Annotated[Text, OneLine(1, 100)]
    """The queue's name."""
    priority: Annotated[of.Integer, Between(-1000, 1000)]
    """Higher goes first."""
    max_attempts: Annotated[of.Integer, Between(1, 100)]
    """The most attempts, the first one included."""
    user_id: Annotated[Text, OneLine(0, 200, but=EACH_USER)] | None
    """The user whose job it is, as the enqueuer says; not ``*``, which stands for each user in limits."""
    unique_key: Annotated[Text, OneLine(1, 500)] | None
    """While a job with this key is unfinished, no other one with the key is added."""
    delay: Annotated[float, Duration(MAX_DELAY_S, zero=True), _names("delay_s")]
    """The shortest time from enqueue to start: seconds, or text with a unit of s, m, h, d or w."""
    name: of.Name | None
    """Shown to people; other jobs of the same group may refer to it."""
    params: of.Env | None
    """The parameters that tell it from the other members of its group; environment variables of the command, too."""
    labels: of.Labels
    """Names and values to filter by and to sum costs by."""
    group: of.Reference | None
    """Its group: the id of an existing group, or the name of an unfinished one; any other name creates a group."""
    after: of.References
    """It starts once these have SUCCEEDED: ids of jobs and groups, or names of jobs and groups of this file."""
    after_ended: of.References
    """It starts once these have ended, in whatever state."""
    notify: of.Notify | None
    """A URL that gets a signed POST each time the job has ended."""
    traceparent: of.Traceparent | None
    """The trace that its attempts belong to, as W3C Trace Context writes it."""


@with_config(ConfigDict(hide_input_in_errors=True))
class GroupFields(TypedDict):
    """What a new group has."""

    name: of.Name | None
    user_id: Annotated[Text, OneLine(0, 200)] | None
    labels: of.Labels
    max_parallel: Annotated[of.Integer, Between(1, MAX_INTEGER)] | None
    stop_after_failures: Annotated[of.Integer, Between(1, MAX_INTEGER)] | None
    notify: of.Notify | None


class Own(TypedDict):
    """The fields in which members of a sweep differ from each other."""

    name: of.Name | None
    params: of.Env | None


_LINE: Final = TypeAdapter(Line)
_GROUP: Final = TypeAdapter(GroupFields)
_FIELDS: Final = tuple(sorted(Line.__annotations__))
_INPUT_FIELDS: Final = ("uri", "name")
_SPEC_FIELDS: Final = frozenset(field.name for field in fields(JobSpec))
_SPEC_NAMES: Final = tuple(sorted(_SPEC_FIELDS))
_SPEC_DEFAULTS, _QUEUE_DEFAULTS = (
    # Not command and spec, which have no default, nor env and labels, whose default is a new dict each time.
    {field.name: field.default for field in fields(model) if field.default is not MISSING}
    for model in (JobSpec, NewJob)
)
_DEFAULTS: Final = {**_SPEC_DEFAULTS, **_QUEUE_DEFAULTS}
_OWN: Final = TypeAdapter(Own)
_shared_values: Final = attrgetter(*(name for name in _QUEUE_DEFAULTS if name not in ("name", "params")))
_spec_values: Final = attrgetter(*_SPEC_DEFAULTS)
_queue_values: Final = attrgetter(*_QUEUE_DEFAULTS)
_SHOWN: Final = 20
"""How many unknown fields of a stored spec are named: the search for a similar known name takes time for each."""


def check(job: NewJob, catalog: CamberCatalog, *, local: bool = False) -> list[str]:
    """All faults of a job, each starting with its field; an empty list if it may be enqueued. Raises nothing.

    Values of a wrong type are faults too, whatever the type hints say. ``catalog``: what Camber offers
    (``conf/camber.yaml``). ``local``: inputs may be paths of this machine, which are uploaded later.
    """
    line: dict[str, Any] = {"command": job.spec.command}
    if (env := job.spec.env) or type(env) is not dict:
        line["env"] = env
    if (labels := job.labels) or type(labels) is not dict:
        line["labels"] = labels
    # Most fields of most jobs are the default object itself and need no check. Equality is not enough: True == 1.
    values = _spec_values(job.spec) + _queue_values(job)
    if not all(map(is_, values, _DEFAULTS.values())):
        rows = zip(_DEFAULTS.items(), values, strict=True)
        line.update((name, value) for (name, default), value in rows if value is not default)
    try:
        _LINE.validator.validate_python(line)
    except ValidationError as error:
        return [*_sentences(error), *_faults_beyond(line, catalog, local=local)]
    return _faults_beyond(line, catalog, local=local)


def check_all(jobs: Iterable[NewJob], catalog: CamberCatalog, *, local: bool = False) -> Iterator[list[str]]:
    """As :func:`check`, for each job. Of consecutive jobs that differ only in name and parameters, only these are
    checked again, which makes large sweeps fast."""
    checked: NewJob | None = None
    for job in jobs:
        if checked is not None and _differ_in_own_alone(job, checked) and not job.spec.secrets:
            try:
                _OWN.validator.validate_python({"name": job.name, "params": job.params})
                yield []
                continue
            except ValidationError:
                pass
        faults = check(job, catalog, local=local)
        checked = None if faults else job
        yield faults


def check_group(group: NewGroup) -> list[str]:
    """All faults of a new group, as :func:`check` says them."""
    try:
        _GROUP.validator.validate_python(vars(group))
    except ValidationError as error:
        return list(_sentences(error))
    return []


def _differ_in_own_alone(job: NewJob, other: NewJob) -> bool:
    if job.spec is not other.spec or (job.labels is not other.labels and job.labels != {}):
        return False
    return all(map(is_, _shared_values(job), _shared_values(other)))


def parse(data: Mapping[str, Any]) -> NewJob:
    """The job that a JSON object describes; its keys are the fields of JobSpec and NewJob.

    Raises InvalidJob with all faults, except those against the catalog, which :func:`check` finds.
    """
    job, faults = _read(data, None, local=True)
    if job is None or faults:
        raise InvalidJob(faults)
    return job


def read_spec(data: object) -> tuple[JobSpec, list[str]]:
    """A stored spec, and all its faults except those against the catalog. Raises nothing.

    A field with a fault has its default in the returned spec, so that code which shows it need not check it again.
    """
    if not isinstance(data, Mapping):
        return JobSpec(command=""), [f"spec: must be an object, not {kind_of(data)}"]
    names = (*_SPEC_FIELDS, *(former for former, name in FORMER_NAMES.items() if name in _SPEC_FIELDS))
    line = {name: data[name] for name in names if name in data}
    unknown = sorted(map(str, data.keys() - line.keys()))
    faults = [
        f"{quote(name)}: is not a field of a spec{suggestion(name[:80], _SPEC_NAMES)}" for name in unknown[:_SHOWN]
    ]
    if len(unknown) > _SHOWN:
        faults.append(f"spec: has {len(unknown) - _SHOWN:,} more unknown fields")
    job, found = _read(line, None)
    if job is None:
        odd = {fault.partition(":")[0].partition(".")[0].partition("[")[0] for fault in found}
        job, _ = _read({"command": "-", **{name: value for name, value in line.items() if name not in odd}}, None)
        job = None if job is None or "command" in odd else job
    return JobSpec(command="") if job is None else job.spec, faults + found


def parse_lines(lines: Iterable[str | bytes], catalog: CamberCatalog) -> list[NewJob]:
    """The jobs of a JSON Lines file in UTF-8, one object a line; blank lines and a byte order mark are skipped.

    Raises InvalidJob if any line has a fault, with every fault as ``line <number>: <field>: <fault>``.
    """
    jobs: list[NewJob] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            data = _decode(line, first=number == 1)
        except ValueError as error:
            faults.append(f"line {number}: {error}")
            continue
        if data is None:
            continue
        job, found = _read(data, catalog, local=True)
        faults.extend(f"line {number}: {fault}" for fault in found)
        if job is not None:
            jobs.append(job)
    if faults:
        raise InvalidJob(faults)
    return jobs


def _read(
    data: Mapping[str, Any], catalog: CamberCatalog | None, *, local: bool = False
) -> tuple[NewJob | None, list[str]]:
    """The job and its faults; no job if the value of a field is invalid by itself."""
    try:
        line: dict[str, Any] = _LINE.validator.validate_python(dict(data))
    except ValidationError as error:
        return None, [*_sentences(error), *_faults_beyond(data, catalog, local=local)]
    spec = {name: line.pop(name) for name in _SPEC_FIELDS.intersection(line)}
    if "inputs" in spec:
        spec["inputs"] = tuple(Input(**item) for item in spec["inputs"])
    return NewJob(spec=JobSpec(**spec), **line), _faults_beyond(spec, catalog, local=local)


def _sentences(error: ValidationError) -> Iterator[str]:
    for fault in error.errors(include_url=False):
        field = place(fault)
        cause = fault.get("ctx", {}).get("error")
        former = FORMER_NAMES.get(str(fault["loc"][0])) if fault["type"] == "extra_forbidden" else None
        if isinstance(cause, FaultList):
            yield from (f"{field}{part}: {said}" for part, said in cause.faults)
        elif former is not None:
            yield f"{field}: is the former name of {former}, which is given too"
        else:
            yield f"{field}: {sentence(fault, _INPUT_FIELDS if len(fault['loc']) > 1 else _FIELDS)}"


def _faults_beyond(line: Mapping[str, Any], catalog: CamberCatalog | None, *, local: bool) -> list[str]:
    """The faults that concern several fields or what Camber offers. Values may be of any type here."""
    faults: list[str] = []
    if not local and (inputs := line.get("inputs")) and isinstance(inputs, tuple | list):
        faults.extend(_local_faults(inputs))
    if (secrets := line.get("secrets")) and isinstance(secrets, tuple | list):
        for field in ("env", "params"):
            env = line.get(field)
            names = (name for name in secrets if isinstance(name, str) and isinstance(env, Mapping) and name in env)
            faults.extend(f"secrets: {quote(name)} is in {field} too" for name in dict.fromkeys(names))
    if catalog is None:
        return faults
    engine, size = line.get("engine", JobSpec.engine), line.get("node_size", JobSpec.node_size)
    if isinstance(engine, str) and (engine.upper() not in catalog.engines or not engine.isascii()):
        faults.append(f"engine: there is no {quote(engine)}{suggestion(engine.upper(), catalog.engines)}")
    sizes = catalog.gpu_sizes if line.get("gpu") is True else catalog.cpu_sizes
    if isinstance(size, str) and ((name := size.upper()) not in sizes or not size.isascii()):
        if name in catalog.cpu_sizes and size.isascii():
            faults.append(f"node_size: {name} has no GPU; those that have one are {', '.join(sizes)}")
        elif name in catalog.gpu_sizes and size.isascii():
            faults.append(f"node_size: {name} is available only with gpu")
        else:
            faults.append(f"node_size: there is no {quote(size)}{suggestion(name, tuple(sizes))}")
    return faults


def _local_faults(inputs: Iterable[object]) -> Iterator[str]:
    for at, item in enumerate(inputs):
        uri = item.get("uri") if isinstance(item, Mapping) else getattr(item, "uri", None)
        if isinstance(uri, str) and of.is_local(uri):
            said = "must start with a scheme: s3://bucket/key, file:///path, http://… or https://…"
            yield f"inputs[{at}].uri: {said}; paths of this machine are uploaded by `rythmiq enqueue` and by Client"


# Decoding: pydantic's own decoder would accept NaN, and of two equal keys it would take the last.


class _NotAnObject(ValueError):
    """A line that is not a JSON object; its message completes the sentence ``line N: …``."""


def _decode(line: str | bytes, *, first: bool) -> dict[str, Any] | None:
    if isinstance(line, bytes):
        try:
            line = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _NotAnObject(f"is not UTF-8 (byte {error.start + 1})") from None
    if first:
        line = line.removeprefix("\ufeff")
    if not line or line.isspace():
        return None
    try:
        data = _DECODER.decode(line)
    except _NotAnObject:
        raise
    except json.JSONDecodeError as error:
        raise _NotAnObject(f"is not JSON: {error.msg} at column {error.pos + 1}") from None
    except RecursionError:
        raise _NotAnObject("is not a job: its JSON is nested too deeply") from None
    except ValueError:
        raise _NotAnObject("is not JSON: a number in it is too long") from None
    if not isinstance(data, dict):
        raise _NotAnObject(f"must be an object, not {kind_of(data)}")
    return data


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        twice = [quote(key) for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        raise _NotAnObject(f"{', '.join(twice)}: is there twice")
    return data


def _no_constant(name: str) -> Any:
    raise _NotAnObject(f"is not JSON: {name} is not a number there")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique_pairs, parse_constant=_no_constant)


# The schema


def json_schema(catalog: CamberCatalog) -> dict[str, Any]:
    """The JSON Schema of a line. It accepts all that :func:`check` accepts, and refuses what a schema can express.

    It cannot express sizes in bytes, names that differ only in case, and names that are both variables and secrets.
    """
    schema = _LINE.json_schema(mode="validation")
    properties = schema["properties"]
    for name, default in _DEFAULTS.items():
        properties[name]["default"] = default
    for former, name in FORMER_NAMES.items():
        properties[former] = {**properties[name], "deprecated": True, "description": f"The former name of {name}."}
    properties["engine"]["pattern"] = _pattern(catalog.engines)
    either = {
        branch: {"properties": {"node_size": {"pattern": _pattern(sizes)}}}
        for branch, sizes in (("then", catalog.gpu_sizes), ("else", catalog.cpu_sizes))
    }
    named, nameless = {"required": ["name"], "properties": {"name": {"type": "string"}}}, of.NAMELESS
    schema["$defs"]["InputFields"]["anyOf"] = [named, {"properties": {"uri": {"pattern": nameless}}}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "not": {"anyOf": [{"required": [former, name]} for former, name in FORMER_NAMES.items()]},
        "if": {"properties": {"gpu": {"const": True}}, "required": ["gpu"]},
        **either,
    }


def _pattern(names: Iterable[str]) -> str:
    return f"^({of.any_case(*names)})$"
