"""Loading the configuration: layers, environment variables, arguments; every fault at once, with its remedy.

Later layers win: ``conf/default.yaml``, ``conf/camber.yaml``, the embedded default (``SERVICE_ENV=local`` alone),
``conf/${SERVICE_ENV}.yaml``, the file named by ``RYTHMIQ_CONFIG``, environment variables, ``key=value`` arguments.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rythmiq_ray.config import CamberCatalog, Config
from rythmiq_ray.errors import ConfigurationError
from rythmiq_ray.programs import TETHER, find_program
from rythmiq_ray.secret import Secret, read_secret

Environment = Literal["local", "dev", "staging", "prod"]

VARIABLES: Final = MappingProxyType(
    {
        "DATABASE_URL": "database.url",
        "ARTIFACT_STORE_TYPE": "artifacts.type",
        "ARTIFACT_STORE_BUCKET": "artifacts.bucket",
        "ARTIFACT_STORE_PATH": "artifacts.path",
        "EXECUTION_BACKEND": "execution.backend",
        "CAMBER_API_KEY": "camber.api_key",
        "CAMBER_API_KEY_FILE": "camber.api_key_file",
        "CAMBER_API_ENDPOINT": "camber.endpoint",
        "CAMBER_TRANSPORT": "camber.transport",
        "CAMBER_EXECUTION_REGION": "camber.region",
        "CAMBER_EXECUTION_TIMEOUT_MS": "execution.timeout_ms",
        "SERVICE_ENV": "service.env",
        "LOG_LEVEL": "logging.level",
        "LOG_FORMAT": "logging.format",
        "PORT": "health.port",
    }
)
"""Which environment variable sets which key."""

_VARIABLE_OF: Final = {key: variable for variable, key in VARIABLES.items()}
_RIGHT_ENDPOINT: Final = "https://api-v2.cambercloud.com/api/cli"
_DEAD_HOSTS: Final = frozenset({"api.camber.cloud"})
"""Old notes show it as an example; it does not resolve (camber-api, section 1)."""
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_HOUR: Final = 3600.0
_DAY: Final = 86400.0

_RANGES: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "database.connect_timeout_s": (1, 600),
        "database.statement_timeout_s": (1, _HOUR),
        # S3 takes parts of 5 MiB to 5 GiB; several are in memory at once.
        "artifacts.part_size_bytes": (5 * 1024**2, 512 * 1024**2),
        "artifacts.concurrency": (1, 256),
        "execution.timeout_ms": (1000, 30 * _DAY * 1000),
        "execution.queue_timeout_s": (1, 30 * _DAY),
        "camber.max_in_flight": (1, 1_000_000),
        "camber.program_at_once": (1, 256),
        "camber.connect_timeout_s": (0.1, 600),
        "camber.read_timeout_s": (0.1, _HOUR),
        "camber.create_timeout_s": (0.1, _HOUR),
        "camber.settle_s": (0.0, _HOUR),
        "camber.sync_timeout_s": (0.0, _DAY),
        "camber.page_size": (1, 1000),
        "camber.call_attempts": (1, 100),
        "driver.poll_interval_s": (0.01, _HOUR),
        "driver.lease_s": (1, _HOUR),
        "driver.batch_size": (1, 10_000),
        "driver.start_timeout_s": (5, _HOUR),
        "retry.base_delay_s": (0.0, _DAY),
        "retry.max_delay_s": (0.0, 30 * _DAY),
        "retention.succeeded_s": (_HOUR, 100 * 365 * _DAY),
        "retention.failed_s": (_HOUR, 100 * 365 * _DAY),
        "retention.artifacts_s": (_HOUR, 100 * 365 * _DAY),
        "shutdown.grace_s": (0.0, _HOUR),
        "outage.probe_interval_s": (0.05, _HOUR),
        "outage.probe_max_interval_s": (0.05, _HOUR),
        "ray.num_cpus": (1, 10_000),
        "ray.jobs_per_task": (1, 1000),
        "ray.threads_per_task": (1, 1000),
        "ray.task_timeout_s": (1, _DAY),
        "health.port": (1, 65_535),
    }
)


@dataclasses.dataclass(frozen=True)
class Value:
    """A key's value and where it came from."""

    value: Any
    layer: str


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The configuration, and where each value came from."""

    config: Config
    values: Mapping[str, Value]

    def origin(self, key: str) -> str:
        """The layer that ``key`` came from, e.g. ``environment variable PORT``."""
        return self.values[key].layer

    def render(self) -> str:
        """The resolved tree as YAML, each value's layer behind it, secrets masked: what ``--print-config`` shows."""
        lines: list[str] = []
        shown: list[str] = []
        for key in sorted(self.values):
            *path, name = key.split(".")
            for depth, part in enumerate(path):
                if shown[depth : depth + 1] != [part]:
                    del shown[depth:]
                    shown.append(part)
                    lines.append(f"{'  ' * depth}{part}:")
            del shown[len(path) :]
            text = f"{'  ' * len(path)}{name}: {_inline(key, self.values[key].value)}"
            lines.append(f"{text:<56}  # {self.values[key].layer}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """By key: value and layer, secrets masked; the JSON form of :meth:`render`."""
        return {
            key: {"value": _masked(key, item.value), "layer": item.layer} for key, item in sorted(self.values.items())
        }


def conf_folder() -> Path:
    """``conf/``: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "default.yaml").is_file():
            return folder
    raise ConfigurationError("The folder conf with default.yaml is missing: install the package again")


