"""Inside the sandbox: the last steps before a program runs, which take every right from its process.

The filter of system calls closes what namespaces and resource limits leave open: sockets that no network namespace
covers (vsock), keyrings, memory that no limit counts (memfd, System V), supplies of the whole machine (aio, inotify),
the machine's paths (statmount), new namespaces with capabilities of their own. It is known for Linux on x86-64 and
aarch64. Only the standard library can be imported here.
"""

import contextlib
import ctypes
import fcntl
import os
import resource
import struct
from collections.abc import Sequence
from typing import Any

SANDBOX_PROCESSES = 3  # fork server, judge and child, if all belong to one account

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers on x86-64 and aarch64. Newer calls have the same number everywhere.
_DENIED = {
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "memfd_create": (319, 279), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "init_module": (175, 105), "finit_module": (313, 273),
    "kexec_load": (246, 104), "reboot": (169, 142), "personality": (135, 92), "open_by_handle_at": (304, 265),
    "kcmp": (312, 272), "acct": (163, 89), "swapon": (167, 224), "quotactl": (179, 60),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432),
    "pidfd_getfd": (438, 438), "mount_setattr": (442, 442), "memfd_secret": (447, 447), "statmount": (457, 457),
    "listmount": (458, 458), "io_setup": (206, 0), "inotify_init": (253, 26), "inotify_init1": (294, 26),
    "fanotify_init": (300, 262), "timer_create": (222, 107),
}  # fmt: skip
_CLONE, _CLONE3, _PRLIMIT = (56, 220), 435, (302, 261)
_NEW_NAMESPACES = 0x7E020000  # the CLONE_NEW... bits
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 38, 22
_LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """Calls a function of the C library that returns 0, or raises OSError."""
    if getattr(_LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def keep_only(descriptors: Sequence[int]) -> None:
    """Makes these the descriptors 0, 1, 2, ... of the process, and closes all others."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 64) for descriptor in descriptors]
    for number, descriptor in enumerate(high):
        os.dup2(descriptor, number)
    os.closerange(len(high), min(os.sysconf("SC_OPEN_MAX"), 1 << 16))


def lock_up(mode: str, limits: dict[str, Any]) -> None:
    """Sets limits that this process cannot raise again and gives up every privilege, or raises OSError."""
    # Without a sandbox all processes of the account count, so that any limit would be wrong.
    others = {"bare": 1 << 20, "root": 0, "user": SANDBOX_PROCESSES}[mode]
    wanted = {
        resource.RLIMIT_CPU: max(1, round(limits["seconds"])) + 1,
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_FSIZE: limits["output"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_NPROC: limits["processes"] + others,
        resource.RLIMIT_STACK: 1 << 26,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(*((ValueError, OSError) if mode == "bare" else ())):  # macOS has some in name only
            # SIGXCPU at the soft limit names the reason; SIGKILL at the hard one would not.
            resource.setrlimit(kind, (max(1, value - 1) if kind == resource.RLIMIT_CPU else value, value))
    if mode != "bare":
        _drop_privileges(is_root=mode == "root")


def _drop_privileges(is_root: bool) -> None:
    if is_root:  # it is exempt from the limit on processes
        uid = 30_000 + int.from_bytes(os.urandom(2), "big") // 2  # rootless containers know accounts below 65536 only
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    call("capset", header, nothing)
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # also keeps execve from giving capabilities
    program = _filter(os.uname().machine)
    code = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(struct.pack("HL", len(program) // 8, ctypes.addressof(code)))
    call("prctl", _PR_SET_SECCOMP, 2, fprog, 0, 0)


def _filter(machine: str) -> bytes:
    """Returns the filter in BPF: denied calls fail with EPERM, clone3 with ENOSYS so that libc uses clone."""
    if machine not in _ARCHITECTURES:
        raise OSError(f"there is no filter of system calls for {machine}")
    column = list(_ARCHITECTURES).index(machine)
    denied = [numbers[column] for numbers in _DENIED.values()]
    # Instructions of linux/bpf_common.h: load a word of the call, three conditional jumps, return.
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    # Verdicts of linux/seccomp.h: allow, kill the process, and fail with EPERM or ENOSYS.
    allow, kill, not_permitted, not_there = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    code = [(load, 0, 0, 4), (equal, 1, 0, _ARCHITECTURES[machine]), (end, 0, 0, kill), (load, 0, 0, 0)]
    # Each test jumps to its verdict, which stands right behind it. Numbers from 0x40000000 are those of x32.
    for test, number in [(at_least, 0x40000000), *((equal, number) for number in denied)]:
        code += [(test, 0, 1, number), (end, 0, 0, not_permitted)]
    code += [(equal, 0, 1, _CLONE3), (end, 0, 0, not_there)]
    # The first argument tells whose limits prlimit changes, and whether clone makes namespaces.
    code += [(equal, 0, 4, _PRLIMIT[column]), (load, 0, 0, 16), (equal, 0, 1, 0)]
    code += [(end, 0, 0, allow), (end, 0, 0, not_permitted)]
    code += [(equal, 0, 3, _CLONE[column]), (load, 0, 0, 16), (any_bit, 0, 1, _NEW_NAMESPACES)]
    code += [(end, 0, 0, not_permitted), (end, 0, 0, allow)]
    return b"".join(struct.pack("HBBI", *line) for line in code)
