"""Files of a public data set: where they lie, their sha256, licence and source. Nothing is fetched and nothing is parsed.

The files are never shipped with gossipfl: who has them names the folder above (`--data-dir`, or GOSSIPFL_DATA).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gossipfl.errors import ConfigError, Fault
from gossipfl.tasks.task import data_folder


@dataclass(frozen=True)
class Published:
    """One data set's folder and its files, each with the sha256 without which no row of it is read."""

    folder: str
    sha256: Mapping[str, str]
    where: str
    """where a person gets it"""
    licence: str

    def at(self, data_dir: str | Path | None) -> Path:
        """The folder with the files. **Raises**: ConfigError that says where they are obtained."""
        sums = ", ".join(f"{name} (sha256 {digest})" for name, digest in self.sha256.items())
        return data_folder(data_dir, os.environ.get("GOSSIPFL_DATA"), self.folder, f"{self._obtain()}: {sums}")

    def read(self, folder: Path, name: str) -> bytes:
        """A file's bytes. **Raises**: ConfigError where it is absent or differs: which, what was expected, where it is."""
        path, expected = folder / name, self.sha256[name]
        try:
            content = path.read_bytes()
        except OSError as error:
            remedy = f"{self._obtain()}; its sha256 is {expected}"
            raise ConfigError(Fault(str(path), None, f"cannot be read: {error.strerror}", remedy)) from error
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise ConfigError(
                Fault(str(path), None, f"is not the published file: sha256 {found}, expected {expected}", self._obtain())
            )
        return content

    def rows(self, folder: Path, name: str) -> list[dict[str, str]]:
        """The rows of a gzipped CSV file with a header, as text."""
        text = gzip.decompress(self.read(folder, name)).decode("latin-1")
        return list(csv.DictReader(io.StringIO(text)))

    def _obtain(self) -> str:
        return f"get it from {self.where} (licence {self.licence})"
