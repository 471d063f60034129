"""Docker's default seccomp profile as published: the reference that ours is compared with, not a part of the engine.

From github.com/moby/profiles (Apache License 2.0), seccomp/default.json at seccomp/v0.1.0, which is what Docker 28.5.0 to
28.5.2 have (moby vendor.mod); names sorted, rules in its order, MIPS left out. Later versions there change the rule of
``socket`` (v0.2.3 refuses AF_ALG) and add LoongArch, nothing else.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

ARCHITECTURES: dict[str, list[str]] = {
    "SCMP_ARCH_X86_64": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "SCMP_ARCH_AARCH64": ["SCMP_ARCH_ARM"],
    "SCMP_ARCH_S390X": ["SCMP_ARCH_S390"],
    "SCMP_ARCH_RISCV64": [],
}
"""By seccomp's name of the machine, the others whose programs its kernel runs."""


class Rule(msgspec.Struct, frozen=True):
    """Names, and when they are allowed; ``argument`` is index, comparison, value."""

    names: str
    action: str = "ALLOW"
    errno: int | None = None
    argument: tuple[int, str, int] | None = None
    capability: str = ""
    not_capability: str = ""
    machines: list[str] = []
    not_machines: list[str] = []
    kernel: str = ""


ALLOWED = """
    _llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown
    chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
    eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark
    fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock
    fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex
    futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu
    getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer
    getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32
    getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents
    io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr
    listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier
    memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
    mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep
    newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect
    poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64
    pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64
    recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir
    rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
    semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area
    set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid
    setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid
    setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
    sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat
    sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime
    utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
"""
RULES = (
    Rule(ALLOWED),
    Rule("process_vm_readv process_vm_writev ptrace", kernel="4.8"),
    Rule("socket", argument=(0, "NE", 0x28)),
    Rule("personality", argument=(0, "EQ", 0x0)),
    Rule("personality", argument=(0, "EQ", 0x8)),
    Rule("personality", argument=(0, "EQ", 0x20000)),
    Rule("personality", argument=(0, "EQ", 0x20008)),
    Rule("personality", argument=(0, "EQ", 0xFFFFFFFF)),
    Rule("sync_file_range2 swapcontext", machines=["ppc64le"]),
    Rule(
        "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls", machines=["arm", "arm64"]
    ),
    Rule("arch_prctl", machines=["amd64", "x32"]),
    Rule("modify_ldt", machines=["amd64", "x32", "x86"]),
    Rule("s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr", machines=["s390", "s390x"]),
    Rule("riscv_flush_icache", machines=["riscv64"]),
    Rule("open_by_handle_at", capability="CAP_DAC_READ_SEARCH"),
    Rule(
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
        capability="CAP_SYS_ADMIN",
    ),
    Rule(
        "clone", argument=(0, "MASKED_EQ", 0x7E020000), not_capability="CAP_SYS_ADMIN", not_machines=["s390", "s390x"]
    ),
    Rule("clone", argument=(1, "MASKED_EQ", 0x7E020000), machines=["s390", "s390x"], not_capability="CAP_SYS_ADMIN"),
    Rule("clone3", action="ERRNO", errno=38, not_capability="CAP_SYS_ADMIN"),
    Rule("reboot", capability="CAP_SYS_BOOT"),
    Rule("chroot", capability="CAP_SYS_CHROOT"),
    Rule("delete_module init_module finit_module", capability="CAP_SYS_MODULE"),
    Rule("acct", capability="CAP_SYS_PACCT"),
    Rule("kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace", capability="CAP_SYS_PTRACE"),
    Rule("iopl ioperm", capability="CAP_SYS_RAWIO"),
    Rule("settimeofday stime clock_settime clock_settime64", capability="CAP_SYS_TIME"),
    Rule("vhangup", capability="CAP_SYS_TTY_CONFIG"),
    Rule("get_mempolicy mbind set_mempolicy set_mempolicy_home_node", capability="CAP_SYS_NICE"),
    Rule("syslog", capability="CAP_SYSLOG"),
    Rule("bpf", capability="CAP_BPF"),
    Rule("perf_event_open", capability="CAP_PERFMON"),
)


def profile() -> str:
    """It in Docker's own format again, as ``--security-opt seccomp=default.json`` sends it."""
    document = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [{"architecture": name, "subArchitectures": subs} for name, subs in ARCHITECTURES.items()],
        "syscalls": [_rule(rule) for rule in RULES],
    }
    return json.dumps(document)


def _rule(rule: Rule) -> dict[str, Any]:
    result: dict[str, Any] = {"names": rule.names.split(), "action": f"SCMP_ACT_{rule.action}"}
    if rule.errno is not None:
        result["errnoRet"] = rule.errno
    if rule.argument is not None:
        index, comparison, value = rule.argument
        result["args"] = [{"index": index, "value": value, "op": f"SCMP_CMP_{comparison}"}]
    includes = {"caps": [rule.capability] if rule.capability else [], "arches": rule.machines, "minKernel": rule.kernel}
    excludes = {"caps": [rule.not_capability] if rule.not_capability else [], "arches": rule.not_machines}
    return result | {"includes": includes, "excludes": excludes}
