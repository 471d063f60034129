"""A name for a service that was created without one: two words, easy to say and to type."""

# ruff: noqa: SIM905 - a word list reads better as words
from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

_MANNERS = (
    "able agile alert ample apt astute bold brave brief bright brisk calm careful clear clever cosy crisp curious "
    "deft eager early exact fair fast fine firm fleet fond frank free fresh gentle glad grand handy happy hardy "
    "honest humble ideal jolly keen kind lively loyal lucid lucky merry mild modest neat nimble noble open patient "
    "plain polite prompt proper proud quick quiet rapid ready robust safe sharp smart snug sober solid sound spry "
    "stable steady still sturdy subtle sunny sure swift tidy trim true upbeat valid vivid warm wise witty zesty"
).split()
_THINGS = (
    "acorn alder anchor anvil arbor aspen badger barge basin beacon birch bison bridge brook canal canyon cedar "
    "cliff clover comet compass coral cove crane creek crest curlew delta dune ember falcon fern field finch fjord "
    "forge fox garden glacier grove gull harbor hawk hazel heron hill inlet iris island jetty kettle lagoon lantern "
    "lark laurel ledge lily linnet lynx maple marsh meadow mesa mill moor moss oak orchard osprey otter paddle pine "
    "plover pond prairie quarry quay quill raven reed reef ridge river robin rowan sail shore sparrow spruce stone "
    "stork summit thistle tide timber trail valley walnut willow wren yew"
).split()


def random_name(choice: Callable[[Sequence[str]], str] = secrets.choice) -> str:
    """Such as ``brisk_otter``; about ten thousand of them, so a taken one calls for another try."""
    return f"{choice(_MANNERS)}_{choice(_THINGS)}"
