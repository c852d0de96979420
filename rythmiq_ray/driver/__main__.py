"""Start and stop of a driver: ``python -m rythmiq_ray.driver [--drain] [key=value …]``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import FrameType
from typing import Final

from rythmiq_ray.config import Config
from rythmiq_ray.driver.loop import SECRET_PREFIX, Loop
from rythmiq_ray.driver.outages import BACKEND, STORE
from rythmiq_ray.driver.poller import Poller
from rythmiq_ray.driver.vitals import Vitals
from rythmiq_ray.driver.wakeup import Wakeup
from rythmiq_ray.errors import RULES, ConfigurationError, RythmiqError
from rythmiq_ray.layers import Loaded, load
from rythmiq_ray.queue import Heartbeat, Queue
from rythmiq_ray.secret import Secret
from rythmiq_ray.telemetry.health import HealthServer
from rythmiq_ray.telemetry.logs import get_logger, mask_also, setup
from rythmiq_ray.telemetry.metrics import Metrics, PrometheusSink

log = get_logger("driver")

EXIT_FAULT: Final = 1
EXIT_CONFIGURATION: Final = 2
EXIT_JOBS_FAILED: Final = 3

EXAMPLES: Final = """\
examples:
  python -m rythmiq_ray.driver                               work until stopped
  python -m rythmiq_ray.driver --drain                       work until nothing is left; exit 3 if a job FAILED
  SERVICE_ENV=local python -m rythmiq_ray.driver             on the embedded Postgres, S3 and Camber emulator
  python -m rythmiq_ray.driver driver.poll_interval_s=5      with one key changed
  python -m rythmiq_ray.driver --print-config                show every key, its value and where it came from
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a driver and returns the process's exit code."""
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
    with ExitStack() as stack:
        try:
            loaded = _configuration(arguments.overrides, stack)
        except ConfigurationError as error:
            print(error.message, file=sys.stderr)  # noqa: T201 - there is no logger before there is a configuration
            return EXIT_CONFIGURATION
        except RythmiqError as error:
            print(error.message, file=sys.stderr)  # noqa: T201
            return EXIT_FAULT
        if arguments.print_config:
            print(loaded.render())  # noqa: T201 - it is what was asked for
            return 0
        config = loaded.config
        setup(config.logging, secrets=_secrets(config, os.environ))
        try:
            return _run(config, started_at, drain=arguments.drain)
        except RythmiqError as error:
            where = config.camber.endpoint if error.code.startswith("backend") else None
            log.error(error.message, code=error.code, endpoint=where, remedy=RULES[error.code].remedy)
            return EXIT_FAULT
        except Exception as error:
            if config.service.env == "prod":
                log.error("The driver ended by a fault of its own", error=type(error).__name__)
            else:
                log.exception("The driver ended by a fault of its own")
            return EXIT_FAULT


def _configuration(overrides: Sequence[str], stack: ExitStack) -> Loaded:
    """Loads the layers; under ``SERVICE_ENV=local`` the embedded default stands in for what is not set."""
    if os.environ.get("SERVICE_ENV") != "local":
        return load(overrides)
    from rythmiq_ray.local.stack import local_environment, parts_needed

    defaults = stack.enter_context(local_environment(parts_needed(os.environ)))
    # boto3 and the Ray workers read AWS_* from the environment itself.
    os.environ.update({name: value for name, value in defaults.items() if name.startswith("AWS_")})
    loaded = load(overrides, defaults=defaults)
    from rythmiq_ray.queue.migrations import migrate

    migrate(loaded.config.database.url)
    return loaded


