"""`gossipfl.simulate`: a task, so many nodes, a topology, rounds and faults in; a Run out. The door of the engine.

What would not fit into memory is refused before it begins; Ctrl-C leaves what there is; a checkpoint goes on as if nothing
had happened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from gossipfl import defaults
from gossipfl import topology as topologies
from gossipfl.errors import Misuse
from gossipfl.learning import compression as codecs
from gossipfl.learning.parameters import Layout
from gossipfl.learning.training import Plan
from gossipfl.simulator.pool import cores
from gossipfl.simulator.vectorized import checkpoint as disk
from gossipfl.simulator.vectorized.course import Course, Progress
from gossipfl.simulator.vectorized.draws import bits, stream
from gossipfl.simulator.vectorized.engine import Engine, Listener, Settings, block_of
from gossipfl.simulator.vectorized.faults import Faults, Weather
from gossipfl.simulator.vectorized.judging import SAMPLE, Judge
from gossipfl.simulator.vectorized.meetings import Floats, Links
from gossipfl.simulator.vectorized.methods import Method, method_of
from gossipfl.simulator.vectorized.mixing import Mixer
from gossipfl.simulator.vectorized.outages import Outages
from gossipfl.simulator.vectorized.posts import contraction
from gossipfl.simulator.vectorized.replicas import Replicas
from gossipfl.simulator.vectorized.rows import TURN_BYTES, UNPACK_BYTES, Rows
from gossipfl.simulator.vectorized.run import Run
from gossipfl.simulator.vectorized.shards import Shard, Together
from gossipfl.simulator.vectorized.state import State
from gossipfl.simulator.vectorized.watching import Watching
from gossipfl.simulator.vectorized.ways import CHOICES, Choice, Model, choose
from gossipfl.tasks import Site, Task, load
from gossipfl.tasks.fitting import layout_of, prepare, start
from gossipfl.tasks.normalisation import Normaliser, own_normaliser
from gossipfl.tasks.task import Data, pooled
from gossipfl.topology import schedules, spectrum
from gossipfl.topology.graphs import Graph

COMPRESSIONS: Final = f"none, {', '.join(codecs.CODECS)}, or a share of the largest such as topk:0.1 or sign:0.1"
"""what `compression` may be, in words"""

HEAVIEST: Final = defaults.HEAVIEST
"""A mass is at most this many times the median's, unless said otherwise: as in a deployed membership."""

SHARE: Final = 0.9
"""Of the memory that is free now: an estimate above it is refused."""

EVALUATIONS: Final = 10

LONG: Final = 0.95
"""Momentum from which on the ledger has run away where little is sent; with .9 it has not."""

STALE: Final = 4.5
"""theta over the share of the numbers that a round's exchanges send, above which it has: with a twentieth, one exchange and theta
1/4 (5), with .07, three and 1 (4.8); not with .07, four and 1 (3.6), a twentieth, six and 1 (3.3), a tenth and one (2.5)."""


