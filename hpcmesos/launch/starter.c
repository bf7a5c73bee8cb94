/* Forks scripts and ranks for the shepherd: `starter starter FD`.
 *
 * What starter.py and child.py do, for the processes that there are most of. This one is so small that a fork costs
 * next to nothing, and its child executes no bytecode. starter.py tells what a request is, `processes.Report` what the
 * child says. Where it was not compiled, starter.py serves in its place.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64 /* outputs may grow beyond 2 GiB on every machine */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_clone3
#define SYS_clone3 435 /* on every architecture */
#endif
#define CLONE_PARENT_ 0x8000ULL
#define CLONE_INTO_CGROUP_ 0x200000000ULL

#define FORMAT "hpcmesos 1" /* of starter.py: begins every request that this program understands */

enum { LARGEST = 64 * 1024, MOST_DESCRIPTORS = 5, MOST_GROUPS = 65536, PATH_LENGTH = 4096 };
enum { SYNTAX = 1024 }; /* bytes that a report keeps for what is not quoted */
enum { NOT_STARTED = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127 };

struct list {
    int count;
    char **items; /* NULL behind the last, and room for one more */
};

struct request {
    const char *format, *into, *program, *identity, *stdio, *inherit, *join;
    mode_t mask;
    int gated, has_outputs, truncate;
    struct list argv, environment, directories, cgroups, made, outputs, errors;
};

struct text { /* ends with a zero byte; what is too much is left out */
    size_t used;
    char data[LARGEST + 1];
};

/* --- requests */

struct reader {
    char *at, *end, **room;
};

static char *word(struct reader *reader) {
    char *found = reader->at;
    if (found >= reader->end)
        return "";
    reader->at += strlen(found) + 1;
    return found;
}

static struct list words(struct reader *reader) {
    struct list found = {atoi(word(reader)), reader->room};
    int kept = 0;
    while (kept < found.count && reader->at < reader->end)
        found.items[kept++] = word(reader);
    found.count = kept;
    found.items[kept] = found.items[kept + 1] = NULL;
    reader->room += kept + 2;
    return found;
}

/* `data` ends with a zero byte; the words stay in it. */
static struct request parsed(char *data, size_t size) {
    static char *room[LARGEST + 16]; /* a word has a byte at least */
    struct reader reader = {data, data + size, room};
    struct request request = {.format = word(&reader)};
    request.into = word(&reader);
    request.program = word(&reader);
    request.mask = (mode_t)atoi(word(&reader));
    request.identity = word(&reader);
    request.stdio = word(&reader);
    request.inherit = word(&reader);
    request.gated = *word(&reader) != 0;
    request.join = word(&reader);
    request.has_outputs = *request.join != 0;
    request.truncate = *word(&reader) != 0;
    request.argv = words(&reader);
    request.environment = words(&reader);
    request.directories = words(&reader);
    request.cgroups = words(&reader);
    request.made = words(&reader);
    request.outputs = words(&reader);
    request.errors = words(&reader);
    return request;
}

/* --- the child's report */

static void add(struct text *text, const char *part) {
    size_t size = strlen(part), left = LARGEST - text->used;
    if (size > left)
        size = left;
    memcpy(text->data + text->used, part, size);
    text->data[text->used += size] = 0;
}

/* What is too much for a report is left out, so that it still is JSON. */
static void add_quoted(struct text *text, const char *part) {
    for (const unsigned char *at = (const unsigned char *)part; *at && text->used < LARGEST - SYNTAX; at++) {
        char piece[8] = {(char)*at};
        if (*at == '"' || *at == '\\')
            snprintf(piece, sizeof piece, "\\%c", *at);
        else if (*at < 0x20)
            snprintf(piece, sizeof piece, "\\u%04x", *at);
        add(text, piece);
    }
}

static void add_member(struct text *text, const char *name, const char *value) {
    add(text, ",\"");
    add(text, name);
    add(text, "\":\"");
    add_quoted(text, value);
    add(text, "\"");
}

static void begin(struct text *text) {
    char start[32];
    snprintf(start, sizeof start, "{\"pid\":%d", (int)getpid());
    text->used = 0;
    add(text, start);
}

/* Whether it was told: a child of which nobody knows must not go on, for another one will be made in its place. */
static int tell(int report, struct text *text, const int *fds, int count) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int) * MOST_DESCRIPTORS)];
    } control;
    add(text, "}");
    struct iovec part = {text->data, text->used};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
        memcpy(CMSG_DATA(&control.header), fds, sizeof(int) * (size_t)count);
    }
    return sendmsg(report, &message, MSG_NOSIGNAL) >= 0;
}

static struct text text; /* of this process alone: a child has its copy */

/* The child cannot become what it should be. */
static _Noreturn void fail(int report, const char *what) {
    const char *why = strerror(errno);
    static char reason[LARGEST];
    snprintf(reason, sizeof reason, "cannot start the job: %s: %s", what, why);
    begin(&text);
    add_member(&text, "failure", reason);
    tell(report, &text, NULL, 0);
    _exit(NOT_STARTED);
}

