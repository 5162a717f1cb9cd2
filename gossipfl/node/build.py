"""From a node.toml to what a driver needs: keys, membership, task, data, x^0, settings. Every fault is a ConfigError.

Not here: anything that runs. Paths and passphrases come from the operator; what the federation decides comes from its file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gossipfl import __version__, tasks
from gossipfl.config import NodeConfig
from gossipfl.digest import name_of
from gossipfl.errors import ConfigError, Exit, Fault
from gossipfl.node.driver import Parts
from gossipfl.node.logs import Log
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.core import Settings
from gossipfl.protocol.lockstep import Schedule
from gossipfl.protocol.peer import bookings, is_lost, names_in
from gossipfl.recipe import (
    Work,
    bench_of,
    judge_of,
    normaliser_of,
    ranges_of,
    settings_of,
    statistics_of,
    trainer_of,
    work_of,
)
from gossipfl.recorder import RECORDINGS, Recorder
from gossipfl.recording import Shape
from gossipfl.store import Damaged, Store
from gossipfl.store.errors import NO_MODEL, border
from gossipfl.tasks import fitting, normalisation
from gossipfl.tasks.split import site_of
from gossipfl.trust.identity import Certificate, NodeKeys, load_key
from gossipfl.trust.membership import Membership, Study, replaces
from gossipfl.workbench import made_again

if TYPE_CHECKING:
    from gossipfl.tasks import Site, Task


def build(
    config: NodeConfig,
    *,
    passphrase: Callable[[], str | None] = lambda: None,
    accept_new_data: bool = False,
    external: bool = False,
    begin: Any = None,
    change: Callable[[Settings], Settings] = lambda settings: settings,
) -> Parts:
    """All parts of the node that `config` describes; its store is open and locked.

    `begin` and `change` are for tests: a model to begin with instead of x^0, and settings other than the study's.

    **Raises**: ConfigError with exit code 73, 77 or 78; StateError.
    """
    membership = Membership.load(config.node.federation)
    me = member_of(config, membership)
    keys, certificate, psk = load_keys(config, membership, passphrase())
    work = load_work(config, membership, external)
    if work.site is not None:
        must_have_device(config)
    store = Store.open(config.node.state)
    try:
        rows = store.load()
        take_membership(store, rows, membership, config.node.federation)
        if work.site is not None:
            take_data(store, rows, work.site, accept_new_data, config)
        log = Log(me, config.node.log, level=config.node.log_level)
        learner = learner_of(config, work, membership.study.minimum_count, log)
        told = settings_of(
            membership,
            me,
            work,
            sign=keys.sign,
            certificate=certificate,
            random=random.SystemRandom(),
            checkpoint_s=config.limits.checkpoint_s,
            external=external,
        )
        if config.node.lockstep:
            told = in_step(told, membership)
        settings = change(told)
        return Parts(
            config=config,
            membership=membership,
            keys=keys,
            certificate=certificate,
            psk=psk,
            settings=settings,
            bench=bench_of(membership, me, work, learner, draws_of(config, membership)),
            store=store,
            started=started(store, rows, membership, me, work, begin),
            log=log,
            entropy=os.urandom,
            judge=judge_of(work),
            metric=work.task.metric,
            recorder=recorder_of(config, settings, work, log) if config.node.record else None,
        )
    except BaseException:
        store.close()
        raise


# ---- who -------------------------------------------------------------------------------------------------------------


def member_of(config: NodeConfig, membership: Membership) -> str:
    """My id, which must be that of an active member."""
    me = config.node.id
    if me not in membership:
        raise _fault(config.node.federation, f"{me!r} is not a member of version {membership.version}",
                     "correct [node] id, or have whoever made the file add you")  # fmt: skip
    if membership.has_left(me):
        raise _fault(config.node.federation, f"{me!r} has left this federation",
                     "to come back a node needs a new id, and a new federation file")  # fmt: skip
    return me


def load_keys(
    config: NodeConfig, membership: Membership, passphrase: str | None
) -> tuple[NodeKeys, Certificate, bytes]:
    """(operational keys, certificate, psk): they belong together, to this member, and are valid now."""
    keys = NodeKeys(load_key(config.node_key, passphrase, "node"))
    psk = load_key(config.psk_key, passphrase, "psk")
    if len(psk) != 32:
        raise _fault(config.psk_key, f"holds {len(psk)} bytes, a psk has 32", "copy psk.key of the federation again")
    certificate = own_certificate(config, membership, keys)
    if (certificate.signing, certificate.noise) != (keys.signing.public, keys.noise_public):
        raise _fault(
            config.certificate, "is not the certificate of node.key", "put the two files of one `init` together"
        )
    if certificate.member != config.node.id:
        raise _fault(
            config.certificate, f"is that of {certificate.member!r}, not {config.node.id!r}", "correct [node] id"
        )
    if certificate.identity != membership.member(config.node.id).identity_bytes:
        raise _fault(config.node.federation, f"names another identity key for {config.node.id!r}",
                     "the federation file must be made from this node's own line")  # fmt: skip
    if not certificate.valid_at(time.time_ns()):
        day = time.strftime("%Y-%m-%d", time.gmtime(certificate.not_after))
        raise _fault(
            config.certificate, f"is not valid now (it ends {day})", "renew it, or correct this machine's clock"
        )
    return keys, certificate, psk


def own_certificate(config: NodeConfig, membership: Membership, keys: NodeKeys) -> Certificate:
    """The newest of the file beside the keys and the membership's copy that are of these keys."""
    found = [membership.member(config.node.id).certificate_read]
    path = config.certificate
    if path.exists():
        try:
            found.append(Certificate.decode(path.read_bytes()))
        except OSError as error:
            raise ConfigError(
                Fault(str(path), None, f"cannot be read: {error.strerror}", "check its owner and mode"),
                exit_code=Exit.PERMISSION,
            ) from None
        except Exception as error:
            raise _fault(path, f"is no certificate: {error}", "copy it again from where `init` made it") from None
    fitting = [one for one in found if one.noise == keys.noise_public]
    return max(fitting or found, key=lambda one: one.counter)


