"""Which certificate a door shows, and whose clients it lets in: the same for HTTP and gRPC."""

from __future__ import annotations

import ssl
from pathlib import Path

import msgspec

from protocol.errors import InputError


class Tls(msgspec.Struct, frozen=True):
    """PEM files. With `client_ca`, only clients with a certificate of that authority get in."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Raises InputError naming the file that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            fact = f"cannot use the certificate {self.certificate} with the key {self.key} ({error})"
            raise InputError(fact, "give a PEM certificate and the key that belongs to it") from error
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ssl.SSLError) as error:
                fact = f"cannot use {self.client_ca} as authority for clients ({error})"
                raise InputError(fact, "give a PEM file with its certificate") from error
        return context
