"""A Python function as a job: its arguments are sent with it, and a file brings back its value or exception."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from rythmiq_ray.model import Input, JobSpec

if TYPE_CHECKING:
    from rythmiq_ray.artifacts import ArtifactStore

FOLDER: Final = "_function"
RESULT_NAME: Final = f"{FOLDER}/result.pkl"
_CALL_NAME: Final = f"{FOLDER}/call.pkl"
_RUNNER_NAME: Final = f"{FOLDER}/run.py"
_pickling: Final = threading.Lock()
"""The modules that cloudpickle sends by value are a setting of the whole process."""
_RUNNER: Final = '''\
"""Runs the function that was sent, and leaves what it returned or raised."""
import pickle, sys, traceback
from pathlib import Path

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent)]
sent = tuple({version})
if sys.version_info[:2] != sent:
    sys.exit(
        "this node has Python %d.%d, and the function was sent by %d.%d: submit it from a Python of the node's version,"
        " or use an image that has yours" % (*sys.version_info[:2], *sent)
    )
import cloudpickle

with open(here / "call.pkl", "rb") as file:
    function, args, kwargs = pickle.load(file)
try:
    outcome = ("returned", function(*args, **kwargs))
except BaseException as error:
    traceback.print_exc()
    if not isinstance(error, Exception):
        raise
    outcome = ("raised", error)
try:
    data = cloudpickle.dumps(outcome)
    pickle.loads(data)
except Exception as error:
    said = "its %s cannot be sent back: %s: %s" % (
        "value" if outcome[0] == "returned" else "exception", type(error).__name__, error
    )
    print(said, file=sys.stderr)
    if outcome[0] == "raised":
        said = "%s: %s" % (type(outcome[1]).__name__, outcome[1])
    outcome = ("failed", said)
    data = pickle.dumps(outcome)
with open(here / "result.pkl", "wb") as file:
    file.write(data)
sys.exit(0 if outcome[0] == "returned" else 1)
'''


def spec_of(
    store: ArtifactStore, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], spec: JobSpec
) -> JobSpec:
    """The spec of a job that calls the function; ``spec`` says on which nodes. Uploads the pickled call.

    Raises ModuleNotFoundError without cloudpickle, TypeError if the call cannot be pickled, and StoreUnavailable.
    """
    import cloudpickle

    with _pickling:
        module = _own_module(function)
        if module is not None:
            cloudpickle.register_pickle_by_value(module)
        try:
            call = cloudpickle.dumps((function, args, dict(kwargs)))
        except Exception as error:
            raise TypeError(f"the function or its arguments cannot be sent: {error}") from error
        finally:
            if module is not None:
                cloudpickle.unregister_pickle_by_value(module)
    files = {
        _RUNNER_NAME: _RUNNER.replace("{version}", str(list(sys.version_info[:2]))).encode(),
        _CALL_NAME: call,
        # The node may not have cloudpickle.
        **{f"{FOLDER}/cloudpickle/{path.name}": path.read_bytes() for path in _sources(cloudpickle)},
    }
    inputs = [Input(uri=_uploaded(store, data), name=name) for name, data in files.items()]
    return replace(
        spec,
        command=f"python3 {_RUNNER_NAME}",
        inputs=(*spec.inputs, *inputs),
        outputs=(*spec.outputs, RESULT_NAME),
        # An exception of the function would be raised again, so only killed commands (137, 143) are retried.
        retry_exit_codes=spec.retry_exit_codes if spec.retry_exit_codes is not None else (137, 143),
    )


def _own_module(function: Callable[..., Any]) -> ModuleType | None:
    """The function's module if it is a file of the user's: nodes have only installed packages. None otherwise."""
    import cloudpickle

    while isinstance(function, partial):
        function = function.func
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    path = getattr(module, "__file__", None)
    if module is None or path is None or module.__name__ in cloudpickle.list_registry_pickle_by_value():
        return None
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    return None if any(Path(path).resolve().is_relative_to(folder) for folder in installed) else module


def _sources(package: Any) -> list[Path]:
    return sorted(Path(package.__file__).parent.glob("*.py"))


def _uploaded(store: ArtifactStore, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    return store.find_input(digest, len(data)) or store.write_input(digest, len(data), [data])
