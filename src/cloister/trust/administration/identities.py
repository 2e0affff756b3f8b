"""SPIFFE identities: which pod gets which, and the keys of a trust domain, as one principal may handle them."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.protocol.spiffe import parse_trust_domain
from cloister.trust.access import Permission
from cloister.trust.administration.desk import Desk
from cloister.trust.administration.policies import missing_policy
from cloister.trust.identity import IDENTITY_POLICY, StoredAuthorities, parse_identity_policy
from cloister.trust.store.identitykeys import IdentityKeyRow
from cloister.trust.store.policies import IDENTITY, StoredPolicy


@dataclass(frozen=True, slots=True)
class Identities:
    """Identity policy of one tenant; keys of trust domains, which belong to no tenant."""

    desk: Desk

    def put_policy(self, text: bytes, *, replaces: int | None = None) -> StoredPolicy:
        """Store the next version of the identity policy.

        Raises:
            FormatRefused: not a policy (`trust.identity.policy`, `trust.identity.template`).
            Refused: another version is in force by now (`trust.policy.conflict`).
        """
        self.desk.principal.require(Permission.POLICY_WRITE, self.desk.tenant)
        parse_identity_policy(text)
        at = self.desk.now()
        return self.desk.change(
            Permission.POLICY_WRITE,
            "identity",
            lambda stores: stores.policies.put(IDENTITY, IDENTITY_POLICY, text, at=at, replaces=replaces),
        )

    def policy(self) -> StoredPolicy:
        """Return the version in force.

        Raises:
            Refused: there is none (`trust.policy.missing`).
        """
        found = self.desk.look(
            Permission.POLICY_READ, "identity", lambda stores: stores.policies.current(IDENTITY, IDENTITY_POLICY)
        )
        if found is None:
            raise missing_policy("identity", "none")
        return found

    def keys(self, trust_domain: str) -> tuple[IdentityKeyRow, ...]:
        """Return the keys of a trust domain, oldest first.

        Raises:
            FormatRefused: not a trust domain (`protocol.spiffe.trust_domain`).
        """
        keys = self._keys(trust_domain)
        return self.desk.look(Permission.KEY_READ, f"identity {trust_domain}", lambda _: keys.history())

    def rotate(self, trust_domain: str) -> None:
        """Make new keys for a trust domain; the old ones sign on until relying parties know the new.

        Raises:
            FormatRefused: not a trust domain (`protocol.spiffe.trust_domain`).
        """
        keys = self._keys(trust_domain)
        self.desk.change(Permission.KEY_WRITE, f"rotate identity {trust_domain}", lambda _: None)
        keys.rotate(at=self.desk.now())

    def withdraw(self, trust_domain: str, key: str) -> None:
        """Take a key out of a trust domain's bundle at once.

        Raises:
            FormatRefused: not a trust domain (`protocol.spiffe.trust_domain`).
            Refused: there is no such key (`trust.identity.key`).
        """
        keys = self._keys(trust_domain)
        self.desk.change(Permission.KEY_WRITE, f"withdraw identity {trust_domain}", lambda _: None, detail={"key": key})
        keys.withdraw(key, at=self.desk.now())

    def _keys(self, trust_domain: str) -> StoredAuthorities:
        return self.desk.authorities(parse_trust_domain(trust_domain))
