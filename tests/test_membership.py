"""Laws of the federation file: what it says is the same everywhere, and nothing wrong gets in."""

from __future__ import annotations

import doctest
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipfl import documents, topology
from gossipfl.errors import ConfigError, Misuse, Refused
from gossipfl.trust import membership as m
from gossipfl.trust.identity import Certificate, Identity, NodeKeys

DAY = 86_400


def seed(text: str, size: int = 32) -> bytes:
    return hashlib.shake_256(text.encode()).digest(size)


def certificate(name: str, *, under: str = "", addresses: tuple[str, ...] | None = None) -> Certificate:
    at = (f"https://{name}.example:8470",) if addresses is None else addresses
    keys = NodeKeys(seed(f"node {name}", 64))
    return Identity(seed(under or name)).certify(name, keys, at, counter=1, not_before=0, not_after=30 * DAY)


def member(name: str, count: int = 100, role: str = "trainer", **how: object) -> m.Member:
    return m.read_member_line(m.member_line(certificate(name, **how).encoded, role=role, count=count))  # type: ignore[arg-type]


def study(**fields: object) -> m.Study:
    return m.Study.model_validate({"task": "toy", "holdout_key": seed("holdout").hex()} | fields)


def federation(*members: m.Member, rule: str = "auto", **fields: object) -> m.Membership:
    return m.create(
        federation=seed("federation"),
        members=members or [member("c", 1200), member("a"), member("b", 300)],
        study=study(**fields),
        layout=seed("layout"),
        x0=seed("x0"),
        topology=m.Topology.model_validate({"rule": rule}),
    )


TEXT = federation().dump()


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        m.Membership.parse(text, "f.json")
    return [str(fault) for fault in caught.value.faults]


# ---- the document ----------------------------------------------------------------------------------------------------


def test_what_is_written_reads_back_equal_and_has_the_same_digest(tmp_path: Path) -> None:
    made = federation()
    path = tmp_path / "federation.json"
    path.write_text(made.dump())
    read = m.Membership.load(path)
    assert read == made and read.digest == made.digest and len(read.digest) == 32


def test_the_digest_does_not_hang_on_white_space_or_on_the_order_of_keys() -> None:
    made = federation()
    tree = json.loads(made.dump())
    turned = dict(reversed(tree.items())) | {"study": dict(reversed(tree["study"].items()))}
    assert m.Membership.parse(json.dumps(turned)).digest == made.digest


def test_the_digest_of_a_fixed_federation_never_changes() -> None:
    """Nodes of two releases must agree on it: a change here is a change of the wire."""
    assert federation().digest.hex() == "8671345a575d3998409cd7400278a08600ac6d5f87c2330d230f609fea8cb69f"


@pytest.mark.parametrize("field", ["eta", "seed", "codec", "l2", "holdout_key"])
def test_every_constant_of_the_study_is_in_the_digest(field: str) -> None:
    other = {"eta": 0.2, "seed": 1, "codec": "int8", "l2": 0.5, "holdout_key": "0" * 64}[field]
    assert federation(**{field: other}).digest != federation().digest


def test_every_fault_is_told_at_once_with_its_line() -> None:
    text = federation().dump()
    for right, wrong in {
        '"eta": 0.1': '"etta": 0.1',
        '"version": 1': '"version": "1"',
        '"degree": 6': '"degree": 7',
        '"codec": "f32"': '"codec": "f23"',
        '"gamma": 0.5': '"gamma": 1.5',
    }.items():
        assert right in text
        text = text.replace(right, wrong)
    lines = {line.strip().split(":")[0]: n for n, line in enumerate(text.splitlines(), 1)}
    told = faults(text)
    assert len(told) == 5
    assert f"f.json:{lines[chr(34) + 'etta' + chr(34)]}: unknown key study.etta -- did you mean 'eta'?" in told
    version = lines[chr(34) + "version" + chr(34)]
    assert f"f.json:{version}: version = '1': not a whole number -- write digits, without quotes" in told
    assert any("odd -- a union of cycles has an even degree: 6 or 8" in one for one in told)
    assert any("did you mean 'f32'?" in one for one in told)
    assert any("study.gamma = 1.5: input should be less than or equal to 1" in one for one in told)


