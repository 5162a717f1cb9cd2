"""node.toml: what one institution decides for its own node, as frozen models; every fault at once, with its line.

Not here: what the federation decides together (gossipfl.trust.membership), secrets (a config names folders of keys,
never a key or passphrase), and what is done with any of it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, ValidationInfo, field_validator, model_validator

from gossipfl.documents import Many, Strict, from_toml, located, read_text, toml_lines
from gossipfl.errors import ConfigError
from gossipfl.trust.identity import ADDRESS, ADDRESS_MAX, ADDRESSES_MAX
from gossipfl.trust.membership import valid_member_id

IDENTITY_KEY: Final = "identity.key"
NODE_KEY: Final = "node.key"
CERTIFICATE: Final = "node.certificate"
PSK: Final = "psk.key"
"""Names in the folder of keys. The psk comes from whoever made the federation; the others are made by `init`."""


def _in_folder(value: object, info: ValidationInfo) -> object:
    """A path of the document, relative to the document's folder."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("not a path -- name a file or folder")
    try:
        return Path((info.context or {}).get("folder", "."), Path(value).expanduser())
    except RuntimeError:
        raise ValueError("no such user -- write the path out, without ~") from None


def split_address(text: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[ipv6]:port"; a ValueError says what is wrong. Port 0 is any free one."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})", text, re.ASCII)
    if not found or int(found[3]) > 65535 or not _is_host(found[1] or found[2]):
        raise ValueError('not an address -- write "host:port", for instance "0.0.0.0:8470", or "[::1]:8470"')
    return found[1] or found[2], int(found[3])


def joined_address(host: str, port: int) -> str:
    """What `split_address` takes apart: an IPv6 address in brackets.

    >>> joined_address("::1", 8471), joined_address("127.0.0.1", 8471)
    ('[::1]:8471', '127.0.0.1:8471')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_host(text: str) -> bool:
    """A name, or digits that are an IP address: 999.0.0.1 is neither."""
    if not re.fullmatch(r"[\d.]+|.*:.*", text, re.ASCII):
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def valid_listen(text: str) -> str:
    """The text, if it is empty or "host:port"; else a ValueError."""
    if text:
        split_address(text)
    return text


def _loopback(text: str) -> str:
    host, _ = split_address(text)
    if host != "localhost" and not (re.fullmatch(r"[\d.:a-fA-F]+", host) and ipaddress.ip_address(host).is_loopback):
        raise ValueError("not on loopback -- the admin listener has no password: use 127.0.0.1 or [::1]")
    return text


def _url(text: str, schemes: tuple[str, ...]) -> str:
    try:
        parts = urlsplit(text)
        good = parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or len(text) > ADDRESS_MAX or re.search(r"\s", text):
        raise ValueError(f"not a URL of {', '.join(schemes)} -- for instance {schemes[0]}://gossip.example.org:8470")
    return text


def valid_address(text: str) -> str:
    """The text, if it can stand in a certificate as an address; else a ValueError."""
    _url(text, ("https", "http", "wss", "ws"))
    if not ADDRESS.fullmatch(text):
        raise ValueError("not an address -- https://host:port/path, without user, query and fragment")
    return text


def _proxy(text: str) -> str:
    return _url(text, ("http", "https")) if text else text


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f'{error} -- write "192.0.2.7" or "192.0.2.0/24"') from None


def _delimiter(text: str) -> str:
    if len(text) != 1 or text in '"\r\n':
        raise ValueError('not a delimiter -- write one character, for instance ";", and no quote or line break')
    return text


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,2})?", text):
        raise ValueError("not a device -- cpu, cuda, cuda:1 or mps")
    return text


File = Annotated[Path, BeforeValidator(_in_folder)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class NodeSection(Strict):
    """[node]: who I am, where things lie, how I am reached."""

    id: Annotated[str, AfterValidator(valid_member_id)]
    """My member id."""
    federation: File = Field(default="federation.json", validate_default=True)
    """The federation file."""
    state: File = Field(default="state", validate_default=True)
    """Folder of all durable state; one process at a time."""
    keys: File = Field(default="keys", validate_default=True)
    """Folder of keys, mode 0700."""
    record: bool = False
    """Whether every event of the core is kept in state/recordings, for `gossipfl replay`."""
    lockstep: bool = False
    """Whether this node waits, after each local round, for the exchange that a fixed schedule says: for comparing runs,
    and then at every node. One absent node stops all."""
    listen: Annotated[str, AfterValidator(valid_listen)] = "0.0.0.0:8470"
    """Where peers reach me; empty: I only dial."""
    admin: Annotated[str, AfterValidator(_loopback)] = "127.0.0.1:8471"
    """Health, status and metrics, on loopback."""
    advertise: Annotated[Many[Annotated[str, AfterValidator(valid_address)]], Field(max_length=ADDRESSES_MAX)] = ()
    """URLs under which others reach me; they go into the certificate."""
    proxy: Annotated[str, AfterValidator(_proxy)] = ""
    """HTTP proxy for dialling (CONNECT); empty: none. The environment is not looked at."""
    trusted_proxies: Many[Annotated[str, AfterValidator(_network)]] = ()
    """Reverse proxies of my own, from which the limit on connections of one address does not count."""
    log: Literal["auto", "json", "text"] = "auto"
    """auto: text on a terminal, else JSON lines."""
    log_level: Literal["info", "debug"] = "info"
    """debug: of each exchange every step, not one line."""

    @model_validator(mode="after")
    def _two_ports(self) -> NodeSection:
        here, port = self.listen_address or ("", 0)
        there, admin = self.admin_address
        if port and port == admin and here in ("0.0.0.0", "::", "localhost", there):
            raise ValueError(f"listen and admin both want port {port} -- give one of them another")
        return self

    @property
    def listen_address(self) -> tuple[str, int] | None:
        return split_address(self.listen) if self.listen else None

    @property
    def admin_address(self) -> tuple[str, int]:
        return split_address(self.admin)


def _as_cell(value: object) -> object:
    """A sentinel as it stands in a cell: -9 and "-9" are the same."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Cell = Annotated[str, BeforeValidator(_as_cell)]


