"""What is fuzzed: every parser of evidence and of what vouches for it, and those of images (`images.py`), with good
inputs to begin from.

A target takes any bytes and may end in one way only: a value, or a `CloisterError`. Whatever else escapes is a crash, a
value that is written back as other bytes than it was read from is one too. `NOT_PARSERS` says of every other module of
the same packages why no target has it, so that a new parser cannot be forgotten (`test_fuzz.py`).
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import quote_plus

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from lxml import etree

from cloister.crypto import cose, ocsp, revocation
from cloister.crypto.dsse import sign_envelope, verify_envelope
from cloister.crypto.jwt import HeldTokens, key_id, read_key_header, sign_jwt
from cloister.crypto.keystore import envelope, open_keystore, sealedroot
from cloister.crypto.keystore import uri as address
from cloister.crypto.pem import CERTIFICATE, PUBLIC_KEY, split_pem
from cloister.crypto.references import PAYLOAD_TYPE, SeenVersion, sign_reference_set, verify_reference_set
from cloister.crypto.x509path import extension, load_certificate, serial_number, verify_path
from cloister.errors import CloisterError, FormatRefused
from cloister.rats import advisory, ear, policy, reference, referenceset
from cloister.rats.claims import TCB, Claims, Level
from cloister.rats.endorsement import Document, Endorsements
from cloister.rats.evidence import Evidence
from cloister.rats.result import Unchecked, VerifiedEvidence
from cloister.rats.rules import Handling, PlatformRules
from cloister.tee import advisories as advisories_module
from cloister.tee import eventlog, uefi
from cloister.tee.advisories import shipped_advisories
from cloister.tee.azure import abi as hcl
from cloister.tee.cca import abi as cca_token
from cloister.tee.cca import claims as cca_claims
from cloister.tee.cca.endorsements import parse_cca_roots
from cloister.tee.collateral import bundle, files, needs, transport
from cloister.tee.collateral import cache as kept
from cloister.tee.collateral import item as items
from cloister.tee.collateral.amd import chain_items, vcek_item
from cloister.tee.collateral.collector import checked_entry
from cloister.tee.collateral.intel import platform_items
from cloister.tee.collateral.load import load
from cloister.tee.collateral.nvidia import ocsp_item, rim_item
from cloister.tee.collateral.recipes import RECIPES
from cloister.tee.dcap import abi as dcap
from cloister.tee.dcap import chain as dcap_chain
from cloister.tee.dcap import claims as dcap_claims
from cloister.tee.dcap import endorsements as dcap_endorsements
from cloister.tee.dcap import pck, platform, statements, tcb
from cloister.tee.dcap.collateral import gather_collateral
from cloister.tee.hygon_csv import abi as csv
from cloister.tee.ibm_se import abi as se
from cloister.tee.ibm_se.endorsements import verify_host_key_document
from cloister.tee.nitro import abi as nitro_document
from cloister.tee.nvidia_gpu import abi as spdm
from cloister.tee.nvidia_gpu import certificate as device
from cloister.tee.nvidia_gpu import manifest, opaque
from cloister.tee.nvidia_gpu import reference as device_reference
from cloister.tee.nvidia_gpu.endorsements import document_id, rim_url
from cloister.tee.nvidia_gpu.xmlsignature import DIGEST_SHA384, ENVELOPED, EXCLUSIVE, parse_plain_xml
from cloister.tee.registry import (
    TECHNOLOGIES,
    appraiser_for,
    authenticator_for,
    claims_reader_for,
    pins_for,
    reader_for,
)
from cloister.tee.sev_snp import abi as snp_report
from cloister.tee.sev_snp import certtable, cocoshape, vek
from cloister.tee.sev_snp import endorsements as amd
from cloister.tee.sev_snp.products import product_of_cpu, product_of_name, silicon_of_cpu
from cloister.tee.tdx import abi as tdx
from cloister.tee.tpm import abi as tpm_structures
from cloister.tee.tpm import commands, credential, instanceinfo, measurements, quote, tpm2tools
from cloister.tee.tpm import constants as c
from cloister.tee.tpm import eventlog as tpm_log
from cloister.tee.tpm.endorsements import parse_tpm_roots, read_swtpm_roots
from cloister.testing import nvidia
from cloister.testing.swid import SignatureForm, sign_document
from cloister.wire import limits, protobuf
from cloister.wire.base64 import decode_b64, decode_b64url, encode_b64, encode_b64url
from cloister.wire.cbor import decode_cbor, encode_cbor
from cloister.wire.http1 import Answer as HTTPAnswer
from cloister.wire.http1 import encode_request
from cloister.wire.strictjson import parse_json_object
from cloister.wire.stricttoml import parse_toml
from fuzz import images, signatures, world
from fuzz.target import Run, Target, each, same, seeds, target_of

AT: Final = world.AT
TEE: Final = "cloister.tee."


# -- evidence, as it comes -----------------------------------------------------------------------------------


def _tell(claims: Claims) -> None:
    """Whatever evidence says must fit into a token and onto a screen."""
    for words in (claims.raw, claims.native):
        msgspec.json.encode(words)
        json.dumps(msgspec.to_builtins(words), ensure_ascii=False).encode()


def _evidence(tee: str) -> Run:
    def run(data: bytes) -> None:
        scene = world.scene(tee)
        evidence = Evidence(tee=tee, body=reader_for(tee)(data, tee=tee).body)
        pinned = Endorsements(roots=(), pins=pins_for(tee))

        def judge() -> object:
            authentic = authenticator_for(tee)(
                evidence, scene.endorsements, at=scene.at, session_secret=scene.session_secret
            )
            _tell(authentic.claims)
            return appraiser_for(tee)(authentic.facts, PlatformRules(), at=scene.at)

        each(
            lambda: _tell(claims_reader_for(tee)(evidence).claims),
            lambda: claims_reader_for(tee)(replace(evidence, tee="another")),
            lambda: needs.needs_of(evidence),
            lambda: needs.needs_of(evidence, certificates=scene.endorsements.certificates),
            lambda: authenticator_for(tee)(evidence, pinned, at=scene.at),
            judge,
        )

    return run


_EVIDENCE: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "snp": (("sev_snp.evidence", "sev_snp.cocoshape", "sev_snp.products"), ("snp*/*/*.bin",)),
    "tdx": (("tdx.evidence", "dcap.file", "dcap.claims"), ("tdx/*/quote*.bin", "dcap-synthetic/td*/quote.bin")),
    "sgx": (("sgx.evidence", "dcap.file"), ("sgx/*/quote*.bin", "dcap-synthetic/sgx*/quote.bin")),
    "az-snp-vtpm": (("azure.evidence",), ("az-snp-vtpm/*/evidence.json",)),
    "az-tdx-vtpm": (("azure.evidence",), ("az-tdx-vtpm/*/evidence.json",)),
    "tpm": (("tpm.evidence", "tpm.quote"), ("tpm/*/attestation.pb", "tpm/*/evidence.json")),
    "nitro": (("nitro.evidence",), ("nitro/*/*.cbor",)),
    "cca": (("cca.evidence",), ("cca/*/token.cbor",)),
    "csv": (("hygon_csv.evidence",), ("hygon-csv/*/evidence.json",)),
    "se": (("ibm_se.evidence",), ("ibm-se/structures/exchange.bin",)),
    "nvidia": (
        ("nvidia_gpu.evidence", "nvidia_gpu.claims", "nvidia_gpu.topology", "nvidia_gpu.certificate"),
        ("nvidia/*/*evidence.json", "nvidia/*/report.hex"),
    ),
    "cloister-simulated": (("insecure.evidence", "insecure.abi"), ()),
    "sample": (("insecure.sample.evidence", "insecure.sample.abi"), ()),
}


def _wrapped(found: Iterable[bytes]) -> list[bytes]:
    """Return the first JSON among files as whole requests carry it."""
    text = next(data for data in found if data[:1] == b"{")
    return [b'{"tee-evidence":{"primary_evidence":%s}}' % text, b'{"primary_evidence":[]}']


def _of_evidence(tee: str) -> Target:
    modules, patterns = _EVIDENCE[tee]
    return Target(
        run=_evidence(tee),
        seeds=seeds(lambda: (*world.scene(tee).files, *_wrapped(world.scene(tee).files)), *patterns),
        modules=(f"{TEE}jsonfile", f"{TEE}collateral.needs", *(TEE + name for name in modules)),
        ceiling=limits.EVIDENCE_FILE_BYTES,
    )


# -- AMD -----------------------------------------------------------------------------------------------------


def _snp_report(data: bytes) -> None:
    report = snp_report.parse_report(data)
    same(data, snp_report.encode_report(report))
    layout = cocoshape.layout_of(report)
    identity = amd.vcek_identity(report)
    family, model, stepping = report.cpuid or (0, 0, 0)
    silicon_of_cpu(family, model, stepping)
    product = product_of_cpu(family, model) or product_of_name(identity.line)
    same(amd.vcek_url(identity).count("?"), 1)
    names = (amd.chain_url(identity.line), amd.crl_url(identity.line, vlek=True), *amd.store_names(identity))
    same(all(names), True)
    each(
        lambda: cocoshape.encode_shape(report),
        lambda: layout.decode(report.reported_tcb, code="tee.sev_snp.tcb"),
        lambda: product.layout.decode(report.launch_tcb, code="tee.sev_snp.tcb") if product else None,
        lambda: needs.report_needs(report),
        lambda: needs.report_needs(report, [world.chips()[0].vek]),
    )


def _certificate_table(data: bytes) -> None:
    entries = certtable.parse_certificate_table(data)
    same(certtable.parse_certificate_table(certtable.encode_certificate_table(entries)), entries)


def _vek(data: bytes) -> None:
    each(lambda: vek.load_vek(data), lambda: amd.ark_line(data))


# -- Azure and TPM -------------------------------------------------------------------------------------------


def _hcl(data: bytes) -> None:
    each(lambda: hcl.parse_runtime_claims(data))
    report = hcl.parse_hcl_report(data)
    same(data, hcl.encode_hcl_report(report, size=len(data)))
    hcl.parse_runtime_claims(report.variable)


def _hcl_files() -> list[bytes]:
    on_snp, on_tdx = world.paravisors()
    return [
        *(machine.hcl_report(world.azure.NONCE) for machine in (on_snp, on_tdx)),
        on_snp.variable(world.azure.NONCE),
    ]


def _event_log(data: bytes) -> None:
    events = tpm_log.parse_event_log(data)
    eventlog.append_events(data, events[:1], code="tee.tdx.eventlog")
    msgspec.json.encode(uefi.event_claims(events))
    for algorithm in ("sha256", "sha384"):
        size = 32 if algorithm == "sha256" else 48
        for register in (0, 2, 11, 17):
            each(
                lambda register=register, algorithm=algorithm: tpm_log.start_value(
                    events, register, algorithm=algorithm
                ),
                lambda register=register, algorithm=algorithm, size=size: tpm_log.replay(
                    events, register, bytes(size), algorithm=algorithm
                ),
            )
        each(lambda algorithm=algorithm: uefi.measured_roles(events, kernel=2, options=3, algorithm=algorithm))
    measured = tpm_log.measured(events, measurements.UKI_PCR)
    same(len(tpm_log.replay_digests(measured, tpm_log.hcrtm_start(data[:9]))), 32)
    measurements.measured_roles(measured)


def _tpm_structures(data: bytes) -> None:
    pairs: tuple[tuple[Callable[[bytes], Any], Callable[[Any], bytes]], ...] = (
        (tpm_structures.parse_public, tpm_structures.encode_public),
        (tpm_structures.parse_quote_attest, tpm_structures.encode_quote_attest),
        (tpm_structures.parse_signature, tpm_structures.encode_signature),
    )
    for parse, encode in pairs:
        each(lambda parse=parse, encode=encode: same(data, encode(parse(data))))
    each(lambda: quote.attestation_key(tpm_structures.parse_public(data)), lambda: quote.load_attestation_key(data))


def _public_pem() -> bytes:
    return world.ak().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _tpm_structure_files() -> list[bytes]:
    """Return public areas, quotes and signatures of keys of both kinds."""
    machines = (world.tpm_machine()[1], world.paravisors()[0].tpm)
    quoted = [part for machine in machines for part in machine.quote(b"nonce", world.tpm.QuoteFaults())]
    area = commands.create_primary(c.RH_ENDORSEMENT, commands.EK_TEMPLATE) if hasattr(commands, "EK_TEMPLATE") else b""
    return [*(machine.ak_public for machine in machines), *quoted, world.spki(), area]


def _tpm_answers(data: bytes) -> None:
    each(lambda: commands.response_code(data))
    for parse in (
        commands.parse_handle,
        commands.parse_create_primary,
        commands.parse_nv_read_public,
        commands.parse_sized,
        commands.parse_quote,
        lambda response: commands.parse_pcr_read(response, (0, 8)),
    ):
        each(lambda parse=parse: parse(data))


def _tpm_answer_files() -> list[bytes]:
    def answer(body: bytes) -> bytes:
        return c.ST_NO_SESSIONS.to_bytes(2, "big") + (10 + len(body)).to_bytes(4, "big") + bytes(4) + body

    def counted(body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + body

    _, machine = world.tpm_machine()
    message, signature = machine.quote(b"nonce", world.tpm.QuoteFaults())
    registers = commands.pcr_selection((0, 8)) + (2).to_bytes(4, "big") + commands.sized(bytes(32)) * 2
    nv = (0x1C00002).to_bytes(4, "big") + c.ALG_SHA256.to_bytes(2, "big") + bytes(4) + commands.sized(b"") + b"\x04\x00"
    sent = (
        commands.pcr_extend(8, bytes(32)),
        commands.pcr_read((0, 8)),
        commands.create_primary(c.RH_ENDORSEMENT, b"template"),
        commands.read_public(1),
        commands.nv_read_public(1),
        commands.nv_read(1, 2, 0),
        commands.nv_write(1, b"x", authority=1),
        commands.nv_define_space(1, 8, 0, authority=1),
        commands.start_policy_session(bytes(16)),
        commands.policy_secret(1),
        commands.activate_credential(1, 2, 3, b"", b""),
        commands.quote(1, b"nonce"),
        commands.flush_context(1),
    )
    return [
        answer(bytes(4) + registers),
        answer((1).to_bytes(4, "big") + counted(machine.ak_public)),
        answer(commands.sized(nv)),
        answer(counted(commands.sized(b"value"))),
        answer(counted(commands.sized(message) + signature)),
        *sent,
    ]


_PROTOBUF: Final = {
    1: protobuf.Field(name="number", kind=protobuf.VARINT),
    2: protobuf.Field(name="text", kind=protobuf.BYTES, most=4, ceiling=64),
}


def _protobuf(data: bytes) -> None:
    message = protobuf.parse_message(data, _PROTOBUF, code="tee.tpm.attestation")
    written = protobuf.encode_field(1, message.number(1))
    written += b"".join(protobuf.encode_field(2, text) for text in message.texts.get(2, ()))
    again = protobuf.parse_message(written, _PROTOBUF, code="tee.tpm.attestation")
    same((message.number(1), message.texts.get(2, ())), (again.number(1), again.texts.get(2, ())))


def _tpm_parts(data: bytes) -> None:
    registers = world.pcr_file([bytes(32)] * 24)
    each(
        lambda: tpm2tools.parse_pcr_file(data),
        lambda: tpm2tools.join_parts(message=data, signature=data, pcrs=registers, ak_public=data),
    )


def _credential(data: bytes) -> None:
    _, machine = world.tpm_machine()
    each(
        lambda: credential.challenge_for(data, machine.ak_public),
        lambda: credential.challenge_for(machine.ek_certificate, data),
    )


_HOLDER: Final = TemporaryDirectory(prefix="cloister-fuzz-")
_DIRECTORY: Final = Path(_HOLDER.name)


def _tpm_roots(data: bytes) -> None:
    each(lambda: parse_tpm_roots(data, level=Level.MEASURED, origin="file"))
    path = _DIRECTORY / "issuercert.pem"
    path.write_bytes(data)
    try:
        read_swtpm_roots(_DIRECTORY)
    finally:
        path.unlink()
        each(lambda: read_swtpm_roots(_DIRECTORY), lambda: read_swtpm_roots(Path("/dev/null")))


def _certificates() -> list[bytes]:
    """Return one certificate of every kind there is here."""
    ca, machine = world.tpm_machine()
    devices = world.devices()
    return [
        *(chip.vek for chip in world.chips()),
        world.chips()[0].amd.ark.public_bytes(Encoding.DER),
        world.der(world.intel().root.certificate),
        world.der(world.platforms()[0].pck),
        machine.ek_certificate,
        world.der(ca.issuing),
        *(world.der(authority.certificate) for authority in devices.devices[2].chain),
        world.host_keys().document,
        world.host_keys().service,
    ]


# -- Intel ---------------------------------------------------------------------------------------------------


def _quote(data: bytes) -> None:
    parsed = dcap.parse_quote(data)
    same(data, parsed.encode())
    dcap_claims.raw_header(parsed.header)
    identity = dcap_endorsements.collateral_identity(parsed)
    dcap_endorsements.collateral_urls(identity)
    dcap_endorsements.collateral_urls(identity, service="https://pccs.example/")
    of = platform.read_platform(parsed)
    for words in (dcap_claims.platform_tcb, dcap_claims.platform_native):
        words(parsed, of)
    dcap_claims.raw_platform(of)
    same(bool(dcap_claims.instance_id(of)), True)


def _statements(data: bytes) -> None:
    machine, body = _td_machine()

    def tcb_info() -> None:
        info = statements.parse_tcb_info(data)
        versions = (body.tee_tcb_svn, bytes(16), b"\x09" * 16)
        for chosen in (None, _identity()):
            for svns in ((), versions[:1], versions[1:2], versions[:2], versions[1:]):
                tcb.evaluate_tcb(info, chosen, machine.pck, machine.qe_svn, svns)
        module = tcb.module_identity(info, body.tee_tcb_svn)
        if module is not None:
            tcb.matches_module(module, body)

    def qe_identity() -> None:
        for version in (0, 8, 0xFFFF):
            tcb.require_qe_level(statements.parse_qe_identity(data), version)

    each(tcb_info, qe_identity)


@cache
def _td_machine() -> tuple[platform.Platform, Any]:  # Any: the body is a TDReport
    parsed = dcap.parse_quote(world.quotes()[1])
    return platform.read_platform(parsed), parsed.body


@cache
def _identity() -> statements.QEIdentity:
    return statements.parse_qe_identity(_qe_identity())


def _qe_identity() -> bytes:
    text: str = json.loads(world.collateral())["qe_identity"]
    return text.encode()


def _statement_files() -> list[bytes]:
    members = [json.loads(world.collateral(kind)) for kind in ("TDX", "SGX")]
    return [one[name].encode() for one in members for name in ("tcb_info", "qe_identity")]


def _dcap_collateral(data: bytes) -> None:
    found = gather_collateral(Endorsements(roots=(), documents=(Document(name="file", data=data),)))
    for statement in (*found.tcb_infos, *found.qe_identities):
        each(lambda text=statement.text: _statements(text))


def _dcap_chain(data: bytes) -> None:
    def common_names() -> None:
        for certificate in dcap_chain.parse_issuer_chain(data):
            dcap_chain.common_name(certificate)

    headers = {"tcb-info-issuer-chain": data.decode("latin-1")}
    pinned = Endorsements(roots=(), pins=pins_for("tdx"))
    each(
        lambda: dcap_chain.parse_quote_chain(data),
        common_names,
        lambda: dcap_endorsements.issuer_chain(headers, dcap_endorsements.TCB_INFO_CHAIN),
        lambda: dcap_chain.find_anchors("tdx", world.intel().endorsements("tdx"), (data,)),
        lambda: dcap_chain.find_anchors("tdx", pinned, (data,)),
        lambda: dcap_chain.find_anchors("tdx", Endorsements(roots=()), (data,)),
    )


def _pck_chain() -> list[bytes]:
    return [dcap.parse_quote(quoted).data.certification for quoted in world.quotes()] + [
        quote_plus(world.pem(world.intel().tcb_signing.certificate, world.intel().root.certificate)).encode()
    ]


def _tables(data: bytes) -> None:
    each(lambda: tdx.parse_ccel_table(data), lambda: tdx.tdreport_rtmrs(data))
    for register in range(6):
        each(lambda register=register: tdx.log_register(register))


def _ccel_table() -> bytes:
    head = b"CCEL" + (56).to_bytes(4, "little") + bytes(28) + b"\x02\0\0\0"
    table = head + (65536).to_bytes(8, "little") + (1 << 32).to_bytes(8, "little")
    return table[:9] + bytes([-sum(table) & 0xFF]) + table[10:]  # the checksum makes the sum zero


# -- CBOR and what is made of it -----------------------------------------------------------------------------

_CODE: Final = "tee.nitro.document"


def _cbor(data: bytes) -> None:
    for indefinite in (False, True):
        value = decode_cbor(data, ceiling=limits.COSE_BYTES, code=_CODE, indefinite=indefinite)
        again = decode_cbor(encode_cbor(value), ceiling=2 * limits.COSE_BYTES, code=_CODE)
        same(encode_cbor(again), encode_cbor(value))


def _cose(data: bytes) -> None:
    each(
        lambda: cose.parse_ec2_key(data, code=_CODE),
        *(lambda algorithm=algorithm: cose.parse_point(data, algorithm, code=_CODE) for algorithm in cose.Algorithm),
    )
    message = cose.parse_sign1(data, code=_CODE)
    modern, legacy = world.realms()
    for key in (modern.platform_key, legacy.platform_key, world.enclave()[0].leaf_key):
        algorithm = cose.algorithm_of(key.public_key()) or cose.Algorithm.ES256
        each(lambda key=key, algorithm=algorithm: cose.verify_sign1(message, key.public_key(), algorithm, code=_CODE))


def _cose_files() -> list[bytes]:
    from cloister.testing.cose import cose_key, sign1

    modern, legacy = world.realms()
    ca, module = world.enclave()
    keys = (modern.platform_key, legacy.platform_key, ca.leaf_key)
    public = [encode_cbor(cose_key(key.public_key())) for key in keys]
    points = [key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint) for key in keys]
    return [module.document(nonce=b"n"), *(sign1(b"payload", key) for key in keys), *public, *points]


def _nitro(data: bytes) -> None:
    document = nitro_document.parse_document(data)
    if not document.unknown:
        same(nitro_document.parse_document(nitro_document.encode_document(document)), document)


def _nitro_payloads() -> list[bytes]:
    _, module = world.enclave()
    whole = (module.document(nonce=b"n" * 48, user_data=b"u", public_key=b"k"), module.document())
    return [cose.parse_sign1(data, code=_CODE).payload for data in whole]


def _cca_token(data: bytes) -> None:
    token = cca_token.parse_token(data)
    parts = cca_token.encode_platform_claims(token.platform_claims), cca_token.encode_realm_claims(token.realm_claims)
    again = [decode_cbor(part, ceiling=limits.COSE_BYTES, code=_CODE) for part in parts]
    same(cca_claims.validate_platform(again[0]), replace(token.platform_claims, unknown=()))
    same(cca_claims.validate_realm(again[1]), replace(token.realm_claims, unknown=()))


def _cca_claims(data: bytes) -> None:
    each(lambda: cca_claims.parse_claims_json(data))
    value = decode_cbor(data, ceiling=limits.COSE_BYTES, code=_CODE)
    each(lambda: cca_claims.validate_platform(value), lambda: cca_claims.validate_realm(value))


def _cca_claim_files() -> list[bytes]:
    tokens = [cca_token.parse_token(realm.token()) for realm in world.realms()]
    return [part.payload for token in tokens for part in (token.platform, token.realm)]


def _cca_anchors() -> list[bytes]:
    numbers = world.realms()[0].platform_key.public_key().public_numbers()
    jwk = {
        "kty": "EC",
        "crv": "P-384",
        "kid": "test",
        "x": encode_b64url(numbers.x.to_bytes(48, "big")),
        "y": encode_b64url(numbers.y.to_bytes(48, "big")),
    }
    rsa = world.ak().public_key().public_numbers()
    other = {"kty": "RSA", "n": encode_b64url(rsa.n.to_bytes(256, "big")), "e": "AQAB"}
    stored = {"pkey": jwk, "instance-id": "01" + "ab" * 32, "implementation-id": "cd" * 32}
    texts = (jwk, other, {"keys": [jwk, other]}, [stored], [stored, {**stored, "pkey": other}])
    return [json.dumps(text).encode() for text in texts] + [world.spki()]


def _cca_roots(data: bytes) -> None:
    each(
        lambda: parse_cca_roots(data, origin="file"),
        lambda: files.parse_trust_roots("snp", Level.HARDWARE, [("file", data)]),
    )


# -- Hygon and IBM -------------------------------------------------------------------------------------------


def _csv(data: bytes) -> None:
    each(
        lambda: same(csv.encode_report(csv.parse_report(data)), data),
        lambda: csv.parse_root_certificate(data),
        lambda: csv.parse_serial(data[:64], "tee.hygon_csv.serial"),
    )


def _se(data: bytes) -> None:
    pairs: tuple[tuple[Callable[[bytes], Any], Callable[[Any], bytes]], ...] = (
        (se.parse_request, se.encode_request),
        (se.parse_image_header, se.encode_image_header),
        (se.parse_exchange, se.encode_exchange),
        (se.parse_key_slot, se.encode_key_slot),
    )
    for parse, encode in pairs:
        each(lambda parse=parse, encode=encode: same(encode(parse(data)), data))


def _host_key(data: bytes) -> None:
    pki = world.host_keys()

    def verify(**changes: Any) -> None:
        given = {
            "document": pki.document,
            "certificates": (pki.service,),
            "revocation_lists": pki.lists,
            "roots": (pki.root,),
            "at": AT,
            **changes,
        }
        same(len(verify_host_key_document(**given).key_hash), 32)

    each(
        lambda: verify(document=data),
        lambda: verify(certificates=(data,)),
        lambda: verify(certificates=(pki.service, data)),
        lambda: verify(revocation_lists=(data,)),
        lambda: verify(document=data, at=AT + timedelta(days=4000)),
    )


# -- NVIDIA --------------------------------------------------------------------------------------------------


def _spdm(data: bytes) -> None:
    report = spdm.parse_report(data)
    same(data, spdm.encode_report(report))
    same(spdm.signed_part(data, report) + report.signature, data)
    for switch in (False, True):
        each(lambda switch=switch: _wanted(opaque.read_opaque(report.opaque, switch=switch)))


def _wanted(found: opaque.Opaque) -> None:
    for arch in ("HOPPER", "LS10"):
        identity = device.DeviceIdentity(chip="GH100", arch=arch, pdi=b"", fwids=(), flags=None, names=())
        device_reference.compare_device(identity, found, (), world.devices().endorsements, at=nvidia.NOW)
        for wanted in device_reference.wanted_manifests(identity, found):
            rim_url(wanted.id)


def _manifest(data: bytes) -> None:
    """Read a manifest as it is, and its text as one that the right key has signed."""
    trusted = Endorsements(roots=world.devices().manifests.roots())
    each(
        lambda: manifest.verify_manifest(data, Endorsements(roots=(), pins=pins_for("nvidia")), at=nvidia.NOW),
        lambda: manifest.verify_manifest(data, trusted, at=nvidia.NOW),
        lambda: manifest.verify_manifest(_signed(data), trusted, at=nvidia.NOW),
        lambda: parse_plain_xml(data),
        lambda: _named(data),
    )


_SIGNED_BYTES: Final = 128 * 1024


def _signed(text: bytes) -> bytes:
    chain = world.devices().manifests.chain
    if len(text) > _SIGNED_BYTES:  # signing takes longer than reading, and nobody signs this
        return text
    try:
        return sign_document(text.decode(), [authority.der for authority in chain], chain[0].key)
    except (etree.LxmlError, UnicodeDecodeError, ValueError):  # no XML that anybody could sign
        return text


def _named(data: bytes) -> None:
    wanted = device_reference.Wanted(id="NV_GPU_DRIVER_GH100_1.2", version="1.2", products=frozenset({"GH100"}))
    name = data[:40].decode("latin-1")
    for given in ("NV_GPU_DRIVER_GH100_1.2.json", "other", document_id(name)):
        device_reference.find_manifest(wanted, [Document(name=given, data=data)])


def _manifests() -> list[bytes]:
    whole = world.devices().manifests.manifest(version="1.2", active={0: [nvidia.measurement(0)]}, inactive=(7,))
    answer = {"id": "NV_GPU_DRIVER_GH100_1.2", "rim": encode_b64(whole), "sha256": sha256(whole).hexdigest()}
    odd = (
        SignatureForm(uri="#x"),
        SignatureForm(transforms=(ENVELOPED, ENVELOPED)),
        SignatureForm(transforms=(ENVELOPED, EXCLUSIVE), canonicalisation=EXCLUSIVE),
        SignatureForm(before_info="text"),
        SignatureForm(digest=bytes(48)),
        SignatureForm(digest=bytes(47)),
        SignatureForm(digest_method=f"{DIGEST_SHA384}x"),
    )
    manifests = world.devices().manifests
    made = [manifests.manifest(version="1.2", active={0: [nvidia.measurement(0)]}, form=form) for form in odd]
    return [whole, world.manifest_text().encode(), *made, json.dumps(answer).encode()]


def _dice(data: bytes) -> None:
    """The two extensions, put into a certificate again, so that the one reader there is reads them."""
    found = world.devices()
    chain = found.devices[0].chain
    name = chain[0].certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    for oid in (device.COMPOSITE_DEVICE_ID, device.DICE_TCB_INFO):
        made = nvidia.issue(str(name), chain[1], ca=False, extensions=(x509.UnrecognizedExtension(oid, data),))
        path = (made.certificate, *(authority.certificate for authority in chain[1:]))
        each(lambda path=path: same(device.read_identity(path).debug in (True, False), True))


def _dice_files() -> list[bytes]:
    oids = (device.COMPOSITE_DEVICE_ID, device.DICE_TCB_INFO)
    leaf = world.devices().devices[2].chain[0].certificate
    return [part.value.value for part in leaf.extensions if part.oid in oids]


# -- certificates, lists, signed documents -------------------------------------------------------------------


def _certificate(data: bytes) -> None:
    """Every reader of a certificate, and paths from it and through it."""
    certificate = load_certificate(data, code=_CODE)
    serial_number(certificate)
    extension(certificate, x509.KeyUsage)
    known = [load_certificate(item, code=_CODE) for item in _certificates()]
    for critical in (frozenset(), frozenset({x509.SubjectAlternativeName.oid})):
        each(
            lambda critical=critical: verify_path(
                certificate, anchors=known, at=AT, code=_CODE, leaf_critical=critical
            ),
            lambda critical=critical: verify_path(
                known[6], anchors=known[4:5], intermediates=(certificate,), at=AT, code=_CODE, leaf_critical=critical
            ),
        )
    each(
        lambda: verify_path(certificate, anchors=known, at=AT, code=_CODE, purpose=world.tpm.EK_PURPOSE),
        lambda: verify_path(certificate, anchors=known, at=AT + timedelta(days=9999), code=_CODE),
        lambda: verify_path(certificate, anchors=(certificate,), at=AT - timedelta(days=99999), code=_CODE),
        lambda: instanceinfo.read_instance_info(certificate),
        lambda: pck.parse_pck_extension(certificate),
        lambda: device.read_chip(certificate),
        lambda: device.names_a_device_key(certificate),
        lambda: _vek(data),
        lambda: dcap_chain.common_name(certificate),
    )


def _pck_extension(data: bytes) -> None:
    """The extension, put into a certificate again."""
    part = x509.UnrecognizedExtension(pck.EXTENSION, data)
    pck.parse_pck_extension(nvidia.issue("Intel SGX PCK Certificate", ca=False, extensions=(part,)).certificate)


def _instance(data: bytes) -> None:
    part = x509.UnrecognizedExtension(instanceinfo.OID, data)
    found = instanceinfo.read_instance_info(nvidia.issue("vTPM", ca=False, extensions=(part,)).certificate)
    same(found is not None and len(found.as_dict()), 7)


def _revocation(data: bytes) -> None:
    parsed = revocation.load_revocation_list(data, code=_CODE)
    ca, machine = world.tpm_machine()
    leaf = load_certificate(machine.ek_certificate, code=_CODE)
    for at in (world.tpm.NOW, world.tpm.NOW + timedelta(days=4000), world.tpm.NOW - timedelta(days=4000)):
        for subject, issuer in ((leaf, ca.issuing), (ca.issuing, ca.root)):
            each(
                lambda at=at, subject=subject, issuer=issuer: revocation.revocation_finding(
                    revocation.verify_not_revoked(subject, issuer, (parsed,), at=at, code=_CODE), code=_CODE
                )
            )
    amd_chip = world.chips()[0].amd
    each(lambda: revocation.verify_not_revoked(amd_chip.ask, amd_chip.ark, (parsed,), at=AT, code=_CODE))
    each(lambda: revocation.verify_not_revoked(amd_chip.ask, amd_chip.ask, (parsed,), at=AT, code=_CODE))


def _lists() -> list[bytes]:
    ca, machine = world.tpm_machine()
    made = [
        ca.revocation_list(),
        ca.revocation_list([machine.ek_certificate]),
        ca.revocation_list(next_update=world.tpm.NOW - timedelta(hours=1)),
        world.chips()[0].amd.revocation_list(),
        world.chips()[0].amd.revocation_list(65537),
        *world.host_keys().lists,
    ]
    first = x509.load_der_x509_crl(made[0])
    return [*made, first.public_bytes(Encoding.PEM)]


def _ocsp(data: bytes) -> None:
    response = ocsp.load_ocsp_response(data, code=_CODE)
    chain = world.devices().devices[0].chain
    for at in (nvidia.NOW, nvidia.NOW + timedelta(days=4000), nvidia.NOW - timedelta(days=4000)):
        for subject, issuer in ((chain[1], chain[2]), (chain[2], chain[3])):
            each(
                lambda at=at, subject=subject, issuer=issuer: ocsp.verify_not_revoked(
                    subject.certificate, issuer.certificate, (response,), at=at, code=_CODE
                )
            )


def _responses() -> list[bytes]:
    chain = world.devices().devices[0].chain
    subject, issuer = chain[1].certificate, chain[2]
    delegate = nvidia.issue(
        "OCSP", issuer, ca=False, extensions=(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.OCSP_SIGNING]),)
    )
    revoked = x509.ocsp.OCSPCertStatus.REVOKED
    return [
        nvidia.ocsp_response(subject, issuer),
        nvidia.ocsp_response(subject, issuer, by_name=True, next_update=None),
        nvidia.ocsp_response(subject, issuer, status=revoked),
        nvidia.ocsp_response(subject, issuer, status=revoked, reason=x509.ReasonFlags.certificate_hold),
        nvidia.ocsp_response(subject, issuer, status=x509.ocsp.OCSPCertStatus.UNKNOWN),
        nvidia.ocsp_response(subject, issuer, responder=delegate),
        nvidia.ocsp_response(subject, issuer, responder=chain[3]),
        nvidia.ocsp_response(subject, issuer, extension=x509.OCSPNonce(b"n" * 16)),
    ]


def _pem(data: bytes) -> None:
    for label in (CERTIFICATE, PUBLIC_KEY, "X509 CRL"):
        each(lambda label=label: split_pem(data, code=_CODE, ceiling=limits.CERTIFICATE_BYTES, label=label))


def _keys() -> dict[str, Any]:
    public = world.signer().public_key
    return {key_id(public): public}


def _dsse(data: bytes) -> None:
    each(
        lambda: verify_envelope(data, _keys(), payload_type=PAYLOAD_TYPE, ceiling=limits.REFERENCE_SET_BYTES),
        lambda: verify_envelope(data, {}, payload_type=PAYLOAD_TYPE, ceiling=limits.REFERENCE_SET_BYTES),
    )


@cache
def _sealed_roots() -> tuple[list[bytes], list[bytes]]:
    """Sealed root keys, and shares as people type them."""
    root = bytes(range(32))
    by_shares, shares = sealedroot.seal_by_shares(root, threshold=2, shares=3)
    return [sealedroot.seal_by_passphrase(root, "p", cost=sealedroot.LEAST_COST), by_shares], [
        share.encode() for share in shares
    ]


def _sealed_root(data: bytes) -> None:
    """A document in a file; opening is tried with a key that is not its own."""
    document = sealedroot.parse_sealed_root(data)
    again = sealedroot.parse_sealed_root(sealedroot.seal_again(document, bytes(32), bytes(32)))
    each(
        lambda: sealedroot.open_sealed_root(document, bytes(32)), lambda: sealedroot.open_sealed_root(again, bytes(32))
    )


def _share(data: bytes) -> None:
    share = sealedroot.parse_share(data.decode("utf-8", "surrogateescape"))
    same(len(share.value) <= 32, True)


def _wrapped_key(data: bytes) -> None:
    root = bytes(32)
    known = {envelope.identity_of(root): root}
    each(
        lambda: envelope.unwrap_with(known, "fuzz", "one", data),
        lambda: envelope.unwrap_with({}, "fuzz", "one", data),
        lambda: envelope.require_root(known, "fuzz", data.hex()),
    )


def _key_store_address(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    each(
        lambda: address.split_address(text, parameters=("seal", "token-file", "ca-file")),
        lambda: address.split_parameters(text, ";", ("token", "object")),
        lambda: open_keystore(text) if text.startswith("pkcs11:") else None,
    )


def _reference_set(data: bytes) -> None:
    """A set as it is, and as the payload of an envelope that the right key has signed."""
    envelope = sign_envelope(data, world.signer(), payload_type=PAYLOAD_TYPE)
    known = {"set": SeenVersion(version=2, digest="sha256:0")}

    def encoded() -> None:
        values = referenceset.parse_reference_set(data)
        same(referenceset.parse_reference_set(referenceset.encode_reference_set(values)), values)

    each(
        encoded,
        lambda: referenceset.read_reference_values(data),
        lambda: verify_reference_set(data, _keys(), at=AT, seen={}),
        lambda: verify_reference_set(envelope, _keys(), at=AT, seen={}),
        lambda: verify_reference_set(envelope, _keys(), at=AT, seen=known),
    )


_ENTRY: Final[Mapping[str, Any]] = {
    "id": "one",
    "tee": "tpm",
    "registers": {"pcr11": "ab" * 32, "pcr4": "cd" * 32},
    "not_after": "2027-01-01T00:00:00Z",
    "origin": "a test",
    "components": {"kernel": "sha256:00", "vCPU count": "2"},
}
_SET: Final[Mapping[str, Any]] = {
    "schema": 1,
    "id": "set",
    "version": 2,
    "issued_at": "2025-12-01T00:00:00Z",
    "not_after": "2027-06-01T00:00:00Z",
    "entries": [_ENTRY, {**_ENTRY, "id": "two"}],
}


def _sets() -> list[bytes]:
    plain = json.dumps(_SET).encode()
    changed = [{**_SET, **change} for change in ({"version": 1}, {"not_after": "2025-12-02T00:00:00Z", "entries": []})]
    changed += [{**_SET, "issued_at": "2026-11-01T00:00:00Z"}, {**_SET, "id": "other"}]
    envelope = sign_reference_set(referenceset.parse_reference_set(plain), world.signer())
    return [plain, envelope, json.dumps(_ENTRY).encode(), *(json.dumps(item).encode() for item in changed)]


def _jwt(data: bytes) -> None:
    """A token as it is, and claims as they are in a token that the right key has signed."""
    text, held = data.decode("latin-1"), HeldTokens()
    each(lambda: held.verify(text, _keys(), at=AT), lambda: read_key_header(text))
    claims = parse_json_object(data, ceiling=limits.MIB, code="rats.ear", family=FormatRefused)
    with contextlib.suppress(TypeError, ValueError, OverflowError):  # of the signer: nobody signs this
        token = sign_jwt(claims, world.signer())
        each(lambda: held.verify(token, _keys(), at=AT), lambda: held.verify(token, _keys(), at=AT))


def _ear(data: bytes) -> None:
    found = ear.decode_ear(parse_json_object(data, ceiling=limits.MIB, code="rats.ear", family=FormatRefused))
    for part in (found.primary, *found.submodules.values()):
        each(lambda part=part: same(part.tee in part.annotated, True))
        same(found.status is ear.Tier.AFFIRMING and bool(part.failures), False)


def _ears() -> list[bytes]:
    result = policy.appraise(
        _verified(),
        policy.parse_appraisal_policy(_policies()[0]),
        [reference.parse_reference_entry(json.dumps(_ENTRY).encode())],
        init_data_digest="sha256:0",
        at=AT,
        advisories=shipped_advisories(),
    )
    claims = ear.encode_ear({"cpu0": result, "gpu0": result}, runtime_data={"nonce": "n"}, verifier="t", identity="i")
    return [json.dumps(claims).encode()]


def _tokens() -> list[bytes]:
    times = {"iat": int(AT.timestamp()), "exp": int(AT.timestamp()) + 60}
    return [sign_jwt({**times, "iss": "t"}, world.signer()).encode(), json.dumps(times).encode(), *_ears()]


# -- policies, reference values, advisories ------------------------------------------------------------------


def _claims(**changes: Any) -> Claims:
    members: dict[str, Any] = {
        "tee": "tpm",
        "level": Level.MEASURED,
        "debug": True,
        "registers": {"pcr11": b"\xab" * 32, "pcr4": b"\xcd" * 32},
        "report_data": bytes(48),
        "init_data": b"",
        "instance_id": "1",
        "product": "amd-genoa",
        "tcb": TCB(reported={"snp": 1}),
        "native": {"alias_check_complete": False},
    }
    return Claims(**{**members, **changes})


def _verified() -> VerifiedEvidence:
    status = revocation.RevocationStatus(state=revocation.RevocationState.MISSING, subject="x")
    found = revocation.revocation_finding(status, code="tee.tpm.revocation")
    return VerifiedEvidence(claims=_claims(), findings=(found,), unchecked=(Unchecked(reason="a test"),))


def _policy(data: bytes) -> None:
    parsed = policy.parse_appraisal_policy(data)
    for entries in (Unchecked(reason="a test"), ()):
        policy.appraise(_verified(), parsed, entries, init_data_digest="", at=AT, advisories=shipped_advisories())


def _policies() -> list[bytes]:
    text = """
