"""The release log: what was released, denied and changed, as a public log that witnesses cosign

The format is spec/release-log.md.
."""

from cloister.trust.releaselog.cosigning import Cosigner, Witness, parse_witnesses
from cloister.trust.releaselog.keyfile import load_log_key
from cloister.trust.releaselog.log import Appended, ReleaseLog
from cloister.trust.releaselog.opened import OpenedLog, open_release_log
from cloister.trust.releaselog.serving import PublicFile, PublicLog

__all__ = [
    "Appended",
    "Cosigner",
    "OpenedLog",
    "PublicFile",
    "PublicLog",
    "ReleaseLog",
    "Witness",
    "load_log_key",
    "open_release_log",
    "parse_witnesses",
]
