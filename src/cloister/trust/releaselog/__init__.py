"""The release log: what was released, denied and changed, as a public log that witnesses cosign.

The format is spec/release-log.md.
"""

from cloister.trust.releaselog.announced import Announced, announce, read_announced
from cloister.trust.releaselog.cosigning import Cosigner, Witness, parse_witnesses
from cloister.trust.releaselog.log import Appended, EventsOnceOpen, ReleaseLog, make_release_log
from cloister.trust.releaselog.serving import PublicFile, PublicLog

__all__ = [
    "Announced",
    "Appended",
    "Cosigner",
    "EventsOnceOpen",
    "PublicFile",
    "PublicLog",
    "ReleaseLog",
    "Witness",
    "announce",
    "make_release_log",
    "parse_witnesses",
    "read_announced",
]