version = 1
id = "test"
tees = ["tpm", "snp"]
advisories = "warn"
acknowledged_advisories = ["CVE-1"]
collateral_grace_seconds = 60
insecure_accept_levels = ["measured"]
insecure_no_revocation = true

[snp]
minimum_tcb = { snp = 1 }
"""
    plain = {"version": 1, "id": "test", "tees": ["tpm"], "insecure_accept_debug": True}
    return [json.dumps(plain).encode(), text.encode(), text.partition("[snp]")[0].encode()]


def _reference(data: bytes) -> None:
    entries = reference.parse_reference_entries(data)
    for entry in entries:
        same(reference.parse_reference_entry(reference.encode_reference_entry(entry)), entry)
    registers = [{}, dict(entries[0].registers), dict.fromkeys(entries[0].registers, b"")]
    for found in (*registers, {"pcr11": b"\xab" * 32}):
        for tee in (entries[0].tee, "none"):
            for at in (AT, AT + timedelta(days=9999)):
                reference.appraise_registers(_claims(tee=tee, registers=found), entries, at=at)
    reference.appraise_registers(_claims(), Unchecked(reason="a test"), at=AT)


def _references() -> list[bytes]:
    return [json.dumps(_ENTRY).encode(), json.dumps([_ENTRY, {**_ENTRY, "id": "two"}]).encode()]


def _advisory(data: bytes) -> None:
    rows = advisory.parse_advisories(data)
    products = {product for row in rows for product in row.products}
    for product in sorted(products)[:8]:
        for handling in Handling:
            advisory.appraise_advisories(
                _claims(product=product), rows, critical=handling, acknowledged=frozenset({"CVE-1"})
            )


def _advisories() -> list[bytes]:
    row = """
