"""Loads the configuration from layers, environment variables and arguments; reports all faults at once, with remedies.

Later layers win: ``conf/default.yaml``, ``conf/camber.yaml``, ``conf/${SERVICE_ENV}.yaml``, the embedded services for
those that nothing else names, the file named by ``RYTHMIQ_CONFIG``, environment variables, ``key=value`` arguments.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from rythmiq_ray.checks import nearest, sentence
from rythmiq_ray.config import ArtifactsConfig, CamberCatalog, Config, PostgresUrl
from rythmiq_ray.duration import seconds_of
from rythmiq_ray.errors import ConfigurationError
from rythmiq_ray.hosts import is_loopback
from rythmiq_ray.programs import TETHER, find_program
from rythmiq_ray.secret import Secret, read_secret

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


VARIABLES: Final = MappingProxyType(
    {
        "DATABASE_URL": "database.url",
        "ARTIFACT_STORE_TYPE": "artifacts.type",
        "ARTIFACT_STORE_BUCKET": "artifacts.bucket",
        "ARTIFACT_STORE_PATH": "artifacts.path",
        "EXECUTION_BACKEND": "execution.backend",
        "EXECUTION_LOCAL_PATH": "execution.local_path",
        "CAMBER_API_KEY": "camber.api_key",
        "CAMBER_API_KEY_FILE": "camber.api_key_file",
        "CAMBER_API_ENDPOINT": "camber.endpoint",
        "CAMBER_TRANSPORT": "camber.transport",
        "CAMBER_EXECUTION_REGION": "camber.region",
        "CAMBER_EXECUTION_TIMEOUT_MS": "execution.timeout_ms",
        "SERVICE_ENV": "service.env",
        "RYTHMIQ_NOTIFY_SECRET": "notify.secret",
        "LOG_LEVEL": "logging.level",
        "LOG_FORMAT": "logging.format",
        "PORT": "health.port",
    }
)
"""Which environment variable sets which key."""

_VARIABLE_OF: Final = {key: variable for variable, key in VARIABLES.items()}
_INTERPOLATION: Final = re.compile(r"(\\*)\$\{")
_LONGEST_SHOWN: Final = 80
_ENVIRONMENTS: Final = ("local", "dev", "staging", "prod")
_SECRET_KEYS: Final = ("database.url", "camber.api_key", "notify.secret")
_LONGEST_STATEMENT_S: Final = 30.0
_STATEMENT_PART: Final = 0.4
"""Part of the lease: a statement that hangs is cancelled before the next heartbeat is late."""
_NEEDED: Final = MappingProxyType(
    {
        "database.url": "the Postgres that holds the jobs, postgresql://user:password@host/database",
        "artifacts.type": "s3 or local",
        "artifacts.bucket": "the bucket for artifacts",
        "artifacts.path": "the folder for artifacts",
        "execution.backend": "camber or local",
        "execution.local_path": "the folder for the jobs of the local backend",
        "camber.api_key": "Camber's API key, or CAMBER_API_KEY_FILE to a file that holds it",
    }
)
"""What a required key has to be set to, for the message that it is missing."""


@dataclass(frozen=True)
class Value:
    """A key's value and where it came from."""

    value: Any
    layer: str


@dataclass(frozen=True)
class Loaded:
    """The configuration, and where each value came from."""

    config: Config
    values: Mapping[str, Value]

    def origin(self, key: str) -> str:
        """The layer that ``key`` came from, e.g. ``environment variable PORT``."""
        return self.values[key].layer

    def render(self) -> str:
        """The resolved tree as YAML for ``--print-config``: each value's layer follows it, secrets are masked."""
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
    tree = _Tree()
    tree.add_file(conf_folder() / "camber.yaml", "conf/camber.yaml")
    tree.resolve()
    catalog: CamberCatalog = tree.typed(CamberCatalog, "camber", "catalog")
    _refuse(tree.faults.values())
    return catalog


def database_url(environ: Mapping[str, str] | None = None, defaults: Mapping[str, str] | None = None) -> Secret:
    """``database.url`` by the same layers, for commands that need nothing else; raises ConfigurationError."""
    tree = _read((), os.environ if environ is None else environ, defaults or {})
    url: Secret = tree.typed(PostgresUrl, "database", "url")
    _refuse(said for key, said in tree.faults.items() if key == "database.url" or key in tree.unread)
    return url