def simulate(
    task: Task | str = "breast-cancer",
    *,
    nodes: int = 16,
    topology: Any = "auto",
    rounds: int = 100,
    faults: Faults | Mapping[str, Any] | None = None,
    method: str | Method = "ledger",
    seed: int = 0,
    plan: Plan | None = None,
    eta_schedule: str = "cosine",
    release: int = 0,
    exchanges: int = 1,
    compression: str = "none",
    release_compression: str = "",
    mode: Literal["rounds", "ticks"] = "rounds",
    sites: Sequence[Site] | None = None,
    test: Data | None = None,
    bootstrap: int | None = None,
    masses: Sequence[float] | Literal["rows", "equal"] = "rows",
    heaviest: float = HEAVIEST,
    training: Choice = "auto",
    dtype: Literal["float32", "float64"] | None = None,
    threads: int | None = None,
    block: int | None = None,
    h_ref: float = 0.0,
    evaluate_every: int | None = None,
    evaluate_nodes: int = SAMPLE,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    progress: Progress | None = None,
    outages: Outages | None = None,
    watch: bool = False,
    listener: Listener | None = None,
    group: Together | None = None,
) -> Run:
    """Simulate a federation in rounds, all nodes at once, with the deployed nodes' arithmetic.

    `topology`: a spec of gossipfl.topology ("random-regular:6", "ring", a file), a Graph, edges (E, 2), or a schedule (an
    object whose `round(t)` gives edges, theta and whether they are directed); "auto" is the deployed rule, complete up to 16
    nodes, else random with six neighbours. Rows: `sites` and `test` if given; else the
    task's own parting among `nodes`, or, with `bootstrap`, that many rows for each node drawn with replacement from all
    training rows. Normalisation is that of the pooled training rows, which a federation's statistics stage reaches to six
    digits. `plan` None: ten steps over all rows (at most 32 a step), eta .1, the task's optimiser and l2. `release`: last rounds
    in which nobody trains. `release_compression`: of these rounds, where the models that only mix may be written in more bits;
    empty: as `compression`. `exchanges`: so many a round, one after the other. `masses` "rows": min(rows, `heaviest` times the
    median), mean 1. `threads` None: every core. `evaluate_every` None: ten
    times and at the end; 0: never. `checkpoint`: a file that is written every so many rounds, and gone on from if it is there.
    `outages`: what goes wrong at known rounds, beside the chances of `faults`. `watch`: look in every evaluated round whether
    the laws of watching.LAWS hold. `listener`: told of every exchange and every node's score. `group`: the processes that share
    this run (vectorized.shards); each returns the whole
    course, and a state that holds its own rows.

    **Randomness**: streams of `seed`; one seed is one run, whatever the threads and (beyond rounding) the block.
    **Raises**: Misuse for settings that do not fit together, a size that memory cannot hold, a checkpoint of other settings.
    """
    torch_task = _task(task)
    if rounds < 1 or nodes < 1 or not 0 <= release <= rounds:
        raise Misuse(
            f"nodes = {nodes}, rounds = {rounds}, release = {release}: nodes and rounds 1 or more, release among them"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise Misuse(f"seed = {seed!r}: a whole number, 0 or more")
    given = dict(locals())
    chosen, struck = method_of(method), Faults.of(dict(faults) if isinstance(faults, Mapping) else faults)
    layout = layout_of(torch_task)
    if dtype and dtype != layout.dtype:
        layout = Layout.of(torch_task.model().to(getattr(torch, dtype)), getattr(torch_task, "shared", None), dtype)
    x0 = start(torch_task, layout, seed).astype(layout.dtype)
    if sites is None:  # before rows are parted and a graph is drawn, which take memory of their own
        require_memory(nodes, nodes * (8 * (bootstrap or 1) + layout.size * np.dtype(layout.dtype).itemsize))
    rows, judge_data, normaliser = _rows(torch_task, nodes, seed, sites, test, bootstrap, dtype)
    nodes = rows.nodes
    plan = plan or _plan(torch_task, rows)
    chosen.require(plan)
    weights = _masses(masses, heaviest, rows)
    links, meet = _links(topology, nodes, seed, chosen, weights)
    mode = "ticks" if chosen.is_asynchronous else mode
    _require_sound(chosen, struck, meet)
    _require_codec(compression, chosen, links)
    _require_release_codec(release_compression, compression, chosen)
    _require_turns(chosen, exchanges, mode)
    _require_spectrum(chosen, links, 0.5 if chosen.is_lazy else 1.0, weights)
    if mode == "ticks" and (links is None or chosen.combine != "pairs" or chosen.post != "plain"):
        raise Misuse(f"mode 'ticks' takes a static graph and a plain method of pairs, not {topology!r} and {chosen.name}")
    shard = None if group is None else Shard(group, nodes)
    copies = 0 if compression == "none" else nodes if chosen.has_server else 3 * (0 if links is None else len(links))
    held = copies * layout.n_parameters
    some_leave = struck.leave > 0 or (outages is not None and bool(np.isfinite(outages.leaves).any()))
    needed = estimate(layout, nodes, rows, plan, chosen, links, some_leave) + held * np.dtype(layout.dtype).itemsize
    require_memory(nodes, needed if group is None else needed * group.here // group.size)
    model = Model.of(torch_task, layout, x0)
    block = block or block_of(model, rows, plan)
    path, begun = _checkpoint(checkpoint, shard)
    if begun is not None and training == "auto":
        training = CHOICES.get(disk.way(begun) or "", training)
    choosing = choose(model, rows, plan, block, float(nodes) * rounds * plan.steps, training)
    if group is not None:  # two ways differ in the last bits, and timing may choose another elsewhere
        choosing = choose(model, rows, plan, block, 0.0, CHOICES[group.agree(choosing.way.name)])
    own = None if shard is None else shard.own
    state = model.state(nodes, own)
    threads = threads or max(1, cores() // (1 if group is None else group.here))
    settings = Settings(plan, chosen, rounds, release, eta_schedule, mode, seed, threads, h_ref, exchanges, codec=compression,
                        release_codec=release_compression)  # fmt: skip
    engine = Engine(
        model,
        rows,
        state,
        choosing,
        Mixer(state, weights, links, replicas=_replicas(compression, state, links, shard), own=own or slice(None)),
        settings,
        Weather(struck, nodes, rounds, seed, outages, exchanges),
        block,
        meet,
        listener=listener,
        shard=shard,
    )
    judge = Judge(torch_task, normaliser, judge_data, weights)
    told = [*_unheard(chosen, struck), *_stale(chosen, plan, exchanges, compression)]
    run = Run(
        torch_task.name, chosen.name, nodes, rounds, seed, torch_task.metric, judge.is_lower_better, choosing.way.name,
        [*choosing.lines, *told], block, threads, state, min(nodes, evaluate_nodes),
    )  # fmt: skip
    run.keep_counts()
    identity = _identity(given, plan, chosen, struck, layout, outages, links)
    if begun is not None:
        disk.load(begun, engine, run, identity)
    every = max(1, rounds // EVALUATIONS) if evaluate_every is None else evaluate_every
    judges_mass = chosen.combine in ("pairs", "edges") and chosen.post == "plain" and mode == "rounds"
    watching = Watching(weights, judges_mass, shard=shard) if watch else None
    Course(engine, run, judge, every, identity, path, checkpoint_every, watching, progress).go()
    return run


def _checkpoint(given: str | Path | None, shard: Shard | None) -> tuple[Path | None, Path | None]:
    """(where this process keeps its own, what there is to go on from)."""
    if given is None:
        return None, None
    path = Path(given)
    if shard is None:
        return path, path if path.exists() else None
    path = path.with_name(f"{path.name}.{shard.group.rank}-of-{shard.group.size}")
    return path, disk.newest(path, shard)


# ---- what is asked for -----------------------------------------------------------------------------------------------


def _rows(
    task: Task,
    nodes: int,
    seed: int,
    sites: Sequence[Site] | None,
    test: Data | None,
    bootstrap: int | None,
    dtype: str | None,
) -> tuple[Rows, Data, Normaliser]:
    """Training rows of all nodes, normalised; the test rows, as they were recorded; the normalisation."""
    deal: Any = getattr(task, "demo_sites", None)
    held_out = None
    if sites is not None:
        given = list(sites)
    elif deal is None:
        raise Misuse(f"{task.name} has no demo_sites of its own; give sites")
    else:
        try:
            given, held_out = deal(nodes if bootstrap is None else getattr(task, "demo_nodes", 4), seed)
        except (Misuse, ValueError) as error:
            raise Misuse(f"the rows of {task.name} cannot be parted among {nodes} nodes ({error}); give bootstrap=16, sixteen "
                         "rows a node drawn with replacement, or sites of your own") from error  # fmt: skip
    test = test or held_out or pooled([site.holdout for site in given])
    train = pooled([site.train for site in given])
    normaliser = own_normaliser(train) if task.standardise else Normaliser.none()
    wanted = getattr(torch, dtype) if dtype else None

    def ready(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tensor(prepare(task, normaliser, data))
        return x if wanted is None else x.to(wanted), torch.tensor(data.y)

    if bootstrap is None:
        return Rows.of([ready(site.train) for site in given]), test, normaliser
    x, y = ready(train)
    drawn = bits(stream(seed, "bootstrap"), np.arange(nodes), bootstrap) >> np.uint64(11)
    index = (drawn.astype(np.float64) * 2.0**-53 * len(y)).astype(np.int64).ravel()
    return Rows(x, y, index, np.full(nodes, bootstrap)), test, normaliser


def _plan(task: Task, rows: Rows) -> Plan:
    is_own = hasattr(task, "trainer")
    return Plan(10, 0.1, None if is_own else 32, getattr(task, "optimizer", "sgd"), l2=float(getattr(task, "l2", 0.0)))


def _masses(masses: Sequence[float] | str, heaviest: float, rows: Rows) -> Floats:
    if isinstance(masses, str) and masses == "equal":
        return np.ones(rows.nodes)
    if isinstance(masses, str) and masses == "rows":
        held = np.minimum(rows.counts, heaviest * np.median(rows.counts)).astype(np.float64)
        return np.asarray(held / held.mean())
    given = np.asarray(masses, dtype=np.float64)
    if given.shape != (rows.nodes,) or not (np.isfinite(given) & (given > 0)).all():
        raise Misuse(f'masses: "rows", "equal" or {rows.nodes} numbers above 0')
    return given


def _links(topology: Any, nodes: int, seed: int, method: Method, masses: Floats) -> tuple[Links | None, Any]:
    """(static graph, schedule): one of them, or none for a method that needs nobody but a server."""
    if method.combine in ("server", "none"):
        return None, None
    if method.neighbours:
        return None, _redrawn(method, nodes, seed, masses)
    if hasattr(topology, "round"):
        return None, topology
    if isinstance(topology, str) and topology != "auto" and topologies.parse(topology).changes:
        return None, topologies.schedule(topology, nodes, seed, masses=masses)
    if topology == "auto":
        topology = "complete" if nodes <= topologies.COMPLETE_UP_TO else f"random-regular:{topologies.DEGREE}"
    if isinstance(topology, str):
        topology = topologies.graph(topology, nodes, seed)
    edges = topology.edges if hasattr(topology, "edges") and not callable(topology.edges) else topology
    if hasattr(topology, "edges") and callable(topology.edges):  # networkx
        edges = list(topology.edges)
    return Links.of(np.asarray(edges), nodes), None


def _redrawn(method: Method, nodes: int, seed: int, masses: Floats) -> topologies.Schedule:
    """So many new neighbours a round, as many as there are nodes to be had."""
    some = min(method.neighbours, nodes - 1)
    if method.is_local:
        return schedules.epidemic_local(nodes, some, seed, masses)
    return schedules.epidemic_oracle(nodes, some - (some % 2 and nodes % 2), seed, masses)


def _task(given: Task | str) -> Task:
    """**Raises**: Misuse for what is no task, such as a bare torch module, which has neither a loss nor rows."""
    if isinstance(given, str):
        return load(given)
    if not callable(getattr(given, "model", None)):
        raise Misuse(
            f"a {type(given).__name__} is no task: it has no model() that makes a module; give a name such as 'breast-cancer', "
            "'package.module:attribute', or an object that has what gossipfl.Task names"
        )
    return given


def is_compression(name: str) -> bool:
    """Whether `compression` may be this, for a method that has links."""
    return name == "none" or codecs.is_codec(name)


def _require_codec(name: str, method: Method, links: Links | None) -> None:
    """**Raises**: Misuse for an unknown codec, or a method whose messages are no models over links that stay."""
    if name == "none":
        return
    if not is_compression(name):
        raise Misuse(f"compression = {name!r}; use {COMPRESSIONS}")
    if method.has_server and method.vectors == 1:
        return
    if method.vectors > 1:
        raise Misuse(f"{method.name} sends a second vector beside the model, which has no reference to be compressed against; "
                     "take the ledger, which corrects drift with the model's own bytes, or compression='none'")  # fmt: skip
    if method.combine == "push":
        raise Misuse(f"{method.name} sends running sums, which grow without end and must arrive exactly; take gossip or the "
                     "ledger, or compression='none'")  # fmt: skip
    if method.combine not in ("pairs", "edges") or links is None:
        raise Misuse(
            f"compression is against what a link remembers of the models that went over it, and {method.name} here has no such "
            "links; take gossip, the ledger, d-psgd or d2 on a graph, fedavg, or compression='none'"
        )


def _require_release_codec(name: str, before: str, method: Method) -> None:
    """**Raises**: Misuse for a codec of the release where there is none, or nothing that the links remember."""
    if not name:
        return
    if not codecs.is_codec(name):
        raise Misuse(f"release_compression = {name!r}; use a codec: {COMPRESSIONS.removeprefix('none, ')}")
    if before == "none" or method.has_server:
        raise Misuse(
            f"release_compression = {name!r} is against what links remember of compressed models; give `compression`, and a "
            "method without a server, or leave it out"
        )


def _replicas(codec: str, state: State, links: Links | None, shard: Shard | None) -> Replicas | None:
    return None if codec == "none" or links is None else Replicas(codec, state, links, shard)


def _require_sound(method: Method, faults: Faults, meet: Any) -> None:
    """**Raises**: Misuse for what would diverge, or cannot be."""
    if method.post == "noloco" and (left := contraction(method.momentum, method.pull)) >= 1:
        raise Misuse(
            f"{method.name}: with momentum {method.momentum} and pull {method.pull} each outer step multiplies the squared "
            f"disagreement of the models by {left:.2f}; take smaller ones, such as .5 and .5"
        )
    if (faults.sign_flip or faults.noise) and (method.combine == "push" or method.post in ("k-gt", "noloco")):
        raise Misuse(f"what hostile nodes send is not modelled for {method.name}, which sends more than a model; leave sign_flip "
                     "and noise out")  # fmt: skip
    if faults.delayed and method.post in ("k-gt", "noloco"):
        raise Misuse(f"{method.name} needs both vectors of an exchange in its round; leave the fault 'delayed' out")
    if meet is not None and (method.theta or method.post == "k-gt") and meet.round(0)[2]:
        raise Misuse(f"{method.name} books what flows both ways of an edge, and this schedule is directed; take push-sum, or "
                     "an undirected one")  # fmt: skip


def _unheard(method: Method, faults: Faults) -> Iterator[str]:
    """Faults that mean nothing to this method, or something else than to exchanges of pairs."""
    if method.combine == "push":
        if faults.half:
            yield f"half = {faults.half} has no effect: {method.name} sends one way only, there is no other half"
        if faults.delayed:
            yield f"delayed = {faults.delayed} is as lost: what {method.name} sends comes with the next that passes its edge"
    elif method.combine in ("server", "none"):
        without = "a server's round waits for whom it asked" if method.has_server else "nobody exchanges anything"
        names = ("half", "delayed") if method.has_server else ("half", "delayed", "lost", "sign_flip", "noise")
        for name in names:
            if getattr(faults, name):
                yield f"{name} = {getattr(faults, name)} has no effect with {method.name}: {without}"


def _stale(method: Method, plan: Plan, exchanges: int, codec: str) -> Iterator[str]:
    """What is known to run away, though not by a formula that could refuse it."""
    sent = exchanges * codecs.millionths(codec) / 1e6
    if sent and method.theta and plan.momentum >= LONG and method.theta / sent > STALE:
        yield (
            f"{codec} and {exchanges} exchanges a round are little for theta {method.theta:g} with momentum {plan.momentum:g}: "
            "what is booked has gathered for many rounds, and may run away; take more exchanges, a larger share, or momentum .9"
        )


def _require_turns(method: Method, exchanges: int, mode: str) -> None:
    """**Raises**: Misuse for several exchanges a round where a round has one by its nature."""
    if exchanges < 1:
        raise Misuse(f"exchanges = {exchanges}: 1 or more a round; for a method that exchanges nothing take 'local'")
    if exchanges > 1 and (method.combine not in ("pairs", "edges") or method.post != "plain" or mode == "ticks"):
        raise Misuse(f"{method.name} has one exchange a round; leave exchanges = {exchanges} out, or take gossip or the ledger")


def _require_spectrum(method: Method, links: Links | None, gamma: float, masses: Floats) -> None:
    """**Raises**: Misuse where W has an eigenvalue that the method cannot take."""
    if method.least_eigenvalue <= -1:
        return
    if links is None:
        raise Misuse(f"{method.name} needs one static graph: what it remembers of a round belongs to that round's W")
    graph = Graph.of(links.nodes, np.stack([links.lo, links.hi], axis=1))
    lowest = spectrum.of(graph, gamma * topologies.conductances(graph, masses=masses), masses).lowest
    if lowest <= method.least_eigenvalue + spectrum.EDGE:
        raise Misuse(
            f"{method.name} diverges where an eigenvalue of W is at or below {method.least_eigenvalue:.3f}, and this graph's "
            f"least is {lowest:.3f}; take d2-lazy, which mixes by (I + W) / 2, k-gt, the ledger, or another topology"
        )


def estimate(
    layout: Layout, nodes: int, rows: Rows, plan: Plan, method: Method, links: Links | None, some_leave: bool
) -> int:
    """Bytes that a run holds at its peak, torch itself left out. `some_leave`: for good."""
    itemsize = np.dtype(layout.dtype).itemsize
    momenta = 2 if plan.optimizer == "adam" else int(plan.momentum > 0)
    own = 2 * (method.post == "scaffold") + 2 * method.has_memory
    copies = 1 + (method.combine == "edges") + bool(method.theta) + own + momenta
    size = copies * nodes * layout.size * itemsize
    if method.combine == "push":
        size += (nodes + 2 * (0 if links is None else len(links))) * layout.size * itemsize
    if method.theta and links is not None and (method.leak or method.cap or some_leave):
        size += len(links) * layout.n_parameters * itemsize
    a_node = int(rows.counts[0]) * (rows.x[0].nbytes + 8)
    unpacked = nodes * a_node if plan.batch_size is None and (rows.counts == rows.counts[0]).all() else 0
    is_linear = sum(1 for _ in layout.placed()) <= 2
    turned = unpacked if is_linear and unpacked <= TURN_BYTES else 0  # a linear model's rows, laid out a second time
    return int(size + rows.nbytes + min(unpacked, UNPACK_BYTES) + turned + 64 * (nodes + (0 if links is None else len(links))))


def require_memory(nodes: int, needed: int) -> None:
    """**Raises**: Misuse, with the estimate, for more than is free."""
    free = free_bytes()
    if needed > SHARE * free:
        raise Misuse(
            f"{nodes:,} nodes need about {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free; take fewer nodes, a "
            "smaller model, or a method that keeps less a node or link (no leak and cap, no momentum)"
        )


def free_bytes() -> int:
    """Memory that this machine can give now."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _identity(
    given: dict[str, Any], plan: Plan, method: Method, faults: Faults, layout: Layout, outages: Outages | None,
    links: Links | None,
) -> str:  # fmt: skip
    """The settings that decide the result, as one line: threads, blocks and evaluation do not."""
    names = ("nodes", "rounds", "seed", "eta_schedule", "release", "exchanges", "heaviest", "mode", "bootstrap", "h_ref",
             "training", "compression", "release_compression")  # fmt: skip
    parts = {name: given[name] for name in names}
    parts |= {
        "topology": given["topology"] if isinstance(given["topology"], str) else "",
        "links": "" if links is None else hashlib.sha256(np.concatenate([links.lo, links.hi]).tobytes()).hexdigest(),
        "masses": str(given["masses"]),
        "plan": asdict(plan),
        "method": asdict(method),
        "faults": asdict(faults),
        "outages": outages.digest if outages else "",
    }
    return json.dumps({**parts, "layout": layout.digest.hex()}, sort_keys=True, default=str)
