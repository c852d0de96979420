"""The typed configuration: every key, with its meaning, unit and range.

The defaults are in ``conf/*.yaml`` alone. :mod:`rythmiq_ray.config_loader` loads and checks the values. All classes
are frozen and may be pickled into a Ray task; secrets are :class:`~rythmiq_ray.secret.Secret` and print as ``***``. A
duration may be written as a number, in the unit that ends the key's name, or with a unit, such as ``30s`` or ``7d``.
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
"""Hosts that old documents use as examples and that do not exist (camber-api, section 1)."""
_CHECKED: Final = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)


def _number(value: object) -> object:
    """A number from text, as environment variables have it; 1e3 is a whole number too."""
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
    """A list, also from text with commas."""
    return tuple(value.split(",")) if isinstance(value, str) else value


def _prefix(value: object) -> object:
    if isinstance(value, str) and (value.startswith("/") or value.endswith("/") or ".." in value.split("/")):
        raise ValueError("must not start or end with / nor hold ..")
    return value


def _absolute(path: str) -> str:
    """Resolved on the driver: Ray nodes may have another working directory."""
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
            raise ValueError(f"{name} is not a network such as 10.0.0.0/8") from None
    return names


def _secret(value: object) -> Secret:
    return Secret("" if value is None else str(value))


def _postgres(url: Secret) -> Secret:
    from rythmiq_ray.queue.dsn import check_dsn  # imports psycopg2, which not everyone who reads this module needs

    if fault := check_dsn(url):
        raise ValueError(fault)
    return url


def _one_word(key: Secret) -> Secret:
    if any(letter.isspace() for letter in key.reveal()):
        raise ValueError("contains white space: copy the key again")
    return key


def _endpoint(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"is not an http(s) URL; the default is {_RIGHT_ENDPOINT}")
    if parts.hostname in _DEAD_HOSTS:
        raise ValueError(f"{parts.hostname} is a placeholder from old documents: use {_RIGHT_ENDPOINT}")
    if parts.username or parts.password:
        raise ValueError("contains a user or password; the key goes into CAMBER_API_KEY")
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
    """The longest that a statement of the driver may take. At most half of ``driver.lease_s``, so that a statement that
    hangs does not cost the lease."""


@dataclass(frozen=True, kw_only=True)
class ArtifactsConfig:
    type: Literal["s3", "local"]
    bucket: Text | None
    path: Annotated[Text, AfterValidator(_absolute)] | None
    """Folder of the local store."""
    prefix: Annotated[Text, BeforeValidator(_prefix)]
    """Precedes ``<job_id>/<attempt>/`` in every URI."""
    part_size_bytes: Annotated[Whole, Between(5 * _MIB, 512 * _MIB)]
    """Files larger than this are sent as a multipart upload, in parts of this size. S3 allows 5 MiB to 5 GiB; several
    parts are in memory at once."""
    concurrency: Annotated[Whole, Between(1, 256)]
    """How many files of one job are streamed at once."""
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Server-side encryption that each upload asks for; None = the bucket's default."""
    kms_key_id: Text | None = None
    """The KMS key to encrypt with; implies ``aws:kms``."""
    requester_pays: Flag = False
    """Whether to agree to pay for requests: the bucket is set to Requester Pays."""


@dataclass(frozen=True, kw_only=True)
class InputsConfig:
    """How ``s3://`` inputs are read; credentials and endpoint are those of the artifact store."""

    anonymous: Names = ()
    """Public buckets that are read without credentials; ``*`` = all."""
    requester_pays: Flag = False
    """Whether to agree to pay for reading buckets that are set to Requester Pays."""


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    backend: Literal["camber", "local"]
    """``local`` runs each command as a process of the node, as the node's user."""
    local_path: Annotated[Text, AfterValidator(_absolute)] | None
    """The folder of backend ``local``: working directories and state of its jobs. The driver's machine and all Ray
    nodes must share it."""
    timeout_ms: Annotated[Milliseconds, Between(1000, _MONTH * 1000)]
    """The timeout of a job that names none."""
    queue_timeout_s: Annotated[Seconds, Between(1, _MONTH)] | None
    """How long a remote job may wait to start before it is cancelled and created again, which does not count as an
    attempt; None = forever, because a full account is not the job's fault."""
    overtaken_after_s: Annotated[Seconds, Between(1, _MONTH)] | None
    """The same for a remote job that waits although later ones for the same nodes have started; None = never."""


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
    """Field names of the service that differ from the contract's: contract name to service name, by kind of call."""

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
        """The size of the job's nodes; None if it is not known."""
        return (self.gpu_sizes if spec.gpu else self.cpu_sizes).get(spec.node_size.upper())

    def credits_per_hour(self, spec: JobSpec) -> float | None:
        """What the job costs while it runs, all its nodes together; None if its node size is not known."""
        size = self.size(spec)
        return None if size is None else size.credits_per_hour * spec.num_nodes


