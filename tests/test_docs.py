"""The documents say what the code does: every byte that docs/protocol.md shows, every path and test that the docs name.

`python tests/test_docs.py` writes tests/golden/exchange.json anew: only when the protocol has changed on purpose, and
then docs/protocol.md and the major version change with it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gossipfl.digest import CHUNK, Tree, expected_name, name_of, replica_name
from gossipfl.errors import REASONS
from gossipfl.learning import compression, correction, mixing
from gossipfl.learning.parameters import Layout
from gossipfl.protocol import limits
from gossipfl.protocol import messages as ms
from gossipfl.protocol.events import Instant
from gossipfl.protocol.session import Session
from gossipfl.sums import agreement, sum_of
from gossipfl.tasks import fitting, load
from gossipfl.trust.identity import Certificate, NodeKeys, save_key
from gossipfl.trust.membership import Member, Membership, Study, Topology

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "exchange.json"
SESSION = json.loads((ROOT / "tests" / "golden" / "session.json").read_text())
DOCS = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])

FEDERATION = bytes.fromhex(SESSION["federation"])
MASS = {"anna": 1.5, "bert": 0.5}
GAMMA, KAPPA, LEAK = 0.5, 0.5, 0.98
PARAMETERS, MOMENTS = 4, 2


def example() -> dict[str, str]:
    """One exchange in the model space, anna begins: every byte of it that is not sealed, in hexadecimal."""
    anna, bert = (NodeKeys(bytes.fromhex(SESSION[f"{role}_secret"])) for role in ("initiator", "responder"))
    papers = {
        "anna": Certificate.decode(bytes.fromhex(SESSION["initiator_certificate"])),
        "bert": Certificate.decode(bytes.fromhex(SESSION["responder_certificate"])),
    }
    base = np.zeros(PARAMETERS + MOMENTS, np.float32)
    vectors = {
        "anna": np.array([1, -2, 0.5, 3, 0.25, 1.5], np.float32),
        "bert": np.array([0.5, 1, 0.5, -1, 0.75, 2.5], np.float32),
    }
    payloads = {
        name: compression.encode("f32", y, base, n_parameters=PARAMETERS).tobytes() for name, y in vectors.items()
    }
    replicas = {
        name: compression.decode("f32", payload, base, n_parameters=PARAMETERS) for name, payload in payloads.items()
    }
    q = mixing.flow_step(replicas["anna"], replicas["bert"], GAMMA, MASS["anna"], MASS["bert"], 1.0)
    moved = {name: mixing.apply(y, q, MASS[name], lower=name == "anna") for name, y in vectors.items()}
    flow = correction.book(None, q[:PARAMETERS], KAPPA, LEAK, 1.0, lower=True)
    sums = {name: sum_of(vector) for name, vector in {**replicas, "q": q}.items()}
    statistics = msgspec_normalisation()

    propose = ms.Manifest(
        federation=FEDERATION, membership=1, certificate=papers["anna"].digest, sender="anna", recipient="bert",
        epoch=0, k=1, prev=0, role="propose", space="model", stage="training", codec="f32",
        reference=name_of(base.data), size=len(payloads["anna"]), root=name_of(payloads["anna"]),
        statistics=hashlib.sha256(statistics).digest(), mass=MASS["anna"], gamma=GAMMA, kappa=KAPPA, tau=math.inf, gradient=2.0,
    )  # fmt: skip
    proposal = ms.encode(propose)
    answers = hashlib.sha256(proposal).digest()
    reply = ms.encode(
        msgspec.structs.replace(
            propose, certificate=papers["bert"].digest, sender="bert", recipient="anna", role="reply",
            size=len(payloads["bert"]), root=name_of(payloads["bert"]), mass=MASS["bert"], gradient=3.0,
            answers=answers, clip=1.0, leak=LEAK, cap=1.0, q=agreement(*sums.values()),
        )
    )  # fmt: skip
    receipt = ms.encode(ms.Receipt(FEDERATION, "bert", "anna", 0, 1, answers, propose.root))
    done = ms.encode(
        ms.Receipt(FEDERATION, "anna", "bert", 0, 1, hashlib.sha256(reply).digest(), name_of(payloads["bert"]))
    )
    abort = ms.encode(ms.AbortNote(FEDERATION, "anna", "bert", 0, 1, answers, "numeric"))
    fresh = ms.LinkView(0, 0, 0, b"", b"")
    said: dict[str, ms.Message] = {
        "hello": ms.Hello(
            1, bytes(32), Layout.flat(4).digest, "training", hashlib.sha256(statistics).digest(), fresh, ("resume",),
            1_800_000_000,
        ),
        "propose": ms.Propose(proposal, anna.sign("manifest", proposal)),
        "fetch": ms.Fetch(propose.root, 0),
        "reply": ms.Reply(reply, bert.sign("manifest", reply), receipt, bert.sign("receipt", receipt)),
        "done": ms.Done(done, anna.sign("receipt", done)),
        "abort": ms.Abort(abort, anna.sign("abort", abort)),
        "aborted": ms.Aborted(0, 1),
        "refusal": ms.Refusal(1, "paused", "bert is paused"),
        "candidate": ms.Candidate(statistics, papers["anna"].encoded, anna.sign("statistics", statistics)),
        "ping": ms.Ping(),
    }  # fmt: skip
    rows = np.arange(-3, 5, dtype=np.float32)
    shown = {
        "x0": base.tobytes(),
        "x0_name": name_of(base.data),
        "layout_flat_4": Layout.flat(4).digest,
        "payload_anna": payloads["anna"],
        "payload_bert": payloads["bert"],
        "root_anna": name_of(payloads["anna"]),
        "root_bert": name_of(payloads["bert"]),
        "payload_bf16": compression.encode("bf16", vectors["anna"], base, n_parameters=PARAMETERS).tobytes(),
        "payload_int8": compression.encode("int8", rows, np.zeros_like(rows), n_parameters=8).tobytes(),
        "payload_int4": compression.encode("int4", rows, np.zeros_like(rows), n_parameters=8).tobytes(),
        "payload_sign": compression.encode("sign:0.25", rows, np.zeros_like(rows), n_parameters=8).tobytes(),
        "payload_topk": compression.encode("topk:0.25", rows, np.zeros_like(rows), n_parameters=8).tobytes(),
        "expected_name": expected_name(name_of(payloads["anna"]), name_of(payloads["bert"]), 0.5, 1.5, 0.5),
        "q": q.tobytes(),
        "replica_anna": replica_name(name_of(base.data), name_of(payloads["anna"]), "model", "f32"),
        "replica_bert": replica_name(name_of(base.data), name_of(payloads["bert"]), "model", "f32"),
        **{f"sum_{name}": value for name, value in sums.items()},
        "sum_of_chunks": sum_of(bytes(range(256)) * 241),
        "q_agreed": agreement(*sums.values()),
        "anna_after": moved["anna"].tobytes(),
        "bert_after": moved["bert"].tobytes(),
        "flow_anna": flow.tobytes(),
        "proposal_manifest": proposal,
        "proposal_digest": answers,
        "reply_manifest": reply,
        "receipt": receipt,
        "abort_note": abort,
        "normalisation": statistics,
        "normalisation_digest": hashlib.sha256(statistics).digest(),
        "signed_aborted_example": ms.to_sign("receipt", b"\x01\x02\x03"),
        "chunk_tree_of_3": Tree.of(bytes(2 * CHUNK + 1)).root,
        **{f"message_{name}": ms.encode(message) for name, message in said.items()},
    }
    return {name: value.hex() for name, value in shown.items()}


def msgspec_normalisation() -> bytes:
    return ms.encode(ms.Normalisation(FEDERATION, "anna", ("anna", "bert"), (40.0, 38.0), (54.5, 0.25), (9.0, 1.0)))


def agreed(folder: Path) -> list[str]:
    """What is agreed beforehand, worked out: the layout and x^0 of a task, a membership's digest, a key file."""
    task, toy = load("breast-cancer"), load("toy")
    layout = fitting.layout_of(task)
    start = fitting.start(task, layout, 0)
    save_key(folder / "psk.key", bytes.fromhex(SESSION["psk"]), None, "psk")
    members = [
        {
            "id": name, "identity": certificate.identity.hex(), "mass": MASS[name],
            "certificate": base64.b64encode(certificate.encoded).decode(),
        }
        for name, role in (("anna", "initiator"), ("bert", "responder"))
        for certificate in [Certificate.decode(bytes.fromhex(SESSION[f"{role}_certificate"]))]
    ]  # fmt: skip
    tree = {
        "version": 1, "federation": FEDERATION.hex(), "members": members,
        "study": {"task": "toy", "holdout_key": bytes(32).hex()},
        "layout": fitting.layout_of(toy).digest.hex(), "x0": name_of(fitting.start(toy, fitting.layout_of(toy), 0).data).hex(),
    }  # fmt: skip
    digest = Membership.parse(json.dumps(tree)).digest
    key_file = (folder / "psk.key").read_text().split()[-1]
    return [layout.digest.hex(), start.tobytes().hex(), name_of(start.data).hex(), digest.hex(), key_file]


