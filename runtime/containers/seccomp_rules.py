"""The system calls a container may make by default: facts as data, resolved by ``runtime.containers.seccomp``.

The rule of the whole: a call is refused with EPERM unless it stands here. What stands in ``ALLOWED`` is safe whatever the
container may do, because the kernel confines it by namespaces and its own permission checks. What reaches beyond (mounts,
namespaces, modules, the clock) is opened by the capability that the kernel asks for anyway, so that a container without
the capability does not even reach the kernel's code for it.

The facts (which call is safe, which capability opens which) are those of the default profile of Docker 28.5,
github.com/moby/profiles, seccomp/default.json at v0.1.0, so that a container behaves as under Docker;
``tests/unit/containers/test_docker_seccomp.py`` compares them machine by machine. It differs here in what follows:

- ``socket`` is refused for AF_ALG (CVE-2026-31431) besides AF_VSOCK, as in v0.2.3 there. It is looked at as the kernel
  does, in its low 32 bits: compared as a whole, 2**32 + 38 would be neither. Families from 64 on, of which there are none,
  are refused.
- ``socketcall``, by which a program of 32 bits reaches ``socket`` unseen (its arguments are in memory), is refused on
  amd64, unless AppArmor refuses the family there: a C library then uses ``socket`` if it knows that from Linux 4.3 on it is
  there. Docker allows it (v0.2.1 there refused it, v0.2.2 took that back for the programs of old C libraries). On s390x
  and on x86 itself it is what every program uses.
- ``ptrace``, ``process_vm_readv`` and ``process_vm_writev`` do not depend on the kernel: before 4.8 ptrace could leave the
  filter, but this engine needs a later kernel anyway (pidfd).

Names are the kernel's; one that the machine or its libseccomp does not know is passed over by runc.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

EPERM = 1
ENOSYS = 38
AF_ALG = 38
AF_VSOCK = 40

_FAMILY_BITS = 6

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET of linux/sched.h.
CLONE_NAMESPACES = 0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000

# Go's names of machines whose kernels run programs of other machines too: seccomp's names, the native one first.
ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "amd64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "arm64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
}


class Argument(msgspec.Struct, frozen=True):
    """A condition on the argument at ``index``, of 64 bits: its bits in ``mask`` are those of ``value``."""

    index: int
    value: int
    mask: int = 2**64 - 1


def families_but(*refused: int) -> tuple[Argument, ...]:
    """Conditions of which one holds for each address family below 64 that is not ``refused``; the kernel takes an int."""
    blocks, rest = [(0, _FAMILY_BITS)], list[Argument]()
    while (
        blocks
    ):  # each is 2**bits families from ``first`` on, and is halved until it has none or nothing but refused ones
        first, bits = blocks.pop()
        inside = [family for family in refused if first <= family < first + (1 << bits)]
        if not inside:
            rest.append(Argument(0, first, 0xFFFF_FFFF & -(1 << bits)))
        elif bits:
            blocks += [(first + (1 << bits - 1), bits - 1), (first, bits - 1)]
    return tuple(rest)


FILES = """
    access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
    fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync flock fstat
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 ioctl lchown
    lchown32 link linkat _llseek lseek lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat
    openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
    rename renameat renameat2 rmdir sendfile sendfile64 splice stat stat64 statfs statfs64 statx symlink symlinkat sync
    sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice
    write writev
"""
MOUNT_FACTS = "listmount statmount"
EXTENDED_ATTRIBUTES = """
    fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
    lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
"""
WAITING_FOR_FILES = """
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
    fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch _newselect poll ppoll ppoll_time64 pselect6
    pselect6_time64 select
"""
ASYNCHRONOUS_IO = """
    io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioprio_get ioprio_set
