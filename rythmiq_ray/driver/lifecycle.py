"""The life of a driver process: configuration, start, work, stop, and its exit code.

Steps of the start that may hang run on daemon threads (:mod:`~rythmiq_ray.driver.startup`), so that the main thread can
handle signals (:mod:`~rythmiq_ray.driver.signals`) and the deadline.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Final, Never

from rythmiq_ray import processes
from rythmiq_ray.clock import now_s
from rythmiq_ray.config import Config
from rythmiq_ray.config_loader import Loaded, load
from rythmiq_ray.driver.loop import Loop
from rythmiq_ray.driver.notifier import Notifier
from rythmiq_ray.driver.outages import BACKEND, STORE
from rythmiq_ray.driver.permissions import SECRET_PREFIX
from rythmiq_ray.driver.poller import Poller
from rythmiq_ray.driver.retention import Retention
from rythmiq_ray.driver.signals import Signals, Stopped
from rythmiq_ray.driver.startup import StartStep, all_of
from rythmiq_ray.driver.vitals import Vitals
from rythmiq_ray.errors import (
    RULES,
    BackendRefusedKey,
    BackendUnavailable,
    ConfigurationError,
    DatabaseRefused,
    DatabaseUnavailable,
    RayUnavailable,
    RythmiqError,
    StoreRefused,
    StoreUnavailable,
)
from rythmiq_ray.queue import Heartbeat, Queue
from rythmiq_ray.queue.connection import where
from rythmiq_ray.queue.schema import check_database
from rythmiq_ray.secret import Secret
from rythmiq_ray.telemetry.health import HealthServer
from rythmiq_ray.telemetry.logs import add_field, get_logger, mask_also, setup
from rythmiq_ray.telemetry.metrics import Metrics, PrometheusSink
from rythmiq_ray.telemetry.traces import EXTRA, Traces, open_traces
from rythmiq_ray.telemetry.traces import wanted as traces_wanted
from rythmiq_ray.wakeup import Wakeup
from rythmiq_ray.webhooks import Webhooks

log = get_logger("driver")

EXIT_FAULT: Final = 1
EXIT_CONFIGURATION: Final = 2
EXIT_JOBS_FAILED: Final = 3
_MENDED_BY_CONFIGURATION: Final = (ConfigurationError, DatabaseRefused, StoreRefused, BackendRefusedKey)
_READ_S: Final = 20.0
_END_S: Final = 2.0
"""Part of ``driver.start_timeout_s`` that is reserved for ending the driver when the start is late."""

EXAMPLES: Final = """\
examples:
  python -m rythmiq_ray.driver                               work until stopped
  python -m rythmiq_ray.driver --drain                       work until nothing is left; exit 3 if a job FAILED
  SERVICE_ENV=local python -m rythmiq_ray.driver             on the embedded Postgres, S3 and Camber emulator
  python -m rythmiq_ray.driver driver.poll_interval_s=5      with one key changed
  python -m rythmiq_ray.driver --print-config                show every key, its value and where it came from
"""


def live(signals: Signals) -> Never:
    """Runs a driver and ends the process at once afterwards, even if other threads hang."""
    others = processes.children()  # A shell that replaced itself by this process may have left children.
    code = main(signals)
    processes.kill(processes.children() - others)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def main(signals: Signals, argv: Sequence[str] | None = None) -> int:
    """Runs a driver on the main thread and returns the process's exit code."""
    started_at = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m rythmiq_ray.driver",
        description="Run jobs from Postgres on Camber.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--drain", action="store_true", help="exit once nothing is claimable, scheduled or running")
    parser.add_argument("--print-config", action="store_true", help="show the resolved configuration and exit")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration keys; they win over all else")
    arguments = parser.parse_args(argv)
    signals.calls(lambda: None)
    try:
        with ExitStack() as stack:
            return _configured(arguments, stack, signals, started_at)
    except Stopped:
        log.info("Worker stopped", uptime=f"{time.monotonic() - started_at:.0f}s")
        return 0