@cache
def load_catalog() -> CamberCatalog:
    """Camber's engines and node sizes, from ``conf/camber.yaml`` alone; enqueue needs nothing else."""
    tree = _read_file(conf_folder() / "camber.yaml")
    faults: list[str] = []
    catalog = _build(
        CamberCatalog, tree["camber"]["catalog"], "camber.catalog", faults, lambda _key: "conf/camber.yaml"
    )
    if faults:
        raise ConfigurationError("\n".join(faults))
    assert isinstance(catalog, CamberCatalog)  # noqa: S101 - narrows the type
    return catalog


def database_url(environ: Mapping[str, str] | None = None, defaults: Mapping[str, str] | None = None) -> Secret:
    """``database.url`` by the same layers, for commands that need nothing else; raises ConfigurationError."""
    values, faults = _merge((), os.environ if environ is None else environ, defaults or {})
    faults = [fault for fault in faults if "database.url" in fault]
    url = values["database.url"]
    faults.extend(_database_faults(url))
    if faults:
        raise ConfigurationError("\n".join(faults))
    return Secret(url.value)


def load(
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> Loaded:
    """Resolves all layers into one typed configuration.

    ``defaults`` are environment variables that the embedded default provides; real ones win over them. Raises
    ConfigurationError, whose message has one line for each fault: key, fault, layer, remedy.
    """
    values, faults = _merge(overrides, os.environ if environ is None else environ, defaults or {})
    faults.extend(_take_key_file(values))
    tree = _nest({key: item.value for key, item in values.items()})
    config = _build(Config, tree, "", faults, lambda key: values[key].layer if key in values else "no layer")
    if isinstance(config, Config):
        faults.extend(_required(values))
        faults.extend(_cross_checks(values))
    if faults:
        raise ConfigurationError("\n".join(dict.fromkeys(faults)))
    return Loaded(config=config, values=MappingProxyType(values))


# ------------------------------------------------------------------------------------------------------- layers


def _merge(
    overrides: Sequence[str], environ: Mapping[str, str], defaults: Mapping[str, str]
) -> tuple[dict[str, Value], list[str]]:
    """All layers, flattened to dotted keys, and the faults of reading them."""
    faults: list[str] = []
    folder = conf_folder()
    env = environ.get("SERVICE_ENV") or _argument(overrides, "service.env") or "prod"
    files = [(folder / "default.yaml", "conf/default.yaml"), (folder / "camber.yaml", "conf/camber.yaml")]
    if env in get_args(Environment):
        files.append((folder / f"{env}.yaml", f"conf/{env}.yaml"))
    values: dict[str, Value] = {}
    for path, label in files:
        _overlay(values, _read_file(path), label, faults, known=None)
    known = frozenset(values)
    for variable, text in defaults.items():
        if variable in VARIABLES:
            values[VARIABLES[variable]] = Value(text, "embedded default")
    extra = environ.get("RYTHMIQ_CONFIG")
    if extra:
        try:
            _overlay(values, _read_file(Path(extra)), extra, faults, known=known)
        except ConfigurationError as error:
            faults.append(f"{error.message} (named by environment variable RYTHMIQ_CONFIG)")
    for variable, key in VARIABLES.items():
        if environ.get(variable):
            values[key] = Value(environ[variable], f"environment variable {variable}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            faults.append(f"{override!r}: not of the form key=value (argument)")
        elif key not in known:
            faults.append(f"{key}: no such key (argument){_suggest(key, known)}")
        else:
            values[key] = _argument_value(key, text)
    return values, faults


def _argument(overrides: Sequence[str], key: str) -> str | None:
    found = [text for name, equals, text in (item.partition("=") for item in overrides) if equals and name == key]
    return found[-1] if found else None


def _read_file(path: Path) -> dict[str, Any]:
    """One YAML file with its interpolations resolved; raises ConfigurationError."""
    try:
        loaded = OmegaConf.load(path)
        tree = OmegaConf.to_container(loaded, resolve=True)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ConfigurationError(f"{path}{line}: not valid YAML: {problem}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except OmegaConfBaseException as error:
        if error.full_key and error.full_key not in _secret_keys():
            raise ConfigurationError(f"{path}: {error.full_key}: {str(error).splitlines()[0]}") from None
        # Its text quotes the value, which may be a password with ${ in it.
        where = f"{path}: {error.full_key}" if error.full_key else f"{path}"
        raise ConfigurationError(
            f"{where}: an interpolation cannot be resolved: write \\${{ where ${{ itself is meant"
        ) from None
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{path}: must hold keys and values, not {type(tree).__name__}")
    return typing.cast(dict[str, Any], tree)


def _overlay(
    values: dict[str, Value], tree: Mapping[str, Any], layer: str, faults: list[str], known: frozenset[str] | None
) -> None:
    for key, value in _flatten(tree, ""):
        if known is not None and key not in known and not _in_open_map(key):
            faults.append(f"{key}: no such key ({layer}){_suggest(key, known)}")
        else:
            values[key] = Value(value, layer)


def _flatten(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[name] = value
    return tree


def _in_open_map(key: str) -> bool:
    """Whether ``key`` is in a map to which a deployment may add: Camber's sizes."""
    return key.startswith(("camber.catalog.cpu_sizes.", "camber.catalog.gpu_sizes."))


def _argument_value(key: str, text: str) -> Value:
    if key in _secret_keys():
        return Value(text, f"argument {key}=…")
    return Value(_scalar(text), f"argument {key}={text}")


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _suggest(key: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.6)
    return f": did you mean {near[0]}?" if near else ": see conf/default.yaml for the keys"


# ------------------------------------------------------------------------------------------------------- typing


def _build(kind: Any, value: Any, key: str, faults: list[str], layer: Callable[[str], str]) -> Any:
    """``value`` as ``kind``; a fault is noted and None returned where it does not fit."""
    if dataclasses.is_dataclass(kind):
        return _build_section(typing.cast(type[Any], kind), value, key, faults, layer)
    origin = get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        words: list[str] = [word for item in get_args(kind) if get_origin(item) is Literal for word in get_args(item)]
        if value in words:
            return value
        (inner,) = (item for item in get_args(kind) if item is not type(None) and get_origin(item) is not Literal)
        found: list[str] = []
        built = _build(inner, value, key, found, layer)
        faults.extend(
            fault.replace("must be ", f"must be {''.join(f'{word} or ' for word in words)}", 1) for fault in found
        )
        return built

    def wrong(expected: str) -> None:
        shown = "" if key in _secret_keys() else f", not {value!r}"
        faults.append(f"{key}: must be {expected}{shown} ({layer(key)}){_remedy(key)}")

    if origin is Literal:
        choices = get_args(kind)
        text = str(value).upper() if key == "logging.level" else value
        if text in choices:
            return text
        return None if value is None and key in _VARIABLE_OF else wrong(f"one of {', '.join(choices)}")
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list):
            return wrong("a list")
        return tuple(_build(get_args(kind)[0], item, f"{key}[{at}]", faults, layer) for at, item in enumerate(items))
    if origin is not None:  # a Mapping
        if not isinstance(value, Mapping):
            return wrong("a map")
        inner = get_args(kind)[1]
        return {name: _build(inner, item, f"{key}.{name}", faults, layer) for name, item in value.items()}
    if kind is Secret:
        return Secret(str(value)) if value else None
    if kind is bool:
        return value if isinstance(value, bool) else wrong("true or false")
    if kind in (int, float):
        return _number(kind, value, key, wrong)
    if not isinstance(value, str):
        return None if value is None and key in _VARIABLE_OF else wrong("text")
    return value


def _build_section(kind: type[Any], value: Any, key: str, faults: list[str], layer: Callable[[str], str]) -> Any:
    if not isinstance(value, Mapping):
        faults.append(f"{key}: must be a section ({layer(key)})")
        return None
    hints = typing.get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in value.keys() - hints.keys():
        faults.append(f"{prefix}{name}: no such key ({layer(prefix + name)}){_suggest(name, list(hints))}")
    for name in hints.keys() - value.keys():
        faults.append(f"{prefix}{name}: missing: conf/default.yaml must have it")
    arguments = {name: _build(hint, value.get(name), f"{prefix}{name}", faults, layer) for name, hint in hints.items()}
    return kind(**arguments)


def _number(kind: type[Any], value: Any, key: str, wrong: Callable[[str], None]) -> Any:
    expected = "a whole number" if kind is int else "a number"
    if isinstance(value, bool):
        return wrong(expected)
    try:
        number = kind(value) if not (kind is int and isinstance(value, float)) else int(value)
    except (TypeError, ValueError, OverflowError):
        return wrong(expected)
    if kind is int and isinstance(value, float) and number != value:
        return wrong(expected)
    low, high = _RANGES.get(key, (0.0, float("inf")))
    if not low <= number <= high:
        return wrong(f"{expected} from {low:g} to {high:g}")
    return number


@cache
def _secret_keys() -> frozenset[str]:
    return frozenset({"database.url", "camber.api_key"})


def _remedy(key: str) -> str:
    variable = _VARIABLE_OF.get(key)
    return f": set {variable} or {key}" if variable else ""


# ---------------------------------------------------------------------------------------- rules between the keys


def _required(values: Mapping[str, Value]) -> list[str]:
    needed = {
        "database.url": "the Postgres that holds the jobs, postgresql://user:password@host/database",
        "artifacts.type": "s3 or local",
        "execution.backend": "camber",
    }
    if not values["camber.api_key_file"].value:
        needed["camber.api_key"] = "Camber's API key, or CAMBER_API_KEY_FILE to a file that holds it"
    if values["artifacts.type"].value == "s3":
        needed["artifacts.bucket"] = "the bucket for artifacts"
    if values["artifacts.type"].value == "local":
        needed["artifacts.path"] = "the folder for artifacts"
    return [
        f"{key}: required, but no layer sets it: set {_VARIABLE_OF[key]} to {what}"
        for key, what in needed.items()
        if not values[key].value
    ]


def _take_key_file(values: dict[str, Value]) -> list[str]:
    """Takes ``camber.api_key`` from the file that ``camber.api_key_file`` names, and says what is wrong with it."""
    file, key = values["camber.api_key_file"], values["camber.api_key"]
    if not file.value:
        return []
    if key.value:
        return [f"camber.api_key_file: set ({file.layer}), and camber.api_key too ({key.layer}): keep one of them"]
    try:
        values["camber.api_key"] = Value(read_secret(Path(str(file.value))).reveal(), f"file {file.value}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return [f"camber.api_key_file: {file.value} cannot be used ({file.layer}): {reason}"]
    return []


def _cross_checks(values: Mapping[str, Value]) -> list[str]:
    faults = _database_faults(values["database.url"]) if values["database.url"].value else []
    faults.extend(_endpoint_faults(values["camber.endpoint"], values["service.env"].value))
    if values["camber.transport"].value == "cli":
        faults.extend(_program_faults(values["camber.program"]))
    key = values["camber.api_key"]
    if key.value and any(letter.isspace() for letter in str(key.value)):
        faults.append(f"camber.api_key: has white space in it ({key.layer}): copy the key again")
    for low, high in (
        ("retry.base_delay_s", "retry.max_delay_s"),
        ("outage.probe_interval_s", "outage.probe_max_interval_s"),
    ):
        first, second = _as_float(values[low].value), _as_float(values[high].value)
        if first is not None and second is not None and first > second:
            faults.append(f"{low}: {first:g} is above {high}, {second:g} ({values[low].layer}): lower it")
    prefix = str(values["artifacts.prefix"].value)
    if prefix.startswith("/") or prefix.endswith("/") or ".." in prefix.split("/"):
        faults.append(f"artifacts.prefix: {prefix!r} must not start or end with / ({values['artifacts.prefix'].layer})")
    return faults


def _as_float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _database_faults(url: Value) -> list[str]:
    if not url.value:
        return [
            "database.url: required, but no layer sets it: set DATABASE_URL to postgresql://user:password@host/database"
        ]
    from rythmiq_ray.queue.dsn import check_dsn  # psycopg2 is for those that have a database to name

    fault = check_dsn(Secret(str(url.value)))
    return [] if fault is None else [f"database.url: {fault} ({url.layer}): correct DATABASE_URL"]


def _endpoint_faults(endpoint: Value, env: object) -> list[str]:
    parts = urlsplit(str(endpoint.value or ""))
    where = f"({endpoint.layer})"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return [f"camber.endpoint: {endpoint.value!r} is no http(s) URL {where}: the default is {_RIGHT_ENDPOINT}"]
    if parts.hostname in _DEAD_HOSTS:
        return [f"camber.endpoint: {parts.hostname} is a placeholder of old notes {where}: use {_RIGHT_ENDPOINT}"]
    if parts.username or parts.password:
        return [f"camber.endpoint: must hold no user or password {where}: the key goes into CAMBER_API_KEY"]
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and env not in ("local", "dev"):
        return [f"camber.endpoint: plain http would show the key to the network {where}: use https"]
    return []


def _program_faults(program: Value) -> list[str]:
    faults = []
    if find_program(str(program.value)) is None:
        faults.append(
            f"camber.program: there is no program {program.value!r} ({program.layer}):"
            " install it here and on every Ray node, or set camber.program to its path"
        )
    if find_program(TETHER) is None:
        faults.append(f"camber.transport: cli needs the program {TETHER}: install util-linux")
    return faults


# ------------------------------------------------------------------------------------------------------ showing


def _masked(key: str, value: Any) -> Any:
    return str(Secret("")) if key in _secret_keys() and value else value


def _inline(key: str, value: Any) -> str:
    return yaml.safe_dump(_masked(key, value), default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
