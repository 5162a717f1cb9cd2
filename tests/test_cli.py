"""Laws of the commands: exit codes, what goes to stdout, what is never overwritten, and that help is light."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gossipfl import cli, config
from gossipfl.cli import output
from gossipfl.errors import ConfigError, Exit
from gossipfl.trust import identity
from gossipfl.trust.membership import LINE_PREFIX, Membership, read_member_line

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "sklearn", "pandas", "matplotlib", "networkx", "aiohttp", "numpy", "scipy", "pydantic", "nacl"}


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(output.PASSPHRASE_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments: object) -> int:
    """The exit code of one command."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(one) for one in arguments])
    return int(caught.value.code or 0)


def line_of(name: str, capsys: pytest.CaptureFixture[str], *more: object) -> str:
    assert run("init", name, "--out", name, *more) == Exit.OK
    return capsys.readouterr().out.strip()


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    counts = {"a": 100, "b": 300, "c": 1249}
    return [
        line_of(name, capsys, "--address", f"https://{name}.example:8470", "--count", n) for name, n in counts.items()
    ]


# ---- init ------------------------------------------------------------------------------------------------------------


def test_init_makes_keys_certificate_and_config_and_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", "ward", "--out", "ward", "--address", "https://ward.example:8470", "--count", 1249) == 0
    told = capsys.readouterr()
    assert told.out.startswith(LINE_PREFIX) and told.out.count("\n") == 1
    assert "NOT encrypted" in told.err
    made = config.load_node(Path("ward/node.toml"))
    member = read_member_line(told.out)
    me = identity.Identity(identity.load_key(made.identity_key, None, "identity"))
    node = identity.NodeKeys(identity.load_key(made.node_key, None, "node"))
    assert (member.id, member.count, member.identity_bytes) == ("ward", 1200, me.public)
    assert made.certificate.read_bytes() == member.certificate_bytes
    assert member.certificate_read.noise == node.noise_public
    assert member.certificate_read.valid_at(time.time_ns())
    assert stat.S_IMODE(made.node.keys.stat().st_mode) == 0o700
    assert stat.S_IMODE(made.node_key.stat().st_mode) == 0o600


