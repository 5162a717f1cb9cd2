"""What a user writes, and what a site holds: the Task protocol, Data, Site, and `load`. Neither torch nor files here.

A task is the same object in a node, in a simulator and in a user's own loop. Which task runs is said by the operator's
own file (`module:attribute`), never by a peer (T31).
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import pkgutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import ConfigError, Fault, Misuse

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float64]
Vector = NDArray[Any]
Indices = NDArray[np.int64]

BUILT_IN: Final = {
    "breast-cancer": "gossipfl.tasks.breast_cancer:BreastCancer",
    "digits": "gossipfl.tasks.digits:Digits",
    "heart": "gossipfl.tasks.heart:Heart",
    "heart-920": "gossipfl.tasks.heart:Heart920",
    "icu": "gossipfl.tasks.icu:Icu",
    "stroke": "gossipfl.tasks.stroke:Stroke",
    "stroke-259": "gossipfl.tasks.stroke:Stroke259",
    "table": "gossipfl.tasks.table:TableTask",
    "toy": "gossipfl.tasks.toy:Toy",
}


LARGEST: Final = 1e30
"""No measured quantity is larger; sums of squares of a billion such stay finite, and so do they as float32."""


@dataclass(frozen=True, eq=False)
class Data:
    """Rows of one site as they were recorded: not normalised, NaN where missing.

    `ids` name patients, not rows: two stays of one patient share an id, so that no split can part them.

    **Shapes**: x (n, d) float64, y (n,), ids n strings, names d column names or none.
    **Raises**: Misuse on arrays that do not fit together, a value beyond `LARGEST` or a missing label.
    """

    x: Floats
    y: Vector
    ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        x = np.array(self.x, dtype=np.float64, order="C")
        y = np.array(self.y)
        ids = tuple(self.ids) or tuple(str(row) for row in range(len(y)))
        if x.ndim != 2 or y.ndim != 1 or len(x) != len(y):
            raise Misuse(f"Data takes x of shape (n, d) and y of shape (n,); got {x.shape} and {y.shape}")
        if len(ids) != len(y):
            raise Misuse(f"Data takes one id a row; got {len(ids)} for {len(y)} rows")
        if self.names and len(self.names) != x.shape[1]:
            raise Misuse(f"Data takes one name a column; got {len(self.names)} for {x.shape[1]} columns")
        if (np.abs(x) > LARGEST).any() or not np.isfinite(y).all():
            raise Misuse(
                f"Data holds a value that is infinite or beyond {LARGEST:g}, or no label; mark missing features as NaN, leave "
                f"out rows without label"
            )
        for array in (x, y):
            array.flags.writeable = False
        for name, value in {"x": x, "y": y, "ids": ids, "names": tuple(self.names)}.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, chosen: Indices) -> Data:
        """The chosen rows, in the order of `chosen`."""
        return Data(self.x[chosen], self.y[chosen], tuple(self.ids[row] for row in chosen), self.names)

    @property
    def digest(self) -> bytes:
        """32 bytes that change with any value, label, id, name or order: has the data file changed since?"""
        state = hashlib.blake2b(digest_size=32)
        text = "\0".join((*self.names, "", *self.ids, "", str(self.x.shape), self.y.dtype.str))
        for part in (text.encode(), self.x.tobytes(), self.y.tobytes()):
            state.update(len(part).to_bytes(8, "big"))
            state.update(part)
        return state.digest()


def pooled(parts: Sequence[Data]) -> Data:
    """The rows of all parts, as if one institution had them; only demos and simulations ever can.

    **Raises**: Misuse where there are none, or where their columns differ.
    """
    if not parts or any(part.names != parts[0].names for part in parts):
        raise Misuse("pooled() takes one or more Data with the same columns")
    ids = tuple(name for part in parts for name in part.ids)
    return Data(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]), ids, parts[0].names)


@dataclass(frozen=True, eq=False)
class Site:
    """One institution and its rows: those it trains on, and those it only ever judges by."""

    name: str
    train: Data
    holdout: Data


@runtime_checkable
class Task(Protocol):
    """What is learned. These members every task has; `OPTIONAL` lists what it may have beside them."""

    @property
    def name(self) -> str: ...

    @property
    def features(self) -> tuple[str, ...]:
        """The columns that are normalised by the federation; none where `standardise` is False."""

    @property
    def standardise(self) -> bool: ...

    @property
    def metric(self) -> str:
        """The key of `metrics` that a table shows first, for instance "auc"."""

    def model(self) -> nn.Module:
        """A fresh module; its initial values are replaced by the study's x^0."""

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Scalar mean over the batch. **Shapes**: x (B, d) normalised, y (B,)."""

    def data(self, source: Mapping[str, Any]) -> Data:
        """One site's rows, from the `[data]` table of its own node.toml. **Raises**: ConfigError with every fault."""


