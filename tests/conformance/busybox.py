"""A root file system tar of the distribution's static busybox, and a registry's storage that has it as an image."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path


def root_tar() -> bytes:
    """busybox with every applet, /etc/passwd and the usual directories."""
    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin", "etc", "proc", "sys", "dev", "root", "tmp", "var", "run"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(directory)
        _add(tar, "bin/busybox", busybox.read_bytes(), 0o755)
        _add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", 0o644)
        _add(tar, "etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)
        for applet in applets:
            if applet != "busybox":
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def write_registry(storage: Path, repository: str, tag: str, layer: bytes) -> str:
    """Lay an image out as distribution's filesystem driver stores it; returns its manifest digest."""
    packed = gzip.compress(layer, 1, mtime=0)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        "history": [{"created_by": "busybox", "created": "2026-01-01T00:00:00Z"}],
        "created": "2026-01-01T00:00:00Z",
    }
    config_bytes = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": _descriptor("application/vnd.docker.container.image.v1+json", config_bytes),
        "layers": [_descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", packed)],
    }
    manifest_bytes = json.dumps(manifest).encode()
    root = storage / "docker" / "registry" / "v2"
    links = root / "repositories" / repository
    for data in (packed, config_bytes, manifest_bytes):
        name = _digest(data).removeprefix("sha256:")
        _write(root / "blobs" / "sha256" / name[:2] / name / "data", data)
        _write(links / "_layers" / "sha256" / name / "link", _digest(data).encode())
    digest = _digest(manifest_bytes)
    name = digest.removeprefix("sha256:")
    _write(links / "_manifests" / "revisions" / "sha256" / name / "link", digest.encode())
    _write(links / "_manifests" / "tags" / tag / "current" / "link", digest.encode())
    _write(links / "_manifests" / "tags" / tag / "index" / "sha256" / name / "link", digest.encode())
    return digest


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "size": len(data), "digest": _digest(data)}


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