def test_a_key_that_stands_twice_is_refused() -> None:
    text = federation().dump().replace('"seed": 0,', '"seed": 0,\n    "seed": 1,')
    assert "key 'seed' stands twice" in faults(text)[0]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"version": NaN}', "[" * 100_000, '"', "\x00"])
def test_what_is_no_federation_file_is_a_config_error(text: str) -> None:
    assert faults(text)


def test_a_cut_file_is_a_config_error_wherever_it_is_cut() -> None:
    text = federation().dump()
    for end in range(0, len(text) - 2, 37):
        assert faults(text[:end])


@given(st.data())
def test_an_altered_file_is_a_membership_or_a_config_error_and_nothing_else(data: st.DataObject) -> None:
    text = TEXT
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 8))
        put = data.draw(
            st.text(max_size=4) | st.sampled_from(['"', "{", "[", "null", "1e999", "9" * 5000, "-1", "\\ud800"])
        )
        text = text[:start] + put + text[end:]
    try:
        read = m.Membership.parse(text)
    except ConfigError as error:
        assert error.faults and str(error)
    else:
        assert m.Membership.parse(read.dump()).digest == read.digest


def test_a_missing_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json: No such file"):
        m.Membership.load(tmp_path / "absent.json")


def test_a_member_under_anothers_certificate_is_refused() -> None:
    tree = json.loads(federation().dump())
    tree["members"][0]["certificate"] = tree["members"][1]["certificate"]
    assert "the certificate of 'a' is that of 'b'" in faults(json.dumps(tree))[0]
    tree["members"][0]["certificate"] = "AAAA"
    assert "the certificate is not valid" in faults(json.dumps(tree))[0]
    tree["members"][0]["certificate"] = "!"
    assert "not base64" in faults(json.dumps(tree))[0]


def test_ids_are_unique_and_sorted_and_identities_are_unique() -> None:
    tree = json.loads(federation().dump())
    a, b, c = tree["members"]
    assert "stands twice" in faults(json.dumps(tree | {"members": [a, a, b]}))[0]
    assert "not in the order" in faults(json.dumps(tree | {"members": [b, a, c]}))[0]
    assert "0 members" in faults(json.dumps(tree | {"members": []}))[0]
    with pytest.raises(ConfigError, match="same identity key"):
        federation(member("a"), member("b", under="a"))


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a" * 33, "ä", "a b", "a\n"])
def test_an_id_is_a_to_z_digits_and_hyphens(name: str) -> None:
    with pytest.raises(ValueError, match="not a member id"):
        m.valid_member_id(name)


# ---- who belongs -----------------------------------------------------------------------------------------------------


def test_a_member_is_admitted_under_its_id_and_a_stranger_is_not() -> None:
    made = federation()
    assert made.admits(certificate("a")) == "a"
    for stranger, why in ((certificate("x"), "is not in version 1"), (certificate("a", under="x"), "another identity")):
        with pytest.raises(Refused, match=why) as caught:
            made.admits(stranger)
        assert caught.value.reason == "not-member"


def test_t28_who_has_left_is_not_admitted_and_is_nobodys_neighbour() -> None:
    left = m.without(federation(), "a")
    with pytest.raises(Refused, match="left in version 2"):
        left.admits(certificate("a"))
    assert left.has_left("a") and left.active == ("b", "c") and left.neighbours("a") == ()
    assert all("a" not in left.neighbours(other) for other in left.active)
    assert left.mass("a") > 0
    with pytest.raises(ConfigError, match="new id"):
        m.with_members(left, member("a"))


def test_only_the_document_says_left_not_absence() -> None:
    assert not federation().has_left("stranger")
    assert not federation().has_left("a")


