"""NVIDIA's signed manifests: the one accepted form, every deviation refused, the known attacks on XML signatures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.errors import FormatRefused, Refused
from cloister.rats.claims import Level
from cloister.rats.endorsement import Endorsements, PinnedRoot
from cloister.tee.nvidia_gpu import xmlsignature
from cloister.tee.nvidia_gpu.manifest import Manifest, verify_manifest
from cloister.testing.nvidia import NOW, DevicePKI, ManifestPKI, issue, measurement
from cloister.testing.swid import SignatureForm, manifest_body, sign_document
from cloister.wire.limits import RIM_BYTES
from tampering import flipped

GOOD = {0: [measurement(0)], 12: [bytes(48), measurement(12), b"\xff" * 48]}
Edit = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def pki() -> ManifestPKI:
    return ManifestPKI()


@pytest.fixture(scope="module")
def good(pki: ManifestPKI) -> bytes:
    return pki.manifest(version="550.90.07", active=GOOD, inactive=[1])


def verify(pki: ManifestPKI, data: bytes, at: datetime = NOW) -> Manifest:
    return verify_manifest(data, Endorsements(roots=pki.roots()), at=at)


def refusal(pki: ManifestPKI, data: bytes, at: datetime = NOW) -> str:
    with pytest.raises(Refused) as caught:
        verify(pki, data, at)
    return caught.value.code.removeprefix("tee.nvidia_gpu.rim.")


def signed(pki: ManifestPKI, body: str, form: SignatureForm | None = None) -> bytes:
    return sign_document(body, [item.der for item in pki.chain], pki.signer.key, form)


def body(**arguments: object) -> str:
    return manifest_body(**{"version": "550.90.07", "active": GOOD, **arguments})  # type: ignore[arg-type]  # a test's


def test_a_good_manifest(pki: ManifestPKI, good: bytes) -> None:
    found = verify(pki, good)
    assert (found.product, found.version) == ("GH100", "550.90.07")
    assert {index: item.values for index, item in found.measurements.items() if item.active} == {
        index: tuple(values) for index, values in GOOD.items()
    }
    assert not found.measurements[1].active
    assert [item.subject for item in found.path] == [item.certificate.subject for item in pki.chain]
    assert found.window == (NOW - timedelta(days=400), NOW + timedelta(days=300))


@pytest.mark.parametrize("canonicalisation", [*xmlsignature.INCLUSIVE, xmlsignature.EXCLUSIVE])
def test_the_accepted_canonicalisations(pki: ManifestPKI, canonicalisation: str) -> None:
    form = SignatureForm(canonicalisation=canonicalisation, transforms=(xmlsignature.ENVELOPED, canonicalisation))
    assert verify(pki, signed(pki, body(), form)).version == "550.90.07"


def test_only_the_enveloped_transform_means_inclusive(pki: ManifestPKI) -> None:
    form = SignatureForm(transforms=(xmlsignature.ENVELOPED,))
    assert verify(pki, signed(pki, body(), form)).version == "550.90.07"


def test_a_declaration_and_space_around_are_no_content(pki: ManifestPKI, good: bytes) -> None:
    for head in (
        b'<?xml version="1.0" encoding="UTF-8"?>\n',
        b"<?xml version='1.0' encoding='utf-8' standalone='yes'?>",
    ):
        assert verify(pki, head + good).version == "550.90.07"
    assert verify(pki, good + b"\n \n").version == "550.90.07"


def test_a_pinned_root_arrives_with_the_manifest(pki: ManifestPKI, good: bytes) -> None:
    pin = PinnedRoot(tee="nvidia", level=Level.HARDWARE, name="test", sha256=hashlib.sha256(pki.root.der).digest())
    assert verify_manifest(good, Endorsements(roots=(), pins=(pin,)), at=NOW).path[-1] == pki.root.certificate
    other = replace(pin, sha256=bytes(32))
    with pytest.raises(Refused) as caught:
        verify_manifest(good, Endorsements(roots=(), pins=(other,)), at=NOW)
    assert caught.value.code == "tee.nvidia_gpu.rim.no_roots"


# What is signed


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.replace(b'version="1.0"', b'version="1.1"', 1),
        lambda data: data.replace(measurement(0).hex().encode(), measurement(1).hex().encode()),
        lambda data: data.replace(b'active="False"', b'active="True"'),
        lambda data: data.replace(b"    <ns0:Payload", b"   <ns0:Payload", 1),
        lambda data: data.replace(b"550.90.07", b"550.90.08"),
    ],
)
def test_changed_content_refuses(pki: ManifestPKI, good: bytes, edit: Edit) -> None:
    assert edit(good) != good
    assert refusal(pki, edit(good)) == "digest"


def test_every_attribute_value_is_signed(pki: ManifestPKI, good: bytes) -> None:
    """Flip one bit in each byte of the document: what still verifies says the same."""
    expected, end = verify(pki, good), good.index(b"<ds:Signature ")
    for offset in range(0, end, 7):
        changed = flipped(good, offset)
        try:
            found = verify(pki, changed)
        except Refused as err:
            assert err.code.startswith("tee.nvidia_gpu.rim.")
            continue
        assert found == expected


def test_another_signature_or_digest_refuses(pki: ManifestPKI, good: bytes) -> None:
    other = pki.manifest(version="550.90.07", active=GOOD, inactive=[1])  # ECDSA is randomised
    value, foreign = (data.split(b"SignatureValue>")[1] for data in (good, other))
    assert value != foreign
    assert verify(pki, good.replace(value, foreign)).version == "550.90.07"
    flipped = (b"B" if value[:1] == b"A" else b"A") + value[1:]
    assert refusal(pki, good.replace(value, flipped)) == "signature"
    digest = signed(pki, body(), SignatureForm(digest=bytes(48)))
    assert refusal(pki, digest) == "digest"
    zero = good.replace(value, b"A" * 128 + b"</ds:")
    assert refusal(pki, zero) == "signature"


def test_a_signature_by_a_key_that_is_not_the_leafs(pki: ManifestPKI) -> None:
    chain = [item.der for item in pki.chain]
    key = ec.generate_private_key(ec.SECP384R1())
    assert refusal(pki, sign_document(body(), chain, key)) == "signature"
    short = issue("HCC RIM L4 Signer", pki.issuing, ca=False, curve=ec.SECP256R1())
    data = sign_document(body(), [short.der, *chain[1:]], pki.signer.key)
    assert refusal(pki, data) == "signature"


# The one form


@pytest.mark.parametrize(
    "form",
    [
        SignatureForm(uri=None),
        SignatureForm(uri="#x"),
        SignatureForm(uri="https://example.test/"),
        SignatureForm(reference_attributes=' Id="r"'),
        SignatureForm(reference_attributes=' Type="http://www.w3.org/2000/09/xmldsig#Object"'),
        SignatureForm(signature_attributes=' Id="s"'),
        SignatureForm(before_info="<ds:Object/>"),
        SignatureForm(before_info="text"),
        SignatureForm(after_certificates="<ds:Object/>"),
        SignatureForm(after_certificates="text"),
        SignatureForm(canonicalisation="http://www.w3.org/TR/2001/REC-xml-c14n-20010315#WithComments"),
        SignatureForm(digest_method="http://www.w3.org/2001/04/xmlenc#sha256"),
        SignatureForm(signature_method="http://www.w3.org/2001/04/xmldsig-more#rsa-sha384"),
        SignatureForm(signature_method="http://www.w3.org/2000/09/xmldsig#hmac-sha1"),
        SignatureForm(transforms=(xmlsignature.INCLUSIVE[0],)),
        SignatureForm(transforms=(xmlsignature.INCLUSIVE[0], xmlsignature.ENVELOPED)),
        SignatureForm(transforms=(xmlsignature.ENVELOPED, xmlsignature.ENVELOPED)),
        SignatureForm(transforms=(xmlsignature.ENVELOPED, xmlsignature.INCLUSIVE[0], xmlsignature.INCLUSIVE[0])),
        SignatureForm(transforms=(xmlsignature.ENVELOPED, "http://www.w3.org/TR/1999/REC-xslt-19991116")),
        SignatureForm(transforms=("http://www.w3.org/2002/06/xmldsig-filter2", xmlsignature.INCLUSIVE[0])),
    ],
)
def test_every_other_form_of_signature_refuses(pki: ManifestPKI, form: SignatureForm) -> None:
    assert refusal(pki, signed(pki, body(), form)) == "profile"


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.replace(b"</ds:Transforms>", b"<ds:Transform/></ds:Transforms>"),
        lambda data: data.replace(b'xml-c14n11"/></ds:Transforms>', b'xml-c14n11"><x/></ds:Transform></ds:Transforms>'),
        lambda data: data.replace(b"<ds:X509Data>", b"<ds:KeyValue/><ds:X509Data>"),
        lambda data: data.replace(b"<ds:X509Data>", b"<ds:X509Data><ds:X509SKI/>"),
        lambda data: data.replace(b"</ds:Reference>", b"</ds:Reference><ds:Reference/>"),
        lambda data: data.replace(b"<ds:DigestValue>", b'<ds:DigestValue Encoding="x">'),
        lambda data: data.replace(b"<ds:DigestValue>", b"<ds:DigestValue>!"),
        lambda data: data.replace(b"<ds:DigestValue>", b"<ds:DigestValue>AAAA"),
        lambda data: data.replace(b"<ds:KeyInfo>", b"<ds:KeyInfo/><ds:KeyInfo>"),
        lambda data: data.replace(b"<ds:SignedInfo>", b"<ds:SignedInfo/><ds:SignedInfo>"),
        lambda data: data[: data.index(b"<ds:Signature ")] + b"</SoftwareIdentity>",
        lambda data: data.replace(b"</ds:Signature>", b"</ds:Signature><x/>"),
        lambda data: data.replace(b"<ds:X509Certificate>", b"<ds:X509Certificate>=", 1),
    ],
)
def test_every_other_shape_of_signature_refuses(pki: ManifestPKI, good: bytes, edit: Edit) -> None:
    assert edit(good) != good
    assert refusal(pki, edit(good)) == "profile"


# Wrapping: a genuine signed document somewhere, other content where the reader looks


def wrapped(good: bytes, forged: str, place: str) -> bytes:
    """Return a document whose readable content is `forged` and which holds `good` at `place`."""
    head, end, tail = forged.rpartition("</SoftwareIdentity>")
    return (head + place.replace("GOOD", good.decode().strip()) + end + tail).encode()


@pytest.mark.parametrize(
    "place",
    [
        "GOOD",
        "<x>GOOD</x>",
        '<ds:Signature xmlns:ds="http://www.w3.org/2000/09/xmldsig#"><ds:Object>GOOD</ds:Object></ds:Signature>',
    ],
)
def test_a_signed_document_wrapped_into_another_refuses(pki: ManifestPKI, good: bytes, place: str) -> None:
    forged = body(active={0: [measurement(99)]})
    assert refusal(pki, wrapped(good, forged, place)) == "profile"


def test_a_signature_moved_to_another_document_refuses(pki: ManifestPKI, good: bytes) -> None:
    text = good.decode()
    signature = text[text.index("<ds:Signature ") : text.index("</ds:Signature>") + len("</ds:Signature>")]
    forged = body(active={0: [measurement(99)]})
    head, end, tail = forged.rpartition("</SoftwareIdentity>")
    assert refusal(pki, (head + signature + end + tail).encode()) == "digest"
    genuine = text.replace(signature, "").strip()
    # The genuine content as a sibling, the forged one before it, the signature last: the digest is over all of it.
    sibling = head + genuine + signature + end + tail
    assert refusal(pki, sibling.encode()) == "digest"
    # The signature deeper down, where it would envelop less than the whole.
    inner = text.replace("</ns0:Payload>", f"{signature}</ns0:Payload>").replace(f"{signature}</Soft", "</Soft", 1)
    assert refusal(pki, inner.encode()) == "profile"


def test_two_signatures_refuse(pki: ManifestPKI, good: bytes) -> None:
    text = good.decode()
    signature = text[text.index("<ds:Signature ") : text.index("</ds:Signature>") + len("</ds:Signature>")]
    assert refusal(pki, text.replace(signature, signature + signature).encode()) == "profile"


def test_text_behind_the_signature_is_signed(pki: ManifestPKI, good: bytes) -> None:
    assert refusal(pki, good.replace(b"</ds:Signature>", b"</ds:Signature>\n")) == "digest"


# What an XML parser does beyond elements and text


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: b'<!DOCTYPE x [<!ENTITY e "550.90.07">]>' + data.replace(b"550.90.07", b"&e;"),
        lambda data: b'<!DOCTYPE SoftwareIdentity SYSTEM "https://example.test/x.dtd">' + data,
        lambda data: b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]>' + data,
        lambda data: data.replace(b"<ds:DigestValue>", b"<ds:DigestValue><!-- -->"),
        lambda data: data.replace(b"<ns0:Payload", b"<!-- --><ns0:Payload"),
        lambda data: data.replace(b"<ns0:Payload", b"<?x y?><ns0:Payload"),
        lambda data: data.replace(b"<ds:DigestValue>", b"<ds:DigestValue><![CDATA[]]>"),
        lambda data: b'<?xml version="1.0" encoding="utf-16"?>' + data,
        lambda data: b'<?xml version="1.1"?>' + data,
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.decode().encode("utf-16"),
        lambda data: data.replace(b'name="test"', b'name="test" xml:base="https://example.test/"'),
        lambda data: data.replace(b'name="test"', b'name="test" xml:space="preserve"'),
        lambda data: data.replace(b'name="test"', b'name="\xff"'),
        lambda data: data.replace(b'name="test"', b'name="&nope;"'),
        lambda data: data.replace(b'name="test"', b'name="a" name="b"'),
        lambda data: data[:-20],
        lambda data: data + b"<x/>",
        lambda data: b"",
        lambda data: b"<x/>" * (RIM_BYTES // 4 + 1),
        lambda data: b"<x>" * 200 + b"</x>" * 200,
        lambda data: b"<x>" + b"<y/>" * 2000 + b"</x>",
        lambda data: b"<x " + b" ".join(b'a%d=""' % number for number in range(2000)) + b"/>",
        lambda data: b"<x " + b" ".join(b'xmlns:a%d="urn:%d"' % (n, n) for n in range(100)) + b"/>",
    ],
)
def test_what_is_more_than_elements_and_text_refuses(pki: ManifestPKI, good: bytes, edit: Edit) -> None:
    assert edit(good) != good
    assert refusal(pki, edit(good)) == "malformed"


def test_a_namespace_that_is_no_address_has_no_canonical_form(pki: ManifestPKI, good: bytes) -> None:
    assert refusal(pki, good.replace(b' corpus="', b' xmlns:r="relative" corpus="')) in ("malformed", "digest")


def test_hostile_documents_cost_little(pki: ManifestPKI) -> None:
    hostile = (
        b'<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">' + b'<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">' * 9 + b"]><l>&b;</l>",
        b"<x " + b" ".join(b'a%d=""' % number for number in range(200_000)) + b"/>",
        b"<x>" * 100_000,
        b"<a xmlns='urn:x'>" * 200_000,
    )
    start = time.process_time()
    for data in hostile:
        assert refusal(pki, data) == "malformed"
    assert time.process_time() - start < 5


# What the manifest says


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("SoftwareIdentity", "SoftwareIdentitz"),
        lambda text: text.replace("2015/schema.xsd", "2009/schema.xsd"),
        lambda text: text.replace("ns0:Meta", "ns0:Mete"),
        lambda text: text.replace("    <ns0:Payload", '    <ns0:Meta product="x" colloquialVersion="y"/><ns0:Payload'),
        lambda text: text.replace(' colloquialVersion="550.90.07"', ""),
        lambda text: text.replace("550.90.07", "5" * 65),
        lambda text: text.replace('index="12"', 'index="0"'),
        lambda text: text.replace('index="12"', 'index="256"'),
        lambda text: text.replace('index="12"', 'index="012"'),
        lambda text: text.replace('index="12"', 'index="-1"'),
        lambda text: text.replace('index="12"', 'index="\u0661"'),
        lambda text: text.replace('size="48"', 'size="32"', 1),
        lambda text: text.replace('active="True"', 'active="true"', 1),
        lambda text: text.replace('alternatives="3"', 'alternatives="2"'),
        lambda text: text.replace('alternatives="3"', 'alternatives="4"'),
        lambda text: text.replace('alternatives="3"', 'alternatives="0"'),
        lambda text: text.replace("ns2:Hash2", "ns2:Hash3"),
        lambda text: text.replace("ns2:Hash2", "Hash2"),
        lambda text: text.replace(measurement(0).hex(), measurement(0).hex()[:-2]),
        lambda text: text.replace(measurement(0).hex(), measurement(0).hex()[:-1] + "g"),
        lambda text: text.replace('type="Measurement"', 'type="Other"', 1),
        lambda text: text.replace("<ns0:Resource", "<ns0:File", 1),
    ],
)
def test_signed_content_of_another_form_refuses(pki: ManifestPKI, edit: Callable[[str], str]) -> None:
    assert edit(body()) != body()
    assert refusal(pki, signed(pki, edit(body()))) == "malformed"


def test_an_empty_payload_refuses(pki: ManifestPKI) -> None:
    assert refusal(pki, signed(pki, body(active={}))) == "malformed"


# Who signed it


def test_validity_of_the_signer(pki: ManifestPKI, good: bytes) -> None:
    assert verify(pki, good, NOW + timedelta(days=300)).version == "550.90.07"
    assert refusal(pki, good, NOW + timedelta(days=300, seconds=1)) == "chain.expired"
    assert refusal(pki, good, NOW - timedelta(days=401)) == "chain.not_yet_valid"


def test_other_chains_refuse(pki: ManifestPKI, good: bytes) -> None:
    chain = [item.der for item in pki.chain]
    foreign = ManifestPKI()
    assert refusal(foreign, good) == "chain.untrusted"
    assert refusal(pki, sign_document(body(), [chain[0], *chain[2:]], pki.signer.key)) == "chain.untrusted"
    assert refusal(pki, sign_document(body(), [], pki.signer.key)) == "profile"
    direct = issue("HCC RIM L4 Signer", pki.root, ca=False)
    assert refusal(pki, sign_document(body(), [direct.der], direct.key)) == "chain.length"
    assert refusal(pki, sign_document(body(), [pki.issuing.der, *chain[2:]], pki.issuing.key)) == "chain.leaf_is_ca"
    bad = sign_document(body(), [flipped(chain[0]), *chain[1:]], pki.signer.key)
    assert refusal(pki, bad) in ("chain.untrusted", "certificate.malformed")


def test_the_device_root_does_not_vouch_for_manifests(good: bytes) -> None:
    devices = DevicePKI()
    with pytest.raises(Refused) as caught:
        verify_manifest(good, Endorsements(roots=devices.roots()), at=NOW)
    assert caught.value.code == "tee.nvidia_gpu.rim.no_roots"
    signer = issue("HCC RIM L4 Signer", devices.provisioner("GH100"), ca=False)
    chain = [signer.der, devices.provisioner("GH100").der, devices.identity.der, devices.root.der]
    with pytest.raises(Refused) as caught:
        verify_manifest(sign_document(body(), chain, signer.key), Endorsements(roots=devices.roots()), at=NOW)
    assert caught.value.code == "tee.nvidia_gpu.rim.no_roots"


def test_a_root_that_is_no_certificate(good: bytes, pki: ManifestPKI) -> None:
    [root] = pki.roots()
    with pytest.raises(FormatRefused) as caught:
        verify_manifest(good, Endorsements(roots=(replace(root, der=b"\x30"),)), at=NOW)
    assert caught.value.code == "tee.nvidia_gpu.root.malformed"
