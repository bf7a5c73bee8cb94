/* The commands that users type, where nothing is unusual: `stub FILE ARGS...`.
 *
 * FILE is the command itself, a Python program whose first line names this one (commands_dir.py). What qstub.py says of
 * requests and answers holds here. This one knows plain ASCII, scripts, and answers that only have to be printed; in
 * every other case it becomes Python, which goes on with the request that was sent and the answer, if there is one: so
 * the key is the same, and nothing is done twice.
 */
#include "stub.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BEGUN "HPCMESOS_BEGUN_COMMAND" /* of qstub.py */

enum { LARGEST_HEAD = 16 * 1024, LARGEST_ANSWER = 1000 * 1000 * 1000 };
enum { SILENCE = 20 }; /* seconds without a byte after which another master is asked, where there is one */
enum { CANNOT_READ = 1, CANNOT_WRITE = 1, NO_PYTHON = 127, UNREACHABLE = 255 };

struct answer {
    int status;
    struct string body;
};

enum outcome { BROKEN, ODD, UNDERSTOOD };

static int write_whole(int fd, struct string text) {
    while (text.size) {
        ssize_t written = write(fd, text.data, text.size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return 0;
        text.data += written;
        text.size -= (size_t)written;
    }
    return 1;
}

/* --- the command */

/* What follows `name` in the next line. */
static char *setting(char **at, const char *name) {
    char *line = *at, *end = line ? strchr(line, '\n') : NULL;
    size_t size = strlen(name);
    *at = NULL;
    if (end == NULL || strncmp(line, name, size))
        return NULL;
    *end = 0;
    *at = end + 1;
    return line + size;
}

static struct settings settings_of(const char *file) {
    static char head[LARGEST_HEAD + 1];
    struct settings found = {0};
    char *at = head;
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (read(fd, head, LARGEST_HEAD) < 0)
            *head = 0;
        close(fd);
    }
    setting(&at, "#!");
    found.python = setting(&at, "# python: ");
    found.command = setting(&at, "# command: ");
    found.sockets = setting(&at, "# sockets: ");
    found.personality = setting(&at, "# personality: ");
    found.submit_filter = setting(&at, "# submit filter: ");
    return found;
}

/* Whether this may be the ordinary case at all. */
static int ordinary(const struct settings *settings) {
    struct stat status;
    struct rlimit files; /* of which the record is one */
    if (settings->submit_filter == NULL || getrlimit(RLIMIT_FSIZE, &files))
        return 0;
    if (files.rlim_cur < (rlim_t)LARGEST_REQUEST + LARGEST_ANSWER)
        return 0;
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            return 0; /* our own files would take its place */
    if (strcmp(settings->command, "qterm") == 0)
        return 0; /* is sent once: the next master to hear it would stop, too */
    return !submits(settings) || lstat(settings->submit_filter, &status);
}

/* --- the answer */

/* -1: of those after which the request is sent again, and of what is no HTTP. */
static int status_of(const char *head) {
    int status = -1;
    if (sscanf(head, "HTTP/1.1 %3d ", &status) != 1 || (status >= 502 && status <= 504))
        return -1;
    return status;
}

/* -1: it is in chunks, or does not say. */
static long content_length(const char *head) {
    long length = -1;
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, "transfer-encoding:", 18) == 0)
            return -1;
        if (strncasecmp(line, "content-length:", 15) == 0) {
            char *end;
            length = strtol(line + 15, &end, 10);
            if (end == line + 15 || (*end && *end != '\r') || length > LARGEST_ANSWER)
                return -1;
        }
    }
    return length;
}

static ssize_t receive(int connection, char *into, size_t size) {
    ssize_t got;
    do
        got = recv(connection, into, size, 0);
    while (got < 0 && errno == EINTR);
    return got;
}

/* Its body has a zero byte behind it; what is ODD has no data. */
static enum outcome receive_answer(int connection, struct answer *answer) {
    struct string *body = &answer->body;
    static char head[LARGEST_HEAD + 1];
    size_t used = 0;
    ssize_t got;
    char *end;
    *head = 0;
    while ((end = strstr(head, "\r\n\r\n")) == NULL) {
        if (used == LARGEST_HEAD)
            return ODD;
        if ((got = receive(connection, head + used, LARGEST_HEAD - used)) <= 0)
            return BROKEN;
        head[used += (size_t)got] = 0;
    }
    *end = 0;
    char *begun = end + 4;
    size_t have = (size_t)(head + used - begun);
    long length = content_length(head);
    answer->status = status_of(head);
    if (answer->status < 0 || length < 0 || have > (size_t)length || (body->data = malloc((size_t)length + 1)) == NULL)
        return ODD;
    memcpy(body->data, begun, have);
    for (; have < (size_t)length; have += (size_t)got)
        if ((got = receive(connection, body->data + have, (size_t)length - have)) <= 0)
            return BROKEN;
    body->data[length] = 0;
    body->size = (size_t)length;
    return UNDERSTOOD;
}

/* --- the exchange */

