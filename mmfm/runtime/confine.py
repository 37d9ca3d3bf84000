"""A program that `limited` starts: it takes its limits, gives up most system calls, and becomes the program asked for.

Run as `python -I -S confine.py POLICY PROGRAM ...`; of the standard library alone. The list says what is allowed: a
call that is not on it answers EPERM, so what a later kernel adds is refused too.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

ALLOWED = """
    read readv pread64 preadv write writev pwrite64 pwritev close close_range lseek _llseek dup dup2 dup3 pipe pipe2
    fstat fstat64 newfstatat fstatat64 stat stat64 lstat lstat64 statx statfs fstatfs access faccessat faccessat2
    readlink readlinkat getcwd getdents getdents64 chdir
    poll ppoll select pselect6 _newselect epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2
    mmap mmap2 munmap mprotect mremap madvise brk membarrier futex futex_time64 set_robust_list get_robust_list rseq
    set_tid_address set_thread_area arch_prctl restart_syscall
    rt_sigaction rt_sigprocmask rt_sigreturn sigreturn sigaltstack rt_sigsuspend rt_sigtimedwait rt_sigpending
    alarm setitimer getitimer pause
    gettid getpid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid
    sched_yield sched_getaffinity sched_getparam sched_getscheduler getcpu getrusage getrlimit ugetrlimit uname sysinfo
    clock_gettime clock_gettime64 clock_getres clock_nanosleep nanosleep gettimeofday time times getrandom
    execve exit exit_group
"""
NETWORK = """
    socket socketpair connect bind listen accept accept4 send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg
    shutdown getsockname getpeername getsockopt setsockopt
"""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CLONE_THREAD = 0x10000  # <linux/sched.h>
DESCRIPTOR = (0, 1, 2, 3, 4, 1030)  # fcntl's F_DUPFD to F_SETFL, F_DUPFD_CLOEXEC; F_SETOWN would signal others
TERMINAL = (0x5401, 0x5413, 0x5450, 0x5451, 0x541B)  # TCGETS, TIOCGWINSZ, FIONCLEX, FIOCLEX, FIONREAD
NAMES = (15, 16)  # PR_SET_NAME, PR_GET_NAME
PR_SET_PDEATHSIG = 1
ERRNO, ALLOW = 0x00050000, 0x7FFF0000  # actions of <seccomp.h>
EQUAL, MASKED_EQUAL = 4, 7
EPERM, ENOSYS = 1, 38


class Test(ctypes.Structure):
    """`struct scmp_arg_cmp`: a test of one argument of a call."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def rules(network: bool) -> list[tuple[int, str, tuple[int, int, int, int] | None]]:
    """Each: what is done, with which call, and where: (argument, comparison, two numbers)."""
    own = os.getpid()  # and still the program's: exec keeps it
    whole = ALLOWED + NETWORK * network
    return [
        *((ALLOW, name, None) for name in whole.split()),
        (ALLOW, "open", (1, MASKED_EQUAL, WRITES, 0)),
        (ALLOW, "openat", (2, MASKED_EQUAL, WRITES, 0)),
        (ALLOW, "clone", (0, MASKED_EQUAL, CLONE_THREAD, CLONE_THREAD)),
        (ERRNO | ENOSYS, "clone3", None),  # its flags are behind a pointer; libc then takes clone
        (ALLOW, "prlimit64", (2, EQUAL, 0, 0)),  # to read limits, not to set them
        *((ALLOW, name, (0, EQUAL, own, 0)) for name in ("kill", "tgkill")),
        *((ALLOW, name, (1, EQUAL, command, 0)) for name in ("fcntl", "fcntl64") for command in DESCRIPTOR),
        *((ALLOW, "ioctl", (1, EQUAL, request, 0)) for request in TERMINAL),
        *((ALLOW, "prctl", (0, EQUAL, option, 0)) for option in NAMES),
    ]


def confine(library: str, network: bool) -> None:
    """From here on, and in whatever this process becomes, other calls are refused. Raises OSError."""
    seccomp: Any = ctypes.CDLL(library)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(ERRNO | EPERM)))
    for action, name, test in rules(network):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # another architecture's
            continue
        tests = (Test * 1)(*([Test(*test)] if test else []))
        done = seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, 1 if test else 0, tests)
        if done:
            raise OSError(-done, f"seccomp has no rule for {name}: {os.strerror(-done)}")
    if done := seccomp.seccomp_load(context):
        raise OSError(-done, f"seccomp cannot be used here: {os.strerror(-done)}")


def limit(policy: dict[str, Any]) -> None:
    """Takes the limits, or the tighter ones that are there already."""
    cpu, memory, size = policy["cpu_seconds"], policy["memory_bytes"], policy["file_bytes"]
    for kind, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, size, size),
        (resource.RLIMIT_AS, memory, memory),
    ):
        most = resource.getrlimit(kind)[1]
        hard = hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(kind, (min(soft, hard), hard))


def main(words: list[str]) -> None:
    policy = json.loads(words[0])
    with open(policy["report"], "w", encoding="utf-8") as report:
        try:
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            limit(policy)
            if policy["library"]:
                confine(policy["library"], policy["network"])
            os.execvp(words[1], words[1:])
        except (OSError, MemoryError) as why:
            report.write(str(why) or "its memory is too small to start it")


if __name__ == "__main__":
    main(sys.argv[1:])
