"""Planted faults: each one a textual patch of the code under test, with the law that must notice it.

    python tests/mutants.py --seeds 1000 [--only NAME] [--out FILE]

copies the package into a temporary folder, applies one patch, runs seeds of the swarm there until that law breaks, and
prints a table; it resumes. A patch that no longer applies is an error. The unmutated code runs on the same seeds with
`--only none`. A net with a hole is worth little: docs/mutants.md holds what came out.
"""

# ruff: noqa: E501
from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
HOURS: Final = 0.05
NODES: Final = (3, 6)

SEARCH: Final = """
import gc, json, sys
from gossipfl.simulator import invariants, trial
law, first, last, hours, low, high = sys.argv[1], *map(int, sys.argv[2:4]), float(sys.argv[4]), *map(int, sys.argv[5:7])

class Seen(BaseException):  # goes through all that catches exceptions: a fault that makes a history endless is seen, too
    pass

def see(checker, node, detail, whole=invariants.Checker.broken):
    whole(checker, node, detail)
    if checker.name == law:
        raise Seen(detail)

invariants.Checker.broken = see
for seed in range(first, last):
    try:
        outcome = trial.run(trial.draw(seed, hours, (low, high)), twice=True if law == "same-again" else None)
        broken = {name: one.detail for name, one in outcome.violations.items()}
        broken |= {name: error for name, error in outcome.errors.items()}
    except Seen as seen:
        broken = {law: str(seen)}
    except Exception as error:
        broken = {"never-raises": f"{type(error).__name__}: {error}"}
    print(json.dumps({"seed": seed, "broken": broken}), flush=True)
    gc.collect()  # a world is a ring of references, and frozen while it runs
    if law in broken or (law == "" and broken):
        break
"""


@dataclass(frozen=True)
class Mutant:
    """One planted fault: in `file`, `old` (which stands there once) becomes `new`; `law` must notice."""

    name: str
    law: str
    file: str
    old: str
    new: str
    hours: float = HOURS

    @property
    def mark(self) -> str:
        return hashlib.sha256(f"{self.file}\0{self.old}\0{self.new}\0{self.law}".encode()).hexdigest()[:16]


EXCHANGE, GREETING, CORE = "protocol/exchange.py", "protocol/greeting.py", "protocol/core.py"
LINK, PEER, TERMS = "protocol/link.py", "protocol/peer.py", "protocol/terms.py"

