"""Constants of the TPM 2.0 Library specification, part 2 "Structures" (rev. 1.59), as far as Cloister uses them.

Its own module because guest and verifier share it, and the guest must load nothing else for it.
"""

from __future__ import annotations

from typing import Final

# Table 9, TPM_ALG_ID.
ALG_RSA: Final = 0x0001
ALG_SHA1: Final = 0x0004
ALG_AES: Final = 0x0006
ALG_SHA256: Final = 0x000B
ALG_SHA384: Final = 0x000C
ALG_SHA512: Final = 0x000D
ALG_NULL: Final = 0x0010
ALG_SM3_256: Final = 0x0012
ALG_RSASSA: Final = 0x0014
ALG_RSAES: Final = 0x0015
ALG_RSAPSS: Final = 0x0016
ALG_OAEP: Final = 0x0017
ALG_ECDSA: Final = 0x0018
ALG_ECDH: Final = 0x0019
ALG_ECC: Final = 0x0023
ALG_CFB: Final = 0x0043

# Table 10, TPM_ECC_CURVE.
CURVE_P256: Final = 0x0003
CURVE_P384: Final = 0x0004
CURVE_P521: Final = 0x0005

# Table 6 and 19, TPM_GENERATED and TPM_ST.
GENERATED: Final = 0xFF544347
ST_NO_SESSIONS: Final = 0x8001
ST_SESSIONS: Final = 0x8002
ST_ATTEST_QUOTE: Final = 0x8018

# Table 31, TPMA_OBJECT.
FIXED_TPM: Final = 1 << 1
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
USER_WITH_AUTH: Final = 1 << 6
ADMIN_WITH_POLICY: Final = 1 << 7
NO_DA: Final = 1 << 10
ENCRYPTED_DUPLICATION: Final = 1 << 11
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN_ENCRYPT: Final = 1 << 18
X509_SIGN: Final = 1 << 19

# Table 204, TPMA_NV.
NV_OWNER_WRITE: Final = 1 << 1
NV_OWNER_READ: Final = 1 << 17

# Table 28, TPM_RH.
RH_OWNER: Final = 0x40000001
RH_NULL: Final = 0x40000007
RS_PASSWORD: Final = 0x40000009
RH_ENDORSEMENT: Final = 0x4000000B

# TCG EK Credential Profile (rev. 2.5), section 2.2.1.4 and 2.2.1.5.1: the low-range RSA-2048 EK.
EK_CERTIFICATE_INDEX: Final = 0x01C00002
EK_HANDLE: Final = 0x81010001

PCRS: Final = 24  # TCG PC Client Platform TPM Profile, section 4.6
SHA256_BYTES: Final = 32
INIT_DATA_PCR: Final = 8
REPORT_DATA_BYTES: Final = 32  # of the 48 that the broker's protocol defines, what CoCo puts into extraData
