"""The typed configuration: every key, its unit, its range, its default's reason.

Defaults live in ``conf/*.yaml`` alone; a class here says what a key is and may be, and
:mod:`rythmiq_ray.config_loader` loads and checks it. All are frozen and may be pickled into a Ray task; secrets are
:class:`~rythmiq_ray.secret.Secret` and print as ``***``. Every time may be written as a number or with its unit, such
as ``30s`` or ``7d``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ConfigDict, PlainValidator, Strict, with_config

from rythmiq_ray.checks import Between, Text
from rythmiq_ray.duration import seconds_of
from rythmiq_ray.model import JobSpec
from rythmiq_ray.secret import Secret

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86_400.0
_MONTH: Final = 30 * _DAY
_YEAR: Final = 365 * _DAY
_MIB: Final = 1024**2
_MOST_IN_FLIGHT: Final = 1_000_000
_RIGHT_ENDPOINT: Final = "https://api-v2.cambercloud.com/api/cli"
_DEAD_HOSTS: Final = frozenset({"api.camber.cloud"})
"""Old notes show it as an example; it does not resolve (camber-api, section 1)."""
_CHECKED: Final = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)


def _number(value: object) -> object:
    """Environment variables are text; 1e3 is a whole number too."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _milliseconds(value: object) -> object:
    with_unit = isinstance(value, str) and value[-1:].isalpha()
    return _number(seconds_of(value) * 1000.0 if with_unit else value)


def _names(value: object) -> object:
    """A list may be written with commas."""
    return tuple(value.split(",")) if isinstance(value, str) else value


def _prefix(value: object) -> object:
    if isinstance(value, str) and (value.startswith("/") or value.endswith("/") or ".." in value.split("/")):
        raise ValueError("must not start or end with / nor hold ..")
    return value


def _absolute(path: str) -> str:
    """A relative one is the driver's; its nodes may work elsewhere."""
    return str(Path(path).absolute())


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _in_flight(value: object) -> object:
    number = _number(value)
    if value == "auto" or (type(number) is int and 1 <= number <= _MOST_IN_FLIGHT):
        return number
    raise ValueError(f"must be auto or a whole number from 1 to {_MOST_IN_FLIGHT:,}")


