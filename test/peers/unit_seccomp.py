"""Writes the seccomp programs that systemd would load for a unit: what may be called at all, and what else may not.

Arguments: unit file, output file for each. It follows systemd.exec(5) for SystemCallFilter and SystemCallErrorNumber,
RestrictAddressFamilies, RestrictNamespaces, RestrictRealtime, RestrictSUIDSGID, LockPersonality and
MemoryDenyWriteExecute, which the unit must have.
"""
import errno
import re
import stat
import subprocess
import sys

from seccomp import ALLOW, EQ, ERRNO, MASKED_EQ, NE, Arch, Arg, SyscallFilter, resolve_syscall

PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000
NEW_NAMESPACE = [0x00000080, 0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000]
REALTIME = [1, 2, 6]  # SCHED_FIFO, SCHED_RR, SCHED_DEADLINE
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
DENIED = ERRNO(errno.EPERM)


def read_unit(file):
    """Returns the values of each setting, in order."""
    found = {}
    with open(file, encoding="utf-8") as unit:
        for name, value in re.findall(r"^([A-Z]\w+)=(.*)$", unit.read(), re.M):
            found.setdefault(name, []).append(value)
    return found


def read_sets():
    """Returns systemd's sets of system calls, such as @system-service, each with the names and sets in it."""
    text = subprocess.run(["systemd-analyze", "syscall-filter"], check=True, capture_output=True, text=True).stdout
    sets, current = {}, []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines():
        if line.startswith("@"):
            current = sets.setdefault(line.strip(), [])
        elif line.strip() and not line.strip().startswith("#"):
            current.append(line.strip())
    return sets


def expand(name, sets):
    if not name.startswith("@"):
        return {name}
    return set().union(*(expand(member, sets) for member in sets[name]))


def allow_list(lines, refuse):
    sets = read_sets()
    calls = expand("@default", sets)  # which an allow list always has
    for line in lines:
        names = set().union(*(expand(name, sets) for name in line.removeprefix("~").split()))
        calls = calls - names if line.startswith("~") else calls | names
    program = SyscallFilter(refuse)
    for call in sorted(calls):
        if resolve_syscall(Arch(), call) >= 0:  # else of another architecture, or too new for libseccomp
            program.add_rule(ALLOW, call)
    return program


def deny_list(families):
    program = SyscallFilter(ALLOW)
    allowed = {FAMILIES[family] for family in families}
    for family in set(range(64)) - allowed:
        program.add_rule(ERRNO(errno.EAFNOSUPPORT), "socket", Arg(0, EQ, family))
    for flag in NEW_NAMESPACE:
        for call in "clone", "unshare":
            program.add_rule(DENIED, call, Arg(0, MASKED_EQ, flag, flag))
    program.add_rule(ERRNO(errno.ENOSYS), "clone3")
    program.add_rule(DENIED, "setns")
    for policy in REALTIME:
        program.add_rule(DENIED, "sched_setscheduler", Arg(1, EQ, policy))
    for bit in stat.S_ISUID, stat.S_ISGID:
        for call, at in ("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1), ("mkdirat", 2):
            program.add_rule(DENIED, call, Arg(at, MASKED_EQ, bit, bit))
    program.add_rule(DENIED, "personality", Arg(0, NE, 0))
    both = PROT_WRITE | PROT_EXEC
    program.add_rule(DENIED, "mmap", Arg(2, MASKED_EQ, both, both))
    for call in "mprotect", "pkey_mprotect":
        program.add_rule(DENIED, call, Arg(2, MASKED_EQ, PROT_EXEC, PROT_EXEC))
    program.add_rule(DENIED, "shmat", Arg(2, MASKED_EQ, SHM_EXEC, SHM_EXEC))
    return program


def main(unit_file, allow_file, deny_file):
    unit = read_unit(unit_file)
    for name in "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute":
        if unit.get(name) != ["yes"]:
            sys.exit(f"the unit does not say {name}=yes")
    (number,) = unit["SystemCallErrorNumber"]
    (families,) = unit["RestrictAddressFamilies"]
    for program, file in (
        (allow_list(unit["SystemCallFilter"], ERRNO(getattr(errno, number))), allow_file),
        (deny_list(families.split()), deny_file),
    ):
        with open(file, "wb") as out:
            program.export_bpf(out)


main(*sys.argv[1:])
