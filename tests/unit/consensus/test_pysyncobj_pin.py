"""The adapter stands on private names of one exact version of pysyncobj: each must exist and be what it is taken for."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import pickle
from pathlib import Path

import pytest
from pysyncobj import syncobj
from pysyncobj.version import VERSION

import manager.consensus
from manager.consensus import adapter, outputs
from tests.unit.consensus.rig import Rig

FOLDER = Path(manager.consensus.__file__).parent
SOURCE = inspect.getsource(syncobj)


def private_names() -> set[str]:
    """Every ``_SyncObj__name`` in the package."""
    names: set[str] = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_SyncObj__"):
                names.add(node.attr)
            if isinstance(node, ast.FunctionDef) and node.name.startswith("_SyncObj__"):
                names.add(node.name)
    return names


def overridden_methods() -> list[str]:
    tree = ast.parse((FOLDER / "adapter.py").read_text())
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [name for name in names if name.startswith("_SyncObj__") or name == "_checkCommandsToApply"]


def test_version_is_the_pinned_one() -> None:
    assert VERSION == "0.3.17"
    assert importlib.metadata.version("pysyncobj") == "0.3.17"


def test_every_private_name_in_use_exists() -> None:
    rig = Rig()
    names = private_names()
    assert len(names) > 15
    for name in names:
        assert name.replace("_SyncObj", "", 1) in SOURCE, name
        assert hasattr(rig.core, name), name


def test_stub_names_nothing_else() -> None:
    stub = (FOLDER.parents[1] / "typings/pysyncobj/syncobj.pyi").read_text()
    for node in ast.walk(ast.parse(stub)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            assert name.replace("_SyncObj", "", 1) in SOURCE, name


@pytest.mark.parametrize("name", overridden_methods())
def test_overridden_methods_exist_in_the_library_and_are_called_there(name: str) -> None:
    assert callable(getattr(syncobj.SyncObj, name))
    assert f"self.{name.replace('_SyncObj', '', 1)}(" in SOURCE


def test_module_globals_that_are_replaced_exist() -> None:
    for line in (
        "import pysyncobj.pickle as pickle",
        "from .journal import createJournal",
        "from .monotonic import monotonic as monotonicTime",
        "self.__raftLog = createJournal(self.__conf.journalFile)",
    ):
        assert line in SOURCE, line


def test_command_kinds_and_states_are_the_librarys() -> None:
    kinds = syncobj._COMMAND_TYPE
    assert tuple(bytes([kind]) for kind in (kinds.REGULAR, kinds.NO_OP, kinds.MEMBERSHIP)) == (
        outputs.REGULAR,
        outputs.NO_OP,
        outputs.MEMBERSHIP,
    )
    states = syncobj._RAFT_STATE
    assert (adapter.FOLLOWER, adapter.LEADER) == (states.FOLLOWER, states.LEADER)


def test_the_librarys_pickle_is_out_of_reach() -> None:
    with pytest.raises(AssertionError, match="pickle"):
        syncobj.pickle.loads(pickle.dumps("x"))


def test_nothing_in_the_package_imports_pickle() -> None:
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not {"pickle", "marshal", "shelve"} & set(names), path