[[advisory]]
id = "CVE-1"
title = "a fault"
products = ["amd-genoa"]
severity = "critical"
published = 2026-01-01
link = "https://example.com/1"
minimum_tcb = { snp = 23 }
where = { silicon = "Genoa-X" }
required = { alias_check_complete = true }
"""
    head = "version = 1\ndate = 2026-01-01\n"
    second = row.replace("CVE-1", "CVE-2").partition("minimum_tcb")[0] + "unfixable = true\n"
    shipped = Path(advisories_module.__file__).with_name("advisories.toml")
    return [(head + row + second).encode(), *([shipped.read_bytes()] if shipped.is_file() else [])]


# -- collateral ----------------------------------------------------------------------------------------------


def _files(data: bytes) -> None:
    each(
        lambda: files.sort_endorsement_files([("file", data), ("other", b"?")], ignore_unknown=True),
        lambda: files.sort_endorsement_files([("file", data)] * 2),
        lambda: files.sort_endorsement_files([("file", data)] * (limits.COLLATERAL_DOCUMENTS + 1)),
        lambda: files.split_bundle(data),
        lambda: files.parse_trust_roots("snp", Level.HARDWARE, [("file", data)]),
    )


def _collateral_files() -> list[bytes]:
    amd_root = world.chips()[0].amd
    parts = [world.pem(amd_root.ask, amd_root.ark), *_lists()[:2], _lists()[-1], *_responses()[:2], *_manifests()]
    key = world.ak().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return [
        *parts,
        *_certificates()[:4],
        *_cca_anchors(),
        world.collateral(),
        *world.service_answers(),
        key,
        key + parts[0],
    ]


@cache
def _items() -> tuple[tuple[items.Item, bytes, dict[str, str]], ...]:
    """Return items of every kind, each with a good answer: body and headers."""
    chip = world.chips()[0]
    members = json.loads(world.collateral())
    chains = {
        "tcb-info-issuer-chain": quote_plus(members["tcb_info_issuer_chain"], safe=""),
        "sgx-enclave-identity-issuer-chain": quote_plus(members["qe_identity_issuer_chain"], safe=""),
        "sgx-pck-crl-issuer-chain": quote_plus(members["pck_crl_issuer_chain"], safe=""),
    }
    chains = {name: text.replace("+", "%20") for name, text in chains.items()}
    info, identity = world.service_answers()
    needed = platform_items("tdx", world.dcap.FMSPC, "platform")
    wanted = rim_item("NV_GPU_DRIVER_GH100_1.2")
    state = ocsp_item(world.devices().devices[0].chain[1].certificate, world.devices().devices[0].chain[2].certificate)
    vcek = vcek_item(amd.vcek_identity(snp_report.parse_report(chip.report())))
    chained, listed = chain_items("Milan")
    response = nvidia.ocsp_response(
        world.devices().devices[0].chain[1].certificate, world.devices().devices[0].chain[2], algorithm=SHA384()
    )
    return (
        (vcek, chip.vek, {}),
        (chained, world.pem(chip.amd.ask, chip.amd.ark), {}),
        (listed, chip.amd.revocation_list(), {}),
        (needed[0], info, chains),
        (needed[1], identity, chains),
        (needed[2], bytes.fromhex(members["pck_crl"]), chains),
        (needed[3], members["root_ca_crl"].encode(), {}),
        (wanted, _manifests()[-1], {}),
        (state, response, {}),
    )


_FETCHED: Final = world.dcap.ISSUED + timedelta(hours=2)


def _answer(data: bytes) -> None:
    """Read an answer: which item it is for, then headers and body."""
    index, _, rest = data.partition(b"\n")
    found, _, headers = _items()[int(index[-1:] or b"0") % len(_items()) if index[-1:].isdigit() else 0]
    head, mark, body = rest.partition(b"\n\n")
    if mark and b": " in head:
        lines = [line.partition(": ") for line in head.decode("latin-1").split("\n")]
        headers = {name: value for name, _, value in lines}
    else:
        body = rest
    answer = transport.Answer(body=body, headers=headers, origin="vendor.example")
    recipe = RECIPES[found.kind]
    for mirror in (False, True):
        same(recipe.request(found, mirror).path[:1], "/")
    kept_bytes, chain = recipe.unwrap(found, answer)
    for at in (_FETCHED, nvidia.NOW, AT + timedelta(days=9000)):
        each(lambda at=at: _use(checked_entry(found, kept_bytes, chain, fetched=at, origin="vendor")))


def _use(entry: kept.Entry) -> None:
    same(kept.decode_entry(kept.encode_entry(entry)), entry)
    same(len(bundle.parse_bundle(bundle.export_bundle([entry]), at=entry.fetched)), 1)
    each(lambda: needs.follow_up(entry))
    load([one for one, _, _ in _items()], lambda one: entry if one == entry.item else None)


def _answers() -> list[bytes]:
    out = []
    for number, (_, body, headers) in enumerate(_items()):
        head = "\n".join(f"{name}: {value}" for name, value in headers.items()).encode()
        out.append(b"%d\n%s%s" % (number, head + b"\n\n" if head else b"", body))
    return out


@cache
def _entries() -> tuple[kept.Entry, ...]:
    found = []
    for one, body, headers in _items():
        data, chain = RECIPES[one.kind].unwrap(one, transport.Answer(body=body, headers=headers))
        for at in (_FETCHED, nvidia.NOW):
            with contextlib.suppress(CloisterError):
                found.append(checked_entry(one, data, chain, fetched=at, origin="vendor.example"))
                break
    return tuple(found)


def _bundle(data: bytes) -> None:
    same(bundle.looks_like_bundle(data) in (True, False), True)
    entries = bundle.parse_bundle(data, at=AT + timedelta(days=9000), origin="usb")
    same(len(bundle.export_bundle(entries)) > 0, True)
    found = {entry.item: entry for entry in entries}
    load(list(found), found.get).stale(AT)


def _bundle_manifest(data: bytes) -> None:
    """Put a manifest before the bodies it may be about, in the bundle's own form."""
    bodies = [entry.content.data for entry in sorted(_entries(), key=lambda entry: entry.item.text)]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, body in (("manifest.json", data), *((f"items/{n:05}", body) for n, body in enumerate(bodies))):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(body), 0o644
            archive.addfile(member, io.BytesIO(body))
    bundle.parse_bundle(buffer.getvalue(), at=AT + timedelta(days=9000))


