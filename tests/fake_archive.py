"""A small archive in the place of one that torchvision downloads."""

import hashlib
import io
import tarfile
import urllib.request
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import pytest


def write_archive(
    dataset_class: type, files: dict[str, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, str]]:
    """Write an archive of these files, whose MD5 torchvision knows; there is no network.

    Returns it, and file -> MD5.
    """
    monkeypatch.setattr(urllib.request, "urlopen", Mock(side_effect=URLError("no network")))
    archive = folder / dataset_class.filename
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{dataset_class.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(dataset_class, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive, {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
