"""Original archives: where they lie on the net, and how to tell that they are right."""

import dataclasses
import hashlib
import urllib.request
from pathlib import Path

import tensorflow_datasets as tfds

from data_prep.archives import SourceError

PROBE_SECONDS = 20.0  # a host that has not answered by then counts as silent
_CHUNK = 2**20  # bytes


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published archive.

    Attributes:
        name: Its file name.
        url: Where it lies; None if one has to log in to get it.
        digest: "sha256:..." or "md5:..."; None if it is not known.
        home: Page on which people get it.
    """

    name: str
    url: str | None
    digest: str | None
    home: str


def fetch(archive: Archive, folder: Path, mirror: str | None, put_at: Path) -> Path:
    """Downloads an archive, unless an earlier call has, and checks it.

    Args:
        archive: What to download.
        folder: Where downloads are kept.
        mirror: Address below which archives lie; None for the archive's own.
        put_at: Where a person would put it, for the error.

    Returns:
        The path of the file.

    Raises:
        SourceError: No host has it, it breaks off, or it is not what it should be.
    """
    url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
    instead = (
        f"get it from {archive.home} and put it at {put_at}, or name another place "
        "with --mirror"
    )
    if url is None:
        raise SourceError(f"{archive.name} is missing and needs a login: {instead}.")
    if not url.startswith(("http://", "https://")):
        raise SourceError(f"--mirror={mirror}: must begin with http:// or https://.")
    try:
        # TFDS would wait for a silent host without end.
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
        manager = tfds.download.DownloadManager(download_dir=folder)
        path = Path(manager.download(url))
    except (OSError, tfds.download.DownloadError) as error:
        reason = str(error).split("\n")[0]
        raise SourceError(
            f"{archive.name} is missing, and {url} does not deliver it ({reason}): "
            f"{instead}."
        ) from error
    if archive.digest and (found := _digest(path, archive.digest)) != archive.digest:
        for stale in path.parent.glob(f"{path.name}*"):
            stale.unlink()
        raise SourceError(
            f"{url}: the file has {found}, not {archive.digest}; it was deleted. "
            f"Instead, {instead}."
        )
    return path


def _digest(path: Path, expected: str) -> str:
    kind = expected.split(":")[0]
    digest = hashlib.new(kind)
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"
