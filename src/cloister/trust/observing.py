"""What watches a running service from outside its decisions: numbers, traces, calls to a webhook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cloister.trust.service import TrustService, utc_now
from cloister.trust.settings import TrustSettings
from cloister.trust.telemetry import Telemetry
from cloister.trust.tracing import export_to, stop_exporting
from cloister.trust.webhook import Webhook, read_webhook_secret


def add_gauges(telemetry: Telemetry, service: TrustService) -> None:
    """Add the numbers that are asked for when the metrics are."""
    telemetry.gauge("sessions", "Sessions on record that attested.", service.sessions)
    telemetry.gauge("store_healthy", "Whether the last write was committed in time.", lambda: service.store.healthy)
    telemetry.gauge("keys_sealed", "Whether the key store waits to be unsealed.", lambda: service.keys.sealed)
    telemetry.gauge("log_size", "Entries of the newest checkpoint.", service.log_size)
    telemetry.gauge("collateral_age_seconds", "Age of the newest collateral.", service.collateral_seconds)


@contextmanager
def exported_traces(settings: TrustSettings) -> Iterator[None]:
    """Export traces while the block runs, where the settings name an address.

    Raises:
        Unavailable: the extra `otel` is not installed (`trust.traces.missing`).
    """
    if settings.traces_endpoint:
        export_to(settings.traces_endpoint)
    try:
        yield
    finally:
        stop_exporting()


@contextmanager
def called_webhook(settings: TrustSettings, telemetry: Telemetry) -> Iterator[Webhook | None]:
    """Give a webhook for as long as the block runs, None where the settings name none.

    Raises:
        Refused: address or secret cannot be used (`trust.settings.webhook`, `trust.settings.webhook_secret`).
        Unavailable: the secret cannot be read.
    """
    if not settings.webhook_url or settings.webhook_secret_file is None:
        yield None
        return
    secret = read_webhook_secret(settings.webhook_secret_file)
    webhook = Webhook(settings.webhook_url, secret, clock=utc_now, count=telemetry.called)
    try:
        yield webhook
    finally:
        webhook.close()
