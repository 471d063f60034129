"""What can go wrong with images. Messages are those of dockerd where it has one; HTTP codes are mapped by ``api``."""

from __future__ import annotations


class ImagesError(Exception):
    """Base of every error of this package; ``str(error)`` is one line for the user."""


class InvalidReferenceError(ImagesError):
    """The text is no image reference (HTTP 400)."""

    def __init__(self, text: str, reason: str = "invalid reference format") -> None:
        super().__init__(reason)
        self.text = text


class InvalidArgumentError(ImagesError):
    """A parameter of the request makes no sense: filter, change instruction, auth header (HTTP 400)."""


class ImageNotFoundError(ImagesError):
    """No image here has this name or ID (HTTP 404)."""

    def __init__(self, name: str) -> None:
        super().__init__(f"No such image: {name}")
        self.name = name


class PlatformMismatchError(ImagesError):
    """The image exists, but not for the wanted platform (HTTP 404)."""


class ImageConflictError(ImagesError):
    """The image is in use or has several names (HTTP 409)."""


class ContentError(ImagesError):
    """A blob is missing, too large, or could not be written."""


class DigestMismatchError(ContentError):
    """The bytes are not those that the digest names: a broken or hostile peer, or a broken disk."""

    def __init__(self, *, expected: str, actual: str) -> None:
        super().__init__(f"unexpected digest: got {actual}, want {expected}")
        self.expected, self.actual = expected, actual


class NoSpaceError(ContentError):
    """The file system of the state directory is full but for a reserve; nothing partial was left behind."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"no space left on device: writing below {path} (free some space, or run `docker image prune`; images leave "
            "128 MB or a twentieth of the disk free)"
        )
        self.path = path


class ManifestError(ImagesError):
    """A manifest, index or image configuration that cannot be understood."""


class LayerError(ImagesError):
    """A layer tar that is malformed, truncated or tries to leave its directory."""


class ArchiveError(ImagesError):
    """The tar given to load or import is no image archive (HTTP 400)."""


class SnapshotError(ImagesError):
    """A root file system could not be made, mounted or removed."""


class OverlayUnsupportedError(SnapshotError):
    """overlayfs cannot be used on the state directory; the message says how to mend it."""


class RegistryError(ImagesError):
    """A registry refused or answered nonsense."""


class ManifestUnknownError(RegistryError):
    """The registry has no such tag or digest (HTTP 404)."""


class AccessDeniedError(RegistryError):
    """The repository does not exist or wants a login (HTTP 404, as dockerd does not tell them apart)."""


class UnauthorizedError(RegistryError):
    """The credentials were refused (HTTP 401 of the registry; dockerd answers 500)."""


class LoginRefusedError(RegistryError):
    """The registry does not accept the credentials of a login (HTTP 401)."""


class RegistryUnavailableError(RegistryError):
    """The registry could not be reached or failed after bounded retries: trying again later may help."""