@dataclass(frozen=True, kw_only=True)
class CamberConfig:
    api_key: Annotated[Hidden, AfterValidator(_one_word)]
    """The key as it was at the start, whether it was set here or read from ``api_key_file``."""
    api_key_file: Text | None
    """A file that the driver reads the key from before each use, so that the key can change without a restart."""
    endpoint: Annotated[Text, AfterValidator(_endpoint)]
    transport: Literal["http", "cli"]
    """How calls are made: over HTTP, or by the vendor's program."""
    program: Text
    """The vendor's program, a path or a name on PATH; needed by ``cli`` on the driver's machine and on every node."""
    program_at_once: Annotated[Whole, Between(1, 256)]
    """How many transfers, and how many other calls, run the program at once in one process of ours."""
    region: Text | None
    max_in_flight: Annotated[int | Literal["auto"], PlainValidator(_in_flight)]
    """The most jobs that run at once, of all drivers together, unless `rythmiq limit set account` sets another limit;
    others stay queued in Postgres. ``auto`` finds the account's limit by trying; with ``execution.backend`` ``local``
    it is the number of CPUs of the driver's machine."""
    connect_timeout_s: Annotated[Seconds, Between(0.1, 10 * _MINUTE)]
    """For name resolution and connecting, all addresses of the name together."""
    read_timeout_s: Annotated[Seconds, Between(0.1, _HOUR)]
    """For a whole small call, its answer included. A streamed upload or download must move at least 16 KiB in each such
    period."""
    create_timeout_s: Annotated[Seconds, Between(0.1, _HOUR)]
    """For a whole create call."""
    settle_s: Annotated[Seconds, Between(0, _HOUR)]
    """The longest that a new remote job may be missing from the remote list."""
    sync_timeout_s: Annotated[Seconds, Between(0, _DAY)]
    """How long to wait for the result file of a job that ended."""
    keep_unstored_s: Annotated[Seconds, Between(0, _YEAR)]
    """How long files that could not be stored stay at Camber, to be collected later."""
    page_size: Annotated[Whole, Between(1, 1000)]
    """Jobs in one page of the remote list."""
    call_attempts: Annotated[Whole, Between(1, 100)]
    """How often an idempotent call is tried."""
    routes: Mapping[Text, CamberRoute]
    """me, create, get, list, logs, cancel, stash_list, stash_read, stash_write, stash_remove."""
    envelope: Text
    """The key below which answers hold their data, if they wrap it; empty = they do not."""
    fields: CamberFields
    catalog: CamberCatalog


@dataclass(frozen=True, kw_only=True)
class DriverConfig:
    poll_interval_s: Annotated[Seconds, Between(0.01, _HOUR)]
    """How often Camber is asked for statuses, and Postgres for work that no notification announced."""
    lease_s: Annotated[Seconds, Between(1, _HOUR)]
    """How long after a driver's last heartbeat other drivers leave its jobs alone."""
    batch_size: Annotated[Whole, Between(1, 10_000)]
    """The most jobs claimed, or outcomes written, in one statement."""
    queues: Names
    """The queues that this driver serves; empty = all."""
    priority_age_s: Annotated[Seconds, Between(1, _YEAR)] | None
    """A job that has waited this long is treated as one step of priority higher, after twice this long as two steps,
    and so on. A step is the next higher priority among the waiting jobs. None = never."""
    start_timeout_s: Annotated[Seconds, Between(5, _HOUR)]
    """How long the start waits for Ray, Postgres, Camber and the store, which are tried at the same time; then the
    driver ends."""


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    base_delay_s: Annotated[Seconds, Between(0, _DAY)]
    max_delay_s: Annotated[Seconds, Between(0, _MONTH)]


@dataclass(frozen=True, kw_only=True)
class SecretsConfig:
    """Who may name which secret in a job."""

    grants: Mapping[Text, Names]
    """By name of the secret, or ``*`` for all: database logins, or roles that the logins are members of. Empty = only
    the owner of the tables and members of rythmiq_operator may name secrets, and they may name all."""


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
    """How long ended jobs are kept, in seconds since their end; None = until somebody runs `rythmiq prune`."""

    succeeded_s: Annotated[Seconds, Between(_HOUR, 100 * _YEAR)] | None
    """Rows of jobs that SUCCEEDED."""
    failed_s: Annotated[Seconds, Between(_HOUR, 100 * _YEAR)] | None
    """Rows of jobs that FAILED or were CANCELLED."""
    artifacts_s: Annotated[Seconds, Between(_HOUR, 100 * _YEAR)] | None
    """Stored files. If this is set, a row is deleted only after its files."""

    @property
    def on(self) -> bool:
        """Whether the driver deletes anything by itself."""
        return any(age is not None for age in (self.succeeded_s, self.failed_s, self.artifacts_s))


@dataclass(frozen=True, kw_only=True)
class ShutdownConfig:
    grace_s: Annotated[Seconds, Between(0, _HOUR)]
    """How long running Ray tasks may go on after a stop was requested."""


@dataclass(frozen=True, kw_only=True)
class OutageConfig:
    probe_interval_s: Annotated[Seconds, Between(0.05, _HOUR)]
    """The time between probes while a circuit breaker is open; it doubles up to ``probe_max_interval_s``."""
    probe_max_interval_s: Annotated[Seconds, Between(0.05, _HOUR)]


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    num_cpus: Annotated[Whole, Between(1, 10_000)] | None
    """CPUs of the local Ray that the driver starts if it joins no cluster; None = all of the machine."""
    jobs_per_task: Annotated[Whole, Between(1, 1000)]
    """The most steps in one Ray task. A task takes one CPU; for each CPU one task runs and one waits."""
    threads_per_task: Annotated[Whole, Between(1, 1000)]
    """How many steps of a task run at once. Each has a thread, which mostly waits for Camber and the store."""
    task_timeout_s: Annotated[Seconds, Between(1, _DAY)]
    """How long a task may run before it counts as hung and its steps are run again; the time that its bytes need is
    added."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)]
    format: Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    port: Annotated[Whole, Between(1, 65_535)] | None
    """The port of /livez, /readyz and /metrics; None = they are not served."""
    host: Text
    """The address to listen on. Probes and scrapes come from outside the container, so the default is all addresses;
    these pages name no job and no secret."""


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