def _bundle_manifests() -> list[bytes]:
    whole = bundle.export_bundle(_entries())
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        member = archive.extractfile("manifest.json")
        return [member.read()] if member is not None else []


def _kept(data: bytes) -> None:
    """A file of the cache as it is, and its rest under the right hash."""
    rest = data.partition(b"\n")[2]
    sealed = sha256(rest).hexdigest().encode() + b"\n" + rest
    each(lambda: kept.decode_entry(data), lambda: kept.decode_entry(sealed))
    store, wanted = kept.CollateralCache(_DIRECTORY), _entries()[0].item
    path = store.directory / wanted.kind.value / wanted.key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sealed)
    path.with_name(path.name + ".absent").write_bytes(data[:40])
    store.get(wanted)
    store.is_absent(wanted, AT)
    if len(list(store.entries())) and data[:1] == b"a":  # the disk is written to for some of them only
        each(lambda: store.put(_entries()[0]))
        store.put_absent(wanted, AT)
        store.remove_damaged()
        store.remove(wanted)


def _item(data: bytes) -> None:
    found = items.parse_item(data.decode("latin-1"))
    same(found.text.encode("latin-1"), data)
    same((len(found.key), bool(found.label), found.immutable in (True, False)), (64, True, True))
    for mirror in (False, True):
        same(RECIPES[found.kind].request(found, mirror).path[:1], "/")


