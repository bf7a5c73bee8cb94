/* The request of a command: its words, where and how it was typed, and a script. */
#include "stub.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

enum { LARGEST_WORDS = 256 * 1024, KEY_BYTES = (KEY_TEXT - 1) / 2 }; /* a script has room behind the words */

int submits(const struct settings *settings) {
    return strcmp(settings->command, "qsub") == 0 || strcmp(settings->command, "msub") == 0;
}

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

int make_key(char *key) {
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

static void add_words(struct text *text, const struct settings *settings, char **arguments, const char *key,
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

void write_request(struct text *text, const struct settings *settings, char **arguments, const char *key, int everything,
                   const struct script *script) {
    text->used = HTTP_HEAD;
    add_words(text, settings, arguments, key, everything);
    add_script(text, script);
    add(text, "}");
}

struct string with_head(struct text *text, const char *command) {
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

int read_script(int fd, const char *path, struct script *script) {
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

int find_script(const struct settings *settings, char **arguments, struct script *script) {
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