class DataSection(Strict):
    """[data]: where the rows are, and how this site's columns map to the study's. What is given goes to `Task.data`."""

    file: File | None = None
    """A CSV or Parquet file, one row a case."""
    columns: dict[Name, Name] = Field(default_factory=dict)
    """Study's name = "this site's column"; what is not named is called alike."""
    codes: dict[Name, dict[str, str]] = Field(default_factory=dict)
    """Of a category: this site's code = "the study's"."""
    scale: dict[Name, float] = Field(default_factory=dict)
    """What a column is multiplied by, so that it stands in the study's unit."""
    missing: Many[Cell] = ()
    """Cells that mean "not measured" in every column; an empty cell always does. In a column of numbers -9 is also -9.0."""
    missing_in: dict[Name, Many[Cell]] = Field(default_factory=dict)
    """The same, in one column."""
    id: Annotated[str, Field(max_length=200)] = ""
    """Column that names the patient, so that no split parts a patient's rows."""
    delimiter: Annotated[str, AfterValidator(_delimiter)] = ","
    """Of a CSV file."""
    drop_unlabelled: bool = False
    """Leave out rows without a label, instead of refusing the file."""
    allow_constant: Many[Name] = ()
    """Columns that may have one value only at this site."""
    site: Annotated[int, Field(ge=0)] | None = None
    """Of a built-in task: which part of its rows this site plays, counted from 0."""
    sites: Annotated[int, Field(ge=1)] | None = None
    """Into how many parts those rows are parted."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Of that partition: the same at every node that plays."""
    part: Annotated[str, Field(max_length=32)] | None = None
    """Which rows of it: the task says which there are."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Of the task toy: how many."""
    hospital: Annotated[str, Field(max_length=100)] | None = None
    """Of the task heart: which of the real four."""
    data_dir: File | None = None
    """Folder of public data sets that a built-in task reads."""
    options: dict[Name, JsonValue] = Field(default_factory=dict)
    """What a task of one's own wants to know beside these."""

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        named = [name for name in ("file", "site", "hospital") if name in self.source()]
        if len(named) > 1:
            raise ValueError(f"both {' and '.join(named)} are given -- a node has one source: keep one")
        return self

    @property
    def is_empty(self) -> bool:
        return not self.source()

    def source(self) -> dict[str, Any]:
        """What `Task.data` is called with: the fields that are given, and the options beside them; paths as text."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"options"}) | self.options


class LimitsSection(Strict):
    """[limits]: what the node may use."""

    allowed_hours: str = "00:00-24:00"
    """Local time of day in which models are exchanged; may pass midnight."""
    bandwidth_kib_s: Annotated[int, Field(ge=0, le=10**7)] = 0
    """KiB a second that all links together may send; 0: no cap."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads of torch."""
    device: Annotated[str, AfterValidator(_device)] = "cpu"
    """cpu, cuda, cuda:1, mps."""
    checkpoint_s: Annotated[float, Field(ge=1, le=86_400)] = 30.0
    """Seconds between checkpoints: so much local training a crash may lose."""
    record_mib: Annotated[int, Field(ge=1, le=10**6)] = 1024
    """MiB that the recording of one life may take; there it ends, and the node goes on."""

    @field_validator("allowed_hours")
    @classmethod
    def _hours(cls, text: str) -> str:
        _window(text)
        return text

    def allows(self, minute: int) -> bool:
        """May models be exchanged at this minute of the local day (0 to 1439)?

        >>> night = LimitsSection(allowed_hours="22:00-06:00")
        >>> [night.allows(hour * 60) for hour in (21, 22, 0, 6)]
        [False, True, True, False]
        """
        start, end = _window(self.allowed_hours)
        return start <= minute < end if start < end else minute >= start or minute < end


