// Runs a program on a disk that fails.
//
//   faults ROOT BACKUP MODE N -- PROGRAM ARGUMENT...
//
// Operations that change files below ROOT are counted from 0: creating, writing, syncing, renaming, removing. By MODE, before
// operation N:
//
//   count    nothing; N is not used
//   kill     the program is killed (what it has written stays)
//   lose     power fails: what was not synced is gone, data and names
//   empty    power fails: names are on the disk, data that was not synced is not
//   torn     the same, but half of such data is there
//   ENOSPC   the disk is full from here on
//   EIO, EACCES   this one operation fails
//
// A file's data is safe once the file is synced; its name once the folder is. Prints "operations: COUNT" to the standard error
// of its own at the end, and exits as the program did, with 137 after a crash. BACKUP is an empty folder on the same disk;
// before power fails, ROOT/run/log.txt is copied to BACKUP/log.txt. Linux, x86-64 or ARM64.
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *root, *backup, *mode;
static long wanted, counted;
static int backups;

static void fail(const char* what) {
    perror(what);
    exit(99);
}

// ---- what is on the disk, and what only seems to be

typedef struct {
    char path[PATH_MAX];
    long long synced;  // bytes that are safe
} File;
static File* files;
static int file_count;

typedef enum { CREATED, RENAMED, REMOVED, MADE_FOLDER, REMOVED_FOLDER } Kind;
typedef struct {
    Kind kind;
    char from[PATH_MAX], to[PATH_MAX], kept[PATH_MAX];
} Change;  // of a name, until its folder is synced
static Change* changes;
static int change_count;

static void join(char* path, const char* a, const char* separator, const char* b) {
    size_t n = strlen(a), s = strlen(separator), m = strlen(b);
    if (n + s + m >= PATH_MAX) exit(97);
    memmove(path, a, n), memcpy(path + n, separator, s), memcpy(path + n + s, b, m + 1);
}

static long long size_of(const char* path) {
    struct stat s;
    return stat(path, &s) ? -1 : (long long)s.st_size;
}

static File* file_of(const char* path) {
    for (int i = 0; i < file_count; i++)
        if (!strcmp(files[i].path, path)) return &files[i];
    files = realloc(files, sizeof(File) * (file_count + 1));
    File* file = &files[file_count++];
    snprintf(file->path, PATH_MAX, "%s", path);
    long long size = size_of(path);
    file->synced = size < 0 ? 0 : size;
    return file;
}

static void keep(Change* change, const char* path) {
    struct stat s;
    change->kept[0] = 0;
    if (stat(path, &s) || !S_ISREG(s.st_mode)) return;
    snprintf(change->kept, PATH_MAX, "%s/%d", backup, backups++);
    if (link(path, change->kept)) fail("link");
}

static void changed(Kind kind, const char* from, const char* to) {
    changes = realloc(changes, sizeof(Change) * (change_count + 1));
    Change* change = &changes[change_count++];
    change->kind = kind;
    snprintf(change->from, PATH_MAX, "%s", from);
    snprintf(change->to, PATH_MAX, "%s", to);
    change->kept[0] = 0;
    if (kind == RENAMED || kind == REMOVED) keep(change, to);
    if (kind == RENAMED) {
        size_t n = strlen(from);
        for (int i = 0; i < file_count; i++)
            if (!strcmp(files[i].path, to)) files[i].path[0] = 0;
        for (int i = 0; i < file_count; i++)
            if (!strncmp(files[i].path, from, n) && (files[i].path[n] == 0 || files[i].path[n] == '/')) {
                char moved[PATH_MAX];
                join(moved, to, "", files[i].path + n);
                strcpy(files[i].path, moved);
            }
    }
}

static void synced(const char* path) {
    struct stat s;
    if (stat(path, &s)) return;
    if (!S_ISDIR(s.st_mode)) {
        file_of(path)->synced = s.st_size;
        return;
    }
    int left = 0;
    for (int i = 0; i < change_count; i++) {
        char folder[PATH_MAX];
        snprintf(folder, PATH_MAX, "%s", changes[i].to);
        *strrchr(folder, '/') = 0;
        if (strcmp(folder, path)) changes[left++] = changes[i];
    }
    change_count = left;
}

