"""A seccomp filter for generated code, for what namespaces and resource limits leave open.

System V and POSIX queues and memory (that no limit of a process counts), kernel keyrings, looking into other processes,
sockets of any family but AF_UNIX, mounts, and new namespaces, which would hand out capabilities inside them again.
Refused calls fail with EPERM.
"""

import platform
import struct

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_BY_MACHINE = {
    # memory that no limit counts, keyrings, other processes, namespaces and mounts, the kernel's own machinery
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "ptrace": (101, 117), "kcmp": (312, 272), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241),
    "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273), "quotactl": (179, 60),
}  # fmt: skip
_EVERYWHERE = {  # newer calls have one number on all machines
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438, "process_madvise": 440,
    "mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447,
}  # fmt: skip
REFUSED = {
    machine: (*(numbers[place] for numbers in _BY_MACHINE.values()), *_EVERYWHERE.values())
    for place, machine in enumerate(AUDIT_ARCH)
}
SOCKETS = {"x86_64": (41, 53), "aarch64": (198, 199)}
"""socket and socketpair: only of the family AF_UNIX. No network namespace holds AF_VSOCK, which reaches the host."""
AF_UNIX = 1
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
NEW_NAMESPACES = 0x7E020000
"""Every ``CLONE_NEW*`` flag of clone(2)."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


def seccomp_filter(machine: str | None = None) -> bytes | None:
    """Return the filter as classic BPF, for ``bwrap --seccomp``; None for machines whose call numbers are unknown."""
    machine = machine or platform.machine()
    if machine not in AUDIT_ARCH:
        return None
    # Each line: operation, jump if true, jump if false, operand. 32-bit calls have other numbers: no such program runs.
    code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, AUDIT_ARCH[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _EPERM)]
    for number in REFUSED[machine]:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    # The first argument is the family of a socket; the calls above it have been allowed.
    for number in SOCKETS[machine]:
        code += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 1, 0, AF_UNIX)]
        code += [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    # The filter cannot see clone3's flags; if told that clone3 does not exist, the C library uses clone.
    code += [(_EQUAL, 0, 1, CLONE3), (_RETURN, 0, 0, _ENOSYS)]
    code += [(_EQUAL, 0, 3, CLONE[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 0, 1, NEW_NAMESPACES)]
    code += [(_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in code)
