"""TLS towards workers: whose certificates are trusted, and which one is shown to them."""

import ssl
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

_KEPT = 64
"""Contexts that are remembered: loading the system's authorities takes 10 ms."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files, each optional, as they were when `read` looked at them."""

    authorities: Path | None = None
    """Certificates of the authorities that sign those of workers; None: the system's."""
    certificate: Path | None = None
    """The chain of the certificate that is shown to workers (mutual TLS); None: none is."""
    key: Path | None = None
    """Its private key; None: it stands in the same file."""
    changed_ns: tuple[int, ...] = ()
    """When each file was last written: a renewed certificate makes another value, and so another context."""

    @classmethod
    def read(
        cls, authorities: Path | None = None, certificate: Path | None = None, key: Path | None = None
    ) -> Self:
        """Raises ValueError that names the file which is missing or holds something else."""
        if key is not None and certificate is None:
            raise ValueError("a private key needs the certificate that it belongs to")
        files = [file for file in (authorities, certificate, key) if file is not None]
        try:
            made = cls(authorities, certificate, key, tuple(file.stat().st_mtime_ns for file in files))
        except OSError as error:
            raise ValueError(f"{error.filename}: {error.strerror}") from None
        context_of(made)
        return made


@lru_cache(maxsize=_KEPT)
def context_of(files: TlsFiles | None) -> ssl.SSLContext:
    """Return the same client's context for equal files; None: the system's authorities. Raises ValueError."""
    if files is None:
        return ssl.create_default_context()
    file = files.authorities
    try:
        context = ssl.create_default_context(cafile=file)
        if files.certificate is not None:
            file = files.key or files.certificate
            # A key with a passphrase would ask for it on the terminal: it is refused.
            context.load_cert_chain(files.certificate, files.key, password="")
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"{file} cannot be used: {getattr(error, 'reason', None) or error}") from None
    return context
