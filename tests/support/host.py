"""A receiving server that accepts everything and keeps envelopes and contents, in a thread of its own."""

from collections import Counter

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope

from engine.ops.free_port import free_port


class Host:
    """Use as a context manager."""

    def __init__(self) -> None:
        self.envelopes: list[tuple[str, str, bytes]] = []
        self.port = free_port()
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)

    async def handle_DATA(self, server: object, session: object, envelope: Envelope) -> str:
        sender = (envelope.mail_from or "").strip("<>")
        assert isinstance(envelope.content, bytes)
        self.envelopes += [(recipient, sender, envelope.content) for recipient in envelope.rcpt_tos]
        return "250 ok"

    def senders(self) -> dict[str, str]:
        """Recipient -> envelope sender."""
        return {recipient: sender for recipient, sender, _ in self.envelopes}

    def messages(self) -> dict[str, bytes]:
        """Recipient -> message."""
        return {recipient: content for recipient, _, content in self.envelopes}

    def recipients(self) -> Counter[str]:
        return Counter(recipient for recipient, _, _ in self.envelopes)

    def __enter__(self) -> "Host":
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()
