"""The program that stands in for the vendor's ``camber``, as a file of a test, with oddities that can be switched."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rythmiq_ray.local.camber import program


@dataclass(frozen=True)
class VendorProgram:
    """``folder`` holds the program and what it notes."""

    folder: Path

    @classmethod
    def install(cls, folder: Path, **oddities: Any) -> VendorProgram:
        folder.mkdir(exist_ok=True)
        made = cls(folder)
        made.path.write_text(
            f"#!/bin/sh\nexport RYTHMIQ_CAMBER_ODDITIES={shlex.quote(str(folder))}\n"
            f'exec {shlex.quote(sys.executable)} -I -S -X utf8 {shlex.quote(str(program.__file__))} "$@"\n'
        )
        made.path.chmod(0o755)
        made.behave(**oddities)
        return made

    @property
    def path(self) -> Path:
        return self.folder / "camber"

    def behave(self, **oddities: Any) -> None:
        """Sets its oddities (``rythmiq_ray.local.camber.program.Oddities``); those not named are off."""
        for seen in self.folder.glob("seen-*"):
            seen.unlink()
        new = self.folder / "oddities.new"
        new.write_text(json.dumps(oddities))
        new.replace(self.folder / "oddities.json")

    @property
    def processes(self) -> list[psutil.Process]:
        """Its runs that have not ended, and what those have started."""
        found = []
        for process in psutil.process_iter(["environ", "status"]):
            ours = (process.info["environ"] or {}).get("RYTHMIQ_CAMBER_ODDITIES") == str(self.folder)
            if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What it noted while ``records`` was on."""
        try:
            return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]
        except FileNotFoundError:
            return []
