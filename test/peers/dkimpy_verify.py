"""Verifies every signature of some mails with dkimpy. Reads JSON {zone: {DNS name: TXT record}, mails: [base64]}."""
import base64
import json
import sys

import dkim

task = json.load(sys.stdin)
records = {name.encode() + b".": value.encode() for name, value in task["zone"].items()}
for n, text in enumerate(task["mails"], 1):
    mail = dkim.DKIM(base64.b64decode(text))
    signatures = sum(name.lower() == b"dkim-signature" for name, _ in mail.headers)
    if signatures == 0:
        sys.exit(f"mail {n} is not signed")
    for i in range(signatures):
        if not mail.verify(idx=i, dnsfunc=lambda name, timeout=5: records.get(name)):
            sys.exit(f"mail {n}: signature {i + 1} of {signatures} does not verify")
print(len(task["mails"]), "good")