def _run(config: Config, started_at: float, *, drain: bool) -> int:
    log.info(
        "Configuration loaded",
        backend=config.execution.backend,
        env=config.service.env,
        artifactStoreType=config.artifacts.type,
    )
    # Ray takes half a second to import and seconds to start; what is wrong in the configuration is said before.
    from rythmiq_ray.backends.camber.key import ApiKey
    from rythmiq_ray.cluster import Cluster, RayMetrics, TaskSettings, build_executor

    settings = TaskSettings(
        camber=config.camber,
        artifacts=config.artifacts,
        inputs=config.inputs,
        timeout_s=config.execution.timeout_ms / 1000,
        threads=config.ray.threads_per_task,
        report_calls=config.health.port is not None,
    )
    scraped = PrometheusSink()
    metrics = Metrics([scraped] if config.health.port is not None else [])
    on_call = metrics.api_call if metrics.on else None
    api_key = ApiKey(config.camber, on_change=_key_changed)
    executor = build_executor(settings, api_key, on_call=on_call)
    wakeup = Wakeup()

    queue = Queue(
        config.database.url,
        queues=config.driver.queues,
        lease_s=config.driver.lease_s,
        connect_timeout_s=config.database.connect_timeout_s,
        statement_timeout_s=config.database.statement_timeout_s,
    )
    heartbeat = Heartbeat(
        config.database.url,
        lease_s=config.driver.lease_s,
        connect_timeout_s=config.database.connect_timeout_s,
    )
    poller = Poller(executor.backend, {BACKEND: executor.backend.check, STORE: executor.store.check}, wake=wakeup.set)
    cluster = Cluster(config.ray, settings, wake=wakeup.set, api_key=api_key, on_call=on_call)
    loop = Loop(config, queue, heartbeat, cluster, poller, wakeup, metrics=metrics)
    vitals = Vitals(config, loop, cluster, queue, metrics)
    loop.after_tick = vitals.publish

    def scrape(accept: str) -> tuple[bytes, str]:
        metrics.status(vitals.status())  # The loop's own word would be old where it is stuck.
        return scraped.page(accept)

    health = HealthServer(vitals.status, scrape)
    try:
        if config.health.port is not None:
            health.start(config.health.host, config.health.port)
        with ThreadPoolExecutor(3) as pool:
            # While Ray starts on this thread, as it must, the others are asked whether they are there.
            checks = [pool.submit(check) for check in (queue.unfinished, executor.backend.check, executor.store.check)]
            cluster.start()
            for check in checks:
                check.result()
        log.info("Execution backend initialized", backendType=executor.backend.backend_type)
        log.info("Job executor ready")
        if metrics.on:
            metrics.attach(RayMetrics())
        _handle_signals(loop, wakeup)
        poller.start()
        # Not before: a Ray that is slow to start would outlast the lease.
        loop.register()
        log.info(
            "Worker ready", uptime=f"{(time.monotonic() - started_at) * 1000:.0f}ms", backend=config.execution.backend
        )
        loop.run(drain=drain)
        log.info("Worker stopping")
        loop.stop()
    finally:
        health.stop()
        poller.stop()
        queue.close()
        heartbeat.close()
        cluster.shutdown()
    log.info("Worker stopped", uptime=f"{time.monotonic() - started_at:.0f}s")
    return EXIT_JOBS_FAILED if drain and loop.any_failed else 0


def _handle_signals(loop: Loop, wakeup: Wakeup) -> None:
    """To be called after Ray has started, which sets a SIGTERM handler of its own."""

    def stop(number: int, _frame: FrameType | None) -> None:
        if loop.stop_requested:
            os._exit(128 + number)  # The second one: at once. The lease runs out and others take over.
        loop.stop_requested = True
        wakeup.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _key_changed(key: Secret) -> None:
    mask_also(key)
    log.info("Camber's API key was read anew")


def _secrets(config: Config, environ: Mapping[str, str]) -> list[Secret]:
    """All that must not be in a log."""
    names = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN")
    values = [environ[name] for name in names if environ.get(name)]
    values.extend(value for name, value in environ.items() if name.startswith(SECRET_PREFIX) and value)
    return [config.database.url, config.camber.api_key, *map(Secret, values)]


if __name__ == "__main__":
    sys.exit(main())