def take_membership(store: Store, rows: Mapping[tuple[str, str], bytes], new: Membership, path: Path) -> None:
    """Keep the federation file's content; what `follows` refuses is refused."""
    if not follows(rows, new, path):
        return
    store.rows.apply([("membership", "document", new.dump().encode())], [_Fact("membership", {"version": new.version})],
                     time.time_ns())  # fmt: skip


def follows(rows: Mapping[tuple[str, str], bytes], new: Membership, path: Path) -> bool:
    """Whether the federation file is newer than the one that this node used last, or its first.

    **Raises**: ConfigError: a lower version, another file of the same version, or one that does not follow from it.
    """
    held = rows.get(("membership", "document"))
    if held is None:
        return True
    old = Membership.parse(held.decode(), "the federation file that this node used last")
    if old.digest == new.digest:
        return False
    if new.version == old.version:
        raise _fault(path, f"is another version {new.version} than this node has used: somebody changed the file by hand, or "
                     "two people made it", "compare the digests of `gossipfl federation show` with the other members, and take "
                     "theirs; a change is a new version (`federation add` or `leave`)")  # fmt: skip
    if new.version < old.version:
        raise _fault(path, f"is version {new.version}; this node has used version {old.version} already",
                     "install the newest federation file; it never goes back")  # fmt: skip
    if not replaces(old, new):
        raise _fault(path, "does not follow from the version that this node used: another federation or first model, "
                     "or a member forgotten", "for another study use a state folder of its own")  # fmt: skip
    if len(new.members) > len(old.members) and any(kind == "course" for kind, _ in rows):
        joined = sorted({member.id for member in new.members} - {member.id for member in old.members})
        raise _fault(path, f"names new members ({', '.join(joined)}) in a study that has begun",
                     "make a new federation file for a new study, with a state folder of its own")  # fmt: skip
    return True