OPTIONAL: Final = {
    "scores": "(module, x) -> numpy: what metrics take, by default the module's plain output",
    "metrics": "(y, scores) -> dict of floats: by default nothing but the loss",
    "shared": "(parameter name) -> bool: is it mixed (True) or kept at home; by default all are mixed",
    "demo_sites": "(n, seed, data_dir) -> (list of Site, pooled test Data): for `gossipfl demo` and simulations",
    "demo_sources": "(n, seed, data_dir) -> (list of `[data]` tables): with which nodes read those sites",
    "class_names": "what the labels 0, 1, .. are called, for people",
    "demo_nodes": "int: how many sites a demo has, where it is not free",
    "all_sites": "int: how many sites a public data set has; demo_sites of fewer gives the largest",
    "published": "(n, seed, data_dir) -> scores of demo_sites' test rows by a published model, NaN where it has none",
    "judged_by": "(source) -> Data: a site's own test rows, where a public data set has a fixed parting",
    "ranges": "one (lowest, highest) or None a feature: statistics of a peer far outside are refused",
    "optimizer": '"sgd" or "adam": the default of the study',
    "l2": "float: the default weight decay of the study",
    "layout": "() -> Layout: instead of the one read off the module",
    "initial": "(seed) -> vector: instead of the usual x^0",
    "trainer": "(layout, x, y) -> anything with learning.training.Trainer's `train`: instead of torch",
    "converge": "(x, y, l2) -> vector: the optimum in closed form, instead of L-BFGS",
    "judge": "(vector, x, y) -> dict of floats: instead of scores and metrics",
}


def load(spec: str, options: Mapping[str, Any] | None = None) -> Task:
    """The task that `spec` names: a built-in's short name, or `module:attribute` of the operator's own.

    The attribute is a Task, a class of tasks, or a function that declares that it returns one (`-> gossipfl.Task`); the
    last two are called with `options`. Nothing else is ever called: `os:system` is no task. The module is imported, and
    what stands in it runs then; that is why its name is the operator's to give, and why a file from elsewhere is to be
    read before it is used.

    **Raises**: ConfigError, the operator's: unknown name, an import that fails, options that it does not take.
    """
    target = BUILT_IN.get(spec, spec)
    if ":" not in target:
        remedy = _closest(spec, BUILT_IN) + " or write module:attribute"
        raise ConfigError(Fault("task", None, f"unknown task {spec!r}", remedy, ("task",)))
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        remedy = "check the spelling, and that the module is installed in this environment; or, if it lies here, PYTHONPATH=."
        raise ConfigError(Fault("task", None, f"{spec!r} cannot be imported: {error}", remedy, ("task",))) from error
    except Exception as error:  # of the module's own lines
        what = f"{spec!r} cannot be imported: {type(error).__name__}: {error}{_place(error)}"
        raise ConfigError(Fault("task", None, what, "correct that file", ("task",))) from error
    made_by_call = _is_task_class(found) if isinstance(found, type) else _returns_task(found)
    if not made_by_call and (isinstance(found, type) or not isinstance(found, Task)):
        raise _no_task(spec, found)
    if made_by_call:
        _must_be_typed(spec, found, options or {})
    try:
        task = found(**(options or {})) if made_by_call else found
    except TypeError as error:
        raise ConfigError(_wrong_options(spec, found, options or {}, error)) from error
    if not isinstance(task, Task):
        raise _no_task(spec, task)
    return task


def _place(error: Exception) -> str:
    """Where an exception was raised, for who wrote the file; a SyntaxError says it itself."""
    frames = traceback.extract_tb(error.__traceback__)
    return "" if isinstance(error, SyntaxError) else f" ({frames[-1].filename}, line {frames[-1].lineno})"


PLAIN: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "text"),
    "bool": ((bool,), "true or false"),
}
"""Annotations of a task's options that are looked at, with what their values are."""


def _must_be_typed(spec: str, found: Any, options: Mapping[str, Any]) -> None:
    """An option whose parameter says that it is a number, a text or a truth value is one: a task may use it much later."""
    faults = []
    for name, parameter in inspect.signature(found).parameters.items():
        said = parameter.annotation
        kinds, words = PLAIN.get(said if isinstance(said, str) else getattr(said, "__name__", ""), ((object,), ""))
        value = options.get(name, parameter.default)
        if name in options and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and words)):
            path = ("task_options", name)
            faults.append(Fault("task", None, f"{spec!r}: option {name} = {value!r} is not {words}", f"write {words}", path))
    if faults:
        raise ConfigError(*faults)


