"""Which device is wired to which: GPUs and switches of one machine must name exactly each other.

In protected PCIe mode the links between GPUs are not encrypted and lead through switches, so a switch that nobody
attested could read them. Each GPU's signed report names the switches at its links, each switch's the GPUs; a device's
own identifier (PDI) comes from its certificate. With both kinds in the evidence four things must hold, as NVIDIA's own
check demands, and none of them by count alone: all GPUs name the same switches, those are the switches of the
evidence; all switches name the same GPUs, those are the GPUs of the evidence. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloister.rats.result import Finding, Question, Severity

PLAIN_LINKS: Final = "PPCIE"
_CODE: Final = "appraisal.nvidia.topology"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One device.

    Attributes:
        switch: a switch, not a GPU.
        pdi: its own identifier, 8 bytes.
        neighbours: identifiers at its links: of switches for a GPU, of GPUs for a switch.
        mode: of a GPU: `SPT`, `MPT`, `PPCIE` or empty.
    """

    switch: bool
    pdi: bytes
    neighbours: frozenset[bytes]
    mode: str = ""


def topology_findings(nodes: Sequence[Node]) -> tuple[Finding, ...]:
    """Return two findings where GPUs and switches are there; a warning where GPUs with plain links come without
    switches, or switches without GPUs; nothing for GPUs that need no switch."""
    gpus = [node for node in nodes if not node.switch]
    switches = [node for node in nodes if node.switch]
    if gpus and switches:
        return (_judge(gpus, switches, "GPUs", "switches"), _judge(switches, gpus, "switches", "GPUs"))
    if switches or any(node.mode == PLAIN_LINKS for node in gpus):
        absent = "GPUs" if switches else "switches"
        return (
            Finding(
                code=f"{_CODE}.absent",
                question=Question.ACCEPTABLE,
                ok=False,
                severity=Severity.WARNING,
                message=f"links are not encrypted, and the {absent} at their other end are not in the evidence",
                expected=f"evidence of the {absent} under the same nonce",
                actual=f"{len(nodes)} {'switches' if switches else 'GPUs'} only",
                hint="attest GPUs and switches of a machine together",
            ),
        )
    return ()


def _judge(namers: Sequence[Node], named: Sequence[Node], who: str, whom: str) -> Finding:
    """Judge whether all of `namers` name exactly `named`."""
    there = {node.pdi for node in named}
    wrong = next((node for node in namers if node.neighbours != there), None)
    if wrong is None:
        return Finding(
            code=_CODE,
            question=Question.ACCEPTABLE,
            ok=True,
            message=f"all {who} name exactly the {whom} of the evidence",
            expected=_list(there),
            actual=_list(there),
            origin="signed reports and certificates",
        )
    unknown = wrong.neighbours - there
    return Finding(
        code=_CODE,
        question=Question.ACCEPTABLE,
        ok=False,
        message=f"{'a link leads to one of the' if unknown else 'not all of the'} {whom} "
        f"{'that is not in the evidence' if unknown else 'are at the links'}",
        expected=_list(there),
        actual=f"{wrong.pdi.hex()} names {_list(wrong.neighbours)}",
        origin="signed reports and certificates",
        hint=f"give evidence of all {whom} of the machine, and of no other machine's",
    )


def _list(identifiers: frozenset[bytes] | set[bytes]) -> str:
    return ", ".join(sorted(item.hex() for item in identifiers)[:8]) or "none"
