/* The commands that users type, where nothing is unusual: `stub FILE ARGS...`.
 *
 * FILE is the command itself, a Python program whose first line names this one (commands_dir.py). What qstub.py says of
 * requests and answers holds here. This one knows plain ASCII, scripts, and answers that only have to be printed; in
 * every other case it becomes Python, which goes on with the request that was sent and the answer, if there is one: so
 * the key is the same, and nothing is done twice.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64 /* scripts are where users have them */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <unistd.h>

#define BEGUN "HPCMESOS_BEGUN_COMMAND" /* of qstub.py */

enum { LARGEST_HEAD = 16 * 1024, LARGEST_ANSWER = 1000 * 1000 * 1000 };
enum { LARGEST_SCRIPT = 1024 * 1024 + 1 };                             /* with the byte that is too much */
enum { LARGEST_WORDS = 256 * 1024, LARGEST_REQUEST = 2 * 1024 * 1024 }; /* a script has room behind the words */
enum { HTTP_HEAD = 512, KEY_BYTES = 16 };
enum { SILENCE = 20 }; /* seconds without a byte after which another master is asked, where there is one */
enum { CANNOT_READ = 1, CANNOT_WRITE = 1, NO_PYTHON = 127, UNREACHABLE = 255 };

struct settings { /* the first lines of FILE; NULL: what should stand there does not */
    char *python, *command, *sockets, *personality, *submit_filter;
};

struct text {
    size_t used;
    int odd; /* too much, or something for which Python is needed */
    char data[LARGEST_REQUEST + 1];
};

struct string { /* a zero byte may be in it */
    char *data;
    size_t size;
};

struct script {
    const char *path; /* NULL: there is none */
    size_t size;
    unsigned char data[LARGEST_SCRIPT];
};

struct answer {
    int status;
    struct string body;
};

struct reply {
    struct string output, errors;           /* escaped, as they came */
    int code, wants_input, wants_variables; /* the script, from standard input; all that there are */
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

static int submits(const struct settings *settings) {
    return strcmp(settings->command, "qsub") == 0 || strcmp(settings->command, "msub") == 0;
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

/* --- the request */

static void add(struct text *text, const char *part) {
    size_t size = strlen(part);
    if (size > LARGEST_REQUEST - text->used) {
        text->odd = 1;
        return;
    }
    memcpy(text->data + text->used, part, size + 1);
    text->used += size;
}

static void add_quoted(struct text *text, const char *part) {
    add(text, "\"");
    for (const unsigned char *at = (const unsigned char *)part; *at && !text->odd; at++) {
        char piece[8] = {(char)*at};
        if (*at == '"' || *at == '\\')
            snprintf(piece, sizeof piece, "\\%c", *at);
        else if (*at < 0x20)
            snprintf(piece, sizeof piece, "\\u%04x", *at);
        else if (*at >= 0x80)
            text->odd = 1; /* bytes that may be no text have rules of their own */
        add(text, piece);
    }
    add(text, "\"");
}

/* An element of what was begun with a bracket. */
static void add_element(struct text *text, const char *value) {
    char last = text->data[text->used - 1];
    add(text, last == '{' || last == '[' ? "" : ",");
    add_quoted(text, value);
}

static void add_member(struct text *text, const char *name, const char *value) {
    add_element(text, name);
    add(text, ":");
    add_quoted(text, value);
}

static void add_base64(struct text *text, const unsigned char *data, size_t size) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        unsigned second = i + 1 < size ? data[i + 1] : 0, third = i + 2 < size ? data[i + 2] : 0;
        unsigned bits = (unsigned)data[i] << 16 | second << 8 | third;
        char piece[5] = {digits[bits >> 18], digits[bits >> 12 & 63], '=', '='};
        if (i + 1 < size)
            piece[2] = digits[bits >> 6 & 63];
        if (i + 2 < size)
            piece[3] = digits[bits & 63];
        add(text, piece);
    }
}