static void copy_log(void) {
    char from[PATH_MAX], to[PATH_MAX], bytes[4096];
    snprintf(from, PATH_MAX, "%s/run/log.txt", root);
    snprintf(to, PATH_MAX, "%s/log.txt", backup);
    FILE *in = fopen(from, "r"), *out = in ? fopen(to, "w") : NULL;
    for (size_t n; out && (n = fread(bytes, 1, sizeof bytes, in));) fwrite(bytes, 1, n, out);
    if (out) fclose(out);
    if (in) fclose(in);
}

// A folder whose name is not on the disk takes along what is in it.
static void remove_all(const char* path) {
    DIR* folder = opendir(path);
    for (struct dirent* entry; folder && (entry = readdir(folder));) {
        char inner[PATH_MAX];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        join(inner, path, "/", entry->d_name);
        if (unlink(inner)) remove_all(inner);
    }
    if (folder) closedir(folder);
    rmdir(path);
}

static void power_fails(void) {
    copy_log();
    for (int i = 0; i < file_count; i++) {
        long long size = files[i].path[0] ? size_of(files[i].path) : -1;
        if (size <= files[i].synced) continue;
        long long there = files[i].synced + (strcmp(mode, "torn") ? 0 : (size - files[i].synced) / 2);
        if (truncate(files[i].path, there)) fail("truncate");
    }
    if (strcmp(mode, "lose")) return;
    for (int i = change_count; i-- > 0;) {
        Change* c = &changes[i];
        if (c->kind == CREATED) unlink(c->to);
        if (c->kind == MADE_FOLDER) remove_all(c->to);
        if (c->kind == REMOVED_FOLDER) mkdir(c->to, 0777);
        if (c->kind == RENAMED) rename(c->to, c->from);
        if (c->kept[0]) rename(c->kept, c->to);
    }
}

// ---- the program's system calls

static void read_text(pid_t pid, unsigned long at, char* text) {
    struct iovec here = {text, PATH_MAX - 1}, there = {(void*)at, PATH_MAX - 1};
    for (ssize_t n = -1; here.iov_len > 0 && n < 0; here.iov_len = there.iov_len = here.iov_len / 2) {
        n = process_vm_readv(pid, &here, 1, &there, 1, 0);
        text[n < 0 ? 0 : n] = 0;
    }
}

static void absolute(pid_t pid, int folder, unsigned long at, char* path) {
    char text[PATH_MAX], link[64], base[PATH_MAX];
    read_text(pid, at, text);
    for (char* dot; (dot = strstr(text, "/./"));) memmove(dot, dot + 2, strlen(dot + 2) + 1);
    if (text[0] == '/') {
        snprintf(path, PATH_MAX, "%s", text);
        return;
    }
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/%d/cwd", pid);
    else snprintf(link, sizeof link, "/proc/%d/fd/%d", pid, folder);
    ssize_t n = readlink(link, base, PATH_MAX - 1);
    base[n < 0 ? 0 : n] = 0;
    while (!strncmp(text, "./", 2)) memmove(text, text + 2, strlen(text + 2) + 1);
    join(path, base, "/", text);
}

static void of_descriptor(pid_t pid, int descriptor, char* path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/%d/fd/%d", pid, descriptor);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    path[n < 0 ? 0 : n] = 0;
}

static int below_root(const char* path) {
    size_t n = strlen(root);
    return !strncmp(path, root, n) && path[n] == '/';
}

typedef struct {
    long number;
    unsigned long args[6];
} Call;

