"""`torpor certs`: what it makes, keeps, mends and renews."""

from __future__ import annotations

import datetime
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from torpor.apps.certs import DAYS, Certificates, certificate_of, ensure
from torpor.apps.settings import resolve
from torpor.model.errors import InvalidInput

NOW = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)


def verify(found: Certificates, name: str, at: datetime.datetime = NOW) -> None:
    """As a client does that trusts the authority alone."""
    authority = x509.load_pem_x509_certificate(found.authority.read_bytes())
    chain = x509.load_pem_x509_certificates(found.certificate.read_bytes())
    verifier = PolicyBuilder().store(Store([authority])).time(at).build_server_verifier(x509.DNSName(name))
    verifier.verify(chain[0], chain[1:])


def test_a_certificate_for_the_domain_and_all_names_below(tmp_path: Path) -> None:
    found = ensure(tmp_path, "sbx.example.com:8443", NOW)
    assert found.made and found.domain == "sbx.example.com"
    for name in ("sbx.example.com", "api.sbx.example.com", "8000-" + "a" * 25 + ".sbx.example.com"):
        verify(found, name)
    for other in ("example.com", "a.b.sbx.example.com", "other.example.com"):
        with pytest.raises(x509.verification.VerificationError):
            verify(found, other)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "tls").iterdir()}
    assert modes == {"ca.pem": 0o644, "ca.key": 0o600, "sbx.example.com.pem": 0o644, "sbx.example.com.key": 0o600}
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(found.certificate, found.key)


def test_what_is_good_is_kept_and_what_is_not_is_made_anew(tmp_path: Path) -> None:
    first = ensure(tmp_path, "sbx.example.com", NOW)
    content = {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()}
    assert not ensure(tmp_path, "sbx.example.com", NOW + datetime.timedelta(days=DAYS - 31)).made
    assert {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()} == content
    later = NOW + datetime.timedelta(days=DAYS - 29)
    renewed = ensure(tmp_path, "sbx.example.com", later)
    assert renewed.made and renewed.expires > first.expires and first.authority.read_bytes() == content["ca.pem"]
    verify(renewed, "api.sbx.example.com", later)
    for damage in (lambda: first.key.unlink(), lambda: first.certificate.write_bytes(b"nonsense"), lambda: first.key.write_bytes(content["ca.key"])):
        damage()
        mended = ensure(tmp_path, "sbx.example.com", NOW)
        assert mended.made
        verify(mended, "sbx.example.com")
    assert ensure(tmp_path, "other.example.com", NOW).made and not ensure(tmp_path, "sbx.example.com", NOW).made
    (tmp_path / "tls" / "ca.key").unlink()
    replaced = ensure(tmp_path, "sbx.example.com", NOW)
    assert replaced.made and replaced.authority.read_bytes() != content["ca.pem"]
    verify(replaced, "sbx.example.com")


def test_what_needs_a_domain_says_so(tmp_path: Path) -> None:
    for wrong in ("", "localhost"):
        with pytest.raises(InvalidInput):
            ensure(tmp_path, wrong)
    given = {"home": tmp_path, "tls": "auto"}
    with pytest.raises(InvalidInput):
        certificate_of(resolve(given, environment={}))
    settings = resolve(given | {"domain": "Sbx.Example.com"}, environment={})
    assert certificate_of(settings) == (str(tmp_path / "tls" / "sbx.example.com.pem"), str(tmp_path / "tls" / "sbx.example.com.key"))
    named = resolve(given | {"tls_certificate": "mine.pem", "tls_key": "mine.key"}, environment={})
    assert certificate_of(named) == ("mine.pem", "mine.key")
    for wrong in ("a b", "-a.example", "a..b", "x" * 250, "https://a.example", "a.example/x", "*.a.example"):
        with pytest.raises(InvalidInput):
            resolve({"home": tmp_path, "domain": wrong}, environment={})


def test_the_command(tmp_path: Path) -> None:
    argv = [Path(sys.executable).with_name("torpor"), "certs", "--data", str(tmp_path), "--domain", "sbx.example.com", "--json"]
    made = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert '"made": true' in made.stdout
    assert '"made": false' in subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    told = subprocess.run(argv[:-1], capture_output=True, text=True, check=True).stderr
    assert "Kept the certificate" in told and f"SSL_CERT_FILE={tmp_path}/tls/ca.pem" in told