def test_positions_are_among_the_active_in_id_order() -> None:
    made = federation()
    assert [made.index(one) for one in made.active] == [0, 1, 2]
    assert [m.without(made, "a").index(one) for one in "bc"] == [0, 1]
    with pytest.raises(Misuse):
        m.without(made, "a").index("a")
    with pytest.raises(Misuse):
        made.member("x")


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_masses_follow_the_counts_up_to_three_medians_and_average_one() -> None:
    made = federation()
    assert made.mass("b") / made.mass("a") == pytest.approx(3)
    assert made.mass("c") / made.mass("a") == pytest.approx(9)
    assert sum(made.mass(one) for one in made.active) / 3 == pytest.approx(1)


def test_an_observer_weighs_little_and_does_not_change_the_others() -> None:
    made = federation(member("a"), member("b"), member("o", 0, "observer"))
    assert (made.mass("a"), made.mass("b"), made.mass("o")) == (1, 1, m.OBSERVER_MASS)


# ---- versions --------------------------------------------------------------------------------------------------------


def test_a_higher_version_of_the_same_federation_replaces_a_lower_never_the_other_way() -> None:
    old = federation()
    new = m.with_members(old, member("d", 50))
    assert new.version == 2 and new.active == ("a", "b", "c", "d")
    assert m.replaces(old, new) and not m.replaces(new, old) and not m.replaces(old, old)


def test_a_version_that_forgets_somebody_or_takes_somebody_back_does_not_replace() -> None:
    old = federation()
    left = m.without(old, "a")
    forgets = left.model_copy(update={"members": left.members[1:]})
    back = old.model_copy(update={"version": 3})
    elsewhere = left.model_copy(update={"federation": "0" * 64})
    relaid = left.model_copy(update={"layout": "0" * 64})
    assert m.replaces(old, left)
    assert not any(m.replaces(old, other) for other in (forgets, elsewhere, relaid))
    assert not m.replaces(left, back)


def test_a_renewed_line_changes_certificate_and_count_but_never_the_identity() -> None:
    old = federation()
    new = m.with_members(old, member("a", 500, addresses=()))
    assert new.member("a").count == 500 and new.dial_only == {"a"}
    with pytest.raises(ConfigError, match="another identity key"):
        m.with_members(old, member("a", under="x"))


# ---- graph -----------------------------------------------------------------------------------------------------------


def test_the_graph_is_complete_up_to_sixteen_and_regular_above() -> None:
    many = federation(*(member(f"h{n:02}") for n in range(17)))
    assert topology.degree_of(many.graph) <= 6 and topology.is_connected(many.graph)
    fewer = m.without(many, "h03")
    assert all(len(fewer.neighbours(one)) == 15 for one in fewer.active)


def test_two_members_that_can_only_dial_are_not_neighbours() -> None:
    made = federation(member("a"), member("b", addresses=()), member("c", addresses=()))
    assert made.graph == {"a": ("b", "c"), "b": ("a",), "c": ("a",)}


def test_the_release_is_long_enough_and_at_most_a_quarter_of_the_study() -> None:
    assert federation().release_exchanges == topology.release_exchanges(topology.complete("abc"), 0.5)
    assert federation(local_rounds=20).release_exchanges == 10 == federation(local_rounds=10, exchanges=2).release_exchanges
    assert federation(release_exchanges=7).release_exchanges == 7


# ---- the line --------------------------------------------------------------------------------------------------------


def test_a_line_brings_id_identity_role_and_rounded_count() -> None:
    found = member("ward-1", 1249, "observer")
    assert (found.id, found.role, found.count) == ("ward-1", "observer", 1200)
    assert found.identity_bytes == Identity(seed("ward-1")).public
    assert found.certificate_bytes == certificate("ward-1").encoded


def test_a_cut_or_altered_line_is_refused() -> None:
    line = m.member_line(certificate("a").encoded, count=5)
    for end in range(0, len(line) - 1, 5):
        with pytest.raises(ConfigError):
            m.read_member_line(line[:end])
    middle = len(line) // 2
    for wrong in (line + "x", line[:middle] + ("A" if line[middle] != "A" else "B") + line[middle + 1 :], "gossipfl"):
        with pytest.raises(ConfigError):
            m.read_member_line(wrong)


@pytest.mark.parametrize("module", [m, documents])
def test_the_docstrings_print_what_they_say(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
