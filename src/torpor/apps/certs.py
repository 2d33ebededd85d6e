"""`torpor certs`: a certificate authority of this home's own, and under it one certificate for `{domain}` and `*.{domain}`, where no public one is to be had.

    tls/ca.pem, ca.key                 the authority: made once, for ten years; clients are told to trust ca.pem
    tls/{domain}.pem, {domain}.key     certificate (with the authority's behind it) and key: for 397 days, made anew when 30 are left

Keys are 0600. Doing it again changes nothing that is still good; a file that was damaged, or does not fit its key, is made anew.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from torpor.api.reach import split
from torpor.apps.settings import Settings
from torpor.durable import files
from torpor.model.errors import InvalidInput, NoPermission

AUTHORITY_DAYS = 3650
DAYS = 397
"""More is refused by some clients."""
RENEWED_BEFORE = datetime.timedelta(days=30)
_SLACK = datetime.timedelta(days=1)
"""Clocks of clients may be behind."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where they are. `made`: whether the domain's was made just now."""

    domain: str
    authority: Path
    certificate: Path
    key: Path
    expires: datetime.datetime
    made: bool


def certificate_of(settings: Settings, now: datetime.datetime | None = None) -> tuple[str, str]:
    """What `torpor serve` shows: the files it was told, the domain's own with `tls = auto`, or none. Raises InvalidInput, NoPermission."""
    if settings.tls_certificate or settings.tls_key or settings.tls != "auto":
        return settings.tls_certificate, settings.tls_key
    found = ensure(settings.home, settings.domain, now)
    return str(found.certificate), str(found.key)


def main(settings: Settings, say: Callable[[str], None]) -> Certificates:
    """Makes what is missing and tells how to use it. Raises InvalidInput without a domain, NoPermission."""
    found = ensure(settings.home, settings.domain)
    name = settings.domain
    say(f"{'Made' if found.made else 'Kept'} the certificate for {found.domain} and *.{found.domain}, good until {found.expires:%Y-%m-%d}.")
    say(f"  server      torpor serve --domain {name} --tls auto")
    say(f"  E2B's SDK   E2B_DOMAIN={name} SSL_CERT_FILE={found.authority}      (Node: NODE_EXTRA_CA_CERTS)")
    say(f"  curl        curl --cacert {found.authority} https://api.{name}/health")
    say(f"  DNS         {found.domain} and *.{found.domain} must lead to the server")
    return found


def ensure(home: Path, domain: str, now: datetime.datetime | None = None) -> Certificates:
    """The certificates of this domain (a port after it is ignored). Raises InvalidInput without one, NoPermission when the home cannot be written."""
    name = split(domain)[0]
    if not name:
        raise InvalidInput("A certificate is for a domain.", mend="Give --domain, or set domain in torpor.toml.")
    if "." not in name:
        raise InvalidInput(f"Clients refuse certificates for *.{name}.", mend=f"Use a domain of two parts, such as sbx.{name}.")
    now = now or datetime.datetime.now(datetime.UTC)
    folder = home / "tls"
    try:
        home.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        authority = _Pair.load(folder / "ca") or _Pair.store(folder / "ca", *_authority(now))
        if authority.certificate.not_valid_after_utc - RENEWED_BEFORE <= now:
            authority = _Pair.store(folder / "ca", *_authority(now))
        found = _Pair.load(folder / name)
        made = found is None or not found.is_of(authority, now)
        if found is None or made:
            found = _Pair.store(folder / name, *_certificate(name, authority, now), chain=authority.certificate)
    except PermissionError as error:
        raise NoPermission(f"{folder} cannot be written by this user: {error.strerror}.", mend="Choose another home with --data.") from None
    return Certificates(name, authority.path, found.path, found.key_path, found.certificate.not_valid_after_utc, made)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate and its key, in files."""

    path: Path
    key_path: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, base: Path) -> _Pair | None:
        """None when there is none, or none that is whole."""
        path, key_path = base.with_name(f"{base.name}.pem"), base.with_name(f"{base.name}.key")
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            return None
        return cls(path, key_path, certificate, key)

    @classmethod
    def store(cls, base: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, chain: x509.Certificate | None = None) -> _Pair:
        """The key first: a certificate without its key is none."""
        path, key_path = base.with_name(f"{base.name}.pem"), base.with_name(f"{base.name}.key")
        secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        files.replace(key_path, secret, 0o600)
        shown = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (certificate, chain) if each is not None)
        files.replace(path, shown, 0o644)
        return cls(path, key_path, certificate, key)

    def is_of(self, authority: _Pair, now: datetime.datetime) -> bool:
        """Signed by this authority, and good for a while."""
        try:
            self.certificate.verify_directly_issued_by(authority.certificate)
        except (InvalidSignature, ValueError, TypeError):
            return False
        return self.certificate.not_valid_after_utc - RENEWED_BEFORE > now


def _authority(now: datetime.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"torpor {secrets.token_hex(4)}")])
    builder = _builder(name, name, key, now, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = {each: each in ("key_cert_sign", "crl_sign", "digital_signature") for each in _USAGES}
    builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
    return builder.sign(key, hashes.SHA256()), key


def _certificate(name: str, authority: _Pair, now: datetime.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    builder = _builder(subject, authority.certificate.subject, key, now, DAYS)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName(f"*.{name}")]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.KeyUsage(**{each: each == "digital_signature" for each in _USAGES}), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return builder.add_extension(signer, critical=False).sign(authority.key, hashes.SHA256()), key


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime, days: int) -> x509.CertificateBuilder:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