def _wrong_options(spec: str, found: Any, options: Mapping[str, Any], error: TypeError) -> Fault:
    takes = list(inspect.signature(found).parameters)
    unknown = [name for name in options if name not in takes]
    if spec == "table" and not isinstance(options.get("schema"), Mapping):
        remedy = "write [task_options.schema] in the study file (docs/deploy.md, section 4)"
        return Fault("task", None, "'table' needs a schema: which columns, which label", remedy, ("task_options", "schema"))
    what = f"{spec!r} has no option {', '.join(unknown)}" if unknown else f"{spec!r} does not take these options: {error}"
    remedy = f"it has {', '.join(takes)}" if takes else "leave it out: it has no options"
    return Fault("task", None, what, remedy, ("task_options", *unknown[:1]))


METHODS: Final = ("model", "loss", "data")


def _is_task_class(found: Any) -> bool:
    """Do its instances have a task's methods? The other members may be set when one is made."""
    return isinstance(found, type) and all(callable(getattr(found, name, None)) for name in METHODS)


def _returns_task(found: Any) -> bool:
    """Is it a function written in Python that says that it returns a task? A builtin says nothing, so it is none."""
    function = inspect.unwrap(getattr(found, "__func__", found))
    if not inspect.isfunction(function):
        return False
    said: Any = function.__annotations__.get("return")
    if isinstance(said, str):
        first, *rest = said.split(".")
        said = function.__globals__.get(first)
        for name in rest:
            said = getattr(said, name, None)
    return said is Task or _is_task_class(said)


MEMBERS: Final = ("name", "features", "standardise", "metric", "model", "loss", "data")


def _no_task(spec: str, found: Any) -> ConfigError:
    missing = [member for member in MEMBERS if not hasattr(found, member)]
    what = f"{spec!r} is no gossipfl.Task: it has no {', no '.join(missing)}"
    remedy = "give it these; gossipfl/tasks/task.py says what each is"
    if inspect.isroutine(found):
        remedy = "a function that makes a task says so, and only then is it called: def make(...) -> gossipfl.Task"
    return ConfigError(Fault("task", None, what, remedy, ("task",)))


@dataclass(frozen=True)
class Key:
    """One key that a `[data]` table may have: its default, which fixes its type, and a further check."""

    default: Any
    kind: type | tuple[type, ...]
    check: Callable[[Any], bool] = field(default=lambda value: True)
    says: str = ""


def settings(source: Mapping[str, Any], keys: Mapping[str, Key], where: str = "[data]") -> dict[str, Any]:
    """`source` with the defaults of `keys` filled in.

    **Raises**: ConfigError with every unknown key, wrong type and impossible value at once.
    """
    faults = [_unknown(where, name, keys) for name in source if name not in keys]
    for name, key in keys.items():
        value = source.get(name, key.default)
        wrong = not isinstance(value, key.kind) or (isinstance(value, bool) and key.kind is not bool)
        if wrong or not key.check(value):
            faults.append(Fault(where, None, f"{name} = {value!r}", key.says or f"write a {_kind_name(key.kind)}", (name,)))
    if faults:
        raise ConfigError(*faults)
    return {name: source.get(name, key.default) for name, key in keys.items()}


ELSEWHERE: Final = {
    **dict.fromkeys(("site", "sites", "seed", "part", "rows"), "tasks that ship with their rows"),
    **dict.fromkeys(("hospital", "data_dir"), "tasks on public data sets"),
    **dict.fromkeys(
        ("file", "columns", "codes", "scale", "missing", "missing_in", "id", "delimiter", "drop_unlabelled", "allow_constant"),
        "tables",
    ),
}
"""Keys of node.toml's `[data]` that only some tasks read."""


def _unknown(where: str, name: str, keys: Mapping[str, Key]) -> Fault:
    if name in ELSEWHERE:
        takes = f"this study's task takes {', '.join(sorted(keys))}"
        what = f"the key {name!r} is for {ELSEWHERE[name]}, not for this study's task"
        return Fault(where, None, what, f"remove it; {takes}", (name,))
    return Fault(where, None, f"unknown key {name!r}", _closest(name, keys), (name,))


def data_folder(named: str | Path | None, environment: str | None, folder: str, obtain: str) -> Path:
    """The folder `folder` inside the data directory that was named, or else that `GOSSIPFL_DATA` names. `obtain` says where
    its files are to be had.

    **Raises**: ConfigError where neither was, or nothing is there.
    """
    root = named or environment
    if not root:
        remedy = f"--data-dir or GOSSIPFL_DATA; {obtain}"
        raise ConfigError(Fault("data_dir", None, f"nothing says where {folder}/ is", remedy))
    path = Path(root) / folder
    if not path.is_dir():
        remedy = f"--data-dir must name the folder that holds {folder}/; {obtain}"
        raise ConfigError(Fault(str(path), None, "no such folder", remedy))
    return path


def _closest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}"


def _kind_name(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(k.__name__ for k in kinds if k is not type(None))