@dataclass(frozen=True)
class _Fact:
    kind: str
    fields: dict[str, Any]


# ---- what ------------------------------------------------------------------------------------------------------------


def load_work(config: NodeConfig, membership: Membership, external: bool) -> Work:
    """Task, layout and x^0 as this machine makes them, and this site's rows; they must be the federation's."""
    study = membership.study
    task = tasks.load(study.task, study.task_options)
    work = work_of(study, task, None)
    if work.layout.digest != membership.layout_digest or name_of(work.start.data) != membership.x0_name:
        what = "layout" if work.layout.digest != membership.layout_digest else "first model"
        raise _fault(config.node.federation, f"the {what} of task {study.task!r} is another on this machine",
                     "install the version of gossipfl and of the task that made the federation file")  # fmt: skip
    observer = membership.member(config.node.id).role == "observer"
    without = observer or (external and config.data.is_empty)
    return work if without else replace(work, site=load_site(config, study, task))


def load_site(config: NodeConfig, study: Study, task: Task) -> Site:
    """This site's rows, its hold-out set apart."""
    site = site_of(task, config.node.id, config.data.source(), study.holdout_key_bytes, study.holdout)
    if not len(site.train):
        rows = len(site.holdout)
        raise ConfigError(Fault("[data]", None, f"{rows} rows, none of them left to train on", "name more rows"))
    return site


def fingerprint(site: Site | None) -> bytes:
    """Which rows these are, and which of them are held out."""
    parts = (site.train, site.holdout) if site else ()
    return hashlib.sha256(b"".join(part.digest for part in parts)).digest()


def take_data(
    store: Store, rows: Mapping[tuple[str, str], bytes], site: Site, accept: bool, config: NodeConfig
) -> None:
    """The rows are those of the last start, or the operator says that they may differ."""
    mark = fingerprint(site)
    held = rows.get(("data", "fingerprint"))
    if held is not None and held != mark and not accept:
        raise ConfigError(
            Fault(
                "[data]",
                None,
                "the rows are not those that this study began with here",
                "restore the file; or, if the change is meant, start once with --accept-new-data",
            )
        )
    if held != mark:
        fact = _Fact("data", {"rows": len(site.train) + len(site.holdout), "train": len(site.train)})
        store.rows.apply([("data", "fingerprint", mark)], [fact], time.time_ns())


def started(
    store: Store, rows: dict[tuple[str, str], bytes], membership: Membership, me: str, work: Work, begin: Any
) -> ev.Started:
    """The first event, with the vectors that it names in the store."""
    files = store.files
    own = statistics_of(work, membership, me)
    x0, zeros = files.put(work.start), files.put(np.zeros_like(own))
    missing = files.missing(names_in(rows))
    if is_lost(rows, me, missing):
        raise Damaged(NO_MODEL)
    statistics = files.put(made_again(files, own, bookings(rows, missing) or ()))
    return ev.Started(
        rows=rows,
        model=x0,
        statistics=statistics,
        statistics_base=zeros,
        begin=b"" if begin is None else files.put(begin),
        missing=missing,
    )


# ---- hands -----------------------------------------------------------------------------------------------------------


def learner_of(config: NodeConfig, work: Work, minimum: int, log: Log) -> Callable[[ms.Normalisation | None], Any]:
    """What makes the trainer over this site's rows, once the statistics are frozen; it compares them with the site's own."""

    def learner(statistics: ms.Normalisation | None) -> Any:
        if work.site is None:
            return None
        if statistics is not None and work.normalised:
            compare(config, work, statistics, minimum, log)
        return trainer(config, work, normaliser_of(statistics))

    return learner


def draws_of(config: NodeConfig, membership: Membership) -> tuple[int, ...]:
    """What seeds this node's minibatches: nobody else knows it, but in lockstep, where a run must be the same again."""
    if not config.node.lockstep:
        return tuple(os.urandom(16))
    return tuple(hashlib.sha256(membership.federation_id + config.node.id.encode()).digest()[:16])


