"""Fields that the schema marks are left out, whoever asks."""

from __future__ import annotations

from base.marked_fields import without_marked
from proto.dispatcher_pb2 import AssignmentChange
from proto.objects_pb2 import Config, Secret, SpecVersion
from proto.options_pb2 import memory_only_field, write_only
from proto.specs_pb2 import ConfigSpec, SecretSpec


def test_marked_fields_are_left_out_of_a_copy() -> None:
    secret = Secret(id="s1", spec=SecretSpec(name="password", data=b"hunter2"))
    assert without_marked(secret, write_only) == Secret(id="s1", spec=SecretSpec(name="password"))
    assert secret.spec.data == b"hunter2"


def test_they_are_found_however_deep() -> None:
    version = SpecVersion(id="web.1")
    version.spec.name, version.spec.task_template.registry_auth = "web", "c2VjcmV0"
    bare = without_marked(AssignmentChange(id="web.1", spec_version=version), memory_only_field)
    assert bare.spec_version.spec.name == "web"
    assert bare.spec_version.spec.task_template.registry_auth == ""


def test_where_none_can_be_nothing_is_copied() -> None:
    for message in (Config(spec=ConfigSpec(data=b"a=1")), Secret(id="s1")):
        assert without_marked(message, write_only) is message
    change = AssignmentChange(config=Config(id="c1"))
    assert without_marked(change, memory_only_field) is change
    assert not change.HasField("spec_version")
