"""What would not go now goes later, and not only at the next start."""

from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path

from base.leftovers import Leftovers
from base.trees import remove_tree
from tests.waiting import wait_until


def test_a_tree_goes_at_once_where_it_can(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    leftovers = Leftovers(first_s=1000)
    leftovers.remove(tree)
    leftovers.remove(tree)  # nothing there
    assert not tree.exists()
    leftovers.close()


def test_without_a_descriptor_it_goes_once_there_is_one(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "file").touch()
    leftovers = Leftovers(first_s=0.01)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))  # no number is left
    try:
        leftovers.remove(tree)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    wait_until(lambda: not tree.exists(), what="the tree to go")
    leftovers.close()


def test_one_that_stays_keeps_no_other(tmp_path: Path) -> None:
    stubborn, tree = tmp_path / "stubborn", tmp_path / "tree"
    refused, tried = [stubborn, tree], list[Path]()
    for path in refused:
        path.mkdir()

    def remove(path: Path) -> None:
        tried.append(path)
        if path in refused:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        remove_tree(path)

    leftovers = Leftovers(remove=remove, first_s=0.01)
    leftovers.remove(stubborn)
    leftovers.remove(tree)
    refused.remove(tree)
    wait_until(lambda: not tree.exists(), what="the other to go")
    tree.mkdir()  # another one
    tried.clear()
    wait_until(lambda: tried.count(stubborn) >= 2, what="more tries")
    assert tried.count(tree) == 0
    leftovers.close()
    assert stubborn.exists()
    assert "leftovers" not in {thread.name for thread in threading.enumerate()}