#ifdef __x86_64__
#define ARCHITECTURE AUDIT_ARCH_X86_64
static void get(pid_t pid, Call* call) {
    struct user_regs_struct r;
    if (ptrace(PTRACE_GETREGS, pid, 0, &r)) fail("registers");
    *call = (Call){(long)r.orig_rax, {r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9}};
}
static void answer(pid_t pid, int error) {
    struct user_regs_struct r;
    ptrace(PTRACE_GETREGS, pid, 0, &r);
    r.orig_rax = -1, r.rax = -error;
    ptrace(PTRACE_SETREGS, pid, 0, &r);
}
#else
#define ARCHITECTURE AUDIT_ARCH_AARCH64
static void get(pid_t pid, Call* call) {
    struct user_regs_struct r;
    struct iovec io = {&r, sizeof r};
    if (ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &io)) fail("registers");
    *call = (Call){(long)r.regs[8], {r.regs[0], r.regs[1], r.regs[2], r.regs[3], r.regs[4], r.regs[5]}};
}
static void answer(pid_t pid, int error) {
    struct user_regs_struct r;
    struct iovec io = {&r, sizeof r};
    ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &io);
    int none = -1;
    struct iovec number = {&none, sizeof none};
    ptrace(PTRACE_SETREGSET, pid, NT_ARM_SYSTEM_CALL, &number);
    r.regs[0] = -error;
    ptrace(PTRACE_SETREGSET, pid, NT_PRSTATUS, &io);
}
#endif

static const int CALLS[] = {
    SYS_openat, SYS_write, SYS_pwrite64, SYS_writev, SYS_fsync, SYS_fdatasync, SYS_ftruncate, SYS_renameat, SYS_renameat2,
    SYS_unlinkat, SYS_mkdirat,
#ifdef __x86_64__
    SYS_open, SYS_rename, SYS_unlink, SYS_mkdir, SYS_rmdir,
#endif
};

// The operation of a system call: its path or paths; 0 if it is none that counts.
enum { NONE, OPENS, WRITES, SYNCS, CUTS, RENAMES, REMOVES, REMOVES_FOLDER, MAKES_FOLDER };
static int operation(pid_t pid, const Call* c, char* path, char* to) {
    const unsigned long* a = c->args;
    int what = NONE;
    to[0] = 0;
    switch (c->number) {
    case SYS_openat:
        if (a[2] & O_CREAT) what = OPENS, absolute(pid, (int)a[0], a[1], path);
        break;
    case SYS_write: case SYS_pwrite64: case SYS_writev: what = WRITES, of_descriptor(pid, (int)a[0], path); break;
    case SYS_fsync: case SYS_fdatasync: what = SYNCS, of_descriptor(pid, (int)a[0], path); break;
    case SYS_ftruncate: what = CUTS, of_descriptor(pid, (int)a[0], path); break;
    case SYS_renameat: case SYS_renameat2:
        what = RENAMES, absolute(pid, (int)a[0], a[1], path), absolute(pid, (int)a[2], a[3], to);
        break;
    case SYS_unlinkat:
        what = a[2] & AT_REMOVEDIR ? REMOVES_FOLDER : REMOVES, absolute(pid, (int)a[0], a[1], path);
        break;
    case SYS_mkdirat: what = MAKES_FOLDER, absolute(pid, (int)a[0], a[1], path); break;
#ifdef __x86_64__
    case SYS_open:
        if (a[1] & O_CREAT) what = OPENS, absolute(pid, AT_FDCWD, a[0], path);
        break;
    case SYS_rename: what = RENAMES, absolute(pid, AT_FDCWD, a[0], path), absolute(pid, AT_FDCWD, a[1], to); break;
    case SYS_unlink: what = REMOVES, absolute(pid, AT_FDCWD, a[0], path); break;
    case SYS_mkdir: what = MAKES_FOLDER, absolute(pid, AT_FDCWD, a[0], path); break;
    case SYS_rmdir: what = REMOVES_FOLDER, absolute(pid, AT_FDCWD, a[0], path); break;
#endif
    }
    if (what == NONE) return NONE;
    // A folder itself is synced as the parent of what is in it.
    return below_root(path) || (what == SYNCS && !strcmp(path, root)) ? what : NONE;
}