# -- plain codecs --------------------------------------------------------------------------------------------


def _base64(data: bytes) -> None:
    text = data.decode("latin-1")
    each(
        lambda: same(encode_b64(decode_b64(text, ceiling=limits.MIB)), text),
        lambda: same(encode_b64url(decode_b64url(text, ceiling=limits.MIB)), text),
        lambda: decode_b64(text, ceiling=9),
    )


def _http(data: bytes) -> None:
    for method in ("GET", "HEAD"):
        rest = memoryview(data)

        def receive(count: int) -> bytes:
            nonlocal rest
            piece, rest = bytes(rest[: min(count, 97)]), rest[min(count, 97) :]
            return piece

        with contextlib.suppress(CloisterError):
            answer = HTTPAnswer(receive, method)
            while not answer.ended and answer.read(4096):
                pass
            same(answer.reusable in (True, False), True)
    text = data.decode("latin-1")
    each(lambda: encode_request(text[:4], text[4:], "host", {text[:3]: text[3:]}, data if text[:1] == "P" else None))


_HTTP_ANSWERS: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 404 No\r\n\r\nuntil the end",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nA: 1\r\na: 2\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: 1\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    b"POST/path",
)


def _json(data: bytes) -> None:
    parse_json_object(data, ceiling=limits.EVIDENCE_FILE_BYTES, code="tee.file", family=FormatRefused)