def in_step(settings: Settings, membership: Membership) -> Settings:
    """The same, in lockstep. Raises ConfigError where the study leaves something to the clock."""
    watching = [member.id for member in membership.members if member.is_active and member.role != "trainer"]
    if settings.statistics_size or settings.external or watching:
        why = (
            "the task normalises by gossip, in no fixed order" if settings.statistics_size
            else "a loop of one's own hands its steps in when it likes" if settings.external
            else f"{', '.join(watching)} only watches, and has no rounds"
        )  # fmt: skip
        raise ConfigError(Fault("[node] lockstep", None, why, "leave lockstep out"))
    schedule = Schedule(settings.members, settings.me, settings.dialable)
    if settings.local_rounds + settings.release_exchanges > schedule.rounds_max:
        why = f"the study has {settings.local_rounds} local rounds, and a schedule of this topology {schedule.rounds_max}"
        raise ConfigError(Fault("[node] lockstep", None, why, "leave lockstep out"))
    return dataclasses.replace(settings, lockstep=True)


def recorder_of(config: NodeConfig, settings: Settings, work: Work, log: Log) -> Recorder:
    """What writes this life of the node to a file of its own in the state folder."""
    layout = work.layout
    shape = Shape(layout.n_parameters, layout.n_moments, layout.dtype)
    folder, limit = config.node.state / RECORDINGS, config.limits.record_mib << 20
    recorder = Recorder.create(folder, settings, shape, __version__, limit)
    log.say("recording", file=str(recorder.path), detail="control messages and names of tensors; no keys, no rows of data")
    return recorder


def must_have_device(config: NodeConfig) -> None:
    """That torch can use the device is seen at the start, not when the statistics stage has ended. Raises ConfigError."""
    if config.limits.device == "cpu":
        return
    import torch

    try:
        torch.empty(0, device=config.limits.device)
    except (RuntimeError, AssertionError) as error:
        what = f"{config.limits.device}: {str(error).splitlines()[0]}"
        raise ConfigError(Fault("[limits] device", None, what, 'write device = "cpu"')) from None


def trainer(config: NodeConfig, work: Work, normaliser: normalisation.Normaliser) -> Any:
    assert work.site is not None
    if hasattr(work.task, "trainer"):
        return trainer_of(work, normaliser)
    import torch

    torch.set_num_threads(config.limits.threads)
    if config.limits.device == "cpu":
        return trainer_of(work, normaliser)
    from gossipfl.learning.training import Trainer

    rows = fitting.prepare(work.task, normaliser, work.site.train)
    try:
        device = torch.device(config.limits.device)
        module = work.task.model().to(device)
        x, y = torch.tensor(rows, device=device), torch.tensor(work.site.train.y, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            Fault("[limits] device", None, f"{config.limits.device}: {error}", 'write device = "cpu"')
        ) from None
    return Trainer(module, work.layout, work.task.loss, x, y)


def compare(config: NodeConfig, work: Work, statistics: ms.Normalisation, minimum: int, log: Log) -> None:
    """This site's mean and spread beside the federation's: a file in the state folder, and a warning for what looks wrong."""
    assert work.site is not None
    count, mean, spread = (np.array(row) for row in (statistics.count, statistics.mean, statistics.spread))
    rows = normalisation.compare(work.site.train, count, mean, spread, minimum, ranges_of(work.task))
    path = config.node.state / "normalisation.json"
    with border(f"write {path}"):
        path.write_text(json.dumps([vars(row) for row in rows], indent=1), encoding="utf-8")
    for row in rows:
        if row.warning:
            log.say(
                "feature",
                feature=row.feature,
                own=round(row.own_mean, 6),
                others=round(row.mean, 6),
                warning=row.warning,
            )
    log.say("normalised", features=len(rows), warnings=sum(bool(row.warning) for row in rows), file=str(path))


def _fault(path: Path, what: str, remedy: str) -> ConfigError:
    return ConfigError(Fault(str(path), None, what, remedy))
