/* What the API answers to a command.
 *
 * It is read as the API writes it: without blanks, and with \u only for what ASCII cannot show. Each `take` tells
 * whether it understands what it finds, and then goes on behind it; none passes the zero byte at the end.
 */
#include "stub.h"

#include <ctype.h>
#include <string.h>

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

int take_reply(struct string body, struct reply *reply) {
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

struct string unescaped(struct string string) {
    char *to = string.data;
    for (char *at = string.data, *end = at + string.size; at < end; to++)
        if (*at != '\\')
            *to = *at++;
        else
            take_escaped(&at, to);
    return (struct string){string.data, (size_t)(to - string.data)};
}
