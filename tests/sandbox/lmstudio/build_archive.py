#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the stand-in's archive in the vendor's shape; the same sources always give the same bytes.

build_archive.py --version 0.0.25-1 --out DIR
→ DIR/0.0.25-1-darwin-arm64.full.tar.gz (llmster, .bundle/, llmster.zip) and …tar.gz.sha512
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import tarfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
EPOCH = (1980, 1, 1, 0, 0, 0)


def _contents(version: str) -> dict[str, tuple[bytes, int]]:
    """Return {path in the archive: (bytes, mode)}."""
    files = {
        "llmster": ((HERE / "launchers" / "llmster").read_bytes(), 0o755),
        ".bundle/VERSION": (version.encode() + b"\n", 0o644),
        ".bundle/lms": ((HERE / "launchers" / "lms").read_bytes(), 0o755),
    }
    for source in sorted((HERE / "llmster_standin").glob("*.py")):
        files[".bundle/llmster_standin/" + source.name] = (source.read_bytes(), 0o644)
    files["llmster.zip"] = (_zip({"llmster": files["llmster"]}), 0o644)
    return files


def _zip(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, (data, mode) in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = mode << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


def _tar_gz(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for folder in (".bundle", ".bundle/llmster_standin"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, (data, mode) in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is either complete or not there; an unchanged one is left alone."""
    if path.is_file() and path.read_bytes() == data:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def build(version: str, out: Path) -> Path:
    """Write archive and checksum into ``out`` and return the archive's path. Raises ValueError."""
    if not re.fullmatch(r"\d+\.\d+\.\d+-\d+", version):
        raise ValueError(f"not a llmster version: {version!r} (want 0.0.25-1)")
    out.mkdir(parents=True, exist_ok=True)
    archive = out / f"{version}-darwin-arm64.full.tar.gz"
    data = _tar_gz(_contents(version))
    write_whole(archive, data)
    write_whole(out / f"{archive.name}.sha512", f"{hashlib.sha512(data).hexdigest()}  {archive.name}\n".encode())
    return archive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", required=True)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    print(build(arguments.version, arguments.out))


if __name__ == "__main__":
    main()
