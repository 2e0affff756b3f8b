"""Named ceilings for every length, count, depth and duration that a peer can choose.

One table, each line with its reason, so that a reviewer sees the whole attack surface in one place. A parser takes its
ceiling from here; raising one is a visible change.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# HTTP answers of registries and key brokers.
HTTP_HEAD_BYTES: Final = 64 * KIB  # real heads stay under 4 KiB
HTTP_HEADERS: Final = 100
HTTP_INTERIM_ANSWERS: Final = 8  # 1xx answers before the final one

# KBS protocol (trust plane). The request limit is the one CoCo's broker uses, so that the same guests fit.
KBS_REQUEST_BYTES: Final = 2 * MIB
KBS_RESPONSE_BYTES: Final = 4 * MIB
RESOURCE_BYTES: Final = 1 * MIB  # a key, a model key, a small config; larger data belongs in an encrypted image
RESOURCE_SEGMENT_CHARS: Final = 128
NONCE_BYTES: Final = 32
SESSION_SECONDS: Final = 300  # the time a guest may take between /auth and its last /resource

# Init data: read by the agent before anything is verified, so small.
INITDATA_BYTES: Final = 1 * MIB
INITDATA_ENTRIES: Final = 32
INITDATA_WAIT_SECONDS: Final = 600  # a booted pod VM without init data; sealing a large image takes minutes

# Between the agent and its key process.
KEY_REQUEST_BYTES: Final = INITDATA_BYTES + 4 * KIB  # the longest carries the init data
KEY_ANSWER_BYTES: Final = KBS_RESPONSE_BYTES + 64 * KIB  # the longest carries a token, which a broker's answer bounds

# Guest API: what the untrusted host may send.
GUESTAPI_FRAME_BYTES: Final = 256 * KIB
STREAM_FRAME_BYTES: Final = 32 * KIB
STREAM_WINDOW_BYTES: Final = 256 * KIB
GUESTAPI_CONTAINERS: Final = 64
GUESTAPI_EXECS: Final = 64
GUESTAPI_ID_CHARS: Final = 128

# OCI: what an untrusted registry may send.
MANIFEST_BYTES: Final = 4 * MIB  # the ceiling registries themselves use
IMAGE_CONFIG_BYTES: Final = 4 * MIB
SIGNATURE_PAYLOAD_BYTES: Final = 64 * KIB
SIGNATURE_BYTES: Final = 1024  # RSA with 8192 bits
SIGNATURE_BUNDLE_BYTES: Final = 2 * MIB  # one Sigstore bundle or envelope; real ones stay under 16 KiB
SIGNATURE_LOG_ENTRIES: Final = 8  # log entries, timestamps of one bundle
SIGNATURE_SUBJECTS: Final = 256  # artifacts that one statement is about
SIGNATURE_REFERRERS: Final = 64  # manifests that refer to one image and are looked at
SIGNATURE_POLICY_BYTES: Final = 1 * MIB  # policy.json, trustpolicy.json, trusted_root.json
SIGNATURE_POLICY_ITEMS: Final = 1024  # scopes, requirements, keys of one such file
OPENPGP_KEYRING_BYTES: Final = 4 * MIB  # a distribution's keyring stays under 1
OPENPGP_MESSAGE_BYTES: Final = 256 * KIB  # one signed payload
OPENPGP_PACKETS: Final = 16_384  # of one keyring: keys that many people certified
TIMESTAMP_BYTES: Final = 64 * KIB  # an RFC 3161 response with its certificates
LAYERS: Final = 127  # overlayfs' own practical ceiling in containerd and docker
LAYER_BYTES: Final = 16 * GIB
LAYER_ENTRIES: Final = 1_000_000
BLOB_PIECE_BYTES: Final = 320 * KIB  # of a blob at a time: more is not faster, and every stage of the work holds a few
LAYER_UNPACKED_BYTES: Final = 64 * GIB
LAYER_RATIO: Final = 1100  # deflate cannot exceed 1032:1; more is a lie about the sizes
ZSTD_WINDOW_BYTES: Final = 32 * MIB  # memory a decoder needs; the widest of tools that compress images is 32 MiB
SCRATCH_BYTES: Final = 64 * GIB  # ciphertext of one pod's layers that waits on a disk
LAYER_FETCHES: Final = 3  # layers fetched at the same time, as containerd does by default
TAR_PATH_BYTES: Final = 4096
TAR_XATTR_BYTES: Final = 64 * KIB
TAR_PATH_DEPTH: Final = 256  # directories below each other; real trees stay under 40
TAR_PAX_BYTES: Final = 256 * KIB  # one extended header: a path, a link target and the attributes
TAR_FILLING_BYTES: Final = 1 * MIB  # zeros behind the end; GNU tar fills up to 10 KiB unless told otherwise
TAR_GLOBALS: Final = 16  # global headers; `git archive` writes one
LAYER_NAME_BYTES: Final = 128 * MIB  # all paths of one layer, their directories included: kept while it is unpacked
SYMLINK_HOPS: Final = 40  # what the kernel itself follows
ANNOTATION_BYTES: Final = 64 * KIB
KEY_PROVIDER_REQUEST_BYTES: Final = 4 * MIB  # brings the parameters of all schemes, a PGP keyring among them
KEY_PROVIDER_ANSWER_BYTES: Final = 512 * KIB  # one annotation, each byte a number of up to three digits and a comma
KEY_PROVIDER_CONFIG_BYTES: Final = 64 * KIB
KEY_PROVIDER_SECONDS: Final = 60  # for one key; CoCo's own client waits 50
ANNOTATIONS: Final = 1024  # the conformance suite of the distribution specification pushes 391
WRAPPED_KEY_SCHEMES: Final = 16  # ways to wrap one layer's key: four of ocicrypt, the rest providers
WRAPPED_KEY_ELEMENTS: Final = 16  # of one scheme; each costs a reader an attempt
WRAPPED_KEY_BYTES: Final = 32 * KIB  # one element: 32 recipients with 4096-bit RSA keys fill it
INDEX_ENTRIES: Final = 1024
IMAGE_SIGNATURES: Final = 32
REFERRERS: Final = 1024  # of one image; real ones have under 20
REFERRER_PAGES: Final = 64  # a registry may answer empty ones for ever
JSON_DEPTH: Final = 64
TOML_NAME_PARTS: Final = 64  # of one dotted name; real ones have three
REGISTRY_TOKEN_BYTES: Final = 64 * KIB
REGISTRY_REDIRECTS: Final = 5
REGISTRY_ATTEMPTS: Final = 4  # one try and three repeats: a passing fault, not a dead peer
REGISTRY_TAGS: Final = 100_000  # of one repository
REGISTRY_TAG_PAGES: Final = 1024
REGISTRY_PAUSE_SECONDS: Final = 15  # before a repeat, also where a registry asks for more
REGISTRY_IDLE_CONNECTIONS: Final = 8  # kept open to one server
REGISTRY_SECONDS: Final = 30  # silence on a connection

# Evidence and what vouches for it.
EVIDENCE_FILE_BYTES: Final = 8 * MIB  # eight GPUs with their chains in one JSON file stay under 1
SNP_REPORT_BYTES: Final = 1184  # exactly: SEV-SNP ABI, table 23
SNP_CERTIFICATES: Final = 16  # a host's table: VCEK or VLEK, ASK, ARK, CRL, and some of its own
SNP_CERTIFICATE_TABLE_BYTES: Final = 64 * KIB  # the kernel hands out at most 16
HCL_REPORT_BYTES: Final = 16 * KIB  # of the paravisor on Azure; its NV index has 2600 bytes
IMDS_BYTES: Final = 256 * KIB  # an answer of the instance metadata service: a few certificates, or one quote
DCAP_QUOTE_BYTES: Final = 64 * KIB  # with certificates; kernels hand out at most 8 KiB, some clouds pad
COLLATERAL_BYTES: Final = 4 * MIB  # one vendor document; Intel's TCB info stays under 64 KiB
COLLATERAL_DOCUMENTS: Final = 256
COLLATERAL_HEAD_BYTES: Final = 64 * KIB  # identity, times and the issuer's certificates beside one document
COLLATERAL_BUNDLE_BYTES: Final = 256 * MIB
COLLATERAL_BUNDLE_ITEMS: Final = 10_000  # chips of a fleet, each at two TCBs
COLLATERAL_ATTEMPTS: Final = 4  # one try and three repeats: vendors throttle for minutes, which repeats make worse
COLLATERAL_REDIRECTS: Final = 2
COLLATERAL_ATTEMPT_SECONDS: Final = 30
COLLATERAL_WAIT_SECONDS: Final = 30  # a longer pause that a host asks for is kept by asking nothing
COLLATERAL_FETCH_SECONDS: Final = 120  # all attempts and pauses for one item
REVOCATION_LIST_BYTES: Final = 4 * MIB
OCSP_BYTES: Final = 64 * KIB  # with its responder's certificates; real ones stay under 4 KiB
REVOCATION_LIST_ENTRIES: Final = 100_000
COSE_BYTES: Final = 64 * KIB  # a Nitro document stays under 8 KiB, a CCA token under 4
CBOR_DEPTH: Final = 16
CBOR_ITEMS: Final = 4096
CCA_CLAIM_BYTES: Final = 4 * KIB  # a platform's configuration; all other claims are digests and keys
CCA_COMPONENTS: Final = 64  # firmware of today has 13
NITRO_FIELD_BYTES: Final = 1024  # public key, user data, nonce: AWS, attestation_process.md
SE_BYTES: Final = 64 * KIB  # requests, headers, exchange files of IBM Secure Execution; real ones stay under 4
SE_KEY_SLOTS: Final = 128
TSM_BLOB_BYTES: Final = 64 * KIB  # reports and quotes; the kernel itself stops at 32 KiB
NSM_REQUEST_BYTES: Final = 4 * KIB  # what the kernel's driver accepts
NSM_RESPONSE_BYTES: Final = 12 * KIB
SPDM_BYTES: Final = 64 * KIB
GPU_DEVICES: Final = 32  # eight GPUs and four switches in the largest machine there is
SPDM_OPAQUE_BYTES: Final = 1024  # DSP0274 1.1.1, table 44
RIM_BYTES: Final = 4 * MIB
RIM_ELEMENTS: Final = 1024  # XML elements; real ones have about 90
RIM_DEPTH: Final = 16
RIM_NAMESPACES: Final = 32
RIM_MEASUREMENTS: Final = 256  # an index is one byte; real manifests have 64
RIM_ALTERNATIVES: Final = 1024  # accepted values of one measurement; real ones stay under 10

# TPM structures and event logs.
TPM_RESPONSE_BYTES: Final = 4 * KIB
TPM_NV_BYTES: Final = 4 * KIB
EVENT_LOG_BYTES: Final = 1 * MIB
EVENT_LOG_ENTRIES: Final = 4096
EVENT_BYTES: Final = 64 * KIB
CERTIFICATE_BYTES: Final = 16 * KIB
CERTIFICATE_CHAIN: Final = 6

# Pod policy.
POLICY_BYTES: Final = 512 * KIB
POLICY_CONTAINERS: Final = 32
POLICY_LIST_ITEMS: Final = 1024
POLICY_VALUE_BYTES: Final = 128 * KIB
LEASE_SECONDS: Final = 24 * 3600  # a lease longer than a day revokes nothing in time

# Reference values: what an owner signs and a verifier reads.
REFERENCE_SET_BYTES: Final = 8 * MIB  # an entry with its components takes under 1 KiB
REFERENCE_ENTRIES: Final = 4096
ENVELOPE_SIGNATURES: Final = 16

# Firmware files that launch digests are computed from.
FIRMWARE_BYTES: Final = 64 * MIB  # a flash chip; real builds take 2 to 16
FIRMWARE_SECTIONS: Final = 64
FIRMWARE_MEMORY_BYTES: Final = 64 * MIB  # added page by page
VCPUS: Final = 256  # what a launch statement can say
