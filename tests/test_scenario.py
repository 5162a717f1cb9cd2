"""A scenario file: every fault at once with its line, overrides, a run judged by what was expected, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gossipfl.cli import application
from gossipfl.errors import ConfigError
from gossipfl.simulator import expect, tell
from gossipfl.simulator import play as players
from gossipfl.simulator import scenario as sc
from gossipfl.simulator.faults import CLASSES, STRIKES, Faults
from gossipfl.simulator.run import Happening, Life, Run, Sample, Span, as_json

GOOD = """\
question = "Does a crash stop anybody?"
task = "toy"
seed = 5
hours = 2
[nodes]
count = 4
[study]
local_rounds = 30
[faults]
cut_per_hour = 2
until_hours = 1.5
[[at]]
hour = 0.5
kind = "crash"
nodes = ["hospital-2"]
seconds = 120
[expect]
finished = true
consensus_below = 1e-3
quality_share = 0.9
others_wait_at_most_s = 600
returns_within_s = 300
happened = { crash = 1 }
"""


def write(folder: Path, text: str = GOOD) -> Path:
    path = folder / "scenario.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    read = sc.load(write(tmp_path_factory.mktemp("run")))
    return players.play(players.Stage(read.scenario, sc.federation(read)))


# ---- the file --------------------------------------------------------------------------------------------------------


def test_every_fault_is_said_at_once_with_its_line(tmp_path: Path) -> None:
    text = GOOD.replace("task =", "taks =").replace("hours = 2", "hours = 2000").replace("cut_per_hour", "cuts_per_hour")
    text = text.replace("local_rounds = 30", "seed = 1").replace('kind = "crash"', 'kind = "crush"')
    with pytest.raises(ConfigError) as error:
        sc.load(write(tmp_path, text))
    faults = [(fault.line, fault.what.split(":")[0], fault.remedy) for fault in error.value.faults]  # type: ignore[union-attr]
    assert [line for line, _, _ in faults] == [2, 4, 8, 10, 14]
    assert faults[0][2] == "did you mean 'task'?"
    assert faults[2][2] == "it stands at the top of the file, before the first table"
    assert faults[3][2] == "did you mean 'cut_per_hour'?"
    assert faults[4][2] == "did you mean 'crash'?"


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ('"hospital-2"', '"hospital-9"', 15, "no node is called 'hospital-9'"),
        ('"toy"', '"tpy"', 2, "unknown task 'tpy'"),
        ("count = 4", 'count = 4\n[topology]\ngraph = "rnig"', 8, "unknown topology 'rnig'"),
        ("hour = 0.5", "hour = 3", 13, "at.0.hour = 3 is not before the end"),
        ('nodes = ["hospital-2"]', 'nodes = ["hospital-2", "hospital-2"]', 15, "names a node twice"),
        ('kind = "crash"\nnodes = ["hospital-2"]', 'kind = "partition"\nnodes = ["hospital-1", "hospital-2", "hospital-3", '
         '"hospital-4"]', 15, "names all 4 nodes"),
        ("[expect]", """[[lines.between]]
