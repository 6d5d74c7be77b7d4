"""Sends the mail on standard input with Python's smtplib. Arguments: host, port, sender, recipient."""
import smtplib
import sys

host, port, sender, recipient = sys.argv[1:]
with smtplib.SMTP(host, int(port), timeout=10) as server:
    server.sendmail(sender, [recipient], sys.stdin.buffer.read())
