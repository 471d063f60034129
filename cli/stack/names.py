"""What makes objects a stack's: the prefix of their names and their label, as Docker's CLI has them (A13.01).

Either command therefore manages the stacks of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NAMESPACE_LABEL = "com.docker.stack.namespace"
IMAGE_LABEL = "com.docker.stack.image"


@dataclass(frozen=True, slots=True)
class Namespace:
    """The names of one stack.

    Raises:
        ValueError: nothing is left of the name without quotes and white space.
    """

    stack: str

    def __post_init__(self) -> None:
        if not self.stack.strip(" \t\r\n\"'"):
            raise ValueError(f'invalid stack name: "{self.stack}"')

    def scoped(self, key: str) -> str:
        """The name in the swarm of what the file calls ``key``."""
        return f"{self.stack}_{key}"

    def labelled(self, labels: Mapping[str, str]) -> dict[str, str]:
        """The labels with the stack's own."""
        return {**labels, NAMESPACE_LABEL: self.stack}

    @property
    def label(self) -> str:
        """The label that a filter of the API finds the stack's objects by."""
        return f"{NAMESPACE_LABEL}={self.stack}"
