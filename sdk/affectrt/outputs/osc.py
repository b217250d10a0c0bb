"""Open Sound Control over UDP, for Max, Pure Data, TouchDesigner, Unity …; addresses: docs/live.md."""

from __future__ import annotations

from typing import Any

from affectrt.affect import MODALITIES, Affect
from affectrt.errors import AffectError, require

PREFIX = "/affectrt"


class OscOutput:
    """Each result is one bundle of messages, so that a receiver sees them together."""

    def __init__(self, host: str, port: int) -> None:
        """Raises ``extra.missing``, and ``osc.address`` when the host isn't known."""
        client = require("pythonosc.udp_client", "osc")
        self.name = f"osc {host}:{port}"
        try:
            self._client: Any = client.UDPClient(host, port)
        except OSError as error:
            raise AffectError(
                "osc.address", f"osc: '{host}:{port}' can't be reached ({error}); expected HOST:PORT"
            ) from error

    def send(self, affect: Affect) -> None:
        """As :meth:`affectrt.outputs.output.Output.send`."""
        self._client.send(_bundle(affect))

    def close(self) -> None:
        """As :meth:`affectrt.outputs.output.Output.close`."""
        self._client._sock.close()


def address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` → both. Raises ``osc.address``."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise AffectError("osc.address", f"osc: expected HOST:PORT such as 127.0.0.1:9000, got '{text}'")
    return host.strip("[]"), int(port)


def messages(affect: Affect) -> list[tuple[str, tuple[float | str, ...]]]:
    """Addresses with their arguments. Numbers that rest on nothing sensed are not sent."""
    found: list[tuple[str, tuple[float | str, ...]]] = [
        (f"{PREFIX}/time", (affect.time_s,)),
        (f"{PREFIX}/present", tuple(int(m in affect.present) for m in MODALITIES)),
        (f"{PREFIX}/latency", (affect.latency_ms,)),
    ]
    if affect.present:
        found += [
            (f"{PREFIX}/sentiment", (affect.sentiment, *affect.interval)),
            (f"{PREFIX}/emotion", (affect.emotion, affect.emotions[affect.emotion])),
            *((f"{PREFIX}/emotions/{name}", (p,)) for name, p in affect.emotions.items()),
        ]
    found += [(f"{PREFIX}/event", (event.code, event.message)) for event in affect.events]
    return found


def _bundle(affect: Affect) -> Any:
    bundles = require("pythonosc.osc_bundle_builder", "osc")
    builder = bundles.OscBundleBuilder(bundles.IMMEDIATELY)
    for where, arguments in messages(affect):
        message = require("pythonosc.osc_message_builder", "osc").OscMessageBuilder(address=where)
        for argument in arguments:
            message.add_arg(argument)
        builder.add_content(message.build())
    return builder.build()