def shown_in(path: Path) -> str:
    return re.sub(r"\s", "", path.read_text())


def test_the_worked_exchange_is_the_golden_one() -> None:
    assert example() == json.loads(GOLDEN.read_text())


def test_every_byte_that_the_protocol_document_shows_is_made_by_the_code(tmp_path: Path) -> None:
    """Every value in its blocks is a golden one, or worked out anew."""
    golden = [*json.loads(GOLDEN.read_text()).values(), *SESSION["path_1"], *agreed(tmp_path)]
    known = "|".join(golden + [value for value in SESSION.values() if isinstance(value, str)])
    blocks = re.findall(r"```hex\n(.*?)```", (ROOT / "docs" / "protocol.md").read_text(), re.DOTALL)
    shown = [re.sub(r"#.*|\s", "", part) for block in blocks for part in re.split(r"\n\n|\n(?=\S+ = )", block)]
    assert len(shown) > 20
    strangers = [text for text in shown if text.partition("=")[2] not in known]
    assert not strangers


def test_every_golden_message_is_shown_in_the_protocol_document() -> None:
    text = shown_in(ROOT / "docs" / "protocol.md")
    assert not [name for name, value in json.loads(GOLDEN.read_text()).items() if value not in text]


def test_what_is_agreed_beforehand_is_worked_out_in_the_protocol_document(tmp_path: Path) -> None:
    text = shown_in(ROOT / "docs" / "protocol.md")
    assert not [value for value in agreed(tmp_path) if value not in text]