nodes = ["hospital-1", "hospital-2"]
[[lines.between]]
nodes = ["hospital-2", "hospital-1"]
[expect]""", 20, "stands further up already"),
        ("[[at]]", "[at]", 12, "at: not a list -- write [[at]], in two pairs of brackets"),
        ("[expect]", "[[expect]]", 17, "expect: not a table -- write [expect], in one pair of brackets"),
        ("until_hours = 1.5", 'sessions = [["hospital-1", 0.5]]', 11, "no up time -- write"),
        ("until_hours = 1.5", "hostile_kinds = []", 11, "write 1 or more"),
        ("seconds = 120", "value = 7", 12, "value = 7.0 -- write the share of unsynced writes that survives"),
        ('"crash"\n', '"hostile"\nvalue = "lie"\n', 12, "value = 'lie' -- choose malformed"),
        ('"crash"\n', '"partition"\nvalue = "thirds"\n', 12, "value = 'thirds' -- choose halves, isolated, ring"),
        ('"crash"\n', '"drip"\nvalue = "fast"\n', 12, "value = 'fast' -- write bytes a second"),
        ('"crash"\n', '"clock-jump"\n', 12, "value is missing -- write by how many seconds"),
        ('"crash"\n', '"restart-storm"\nvalue = 0\n', 12, "value = 0.0 -- write how often"),
        ('"crash"\n', '"pause"\nvalue = 3\n', 12, "value = 3.0 -- leave it out: a pause has none"),
        ("{ crash = 1 }", "{ crsh = 1 }", 23, "nothing that happens is called 'crsh' -- did you mean 'crash'?"),
        ("until_hours = 1.5", 'sessions = [["hospital-1", 0.5, 0.2]]', 11, "is up from hour 0.5 to 0.2"),
        ("until_hours = 1.5", 'sessions = "no.csv"', None, "no.csv"),
        ("until_hours = 1.5", 'sessions = [["hospital-7", 0, 1], ["hospital-7", 1.5, 2]]', 11, "no node is called 'hospital-7'"),
        ("count = 4", 'count = 2\nobservers = ["hospital-1", "hospital-2"]', 5, "observers names all 2 nodes"),
    ],
)
def test_what_only_the_federation_shows_has_its_line_too(tmp_path: Path, old: str, new: str, line: int, what: str) -> None:
    with pytest.raises(ConfigError) as error:
        sc.federation(sc.load(write(tmp_path, GOOD.replace(old, new))))
    assert what in str(error.value) and len(error.value.faults) == 1
    assert line is None or error.value.faults[0].line == line  # type: ignore[union-attr]


def test_up_times_are_read_from_a_trace_file_beside_the_scenario(tmp_path: Path) -> None:
    trace, path = tmp_path / "up.csv", write(tmp_path, GOOD.replace("cut_per_hour = 2", 'sessions = "up.csv"'))
    trace.write_text("# node, from hour, to hour\nhospital-1,0,0.5\nhospital-1, 0.6 ,2\n\nhospital-3,0.1,2 # late\n")
    found = sc.load(path, ["seed=3"]).scenario.options_of_faults()
    assert found.sessions == (("hospital-1", 0.0, 0.5), ("hospital-1", 0.6, 2.0), ("hospital-3", 0.1, 2.0))
    trace.write_text("hospital-1,0,0.5\nhospital-1,0.6,0.5\nhospital-3 0.1 2\n")
    with pytest.raises(ConfigError) as error:
        sc.load(path)
    assert [(Path(one.file), one.line) for one in error.value.faults] == [(trace, 2), (trace, 3)]  # type: ignore[union-attr]


def test_every_option_of_faults_can_be_written(tmp_path: Path) -> None:
    known = sc.FaultsSection.model_fields
    assert {one.name for one in dataclasses.fields(Faults)} | {"preset"} == set(known)


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    changes = ["faults.cut_per_hour=7", "expect.finished=false", "study.codec=bf16"]
    found = sc.load(write(tmp_path), changes, seed=9, hours=5.0, nodes__count=6).scenario
    assert (found.seed, found.hours, found.nodes.count) == (9, 5.0, 6)
    assert found.options_of_faults().cut_per_hour == 7
    assert not found.expect.finished
    assert found.study.codec == "bf16"
    with pytest.raises(ConfigError, match=r"command line: unknown key faults.cut_pr_hour -- did you mean 'cut_per_hour'"):
        sc.load(write(tmp_path), ["faults.cut_pr_hour=7"])
    assert sc.load(write(tmp_path), ["at.0.seconds=7"]).scenario.at[0].seconds == 7
    with pytest.raises(ConfigError, match="task is no table"):
        sc.load(write(tmp_path), ["task.x=7"])
    with pytest.raises(ConfigError, match="at is a list of 1 -- name an element by its number, counted from 0"):
        sc.load(write(tmp_path), ["at.1.seconds=7"])


def test_a_preset_is_where_the_file_begins_and_the_last_quarter_is_quiet(tmp_path: Path) -> None:
    text = GOOD.replace("cut_per_hour = 2\nuntil_hours = 1.5", 'preset = "wan"\nrefused_dials = 0.5')
    faults = sc.load(write(tmp_path, text)).scenario.options_of_faults()
    assert faults == dataclasses.replace(Faults.preset("wan"), refused_dials=0.5, until_hours=1.5)


def test_a_graph_and_its_lines_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "net.edges").write_text("# source: a test\na b 30 8\nb c 5\nc d\nd a 1 2\n")
    between = '[topology]\ngraph = "net.edges"\n[[lines.between]]\nnodes = ["hospital-2", "hospital-1"]\njitter = 0.0\n'
    read = sc.load(write(tmp_path, GOOD.replace("[study]", between + "[study]")))
    made = sc.federation(read)
    assert made.membership.neighbours("hospital-1") == ("hospital-2", "hospital-4")
    lines = read.scenario.lines.lines(made.graph, made.membership.active)
    line = lines.line("hospital-1", "hospital-2")
    assert (line.latency_s, line.bandwidth_bytes_s, line.jitter) == (0.03, 1e6, 0.0)
    assert lines.line("hospital-4", "hospital-3") == lines.usual


def test_the_page_names_every_key_and_every_kind() -> None:
    page = (Path(__file__).parents[1] / "docs" / "simulate.md").read_text()
    own = set(sc.TopologySection.model_fields) | set(sc.Scenario.model_fields) | set(sc.At.model_fields)
    lines = set(sc.LinesSection.model_fields) - {"between"}
    for name in own | lines | set(sc.Nodes.model_fields) | set(sc.Expect.model_fields) | set(known_faults()) | set(STRIKES):
        assert f"`{name}`" in page or f"`[{name}]`" in page or f"`[[{name}]]`" in page, name


def known_faults() -> list[str]:
    return [one.name for one in dataclasses.fields(Faults)]


# ---- the run ---------------------------------------------------------------------------------------------------------


def test_what_was_expected_holds_and_is_told(run: Run, tmp_path: Path) -> None:
    scenario = sc.load(write(tmp_path)).scenario
    judged = expect.judge(scenario.expect, run)
    assert len(judged) == 7
    assert all(one.holds for one in judged), judged
    (told,) = tell.told(run, scenario.at)
    assert told.at == "0:30:00"
    assert told.what == "hospital-2 crashed and was down for 2 min."
    assert "The other 3" in told.then[0]
    assert "hospital-2 made its next exchange" in told.then[1]


@pytest.mark.parametrize(
    "broken",
    ["consensus_below=1e-12", "quality_share=1.5", "others_wait_at_most_s=1", "returns_within_s=0", "exchanges=100000",
     "local_rounds=31", "exchanged_within_s=3600", "happened.crash=99"],
)  # fmt: skip
def test_every_expectation_can_fail(run: Run, broken: str, tmp_path: Path) -> None:
    scenario = sc.load(write(tmp_path), [f"expect.{broken}"]).scenario
    assert [one.holds for one in expect.judge(scenario.expect, run)].count(False) == 1


def test_a_violated_or_an_unknown_law_and_an_unfinished_node_are_not_held(run: Run, tmp_path: Path) -> None:
    wanted = sc.load(write(tmp_path)).scenario.expect
    for verdict in ("violated", "unknown"):
        worse = dataclasses.replace(run, invariants={"exactly-once": verdict})
        assert [one.asked for one in expect.judge(wanted, worse) if not one.holds] == ["no law is violated"]
    lives = [dataclasses.replace(run.lives[0], stages=[(0.0, "training")]), *run.lives[1:]]
    (late,) = (one for one in expect.judge(wanted, dataclasses.replace(run, lives=lives)) if not one.holds)
    assert "hospital-1 (training" in late.found


def test_where_nobody_stayed_nothing_has_held_and_it_is_told(run: Run, tmp_path: Path) -> None:
    """Every operator had ordered its node to leave: the report ended with "max() arg is an empty sequence"."""
    changes = ["exchanges=3", "local_rounds=3", "exchanged_within_s=60"]
    wanted = sc.load(write(tmp_path), [f"expect.{one}" for one in changes]).scenario.expect
    gone = [dataclasses.replace(life, spans=[Span(100.0, 200.0, "left")]) for life in run.lives]
    for lives in (gone, [dataclasses.replace(life, hostile=True) for life in run.lives]):
        found = dataclasses.replace(run, lives=lives)
        judged = [one for one in expect.judge(wanted, found) if one.found == expect.NOBODY]
        assert len(judged) == 4 and not any(one.holds for one in judged)
        assert tell.outcome(found)[0] == "No honest node stayed to the end."


def test_the_history_is_that_of_the_world(run: Run) -> None:
    life = run.life("hospital-2")
    (span,) = life.spans
    assert (span.state, span.begin_s, span.end_s) == ("down", 1800.0, 1920.0)
    assert life.boots == 2
    assert not any(span.begin_s < at < span.end_s for at in life.exchanges)
    assert sum(len(life.exchanges) for life in run.lives) == 2 * run.exchanges
    assert run.faults["crash"] == 1
    assert run.samples[-1].exchanges == run.exchanges
    assert run.samples[-1].sent == run.sent == sum(life.received for life in run.lives)


CHANCE = """\
question = "What happened, in words?"
hours = 1
[nodes]
count = {count}
[faults]
preset = "hostile"
{more}
"""


def test_what_went_wrong_by_chance_is_told_in_words_and_no_honest_node_is_called_a_liar(tmp_path: Path) -> None:
    more = "".join(f"{name} = {value}\n" for name, value in {
        "partition_per_hour": 6, "partition_s": 60, "partition_shape": '"any"', "straggler_share": 0.3, "on_hours": 0.3,
        "off_hours": 0.05, "late_share": 0.2, "leave_share": 0.2, "leave_hours": 0.5, "clock_skew_s": 9, "clock_drift_ppm": 99,
        "drip_per_hour": 20, "disk_full_per_hour": 1, "io_error_per_hour": 1, "bit_rot_per_hour": 3, "pause_per_hour": 2,
        "restart_storm_per_hour": 1, "blackout_per_hour": 1,
    }.items())  # fmt: skip
    read = sc.load(write(tmp_path, CHANCE.format(count=6, more=more)))
    found = players.play(players.Stage(read.scenario, sc.federation(read)))
    said = [(one, tell.in_words(found, one)) for one in found.happenings]
    assert {one.kind for one, _ in said} >= set(CLASSES) - {"refused", "clock", "half-open", "duplicate"}
    assert not [text for one, text in said if f"{one.kind} at " in text or "for 0 s" in text or "{" in text]
    liars = {life.name for life in found.lives if life.hostile}
    lies = [text for one, text in said if one.kind == "hostile"]
    assert lies and {text.split(" lied to ")[0] for text in lies} <= liars
    assert tell.outcome(found)[0].count("honest nodes") == ("All" in tell.outcome(found)[0])


@pytest.mark.parametrize("shape", ["halves", "isolated", "ring"])
def test_who_is_cut_off_by_a_partition_is_told_by_its_shape(shape: str, tmp_path: Path) -> None:
    one = f'[[at]]\nhour = 0.5\nkind = "partition"\nvalue = "{shape}"'
    read = sc.load(write(tmp_path, CHANCE.format(count=5, more=one).replace('preset = "hostile"', f"""\
