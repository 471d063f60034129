"""What can be wrong with an archive."""

from __future__ import annotations


class MalformedArchiveError(Exception):
    """Broken, truncated, beyond a bound, or trying to leave its directory; ``str(error)`` is one line for the user."""
