"""Who may import whom: the picture of docs/architecture.md, as a test of the source text."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOUNDATION = {"errors", "digest", "defaults"}
HEART = {"protocol", "trust"} | FOUNDATION
MAY = {
    "errors": set(),
    "digest": set(),
    "defaults": set(),
    "loops": {"digest"},
    "sums": {"digest", "loops"},
    "topology": {"topology", "errors"},
    "topology.files": {"topology", "documents", "errors"},
    "documents": {"errors"},
    "learning": {"learning"} | FOUNDATION,
    "tasks": {"tasks", "learning"} | FOUNDATION,
    "trust": {"trust", "protocol.messages", "topology", "documents"} | FOUNDATION,
    "protocol": {"topology"} | HEART,
    "protocol.noise": {"protocol.aead", "protocol.limits"} | FOUNDATION,
    "protocol.aead": set(),
    "protocol.messages": FOUNDATION,
    "protocol.events": {"protocol.messages", "trust"} | FOUNDATION,
    "store": {"store", "sums", "protocol.events"} | FOUNDATION,
    "workbench": {"workbench", "loops", "sums", "learning", "tasks", "store", "protocol.events", "protocol.messages"}
    | FOUNDATION,
    "config": {"documents", "trust"} | FOUNDATION,
    "recipe": {"learning", "tasks", "protocol", "trust", "workbench"} | FOUNDATION,
    "simulator.vectorized": {"learning", "tasks", "topology", "simulator"} | FOUNDATION,
    "simulator.baselines": {"learning", "tasks", "topology", "simulator"} | FOUNDATION,
}
"""The longest name that fits a module says what it may import; what is not listed may import all but `TOPS`."""
TOPS = {"cli", "node", "simulator"}
"""Only cli, each of the three itself, and the lazy __init__ import these."""
IMPURE = {"asyncio", "aiohttp", "time", "os", "threading", "random", "secrets"}


def imports(path: Path) -> set[str]:
    """Every module named by an import in a file, at its top or inside a function, type checking left out."""
    tree = ast.parse(path.read_text())
    guarded = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    found = set()
    for node in set(ast.walk(tree)) - {inner for block in guarded for inner in ast.walk(block)}:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def fits(name: str, rule: str) -> bool:
    return name == rule or name.startswith(rule + ".")


def allowed(room: str, name: str) -> bool:
    rule = max((rule for rule in MAY if fits(room, rule)), key=len, default=None)
    if rule is not None:
        return any(fits(name, one) for one in MAY[rule])
    return room in ("__init__", "__main__") or fits(room, "cli") or name.split(".")[0] not in TOPS - {room.split(".")[0]}


FILES = sorted((ROOT / "gossipfl").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_the_picture_allows(path: Path) -> None:
    room = ".".join(path.relative_to(ROOT / "gossipfl").with_suffix("").parts).removesuffix(".__init__")
    ours = {name.removeprefix("gossipfl.") for name in imports(path) if name.startswith("gossipfl.")}
    strangers = sorted(name for name in ours if not allowed(room, name))
    assert not strangers, f"{room} imports {strangers}; move the code, or change the picture with a decision record"
    if fits(room, "protocol"):
        impure = sorted(name for name in imports(path) if name.split(".")[0] in IMPURE)
        assert not impure, f"{room} imports {impure}; time, randomness and I/O are passed in"


def test_the_picture_names_rooms_that_exist() -> None:
    places = {rule: ROOT / "gossipfl" / rule.replace(".", "/") for rule in MAY}
    assert not [rule for rule, place in places.items() if not place.is_dir() and not place.with_suffix(".py").exists()]
