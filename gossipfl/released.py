"""The model that leaves a node, with the preprocessing that it was trained with: out of a state folder, to and from a file.

The file is a safetensors file: tensors under the names of the module, everything else as JSON in its metadata; nothing in
it is executed, and a task that is not built in runs only where the operator names it (T31). Not here: training, peers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from gossipfl.errors import ConfigError, Exit, Fault, GossipError, Misuse
from gossipfl.learning.parameters import Layout
from gossipfl.recipe import decoded
from gossipfl.tasks import BUILT_IN, Data, Task, fitting, load
from gossipfl.tasks.normalisation import Normaliser
from gossipfl.tasks.task import Floats, Vector
from gossipfl.trust.membership import Membership

FORMAT: Final = 1
"""Of the metadata; a newer one is refused."""

KEY: Final = "gossipfl"
"""Of the one metadata entry: JSON text."""


@dataclass(frozen=True, eq=False)
class Released:
    """A model, its task and its frozen normalisation: all that a prediction needs."""

    spec: str
    """the task's short name or module:attribute"""
    options: Mapping[str, Any]
    task: Task
    layout: Layout
    vector: Vector
    normaliser: Normaliser
    facts: Mapping[str, Any] = field(default_factory=dict)
    """where it comes from: node, federation, study, stage, counts, versions"""

    def __post_init__(self) -> None:
        if self.vector.shape != (self.layout.size,) or str(self.vector.dtype) != self.layout.dtype:
            raise Misuse(f"a vector {self.vector.shape} {self.vector.dtype} is no model of this layout")

    def metrics(self, data: Data) -> dict[str, float]:
        """The task's metrics on raw rows."""
        return fitting.evaluate(self.task, self.layout, self.vector, self.normaliser, data)

    def scores(self, x: Floats) -> Floats:
        """The task's scores of raw rows. **Shapes**: (n, d) -> (n,) or (n, classes)."""
        return fitting.predict(self.task, self.layout, self.vector, self.normaliser, x)


def from_state(folder: Path, membership: Membership, me: str) -> Released:
    """The model that a stopped node ended with. **Raises**: ConfigError (73: in use; 78: no model yet), Damaged."""
    import msgspec

    from gossipfl.protocol.peer import Course
    from gossipfl.store import Damaged, Store
    from gossipfl.store.errors import NO_MODEL

    if not (folder / "format").exists():
        raise ConfigError(Fault(str(folder), None, "holds no state yet", "run the node first: `gossipfl node run`"))
    with Store.open(folder) as store:
        row = store.load().get(("course", me))
        if row is None:
            raise ConfigError(Fault(str(folder), None, f"no state of {me!r} yet", "run the node first"))
        course = msgspec.msgpack.decode(row, type=Course)
        task, layout = _known(membership)
        if store.files.missing({course.model}):
            raise Damaged(NO_MODEL)
        vector = np.array(store.files.array(course.model, layout.dtype))
    where = {"stage": course.stage, "local_rounds": course.local_round, "steps": course.steps}
    return _released(membership, me, task, layout, vector, course.normalisation, where)


def from_answer(body: bytes, statistics: bytes, stage: str, membership: Membership, me: str) -> Released:
    """The model as a running node's admin listener gave it."""
    task, layout = _known(membership)
    return _released(membership, me, task, layout, np.frombuffer(body, layout.dtype), statistics, {"stage": stage})


def _known(membership: Membership) -> tuple[Task, Layout]:
    task = load(membership.study.task, membership.study.task_options)
    return task, fitting.layout_of(task)


def _released(
    membership: Membership, me: str, task: Task, layout: Layout, vector: Vector, frozen: bytes, where: Mapping[str, Any]
) -> Released:
    from gossipfl import __version__

    if task.standardise and not frozen:
        raise ConfigError(f"{me!r} has no frozen statistics yet: it is still in the statistics stage; let it run on")
    study = membership.study
    facts = {
        "node": me,
        "federation": membership.federation,
        "membership_version": membership.version,
        "members": list(membership.active),
        "study": study.name,
        "x0": membership.x0,
        "layout": membership.layout,
        "gossipfl": __version__,
        **where,
    }
    return Released(study.task, dict(study.task_options), task, layout, vector, decoded(frozen), facts)