MUTANTS: Final = (
    Mutant("proposal-before-disk", "disk-first", EXCHANGE,
           "        self.commit(fact, links=(link,))\n        self.offer(conn)\n",
           "        self.links[peer] = link\n        self.offer(conn)\n        self.commit(fact, links=(link,))\n"),
    Mutant("reply-before-disk", "disk-first", EXCHANGE,
           "        self.commit(*facts, links=(link,))\n        if conn and conn.greeted:\n            self.send_reply(conn, answered)\n",
           "        if conn and conn.greeted:\n            self.send_reply(conn, answered)\n        self.commit(*facts, links=(link,))\n"),
    Mutant("receipt-before-disk", "disk-first", EXCHANGE,
           "        self.commit(*facts, links=(link,))\n        self.neighbour(peer).answered()\n        done =",
           "        self.neighbour(peer).answered()\n        done ="),
    Mutant("greeting-hides-doubt", "disk-first", LINK,
           "self.epoch, self.done, pending.k if pending else 0, pending.digest if pending else b\"\", self.last",
           "self.epoch, self.done, 0, b\"\", self.last"),
    Mutant("retry-with-new-bytes", "disk-first", EXCHANGE,
           "            self.send(conn, ms.Propose(pending.manifest, pending.signature))",
           "            again = ms.decode_manifest(pending.manifest)\n"
           "            raw = ms.encode(msgspec.structs.replace(again, gradient=again.gradient + self.now.mono_ns))\n"
           "            self.send(conn, ms.Propose(raw, self.settings.sign(\"manifest\", raw)))"),
    Mutant("content-not-synced", "disk-opens", "store/files.py",
           "                    self.disk.fsync(blob.path)", "                    pass"),
    Mutant("folder-not-synced", "disk-opens", "store/files.py",
           "            self.disk.fsync_dir()", "            pass"),
    Mutant("removed-before-rows", "disk-opens", "store/__init__.py",
           "            self.files.make_durable(keep)\n            if rows or facts:",
           "            self.files.make_durable(keep)\n            self.files.remove_except(live | keep)\n"
           "            self.files.disk.fsync_dir()\n            if rows or facts:"),
    Mutant("payload-not-kept", "disk-opens", LINK,
           "        if self.pending:\n            found.add(self.pending.root)\n", ""),
    Mutant("recipient-not-checked", "acceptance", TERMS,
           "        if (manifest.sender, manifest.recipient, manifest.federation) != (\n            conn.peer,\n            self.me,\n",
           "        if (manifest.sender, manifest.sender, manifest.federation) != (\n            conn.peer,\n            manifest.sender,\n"),
    Mutant("reply-not-cached", "honest-agree", LINK,
           "    if answered is not None and k == answered.k == link.done and proposal == answered.proposal:",
           "    if answered is None and k == link.done:"),
    Mutant("retry-not-answered", "doubts-end", EXCHANGE,
           "            self.send_reply(conn, link.answered)\n            return\n", "            return\n"),
    Mutant("sequence-not-persisted", "high-water", EXCHANGE, "pending=pending, high=k, sent", "pending=pending, sent"),
    Mutant("refused-k-used-again", "k-once", GREETING,
           "replace(link, pending=None),))\n        self.on_let_go", "replace(link, pending=None, high=link.done),))\n        self.on_let_go"),
    Mutant("round-forgotten", "high-water", PEER,
           "self.stage, self.local_round, self.released = course.stage, course.local_round, course.released",
           "self.stage, self.local_round, self.released = course.stage, 0, course.released"),
    Mutant("half-applied-twice", "exactly-once", "workbench.py",
           "mixing.apply_piece(model[piece], q, mass, lower, after)",
           "mixing.apply_piece(model[piece], q + q, mass, lower, after)"),
    Mutant("one-half-not-applied", "exactly-once", EXCHANGE,
           "        self.current[space] = mixed.model\n",
           "        self.current[space] = mixed.model if mixed.payload else self.current[space]\n"),
    Mutant("update-on-the-old-model", "exactly-once", PEER,
           "        displacement = event.displacement\n"
           "        self.change(lambda job: ev.Absorb(job, self.current[\"model\"], displacement), self.absorbed, displacement)",
           "        displacement, model = event.displacement, self.saved[0] or self.current[\"model\"]\n"
           "        self.change(lambda job: ev.Absorb(job, model, displacement), self.absorbed, displacement)"),
    Mutant("update-lost", "exactly-once", "workbench.py",
           "np.add(model[piece], displacement[piece], out=moved.part(piece))",
           "np.add(model[piece], 0.0, out=moved.part(piece))"),
    Mutant("masses-swapped", "exactly-once", "workbench.py",
           "mixing.flow_share(job.gamma, m_lo, m_hi, clip)", "mixing.flow_share(job.gamma, m_lo, m_lo, clip)"),
    Mutant("model-in-another-transaction", "exactly-once", CORE,
           "rows = [(\"link\", link.peer, encode_row(link)) for link in links] + self.state_rows()",
           "rows = [(\"link\", link.peer, encode_row(link)) for link in links] + ([] if links else self.state_rows())"),
    Mutant("replica-name-without-reference", "exactly-once", "digest.py",
           'hashlib.sha256(b"\\2" + reference + root +', 'hashlib.sha256(b"\\2" + root + root +'),
    Mutant("references-swapped", "exactly-once", EXCHANGE,
           "agreed = References(mixed.own, mixed.theirs)", "agreed = References(mixed.theirs, mixed.own)"),
    Mutant("leak-at-one-end", "opposite-flows", EXCHANGE,
           "job, link, reply, proposal.gradient, reply.kappa, reply.tau, reply.leak, proposal, **known",
           "job, link, reply, proposal.gradient, reply.kappa, reply.tau, 1.0, proposal, **known"),
    Mutant("kappa-of-ones-own", "opposite-flows", EXCHANGE,
           "job, link, reply, proposal.gradient, reply.kappa, reply.tau, reply.leak, proposal, **known",
           "job, link, reply, proposal.gradient, proposal.kappa, reply.tau, reply.leak, proposal, **known"),
    Mutant("settled-anew-for-nothing", "honest-agree", LINK,
           "        if _answered(a, b) or _answered(b, a):\n            return None\n", ""),
    Mutant("both-proposals-stand", "doubts-end", LINK, "    return me < peer\n", "    return True\n"),
    Mutant("neither-proposal-stands", "honest-agree", LINK, "    return me < peer\n", "    return False\n"),
    Mutant("no-receipt", "doubts-end", EXCHANGE,
           "        if conn and conn.greeted:\n            self.send(conn, done)\n        elif conn:\n            conn.due = done\n", ""),
    Mutant("dead-session-not-noticed", "exchanges-again", GREETING,
           "IDLE_NS: Final = 60_000_000_000", "IDLE_NS: Final = 10**18"),
    Mutant("waits-for-ever", "bounds", "protocol/neighbours.py",
           "BACKOFF_MAX_NS: Final = 60_000_000_000", "BACKOFF_MAX_NS: Final = 10**16"),
    Mutant("waits-not-doubled", "dials", "protocol/neighbours.py",
           "min(BACKOFF_MAX_NS, max(BACKOFF_FIRST_NS, 2 * self.backoff_ns))", "BACKOFF_FIRST_NS"),
    Mutant("nothing-removed", "bounds", "store/files.py",
           "            dead = sorted(set(self._blobs).difference(*live, self._pins))",
           "            dead: list[bytes] = []"),
    Mutant("size-not-checked", "bounds", TERMS,
           "        if manifest.size != size or not manifest.size:", "        if not manifest.size:"),
    Mutant("sessions-not-closed", "bounds", GREETING,
           "        self.conns.pop(conn.id, None)\n", ""),
    Mutant("core-raises", "never-raises", EXCHANGE,
           "        if pending is None or pending.abort or conn.peer in self.mixing or conn.reply:\n",
           "        if pending.abort or conn.peer in self.mixing or conn.reply:\n"),
    Mutant("given-back-twice", "exactly-once", GREETING,
           "links=(msgspec.structs.replace(link, owed=link.owed[paid:]),)", "links=(link,)"),
    Mutant("never-given-back", "statistics-end", GREETING, "        if not self.link(peer).owed:\n", "        if True:\n"),
    Mutant("chance-of-its-own", "same-again", "protocol/neighbours.py",
           "    return ordered[min(int(random.random() * len(ordered)), len(ordered) - 1)]",
           "    return ordered[id(object()) // 16 % len(ordered)]"),
    Mutant("does-not-mix", "consensus", "protocol/terms.py",
           "        return self.settings.gamma if space == \"model\" else 1.0",
           "        return self.settings.gamma * 1e-3 if space == \"model\" else 1.0"),
)  # fmt: skip


