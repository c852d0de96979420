"""The typed configuration: every key, its unit, its default's reason. Loading is :mod:`rythmiq_ray.layers`'s work.

Defaults live in ``conf/*.yaml`` alone; a class here says what a key is. All are frozen and may be pickled into a Ray
task; secrets are :class:`~rythmiq_ray.secret.Secret` and print as ``***``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rythmiq_ray.secret import Secret


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    env: Literal["local", "dev", "staging", "prod"]


@dataclass(frozen=True, kw_only=True)
class DatabaseConfig:
    url: Secret
    connect_timeout_s: float
    statement_timeout_s: float


@dataclass(frozen=True, kw_only=True)
class ArtifactsConfig:
    type: Literal["s3", "local"]
    bucket: str | None
    path: str | None
    """Folder of the local store."""
    prefix: str
    """Goes before ``<job_id>/<attempt>/`` in every URI."""
    part_size_bytes: int
    """Files larger than this go as a multipart upload, in parts of this size."""
    concurrency: int
    """Files of one job that are streamed at once."""
    encryption: str | None = None
    """Server-side encryption asked for with each object: ``AES256``, ``aws:kms``; None = the bucket's own."""
    kms_key_id: str | None = None
    """The key of KMS to encrypt with; implies ``aws:kms``."""
    requester_pays: bool = False
    """The bucket is somebody else's, who charges its users."""


@dataclass(frozen=True, kw_only=True)
class InputsConfig:
    """How ``s3://`` inputs are read; beside this, as the artifacts are."""

    anonymous: tuple[str, ...] = ()
    """Public buckets that are read without credentials; ``*`` = all."""
    requester_pays: bool = False
    """Pay for reading buckets that charge their readers."""


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    backend: Literal["camber"]
    timeout_ms: int
    """A job's time-out where the job names none."""
    queue_timeout_s: float | None
    """How long a remote job may wait to start before it is cancelled and begun anew, which burns no attempt; None =
    for ever, as an account that is full is no fault of a job."""
    overtaken_after_s: float | None
    """The same for one that waits although later ones of its kind have started; None = never."""


@dataclass(frozen=True, kw_only=True)
class CamberRoute:
    """A line of ``camber.routes``: a method and a path under the endpoint."""

    method: str
    path: str


@dataclass(frozen=True, kw_only=True)
class NodeSize:
    """A size of ``camber.sizes.cpu`` or ``.gpu``."""

    cpus: int
    memory_gb: int
    gpus: int
    credits_per_hour: float


@dataclass(frozen=True, kw_only=True)
class CamberCatalog:
    """What Camber offers; names are upper case. Enqueue checks a job against it."""

    engines: tuple[str, ...]
    cpu_sizes: Mapping[str, NodeSize]
    gpu_sizes: Mapping[str, NodeSize]


@dataclass(frozen=True, kw_only=True)
class CamberConfig:
    api_key: Secret
    """As it was at the start, wherever it came from."""
    api_key_file: str | None
    """Where the driver reads the key before each use, so that it can be changed without a restart."""
    endpoint: str
    transport: Literal["http", "cli"]
    """How calls travel: over HTTP, or through the vendor's program."""
    program: str
    """The vendor's program, a path or a name on PATH; for ``cli``, on the driver's machine and on every node."""
    program_at_once: int
    """Transfers that the program makes at once in one process, and as many other calls."""
    region: str | None
    max_in_flight: int | Literal["auto"]
    """Remote jobs of one driver that may exist at once; more stay queued in Postgres. ``auto`` finds the account's."""
    connect_timeout_s: float
    """To resolve the name and be connected, whichever of its addresses answers."""
    read_timeout_s: float
    """For all of a small call, its answer included, however slowly that comes. A file that is streamed, up or down,
    must get on by 16 KiB in each such time."""
    create_timeout_s: float
    """For all of a create."""
    settle_s: float
    """How far the remote list may lag behind a create."""
    sync_timeout_s: float
    """How long to wait for the result file of a job that ended."""
    keep_unstored_s: float
    """How long Camber keeps what an attempt left and the artifact store did not take."""
    page_size: int
    call_attempts: int
    """Tries of one idempotent call."""
    routes: Mapping[str, CamberRoute]
    """me, create, get, list, logs, cancel, stash_list, stash_read, stash_write, stash_remove."""
    catalog: CamberCatalog


@dataclass(frozen=True, kw_only=True)
class DriverConfig:
    poll_interval_s: float
    """How often Camber is asked for statuses, and Postgres for work that no notification announced."""
    lease_s: float
    """How long after its last heartbeat a driver's jobs are left alone."""
    batch_size: int
    """Jobs claimed, and outcomes written, in one statement."""
    queues: tuple[str, ...]
    """Queues served; empty = all."""
    start_timeout_s: float
    """How long Ray, Postgres, Camber and the store have to answer at the start, all at once; then the driver ends."""


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    base_delay_s: float
    max_delay_s: float


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """How long what ended is kept, in seconds since its end; None = until somebody runs `rythmiq prune`."""

    succeeded_s: float | None
    """Rows of jobs that SUCCEEDED."""
    failed_s: float | None
    """Rows of jobs that FAILED or were CANCELLED."""
    artifacts_s: float | None
    """Stored files. Rows go no sooner than their files where this is set."""


@dataclass(frozen=True, kw_only=True)
class ShutdownConfig:
    grace_s: float


@dataclass(frozen=True, kw_only=True)
class OutageConfig:
    probe_interval_s: float
    """How often the one probe of an open circuit breaker is sent; doubles up to ``probe_max_interval_s``."""
    probe_max_interval_s: float


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    num_cpus: int | None
    """CPUs of a Ray that the driver starts itself; None = all of the machine."""
    jobs_per_task: int
    """Steps that ride in one Ray task; it has a CPU, and one more waits for each CPU."""
    threads_per_task: int
    """How many of them are under way at once: each has a thread, which waits for Camber and the store."""
    task_timeout_s: float
    """So long after its start a task counts as hung and its phase is run again; plus the time its bytes need."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]
    format: Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    port: int | None
    """Where /livez, /readyz and /metrics are served; None = nowhere."""
    host: str
    """The address listened on. Probes and scrapes come from outside of a container, so the default is every address;
    what is shown there names no job and no secret."""


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
    retention: RetentionConfig
    shutdown: ShutdownConfig
    outage: OutageConfig
    ray: RayConfig
    logging: LoggingConfig
    health: HealthConfig
