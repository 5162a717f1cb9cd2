"""A simulation on disk, to go on from: every tensor in one safetensors file, and beside them what was done so far."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gossipfl.errors import Misuse
from gossipfl.simulator.vectorized.engine import Engine
from gossipfl.simulator.vectorized.looped import Looped
from gossipfl.simulator.vectorized.mixing import Late
from gossipfl.simulator.vectorized.run import Record, Run
from gossipfl.simulator.vectorized.shards import Shard


def save(path: Path, engine: Engine, run: Run, identity: str) -> None:
    """Write everything that the rounds to come depend on: to a new file first, so that a crash leaves the one before.

    `identity` names the settings; `load` refuses a file of others.
    """
    if isinstance(engine.choosing.way, Looped):
        engine.choosing.way.collect(engine.state)
    own, links = _here(engine)
    tensors = {f"state/{name}": tensor[own] for name, tensor in engine.state.arrays()}
    tensors |= {f"flow/{name}": torch.from_numpy(flow[links]) for name, flow in engine.mixer.flows.items()}
    for kept in (engine.server, engine.memory, engine.push, engine.mixer.replicas):
        if kept is not None:
            tensors |= {f"method/{name}": torch.from_numpy(held[where]) for name, held, where in kept.arrays()}
    if run.sent is not None and run.stepped is not None:
        tensors |= {"sent": torch.from_numpy(run.sent), "stepped": torch.from_numpy(run.stepped)}
    tensors["up"] = torch.from_numpy(engine.weather.up)
    late: list[list[Any]] = []
    for one in engine.mixer.pending:
        for group, name, nodes, moved in one.steps:
            tensors[f"late/{len(late)}/nodes"] = torch.from_numpy(nodes.copy())
            tensors[f"late/{len(late)}/moved"] = torch.from_numpy(moved.copy())
            late.append([one.due, group, name])
    said: dict[str, Any] = {
        "identity": identity,
        "way": engine.choosing.way.name,
        "done": engine.done,
        "late": late,
        "records": [asdict(record) for record in run.records],
        "seconds": run.seconds,
        "cpu_seconds": run.cpu_seconds,
    }
    new = path.with_name(path.name + ".new")
    save_file(tensors, new, {"gossipfl": json.dumps(said)})
    if engine.shard is not None and path.exists():
        os.replace(path, before(path))
    os.replace(new, path)


def before(path: Path) -> Path:
    """Where one of several processes keeps the checkpoint before the newest: another may have died before its own."""
    return path.with_name(path.name + ".before")


def newest(path: Path, shard: Shard) -> Path | None:
    """The newest checkpoint that every process has, as this one has it; None where there is none."""
    there = {rounds: one for one in (before(path), path) if (rounds := _rounds(one)) is not None}
    wanted = shard.group.least(max(there, default=-1))
    if shard.group.least(int(wanted in there)) == 0:
        if wanted >= 0:
            raise Misuse(f"{path.parent} has no checkpoint that all processes share; remove its checkpoints to begin anew")
        return None
    return there[wanted]


def _rounds(path: Path) -> int | None:
    """After how many rounds it was kept; None for no file."""
    try:
        with safe_open(path, "pt") as file:
            return int(json.loads((file.metadata() or {}).get("gossipfl", "{}"))["done"])
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


def _here(engine: Engine) -> tuple[slice, Any]:
    """Which nodes and links this process has: all, where it is alone."""
    shard, links = engine.shard, engine.mixer.links
    if shard is None:
        return slice(None), slice(None)
    return shard.own, slice(None) if links is None else shard.links(links)


def way(path: Path) -> str | None:
    """The name of the way in which a file's steps were taken: another's numbers differ in the last bits."""
    try:
        with safe_open(path, "pt") as file:
            return str(json.loads((file.metadata() or {}).get("gossipfl", "{}")).get("way")) or None
    except (OSError, SafetensorError, ValueError):
        return None


def load(path: Path, engine: Engine, run: Run, identity: str) -> None:
    """Go on where the file ends. **Raises**: Misuse for a file of other settings, or that is no checkpoint."""
    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {}).get("gossipfl", "{}"))
            if said.get("identity") != identity:
                raise Misuse(
                    f"{path} belongs to a simulation with other settings; name another checkpoint, or remove it"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise Misuse(f"{path} is no checkpoint that can be read ({error}); remove it to begin anew") from error
    state = engine.state
    own, links = _here(engine)
    for name, tensor in state.arrays():
        tensor[own].copy_(tensors[f"state/{name}"])
    for name, flow in engine.mixer.flows.items():
        flow[links] = tensors[f"flow/{name}"].numpy()
    for kept in (engine.server, engine.memory, engine.push, engine.mixer.replicas):
        if kept is not None:
            for name, held, where in kept.arrays():
                held[where] = tensors[f"method/{name}"].numpy()
    if run.sent is not None and run.stepped is not None:
        run.sent[:], run.stepped[:] = tensors["sent"].numpy(), tensors["stepped"].numpy()
    engine.weather.up = tensors["up"].numpy().copy()
    engine.mixer.pending = [
        Late(due, [(group, name, tensors[f"late/{at}/nodes"].numpy(), tensors[f"late/{at}/moved"].numpy())])
        for at, (due, group, name) in enumerate(said["late"])
    ]
    engine.done = said["done"]
    run.records[:] = [Record(**record) for record in said["records"]]
    run.seconds, run.cpu_seconds = said["seconds"], said["cpu_seconds"]
    if isinstance(engine.choosing.way, Looped):
        engine.choosing.way.restore(state, engine.settings.plan.optimizer)
