"""A profile of ``scripts/bench scale --profile`` in words: where the time is, with and without what is called from there.

python -m tests.bench.scale.stacks FILE.stacks [LINES]
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path


def main() -> None:
    path, length = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 40
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        stack, _, spent = line.rpartition(" ")
        frames = stack.split(";")
        own[frames[-1]] += int(spent)
        for frame in {*frames}:
            whole[frame] += int(spent)
    total = own.total() or 1
    for title, found in (("with what it calls", whole), ("alone", own)):
        print(f"{title}, of {total} ms")
        for name, spent_ms in found.most_common(length):
            print(f"  {spent_ms:8} {100 * spent_ms / total:5.1f} %  {name}")


if __name__ == "__main__":
    main()