"""
SOCKETS = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg
    send sendmmsg sendmsg sendto setsockopt shutdown socketpair
"""
MEMORY = """
    brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2
    mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease
    remap_file_pages
"""
PROCESSES = """
    execve execveat exit exit_group fork getpgid getpgrp getpid getppid getpriority getrlimit getrusage getsid gettid kill
    pause pidfd_open pidfd_send_signal prctl prlimit64 process_vm_readv process_vm_writev ptrace restart_syscall setpgid
    setpriority setrlimit setsid tgkill times tkill ugetrlimit uretprobe vfork wait4 waitid waitpid
"""
THREADS = """
    futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list get_thread_area rseq
    set_robust_list set_thread_area set_tid_address
"""
SCHEDULING = """
    getcpu sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
    sched_yield
"""
SIGNALS = """
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signalfd signalfd4 sigprocmask sigreturn
"""
# The clock is read here; adjtimex and its kin set it only with CAP_SYS_TIME, which the kernel checks by argument.
TIME = """
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 timer_getoverrun
    timer_gettime timer_gettime64 timer_settime timer_settime64
"""
IDENTITY = """
    capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid
    getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32
"""
SYSTEM_V_AND_QUEUES = """
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
    msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
"""
# A process may always tie its own hands further.
SANDBOXING = "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp"
FACTS = "getrandom riscv_hwprobe sysinfo uname"

ALLOWED: tuple[str, ...] = tuple(
    " ".join(
        (
            *(
                FILES,
                MOUNT_FACTS,
                EXTENDED_ATTRIBUTES,
                WAITING_FOR_FILES,
                ASYNCHRONOUS_IO,
                SOCKETS,
                MEMORY,
                PROCESSES,
                THREADS,
            ),
            *(SCHEDULING, SIGNALS, TIME, IDENTITY, SYSTEM_V_AND_QUEUES, SANDBOXING, FACTS),
        )
    ).split()
)

# Allowed as long as one of the conditions holds.
ALLOWED_IF: Mapping[str, tuple[Argument, ...]] = {
    # The kernel's ciphers are for its own use. A virtual machine's host or guest is not the container's business, and no
    # network namespace confines AF_VSOCK.
    "socket": families_but(AF_ALG, AF_VSOCK),
    # Linux (0), Linux of 32 bits (8), each also with UNAME26 (0x20000), and the question which one it is. Others switch
    # off address randomisation or map page zero.
    "personality": tuple(Argument(0, value) for value in (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)),
}

# Machines by Go's names.
BY_MACHINE: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"amd64", "x32"}), "arch_prctl"),
    (frozenset({"amd64", "x32", "x86"}), "modify_ldt"),
    (
        frozenset({"arm", "arm64"}),
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    ),
    (frozenset({"ppc64le"}), "swapcontext sync_file_range2"),
    (frozenset({"riscv64"}), "riscv_flush_icache"),
    (frozenset({"s390", "s390x"}), "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
)

BY_CAPABILITY: Mapping[str, str] = {
    "CAP_SYS_ADMIN": """
        fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree quotactl quotactl_fd umount umount2
        clone clone3 setdomainname sethostname setns unshare
        bpf fanotify_init lookup_dcookie perf_event_open syslog
        lsm_get_self_attr lsm_list_modules lsm_set_self_attr
    """,
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}


def new_process(arch: str) -> tuple[str, Argument]:
    """How a container without CAP_SYS_ADMIN may call ``clone``: without any new namespace.

    ``clone3`` keeps its flags in memory, where a filter cannot look; it is answered by ENOSYS, upon which C libraries
    fall back to ``clone``. On s390 the first two arguments of ``clone`` are the other way round (clone(2), "NOTES").
    """
    return "clone", Argument(1 if arch in ("s390", "s390x") else 0, 0, CLONE_NAMESPACES)


SOCKETCALL_REFUSED: frozenset[str] = frozenset({"amd64"})
"""Machines whose programs of 32 bits alone use it. ENOSYS, because libseccomp opens it beside ``socket`` unless there is a
rule of its own, and a rule with the default action counts as none (moby/profiles 7158007)."""
