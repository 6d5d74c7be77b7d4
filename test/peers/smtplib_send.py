"""Sends the mail on standard input with Python's smtplib. Argument: JSON with host, port, from and to; optional are
local (source address), tls (starttls or implicit) with ca (a PEM file), user and password."""
import json
import smtplib
import ssl
import sys

a = json.loads(sys.argv[1])
mode = a.get("tls", "none")
trust = ssl.create_default_context(cafile=a["ca"]) if mode != "none" else None
options = {"timeout": 10, "source_address": (a["local"], 0) if "local" in a else None}
if mode == "implicit":
    server = smtplib.SMTP_SSL(a["host"], a["port"], context=trust, **options)
else:
    server = smtplib.SMTP(a["host"], a["port"], **options)
with server:
    if mode == "starttls":
        server.starttls(context=trust)
    if a.get("user"):
        server.login(a["user"], a["password"])
    server.sendmail(a["from"], [a["to"]], sys.stdin.buffer.read())
