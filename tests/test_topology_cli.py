"""The commands of topologies, the drawing, and the committed files: each is what its rule makes."""

from __future__ import annotations

import importlib.util
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from gossipfl import cli, topology
from gossipfl.errors import Exit, Misuse
from gossipfl.topology import drawing, files

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["topology", *arguments])
    return int(exit_.value.code or 0)


def test_show_tells_the_figures_and_warns_where_it_will_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "ring", "415", "--json") == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert (told["nodes"], told["diameter"], told["degree"]) == (415, 207, [2, 2.0, 2]) and told["rounds_to_1e-3"] > 90_000
    assert "too slowly" in told["warning"] and "--add-rings 1" in said.err
    assert run("show", "torus:8x8") == 0
    said = capsys.readouterr()
    assert "rounds to 1e-3              56" in said.out and not said.err


def test_show_tells_of_a_schedule_when_it_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "base:2", "25", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["exact_after"] == told["period"] == told["rounds_to_1e-3"] == 6


def test_make_refuses_what_is_too_slow_and_makes_it_with_rings_or_anyway(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "g.edges", tmp_path / "g.svg"
    assert run("make", "ring", "60", "--out", str(out)) == Exit.CONFIG
    assert "too slowly" in capsys.readouterr().err and not out.exists()
    assert run("make", "ring", "60", "--out", str(out), "--add-rings", "1", "--svg", str(picture), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    read = topology.load(out)
    assert read.n == 60 and len(read.edges) == told["links"] > 100 and read.source == told["source"]
    assert len(ET.fromstring(picture.read_text()).findall(".//{http://www.w3.org/2000/svg}circle")) == 60
    assert run("make", "ring", "60", "--out", str(tmp_path / "slow.graphml"), "--anyway") == 0
    assert run("make", "ring", "60", "--out", str(out), "--anyway") == Exit.STATE
    assert run("make", "rign", "60") == Exit.CONFIG
    assert run("make", "ring", "6", "--out", str(tmp_path / "g.txt"), "--anyway") == Exit.CONFIG


def test_list_names_every_spec_and_the_files_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--folder", str(ROOT / "topologies"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {"ring", "base:k", "edge-colouring of GRAPH"} <= {one["spec"] for one in told["specs"]}
    assert {Path(one["file"]).name for one in told["files"]} == set(_rules().FILES)
    assert run("list", "--folder", "/nowhere") == 0


def test_a_directed_file_is_refused_with_the_option_that_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "g.graphml"
    edges = "".join(f'<edge source="{a}" target="{b}"/>\n' for a, b in ("ab", "bc", "ca"))
    file.write_text(f'<graphml><graph edgedefault="directed">\n{edges}</graph></graphml>')
    assert run("show", str(file)) == Exit.CONFIG
    said = capsys.readouterr().err
    assert f"{file}:2" in said and "--both-ways" in said
    assert run("show", str(file), "--both-ways") == 0


COMMITTED = ["hospitals-64.graphml", "research-network-48.graphml", "ring-16.edges", "random-regular-415-6.edges"]


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_file_is_what_its_rule_makes_and_says_so(name: str) -> None:
    file = ROOT / "topologies" / name
    assert file.read_text() == files.dumped(_rules().FILES[name](), file.suffix)
    read = topology.load(file)
    assert read.is_connected and read.source.startswith("made by")
    assert (read.latency_ms is not None) == (file.suffix == ".graphml")


def _rules() -> object:
    found = importlib.util.spec_from_file_location("make_topologies", ROOT / "topologies" / "make.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_a_picture_has_every_edge_within_its_frame_and_too_large_ones_are_refused() -> None:
    for text, n in (("geometric:12", 60), ("path", 9), ("star", 1), ("complete", 2)):
        graph = topology.graph(text, n, seed=2, whole=False).with_links([f"<{node}>" for node in range(n)])
        tree = ET.fromstring(drawing.svg(graph, "a & b"))
        circles = tree.findall(".//{*}circle")
        assert len(circles) == n and len(tree.findall(".//{*}path")) == len(graph.edges)
        assert all(0 <= float(one.get(key, "nan")) <= drawing.SIDE for one in circles for key in ("cx", "cy"))
    with pytest.raises(Misuse, match="at most 20,000"):
        drawing.svg(topology.graph("complete", 300))
