"""Settings of the archive."""

from __future__ import annotations

from typing import Literal

from seechange_mpi.config.parameters import Parameters, par


class ArchiveSettings(Parameters):
    """Where finished files are kept for good, and from where missing ones come back."""

    section = "archive"
    kind: Literal["none", "directory", "s3", "connector"] = par(
        "none", "directory = a folder, such as a mounted tape cache; s3 = an object store (pip install "
                "'seechange-mpi[s3]'); connector = SeeChange's upload server", critical=False)
    path: str | None = par(None, "directory: the folder; s3: BUCKET or BUCKET/PREFIX; connector: the collection, which "
                                 "every path begins with", critical=False)
    url: str | None = par(None, "connector: address of the server; s3: of an object store other than Amazon's",
                          critical=False)
    token_file: str | None = par(None, "connector: file that holds the token alone, or lines PREFIX TOKEN as the "
                                       "server's own", critical=False)
    profile: str | None = par(None, "s3: profile of ~/.aws with the keys; null = what boto3 finds (AWS_ACCESS_KEY_ID, "
                                    "...)", critical=False)
    verify_tls: bool = par(True, "refuse servers without a valid certificate", critical=False)
    timeout_s: float = par(60.0, "longest silence of the server", unit="s", critical=False, gt=0)
    attempts: int = par(6, "tries of one transfer", critical=False, ge=1)
    pause_s: float = par(2.0, "time between tries", unit="s", critical=False, ge=0)
    streams: int = par(4, "files in transfer at once", critical=False, ge=1, le=64)
    push: bool = par(True, "upload each exposure after its commit; false = only by 'archive push'", critical=False)
    raw: bool = par(False, "archive raw exposures that lie below paths.root as well", critical=False)