def _configured(arguments: argparse.Namespace, stack: ExitStack, signals: Signals, started_at: float) -> int:
    try:
        loaded = _configuration(arguments.overrides, stack, signals)
    except RythmiqError as error:
        signals.check()  # After a signal an error is no fault: `ray job stop` stops all child processes too.
        configuration = isinstance(error, ConfigurationError)
        # There is no logger without a configuration. Faults of the configuration have a line each.
        print(error.message if configuration else _one_line(error.message), file=sys.stderr)  # noqa: T201
        return EXIT_CONFIGURATION if configuration else EXIT_FAULT
    except OSError as error:
        named = f": {error.filename}" if error.filename else ""
        print(f"The driver cannot start: {error.strerror or error}{named}", file=sys.stderr)  # noqa: T201
        return EXIT_FAULT
    if arguments.print_config:
        print(loaded.render())  # noqa: T201 - it is what was asked for
        return 0
    config = loaded.config
    setup(config.logging, secrets=_secrets(config, os.environ))
    logging.raiseExceptions = config.service.env != "prod"  # Otherwise a full disk prints tracebacks of the logger.
    try:
        return _run(config, signals, started_at, drain=arguments.drain)
    except RythmiqError as error:
        signals.check()
        endpoint = _backend_of(config) if error.code.startswith("backend") else None
        log.error(_one_line(error.message), code=error.code, endpoint=endpoint, remedy=RULES[error.code].remedy)
        return EXIT_CONFIGURATION if isinstance(error, _MENDED_BY_CONFIGURATION) else EXIT_FAULT
    except Exception as error:
        if config.service.env == "prod":
            log.error("The driver ended with an internal fault", error=type(error).__name__)
        else:
            log.exception("The driver ended with an internal fault")
        return EXIT_FAULT


def _one_line(text: str) -> str:
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())


def _configuration(overrides: Sequence[str], stack: ExitStack, signals: Signals) -> Loaded:
    """Loads the configuration; with ``SERVICE_ENV=local`` the embedded services replace those that are not set."""
    if os.environ.get("SERVICE_ENV") != "local":
        return _load(overrides, {}, signals)
    from rythmiq_ray.local.stack import local_environment, parts_needed

    with signals.interrupting():
        defaults = stack.enter_context(local_environment(parts_needed(os.environ)))
    # boto3 and the Ray workers read AWS_* from the environment itself.
    os.environ.update({name: value for name, value in defaults.items() if name.startswith("AWS_")})
    loaded = _load(overrides, defaults, signals)
    from rythmiq_ray.queue.migrations import migrate

    # A migration waits for locks of other sessions for as long as they are held.
    url = loaded.config.database.url
    late = DatabaseUnavailable(f"Postgres does not answer{where(url)}")
    all_of([StartStep(run=lambda: migrate(url), deadline=math.inf, late=late)], meanwhile=signals.check)
    return loaded


def _load(overrides: Sequence[str], defaults: Mapping[str, str], signals: Signals) -> Loaded:
    """As :func:`load`, with a time limit: a pipe or an absent network share can make a read hang."""
    found: list[Loaded] = []
    late = ConfigurationError(
        f"The configuration files could not be read within {_READ_S:.0f} s: check the files that RYTHMIQ_CONFIG and"
        " CAMBER_API_KEY_FILE name"
    )
    step = StartStep(
        run=lambda: found.append(load(overrides, defaults=defaults)), deadline=now_s() + _READ_S, late=late
    )
    all_of([step], meanwhile=signals.check)
    return found[0]


