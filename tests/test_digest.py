"""The names of blobs: RFC 6962's tree, its published proofs, and that exactly one path proves a chunk."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl import digest
from gossipfl.digest import CHUNK, EMPTY, Tree, chunk_count, leaf, name_of, node, proves

VECTORS = Path(os.environ.get("GOSSIPFL_VECTORS", Path(__file__).parents[2] / "shared" / "vectors"))

LEAVES = st.lists(st.binary(min_size=32, max_size=32), max_size=40)
SOME_LEAVES = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=40)


def test_the_published_inclusion_proofs_are_judged_as_published() -> None:
    vectors = VECTORS / "rfc6962_proofs.json"
    if not vectors.exists():
        pytest.skip(f"the public vectors are not at {VECTORS}")
    rows = json.loads(vectors.read_text())["inclusion"]
    assert len(rows) == 98
    for row in rows:
        root, leaf_hash = (base64.b64decode(row[key] or "") for key in ("root", "leafHash"))
        siblings = [base64.b64decode(one) for one in row["proof"] or []]
        assert row["wantErr"] or b"" not in siblings, "an empty sibling cannot be said in a path of bytes"
        shown = b"" not in siblings and proves(root, row["treeSize"], row["leafIdx"], leaf_hash, b"".join(siblings))
        assert shown == (not row["wantErr"]), row["name"]


def by_definition(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1: split at the largest power of two below the number of leaves."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return node(by_definition(leaves[:split]), by_definition(leaves[split:]))


@given(LEAVES)
def test_the_root_is_that_of_the_definition(leaves: list[bytes]) -> None:
    assert Tree(leaves).root == by_definition(leaves)


@given(SOME_LEAVES)
def test_every_path_of_a_tree_proves_its_leaf_and_no_other_index(leaves: list[bytes]) -> None:
    tree = Tree(leaves)
    for index, one in enumerate(leaves):
        path = b"".join(tree.path(index))
        assert proves(tree.root, len(leaves), index, one, path)
        assert not any(
            proves(tree.root, len(leaves), other, one, path) for other in range(-1, len(leaves) + 1) if other != index
        ) or len(set(leaves)) < len(leaves)


@settings(max_examples=200)
@given(SOME_LEAVES, st.data())
def test_any_other_path_root_leaf_or_count_proves_nothing(leaves: list[bytes], data: st.DataObject) -> None:
    tree, count = Tree(leaves), len(leaves)
    index = data.draw(st.integers(0, count - 1))
    path, one = b"".join(tree.path(index)), leaves[index]
    other = data.draw(st.binary(min_size=32, max_size=32).filter(lambda value: value not in (*tree.path(index), one, tree.root)))
    assert not proves(other, count, index, one, path)
    assert not proves(tree.root, count, index, other, path)
    assert not proves(tree.root, count, index, one, path + other)
    assert not proves(tree.root, count, count, one, path)
    assert not proves(tree.root, 0, 0, one, path)
    if path:
        at = 32 * data.draw(st.integers(0, len(path) // 32 - 1))
        assert not proves(tree.root, count, index, one, path[:at] + path[at + 32 :])
        assert not proves(tree.root, count, index, one, path[:at] + other + path[at + 32 :])
        assert not proves(tree.root, count, index, one, path[: at + 1])


@given(SOME_LEAVES, st.data())
def test_a_memo_of_the_last_proof_changes_no_answer(leaves: list[bytes], data: st.DataObject) -> None:
    tree, count, memo = Tree(leaves), len(leaves), {}
    wrong = data.draw(st.sets(st.integers(0, count - 1)))
    for index, one in enumerate(leaves):
        path = b"".join(tree.path(index))
        others = b"".join(map(leaf, tree.path(index)))
        claims = [(one, path), (leaf(one), path), (one, others), (one, path[:-32]), (one, path + one), (one, path[:-1])]
        for value, way in claims[::-1] if index in wrong else claims:
            assert proves(tree.root, count, index, value, way, memo) == proves(tree.root, count, index, value, way)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 7])
def test_a_blob_is_named_by_its_chunks(size: int) -> None:
    blob = hashlib.shake_256(b"blob").digest(size)
    chunks = [blob[start : start + CHUNK] for start in range(0, size, CHUNK)]
    assert len(chunks) == chunk_count(size)
    assert name_of(blob) == Tree([leaf(one) for one in chunks]).root == name_of(bytearray(blob))
    assert name_of(memoryview(blob)) == name_of(blob)
    assert size == 0 or name_of(blob) != name_of(blob + b"\0") != EMPTY


@pytest.mark.parametrize(
    ("size", "published"),
    [
        (0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
        (1025, "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"),
        (31744, "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47"),
    ],
)
def test_a_leaf_is_blake3_as_its_authors_publish_it(size: int, published: str) -> None:
    assert leaf(bytes(at % 251 for at in range(size))).hex() == published


def test_a_leaf_is_never_taken_for_a_node() -> None:
    left, right = leaf(b"a"), leaf(b"b")
    assert leaf(left + right) != node(left, right)
    assert leaf(b"") not in (EMPTY, node(b"", b"")) and digest.name_of(b"") == EMPTY
