"""Members of tars that are written here."""

from __future__ import annotations

import tarfile


def data_member(name: str, size: int, *, mtime: int = 0) -> bytes:
    """Header of a regular file; its data and ``padding(size)`` follow."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, mtime, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def directory_member(name: str) -> bytes:
    """Header of a directory."""
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """Zeros that fill the last block after ``size`` bytes of data."""
    return bytes(-size % tarfile.BLOCKSIZE)


END_OF_ARCHIVE = bytes(tarfile.BLOCKSIZE * 2)