// What an operation that is let through will have done.
static void note(int what, const char* path, const char* to) {
    int is_there = size_of(path) >= 0;
    if (what == OPENS) {
        file_of(path);
        if (!is_there) changed(CREATED, path, path), file_of(path)->synced = 0;
    }
    if (what == WRITES) file_of(path);
    if (what == CUTS) file_of(path);
    if (what == SYNCS) synced(path);
    if (what == RENAMES && is_there) changed(RENAMED, path, to);
    if (what == REMOVES && is_there) changed(REMOVED, path, path);
    if (what == REMOVES_FOLDER && is_there) changed(REMOVED_FOLDER, path, path);
    if (what == MAKES_FOLDER && !is_there) changed(MADE_FOLDER, path, path);
}

static int error_of(int what) {
    if (!strcmp(mode, "ENOSPC")) return what == OPENS || what == WRITES || what == MAKES_FOLDER ? ENOSPC : 0;
    if (counted != wanted) return 0;
    if (!strcmp(mode, "EIO")) return EIO;
    // Whoever holds a file open may use it.
    int by_name = what != WRITES && what != SYNCS && what != CUTS;
    return !strcmp(mode, "EACCES") && by_name ? EACCES : 0;
}

static void start(char** program) {
    struct sock_filter code[3 + sizeof CALLS / sizeof *CALLS * 2 + 1];
    int n = 0;
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < sizeof CALLS / sizeof *CALLS; i++) {
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)CALLS[i], 0, 1);
        code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    }
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog filter = {(unsigned short)n, code};
    if (ptrace(PTRACE_TRACEME, 0, 0, 0)) fail("ptrace");
    raise(SIGSTOP);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)) fail("seccomp");
    execv(program[0], program);
    fail(program[0]);
}

int main(int argc, char** argv) {
    if (argc < 7 || strcmp(argv[5], "--")) return fprintf(stderr, "faults ROOT BACKUP MODE N -- PROGRAM ARGUMENT...\n"), 98;
    root = argv[1], backup = argv[2], mode = argv[3], wanted = atol(argv[4]);
    int counts = !strcmp(mode, "count"), kills = !strcmp(mode, "kill");
    int loses = !strcmp(mode, "lose") || !strcmp(mode, "empty") || !strcmp(mode, "torn");
    pid_t child = fork();
    if (!child) start(argv + 6);
    int status;
    if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) fail("start");
    long options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_EXITKILL;
    if (ptrace(PTRACE_SETOPTIONS, child, 0, options)) fail("options");
    ptrace(PTRACE_CONT, child, 0, 0);
    int code = 99, crashed = 0;
    for (;;) {
        pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0) break;
        if (!WIFSTOPPED(status)) {
            if (pid == child) code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            continue;
        }
        int event = status >> 16, passed = 0;
        if (crashed) continue;
        if (event == PTRACE_EVENT_SECCOMP) {
            Call call;
            char path[PATH_MAX], to[PATH_MAX];
            get(pid, &call);
            int what = operation(pid, &call, path, to);
            if (what != NONE) {
                if (getenv("FAULTS_SHOW")) fprintf(stderr, "%ld: %d %s %s\n", counted, what, path, to);
                if ((kills || loses) && counted == wanted) {
                    crashed = 1;
                    kill(child, SIGKILL);
                    continue;
                }
                int error = counts || kills || loses || counted < wanted ? 0 : error_of(what);
                if (error) answer(pid, error);
                else if (loses) note(what, path, to);
                counted++;
            }
        } else if (!event && WSTOPSIG(status) != SIGSTOP && WSTOPSIG(status) != SIGTRAP) {
            passed = WSTOPSIG(status);
        }
        ptrace(PTRACE_CONT, pid, 0, passed);
    }
    if (crashed && loses) power_fails();
    fprintf(stderr, "operations: %ld\n", counted);
    return crashed ? 137 : code;
}