def _run(config: Config, signals: Signals, started_at: float, *, drain: bool) -> int:
    log.info(
        "Configuration loaded",
        backend=config.execution.backend,
        env=config.service.env,
        artifactStoreType=config.artifacts.type,
    )
    # Imported here, because Ray takes half a second to import: faults of the configuration are reported before.
    from rythmiq_ray.assembly import ExecutorFactory, key_of
    from rythmiq_ray.cluster import Cluster, RayMetrics

    scraped = PrometheusSink()
    metrics = Metrics([scraped] if config.health.port is not None else [])
    on_call = metrics.api_call if metrics.on else None
    factory = ExecutorFactory.of(config)
    key = key_of(config, on_change=_key_changed)
    executor = factory.build(key=key, on_call=on_call)
    wakeup = Wakeup()
    queue = Queue(
        config.database.url,
        queues=config.driver.queues,
        lease_s=config.driver.lease_s,
        age_s=config.driver.priority_age_s,
        connect_timeout_s=config.database.connect_timeout_s,
        statement_timeout_s=config.database.statement_timeout_s,
    )
    heartbeat = Heartbeat(
        config.database.url,
        lease_s=config.driver.lease_s,
        connect_timeout_s=config.database.connect_timeout_s,
        queues=config.driver.queues,
    )
    poller = Poller(executor.backend, {BACKEND: executor.backend.check, STORE: executor.store.check}, wake=wakeup.set)
    cluster = Cluster(config.ray, lambda: factory.renewed(key), wake=wakeup.set, on_call=on_call)
    traces = _traces()
    retention = Retention(config.retention, queue, delete=executor.store.delete, wake=wakeup.set)
    loop = Loop(
        config,
        queue,
        heartbeat,
        cluster,
        poller,
        wakeup,
        retention=retention,
        notifier=_notifier(config, queue, wakeup, metrics),
        traces=traces,
        metrics=metrics,
    )
    vitals = Vitals(config, loop, cluster, queue, metrics)
    loop.after_tick = vitals.publish

    def scrape(accept: str) -> tuple[bytes, str]:
        metrics.status(vitals.status())  # Read here, because a stuck loop would not update it.
        return scraped.page(accept)

    health = HealthServer(vitals.status, scrape)
    registered = False
    try:
        if config.health.port is not None:
            health.start(config.health.host, config.health.port)
        timeout_s = config.driver.start_timeout_s - _END_S
        deadline = now_s() + timeout_s

        def step(run: Callable[[], object], kind: type[RythmiqError], what: str, *, more_s: float = 0.0) -> StartStep:
            late = kind(f"{what} did not answer within {timeout_s:.0f} s")
            return StartStep(run=run, deadline=deadline + more_s, late=late)

        # The other services are tested while Ray starts.
        postgres = f"Postgres{where(config.database.url)}"
        parts = [
            step(
                lambda: check_database(config.database.url, retention=config.retention.on),
                DatabaseUnavailable,
                postgres,
            ),
            step(executor.backend.check, BackendUnavailable, f"The execution backend {_backend_of(config)}"),
            step(executor.store.check, StoreUnavailable, f"The artifact store {_store_of(config)}"),
            # Ray's own message says why it is late, so it gets half a second more than the others.
            step(lambda: cluster.start(timeout_s + 0.5), RayUnavailable, "Ray", more_s=1.0),
        ]

        def look() -> None:
            signals.install()  # Again, because Ray sets a handler of its own, which prints a stack.
            signals.check()

        look()
        all_of(parts, meanwhile=look)
        signals.install()
        log.info("Execution backend initialized", backendType=executor.backend.backend_type)
        log.info("Job executor ready")
        if metrics.on:
            metrics.attach(RayMetrics())
        poller.start()

        def stop() -> None:
            loop.stop_requested = True
            wakeup.set()

        # Only now, because the lease could expire while Ray starts slowly.
        all_of([step(loop.register, DatabaseUnavailable, postgres)], meanwhile=signals.check)
        registered = True
        signals.calls(stop)
        log.info(
            "Worker ready", uptime=f"{(time.monotonic() - started_at) * 1000:.0f}ms", backend=config.execution.backend
        )
        loop.run(drain=drain)
        log.info("Worker stopping")
        loop.stop()
    finally:
        signals.calls(lambda: None)
        health.stop()
        poller.stop()
        if registered:  # Otherwise a thread may be in a call that hangs, and closing would wait for it.
            queue.close()
            heartbeat.close()
        cluster.shutdown()
        if traces is not None:
            traces.close()
    log.info("Worker stopped", uptime=f"{time.monotonic() - started_at:.0f}s")
    return EXIT_JOBS_FAILED if drain and loop.any_failed else 0


def _traces() -> Traces | None:
    """None where the environment does not say where traces go."""
    if not traces_wanted():
        return None
    try:
        traces = open_traces()
    except ImportError:
        log.warning("Traces are not written: their packages are not installed", remedy=f"pip install '{EXTRA}'")
        return None
    except ValueError as error:
        log.warning("Traces are not written: a variable of OpenTelemetry cannot be used", error=error)
        return None
    add_field("traceId", lambda fields: traces.trace_id(fields["jobId"]) if "jobId" in fields else None)
    return traces


def _notifier(config: Config, queue: Queue, wakeup: Wakeup, metrics: Metrics) -> Notifier | None:
    """None where this driver has no secret to sign with. Raises ConfigurationError."""
    if not config.notify.secret:
        return None
    try:
        webhooks = Webhooks(
            config.notify.secret,
            timeout_s=config.notify.timeout_s,
            private_networks=config.notify.private_networks,
        )
    except ValueError as error:
        raise ConfigurationError(f"notify: {error}") from None
    return Notifier(config.notify, queue, send=webhooks.send, wake=wakeup.set, told=metrics.told)


def _key_changed(key: Secret) -> None:
    mask_also(key)
    log.info("Camber's API key was read again")


def _secrets(config: Config, environ: Mapping[str, str]) -> list[Secret]:
    """All values that must not appear in a log."""
    names = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN")
    values = [environ[name] for name in names if environ.get(name)]
    values.extend(value for name, value in environ.items() if name.startswith(SECRET_PREFIX) and value)
    return [config.database.url, config.camber.api_key, config.notify.secret, *map(Secret, values)]


def _backend_of(config: Config) -> str:
    return str(config.execution.local_path) if config.execution.backend == "local" else config.camber.endpoint


def _store_of(config: Config) -> str:
    artifacts = config.artifacts
    return f"s3://{artifacts.bucket}" if artifacts.type == "s3" else str(artifacts.path)
