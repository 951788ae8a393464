"""Two more walls around a program, where the kernel has them: a seccomp filter and a landlock domain.

Loaded by path into the sandbox's zygote; standard library only. Neither needs a privilege but no_new_privs, and neither
can be taken off. They stand behind the namespaces: what gets around those meets these.
"""

from __future__ import annotations

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_EPERM, _ENOSYS = 1, 38

# System calls that no honest program needs and that reach much of the kernel, by machine.
_DENIED: dict[str, dict[str, int]] = {
    "x86_64": {
        "ptrace": 101, "syslog": 103, "personality": 135, "uselib": 134, "sysfs": 139, "_sysctl": 156,
        "modify_ldt": 154, "pivot_root": 155, "chroot": 161, "acct": 163, "mount": 165, "umount2": 166, "swapon": 167,
        "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173,
        "create_module": 174, "init_module": 175, "delete_module": 176, "quotactl": 179, "lookup_dcookie": 212,
        "mbind": 237, "set_mempolicy": 238, "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250,
        "migrate_pages": 256, "unshare": 272, "move_pages": 279, "vmsplice": 278, "perf_event_open": 298,
        "fanotify_init": 300, "name_to_handle_at": 303, "open_by_handle_at": 304, "setns": 308,
        "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "kexec_file_load": 320,
        "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
        "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
        "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443,
    },
    "aarch64": {
        "acct": 89, "pivot_root": 41, "umount2": 39, "mount": 40, "chroot": 51, "quotactl": 60, "vmsplice": 75,
        "personality": 92, "unshare": 97, "kexec_load": 104, "init_module": 105, "delete_module": 106,
        "syslog": 116, "ptrace": 117, "reboot": 142, "sethostname": 161, "setdomainname": 162, "lookup_dcookie": 18,
        "add_key": 217, "request_key": 218, "keyctl": 219, "swapon": 224, "swapoff": 225, "mbind": 235,
        "set_mempolicy": 237, "migrate_pages": 238, "move_pages": 239, "perf_event_open": 241, "fanotify_init": 262,
        "name_to_handle_at": 264, "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270,
        "process_vm_writev": 271, "kcmp": 272, "finit_module": 273, "bpf": 280, "userfaultfd": 282,
        "kexec_file_load": 294, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
        "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
        "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443,
    },
}  # fmt: skip
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SOCKET = {"x86_64": 41, "aarch64": 198}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_X32 = 0x40000000
_NEW_NAMESPACES = 0x7E020000 | 0x00000080  # all CLONE_NEW* flags
_FAMILIES = (1, 2, 10)  # unix and the two internets; the others are seldom tested code

# Classic BPF: load a word of the system call's data; jump if equal, above, or any bit; return.
_LOAD, _EQUAL, _ABOVE_OR_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16


def restrict_system_calls() -> None:
    """Makes the denied system calls fail with EPERM, in this process and its children. It wants no_new_privs.

    Raises OSError where the kernel has no seccomp or the machine is not known here.
    """
    machine = os.uname().machine
    if machine not in _DENIED:
        raise OSError(_ENOSYS, f"no list of system calls for {machine}")
    code = filter_program(machine)
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    program = struct.pack("@HP", len(code), ctypes.addressof(instructions))
    if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(program), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def filter_program(machine: str) -> list[tuple[int, int, int, int]]:
    """(code, jump if true, jump if false, operand) of each instruction."""
    refuse, allow = (_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)
    code = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        code += [(_ABOVE_OR_EQUAL, 0, 1, _X32), refuse]
    for number in sorted(_DENIED[machine].values()):
        code += [(_EQUAL, 0, 1, number), refuse]
    # The flags of clone3 lie in memory that a filter cannot read: the C library then takes clone.
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    code += [(_EQUAL, 0, 4, _CLONE[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 0, 1, _NEW_NAMESPACES)]
    code += [refuse, allow]
    code += [(_EQUAL, 0, 2 + len(_FAMILIES), _SOCKET[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    code += [(_EQUAL, len(_FAMILIES) - k, 0, family) for k, family in enumerate(_FAMILIES)]
    return [*code, refuse, allow]


# --- landlock ------------------------------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every machine
_PATH_BENEATH, _VERSION_FLAG = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_READ = _EXECUTE | _READ_FILE | _READ_DIR
# Rights on files that each version of the interface knows; network from version 4, signals and sockets from 6.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_NETWORK_RIGHTS, _SCOPES = 3, 3


def landlock_version() -> int:
    """Version of the kernel's interface, 0 = none."""
    return max(0, _libc.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG))


def restrict_files(readable: list[str], writable: list[str]) -> None:
    """Allows reading and executing below `readable`, everything below `writable`; no TCP port may be bound or reached.

    Raises OSError where the kernel has no landlock.
    """
    version = landlock_version()
    if version == 0:
        raise OSError(_ENOSYS, "landlock: not in this kernel, or not enabled")
    rights = _FILE_RIGHTS.get(version, (1 << 16) - 1)
    sizes = 8 if version < 4 else 16 if version < 6 else 24
    attributes = struct.pack("=QQQ", rights, _NETWORK_RIGHTS, _SCOPES)[:sizes]
    ruleset = _landlock("create_ruleset", _CREATE_RULESET, ctypes.c_char_p(attributes), sizes, 0)
    try:
        for paths, allowed in ((readable, _READ), (writable, rights)):
            for path in paths:
                _allow_below(ruleset, path, allowed & rights)
        _landlock("restrict_self", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow_below(ruleset: int, path: str, allowed: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            allowed &= _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14  # and to truncate
        rule = struct.pack("=Qi", allowed, descriptor)
        _landlock("add_rule", _ADD_RULE, ruleset, _PATH_BENEATH, ctypes.c_char_p(rule), 0)
    finally:
        os.close(descriptor)


def _landlock(name: str, number: int, *arguments: object) -> int:
    result = _libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"landlock_{name}: {os.strerror(error)}")
    return int(result)
