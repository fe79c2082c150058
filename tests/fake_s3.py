"""A stand-in for boto3's S3 client, with what the archive uses of it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any


class ClientError(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}}


class _Body:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def iter_chunks(self, size: int) -> Iterator[bytes]:
        for k in range(0, len(self.content), size):
            yield self.content[k:k + size]


class FakeS3:
    """Objects in memory. `error`: code of the next request's error; `flip`: change a byte of the next upload on its
    way; `checksums`: whether it checks and keeps them (some stores do not)."""

    class exceptions:
        ClientError = ClientError

    def __init__(self, *, checksums: bool = True) -> None:
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.error, self.flip, self.checksums = "", False, checksums

    def _raise(self) -> None:
        if self.error:
            code, self.error = self.error, ""
            raise ClientError(code)

    def put_object(self, *, Bucket: str, Key: str, Body: Any, ContentLength: int, ChecksumSHA256: str,
                   Metadata: dict[str, str]) -> None:
        self._raise()
        assert Bucket == "bucket"
        content = Body.read()
        if self.flip:
            content, self.flip = content[:-1] + bytes([content[-1] ^ 1]), False
        found = base64.b64encode(hashlib.sha256(content).digest()).decode()
        if self.checksums and found != ChecksumSHA256:
            raise ClientError("BadDigest")
        assert len(content) == ContentLength
        self.objects[Key] = content, found

    def _get(self, key: str) -> tuple[bytes, str]:
        self._raise()
        if key not in self.objects:
            raise ClientError("404")
        return self.objects[key]

    def head_object(self, *, Bucket: str, Key: str, ChecksumMode: str = "") -> dict[str, Any]:
        content, checksum = self._get(Key)
        more = {"ChecksumSHA256": checksum} if ChecksumMode and self.checksums else {}
        return {"ContentLength": len(content), **more}

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        return {"Body": _Body(self._get(Key)[0])}

    def delete_object(self, *, Bucket: str, Key: str) -> None:
        self.objects.pop(Key, None)

    def get_paginator(self, _name: str) -> FakeS3:
        return self

    def paginate(self, *, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:
        yield {"Contents": [{"Key": k} for k in sorted(self.objects) if k.startswith(Prefix)]}
        yield {}