def _toml(data: bytes) -> None:
    parse_toml(data, ceiling=limits.INITDATA_BYTES, code="rats.policy.malformed")


_CERTIFICATE_FILES: Final = ("*/*/*.der", "roots/*/*.der", "roots/*/*.c??")

TARGETS: Final[Mapping[str, Target]] = {
    **{f"evidence/{tee}": _of_evidence(tee) for tee in TECHNOLOGIES},
    "snp/report": target_of(
        _snp_report,
        seeds(lambda: [chip.report(version=v) for chip in world.chips() for v in (2, 3, 5)], "snp*/*/*.bin"),
        limits.SNP_REPORT_BYTES,
        "tee.sev_snp.abi",
        "tee.sev_snp.cocoshape",
        "tee.sev_snp.endorsements",
        "tee.sev_snp.products",
    ),
    "snp/certificates": target_of(
        _certificate_table,
        seeds(lambda: [chip.certificate_table() for chip in world.chips()]),
        limits.SNP_CERTIFICATE_TABLE_BYTES,
        "tee.sev_snp.certtable",
    ),
    "snp/vek": target_of(
        _vek,
        seeds(lambda: _certificates()[:5], "snp*/*/*.der"),
        limits.CERTIFICATE_BYTES,
        "tee.sev_snp.vek",
        "tee.sev_snp.endorsements",
    ),
    "azure/hcl": target_of(_hcl, seeds(_hcl_files, "az-*/*/*.bin"), limits.HCL_REPORT_BYTES, "tee.azure.abi"),
    "eventlog": target_of(
        _event_log,
        seeds(world.event_logs, "t*/*/*ccel.bin", "tpm/eventlogs/*.bin", "tpm/cc-eventlogs/CCEL*l*"),
        limits.EVENT_LOG_BYTES,
        "tee.eventlog",
        "tee.uefi",
        "tee.tpm.eventlog",
        "tee.tpm.measurements",
    ),
    "tpm/structures": target_of(
        _tpm_structures,
        seeds(_tpm_structure_files, "tpm/keylime-emulator/*"),
        limits.TPM_RESPONSE_BYTES,
        "tee.tpm.abi",
        "tee.tpm.quote",
        "wire.binary",
    ),
    "tpm/answers": target_of(_tpm_answers, seeds(_tpm_answer_files), limits.TPM_RESPONSE_BYTES, "tee.tpm.commands"),
    "tpm/protobuf": target_of(
        _protobuf,
        seeds(lambda: [b"\x08\x96\x01\x12\x03abc\x12\x00"]),
        limits.EVIDENCE_FILE_BYTES,
        "wire.protobuf",
        "tee.tpm.gotpm",
    ),
    "tpm/parts": target_of(
        _tpm_parts,
        seeds(lambda: [world.pcr_file([bytes(32)] * 24), _public_pem(), world.spki()], "tpm/keylime-emulator/*"),
        limits.TPM_RESPONSE_BYTES,
        "tee.tpm.tpm2tools",
    ),
    "tpm/credential": target_of(
        _credential,
        seeds(lambda: [*_certificates()[-4:], *_tpm_structure_files()[:2], _certificates()[7]]),
        limits.CERTIFICATE_BYTES,
        "tee.tpm.credential",
    ),
    "tpm/roots": target_of(
        _tpm_roots,
        seeds(lambda: [world.pem(world.tpm_machine()[0].root), *_certificates()[:1]], "roots/gcp/*"),
        limits.COLLATERAL_BYTES,
        "tee.tpm.endorsements",
    ),
    "tpm/instance": target_of(
        _instance, seeds(lambda: [world.instance_info()]), limits.CERTIFICATE_BYTES // 2, "tee.tpm.instanceinfo"
    ),
    "dcap/quote": target_of(
        _quote,
        seeds(world.quotes, "[st][gd]x/*/quote*.bin"),
        limits.DCAP_QUOTE_BYTES,
        "tee.dcap.abi",
        "tee.dcap.platform",
        "tee.dcap.claims",
        "tee.dcap.endorsements",
    ),
    "dcap/pck": target_of(
        _pck_extension,
        seeds(lambda: [world.dcap.Machine().extension()]),
        limits.CERTIFICATE_BYTES // 2,
        "tee.dcap.pck",
    ),
    "dcap/statements": target_of(
        _statements, seeds(_statement_files), limits.COLLATERAL_BYTES, "tee.dcap.statements", "tee.dcap.tcb"
    ),
    "dcap/collateral": target_of(
        _dcap_collateral,
        seeds(lambda: [world.collateral(), *world.service_answers(), *_lists()[-1:]], "[st][gd]x/*/collateral*.json"),
        limits.COLLATERAL_BYTES,
        "tee.dcap.collateral",
    ),
    "dcap/chain": target_of(
        _dcap_chain, seeds(_pck_chain), limits.DCAP_QUOTE_BYTES, "tee.dcap.chain", "tee.dcap.endorsements"
    ),
    "tdx/tables": target_of(
        _tables, seeds(lambda: [_ccel_table(), bytes(1024)], "tdx/*/ccel-table.bin"), 4096, "tee.tdx.abi"
    ),
    "nitro/document": target_of(_nitro, seeds(_nitro_payloads), limits.COSE_BYTES, "tee.nitro.abi"),
    "cca/token": target_of(
        _cca_token,
        seeds(lambda: [realm.token() for realm in world.realms()], "cca/*/token.cbor"),
        limits.COSE_BYTES,
        "tee.cca.abi",
        "tee.cca.claims",
    ),
    "cca/claims": target_of(
        _cca_claims, seeds(_cca_claim_files, "cca/claims-json/*.json"), limits.COSE_BYTES, "tee.cca.claims"
    ),
    "cca/roots": target_of(
        _cca_roots, seeds(_cca_anchors, "cca/*/*.json"), limits.COLLATERAL_BYTES, "tee.cca.endorsements"
    ),
    "csv/structures": target_of(
        _csv, seeds(lambda: [world.CSV_REPORT, world.CSV_ROOT], "hygon-csv/*/*.cert"), 8192, "tee.hygon_csv.abi"
    ),
    "se/structures": target_of(
        _se, seeds(world.se_structures, "ibm-se/structures/*"), limits.SE_BYTES, "tee.ibm_se.abi"
    ),
    "se/host-key": target_of(
        _host_key,
        seeds(
            lambda: [world.host_keys().document, world.host_keys().service, *world.host_keys().lists],
            "ibm-se/hkd-pki/*",
        ),
        limits.REVOCATION_LIST_BYTES,
        "tee.ibm_se.endorsements",
    ),
    "nvidia/report": target_of(
        _spdm,
        seeds(world.spdm_reports),
        limits.SPDM_BYTES,
        "tee.nvidia_gpu.abi",
        "tee.nvidia_gpu.opaque",
        "tee.nvidia_gpu.reference",
        "tee.nvidia_gpu.endorsements",
    ),
    "nvidia/manifest": target_of(
        _manifest,
        seeds(_manifests, "nvidia/rim/*"),
        limits.RIM_BYTES,
        "tee.nvidia_gpu.manifest",
        "tee.nvidia_gpu.xmlsignature",
        "tee.nvidia_gpu.reference",
    ),
    "nvidia/dice": target_of(_dice, seeds(_dice_files), limits.CERTIFICATE_BYTES // 2, "tee.nvidia_gpu.certificate"),
    "crypto/certificate": target_of(
        _certificate, seeds(_certificates, *_CERTIFICATE_FILES), limits.CERTIFICATE_BYTES, "crypto.x509path"
    ),
    "crypto/revocation": target_of(
        _revocation,
        seeds(_lists, "*/*/*.crl", "snp*/*/*crl*.der"),
        limits.REVOCATION_LIST_BYTES,
        "crypto.revocation",
    ),
    "crypto/ocsp": target_of(_ocsp, seeds(_responses), limits.OCSP_BYTES, "crypto.ocsp"),
    "crypto/pem": target_of(
        _pem, seeds(lambda: [_public_pem(), *_pck_chain()[:1]], "roots/*/*.pem"), limits.COLLATERAL_BYTES, "crypto.pem"
    ),
    "crypto/cose": target_of(_cose, seeds(_cose_files, "nitro/*/*.cbor"), limits.COSE_BYTES, "crypto.cose"),
    "crypto/dsse": target_of(_dsse, seeds(lambda: _sets()[1:2]), limits.REFERENCE_SET_BYTES, "crypto.dsse"),
    "crypto/sealed-root": target_of(
        _sealed_root, seeds(lambda: _sealed_roots()[0]), 4096, "crypto.keystore.sealedroot"
    ),
    "crypto/share": target_of(_share, seeds(lambda: _sealed_roots()[1]), 4096, "crypto.keystore.sealedroot"),
    "crypto/wrapped-key": target_of(
        _wrapped_key,
        seeds(lambda: [envelope.wrap_under(bytes(32), "one", bytes(32))]),
        4096,
        "crypto.keystore.envelope",
        "crypto.keystore.interface",
    ),
    "crypto/key-store-address": target_of(
        _key_store_address,
        seeds(
            lambda: [
                b"file:///root.key?seal=shares",
                b"vault://host:8200/secret/root?token-file=/t&ca-file=/c",
                b"pkcs11:token=t;object=o?module-path=/m&pin-source=file:/p",
                b"token=a%20b;object=c",
                b"token=a;token=b",
                b"token=%ff",
                b"token=%00",
            ]
        ),
        4096,
        "crypto.keystore.uri",
    ),
    "crypto/jwt": target_of(_jwt, seeds(_tokens), limits.KBS_RESPONSE_BYTES, "crypto.jwt"),
    "rats/reference-set": target_of(
        _reference_set, seeds(_sets), limits.REFERENCE_SET_BYTES, "rats.referenceset", "crypto.references"
    ),
    "rats/reference": target_of(_reference, seeds(_references), limits.REFERENCE_SET_BYTES, "rats.reference"),
    "rats/policy": target_of(_policy, seeds(_policies), limits.POLICY_BYTES, "rats.policy"),
    "rats/advisory": target_of(_advisory, seeds(_advisories), limits.POLICY_BYTES, "rats.advisory"),
    "rats/ear": target_of(_ear, seeds(_ears), limits.MIB, "rats.ear"),
    "collateral/files": target_of(
        _files,
        seeds(_collateral_files, "roots/*/*", "nvidia/rim/*", "[st][gd]x/*/collateral.json"),
        limits.COLLATERAL_BYTES,
        "tee.collateral.files",
    ),
    "collateral/answer": target_of(
        _answer,
        seeds(_answers),
        limits.COLLATERAL_BYTES,
        "tee.collateral.amd",
        "tee.collateral.answers",
        "tee.collateral.intel",
        "tee.collateral.nvidia",
    ),
    "collateral/bundle": target_of(
        _bundle,
        seeds(lambda: [bundle.export_bundle(_entries()), bundle.export_bundle(_entries()[:1])]),
        limits.COLLATERAL_BUNDLE_BYTES,
        "tee.collateral.bundle",
        "tee.collateral.load",
    ),
    "collateral/bundle-manifest": target_of(
        _bundle_manifest, seeds(_bundle_manifests), limits.COLLATERAL_BYTES, "tee.collateral.bundle"
    ),
    "collateral/kept": target_of(
        _kept, seeds(lambda: map(kept.encode_entry, _entries())), limits.COLLATERAL_BYTES, "tee.collateral.cache"
    ),
    "collateral/item": target_of(
        _item, seeds(lambda: [one.text.encode() for one, _, _ in _items()]), 4096, "tee.collateral.item"
    ),
    "wire/json": target_of(
        _json,
        seeds(lambda: [b'{"a": [1, -2.5e3, true, null, "\\u00e9\\ud83d\\ude00", {}]}', *_sets()]),
        limits.EVIDENCE_FILE_BYTES,
        "wire.strictjson",
    ),
    "wire/toml": target_of(
        _toml, seeds(lambda: [*_policies()[1:], *_advisories()]), limits.INITDATA_BYTES, "wire.stricttoml"
    ),
    "wire/cbor": target_of(
        _cbor,
        seeds(lambda: [*_cose_files(), *_nitro_payloads(), *_cca_claim_files()], "*/*/*.cbor"),
        limits.COSE_BYTES,
        "wire.cbor",
    ),
    "wire/base64": target_of(
        _base64, seeds(lambda: [b"AAECAwQ=", b"-_8", b"+/8=", b""]), 2 * limits.MIB, "wire.base64"
    ),
    "wire/http": target_of(_http, seeds(lambda: _HTTP_ANSWERS), limits.COLLATERAL_BYTES, "wire.http1"),
    **images.TARGETS,
    **signatures.TARGETS,
}

_CHECKS: Final = "checks parsed values, and is run by the target of its evidence"
_OFFERS: Final = "says what the owner's rules make of parsed values"
_GUEST: Final = "asks a device inside the guest"
_TYPES: Final = "types without a parser"
_SECRETS: Final = "keys and sealed data: no evidence, nor what vouches for it"

NOT_PARSERS: Final[Mapping[str, str]] = {
    f"cloister.{name}": reason
    for reason, names in {
        _CHECKS: (
            *(f"tee.{package}.verifier" for package in world.PACKAGES),
            "tee.insecure.sample.verifier",
            "tee.azure.hardware",
            "tee.checklist",
            "tee.dcap.reliance",
            "tee.dcap.signatures",
            "tee.dcap.stated",
            "tee.nvidia_gpu.revocation",
            "tee.sev_snp.chain",
            "tee.tpm.vouching",
            "tee.verification",
        ),
        _OFFERS: (
            *(f"tee.{package}.appraisal" for package in world.PACKAGES),
            "tee.insecure.sample.appraisal",
            "tee.builtinpolicy",
            "rats.binding",
        ),
        _GUEST: (
            *(f"tee.{package}.attester" for package in world.PACKAGES if package != "dcap"),
            "tee.insecure.sample.attester",
            "tee.tsmreport",
            "tee.tpm.transport",
        ),
        _TYPES: (
            "rats.claims",
            "rats.endorsement",
            "rats.evidence",
            "rats.result",
            "rats.rules",
            "tee.collateral.content",
            "tee.collateral.recipes",
            "tee.registry",
            "tee.tpm.constants",
            "tee.sgx.abi",
            "wire.limits",
        ),
        _SECRETS: (
            "crypto.aead",
            "crypto.jwe",
            "crypto.keystore.shamir",
            "crypto.signer",
            "crypto.streamseal",
            "crypto.tlsca",
            "tee.insecure.machinekey",
        ),
        "addresses and fingerprints of roots": tuple(
            f"tee.{package}.endorsements"
            for package in ("azure", "hygon_csv", "insecure", "insecure.sample", "nitro", "sgx", "tdx")
        ),
        "fetches and keeps: what it reads is read by the parsers of answers": (
            "tee.collateral.collector",
            "tee.collateral.gate",
            "tee.collateral.sources",
            "tee.collateral.transport",
        ),
        "a place of the owner's that keeps a key: its answers are read by a schema": (
            "crypto.keystore.file",
            "crypto.keystore.pkcs11",
            "crypto.keystore.registry",
            "crypto.keystore.vault",
        ),
        "keeps answers that were found": ("crypto.remembered",),
        "reads a table that is part of the build": ("tee.advisories",),
        "the owner's own program, run by an interpreter that is not ours": ("tee.regopolicy",),
        "makes types ready, reads nothing": ("wire.structs",),
        "writes only": ("wire.canonicaljson",),
    }.items()
    for name in names
} | {**images.NOT_PARSERS, **signatures.NOT_PARSERS}