def artifacts(environ: Mapping[str, str] | None = None, defaults: Mapping[str, str] | None = None) -> ArtifactsConfig:
    """``artifacts`` by the same layers, for who uploads inputs; raises ConfigurationError."""
    tree = _read((), os.environ if environ is None else environ, defaults or {})
    config: ArtifactsConfig = tree.typed(ArtifactsConfig, "artifacts")
    for key, fault in _cross_faults(tree.values):
        tree.faults.setdefault(key, fault)
    faults = [said for key, said in tree.faults.items() if key.startswith("artifacts.") or key in tree.unread]
    if faults:
        faults.append(
            "a local input is uploaded to the artifact store when it is enqueued: say where that is, or give a URI"
        )
    _refuse(faults)
    return config


def load(
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> Loaded:
    """Resolves all layers into one typed configuration.

    ``defaults`` are environment variables that the embedded default provides; real ones win over them. Raises
    ConfigurationError, whose message has one line for each fault: key, fault, layer, remedy.
    """
    tree = _read(overrides, os.environ if environ is None else environ, defaults or {})
    _take_key_file(tree)
    _fit_statement_timeout(tree.values)
    _fit_in_flight(tree.values)
    config: Config = tree.typed(Config)
    for key, fault in _cross_faults(tree.values):
        tree.faults.setdefault(key, fault)
    _refuse(tree.faults.values())
    return Loaded(config=config, values=MappingProxyType(tree.values))


def _refuse(faults: Iterable[str]) -> None:
    # A key in a file may contain control characters.
    if message := "\n".join(fault if fault.isprintable() else repr(fault)[1:-1] for fault in faults):
        raise ConfigurationError(message)


# ------------------------------------------------------------------------------------------------------- layers


class _Tree:
    """Layers merged by OmegaConf, the layer of each key, and the faults: one line for each key."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        """By dotted key, interpolations resolved. No layer can replace a section, so every key of ``conf`` is here."""
        self.faults: dict[str, str] = {}
        self.unread: set[str] = set()
        """Files that cannot be read; each has a fault."""
        self.origins: dict[str, str] = {}
        """The layer that set a key last, by key."""
        self._layers: list[DictConfig] = []
        self._empty: set[str] = set()
        """Sections that have no keys in some layer."""

    def add_file(self, path: Path, label: str, note: str = "") -> None:
        try:
            self._add(_read_file(path), label)
        except ConfigurationError as error:
            self.unread.add(label)
            self.faults[label] = f"{error.message}{note}"

    def add(self, key: str, value: object, label: str) -> None:
        """Adds one key that is not from a file. Its value is literal: ``${`` in a password is not an interpolation."""
        if isinstance(value, str):
            value = _INTERPOLATION.sub(lambda found: rf"{found[1] * 2}\${{", value)
        self._add(OmegaConf.create(_nest({key: value})), label)

    def _add(self, layer: DictConfig, label: str) -> None:
        leaves = dict(_leaves(OmegaConf.to_container(layer)))
        misfits = [key for key, value in leaves.items() if self._misfit(key, value, label)]
        if misfits:
            layer = OmegaConf.create(_nest({key: leaves[key] for key in leaves.keys() - misfits}))
        self._layers.append(layer)
        self._empty.update(key for key, value in leaves.items() if value == {})
        self.origins.update((key, label) for key in leaves if key not in misfits)

    def _misfit(self, key: str, value: object, label: str) -> bool:
        """Whether a layer has a section where earlier layers have a value, or the other way round; notes that fault."""
        above = next((name for name in _sections(key) if name in self.origins.keys() - self._empty), None)
        below = value != {} and any(name.startswith(f"{key}.") for name in self.origins)
        if above or below:
            self.faults[above or key] = f"{above or key}: must be {'no' if above else 'a'} section of keys ({label})"
        return bool(above or below)

    def resolve(self) -> None:
        """Merges the layers; an interpolation that cannot be resolved is the fault of its key."""
        merged = OmegaConf.unsafe_merge(*self._layers)
        for key, raw in _leaves(OmegaConf.to_container(merged)):
            try:
                value = _resolved(merged, key) if "${" in str(raw) else raw
            except OmegaConfBaseException as error:
                self.faults[key] = f"{key}: {_unresolved(key, error)} ({self.origins[key]})"
                value = None
            for below, item in _leaves(value, key):
                self.values[below] = Value(item, self.origins[key])

    def typed(self, kind: Any, *below: str) -> Any:
        """The keys ``below`` as an object of type ``kind``; None if they have faults, which are noted."""
        tree: Any = _nest({key: item.value for key, item in self.values.items()})
        for part in below:
            tree = tree[part]
        try:
            return _adapter(kind).validate_python(tree)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                path = (*below, *detail["loc"])
                key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
                self.faults.setdefault(key, self._fault(key, detail))
        return None

    def _fault(self, key: str, detail: ErrorDetails) -> str:
        value = detail["input"]
        if key in _NEEDED and not value:
            return _missing(key)
        layer = self._layer_of(key)
        if detail["type"] == "unexpected_keyword_argument":
            others = [name for name in self.values if not f"{name}.".startswith(f"{key}.")]
            return f"{key}: no such key ({layer}){_suggest(key, others)}"
        return f"{key}: {sentence(detail, shown=self._shown(key, value))} ({layer}){_remedy(key)}"

    def _layer_of(self, key: str) -> str:
        """The layer of a key, else of a key below it, else of the section that it is missing from."""
        while key:
            found = [item.layer for name, item in self.values.items() if f"{name}.".startswith(f"{key}.")]
            if found:
                return found[-1]
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return "no layer"

    def _shown(self, key: str, value: object) -> str:
        """A value for a fault's message: of limited length, and without any secret of the tree."""
        text = repr(value)
        for name in _SECRET_KEYS:
            secret = self.values[name].value if name in self.values else None
            if key.startswith(name) or (secret and str(secret) in text):
                return str(Secret(""))
        return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _read(overrides: Sequence[str], environ: Mapping[str, str], defaults: Mapping[str, str]) -> _Tree:
    """All layers, merged and resolved."""
    tree = _Tree()
    arguments = [item.partition("=") for item in overrides]
    named = [text for key, equals, text in arguments if equals and key == "service.env"]
    env = environ.get("SERVICE_ENV") or (named[-1] if named else "prod")
    for name in ("default", "camber", *{env}.intersection(_ENVIRONMENTS)):
        tree.add_file(conf_folder() / f"{name}.yaml", f"conf/{name}.yaml")
    known = frozenset(tree.origins)
    for variable, text in defaults.items():
        if variable in VARIABLES:
            tree.add(VARIABLES[variable], text, "embedded default")
    if extra := environ.get("RYTHMIQ_CONFIG"):
        tree.add_file(Path(extra), extra, " (named by environment variable RYTHMIQ_CONFIG)")
    for variable, key in VARIABLES.items():
        if environ.get(variable):
            tree.add(key, environ[variable], f"environment variable {variable}")
    for key, equals, text in arguments:
        if not equals:
            tree.faults[key] = f"{key!r}: not of the form key=value (argument)"
        elif key not in known:
            tree.faults[key] = f"{key}: no such key (argument){_suggest(key, known)}"
        else:
            secret = key in _SECRET_KEYS
            tree.add(key, text if secret else _scalar(text), f"argument {key}={'…' if secret else text}")
    tree.resolve()
    return tree


def _read_file(path: Path) -> DictConfig:
    """One YAML file with its interpolations unresolved; raises ConfigurationError."""
    try:
        loaded = OmegaConf.load(path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ConfigurationError(f"{path}{line}: not valid YAML: {problem}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except GrammarParseError as error:  # its text would repeat the value
        raise ConfigurationError(f"{path}: {error.full_key}: its interpolation is not closed or not valid") from None
    except OmegaConfBaseException as error:
        raise ConfigurationError(f"{path}: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: is nested too deeply") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigurationError(f"{path}: must contain keys and values, not a list")
    if any("." in str(name) for name in loaded):  # `driver.lease_s: 5` is one name to YAML
        return OmegaConf.create(_nest(dict(_leaves(OmegaConf.to_container(loaded)))))
    return loaded


def _leaves(tree: object, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and (tree or not key):
        for name, value in tree.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, tree


def _sections(key: str) -> Iterator[str]:
    """The sections that a key is in, the innermost first."""
    while key := key.rpartition(".")[0]:
        yield key


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        at = tree
        for part in path:
            if not isinstance(at.get(part), dict):
                at[part] = {}
            at = at[part]
        at[name] = value
    return tree


def _resolved(merged: Any, key: str) -> Any:
    """A key's value without interpolations; raises OmegaConfBaseException."""
    for part in key.split("."):
        merged = merged[part]
    return OmegaConf.to_container(merged, resolve=True) if OmegaConf.is_config(merged) else merged


def _unresolved(key: str, error: OmegaConfBaseException) -> str:
    """Why an interpolation has no value. For a secret key nothing of its text is shown, except a variable's name."""
    reason = str(error).splitlines()[0].rpartition("interpolation: ")[2].strip('"')
    if key in _SECRET_KEYS and not reason.startswith("Environment variable "):
        reason = "what it refers to does not exist"
    return f"its interpolation cannot be resolved: {reason}"


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _suggest(key: str, known: Iterable[str]) -> str:
    sections = {section for name in known for section in _sections(name)}
    near = nearest(key, tuple(sorted(sections.union(known))))
    return f": did you mean {near}?" if near else ": see conf/default.yaml for the keys"


def _remedy(key: str) -> str:
    variable = _VARIABLE_OF.get(key)
    return f": set {variable} or {key}" if variable else ""


def _missing(key: str) -> str:
    return f"{key}: required, but no layer sets it: set {_VARIABLE_OF[key]} to {_NEEDED[key]}"


# ---------------------------------------------------------------------------------------- rules between the keys


def _take_key_file(tree: _Tree) -> None:
    """Takes ``camber.api_key`` from the file that ``camber.api_key_file`` names, and says what is wrong with it."""
    file, key = tree.values["camber.api_key_file"], tree.values["camber.api_key"]
    if not file.value:
        return
    if key.value:
        fault = f"camber.api_key_file: set ({file.layer}), and camber.api_key too ({key.layer}): keep one of them"
        tree.faults["camber.api_key_file"] = fault
        return
    try:
        secret = read_secret(Path(str(file.value)))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        fault = f"camber.api_key_file: {file.value} cannot be used ({file.layer}): {reason}"
        tree.faults["camber.api_key_file"] = fault
    else:
        tree.values["camber.api_key"] = Value(secret.reveal(), f"file {file.value}")


def _fit_statement_timeout(values: dict[str, Value]) -> None:
    """Derives ``database.statement_timeout_s`` from the lease if no layer sets it."""
    if values["database.statement_timeout_s"].value is None:
        lease_s = _seconds(values["driver.lease_s"].value) or _LONGEST_STATEMENT_S
        fitted = min(_LONGEST_STATEMENT_S, _STATEMENT_PART * lease_s)
        values["database.statement_timeout_s"] = Value(fitted, "two fifths of driver.lease_s")


def _fit_in_flight(values: dict[str, Value]) -> None:
    """Sets ``auto`` to the number of CPUs for the local backend: it starts all jobs at once, so waits show no limit."""
    if (values["execution.backend"].value, values["camber.max_in_flight"].value) == ("local", "auto"):
        cpus = len(os.sched_getaffinity(0))
        values["camber.max_in_flight"] = Value(cpus, "the CPUs of this machine, for the local backend")


def _cross_faults(values: Mapping[str, Value]) -> Iterator[tuple[str, str]]:
    """Faults that concern several keys, each with its key; also checked if some keys have faults of their own."""
    needed = {"s3": ["artifacts.bucket"], "local": ["artifacts.path"]}.get(str(values["artifacts.type"].value), [])
    if values["execution.backend"].value == "local":
        needed.append("execution.local_path")
    elif not values["camber.api_key_file"].value:
        needed.append("camber.api_key")
    yield from ((key, _missing(key)) for key in needed if not values[key].value)
    endpoint = values["camber.endpoint"]
    plain = re.match(r"http://(\[[^]]*\]|[^/:?#]*)", str(endpoint.value))
    if plain and not is_loopback(plain[1].strip("[]")) and values["service.env"].value not in ("local", "dev"):
        said = f"plain http would show the key to the network ({endpoint.layer}): use https"
        yield "camber.endpoint", f"camber.endpoint: {said}"
    if values["camber.transport"].value == "cli":
        yield from _program_faults(values["camber.program"])
    for low, high, part in (
        ("retry.base_delay_s", "retry.max_delay_s", 1.0),
        ("outage.probe_interval_s", "outage.probe_max_interval_s", 1.0),
        ("database.statement_timeout_s", "driver.lease_s", 0.5),
    ):
        first, second = _seconds(values[low].value), _seconds(values[high].value)
        if first is not None and second is not None and first > part * second:
            of = "" if part == 1.0 else f"{part:.0%} of "
            yield low, f"{low}: {first:g} is above {of}{high}, {second:g} ({values[low].layer}): lower it"


def _program_faults(program: Value) -> Iterator[tuple[str, str]]:
    if find_program(str(program.value)) is None:
        said = "install it here and on every Ray node, or set camber.program to its path"
        yield "camber.program", f"camber.program: there is no program {program.value!r} ({program.layer}): {said}"
    if find_program(TETHER) is None:
        yield "camber.transport", f"camber.transport: cli needs the program {TETHER}: install util-linux"


def _seconds(value: object) -> float | None:
    try:
        return seconds_of(value)
    except ValueError:
        return None


# ------------------------------------------------------------------------------------------------------ showing


def _masked(key: str, value: Any) -> Any:
    return str(Secret("")) if key in _SECRET_KEYS and value else value


def _inline(key: str, value: Any) -> str:
    return yaml.safe_dump(_masked(key, value), default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
