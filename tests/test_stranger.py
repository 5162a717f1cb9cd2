"""A second peer, written from docs/protocol.md alone, makes one whole exchange with a real node.

The stranger's half imports nothing of gossipfl: hashlib, hmac, struct, numpy and libsodium's primitives. Only the world that
it is put into, and the node that it meets, are ours.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Any

import nacl.bindings as sodium
import numpy as np
from blake3 import blake3
from worlds import PSK, certificate_of, federation, keys_of, toy_specs

from gossipfl.simulator.network import End, World

CHUNK = 61_440


# ---- section 1: names


def name_of(blob: bytes) -> bytes:
    level = [blake3(blob[at : at + CHUNK]).digest() for at in range(0, len(blob), CHUNK)]
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\1" + level[at] + level[at + 1]).digest() for at in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) & ~1 :]
    return level[0]


def sum_of(blob: bytes) -> bytes:
    """Of eight words."""
    weights = struct.unpack("<8Q", b"".join(hashlib.sha256(struct.pack("<Q", n)).digest() for n in (0, 1)))
    words = struct.unpack(f"<{len(blob) // 8}Q", blob)
    found = sum((w | 1) * (word ^ word >> 29) for w, word in zip(weights, words, strict=True)) % 2**64
    return hashlib.sha256(struct.pack("<QQ", len(blob), found)).digest()


# ---- section 3: signatures


def sign(seed: bytes, kind: str, payload: bytes) -> bytes:
    secret = sodium.crypto_sign_seed_keypair(seed)[1]
    return sodium.crypto_sign(framed(kind, payload), secret)[:64]


def verifies(public: bytes, kind: str, payload: bytes, signature: bytes) -> bool:
    return bool(sodium.crypto_sign_open(signature + framed(kind, payload), public) == framed(kind, payload))


def framed(kind: str, payload: bytes) -> bytes:
    return b"gossipfl/" + kind.encode() + b"/v1\0" + struct.pack(">Q", len(payload)) + payload


# ---- section 5: Noise_IKpsk2, the initiator's half


class Noise:
    def __init__(self, prologue: bytes, psk: bytes, static: bytes, ephemeral: bytes, responder: bytes) -> None:
        self.ck = self.h = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2b".ljust(64, b"\0")
        self.psk, self.s, self.e, self.rs = psk, static, ephemeral, responder
        self.mix_hash(prologue)
        self.mix_hash(responder)

    def mix_hash(self, data: bytes) -> None:
        self.h = hashlib.blake2b(self.h + data).digest()

    def hkdf(self, material: bytes, outputs: int) -> list[bytes]:
        key, found = hmac.new(self.ck, material, hashlib.blake2b).digest(), [b""]
        for number in range(1, outputs + 1):
            found.append(hmac.new(key, found[-1] + bytes([number]), hashlib.blake2b).digest())
        return found[1:]

    def mix_key(self, material: bytes) -> None:
        self.ck, key = self.hkdf(material, 2)
        self.key = key[:32]

    def token_e(self, public: bytes) -> None:
        self.mix_hash(public)
        self.mix_key(public)

    def seal(self, plain: bytes) -> bytes:
        sealed: bytes = sodium.crypto_aead_chacha20poly1305_ietf_encrypt(plain, self.h, bytes(12), self.key)
        self.mix_hash(sealed)
        return sealed

    def open(self, sealed: bytes) -> bytes:
        plain: bytes = sodium.crypto_aead_chacha20poly1305_ietf_decrypt(sealed, self.h, bytes(12), self.key)
        self.mix_hash(sealed)
        return plain

    def message_1(self, payload: bytes) -> bytes:
        e, s = sodium.crypto_scalarmult_base(self.e), sodium.crypto_scalarmult_base(self.s)
        self.token_e(e)
        self.mix_key(sodium.crypto_scalarmult(self.e, self.rs))
        sealed = self.seal(s)
        self.mix_key(sodium.crypto_scalarmult(self.s, self.rs))
        return bytes(e + sealed + self.seal(payload))

    def message_2(self, message: bytes) -> bytes:
        e = message[:32]
        self.token_e(e)
        self.mix_key(sodium.crypto_scalarmult(self.e, e))
        self.mix_key(sodium.crypto_scalarmult(self.s, e))
        self.ck, mixed, key = self.hkdf(self.psk, 3)
        self.mix_hash(mixed)
        self.key = key[:32]
        payload = self.open(message[32:])
        self.sending, self.receiving = (key[:32] for key in self.hkdf(b"", 2))
        return payload


# ---- section 7: MessagePack, as much as there is


def pack(value: Any) -> bytes:
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, int):
        if value < 128:
            return bytes([value])
        for head, width in ((0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8)):
            if value < 256**width:
                return bytes([head]) + value.to_bytes(width, "big")
    if isinstance(value, bytes):
        size = len(value)
        return (bytes([0xC4, size]) if size < 256 else b"\xc5" + struct.pack(">H", size)) + value
    if isinstance(value, str):
        text = value.encode()
        return (bytes([0xA0 | len(text)]) if len(text) < 32 else bytes([0xD9, len(text)])) + text
    parts = b"".join(pack(each) for each in value)
    return (bytes([0x90 | len(value)]) if len(value) < 16 else b"\xdc" + struct.pack(">H", len(value))) + parts


def unpack(data: bytes) -> Any:
    value, end = unpack_at(data, 0)
    assert end == len(data)
    return value


def unpack_at(data: bytes, at: int) -> tuple[Any, int]:
    head, at = data[at], at + 1
    if head < 0x80:
        return head, at
    if head < 0xA0 or head == 0xDC:
        count, at = (head & 15, at) if head < 0xA0 else (struct.unpack_from(">H", data, at)[0], at + 2)
        items = []
        for _ in range(count):
            item, at = unpack_at(data, at)
            items.append(item)
        return items, at
    if head < 0xC0 or head == 0xD9:
        size, at = (head & 31, at) if head < 0xC0 else (data[at], at + 1)
        return data[at : at + size].decode(), at + size
    if head in (0xC4, 0xC5):
        width = head - 0xC3
        size = int.from_bytes(data[at : at + width], "big")
        return data[at + width : at + width + size], at + width + size
    if head == 0xCB:
        return struct.unpack_from(">d", data, at)[0], at + 8
    width = 1 << (head - 0xCC)
    return int.from_bytes(data[at : at + width], "big"), at + width


# ---- sections 6 to 12: the stranger


class Stranger:
    """anna: dials bert, proposes once, in the model space, codec f64, without correction."""

    def __init__(self, world: World, agreed: dict[str, Any], model: Any) -> None:
        self.world, self.agreed, self.model = world, agreed, model
        secret = keys_of("anna").secret
        self.seed = secret[:32]
        prologue = b"gossipfl.v1\0" + agreed["federation"]
        self.noise = Noise(prologue, agreed["psk"], secret[32:], hashlib.sha256(b"once").digest(), agreed["bert_noise"])
        self.alive, self.name, self.ends = True, "anna", {}
        self.sent = self.heard = 0
        self.up = False
        self.said: list[str] = []
        self.incoming = b""
        self.done = False

    def dial(self) -> None:
        self.end.write(self.noise.message_1(self.agreed["anna_certificate"]))

    def hear(self, end: End, record: bytes) -> None:
        if not self.up:
            assert self.noise.message_2(record) == self.agreed["bert_certificate"]
            self.up = True
            view = [0, 0, 0, b"", b""]
            about = [1, self.agreed["membership"], self.agreed["layout"], "observing", b"", view, [], self.agreed["wall_s"]]
            self.say("hello", *about)
            return
        nonce = bytes(4) + struct.pack("<Q", self.heard)
        self.heard += 1
        plain = sodium.crypto_aead_chacha20poly1305_ietf_decrypt(record, b"", nonce, self.noise.receiving)
        if plain[0] == 1:
            self.chunk(plain)
        else:
            tag, *fields = unpack(plain[1:])
            self.said.append(tag)
            getattr(self, "on_" + tag)(*fields)

    def seal(self, plain: bytes) -> None:
        nonce = bytes(4) + struct.pack("<Q", self.sent)
        self.sent += 1
        self.end.write(sodium.crypto_aead_chacha20poly1305_ietf_encrypt(plain, b"", nonce, self.noise.sending))

    def say(self, *message: Any) -> None:
        self.seal(b"\0" + pack(message))

    def on_hello(self, version: int, digest: bytes, layout: bytes, *rest: Any) -> None:
        agreed = self.agreed
        assert (version, digest, layout) == (1, agreed["membership"], agreed["layout"])
        self.payload = self.model.astype("<f8").tobytes()  # delta against x^0 = zeros
        self.root = name_of(self.payload)
        self.manifest = pack([
            agreed["federation"], 1, hashlib.sha256(agreed["anna_certificate"]).digest(), "anna", "bert", 0, 1, 0, "propose",
            "model", "observing", "f64", name_of(bytes(64)), len(self.payload), self.root, b"", agreed["mass"]["anna"],
            agreed["gamma"], 0.0, float("inf"), 0.0, b"", 1.0, 1.0, 1.0, b"",
        ])  # fmt: skip
        self.say("propose", self.manifest, sign(self.seed, "manifest", self.manifest))

    def on_fetch(self, root: bytes, from_chunk: int) -> None:
        assert (root, from_chunk) == (self.root, 0)
        self.seal(b"\1" + root + struct.pack(">I", 0) + b"\0" + self.payload)  # one chunk: its path is empty

    def on_reply(self, manifest: bytes, signature: bytes, receipt: bytes, receipt_signature: bytes) -> None:
        public, mine = self.agreed["bert_signing"], hashlib.sha256(self.manifest).digest()
        assert verifies(public, "manifest", manifest, signature)
        assert verifies(public, "receipt", receipt, receipt_signature)
        assert receipt == pack([self.agreed["federation"], "bert", "anna", 0, 1, mine, self.root])
        fields = unpack(manifest)
        assert fields[3:9] == ["bert", "anna", 0, 1, 0, "reply"]
        assert fields[21] == mine
        assert fields[12] == name_of(bytes(64))
        self.reply, self.reply_root, self.agreed_q = manifest, fields[14], fields[25]
        self.say("fetch", self.reply_root, 0)

    def chunk(self, plain: bytes) -> None:
        assert plain[1:38] == self.reply_root + bytes(5)
        assert name_of(plain[38:]) == self.reply_root
        theirs = np.frombuffer(plain[38:], "<f8")
        mass = self.agreed["mass"]
        s = self.agreed["gamma"] * (mass["anna"] * mass["bert"] / (mass["anna"] + mass["bert"])) * 1.0
        q = (theirs - self.model) * s  # anna is the lower: y_hi is the peer's
        computed = [sum_of(vector.tobytes()) for vector in (self.model, theirs, q)]
        assert hashlib.sha256(b"".join(computed)).digest() == self.agreed_q
        self.model = self.model + q / mass["anna"]
        self.expected = theirs - q / mass["bert"]
        of = hashlib.sha256(self.reply).digest()
        done = pack([self.agreed["federation"], "anna", "bert", 0, 1, of, self.reply_root])
        self.say("done", done, sign(self.seed, "receipt", done))
        self.done = True

    def on_refusal(self, k: int, reason: str, detail: str) -> None:
        raise AssertionError(f"bert refuses {k}: {reason}: {detail}")

    def on_ping(self) -> None: ...


def test_a_peer_written_from_the_document_alone_makes_an_exchange_with_a_node() -> None:
    members = federation({"anna": 10, "bert": 30})
    begin = np.arange(8) / 3.0
    specs = toy_specs(
        members, lambda name: None, begin=lambda name: begin, trains=False, turn_ns=10**18, dialable=lambda name: frozenset()
    )
    world = World({"bert": specs["bert"]}, seed=1)
    world.run(2)
    bert = world.nodes["bert"]
    papers = {name: certificate_of(name) for name in ("anna", "bert")}
    agreed = {
        "federation": members.federation_id, "psk": PSK, "membership": members.digest, "layout": members.layout_digest,
        "bert_noise": papers["bert"].noise, "bert_signing": papers["bert"].signing, "gamma": members.study.gamma,
        "anna_certificate": papers["anna"].encoded, "bert_certificate": papers["bert"].encoded,
        "mass": {name: members.mass(name) for name in papers}, "wall_s": world.now().wall_ns // 10**9,
    }  # fmt: skip
    stranger = Stranger(world, agreed, np.array([0.5, -1, 2, 0, 1e-3, 7, -3, 1.25]))
    world.nodes["anna"] = stranger  # type: ignore[assignment]
    near = End(10**6, stranger, True, None, "bert")  # type: ignore[arg-type]
    far = world.end(bert, stranger, False)  # type: ignore[arg-type]
    world.join(near, far)
    stranger.end = near  # type: ignore[attr-defined]
    stranger.dial()
    world.run(5)
    assert stranger.said == ["hello", "fetch", "reply"]
    assert stranger.done
    link = bert.peer.link("anna")
    assert (link.epoch, link.done, link.exchanges) == (0, 1, 1)
    assert link.answered is not None
    assert not link.answered.open
    assert world.model("bert").tobytes() == stranger.expected.tobytes()
    mean = (members.mass("anna") * stranger.model + members.mass("bert") * stranger.expected) / 2
    before = (members.mass("anna") * np.array([0.5, -1, 2, 0, 1e-3, 7, -3, 1.25]) + members.mass("bert") * begin) / 2
    np.testing.assert_allclose(mean, before, atol=1e-15)