static void send_whole(int connection, struct string data) {
    while (data.size) {
        ssize_t sent = send(connection, data.data, data.size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return; /* an answer may be there all the same: a request that was refused half read */
        data.data += sent;
        data.size -= (size_t)sent;
    }
}

static enum outcome exchange(const char *path, size_t size, int silence, struct string data, struct answer *answer) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = silence}; /* 0: for ever */
    enum outcome outcome = BROKEN;
    if (size == 0 || size >= sizeof address.sun_path)
        return ODD;
    int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection < 0)
        return ODD;
    memcpy(address.sun_path, path, size);
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(connection, (struct sockaddr *)&address, sizeof address) == 0) {
        send_whole(connection, data);
        outcome = receive_answer(connection, answer);
    }
    close(connection);
    return outcome;
}

/* Each master of this host is asked once, until one answers. */
static enum outcome ask(const char *sockets, struct string data, struct answer *answer) {
    int silence = strchr(sockets, ',') ? SILENCE : 0;
    enum outcome outcome = BROKEN;
    for (const char *path = sockets, *end; path && outcome == BROKEN; path = *end ? end + 1 : NULL) {
        end = strchrnul(path, ',');
        outcome = exchange(path, (size_t)(end - path), silence, data, answer);
    }
    return outcome;
}

static void record_all(int record, struct string data) {
    if (write_whole(record, data))
        return;
    dprintf(STDERR_FILENO, "hpcmesos: cannot keep what is sent: %s\n", strerror(errno));
    _exit(UNREACHABLE);
}

static void record_answer(int record, const struct answer *answer) {
    char status[8];
    int size = snprintf(status, sizeof status, "\n%d ", answer->status);
    record_all(record, (struct string){status, (size_t)size});
    record_all(record, answer->body);
}

/* `record` then holds the request as it was sent, and in its next line the status and the body of an answer that Python
 * has to read. */
static enum outcome run(const struct settings *settings, struct text *text, int record, struct reply *reply) {
    struct string data = with_head(text, settings->command);
    struct answer answer = {0};
    if (text->odd || ftruncate(record, 0) || lseek(record, 0, SEEK_SET))
        return ODD;
    record_all(record, (struct string){text->data + HTTP_HEAD, text->used - HTTP_HEAD});
    enum outcome outcome = ask(settings->sockets, data, &answer);
    if (outcome != UNDERSTOOD)
        return outcome;
    int known = answer.status == 200 && take_reply(answer.body, reply);
    if (!known || reply->wants_input || reply->wants_variables)
        record_answer(record, &answer);
    return known ? UNDERSTOOD : ODD;
}

/* Asks, and asks again with the script of standard input, and with all variables, where the API wants them. */
static enum outcome converse(const struct settings *settings, char **arguments, int record, struct reply *reply) {
    static struct text text;
    static struct script script;
    static const char input[] = "-";
    char key[KEY_TEXT];
    int everything = 0;
    if (!make_key(key) || !find_script(settings, arguments, &script))
        return ODD;
    for (;;) {
        write_request(&text, settings, arguments, key, everything, &script);
        enum outcome outcome = run(settings, &text, record, reply);
        if (outcome != UNDERSTOOD || !(reply->wants_input || reply->wants_variables))
            return outcome;
        if (reply->wants_variables && everything++)
            return ODD;
        if (reply->wants_input && script.path == input)
            return ODD;
        if (reply->wants_input && !read_script(STDIN_FILENO, input, &script)) {
            dprintf(STDERR_FILENO, "%s: script file -: %s\n", settings->command, strerror(errno));
            _exit(CANNOT_READ); /* what was read already is nowhere else */
        }
    }
}

/* --- the end */

/* A reader that has seen enough (`qstat | head`) ends us silently. */
static int print(const char *command, const struct reply *reply) {
    signal(SIGPIPE, SIG_DFL);
    if (write_whole(STDOUT_FILENO, unescaped(reply->output)) && write_whole(STDERR_FILENO, unescaped(reply->errors)))
        return reply->code;
    dprintf(STDERR_FILENO, "%s: cannot write the answer: %s\n", command, strerror(errno));
    return CANNOT_WRITE;
}

/* The command goes on as if its first line had named Python. `record`: -1 or empty: nothing was sent. */
static int become_python(const char *python, int argc, char **argv, int record) {
    char **words = calloc((size_t)argc + 2, sizeof *words), number[16];
    int begun = record >= 0 && lseek(record, 0, SEEK_END) > 0;
    snprintf(number, sizeof number, "%d", record);
    errno = ENOEXEC;
    if (words && python && (!begun || setenv(BEGUN, number, 1) == 0)) {
        if (begun)
            fcntl(record, F_SETFD, 0);
        words[0] = (char *)python;
        words[1] = "-IS";
        memcpy(words + 2, argv + 1, sizeof *words * (size_t)(argc - 1));
        execv(python, words);
    }
    dprintf(STDERR_FILENO, "%s: %s: %s\n", argv[1], python ? python : "its interpreter", strerror(errno));
    return NO_PYTHON;
}

int main(int argc, char **argv) {
    struct reply reply;
    int record = -1;
    if (argc < 2)
        return 0; /* so it is asked whether it runs on this machine */
    unsetenv(BEGUN); /* it is for one command */
    struct settings settings = settings_of(argv[1]);
    if (ordinary(&settings) && (record = memfd_create("command", MFD_CLOEXEC)) >= 0 &&
        converse(&settings, argv + 2, record, &reply) == UNDERSTOOD)
        return print(settings.command, &reply);
    return become_python(settings.python, argc, argv, record);
}
