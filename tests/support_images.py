"""Images for tests without the Internet: a busybox image from the distribution's static binary, and a real registry."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.support_addresses import free_port, loopback

BUSYBOX_TAG = "busybox:latest"
REGISTRY_BINARY = "docker-registry"
START_TIMEOUT_S = 30.0
_DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var", "www")
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"


def make_tar(members: Sequence[tuple[str, bytes | None] | tarfile.TarInfo]) -> bytes:
    """A tar of regular files ``(name, data)``, directories ``(name, None)`` or headers without data."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data or b""))
    return out.getvalue()


@cache
def busybox_rootfs() -> bytes:
    """Root file system tar of Debian's static busybox with a link for every applet.

    Raises:
        FileNotFoundError: no busybox on this machine (package ``busybox-static``).
    """
    binary = shutil.which("busybox")
    if binary is None:
        raise FileNotFoundError("busybox is not installed: apt-get install busybox-static")
    applets = subprocess.run([binary, "--list"], check=True, capture_output=True, text=True).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in _DIRECTORIES:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(info)
        files = (("bin/busybox", Path(binary).read_bytes()), ("etc/passwd", _PASSWD), ("etc/group", _GROUP))
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755 if name == "bin/busybox" else 0o644
            tar.addfile(info, io.BytesIO(data))
        for applet in sorted(set(applets) - {"busybox"}):
            info = tarfile.TarInfo(f"bin/{applet}")
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, "busybox", 0o777
            tar.addfile(info)
    return out.getvalue()


def sha256(data: bytes) -> str:
    """``sha256:<hex>``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def image_config(
    layers: Sequence[bytes], *, config: Mapping[str, object] | None = None, architecture: str = "amd64"
) -> bytes:
    """Configuration blob of an image of these uncompressed layer tars, lowest first."""
    return json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "created": "2024-05-06T07:08:09.123456789Z",
            "config": dict(config or {"Cmd": ["sh"], "Env": ["PATH=/bin"]}),
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
            "history": [{"created": "2024-05-06T07:08:09Z", "created_by": f"layer {n}"} for n, _ in enumerate(layers)],
        }
    ).encode()


def docker_archive(
    layers: Sequence[bytes], tags: Sequence[str], *, config: Mapping[str, object] | None = None
) -> bytes:
    """A ``docker save`` tar of one image, in the form of before OCI layouts."""
    blob = image_config(layers, config=config)
    name = f"{sha256(blob)[7:]}.json"
    paths = [f"{sha256(layer)[7:]}/layer.tar" for layer in layers]
    manifest = json.dumps([{"Config": name, "RepoTags": list(tags), "Layers": paths}]).encode()
    return make_tar([*zip(paths, layers, strict=True), (name, blob), ("manifest.json", manifest)])


def busybox_archive(tag: str = BUSYBOX_TAG) -> bytes:
    """What ``docker load`` takes to make ``tag`` from Debian's busybox."""
    return docker_archive([busybox_rootfs()], [tag])


async def in_chunks(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    """``data`` as a request body would arrive."""
    for offset in range(0, len(data), size):
        yield data[offset : offset + size]


class Registry:
    """A running ``docker-registry`` on loopback. ``address`` is ``host:port``."""

    def __init__(self, address: str, process: subprocess.Popen[bytes], root: Path) -> None:
        self.address, self.pid = address, process.pid
        self.process, self.root = process, root

    def _request(self, method: str, path: str, data: bytes | None, headers: Mapping[str, str]) -> Mapping[str, str]:
        url = path if "://" in path else f"http://{self.address}{path}"
        request = urllib.request.Request(url, data=data, method=method, headers=dict(headers))
        with urllib.request.urlopen(request, timeout=30) as response:
            return dict(response.headers)

    def put_blob(self, repository: str, data: bytes) -> str:
        """Upload a blob in one piece; returns its digest."""
        digest = sha256(data)
        location = self._request("POST", f"/v2/{repository}/blobs/uploads/", b"", {})["Location"]
        separator = "&" if "?" in location else "?"
        headers = {"Content-Type": "application/octet-stream"}
        self._request("PUT", f"{location}{separator}digest={digest}", data, headers)
        return digest

    def put_manifest(self, repository: str, reference: str, manifest: Mapping[str, object]) -> bytes:
        """Upload a manifest or index under a tag or digest; returns its bytes."""
        data = json.dumps(manifest).encode()
        target = reference or sha256(data)
        self._request("PUT", f"/v2/{repository}/manifests/{target}", data, {"Content-Type": str(manifest["mediaType"])})
        return data

    def push_image(
        self,
        repository: str,
        tag: str,
        layers: Sequence[bytes],
        *,
        architecture: str = "amd64",
        config: Mapping[str, object] | None = None,
        compress: bool = True,
    ) -> bytes:
        """Upload an image of uncompressed layer tars; tag "" pushes it by digest. Returns the manifest's bytes."""
        blobs = [gzip.compress(layer, 1, mtime=0) if compress else layer for layer in layers]
        blob = image_config(layers, architecture=architecture, config=config)
        kind = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if compress else "")
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.put_blob(repository, blob),
                "size": len(blob),
            },
            "layers": [
                {"mediaType": kind, "digest": self.put_blob(repository, data), "size": len(data)} for data in blobs
            ],
        }
        return self.put_manifest(repository, tag, manifest)


@contextlib.contextmanager
def running_registry(*, htpasswd: str = "") -> Iterator[Registry]:
    """Start the distribution's ``docker-registry`` on a free loopback port; ends with the block.

    Args:
        htpasswd: lines ``user:bcrypt-hash``; the registry is private then.
    """
    root = Path(tempfile.mkdtemp(prefix="registry-"))
    host = loopback()
    port = free_port(host)
    auth = ""
    if htpasswd:
        (root / "htpasswd").write_text(htpasswd)
        auth = f"auth:\n  htpasswd:\n    realm: tests\n    path: {root}/htpasswd\n"
    (root / "config.yml").write_text(
        f"version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {root}/data\n"
        f"http:\n  addr: {host}:{port}\n  secret: tests\n{auth}"
    )
    with (root / "log").open("wb") as output:
        process = subprocess.Popen(
            [REGISTRY_BINARY, "serve", str(root / "config.yml")], stdout=output, stderr=output, env={**os.environ}
        )
    try:
        _wait_for_registry(f"{host}:{port}", process, root)
        yield Registry(f"{host}:{port}", process, root)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(root, ignore_errors=True)


def _wait_for_registry(address: str, process: subprocess.Popen[bytes], root: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(f"http://{address}/v2/", timeout=30).close()
            return
        except urllib.error.HTTPError:
            return  # 401: it is up and private
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{REGISTRY_BINARY} did not start: {(root / 'log').read_text()[-500:]}") from None
            time.sleep(0.02)
