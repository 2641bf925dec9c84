"""Keys and certificates of the parties of a study: one a role, under an authority of the study.

A certificate names the role of its holder, as the URI `privtrain:ROLE` among its names: who holds
that of `party-1` cannot speak as `party-0` or as the dealer. The authority's own key signs the
certificates and is forgotten: nobody can add a party later.
"""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SCHEME = "privtrain:"
_AUTHORITY = "authority.pem"
_DAYS = 365


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What one role proves itself with, and knows the others by; all in PEM.

    Args:
        role: The role, as the certificate names it.
        authority: Certificate of the study's authority.
        certificate: The role's certificate.
        key: The role's private key, Ed25519.
    """

    role: str
    authority: str = field(repr=False)
    certificate: str = field(repr=False)
    key: str = field(repr=False)


def make_credentials(roles: Sequence[str], *, days: int = _DAYS) -> dict[str, Credentials]:
    """New credentials for each role, under a new authority.

    Args:
        roles: Names of the parties, each once.
        days: For how long they are valid.

    Returns:
        The credentials by role.

    Raises:
        ValueError: If there is no role, or one twice.
    """
    # Heavy, and needed by those alone who make keys.
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not roles or len(set(roles)) < len(roles):
        raise ValueError(f"Expected roles={list(roles)} to be at least one, each once.")
    authority_key = Ed25519PrivateKey.generate()
    authority = _signed("authority", authority_key, None, authority_key, days)
    made = {}
    for role in roles:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        made[role] = Credentials(
            role=role,
            authority=_pem(authority),
            certificate=_pem(_signed(role, key, authority, authority_key, days)),
            key=pem.decode(),
        )
    return made


def _pem(certificate: "x509.Certificate") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode()


def _signed(
    role: str,
    key: "Ed25519PrivateKey",
    authority: "x509.Certificate | None",
    authority_key: "Ed25519PrivateKey",
    days: int,
) -> "x509.Certificate":
    """A certificate of the role; without an authority, the authority's own."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    own = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "privtrain study")])
    # The name as a URI: a common name is cut at 64 characters, a host's name takes few letters.
    holder = x509.Name([]) if authority is not None else own
    now = datetime.now(UTC)
    signs = authority is None
    public = key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(holder)
        .issuer_name(own)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        # Clocks of hosts differ.
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=signs, path_length=0 if signs else None), True)
        .add_extension(_usage(signs), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), False
        )
    )
    if not signs:
        name = x509.UniformResourceIdentifier(_SCHEME + quote(role, safe=""))
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName([name]), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), False)
    return builder.sign(authority_key, None)


def _usage(signs: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def role_of(certificate: "Mapping[str, object] | None") -> str | None:
    """The role that a certificate names, or None where it names none, or several.

    Args:
        certificate: As `ssl.SSLSocket.getpeercert` returns it.
    """
    names = (certificate or {}).get("subjectAltName", ())
    if not isinstance(names, tuple) or len(names) != 1:
        return None
    kind, name = names[0]
    if kind != "URI" or not name.startswith(_SCHEME):
        return None
    return unquote(name.removeprefix(_SCHEME))


def write_credentials(folder: Path, made: dict[str, Credentials]) -> dict[str, list[Path]]:
    """Writes the credentials of a study; private keys are readable by their owner alone.

    Args:
        folder: Is made; must not hold any of the files.
        made: The credentials by role.

    Returns:
        For each role the files that go to it.

    Raises:
        ValueError: If a role is no file name, or a file is there already.
    """
    for role in made:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", role) or role == "authority":
            raise ValueError(
                f"Expected role={role!r} to be a name of letters, digits, '.', '_' and '-' other "
                "than 'authority'."
            )
    files = {
        role: [folder / _AUTHORITY, folder / f"{role}.pem", folder / f"{role}.key"] for role in made
    }
    there = sorted({path for paths in files.values() for path in paths if path.exists()})
    if there:
        raise ValueError(f"{there[0]} is there already; name another folder, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    for role, (authority, certificate, key) in files.items():
        if not authority.exists():
            authority.write_text(made[role].authority)
        certificate.write_text(made[role].certificate)
        # Private from the first moment on, whatever the umask.
        with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(made[role].key)
    return files


def read_credentials(folder: Path, role: str) -> Credentials:
    """The credentials of a role.

    Args:
        folder: Holds the role's files.
        role: The role.

    Raises:
        ValueError: If a file is missing, or others may read the private key.
    """
    key = folder / f"{role}.key"
    try:
        texts = [path.read_text() for path in (folder / _AUTHORITY, folder / f"{role}.pem", key)]
        mode = stat.S_IMODE(key.stat().st_mode)
    except OSError as error:
        raise ValueError(
            f"Expected keys={folder} to hold {_AUTHORITY}, {role}.pem and {role}.key, as privtrain "
            f"party keys makes them: {error.strerror}: {error.filename}."
        ) from error
    if mode & 0o077:
        raise ValueError(
            f"Expected {key} to be readable by its owner alone; its mode is {mode:04o}: run "
            f"chmod 600 {key}."
        )
    return Credentials(role=role, authority=texts[0], certificate=texts[1], key=texts[2])