/* A line in the job's own log, in one piece: others may write there, too. */
static void say(const char *before, const char *what, int why) {
    dprintf(STDERR_FILENO, "hpcmesos: %s%s: %s\n", before, what, strerror(why));
}

/* --- the child */

static void reset_signals(void) {
    static const int numbers[] = {SIGPIPE, SIGXFSZ, SIGHUP,  SIGINT,  SIGQUIT, SIGTERM,
                                  SIGCHLD, SIGUSR1, SIGUSR2, SIGTSTP, SIGTTIN, SIGTTOU};
    sigset_t none;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        signal(numbers[i], SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void join(const struct list *cgroups, int report) {
    for (int i = 0; i < cgroups->count; i++) {
        int fd = open(cgroups->items[i], O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, "0", 1) < 0)
            fail(report, cgroups->items[i]);
        close(fd);
    }
}

/* `identity`: uid, gid and the groups; empty: it stays who it is. */
static void become(const char *identity, int report) {
    static gid_t groups[MOST_GROUPS];
    size_t count = 0;
    char *at;
    if (!*identity)
        return;
    uid_t uid = (uid_t)strtoul(identity, &at, 10);
    gid_t gid = (gid_t)strtoul(at, &at, 10);
    while (*at && count < MOST_GROUPS)
        groups[count++] = (gid_t)strtoul(at, &at, 10);
    if (setgroups(count, groups) || setgid(gid) || setuid(uid))
        fail(report, "its owner's identity");
}

/* The first of `places` that can be opened; why others could not is added to `troubles`. */
static int opened(const struct list *places, int truncate, const char **path, struct text *troubles) {
    int flags = O_CREAT | O_APPEND | O_RDWR | O_NOCTTY | O_CLOEXEC | (truncate ? O_TRUNC : 0);
    for (int i = 0; i < places->count; i++) {
        int fd = open(*path = places->items[i], flags, 0666);
        if (fd >= 0)
            return fd;
        if (troubles->used)
            add(troubles, "; ");
        add(troubles, *path);
        add(troubles, ": ");
        add(troubles, strerror(errno));
    }
    return -1;
}

static void open_outputs(const struct request *request, int report, int target[3]) {
    static struct text troubles;
    const struct list *places[] = {&request->outputs, &request->errors};
    static const char *const names[] = {"stdout", "stderr"}, *const members[] = {"stdout_path", "stderr_path"};
    const char *path[2] = {0};
    int fds[2] = {-1, -1}, sent[2], count = 0;
    for (int i = 0; i < 2; i++) {
        if (strcmp(request->join, i ? "oe" : "eo") == 0)
            continue; /* goes where the other one goes */
        fds[i] = opened(places[i], request->truncate, &path[i], &troubles);
        if (fds[i] < 0) {
            begin(&text);
            add(&text, ",\"failure\":\"cannot start the job: no output file can be opened: ");
            add_quoted(&text, troubles.data);
            add(&text, "\"");
            tell(report, &text, NULL, 0);
            _exit(NOT_STARTED);
        }
        sent[count++] = fds[i];
    }
    begin(&text);
    add(&text, ",\"streams\":[");
    for (int i = 0, comma = 0; i < 2; i++) {
        if (fds[i] < 0)
            continue;
        add(&text, comma++ ? ",\"" : "\"");
        add(&text, names[i]);
        add(&text, "\"");
    }
    add(&text, "]");
    for (int i = 0; i < 2; i++)
        if (fds[i] >= 0)
            add_member(&text, members[i], path[i]);
    add_member(&text, "undelivered", troubles.data); /* the last, for it may be too long */
    if (!tell(report, &text, sent, count))
        _exit(NOT_STARTED);
    target[0] = -1;
    target[1] = fds[0] >= 0 ? fds[0] : fds[1];
    target[2] = fds[1] >= 0 ? fds[1] : fds[0];
}

static void connect_streams(struct request *request, int report, const int *fds) {
    int target[3] = {-1, -1, -1};
    if (request->has_outputs) {
        open_outputs(request, report, target);
    } else { /* places among the descriptors that came along */
        char *at = (char *)request->stdio;
        for (int i = 0; i < 3; i++) {
            long place = strtol(at, &at, 10);
            target[i] = place < 0 || place >= MOST_DESCRIPTORS ? -1 : fds[place];
        }
        begin(&text); /* said by itself: its maker may have died; before what may be slow */
        if (!tell(report, &text, NULL, 0))
            _exit(NOT_STARTED);
    }
    if (target[0] < 0)
        target[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    for (int i = 0; i < 3; i++)
        if (dup2(target[i], i) < 0)
            fail(report, "its streams");
    if (*request->inherit) { /* the name of a variable; the descriptor is the last one that came along */
        static char variable[256];
        int fd = fds[MOST_DESCRIPTORS];
        fcntl(fd, F_SETFD, 0);
        snprintf(variable, sizeof variable, "%s=%d", request->inherit, fd);
        request->environment.items[request->environment.count++] = variable;
    }
}

static void enter(const struct list *directories) {
    for (int i = 0; i < directories->count; i++) {
        if (chdir(directories->items[i]) == 0)
            return;
        say("cannot enter ", directories->items[i], errno);
    }
    if (chdir("/"))
        say("cannot enter ", "/", errno);
}

/* errno when it comes back. A file without `#!` is run by sh, as execvp(3) does. */
static int executed(const struct request *request, const char *place) {
    char **environment = request->environment.items, *words[request->argv.count + 2];
    execve(place, request->argv.items, environment);
    if (errno != ENOEXEC)
        return errno;
    words[0] = "sh";
    words[1] = (char *)place;
    memcpy(words + 2, request->argv.items + 1, sizeof *words * (size_t)request->argv.count);
    execve("/bin/sh", words, environment);
    say("", "/bin/sh", errno);
    _exit(NOT_EXECUTABLE);
}

/* As execvp(3), but by the PATH of the new environment; errno when it comes back. */
static int searched(const struct request *request) {
    const char *program = request->program, *path = "/bin:/usr/bin";
    if (strchr(program, '/'))
        return executed(request, program);
    for (char **one = request->environment.items; *one; one++)
        if (strncmp(*one, "PATH=", 5) == 0)
            path = *one + 5;
    int last = ENOENT, other = 0;
    for (const char *end; path; path = *end ? end + 1 : NULL) {
        char place[PATH_LENGTH];
        end = strchrnul(path, ':');
        int length = (int)(end - path);
        int size = snprintf(place, sizeof place, "%.*s%s%s", length, path, length ? "/" : "", program);
        if (size >= (int)sizeof place)
            continue;
        last = executed(request, place);
        if (last != ENOENT && last != ENOTDIR && !other)
            other = last;
    }
    return other ? other : last;
}

static _Noreturn void execute(const struct request *request) {
    int why = searched(request);
    say("", request->argv.items[0], why);
    _exit(why == ENOENT || why == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE);
}

static _Noreturn void run(struct request *request, const int *fds) {
    int report = fds[0];
    char word;
    reset_signals();
    setsid();
    join(&request->cgroups, report);
    umask(request->mask);
    become(request->identity, report);
    connect_streams(request, report, fds);
    for (int i = 0; i < request->made.count; i++)
        if (mkdir(request->made.items[i], 0700))
            fail(report, request->made.items[i]);
    enter(&request->directories);
    if (request->gated && recv(report, &word, 1, 0) <= 0)
        _exit(NOT_STARTED);
    execute(request);
}

/* --- the starter */

static void refuse(int report, int why) {
    char number[64];
    text.used = 0;
    snprintf(number, sizeof number, "{\"unable\":%d", why);
    add(&text, number);
    tell(report, &text, NULL, 0);
}

static void start(int connection, char *data, size_t size, const int *fds) {
    struct request request = parsed(data, size);
    if (strcmp(request.format, FORMAT) || request.argv.count == 0) { /* of a shepherd that is older or newer */
        refuse(fds[0], EINVAL);
        return;
    }
    int directory = open(request.into, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) { /* the attempt has ended meanwhile */
        refuse(fds[0], errno);
        return;
    }
    /* struct clone_args of linux/sched.h: flags, six that stay 0, and the cgroup; exit_signal is the maker's own. */
    uint64_t arguments[11] = {CLONE_PARENT_ | CLONE_INTO_CGROUP_, [10] = (uint64_t)directory};
    long pid = syscall(SYS_clone3, arguments, sizeof arguments);
    if (pid == 0) {
        close(connection); /* what waits there would else outlive us, or be read by the program */
        run(&request, fds);
    }
    int why = errno;
    close(directory);
    if (pid < 0)
        refuse(fds[0], why);
}

int main(int argc, char **argv) {
    static char data[LARGEST + 1];
    int connection = atoi(argv[argc - 1]);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        int fds[MOST_DESCRIPTORS + 1] = {0}, count = 0; /* the room of `control` may be rounded up to one more */
        union {
            struct cmsghdr header;
            char room[CMSG_SPACE(sizeof(int) * MOST_DESCRIPTORS)];
        } control;
        struct iovec part = {data, LARGEST};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t size = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            return 0; /* the shepherd has closed its end */
        data[size] = 0;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        if (header != NULL && header->cmsg_type == SCM_RIGHTS) {
            count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(fds, CMSG_DATA(header), sizeof(int) * (size_t)count);
        }
        /* Of one that has not come whole the shepherd hears nothing, and forks by itself. */
        int cut = message.msg_flags & (MSG_TRUNC | MSG_CTRUNC);
        if (!cut && count > 0 && count <= MOST_DESCRIPTORS) {
            fds[MOST_DESCRIPTORS] = fds[count - 1];
            start(connection, data, (size_t)size, fds);
        }
        while (count > 0)
            close(fds[--count]);
    }
}
