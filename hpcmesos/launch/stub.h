/* What the parts of the stub have in common: stub_request.c makes what is sent, stub_reply.c reads what is answered. */
#ifndef HPCMESOS_STUB_H
#define HPCMESOS_STUB_H

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64 /* scripts are where users have them */
#include <stddef.h>

enum { LARGEST_SCRIPT = 1024 * 1024 + 1, LARGEST_REQUEST = 2 * 1024 * 1024 }; /* with the byte that is too much */
enum { HTTP_HEAD = 512, KEY_TEXT = 33 };

struct settings { /* the first lines of FILE; NULL: what should stand there does not */
    char *python, *command, *sockets, *personality, *submit_filter;
};

struct text { /* a request; the first HTTP_HEAD bytes are for its head */
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

struct reply {
    struct string output, errors;           /* escaped, as they came */
    int code, wants_input, wants_variables; /* the script, from standard input; all that there are */
};

/* Whether the command sends a script. */
int submits(const struct settings *settings);

/* A new one, as text; whether there is one. `key` has room for KEY_TEXT. */
int make_key(char *key);

/* Whether all of it could be read; what is not there yet is waited for. `path`: what the API is told. */
int read_script(int fd, const char *path, struct script *script);

/* A regular file at the end of the words is sent unasked; whether all of it could be read. */
int find_script(const struct settings *settings, char **arguments, struct script *script);

/* The body, behind the room for its head; `everything`: with all variables. */
void write_request(struct text *text, const struct settings *settings, char **arguments, const char *key, int everything,
                   const struct script *script);

/* The whole request: its head is put before the body, whose size it tells. */
struct string with_head(struct text *text, const char *command);

/* Whether all of it is understood. */
int take_reply(struct string body, struct reply *reply);

/* Of a string that was understood, where it stands, for it becomes no longer. */
struct string unescaped(struct string string);

#endif