def _networks(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        try:
            ipaddress.ip_network(name)
        except ValueError:
            raise ValueError(f"{name} is no network such as 10.0.0.0/8") from None
    return names


def _secret(value: object) -> Secret:
    return Secret("" if value is None else str(value))


def _postgres(url: Secret) -> Secret:
    from rythmiq_ray.queue.dsn import check_dsn  # psycopg2 is for those that have a database to name

    if fault := check_dsn(url):
        raise ValueError(fault)
    return url


def _one_word(key: Secret) -> Secret:
    if any(letter.isspace() for letter in key.reveal()):
        raise ValueError("has white space in it, copy the key again")
    return key


def _endpoint(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"is no http(s) URL; the default is {_RIGHT_ENDPOINT}")
    if parts.hostname in _DEAD_HOSTS:
        raise ValueError(f"{parts.hostname} is a placeholder of old notes: use {_RIGHT_ENDPOINT}")
    if parts.username or parts.password:
        raise ValueError("holds a user or password; the key goes into CAMBER_API_KEY")
    return url


Whole = Annotated[int, Strict(), BeforeValidator(_number)]
Number = Annotated[float, Strict(), BeforeValidator(_number)]
Seconds = Annotated[float, BeforeValidator(seconds_of)]
Milliseconds = Annotated[int, Strict(), BeforeValidator(_milliseconds)]
Names = Annotated[tuple[Text, ...], BeforeValidator(_names)]
Flag = Annotated[bool, Strict()]
Hidden = Annotated[Secret, PlainValidator(_secret)]
PostgresUrl = Annotated[Hidden, AfterValidator(_postgres)]


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    env: Literal["local", "dev", "staging", "prod"]


@dataclass(frozen=True, kw_only=True)
class DatabaseConfig:
    url: PostgresUrl
    connect_timeout_s: Annotated[Seconds, Between(1, 10 * _MINUTE)]
    statement_timeout_s: Annotated[Seconds, Between(0.1, _HOUR)]
    """Of the driver. Below half of ``driver.lease_s``, so that a statement that hangs does not cost the lease."""


@dataclass(frozen=True, kw_only=True)
class ArtifactsConfig:
    type: Literal["s3", "local"]
    bucket: Text | None
    path: Text | None
    """Folder of the local store."""
    prefix: Annotated[Text, BeforeValidator(_prefix)]
    """Goes before ``<job_id>/<attempt>/`` in every URI."""
    part_size_bytes: Annotated[Whole, Between(5 * _MIB, 512 * _MIB)]
    """Files larger than this go as a multipart upload, in parts of this size. S3 takes 5 MiB to 5 GiB, and several
    parts are in memory at once."""
    concurrency: Annotated[Whole, Between(1, 256)]
    """Files of one job that are streamed at once."""
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Server-side encryption asked for with each object: ``AES256``, ``aws:kms``; None = the bucket's own."""
    kms_key_id: Text | None = None
    """The key of KMS to encrypt with; implies ``aws:kms``."""
    requester_pays: Flag = False
    """The bucket is somebody else's, who charges its users."""


@dataclass(frozen=True, kw_only=True)
class InputsConfig:
    """How ``s3://`` inputs are read; beside this, as the artifacts are."""

    anonymous: Names = ()
    """Public buckets that are read without credentials; ``*`` = all."""
    requester_pays: Flag = False
    """Pay for reading buckets that charge their readers."""


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    backend: Literal["camber", "local"]
    """``local`` runs each command as a process of the node, as the node's user."""
    local_path: Annotated[Text, AfterValidator(_absolute)] | None
    """The folder of ``local``: what jobs work in, and what is known of them. The same one on the driver's machine and
    all Ray nodes."""
    timeout_ms: Annotated[Milliseconds, Between(1000, _MONTH * 1000)]
    """A job's time-out where the job names none."""
    queue_timeout_s: Annotated[Seconds, Between(1, _MONTH)] | None
    """How long a remote job may wait to start before it is cancelled and begun anew, which burns no attempt; None =
    for ever, as an account that is full is no fault of a job."""
    overtaken_after_s: Annotated[Seconds, Between(1, _MONTH)] | None
    """The same for one that waits although later ones of its kind have started; None = never."""


@dataclass(frozen=True, kw_only=True)
class CamberRoute:
    """A line of ``camber.routes``: a method and a path under the endpoint."""

    method: Text
    path: Text


@dataclass(frozen=True, kw_only=True)
class NodeSize:
    """A size of ``camber.sizes.cpu`` or ``.gpu``."""

    cpus: Annotated[Whole, Between(0, 1_000_000)]
    memory_gb: Annotated[Whole, Between(0, 1_000_000)]
    gpus: Annotated[Whole, Between(0, 1_000_000)]
    credits_per_hour: Annotated[Number, Between(0, 1_000_000)]


@dataclass(frozen=True, kw_only=True)
class CamberFields:
    """The service's names for what the contract names, by place: ours to theirs. What is not here is equal."""

    create: Mapping[Text, Text]
    job: Mapping[Text, Text]
    list: Mapping[Text, Text]
    stash: Mapping[Text, Text]


@with_config(_CHECKED)
@dataclass(frozen=True, kw_only=True)
class CamberCatalog:
    """What Camber offers; names are upper case. Enqueue checks a job against it."""

    engines: Names
    cpu_sizes: Mapping[Text, NodeSize]
    gpu_sizes: Mapping[Text, NodeSize]

    def size(self, spec: JobSpec) -> NodeSize | None:
        """Of a node of such a job; None where it is not known."""
        return (self.gpu_sizes if spec.gpu else self.cpu_sizes).get(spec.node_size.upper())

    def credits_per_hour(self, spec: JobSpec) -> float | None:
        """What such a job costs while it runs, all its nodes together."""
        size = self.size(spec)
        return None if size is None else size.credits_per_hour * spec.num_nodes


@dataclass(frozen=True, kw_only=True)
class CamberConfig:
    api_key: Annotated[Hidden, AfterValidator(_one_word)]
    """As it was at the start, wherever it came from."""
    api_key_file: Text | None
    """Where the driver reads the key before each use, so that it can be changed without a restart."""
    endpoint: Annotated[Text, AfterValidator(_endpoint)]
    transport: Literal["http", "cli"]
    """How calls travel: over HTTP, or through the vendor's program."""
    program: Text
    """The vendor's program, a path or a name on PATH; for ``cli``, on the driver's machine and on every node."""
    program_at_once: Annotated[Whole, Between(1, 256)]
    """Transfers that the program makes at once in one process, and as many other calls."""
    region: Text | None
    max_in_flight: Annotated[int | Literal["auto"], PlainValidator(_in_flight)]
    """Jobs that may run at once, of all drivers together, where `rythmiq limit set account` says nothing else; more
    stay queued in Postgres. ``auto`` finds what the account bears; of ``execution.backend`` ``local`` it is the CPUs of
    the driver's machine."""
    connect_timeout_s: Annotated[Seconds, Between(0.1, 10 * _MINUTE)]
    """To resolve the name and be connected, whichever of its addresses answers."""
    read_timeout_s: Annotated[Seconds, Between(0.1, _HOUR)]
    """For all of a small call, its answer included, however slowly that comes. A file that is streamed, up or down,
    must get on by 16 KiB in each such time."""
    create_timeout_s: Annotated[Seconds, Between(0.1, _HOUR)]
    """For all of a create."""
    settle_s: Annotated[Seconds, Between(0, _HOUR)]
    """How far the remote list may lag behind a create."""
    sync_timeout_s: Annotated[Seconds, Between(0, _DAY)]
    """How long to wait for the result file of a job that ended."""
    keep_unstored_s: Annotated[Seconds, Between(0, _YEAR)]
    """How long Camber keeps what an attempt left and the artifact store did not take."""
    page_size: Annotated[Whole, Between(1, 1000)]
    call_attempts: Annotated[Whole, Between(1, 100)]
    """Tries of one idempotent call."""
    routes: Mapping[Text, CamberRoute]
    """me, create, get, list, logs, cancel, stash_list, stash_read, stash_write, stash_remove."""
    envelope: Text
    """The key that an answer is wrapped in, where it is."""
    fields: CamberFields
    catalog: CamberCatalog


@dataclass(frozen=True, kw_only=True)
class DriverConfig:
    poll_interval_s: Annotated[Seconds, Between(0.01, _HOUR)]
    """How often Camber is asked for statuses, and Postgres for work that no notification announced."""
    lease_s: Annotated[Seconds, Between(1, _HOUR)]
    """How long after its last heartbeat a driver's jobs are left alone."""
    batch_size: Annotated[Whole, Between(1, 10_000)]
    """Jobs claimed, and outcomes written, in one statement."""
    queues: Names
    """Queues served; empty = all."""
    priority_age_s: Annotated[Seconds, Between(1, _YEAR)] | None
    """A job that has waited for so long counts as one step of priority higher, a step being the next priority that
    others wait with; after twice as long as two steps. None = never."""
    start_timeout_s: Annotated[Seconds, Between(5, _HOUR)]
    """How long Ray, Postgres, Camber and the store have to answer at the start, all at once; then the driver ends."""


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    base_delay_s: Annotated[Seconds, Between(0, _DAY)]
    max_delay_s: Annotated[Seconds, Between(0, _MONTH)]


@dataclass(frozen=True, kw_only=True)
class SecretsConfig:
    """Who may name which secret in a job."""

    grants: Mapping[Text, Names]
    """By a secret's name, or ``*`` for all: database logins, or roles that they are members of. Empty = only the owner
    of the tables and members of rythmiq_operator, who may name all."""


@dataclass(frozen=True, kw_only=True)
class NotifyConfig:
    """How those are told who asked by ``--notify`` to be told of an end."""

    secret: Hidden
    """Signs what is sent, as Standard Webhooks has it: ``whsec_`` and base64, or any text. Empty = this driver sends
    nothing."""
    timeout_s: Annotated[Seconds, Between(0.1, 10 * _MINUTE)]
    """For all of one POST."""
    max_attempts: Annotated[Whole, Between(1, 100)]
    """How often one is tried before it is given up."""
    private_networks: Annotated[Names, AfterValidator(_networks)]
    """Networks such as ``10.0.0.0/8`` that may be reached although they are not public."""


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """How long what ended is kept, in seconds since its end; None = until somebody runs `rythmiq prune`."""

    succeeded_s: Annotated[Seconds, Between(_HOUR, 100 * _YEAR)] | None
    """Rows of jobs that SUCCEEDED."""
    failed_s: Annotated[Seconds, Between(_HOUR, 100 * _YEAR)] | None
    """Rows of jobs that FAILED or were CANCELLED."""
    artifacts_s: Annotated[Seconds, Between(_HOUR, 100 * _YEAR)] | None
    """Stored files. Rows go no sooner than their files where this is set."""

    @property
    def on(self) -> bool:
        """Whether a driver deletes anything by itself."""
        return any(age is not None for age in (self.succeeded_s, self.failed_s, self.artifacts_s))


@dataclass(frozen=True, kw_only=True)
class ShutdownConfig:
    grace_s: Annotated[Seconds, Between(0, _HOUR)]


@dataclass(frozen=True, kw_only=True)
class OutageConfig:
    probe_interval_s: Annotated[Seconds, Between(0.05, _HOUR)]
    """How often the one probe of an open circuit breaker is sent; doubles up to ``probe_max_interval_s``."""
    probe_max_interval_s: Annotated[Seconds, Between(0.05, _HOUR)]


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    num_cpus: Annotated[Whole, Between(1, 10_000)] | None
    """CPUs of a Ray that the driver starts itself; None = all of the machine."""
    jobs_per_task: Annotated[Whole, Between(1, 1000)]
    """Steps that ride in one Ray task; it has a CPU, and one more waits for each CPU."""
    threads_per_task: Annotated[Whole, Between(1, 1000)]
    """How many of them are under way at once: each has a thread, which waits for Camber and the store."""
    task_timeout_s: Annotated[Seconds, Between(1, _DAY)]
    """So long after its start a task counts as hung and its phase is run again; plus the time its bytes need."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)]
    format: Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    port: Annotated[Whole, Between(1, 65_535)] | None
    """Where /livez, /readyz and /metrics are served; None = nowhere."""
    host: Text
    """The address listened on. Probes and scrapes come from outside of a container, so the default is every address;
    what is shown there names no job and no secret."""


@with_config(_CHECKED)
@dataclass(frozen=True, kw_only=True)
class Config:
    service: ServiceConfig
    database: DatabaseConfig
    artifacts: ArtifactsConfig
    inputs: InputsConfig
    execution: ExecutionConfig
    camber: CamberConfig
    driver: DriverConfig
    retry: RetryConfig
    secrets: SecretsConfig
    notify: NotifyConfig
    retention: RetentionConfig
    shutdown: ShutdownConfig
    outage: OutageConfig
    ray: RayConfig
    logging: LoggingConfig
    health: HealthConfig
