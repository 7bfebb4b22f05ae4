"""A seccomp filter for generated code: what namespaces and resource limits leave open.

System V memory and message queues (memory that no limit of a process counts), kernel keyrings, tracing other processes,
and new namespaces, which would hand out capabilities inside them again. Refused calls fail with EPERM.
"""

import platform
import struct

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# shmget msgget semget ptrace add_key request_key keyctl unshare setns mount bpf userfaultfd perf_event_open
# process_vm_readv process_vm_writev io_uring_setup
REFUSED = {
    "x86_64": (29, 68, 64, 101, 248, 249, 250, 272, 308, 165, 321, 323, 298, 310, 311, 425),
    "aarch64": (194, 186, 190, 117, 217, 218, 219, 97, 268, 40, 280, 282, 241, 270, 271, 425),
}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
NEW_NAMESPACES = 0x7E020000
"""Every ``CLONE_NEW*`` flag of clone(2)."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


def seccomp_filter(machine: str | None = None) -> bytes | None:
    """The filter as classic BPF, for ``bwrap --seccomp``; None for machines whose call numbers are not known here."""
    machine = machine or platform.machine()
    if machine not in AUDIT_ARCH:
        return None
    # Each line: operation, jump if true, jump if false, operand. 32-bit calls have other numbers: no such program runs.
    code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, AUDIT_ARCH[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _EPERM)]
    for number in REFUSED[machine]:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    # The filter cannot see clone3's flags; told that it does not exist, the C library falls back on clone.
    code += [(_EQUAL, 0, 1, CLONE3), (_RETURN, 0, 0, _ENOSYS)]
    code += [(_EQUAL, 0, 3, CLONE[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 0, 1, NEW_NAMESPACES)]
    code += [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in code)
