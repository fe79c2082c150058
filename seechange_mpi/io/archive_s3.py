"""An object store with Amazon's protocol as an archive; boto3 is imported when one is opened."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seechange_mpi.config.archive import ArchiveSettings
from seechange_mpi.config.resolve import redact
from seechange_mpi.io.archive import Copy
from seechange_mpi.io.digests import PIECE, Digest, HashingSink
from seechange_mpi.model.errors import BadInput, ConfigError, TransientError

_SINGLE = 4 << 30
"""Larger files are sent in parts, of whose whole the store has no hash."""
_MISSING = ("404", "NoSuchKey", "NotFound")
_DENIED = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket", "ExpiredToken",
           "PermanentRedirect", "InvalidBucketName")


def open_s3(settings: ArchiveSettings) -> S3Archive:
    """Connect to the object store of a configuration.

    Raises
    ------
    ConfigError
        boto3 is not installed, or does not take the settings.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise ConfigError("archive.kind is s3, which needs boto3: pip install 'seechange-mpi[s3]'") from None
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.Session(profile_name=settings.profile)
        client = session.client(
            "s3", endpoint_url=settings.url, verify=settings.verify_tls,
            region_name=session.region_name or os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
            config=Config(connect_timeout=min(10.0, settings.timeout_s), read_timeout=settings.timeout_s,
                          max_pool_connections=max(10, settings.streams),
                          retries={"max_attempts": settings.attempts, "mode": "standard"}))
    except (BotoCoreError, ValueError) as err:
        raise ConfigError(f"archive: {err}") from None
    where = f"{redact(settings.url).rstrip('/')}/" if settings.url else "s3://"
    return S3Archive(client, str(settings.path), where, settings.attempts, settings.pause_s)


class S3Archive:
    """Objects of a bucket below a prefix.

    Parameters
    ----------
    client : of boto3.
    path : ``BUCKET`` or ``BUCKET/PREFIX``.
    where : what stands before that in the name of the archive.
    attempts, pause_s : tries of a download that breaks off, and the time between; the rest boto3 tries again itself.
    """

    def __init__(self, client: Any, path: str, where: str = "s3://", attempts: int = 1, pause_s: float = 0.0) -> None:
        self.client, self.attempts, self.pause_s = client, attempts, pause_s
        self.bucket, _, prefix = path.strip("/").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.name = f"{where}{path.strip('/')}"

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    def upload(self, path: Path, key: str, digest: Digest) -> Copy:
        """Put an object whose sha256 the store checks on arrival (see `Archive.upload`)."""
        with self._told(f"upload of {key}"), path.open("rb") as f:
            if digest.size <= _SINGLE:
                self.client.put_object(**self._at(key), Body=f, ContentLength=digest.size,
                                       ChecksumSHA256=base64.b64encode(bytes.fromhex(digest.sha256)).decode(),
                                       Metadata={"sha256": digest.sha256})
            else:
                self.client.upload_fileobj(f, self.bucket, self.prefix + key,
                                           ExtraArgs={"ChecksumAlgorithm": "SHA256",
                                                      "Metadata": {"sha256": digest.sha256}})
        stored = self.info(key, hashed=True)
        if stored is None:
            raise TransientError(f"{self.name}: {key} was sent but is not there; try seechange-mpi archive push")
        return stored

    def download(self, key: str, sink: HashingSink) -> None:
        """Read an object as it comes (see `Archive.download`)."""
        for left in reversed(range(self.attempts)):
            try:
                self._download(key, sink)
            except TransientError:
                if not left:
                    raise
                time.sleep(self.pause_s)
            else:
                return

    def _download(self, key: str, sink: HashingSink) -> None:
        with self._told(f"download of {key}"):
            sink.restart()
            try:
                body = self.client.get_object(**self._at(key))["Body"]
            except self.client.exceptions.ClientError as err:
                if _code(err) in _MISSING:
                    raise BadInput(f"{self.name} {key}", "archived copy", "a file", "no such file") from None
                raise
            for piece in body.iter_chunks(PIECE):
                sink.write(piece)

    def info(self, key: str, *, hashed: bool = False) -> Copy | None:
        """Size, and the sha256 that the store has computed of the whole, if any (see `Archive.info`)."""
        with self._told(f"question for {key}"):
            try:
                answer = self.client.head_object(**self._at(key), **({"ChecksumMode": "ENABLED"} if hashed else {}))
            except self.client.exceptions.ClientError as err:
                if _code(err) in _MISSING:
                    return None
                raise
        checksum = str(answer.get("ChecksumSHA256", ""))
        whole = checksum and "-" not in checksum  # HASH-N is a hash of the hashes of N parts
        return Copy(int(answer["ContentLength"]), base64.b64decode(checksum).hex() if whole else "")

    def delete(self, key: str) -> bool:
        """Remove an object (see `Archive.delete`)."""
        there = self.info(key) is not None
        if there:
            with self._told(f"removal of {key}"):
                self.client.delete_object(**self._at(key))
        return there

    def keys(self, prefix: str) -> Iterator[str]:
        """List the bucket (see `Archive.keys`)."""
        with self._told("listing"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket,
                                                                          Prefix=self.prefix + prefix)
            for page in pages:
                for item in page.get("Contents", ()):
                    yield str(item["Key"]).removeprefix(self.prefix)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn the client's exceptions into ours."""
        try:
            yield
        except (BadInput, TransientError):
            raise
        except self.client.exceptions.ClientError as err:
            if _code(err) in _DENIED:
                raise ConfigError(f"{self.name}: the archive refuses the {what}: {err}; see archive.path, "
                                  "archive.profile and the keys") from None
            raise TransientError(f"{self.name}: the {what} did not work: {err}") from None
        except Exception as err:
            if not type(err).__module__.startswith(("botocore", "boto3", "s3transfer", "urllib3")):
                raise
            if type(err).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError"):
                raise ConfigError(f"{self.name}: {err}; see archive.path and archive.profile") from None
            raise TransientError(f"{self.name}: the {what} did not work: {err}; seechange-mpi archive push goes on "
                                 "with what is missing") from None


def _code(err: Any) -> str:
    return str(err.response.get("Error", {}).get("Code", ""))
