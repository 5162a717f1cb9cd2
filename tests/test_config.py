"""Laws of node.toml: what init writes is valid, and every fault is told at once with file, line and suggestion."""

from __future__ import annotations

import doctest
import os
import re
from pathlib import Path

import pytest

from gossipfl import config
from gossipfl.documents import json_lines, toml_lines
from gossipfl.errors import ConfigError, Exit

GOOD = '[node]\nid = "ward"\n'


def load(folder: Path, text: str) -> config.NodeConfig:
    path = folder / "node.toml"
    path.write_text(text)
    return config.load_node(path)


def faults(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert caught.value.exit_code == Exit.CONFIG
    return [str(fault).removeprefix(f"{folder}/") for fault in caught.value.faults]


def test_the_template_is_valid_and_says_the_defaults(tmp_path: Path) -> None:
    plain = load(tmp_path, GOOD)
    assert load(tmp_path, config.template("ward")) == plain
    text = config.template("ward", addresses=("https://ward.example:8470",))
    full = load(tmp_path, re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    assert full.limits == plain.limits
    assert full.node == plain.node.model_copy(update={"advertise": ("https://ward.example:8470",)})
    assert full.data.codes == {"sex": {"1": "m", "2": "f"}}


def test_who_gives_no_address_only_dials(tmp_path: Path) -> None:
    assert load(tmp_path, config.template("ward", listen="")).node.listen_address is None
    assert load(tmp_path, GOOD).node.listen_address == ("0.0.0.0", 8470)


def test_paths_are_relative_to_the_file_and_not_to_where_one_stands(tmp_path: Path) -> None:
    made = load(tmp_path, GOOD + 'federation = "../fed.json"\nstate = "/var/lib/x"\n[data]\nfile = "rows.csv"\n')
    assert made.node.federation == tmp_path / "../fed.json"
    assert made.node.state == Path("/var/lib/x")
    assert made.identity_key == tmp_path / "keys" / "identity.key"
    assert made.data.source() == {"file": str(tmp_path / "rows.csv")}


def test_the_source_holds_what_is_given_and_nothing_else(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).data.is_empty
    text = GOOD + '[data]\nsite = 0\nsites = 5\nmissing = [-9, "NA"]\noptions = {ward = "3b"}\n'
    assert load(tmp_path, text).data.source() == {"site": 0, "sites": 5, "missing": ["-9", "NA"], "ward": "3b"}


def test_every_fault_is_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    told = faults(
        tmp_path,
        """\
[node]
idd = "x"
id = "Ward 1"
log = "jsn"
[limits]
threads = 0
tread = 1
[lmits]
""",
    )
    assert [one.split(": ")[0] for one in told] == [f"node.toml:{n}" for n in (2, 3, 4, 6, 7, 8)]
    assert "did you mean 'id'?" in told[0]
    assert "not a member id" in told[1]
    assert "did you mean 'json'?" in told[2]
    assert "greater than or equal to 1" in told[3]
    assert "did you mean 'threads'?" in told[4]
    assert "did you mean 'limits'?" in told[5]


WRONG = {
    "a missing id": ("[node]\n", "node.id is missing"),
    "no node table": ("", "node is missing"),
    "a number as path": (GOOD + "state = 3", "not a path"),
    "an empty path": (GOOD + 'keys = ""', "not a path"),
    "text as number": (GOOD + '[limits]\nthreads = "2"', "not a whole number -- write digits, without quotes"),
    "a broken address": (GOOD + 'listen = "8470"', 'write "host:port"'),
    "a port too high": (GOOD + 'listen = "0.0.0.0:70000"', 'write "host:port"'),
    "admin for everybody": (GOOD + 'admin = "0.0.0.0:8471"', "not on loopback"),
    "admin by name": (GOOD + 'admin = "ward.example:8471"', "not on loopback"),
    "admin nowhere": (GOOD + 'admin = ""', 'write "host:port"'),
    "an ftp address": (GOOD + 'advertise = ["ftp://x"]', "not a URL of https"),
    "a password in an address": (GOOD + 'advertise = ["https://me:pw@x"]', "without user"),
    "nine addresses": (GOOD + f"advertise = {[f'https://h{n}.example' for n in range(9)]}", "at most 8"),
    "a proxy without scheme": (GOOD + 'proxy = "proxy:3128"', "not a URL of http"),
    "a network with host bits": (GOOD + 'trusted_proxies = ["10.0.0.1/8"]', "host bits"),
    "two sources": (GOOD + '[data]\nfile = "a"\nsite = 1', "both file and site"),
    "a scale that is no number": (GOOD + "[data]\nscale = {age = nan}", "finite"),
    "hours that are none": (GOOD + '[limits]\nallowed_hours = "25:00-26:00"', "not hours"),
    "no hour at all": (GOOD + '[limits]\nallowed_hours = "08:00-08:00"', "not hours"),
    "an unknown device": (GOOD + '[limits]\ndevice = "gpu"', "not a device"),
    "a checkpoint never": (GOOD + "[limits]\ncheckpoint_s = inf", "checkpoint_s"),
    "text without quotes": ("[node]\nid = ward\n", "not TOML"),
    "a key twice": (GOOD + 'id = "x"', "stands further up already"),
    "a table twice": (GOOD + '[data]\nid = "x"\n[data]\nfile = "y"', "stands further up already"),
    "text as truth value": (GOOD + 'record = "yes"', "write true or false"),
    "a table that is none": ("node = 3\n", "not a table"),
    "an integer without end": (GOOD + "[limits]\nthreads = " + "9" * 5000, "not TOML"),
    "nested without end": ("x = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    "the home of nobody": (GOOD + 'keys = "~no-such-user/keys"', "no such user"),
    "no IPv4 address": (GOOD + 'listen = "999.0.0.1:8470"', "not an address"),
    "no IPv6 address": (GOOD + 'listen = "[:::::1]:8470"', "not an address"),
    "digits of another script": (GOOD + 'listen = "0.0.0.0:\u0668\u0664"', "not an address"),
    "hours of another script": (GOOD + '[limits]\nallowed_hours = "\u0662\u0662:00-06:00"', "not hours"),
    "one port for two": (GOOD + 'listen = "0.0.0.0:8471"', "listen and admin both want port 8471"),
    "a byte order mark in the middle": ("[node]\n\ufeffid = 1", "not TOML"),
}


@pytest.mark.parametrize(("text", "says"), WRONG.values(), ids=WRONG)
def test_a_fault_names_file_line_and_remedy(tmp_path: Path, text: str, says: str) -> None:
    told = faults(tmp_path, text)
    assert len(told) == 1
    assert says in told[0]
    assert " -- " in told[0] and len(told[0]) < 300
    if says not in ("not TOML", "nested too deeply"):
        assert 1 <= int(told[0].split(":")[1]) <= max(1, len(text.splitlines()))


def test_a_byte_order_mark_and_line_ends_of_another_system_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert config.load_node(path) == load(tmp_path, GOOD)


def test_a_fault_deep_in_a_list_has_its_own_line_and_no_words_of_the_parser(tmp_path: Path) -> None:
    (told,) = faults(tmp_path, GOOD + "[data.options]\nrange = [\n  1,\n  {low = [0, inf]},\n]\n")
    assert told == "node.toml:6: data.options.range[1].low[1] = inf: not a finite number -- write digits, without quotes"


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load_node(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r"[Dd]irectory"):
        config.load_node(tmp_path)
    path = tmp_path / "node.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        config.load_node(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_somebody_else_is_a_matter_of_permission(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(GOOD)
    path.chmod(0)
    with pytest.raises(ConfigError) as caught:
        config.load_node(path)
    assert caught.value.exit_code == Exit.PERMISSION


@pytest.mark.parametrize("minute", [0, 359, 360, 720, 1319, 1320, 1439])
def test_hours_may_pass_midnight(minute: int) -> None:
    night = config.LimitsSection(allowed_hours="22:00-06:00")
    day = config.LimitsSection(allowed_hours="06:00-22:00")
    assert night.allows(minute) != day.allows(minute)
    assert config.LimitsSection().allows(minute)


def test_lines_of_toml_are_those_of_keys_tables_and_elements() -> None:
    text = 'a = 1\n[b]\n"c d" = 2\n[[e]]\nf = 3\n[[e]]\nf = 4\ng.h = 5\ni = """\nf = 9\n"""\nj = 1\n'
    lines = toml_lines(text)
    assert [lines[path] for path in [("a",), ("b",), ("b", "c d"), ("e", 0, "f"), ("e", 1, "f")]] == [1, 2, 3, 5, 7]
    assert lines["e", 1, "g", "h"] == 8 and lines["e", 1, "j"] == 12
    text = 'a = [  # ], }\n  {b = "}\\"", c.d = [1, 2]},\n  {b = \'\'\'x\n]\'\'\', "e f" = 3},\n]\ng = [[], [[1,\n2]]]\nh = 1\n'
    lines = toml_lines(text)
    assert [lines["a", 0], lines["a", 0, "c", "d", 1], lines["a", 1, "b"], lines["a", 1, "e f"]] == [2, 2, 3, 4]
    assert [lines["g", 1, 0, 0], lines["g", 1, 0, 1], lines["h",]] == [6, 7, 8]


def test_lines_of_json_are_those_of_keys_and_elements() -> None:
    text = '{\n"a": [\n1,\n{"b": "x{[,\\"",\n"c": 2}],\n"d": {}\n}'
    lines = json_lines(text)
    assert [lines[path] for path in [("a",), ("a", 0), ("a", 1, "b"), ("a", 1, "c"), ("d",)]] == [2, 2, 4, 5, 6]


def test_the_docstrings_print_what_they_say() -> None:
    assert doctest.testmod(config).failed == 0
