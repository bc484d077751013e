import base64
import datetime as dt
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from claude_vm.drivers.images import certificates
from claude_vm.drivers.images.certificates import host_certificates

BEGIN, END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def authority(name):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=36500))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture(scope="module")
def pems():
    return [authority(name) for name in ("one", "two", "three")]


@pytest.fixture
def put(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_the_clients_bundles_come_first_and_each_certificate_once(pems, put):
    environ = {
        "SSL_CERT_FILE": put("a", pems[0] + pems[1] + pems[0]),
        "NODE_EXTRA_CA_CERTS": put("b", pems[1] + pems[2]),
    }
    assert host_certificates(environ, bundles=()) == tuple(pems)


def test_the_systems_bundle_is_taken_when_the_client_names_none(pems, put, tmp_path):
    bundles = (tmp_path / "missing", tmp_path, *[tmp_path / name for name in "ab"])
    put("a", "no certificate in here")
    put("b", pems[0])
    assert host_certificates({}, bundles=bundles) == (pems[0],)
    assert host_certificates({"NODE_EXTRA_CA_CERTS": put("c", pems[1])}, bundles=bundles) == (
        pems[1],
        pems[0],
    )
    assert host_certificates({"SSL_CERT_FILE": put("c", pems[1])}, bundles=bundles) == (pems[1],)


def test_a_bundle_that_can_not_be_read_is_passed_over(tmp_path, put, pems):
    environ = {"SSL_CERT_FILE": str(tmp_path), "NODE_EXTRA_CA_CERTS": str(tmp_path / "missing\0")}
    (tmp_path / "ok").write_text(pems[0])
    assert host_certificates(environ, bundles=(tmp_path / "ok",)) == (pems[0],)


def test_private_keys_comments_and_what_is_no_certificate_are_left_out(pems, put):
    junk = base64.b64encode(b"\x30\x82\x01\x00" + bytes(256)).decode()
    key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    cut = pems[1].replace(END, "")[:200] + f"\n{END}\n"
    text = f"# a comment\n{key}{BEGIN}\n{junk}\n{END}\n{BEGIN}\n!!!\n{END}\n{cut}{pems[0]}{BEGIN}\n"
    assert host_certificates({"SSL_CERT_FILE": put("a", text)}, bundles=()) == (pems[0],)


def test_openssls_trusted_form_loses_its_extra_data(pems, put):
    der = ssl.PEM_cert_to_DER_cert(pems[0]) + b"\x30\x0c\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01"
    begin, end = BEGIN.replace("BEGIN", "BEGIN TRUSTED"), END.replace("END", "END TRUSTED")
    text = f"{begin}\n{base64.b64encode(der).decode()}\n{end}\n"
    assert host_certificates({"SSL_CERT_FILE": put("a", text)}, bundles=()) == (pems[0],)


def test_a_huge_bundle_is_read_in_part_only(pems, put, monkeypatch):
    monkeypatch.setattr(certificates, "MAX_BUNDLE_BYTES", len(pems[0]))
    assert host_certificates({"SSL_CERT_FILE": put("a", "".join(pems))}, bundles=()) == (pems[0],)
    monkeypatch.undo()
    monkeypatch.setattr(certificates, "MAX_CERTIFICATES", 2)
    assert len(host_certificates({"SSL_CERT_FILE": put("a", "".join(pems))}, bundles=())) == 2


def test_what_comes_out_is_what_a_tls_client_can_load(pems, put):
    found = host_certificates({"SSL_CERT_FILE": put("a", "\n".join(pems).replace("\n", "\r\n"))}, bundles=())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata="".join(found))
    assert len(context.get_ca_certs()) == 3
