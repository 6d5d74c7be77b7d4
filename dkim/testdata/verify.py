"""Verify every DKIM signature of the message on stdin with dkimpy; the records are name=value arguments."""
import sys

import dkim
import nacl  # noqa: F401  dkimpy needs it for Ed25519

records = dict(arg.split("=", 1) for arg in sys.argv[1:])


def lookup(name, timeout=5):
    return records.get(name.decode().rstrip(".")).encode()


message = dkim.DKIM(sys.stdin.buffer.read())
count = sum(1 for name, _ in message.headers if name.lower() == b"dkim-signature")
for i in range(count):
    try:
        valid = message.verify(idx=i, dnsfunc=lookup)
    except dkim.ValidationError:
        valid = False
    print("valid" if valid else "invalid", message.signature_fields[b"a"].decode(), message.domain.decode())
