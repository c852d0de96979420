"""``rythmiq doctor``: checks everything that a driver needs, and names the remedy for each fault."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rythmiq_ray.access import embedded
from rythmiq_ray.cli import output
from rythmiq_ray.cli.failure import FAILED, REFUSED, Ended
from rythmiq_ray.cli.jobs import Json
from rythmiq_ray.errors import ConfigurationError, RythmiqError

if TYPE_CHECKING:
    from rythmiq_ray.config import Config
    from rythmiq_ray.secret import Secret


def doctor(
    context: typer.Context,
    probe: Annotated[
        bool, typer.Option("--probe", help="Test each inferred route of the live service; creates nothing.")
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --probe: write the differences as a configuration layer."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check everything that a driver needs, and say what to do.

    Checks the configuration, Postgres, the artifact store (writes a file, reads it back, deletes it),
    Camber (the key, its owner, the list of jobs), Ray and the clock, all at once and each within 30 s.
    Exits 0 if all checks pass, 1 if one fails, 2 if the configuration has a fault.

    --probe tests the inferred parts of Camber's API with requests that cannot succeed: wrong types,
    jobs and files that do not exist. Nothing is created, changed or removed.

    \b
    Examples:
      rythmiq doctor
      rythmiq doctor --json | jq -r '.items[] | select(.outcome != "ok") | .said'
      rythmiq doctor --probe --write camber-live.yaml && export RYTHMIQ_CONFIG=camber-live.yaml
    """
    from rythmiq_ray.diagnosis import Finding, examine

    if write is not None and not probe:
        raise typer.BadParameter("--write needs --probe", ctx=context)
    config, url, faults = _configuration()
    findings = [Finding("configuration", "fault", fault) for fault in faults]
    if not faults:
        findings.append(Finding("configuration", "ok", "all layers fit"))
    findings += examine(config, url)
    if probe and config is not None:
        findings += _probed(config, write)
    if as_json:
        items = [output.record(finding) for finding in findings]
        output.print_json({"items": items, "total": len(items), "next": None})
    else:
        for finding in findings:
            typer.echo(f"{finding.outcome:<8} {output.printable(finding.check)}: {output.printable(finding.said)}")
    if faults:
        raise Ended(REFUSED)
    if any(finding.outcome == "fault" for finding in findings):
        raise Ended(FAILED)


def _configuration() -> tuple[Config | None, Secret | None, list[str]]:
    """The configuration and the database's address, as far as they can be read, and all faults."""
    from rythmiq_ray import config_loader

    defaults = embedded()
    try:
        config = config_loader.load(defaults=defaults).config
    except ConfigurationError as error:
        try:
            url: Secret | None = config_loader.database_url(defaults=defaults)
        except ConfigurationError:
            url = None
        return None, url, error.message.splitlines()
    return config, config.database.url, []


def _probed(config: Config, write: Path | None) -> list[Any]:
    from rythmiq_ray.assembly import probe_camber
    from rythmiq_ray.diagnosis import Finding

    if config.execution.backend != "camber":
        return [
            Finding("probe", "warning", f"execution.backend is {config.execution.backend}: there is nothing to probe")
        ]
    try:
        learnt = probe_camber(config.camber)
    except RythmiqError as error:
        return [Finding("probe", "fault", error.message)]
    findings = [Finding(f"probe {note.operation}", note.outcome, note.said) for note in learnt.notes]
    if not learnt.layer:
        return [*findings, Finding("probe", "ok", "no difference from the configuration was found")]
    from omegaconf import OmegaConf

    text = OmegaConf.to_yaml(OmegaConf.create(dict(learnt.layer)))
    if write is None:
        said = f"the service differs; --write FILE writes this layer: {' '.join(text.split())}"
    else:
        write.write_text(f"# What `rythmiq doctor --probe` found at {config.camber.endpoint}\n{text}", encoding="utf-8")
        said = f"{write} was written: set RYTHMIQ_CONFIG to it, or copy it into the file that is set"
    return [*findings, Finding("probe", "differs", said)]
