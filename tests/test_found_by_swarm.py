"""Defects that the swarm found, each by the smallest case that shows it; the seed that did stands in the docstring."""

from __future__ import annotations

from test_peer import small_world


def test_a_node_of_which_no_copy_of_its_model_is_left_is_begun_afresh_and_exchanges_again() -> None:
    """gossipfl swarm --first-seed 8 --seeds 1 --hours 0.1 --nodes 6: training failed, an abort was to be committed with the
    damaged model, the node ended with 73, was started again, and so for ever; a start now says what is gone."""
    world, _ = small_world(local_rounds=100_000)
    world.run(15)
    node = world.nodes["b"]
    node.crash()
    world.run(1)
    disk = node.store.files.disk
    for file in disk.list():
        disk.flip(file, 7)  # type: ignore[attr-defined]
    node.boot()
    assert not node.alive
    node.begin_afresh()
    assert node.alive
    before = node.peer.status()["exchanges"]
    world.run(30)
    assert node.peer.status()["exchanges"] > before