# ---- the file --------------------------------------------------------------------------------------------------------


def save(model: Released, path: Path) -> None:
    """Write the file; a reader sees the old or the new one. **Raises**: ConfigError (73)."""
    from safetensors.numpy import save as encode

    told = {
        "format": FORMAT,
        "task": model.spec,
        "task_options": dict(model.options),
        "features": list(model.task.features),
        "metric": model.task.metric,
        "layout": model.layout.digest.hex(),
        "mean": model.normaliser.mean.tolist(),
        "spread": model.normaliser.spread.tolist(),
        "facts": dict(model.facts),
    }
    content = encode(_tensors(model), {KEY: json.dumps(told, sort_keys=True, ensure_ascii=True, allow_nan=False)})
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        remedy = "name a file in a folder that is there and that this user may write, on a disk with room"
        fault = Fault(str(path), None, f"cannot be written: {error.strerror or error}", remedy)
        raise ConfigError(fault, exit_code=Exit.STATE) from None


def _tensors(model: Released) -> dict[str, Vector]:
    """The module's state under its own names: any program that reads safetensors can take it."""
    if hasattr(model.task, "layout"):
        return {entry.name: model.vector[place].reshape(entry.shape) for entry, place in model.layout.placed()}
    from gossipfl.learning import parameters

    module = model.task.model()
    parameters.write(model.layout, model.vector, module)
    return {name: np.ascontiguousarray(tensor.cpu().numpy()) for name, tensor in module.state_dict().items()}


def read(path: Path, task: str | None = None) -> Released:
    """The model of a file that `save` wrote. `task` names the code of a task that is not built in.

    **Raises**: ConfigError: no such file, not of ours, newer, another task's, or a task that is not built in and not named.
    """
    told, tensors = _content(path)
    try:
        spec, options = str(told["task"]), dict(told["task_options"])
        if spec not in BUILT_IN and task != spec:
            what = f"was trained with the task {spec!r}, which is code outside gossipfl"
            raise ConfigError(Fault(str(path), None, what, f"if you trust that code, say so: --task {spec}"))
        loaded = load(spec, options)
        layout = fitting.layout_of(loaded)
        if layout.digest.hex() != told["layout"] or list(loaded.features) != told["features"]:
            remedy = "use the version of gossipfl and of the task that wrote it"
            raise ConfigError(Fault(str(path), None, "its task has another model or other features here", remedy))
        normaliser = Normaliser(np.array(told["mean"]), np.array(told["spread"]))
        return Released(spec, options, loaded, layout, _vector(loaded, layout, tensors), normaliser, dict(told["facts"]))
    except (KeyError, TypeError, ValueError, RuntimeError, Misuse) as error:
        raise _not_ours(path, f"{type(error).__name__}: {error}") from None


def _content(path: Path) -> tuple[dict[str, Any], dict[str, Vector]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            told = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise ConfigError(Fault(str(path), None, f"cannot be read: {error}", "name a file of `node model`")) from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise _not_ours(path, str(error)) from None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise _not_ours(path, "its metadata are of another format")
    return told, tensors


def _not_ours(path: Path, why: str) -> GossipError:
    return ConfigError(Fault(str(path), None, f"is no model of this gossipfl: {why}", "make it with `gossipfl node model`"))


def _vector(task: Task, layout: Layout, tensors: Mapping[str, Vector]) -> Vector:
    if hasattr(task, "layout"):
        return np.concatenate([tensors[entry.name].ravel() for entry, _ in layout.placed()])
    import torch

    from gossipfl.learning import parameters

    module = task.model()
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})
    return np.asarray(parameters.read(layout, module))