@pytest.mark.parametrize("address, listen", [("http://[::1]:8470", "[::]:8470"), ("http://ward.example:8471", "0.0.0.0:8471")])
def test_what_init_writes_can_be_run_whatever_the_address(
    address: str, listen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("init", "ward", "--address", address, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    made = config.load_node(Path("node.toml"))
    assert told["listen"] == made.node.listen == listen
    assert read_member_line(told["line"]).id == "ward"
    assert made.node.admin_address[1] != made.node.listen_address[1]  # type: ignore[index]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("verb", [["node", "run"], ["federation", "show"], ["doctor"], ["federation", "create", "--study"]])
def test_a_file_that_may_not_be_read_is_a_matter_of_permission_and_not_of_usage(verb: list[str]) -> None:
    Path("file").write_text("")
    Path("file").chmod(0)
    assert run(*verb, "file", *["line"] * ("create" in verb)) == Exit.PERMISSION


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_what_a_full_disk_does_not_take_is_said_and_exits_73(lines: list[str]) -> None:
    assert run("federation", "create", "--task", "toy", *lines) == 0
    for more in ([], ["--json"]):
        with open("/dev/full", "w") as full:
            call = [sys.executable, "-m", "gossipfl", "federation", "show", "federation.json", *more]
            ended = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert ended.returncode == Exit.STATE
        assert ended.stderr.startswith("gossipfl: the output cannot be written") and ended.stderr.count("\n") == 1


def test_init_never_overwrites(capsys: pytest.CaptureFixture[str]) -> None:
    line_of("ward", capsys)
    before = {path: path.read_bytes() for path in Path("ward").rglob("*") if path.is_file()}
    assert run("init", "ward", "--out", "ward") == Exit.STATE
    assert "exists already" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("ward").rglob("*") if path.is_file()}


def test_t27_with_a_passphrase_the_key_files_do_not_hold_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    Path("secret").write_text("correct horse\n")
    assert run("init", "ward", "--out", "ward", "--passphrase-file", "secret") == Exit.OK
    assert "correct horse" not in "".join(capsys.readouterr())
    path = Path("ward/keys/node.key")
    secret = identity.load_key(path, "correct horse", "node")
    assert secret.hex() not in path.read_text()
    with pytest.raises(ConfigError) as caught:
        identity.load_key(path, "wrong", "node")
    assert caught.value.exit_code == Exit.PERMISSION


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_an_absent_or_empty_passphrase_file_is_a_matter_of_keys(
    content: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(output.PASSPHRASE_VARIABLE, "secret")
    if content is not None:
        Path("secret").write_text(content)
    assert run("init", "ward", "--out", "ward") == Exit.PERMISSION
    assert not Path("ward").exists()


USAGE = {
    "no command": ["nothing"],
    "no id": ["init"],
    "an id that is none": ["init", "Ward 1"],
    "an address that is none": ["init", "ward", "--address", "ftp://x"],
    "a count below zero": ["init", "ward", "--count", "-1"],
    "a certificate of a year": ["init", "ward", "--days", "365"],
    "a passphrase on the command line": ["init", "ward", "--passphrase", "x"],
    "a federation of no task": ["federation", "create", "x.line"],
    "an option without value": ["federation", "create", "--task", "toy", "--option", "x", "x.line"],
}


def test_t27_a_passphrase_that_others_may_read_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    Path("secret").write_text("correct horse\n")
    for mode, said in ((0o644, True), (0o600, False)):
        Path("secret").chmod(mode)
        assert output.passphrase(Path("secret")) == "correct horse"
        assert ("chmod 600" in capsys.readouterr().err) == said


def test_a_federation_that_is_not_connected_is_said_to_be_so_when_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line_of(name, capsys) for name in "ab"]
    assert run("federation", "create", "--task", "toy", *lines) == 0
    said = capsys.readouterr().err
    assert "cannot work yet: reachable: nobody to talk to" in said and "not connected" in said


def test_a_demo_without_its_data_leaves_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOSSIPFL_DATA", raising=False)
    assert run("demo", "--task", "heart", "--out", "run") == Exit.CONFIG
    assert not Path("run").exists() and not Path("runs").exists()


def test_the_demo_of_a_table_is_refused_with_what_to_do_instead(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "--task", "table") == Exit.USAGE
    assert "heart" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_wrong_usage_exits_2_and_makes_nothing(arguments: list[str]) -> None:
    assert run(*arguments) == Exit.USAGE
    assert not list(Path().iterdir())


# ---- federation ------------------------------------------------------------------------------------------------------


def test_create_makes_a_federation_file_and_a_secret_key_from_lines_and_files(
    lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("two.lines").write_text(f"{lines[0]}\n\n{lines[1]}\n")
    assert run("federation", "create", "--task", "toy", "--out", "fed", "two.lines", lines[2], "--json") == Exit.OK
    told = json.loads(capsys.readouterr().out)
    made = Membership.load(Path("fed/federation.json"))
    assert made.active == ("a", "b", "c") and made.version == 1
    assert told["digest"] == made.digest.hex()
    assert "holdout_key" not in told["study"]
    psk = identity.load_key(Path("fed/psk.key"), None, "psk")
    assert len(psk) == 32 and psk.hex() not in made.dump()
    assert run("federation", "create", "--task", "toy", "--out", "fed", *lines) == Exit.STATE


def test_a_study_file_sets_the_constants_and_the_command_line_wins(lines: list[str]) -> None:
    Path("study.toml").write_text('name = "trial"\ntask = "digits"\neta = 0.5\nlocal_rounds = 7\n')
    assert run("federation", "create", "--task", "toy", "--study", "study.toml", "--topology", "ring", *lines) == 0
    made = Membership.load(Path("federation.json"))
    assert (made.study.name, made.study.task, made.study.eta, made.study.local_rounds) == ("trial", "toy", 0.5, 7)
    assert made.topology.rule == "ring"


def test_faults_of_a_study_file_and_of_a_task_are_told_and_nothing_is_made(
    lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("study.toml").write_text('eta = "high"\nloacl_rounds = 7\n')
    assert run("federation", "create", "--task", "toy", "--study", "study.toml", "--out", "fed", *lines) == Exit.CONFIG
    told = capsys.readouterr().err
    assert "study.toml:1: eta = 'high'" in told and "study.toml:2: unknown key loacl_rounds" in told
    assert "did you mean 'local_rounds'?" in told
    assert run("federation", "create", "--task", "toi", "--out", "fed", *lines) == Exit.CONFIG
    assert "did you mean 'toy'?" in capsys.readouterr().err
    assert run("federation", "create", "--task", "toy", "--out", "fed", lines[0][:-9], "absent.line") == Exit.CONFIG
    assert not Path("fed").exists()


def test_all_faults_of_a_schema_have_their_lines_in_the_study_file(lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("study.toml").write_text(
        'task = "table"\neta = -1\n[task_options.schema]\nmodle = "logistic"\nlabel = {name = "died", type = "number"}\n'
        'features = [\n  {name = "age", type = "numbr"},\n  # a word\n  {name = "x", range = [2, 1]},\n]\n'
    )
    assert run("federation", "create", "--study", "study.toml", "--out", "fed", *lines) == Exit.CONFIG
    told = capsys.readouterr().err.removeprefix("gossipfl: ").splitlines()
    assert [int(one.split(":")[1]) for one in told] == [2, 4, 5, 7, 9]
    assert all(" -- " in one for one in told)
    assert "did you mean 'model'?" in told[1] and "did you mean 'number'?" in told[3] and "range = [2, 1]" in told[4]


@pytest.mark.parametrize(
    "text, says",
    [
        ('task = "table"\ntask_options = 5\n', "study.toml:2: task_options = 5: not a table"),
        ('task = "toi"\n', "study.toml:1: unknown task 'toi'"),
        ('task = "toy"\n[task_options]\ndimension = "4"\n', "study.toml:3: task: 'toy': option dimension = '4' is not a whole"),
        ('task = "toy"\n[task_options]\ndimension = -4\n', "'toy' makes no model"),
        ('task = "breast-cancer"\n[task_options]\nl2 = "high"\n', "study.toml:3: task: 'breast-cancer': option l2 = 'high'"),
        ('task = "table"\n', "'table' needs a schema"),
        ('task = "table"\n[task_options]\nl3 = 1\n[task_options.schema]\n', "study.toml:3: task: 'table' has no option l3"),
    ],
)
def test_what_a_study_says_wrongly_of_its_task_has_file_and_line(
    text: str, says: str, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("study.toml").write_text(text)
    assert run("federation", "create", "--study", "study.toml", "--out", "fed", *lines) == Exit.CONFIG
    assert says in capsys.readouterr().err


TABLE = """\
name = "mortality"
task = "table"
[task_options.schema]
features = [{name = "age", unit = "years", range = [0, 120]}, {name = "smoker", type = "boolean"}]
label = {name = "died", type = "boolean"}
"""


def test_a_site_deploys_its_own_table_without_python(lines: list[str]) -> None:
    """The study's schema from study.toml, the site's columns from node.toml: together they read the site's rows."""
    from gossipfl import tasks

    Path("study.toml").write_text(TABLE)
    assert run("federation", "create", "--study", "study.toml", *lines) == 0
    study = Membership.load(Path("federation.json")).study
    Path("rows.csv").write_text(
        "\n".join(["ALTER;raucht;died", *(f"{30 + n};{n % 2};{n % 3 == 0:d}" for n in range(30))])
    )
    Path("node.toml").write_text(
        '[node]\nid = "a"\n[data]\nfile = "rows.csv"\ndelimiter = ";"\nmissing = [-9]\n'
        '[data.columns]\nage = "ALTER"\nsmoker = "raucht"\n'
    )
    data = tasks.load(study.task, study.task_options).data(config.load_node(Path("node.toml")).data.source())
    assert data.x.shape == (30, 2) and data.x[0, 0] == 30 and data.y.sum() == 10


@pytest.mark.parametrize("task", ["breast-cancer", "digits", "heart"])
def test_the_study_takes_the_defaults_of_its_task_where_it_says_nothing(task: str, lines: list[str]) -> None:
    from gossipfl import tasks

    assert run("federation", "create", "--task", task, *lines) == 0
    own = tasks.load(task)
    assert Membership.load(Path("federation.json")).study.l2 == own.l2  # type: ignore[attr-defined]


def test_add_and_leave_raise_the_version_and_show_says_so(lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("federation", "create", "--task", "toy", *lines[:2]) == 0
    assert run("federation", "add", "federation.json", lines[2]) == 0
    assert run("federation", "leave", "federation.json", "a") == 0
    capsys.readouterr()
    assert run("federation", "show", "federation.json", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["version"] == 3
    assert [(member["id"], member["status"]) for member in told["members"]] == [
        ("a", "left"),
        ("b", "active"),
        ("c", "active"),
    ]
    assert run("federation", "leave", "federation.json", "a") == Exit.CONFIG
    assert run("federation", "show", "absent.json") == Exit.CONFIG
    assert run("federation", "show", "federation.json") == 0
    assert "version 3" in capsys.readouterr().out


def test_t28_who_leaves_does_not_keep_the_psk_of_those_who_stay(
    lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("federation", "create", "--task", "toy", *lines) == 0
    old = identity.load_key(Path("psk.key"), None, "psk")
    capsys.readouterr()
    assert run("federation", "leave", "federation.json", "b") == 0
    said = capsys.readouterr().err
    new = identity.load_key(Path("psk-v2.key"), None, "psk")
    assert new != old and len(new) == 32 and stat.S_IMODE(Path("psk-v2.key").stat().st_mode) == 0o600
    assert "a, c" in said and "keys/psk.key" in said
    assert run("federation", "leave", "federation.json", "c", "--same-psk") == 0
    assert not Path("psk-v3.key").exists()


def test_more_features_than_one_message_holds_are_refused_at_create(
    lines: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("wide.py").write_text(
        "from torch import nn\n"
        "class Wide:\n"
        "    name, metric, standardise = 'wide', 'loss', True\n"
        "    def __init__(self, n): self.features = tuple(f'f{k}' for k in range(n)); self.n = n\n"
        "    def model(self): return nn.Linear(self.n, 1)\n"
        "    def loss(self, module, x, y): return module(x).mean()\n"
        "    def data(self, source): raise NotImplementedError\n"
    )
    monkeypatch.syspath_prepend(".")
    create = ("federation", "create", "--task", "wide:Wide", *lines)
    assert run(*create, "--option", "n=2300", "--out", "out") == Exit.CONFIG
    said = capsys.readouterr().err
    most = int(said.split("at most ")[1].split()[0])
    assert 2000 < most < 2300 and not Path("out").exists()
    assert run(*create, "--option", f"n={most}", "--out", "out") == 0
    assert run(*create, "--option", f"n={most + 1}", "--out", "more") == Exit.CONFIG


def test_check_is_content_with_a_good_federation_and_names_its_disk_need(
    lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("federation", "create", "--task", "toy", *lines) == 0
    capsys.readouterr()
    assert run("federation", "check", "federation.json", "--json") == 0
    found = json.loads(capsys.readouterr().out)["findings"]
    assert {one["result"] for one in found} == {"ok", "info"}
    assert {one["check"] for one in found} == {"certificate", "reachable", "topology", "model", "disk"}


def test_check_names_what_is_wrong_and_exits_78(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line_of(name, capsys) for name in ("a", "b")]
    assert run("federation", "create", "--task", "toy", *lines) == 0
    path = Path("federation.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"x0": "0" * 64}))
    capsys.readouterr()
    assert run("federation", "check", path, "--json") == Exit.CONFIG
    found = json.loads(capsys.readouterr().out)["findings"]
    failed = {one["check"]: one["found"] for one in found if one["result"] == "fail"}
    assert "nobody to talk to: a, b" in failed["reachable"]
    assert "not connected" in failed["topology"]
    assert "differ" in failed["model"]
    assert [one["found"] for one in found if one["check"] == "counts"] == ["not declared: a, b"]
    assert all(one["fix"] for one in found if one["result"] in ("warn", "fail"))


def test_an_ended_certificate_is_warned_of(lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from gossipfl.cli.federation import findings

    assert run("federation", "create", "--task", "toy", *lines) == 0
    made = Membership.load(Path("federation.json"))
    now = int(time.time())
    for later_s, says in ((26, "ends in"), (31, "ended"), (-1, "not valid yet")):
        found = [one.found for one in findings(made, now + later_s * 86_400) if one.check == "certificate"]
        assert len(found) == 4 and all(says in one for one in found[:3])


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").is_dir(), reason="no read-only place at hand")
def test_a_folder_that_cannot_be_written_exits_73(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", "ward", "--out", "/proc/gossipfl") == Exit.STATE
    assert "--out" in capsys.readouterr().err


# ---- help ------------------------------------------------------------------------------------------------------------


VERBS = [
    [],
    *([verb] for verb in ("init", "federation", "node", "predict", "train-local", "doctor", "replay", "demo")),
    *([verb] for verb in ("renew", "simulate", "bench", "swarm")),
    *(["federation", verb] for verb in ("create", "study", "add", "leave", "show", "check")),
    *(["topology", verb] for verb in ("make", "show", "list")),
    *(["node", verb] for verb in ("run", "status", "model", "report", "pause", "resume", "leave", "stop")),
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_of_every_verb_has_an_example(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*verb, "--help") == 0
    assert ("Example" if verb else "Exit codes") in capsys.readouterr().out


def test_help_is_light_and_fast() -> None:
    """Best of three, because other work shares the machine."""
    code = (
        "import sys, time; from gossipfl import cli\n"
        "try: cli.main(['--help'])\n"
        f"except SystemExit: print(sorted({HEAVY!r} & set(sys.modules)), time.process_time(), file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        loaded, _, cpu = done.stderr.strip().rpartition(" ")
        assert loaded == "[]"
        seconds.append(float(cpu))
    assert min(seconds) < 0.5


def test_the_package_itself_is_light() -> None:
    code = f"import sys, gossipfl; gossipfl.__version__; dir(gossipfl); print(sorted({HEAVY!r} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        == "[]\n"
    )


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    import tomllib

    assert run("--version") == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out.strip() == project["version"]
