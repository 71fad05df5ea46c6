"""Dials a node as a stranger does, with a QUIC and a TLS that are not ours: aioquic, and OpenSSL's ML-KEM below it.

    judge_quic.py ADDRESS PORT classical|hybrid

Prints one line: `connected GROUP`, or `closed ERROR-CODE`, or `silence`.
"""

import asyncio
import ssl
import sys
from enum import IntEnum

from aioquic import tls
from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated
from aioquic.asyncio.protocol import QuicConnectionProtocol
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

GROUP = 0x11EC
# Bytes of an ML-KEM-768 ciphertext (FIPS 203, table 3); X25519's share stands behind it.
CIPHERTEXT_LEN = 1088


class Share:
    """A share of X25519MLKEM768: ML-KEM's part first."""

    def __init__(self, data):
        self.data = data

    @classmethod
    def from_public_bytes(cls, data):
        return cls(data)

    def public_bytes(self, *_):
        return self.data


class Secret:
    """What the shared secret comes from: ML-KEM's first, then X25519's."""

    def __init__(self):
        self.kem = mlkem.MLKEM768PrivateKey.generate()
        self.curve = x25519.X25519PrivateKey.generate()

    @classmethod
    def generate(cls):
        return cls()

    def public_key(self):
        return Share(self.kem.public_key().public_bytes_raw() + self.curve.public_key().public_bytes_raw())

    def exchange(self, share):
        ciphertext, point = share.data[:CIPHERTEXT_LEN], share.data[CIPHERTEXT_LEN:]
        theirs = x25519.X25519PublicKey.from_public_bytes(point)
        return self.kem.decapsulate(ciphertext) + self.curve.exchange(theirs)


class Curve:
    """Stands where aioquic has X25519."""

    X25519PrivateKey = Secret
    X25519PublicKey = Share


class Hybrid(IntEnum):
    """The hybrid where aioquic has X25519, and nothing else worth mentioning."""

    X25519 = GROUP
    X448 = 0x001E
    SECP256R1 = 0x0017
    SECP384R1 = 0x0018
    GREASE = 0xAAAA


def offer_the_hybrid_alone():
    tls.x25519 = Curve
    tls.Group = Hybrid
    init = tls.Context.__init__

    def only(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self._supported_groups = [Hybrid.X25519]

    tls.Context.__init__ = only


class Watch(QuicConnectionProtocol):
    """Notes how the connection ended."""

    ended = None

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            Watch.ended = event
        super().quic_event_received(event)


async def main(address, port, groups):
    if groups == "hybrid":
        offer_the_hybrid_alone()
    configuration = QuicConfiguration(alpn_protocols=["weir-join/1"], is_client=True, verify_mode=ssl.CERT_NONE)
    configuration.server_name = None
    try:
        async with asyncio.timeout(10):
            async with connect(address, int(port), configuration=configuration, create_protocol=Watch) as client:
                await client.ping()
                group = client._quic.tls._supported_groups
                print("connected", " ".join(hex(one) for one in group))
    except TimeoutError:
        print("silence")
    except ConnectionError:
        print("closed", Watch.ended.error_code if Watch.ended else "unknown")


asyncio.run(main(*sys.argv[1:]))