def _window(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d\d):([0-5]\d)-(\d\d):([0-5]\d)", text, re.ASCII)
    start, end = (int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])) if found else (0, 0)
    if start == end or max(start, end) > 24 * 60:
        raise ValueError('not hours -- write "22:00-06:00", or "00:00-24:00" for always')
    return start, end


class NodeConfig(Strict):
    """A whole node.toml."""

    node: NodeSection
    data: DataSection = DataSection()
    limits: LimitsSection = LimitsSection()

    @property
    def identity_key(self) -> Path:
        return self.node.keys / IDENTITY_KEY

    @property
    def node_key(self) -> Path:
        return self.node.keys / NODE_KEY

    @property
    def certificate(self) -> Path:
        return self.node.keys / CERTIFICATE

    @property
    def psk_key(self) -> Path:
        return self.node.keys / PSK


def load_node(path: Path) -> NodeConfig:
    """The node.toml at `path`; its paths are relative to its folder. Raises ConfigError with every fault."""
    return from_toml(NodeConfig, read_text(path), str(path), {"folder": path.resolve().parent})


TABLES: Final[dict[str, tuple[str | int, ...]]] = {
    "[data]": ("data",),
    "[limits] device": ("limits", "device"),
    **{f"[node] {name}": ("node", name) for name in ("lockstep", "listen", "admin")},
}
"""What rooms that do not know its file call a part of node.toml."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Faults that are found in parts of the node.toml at `path` by who does not know it leave this block with file and line."""
    try:
        yield
    except ConfigError as error:
        faults = located(error, str(path), toml_lines(read_text(path)), TABLES)
        raise ConfigError(*faults, exit_code=error.exit_code) from None


TEMPLATE: Final = """\
# gossipfl node of {id}. Every key that is commented out stands at its default.
# Paths are relative to this file. `gossipfl doctor node.toml` checks all of it.

[node]
id = "{id}"
federation = "federation.json"    # the same file at every member; comes from whoever made it
keys = "{keys}"                     # identity.key, node.key, node.certificate, and psk.key beside them
state = "state"                   # all that must survive a restart; back it up with the node stopped
{listen_line}
{advertise_line}
{admin_line}# /healthz /readyz /status /metrics; loopback only
# proxy = ""                      # "http://proxy.example.org:3128" to dial through HTTP CONNECT
# trusted_proxies = []            # addresses of your own reverse proxy
# log = "auto"                    # auto | json | text
# log_level = "info"              # info: one line an exchange | debug: every step of it
# lockstep = false                # only to compare runs, and then at every node: one absent node stops all
# record = false                  # keep all that the protocol heard in state/recordings, for `gossipfl replay`

[data]
# file = "rows.csv"               # CSV or Parquet, one row a case; it is read here and never leaves
# id = "PATIENT"                  # column that names the patient: no split parts a patient's rows
# missing = [-9, "unknown"]       # cells that mean "not measured", in every column
# columns = {{ age = "AGE_Y" }}     # the study's name = "your column", where they differ
# codes = {{ sex = {{ "1" = "m", "2" = "f" }} }}     # your code = "the study's"
# scale = {{ glucose = 0.0555 }}    # times this, a value is in the study's unit
# missing_in = {{ cholesterol = [0] }}

[limits]
# allowed_hours = "00:00-24:00"   # local time in which models are exchanged, e.g. "22:00-06:00"
# bandwidth_kib_s = 0             # 0: no cap
# threads = 1
# device = "cpu"                  # cpu | cuda | cuda:1 | mps
# checkpoint_s = 30               # a crash loses at most so much local training
# record_mib = 1024               # where the recording of one life ends
"""


def template(member_id: str, *, keys: str = "keys", addresses: tuple[str, ...] = (), listen: str = "0.0.0.0:8470") -> str:
    """The commented node.toml that `gossipfl init` writes; `listen` empty: nobody can reach it, it dials."""
    said = 'peers connect here; "" = dial only' if listen else "dial only: nobody can reach me"
    line = f'listen = "{listen}"'
    quoted = ", ".join(f'"{address}"' for address in addresses)
    advertise = f"advertise = [{quoted}]" + "    # in the certificate; made anew when it is renewed"
    taken = bool(listen) and split_address(listen)[1] == split_address(NodeSection.model_fields["admin"].default)[1]
    admin = 'admin = "127.0.0.1:8472"          ' if taken else '# admin = "127.0.0.1:8471"        '
    return TEMPLATE.format(
        id=member_id, keys=keys, listen_line=f"{line:<34}# {said}", advertise_line=advertise, admin_line=admin
    )
