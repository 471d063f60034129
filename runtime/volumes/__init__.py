"""Named and anonymous volumes of this host."""

from runtime.volumes.local import Volume, VolumePruneReport, Volumes

__all__ = ["Volume", "VolumePruneReport", "Volumes"]