partition_per_hour = 4
partition_shape = "{shape}"
until_hours = 0.4""")))  # fmt: skip
    found = players.play(players.Stage(read.scenario, sc.federation(read)))
    assert len(found.happenings) > 1 and found.planned()
    for happening in found.happenings:
        assert len(happening.nodes) == (1 if shape == "isolated" else 5)
        says = {"halves": "two halves", "isolated": f"{happening.nodes[0]} and the others", "ring": "only its two neighbours"}
        assert says[shape] in tell.in_words(found, happening)


def test_who_is_killed_while_it_saves_is_down_for_as_long_as_was_said_and_what_strikes_nothing_is_told(tmp_path: Path) -> None:
    strikes = "".join(f"[[at]]\nhour = {hour}\nkind = {kind!r}\nnodes = ['hospital-2']\nseconds = 200\n" for hour, kind in
                      ((0.3, "crash-saving"), (0.6, "half-open"), (0.7, "duplicate"), (0.8, "crash"), (0.81, "crash-saving")))
    text = CHANCE.format(count=3, more=strikes).replace('preset = "hostile"', "")
    read = sc.load(write(tmp_path, text), ["study.local_rounds=30", "study.local_round_s=600"])
    found = players.play(players.Stage(read.scenario, sc.federation(read)))
    said = tell.told(found, read.scenario.at)
    assert said[0].what == "hospital-2 was killed in the middle of saving, and was down for 3.3 min."
    assert [one.then[0].startswith("It struck nothing") for one in said if one.then] == [False, True, True, False, True]


def test_a_ring_of_three_is_told_although_it_parts_nobody(tmp_path: Path) -> None:
    ring = 'partition_per_hour = 9\npartition_shape = "ring"'
    read = sc.load(write(tmp_path, CHANCE.format(count=3, more="").replace('preset = "hostile"', ring)))
    found = players.play(players.Stage(read.scenario, sc.federation(read)))
    assert "only its two neighbours" in tell.in_words(found, found.happenings[0])


def test_one_seed_is_one_history(run: Run, tmp_path: Path) -> None:
    read = sc.load(write(tmp_path))
    again = as_json(players.play(players.Stage(read.scenario, sc.federation(read))))
    assert {**again, "cpu_seconds": 0} == {**as_json(run), "cpu_seconds": 0}


def test_the_longest_wait_is_where_nobody_else_is_to_blame() -> None:
    happening = Happening("partition", 100.0, 200.0, ("b",), planned=0)
    life = Life("a", 10, "trainer", exchanges=[50.0, 90.0, 170.0, 260.0], stages=[(0.0, "training")])
    run = Run("?", "toy", "loss", 0, "events", 300.0, 0, 0, {}, [life, Life("b", 10, "trainer")], [happening],
              [Sample(300.0, {}, 0.0, 0, 0)], {"loss": 1.0}, {}, 0.0)  # fmt: skip
    assert expect.longest_wait(life, happening, 300.0) == 90.0
    assert [one.name for one in expect.others(run, happening)] == ["a"]
    assert expect.wait(life, 200.0) == 60.0
    assert tell.aftermath(run, happening)[0].startswith("The other 1 made their part of 1 exchanges")
    run.lives = [*run.lives, Life("c", 10, "trainer", exchanges=[20.0], stages=[(50.0, "finished")])]
    assert tell.aftermath(run, happening)[0].startswith("The others that had not finished (1) made")
    assert tell.aftermath(run, happening)[1] == "b never made an exchange again."
    assert tell.aftermath(dataclasses.replace(run, virtual_seconds=200.0), happening)[1] == "It was not over at the end."


def test_ctrl_c_leaves_figures_as_far_as_the_run_came(tmp_path: Path) -> None:
    read = sc.load(write(tmp_path))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press(progress: players.Progress) -> None:
        if progress.virtual_s > 2400:
            signal.raise_signal(signal.SIGINT)

    try:
        part = players.play(players.Stage(read.scenario, sc.federation(read), press))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not part.is_whole and 2400 < part.virtual_seconds < 2600
    assert part.of("loss") and part.samples[-1].at_s == part.virtual_seconds
    assert tell.told(part, read.scenario.at)[0].at == "0:30:00"
    assert tell.outcome(part) == ["Interrupted at 0:41:00: what follows is as far as it came."]


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_leaves_a_folder_and_its_exit_code_says_whether_it_held(tmp_path: Path) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    done = CliRunner().invoke(application(), ["simulate", str(path), "--json", "--out", str(out)])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    first = ["seed", "virtual_seconds", "events", "exchanges", "faults", "quality", "consensus_distance", "invariants",
             "trace_digest", "content_digest"]  # fmt: skip
    assert list(said)[: len(first)] == first
    assert json.loads((out / "summary.json").read_text()) == said
    assert {"manifest.json", "config.json", "scenario.toml", "metrics.jsonl", "happenings.jsonl", "report.html"} <= {
        file.name for file in out.iterdir()
    }
    page = (out / "report.html").read_text()
    assert "What was expected held." in page
    assert "<script" not in page
    assert "://" not in page
    failing = ["simulate", str(path), "--out", str(tmp_path / "no"), "--set", "expect.consensus_below=1e-12"]
    done = CliRunner().invoke(application(), failing)
    assert done.exit_code == 1
    assert "NOT HELD" in done.stdout
    assert "did not hold" in (tmp_path / "no" / "report.html").read_text()