/* Of a name that is there twice the first one counts. `size`: of the name with its equals sign. */
static int was_told(char **one, size_t size) {
    for (char **each = environ; each < one; each++)
        if (strncmp(*each, *one, size) == 0)
            return 1;
    return 0;
}

static void add_environment(struct text *text, int everything) {
    static const char *const names[] = {"HOME", "LOGNAME", "PATH", "MAIL", "SHELL", "TZ", "LANG"};
    add(text, ",\"environ\":{");
    for (size_t i = 0; !everything && i < sizeof names / sizeof *names; i++)
        if (getenv(names[i]))
            add_member(text, names[i], getenv(names[i]));
    for (char **one = environ, *value; everything && *one; one++) {
        if ((value = strchr(*one, '=')) == NULL || was_told(one, (size_t)(value - *one + 1)))
            continue;
        *value = 0;
        add_member(text, *one, value + 1);
        *value = '=';
    }
    add(text, "}");
}

static int make_key(char *key) {
    unsigned char bytes[KEY_BYTES];
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
        return 0;
    for (int i = 0; i < KEY_BYTES; i++)
        snprintf(key + 2 * i, 3, "%02x", bytes[i]);
    return 1;
}

/* PWD when it is true (it keeps the links by which the user came here), else the kernel's answer. */
static const char *working_directory(void) {
    const char *logical = getenv("PWD"), *physical;
    struct stat there, here;
    if (logical && *logical == '/') {
        if (stat(logical, &there) || stat(".", &here))
            return "/";
        if (there.st_dev == here.st_dev && there.st_ino == here.st_ino)
            return logical;
    }
    physical = getcwd(NULL, 0);
    return physical ? physical : "/";
}

static void add_request(struct text *text, const struct settings *settings, char **arguments, const char *key,
                        int everything) {
    struct utsname host;
    char number[32];
    mode_t mask = umask(077);
    umask(mask);
    snprintf(number, sizeof number, "{\"umask\":%u", (unsigned)mask);
    add(text, number);
    add_member(text, "cwd", working_directory());
    add_member(text, "host", uname(&host) ? "" : host.nodename);
    add_member(text, "key", key);
    add_member(text, "personality", settings->personality);
    add_environment(text, everything);
    add(text, ",\"argv\":[");
    for (char **one = arguments; *one; one++)
        add_element(text, *one);
    add(text, "]");
    if (text->used > LARGEST_WORDS)
        text->odd = 1;
}

static void add_script(struct text *text, const struct script *script) {
    if (script->path == NULL)
        return;
    add(text, ",\"script\":\"");
    add_base64(text, script->data, script->size);
    add(text, "\"");
    add_member(text, "script_path", script->path);
}

/* The head is put before the body, whose size it tells. */
static struct string with_head(struct text *text, const char *command) {
    char head[HTTP_HEAD];
    int size = snprintf(head, sizeof head,
                        "POST /v1/commands/%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                        "Content-Length: %zu\r\nConnection: close\r\n\r\n",
                        command, text->used - HTTP_HEAD);
    if (size >= HTTP_HEAD)
        text->odd = 1;
    if (text->odd)
        return (struct string){0};
    char *start = text->data + HTTP_HEAD - size;
    memcpy(start, head, (size_t)size);
    return (struct string){start, text->used - HTTP_HEAD + (size_t)size};
}

/* Whether all of it could be read; what is not there yet is waited for. */
static int read_script(int fd, const char *path, struct script *script) {
    struct pollfd more = {.fd = fd, .events = POLLIN};
    ssize_t got;
    script->path = path;
    script->size = 0;
    while ((got = read(fd, script->data + script->size, sizeof script->data - script->size)) != 0) {
        if (got > 0)
            script->size += (size_t)got;
        else if (errno == EAGAIN)
            poll(&more, 1, -1);
        else if (errno != EINTR)
            return 0;
    }
    return 1;
}