def test_x0_is_what_the_protocol_document_says() -> None:
    """The rule of section 2 in plain Python numbers."""
    drawn = [2 * (int(r) >> 40) + 1 - 2**24 for r in np.random.PCG64(0).random_raw(30)]
    expected = np.array([value * 2.0**-24 * (1 / math.sqrt(30)) for value in drawn] + [0.0], np.float32)
    task = load("breast-cancer")
    assert fitting.start(task, fitting.layout_of(task), 0).tobytes() == expected.tobytes()


def test_every_field_of_the_federation_file_is_in_the_protocol_document() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    fields = {name for model in (Membership, Member, Topology, Study) for name in model.model_fields}
    assert not sorted(name for name in fields if not re.search(rf"`{name}\b", text))
    defaults = {
        name: re.escape(json.dumps(field.get_default(call_default_factory=True)))
        for name, field in Study.model_fields.items()
        if not field.is_required()
    }
    assert not [name for name, value in defaults.items() if not re.search(rf"`{name}`[^|]*\| `?{value}`? \|", text)]


def test_every_limit_is_in_the_protocol_document() -> None:
    text = re.sub(r"(?<=\d),(?=\d{3})", "", (ROOT / "docs" / "protocol.md").read_text())
    numbers = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert not [name for name, value in numbers.items() if not re.search(rf"\b{value}\b", text)]


def test_every_field_and_every_reason_is_in_the_protocol_document() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    kinds = [kind for kind in vars(ms).values() if isinstance(kind, type) and issubclass(kind, ms.Frozen)]
    fields = {field for kind in kinds for field in kind.__struct_fields__}
    assert not sorted(word for word in fields | REASONS if f"`{word}`" not in text)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(path: Path) -> None:
    named = set(re.findall(r"`((?:gossipfl|tests|docs|\.ci|topologies|simulations)/[\w./-]*\w)`", path.read_text()))
    assert not sorted(name for name in named if not (ROOT / name).exists())


def test_every_room_has_its_line_in_the_floor_plan() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [path for path in (ROOT / "gossipfl").rglob("*.py") if not path.name.startswith("__")]
    assert not sorted(str(path) for path in rooms if not re.search(rf"[`/]{path.name}`", text))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_is_there(path: Path) -> None:
    there = {name for file in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    files = {file.stem for file in (ROOT / "tests").glob("test_*.py")}
    assert not sorted(set(re.findall(r"`(test_\w+)`", path.read_text())) - there - files)


def test_the_golden_session_is_still_readable_by_the_stranger_of_the_document() -> None:
    """The handshake of docs/protocol.md, from the responder's side, with nothing but what it shows."""
    keys = NodeKeys(bytes.fromhex(SESSION["responder_secret"]))
    session = Session(
        initiator=False, federation=FEDERATION, keys=keys, certificate=bytes.fromhex(SESSION["responder_certificate"]),
        psk=bytes.fromhex(SESSION["psk"]), ephemeral=bytes.fromhex(SESSION["responder_ephemeral"]),
        admit=lambda certificate: certificate.member, expect=None, started=Instant(0, 1_800_000_000 * 10**9),
    )  # fmt: skip
    now = Instant(0, 1_800_000_000 * 10**9)
    answer = session.receive(bytes.fromhex(SESSION["message_1"]), now)
    assert [event.record.hex() for event in answer if hasattr(event, "record")] == [SESSION["message_2"]]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(example(), indent=1) + "\n")
