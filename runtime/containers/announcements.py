"""What API clients and the agent are told of a container, in the words of ``docker events``."""

from __future__ import annotations

from runtime.containers.container import Container
from runtime.events import EventBus


def announce(events: EventBus, container: Container, action: str, **attributes: str) -> None:
    """Publish an event of a container; each carries its labels, image and name."""
    config = container.record.Config
    common = {**(config.Labels or {}), "image": config.Image, "name": container.record.Name}
    events.publish("container", action, container.id, {**common, **attributes})