/* A regular file at the end of the words is sent unasked. */
static int find_script(const struct settings *settings, char **arguments, struct script *script) {
    struct stat status;
    int fd, whole = 1;
    if (!submits(settings) || *arguments == NULL)
        return 1;
    while (arguments[1])
        arguments++;
    if (**arguments == '-' || (fd = open(*arguments, O_RDONLY | O_NONBLOCK | O_CLOEXEC)) < 0)
        return 1;
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode))
        whole = read_script(fd, *arguments, script);
    close(fd);
    return whole;
}

/* --- the answer
 *
 * It is read as the API writes it: without blanks, and with \u only for what ASCII cannot show. Each `take` tells
 * whether it understands what it finds, and then goes on behind it; none passes the zero byte at the end.
 */

#define WANTS_VARIABLES "\"need\":{\"script\":null,\"terminal\":null,\"environ\":[\"*\"],\"filter\":false}"
#define WANTS_INPUT "\"need\":{\"script\":\"-\",\"terminal\":null,\"environ\":null,\"filter\":false}"

static int take(char **at, const char *word) {
    size_t size = strlen(word);
    if (strncmp(*at, word, size))
        return 0;
    *at += size;
    return 1;
}

static int take_escaped(char **at, char *found) {
    static const char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t", hex[] = "0123456789abcdef";
    int upper = take(at, "\\u001"), numbered = upper || take(at, "\\u000");
    const char *from = numbered ? hex : letters, *place;
    if (!numbered)
        take(at, "\\");
    if (**at == 0 || (place = strchr(from, **at)) == NULL)
        return 0;
    *found = numbered ? (char)(upper << 4 | (place - from)) : meant[place - from];
    ++*at;
    return 1;
}

static int take_string(char **at, struct string *found) {
    char escaped;
    if (!take(at, "\""))
        return 0;
    found->data = *at;
    while (**at != '"') {
        if ((unsigned char)**at < 0x20)
            return 0;
        if (**at != '\\')
            ++*at;
        else if (!take_escaped(at, &escaped))
            return 0;
    }
    found->size = (size_t)(*at - found->data);
    return take(at, "\"");
}

static int take_code(char **at, int *code) {
    int digits = 0;
    for (*code = 0; isdigit((unsigned char)**at) && digits < 3; digits++)
        *code = *code * 10 + *(*at)++ - '0';
    return digits && *code < 256;
}

static int take_member(char **at, struct reply *reply) {
    if (take(at, "\"stdout\":"))
        return take_string(at, &reply->output);
    if (take(at, "\"stderr\":"))
        return take_string(at, &reply->errors);
    if (take(at, "\"code\":"))
        return take_code(at, &reply->code);
    if (take(at, WANTS_INPUT))
        return reply->wants_input = 1;
    if (take(at, WANTS_VARIABLES))
        return reply->wants_variables = 1;
    return take(at, "\"need\":null") || take(at, "\"then\":null");
}

static int take_reply(struct string body, struct reply *reply) {
    char *at = body.data;
    *reply = (struct reply){0};
    if (!take(&at, "{"))
        return 0;
    do
        if (!take_member(&at, reply))
            return 0;
    while (take(&at, ","));
    return take(&at, "}") && at == body.data + body.size;
}

/* Of a string that was understood, where it stands, for it becomes no longer. */
static struct string unescaped(struct string string) {
    char *to = string.data;
    for (char *at = string.data, *end = at + string.size; at < end; to++)
        if (*at != '\\')
            *to = *at++;
        else
            take_escaped(&at, to);
    return (struct string){string.data, (size_t)(to - string.data)};
}

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
    char key[2 * KEY_BYTES + 1];
    int everything = 0;
    if (!make_key(key) || !find_script(settings, arguments, &script))
        return ODD;
    for (;;) {
        text.used = HTTP_HEAD;
        add_request(&text, settings, arguments, key, everything);
        add_script(&text, &script);
        add(&text, "}");
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