def apply(mutant: Mutant, package: Path) -> None:
    """Plant it. Raises ValueError where its text does not stand there exactly once."""
    path = package / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"mutant {mutant.name}: its text stands {text.count(mutant.old)} times in {mutant.file}; write it anew")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def search(mutant: Mutant | None, seeds: range, hours: float = HOURS, nodes: tuple[int, int] = NODES) -> Iterator[dict[str, Any]]:
    """One line a seed, in a process with its own copy of the package, until the law breaks."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        shutil.copytree(ROOT / "gossipfl", Path(folder) / "gossipfl", ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            apply(mutant, Path(folder) / "gossipfl")
        law = "" if mutant is None else mutant.law
        arguments = [law, str(seeds.start), str(seeds.stop), str(hours), str(nodes[0]), str(nodes[1])]
        with subprocess.Popen(
            [sys.executable, "-c", SEARCH, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)


def found(mutant: Mutant, seeds: range) -> dict[str, Any]:
    """Where the law breaks first, and what else did until then."""
    others: dict[str, int] = {}
    last = seeds.start
    for line in search(mutant, seeds, mutant.hours):
        last = line["seed"]
        for name in line["broken"]:
            others.setdefault(name, last)
        if mutant.law in line["broken"]:
            detail = line["broken"][mutant.law]
            return {"name": mutant.name, "mark": mutant.mark, "law": mutant.law, "seed": last, "detail": detail, "others": others}
    return {"name": mutant.name, "mark": mutant.mark, "law": mutant.law, "seed": None, "upto": last, "detail": "", "others": others}


def as_it_is(seeds: range, out: Path) -> int:
    """The code without a fault on the same seeds; what has been run of it already, on the very same code, is gone on from."""
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted((ROOT / "gossipfl").rglob("*.py")))).hexdigest()[:16]
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    upto = max((line["upto"] for line in lines if line["mark"] == code), default=-1)
    broken = {name: seed for line in lines if line["mark"] == code for name, seed in line["others"].items()}
    with out.open("a", encoding="utf-8") as file:
        for line in search(None, seeds[upto + 1 :]):
            broken = dict.fromkeys(line["broken"], line["seed"]) | broken
            one = {"name": "none", "mark": code, "law": "", "seed": None, "upto": line["seed"], "detail": "", "others": broken}
            file.write(json.dumps(one) + "\n")
            file.flush()
    print("\n".join(f"{name} breaks at seed {seed}" for name, seed in broken.items()) or f"no law breaks in {len(seeds)} seeds")
    return int(bool(broken))


def table(results: Sequence[dict[str, Any]]) -> str:
    lines = ["| mutant | law that must break | seeds needed | first seen |", "|---|---|---|---|"]
    for one in results:
        needed = "**not found**" if one["seed"] is None else str(one["seed"] + 1)
        lines.append(f"| `{one['name']}` | {one['law']} | {needed} | {one['detail'].replace('|', '/')[:110]} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant faults, one at a time, and see whether the swarm notices.")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--only", action="append", default=[], help="a mutant's name, or none for the code as it is")
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"), help="file that gets one line a mutant; resumes")
    parser.add_argument("--processes", type=int, default=1)
    chosen = parser.parse_args()
    seeds = range(chosen.seeds)
    if "none" in chosen.only:
        return as_it_is(seeds, chosen.out)
    wanted = [one for one in MUTANTS if not chosen.only or one.name in chosen.only]
    lines = chosen.out.read_text(encoding="utf-8").splitlines() if chosen.out.exists() else []
    held = {line["mark"]: line for line in map(json.loads, lines)}
    held = {mark: line for mark, line in held.items() if line["seed"] is not None or line["upto"] >= chosen.seeds - 1}
    left = [one for one in wanted if one.mark not in held]
    with ThreadPoolExecutor(chosen.processes) as pool, chosen.out.open("a", encoding="utf-8") as file:
        for result in pool.map(lambda one: found(one, seeds), left):
            held[result["mark"]] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
            print(f"{result['name']}: {'not found' if result['seed'] is None else 'seed ' + str(result['seed'])}", file=sys.stderr)
    results = [held[one.mark] for one in wanted]
    print(table(results))
    return int(any(one["seed"] is None for one in results))


if __name__ == "__main__":
    sys.exit(main())
