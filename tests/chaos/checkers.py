"""The promises, as functions from what was seen and what was recorded to what is wrong with it; pure.

An acknowledged release has its audit row and its entry in the log, and was allowed. The log is one: its entries are
there without a gap, its tree is the one they make, and every checkpoint that was ever signed or shown says so. A nonce
was accepted once. Nothing secret is in a log file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from chaos.history import History, Release
from chaos.records import Records
from cloister.errors import Refused
from cloister.tlog.checkpoint import verify_checkpoint
from cloister.tlog.entry import encode_leaf, parse_leaf
from cloister.tlog.merkle import leaf_hash
from cloister.tlog.note import VerifierKey, parse_note
from cloister.tlog.receipt import LogPins, parse_receipt, verify_receipt
from cloister.tlog.tree import CompactRange
from cloister.trust.store.records import DENIED, RELEASED, RENEWED

RELEASES = (RELEASED, RENEWED)
KINDS = ("release", "renewal")
SHOWN = 5  # of many faults of one kind


def check(history: History, records: Records, pins: LogPins) -> list[str]:
    """Return everything that is wrong; nothing when all promises were kept."""
    roots, faults = recompute(records)
    faults += checkpoints_agree(records.checkpoints, roots, pins.key)
    faults += audited(history.releases, records)
    faults += logged(history.releases, records, roots, pins)
    faults += audit_agrees_with_log(records)
    faults += numbered(records)
    faults += nonces_once(history.attested, history.bound, records)
    faults += permitted(history)
    return [*history.faults, *faults]


def audited(releases: Sequence[Release], records: Records) -> list[str]:
    """Each acknowledged release has an audit row of its own."""
    seen = Counter((item.path, item.guest_key, item.init_data) for item in releases)
    kept = Counter((row.resource, row.guest_key, row.init_data) for row in records.audit if row.decision in RELEASES)
    missing = seen - kept
    return _some(f"no audit row of a release of {path} to {key[:12]}" for path, key, _ in missing.elements())


def logged(releases: Sequence[Release], records: Records, roots: Mapping[int, bytes], pins: LogPins) -> list[str]:
    """Each acknowledged release has a receipt that holds, of an entry of its own that is in the log."""
    faults, used = [], Counter[int]()
    leaves = {entry.position: entry.leaf for entry in records.log}
    for item in releases:
        name = f"release of {item.path} to {item.guest_key[:12]} by replica {item.replica}"
        if not item.receipt:
            faults.append(f"no receipt of the {name}")
            continue
        try:
            receipt = parse_receipt(item.receipt)
            entry = verify_receipt(receipt, pins)
        except Refused as err:
            faults.append(f"receipt of the {name}: {err.code}")
            continue
        used[entry.index] += 1
        expected = {"resource": item.path, "guest_key": item.guest_key, "init_data": item.init_data}
        if entry.kind not in KINDS or any(entry.fields.get(key) != value for key, value in expected.items()):
            faults.append(f"the receipt of the {name} is of something else")
        if roots.get(entry.checkpoint.size) != entry.checkpoint.root:
            faults.append(f"the checkpoint shown with the {name} is of another history")
        leaf = encode_leaf(receipt.kind, receipt.at, bytes.fromhex(receipt.salt), receipt.fields)
        if leaves.get(entry.index) != leaf:
            faults.append(f"the entry of the {name} is not in the log")
    faults += [f"entry {index} is the receipt of {times} releases" for index, times in used.items() if times > 1]
    return _some(faults)


def recompute(records: Records) -> tuple[dict[int, bytes], list[str]]:
    """Return the root of each size that the entries make, and what does not fit: gaps, leaves, hashes, nodes."""
    tree, faults, nodes = CompactRange(), [], {}
    roots = {0: tree.root()}
    for position, entry in enumerate(records.log):
        if entry.position != position:
            faults.append(f"the log has no entry {position}")
            break
        leaf = parse_leaf(entry.leaf)
        if encode_leaf(leaf.kind, leaf.at, entry.salt, entry.fields) != entry.leaf:
            faults.append(f"entry {position} does not commit to its fields")
        if leaf_hash(entry.leaf) != entry.hash:
            faults.append(f"the hash of entry {position} is not that of its leaf")
        nodes.update({name: data for name, data in tree.append(leaf_hash(entry.leaf)) if name[0]})
        roots[tree.size] = tree.root()
    if nodes != records.nodes:
        faults.append(f"{len(nodes.items() ^ records.nodes.items())} nodes of the tree are not those of its entries")
    return roots, _some(faults)


def checkpoints_agree(notes: Mapping[int, str], roots: Mapping[int, bytes], key: VerifierKey) -> list[str]:
    """Every signed checkpoint is of the tree of its size, and the largest covers all entries."""
    faults = []
    for size, note in notes.items():
        try:
            checkpoint = verify_checkpoint(parse_note(note), key)
        except Refused as err:
            faults.append(f"the checkpoint of size {size}: {err.code}")
            continue
        if checkpoint.size != size or roots.get(size) != checkpoint.root:
            faults.append(f"the checkpoint of size {size} is of another history")
    if max(notes, default=0) != max(roots):
        faults.append(f"the newest checkpoint is of {max(notes, default=0)} entries, the log has {max(roots)}")
    return _some(faults)


def audit_agrees_with_log(records: Records) -> list[str]:
    """Audit rows of releases and entries of releases are the same, one to one."""
    rows = Counter((row.resource, row.guest_key, row.attestation) for row in records.audit if row.decision in RELEASES)
    entries = Counter(
        (entry.fields.get("resource"), entry.fields.get("guest_key"), entry.fields.get("attestation"))
        for entry in records.log
        if parse_leaf(entry.leaf).kind in KINDS
    )
    only_audit, only_log = rows - entries, entries - rows
    return _some(
        [
            *(f"release of {item[0]} to {item[1][:12]} has an audit row and no entry" for item in only_audit),
            *(f"release of {item[0]} to {str(item[1])[:12]} has an entry and no audit row" for item in only_log),
        ]
    )


def numbered(records: Records) -> list[str]:
    """Audit rows are numbered without a gap; only old denials are ever forgotten, and no run has as many."""
    numbers = [row.sequence for row in records.audit]
    gaps = sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers))
    return _some(f"audit row {number} is missing" for number in gaps)


def nonces_once(attested: Mapping[str, Sequence[int]], bound: Mapping[str, str], records: Records) -> list[str]:
    """No nonce was accepted twice: not by what clients were told, not by the evidence that was accepted."""
    faults = [f"a nonce was accepted by replicas {replicas}" for replicas in attested.values() if len(replicas) > 1]
    faults += [f"evidence of one nonce was accepted {n} times" for n in Counter(bound.values()).values() if n > 1]
    if len(attested) > records.spent:
        faults.append(f"{len(attested)} nonces were accepted, {records.spent} are recorded as spent")
    return _some(faults)


def permitted(history: History) -> list[str]:
    """Each acknowledged release was allowed at some instant between request and answer."""
    return _some(
        f"release of {item.path} to {item.who} by replica {item.replica}, "
        f"asked for {item.begun - history.began:.3f} s from the start, was not allowed"
        for item in history.releases
        if not history.allowed(item)
    )


def silent(secrets: Iterable[bytes], logs: Mapping[str, bytes]) -> list[str]:
    """No log holds a secret."""
    wanted = list(secrets)
    return _some(f"a secret is in {name}" for name, data in logs.items() if any(item in data for item in wanted))


def numbers(records: Records) -> dict[str, int]:
    """Return how much was recorded."""
    kinds = Counter(row.decision for row in records.audit)
    return {
        "audit rows": len(records.audit),
        "audit rows of releases": sum(kinds[decision] for decision in RELEASES),
        "audit rows of denials": kinds[DENIED],
        "log entries": len(records.log),
        "checkpoints": len(records.checkpoints),
        "nonces spent": records.spent,
    }


def _some(faults: Iterable[str]) -> list[str]:
    found = list(faults)
    left = len(found) - SHOWN
    return found if left <= 0 else [*found[:SHOWN], f".. and {left} more like the last"]
