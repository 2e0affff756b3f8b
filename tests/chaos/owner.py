"""Who owns the trust service of a chaos run: its resources, its rules, and the guests that may have them or not."""

from __future__ import annotations

import json
import os
import random
import threading
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path

from chaos.history import History
from cloister.errors import CloisterError, Refused, Unavailable
from cloister.protocol.initdata import InitData, build_initdata
from cloister.protocol.resourceuri import ResourcePath, parse_resource_path
from cloister.rats.claims import Level
from cloister.rats.reference import ReferenceEntry
from cloister.tee.insecure.abi import LAUNCH_REGISTER, TEE
from cloister.tee.insecure.attester import SimulationAttester
from cloister.tee.insecure.endorsements import read_machine_root
from cloister.trust.admin import TrustAdmin
from cloister.trust.keybroker.policy import ReleaseRule

STEADY = parse_resource_path("default/steady/one")  # its rule never changes
TOGGLED = parse_resource_path("default/toggled/one")  # its rule comes and goes
PODS = parse_resource_path("default/pods/one")  # its rule stays; pods are approved and revoked
UNRULED = parse_resource_path("default/unruled/one")  # has none
LEVELS = (Level.SIMULATED,)
CHANGE_SECONDS = (0.2, 0.9)


def init_data(name: str) -> InitData:
    return build_initdata({"pod-policy.json": "{}", "name": name})


class Owner:
    """Furnishes the service, then changes its policy.

    Attributes:
        data: init data of guests that may have `STEADY` and, at times, `TOGGLED`.
        stranger: init data that no rule names.
        revoked: init data that was approved and revoked before the first guest.
        pod: init data of the pod that is approved now or was last.
    """

    def __init__(self, directory: Path, history: History, *, database: str = "") -> None:
        self.state = directory / "owner"
        self.history = history
        self.machine_key = directory / "machine.key"
        self.database = database
        self.data, self.stranger, self.revoked = (init_data(name) for name in ("guest", "stranger", "revoked"))
        self.pod = init_data("pod0")
        self.secrets: dict[ResourcePath, bytes] = {}
        self._admin = TrustAdmin(self.state, database=database)
        self._furnish()
        self.ca_pem = self._admin.ca_pem()
        self.log_pins = self._admin.release_log_pins()

    def close(self) -> None:
        self._admin.close()

    def attester(self, data: InitData) -> SimulationAttester:
        made = SimulationAttester(str(self.machine_key))
        made.extend(8, data.digest)
        return made

    def _furnish(self) -> None:
        admin, history = self._admin, self.history
        admin.add_root(read_machine_root(self.machine_key))
        policy = {"version": 1, "id": "default", "tees": [TEE], "insecure_accept_levels": ["simulated"]}
        admin.put_appraisal_policy(json.dumps(policy).encode())
        launch = bytes.fromhex(self.attester(self.data).attest(bytes(48))["registers"][LAUNCH_REGISTER])
        until = datetime.now(UTC) + timedelta(days=9)
        entry = ReferenceEntry(id="chaos", tee=TEE, registers={LAUNCH_REGISTER: launch}, not_after=until, origin="test")
        admin.add_reference_entries([entry])
        for path in (STEADY, TOGGLED, PODS, UNRULED):
            self.secrets[path] = b"canary-" + os.urandom(24).hex().encode()
            history.secrets.append(self.secrets[path])
            admin.put_resource(path, self.secrets[path])
        admin.add_release_rule(self._rule(STEADY))
        history.allow(str(STEADY), self.data.digest_text, since=-inf)
        admin.approve(self.revoked.digest_text, [STEADY, PODS], insecure_accept_levels=LEVELS)
        admin.revoke(self.revoked.digest_text)

    def _rule(self, path: ResourcePath) -> ReleaseRule:
        return ReleaseRule(
            prefix=str(path),
            init_data=(self.data.digest_text,),
            appraisal_policy="default",
            insecure_allow_levels=LEVELS,
        )

    # What changes under load

    def change(self, stop: threading.Event, seed: int) -> None:
        """Give and take, until told to stop; each step is tried until it is known to be done."""
        choose = random.Random(seed)
        number = 0
        while not stop.is_set():
            number += 1
            self._grant_pod(number, stop)
            self._grant_toggled(stop)
            stop.wait(choose.uniform(*CHANGE_SECONDS))
            self._revoke_pod(stop)
            if number % 2:
                self._remove_toggled(stop)
            stop.wait(choose.uniform(*CHANGE_SECONDS))

    def _grant_pod(self, number: int, stop: threading.Event) -> None:
        self.pod = init_data(f"pod{number}")
        digest = self.pod.digest_text
        self.history.allow(str(PODS), digest)
        self._persist("approve", stop, lambda: self._admin.approve(digest, [PODS], insecure_accept_levels=LEVELS))

    def _revoke_pod(self, stop: threading.Event) -> None:
        digest = self.pod.digest_text
        if self._persist("revoke", stop, lambda: self._admin.revoke(digest)):
            self.history.withdrawn(str(PODS), digest)

    def _grant_toggled(self, stop: threading.Event) -> None:
        self.history.allow(str(TOGGLED), self.data.digest_text)
        self._persist("add rule", stop, lambda: self._admin.add_release_rule(self._rule(TOGGLED)))

    def _remove_toggled(self, stop: threading.Event) -> None:
        def remove() -> None:
            try:
                self._admin.remove_release_rule(str(TOGGLED))
            except Refused as err:
                if err.code != "trust.release_policy.missing_rule":  # an attempt before was done, and not known to be
                    raise

        if self._persist("remove rule", stop, remove):
            self.history.withdrawn(str(TOGGLED), self.data.digest_text)

    def _persist(self, name: str, stop: threading.Event, step: object) -> bool:
        """Do a step until it is acknowledged; return False when told to stop before."""
        assert callable(step)
        while True:
            try:
                step()
            except Unavailable as err:
                self.history.count(f"owner: {name} unavailable: {err.code}")
            except CloisterError as err:
                self.history.fault(f"the owner's {name} was refused: {err.code} {err}")
                return False
            else:
                self.history.count(f"owner: {name}")
                return True
            if stop.wait(0.2):
                return False
