/* Asks the same question again and again, over connections that are kept, and looks at every byte of the answers.
 *
 *     driver plain|stream --to HOST:PORT|PATH --body FILE [options]
 *
 *     --connections N    at once (1)
 *     --warm S           seconds before the window that is measured (0)
 *     --seconds S        the window (1)
 *     --requests N       plain: stop after N instead; stream: of each connection (1)
 *     --count N          stream: events of each answer
 *     --size N           plain: bytes of each answer (700)
 *     --header LINE      may be given several times
 *     --loose            the answer may be written anew by what is in between: only its mark is looked for, or its numbers
 *     --limit S          give up after so many seconds (120)
 *
 * Writes "begin" and "end" at the borders of the window, so that others can look at their watches too, and a line of
 * JSON at last. Times are microseconds. The latency of an event is from the stamp that its sender wrote into it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

#define SECOND 1000000000LL
enum { READ = 1 << 16, MOST_HEAD = 1 << 15, MOST_ERRORS = 200 };

struct samples {
    double *values;
    size_t size, room;
};

enum phase { HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER };

struct connection {
    int fd;
    enum phase phase;
    bool busy, chunked, closes, marked, started, wrong;
    char head[MOST_HEAD];
    size_t head_size;
    long left;       /* of the body, or of the chunk */
    long got;        /* bytes of the content */
    long events;     /* of this answer */
    long answers;
    char line[32];   /* a chunk's size */
    size_t line_size;
    char *event;     /* content that is no whole event yet */
    size_t event_size, event_room;
    int64_t asked;
};

static struct {
    bool stream, loose;
    long connections, requests, count, size;
    double warm, seconds, limit;
    const char *to;
} options = {.connections = 1, .seconds = 1, .limit = 120, .size = PLAIN_SIZE, .count = 1};

static char headers[8192], *question;
static size_t question_size;
static int poller;
static struct connection *connections;
static long open_connections, finished, window_answers, window_events, errors, reconnects;
static bool window, over;
static int64_t window_begin, window_end;
static struct samples latencies, firsts;
static char first_error[300];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void sample(struct samples *samples, int64_t nanoseconds) {
    if (samples->size == samples->room) {
        samples->room = samples->room ? 2 * samples->room : 4096;
        samples->values = realloc(samples->values, samples->room * sizeof(double));
        if (samples->values == NULL) fail("realloc");
    }
    samples->values[samples->size++] = (double)nanoseconds / 1000;
}

__attribute__((format(printf, 1, 2))) static void error(const char *format, ...) {
    if (errors++ == 0) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(first_error, sizeof first_error, format, arguments);
        va_end(arguments);
        for (char *c = first_error; *c; c++)
            if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ' || (unsigned char)*c > '~') *c = '.';
    }
    if (errors > MOST_ERRORS) over = true;
}

/* Connections */

static int reach(const char *to) {
    const char *colon = strrchr(to, ':');
    int fd, on = 1;
    if (colon) {
        char host[64] = "";
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(colon + 1))};
        memcpy(host, to, (size_t)(colon - to) < sizeof host ? (size_t)(colon - to) : sizeof host - 1);
        if (inet_pton(AF_INET, host, &address.sin_addr) != 1) fail("--to");
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) fail(to);
    } else {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strncpy(address.sun_path, to, sizeof address.sun_path - 1);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) fail(to);
    }
    return fd;
}

static void open_one(struct connection *connection) {
    connection->fd = reach(options.to);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, connection->fd, &event) < 0) fail("epoll_ctl");
    open_connections++;
}

static void close_one(struct connection *connection) {
    close(connection->fd);
    connection->fd = -1;
    connection->busy = false;
    open_connections--;
}

static void ask(struct connection *connection) {
    connection->phase = HEAD;
    connection->busy = true;
    connection->head_size = connection->event_size = connection->line_size = 0;
    connection->got = connection->events = 0;
    connection->marked = connection->chunked = connection->closes = connection->started = connection->wrong = false;
    connection->asked = now();
    /* Blocking, and all of it: the question is small. */
    if (send(connection->fd, question, question_size, MSG_NOSIGNAL) != (ssize_t)question_size) {
        error("cannot send: %s", strerror(errno));
        close_one(connection);
    }
}

static bool wanted(const struct connection *connection) {
    if (over) return false;
    if (options.requests) return connection->answers < options.requests;
    return !options.stream;
}

static void answered(struct connection *connection) {
    int64_t time = now();
    connection->busy = false;
    connection->answers++;
    finished++;
    if (window) {
        window_answers++;
        if (!options.stream) sample(&latencies, time - connection->asked);
    }
    if (!options.stream && !connection->marked && !connection->wrong) error("the answer is not the replica's");
    if (!options.stream && !options.loose && !connection->wrong && connection->got != options.size)
        error("%ld bytes instead of %ld", connection->got, options.size);
    if (options.stream && connection->events != options.count)
        error("%ld events instead of %ld", connection->events, options.count);
    if (options.stream && !connection->marked) error("the stream has no [DONE]");
    if (connection->closes) {
        close_one(connection);
        if (!wanted(connection)) return;
        reconnects++;
        open_one(connection);
    }
    if (wanted(connection)) ask(connection);
    else close_one(connection);
}

/* What is in an answer */

static void take_plain(struct connection *connection, const char *data, size_t size) {
    static const char mark[] = PLAIN_HEAD;
    const long tail = options.size - (long)(sizeof PLAIN_TAIL - 1), head = sizeof mark - 1;
    if (options.loose) {
        /* The filling's beginning, wherever it stands, in one piece: these answers are small. */
        if (memmem(data, size, "@Wir sehen", 10)) connection->marked = true;
        connection->got += (long)size;
        return;
    }
    for (size_t i = 0; i < size; i++) {
        long place = connection->got++;
        char expected = place < head ? mark[place] : place < tail ? filling(place - head) : 0;
        if (place >= tail && place < options.size) expected = PLAIN_TAIL[place - tail];
        if (data[i] != expected) {
            if (!connection->wrong) error("byte %ld is %d instead of %d", place, data[i], expected);
            connection->wrong = true;
            return;
        }
    }
    connection->marked = true;
}

static void take_stamp(struct connection *connection, const char *at) {
    char *end;
    int64_t stamp = strtoll(at, &end, 10), time = now();
    long number = *end == '#' ? strtol(end + 1, NULL, 10) : -1;
    if (number != connection->events) error("event %ld came instead of %ld", number, connection->events);
    if (!connection->started) {
        connection->started = true;
        if (window) sample(&firsts, time - connection->asked);
    }
    connection->events++;
    if (window) {
        window_events++;
        sample(&latencies, time - stamp);
    }
}

static void take_event(struct connection *connection, const char *event, size_t size) {
    const size_t head = sizeof EVENT_HEAD - 1, tail = sizeof EVENT_TAIL - 1;
    if (options.loose) {
        const char *stamp = memmem(event, size, "\"@", 2);
        if (stamp) take_stamp(connection, stamp + 2);
        if (memmem(event, size, "[DONE]", 6)) connection->marked = true;
    } else if (connection->events < options.count) {
        if (size != EVENT_SIZE || memcmp(event, EVENT_HEAD, head) != 0 ||
            memcmp(event + size - tail, EVENT_TAIL, tail) != 0)
            error("event %ld is not what was sent: %.*s", connection->events, (int)size, event);
        else take_stamp(connection, event + head);
    } else {
        const char *end = strstr(STREAM_END, "data: [DONE]");
        if (size == strlen(end) && memcmp(event, end, size) == 0) connection->marked = true;
        else if (size != (size_t)(end - STREAM_END) || memcmp(event, STREAM_END, size) != 0)
            error("the stream's end is not what was sent: %.*s", (int)size, event);
    }
}

/* Cuts the content of a stream into events. */
static void take_events(struct connection *connection, const char *data, size_t size) {
    while (connection->event_size + size > connection->event_room) {
        connection->event_room = connection->event_room ? 2 * connection->event_room : 4096;
        connection->event = realloc(connection->event, connection->event_room);
        if (connection->event == NULL) fail("realloc");
    }
    memcpy(connection->event + connection->event_size, data, size);
    connection->event_size += size;
    char *begin = connection->event, *end;
    size_t left = connection->event_size;
    while ((end = memmem(begin, left, "\n\n", 2)) != NULL) {
        take_event(connection, begin, (size_t)(end + 2 - begin));
        left -= (size_t)(end + 2 - begin);
        begin = end + 2;
    }
    memmove(connection->event, begin, left);
    connection->event_size = left;
}

static void take_content(struct connection *connection, const char *data, size_t size) {
    if (options.stream) take_events(connection, data, size);
    else take_plain(connection, data, size);
}

/* HTTP */

static void take_head(struct connection *connection) {
    char *head = connection->head, *length;
    if (strncmp(head, "HTTP/1.1 200", 12) != 0) error("answered %.60s", head);
    connection->closes = strcasestr(head, "\r\nconnection: close") != NULL;
    connection->chunked = strcasestr(head, "\r\ntransfer-encoding: chunked") != NULL;
    length = strcasestr(head, "\r\ncontent-length:");
    connection->left = length ? strtol(length + 17, NULL, 10) : 0;
    connection->phase = connection->chunked ? CHUNK_SIZE : BODY;
    if (!connection->chunked && length == NULL) error("an answer without a length");
}

/* Each takes from data what it can, and returns how many bytes that was. */
static size_t step(struct connection *connection, const char *data, size_t size) {
    size_t count = 0;
    switch (connection->phase) {
    case HEAD: {
        size_t before = connection->head_size, room = MOST_HEAD - 1 - before;
        memcpy(connection->head + before, data, size < room ? size : room);
        connection->head[before + (size < room ? size : room)] = 0;
        char *end = strstr(connection->head + (before > 3 ? before - 3 : 0), "\r\n\r\n");
        if (end == NULL) {
            connection->head_size += size < room ? size : room;
            return size;
        }
        count = (size_t)(end + 4 - connection->head) - before;
        end[2] = 0;
        take_head(connection);
        if (connection->phase == BODY && connection->left == 0) answered(connection);
        return count;
    }
    case BODY:
    case CHUNK:
        count = size < (size_t)connection->left ? size : (size_t)connection->left;
        take_content(connection, data, count);
        connection->left -= (long)count;
        if (connection->left == 0) {
            if (connection->phase == CHUNK) connection->phase = CHUNK_END;
            else answered(connection);
        }
        return count;
    case CHUNK_SIZE:
    case TRAILER:
    case CHUNK_END:
        while (count < size) {
            char byte = data[count++];
            if (byte != '\n') {
                if (byte != '\r' && connection->line_size < sizeof connection->line - 1)
                    connection->line[connection->line_size++] = byte;
                continue;
            }
            connection->line[connection->line_size] = 0;
            if (connection->phase == CHUNK_END) connection->phase = CHUNK_SIZE;
            else if (connection->phase == TRAILER) {
                if (connection->line_size == 0) answered(connection);
            } else {
                connection->left = strtol(connection->line, NULL, 16);
                connection->phase = connection->left ? CHUNK : TRAILER;
            }
            connection->line_size = 0;
            break;
        }
        return count;
    }
    return size;
}

static void receive(struct connection *connection) {
    static char data[READ];
    ssize_t count = recv(connection->fd, data, sizeof data, MSG_DONTWAIT);
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) {
        if (connection->busy) error("the connection ended within an answer (%s)", count ? strerror(errno) : "closed");
        close_one(connection);
        return;
    }
    for (size_t at = 0; at < (size_t)count;) {
        if (connection->fd < 0 || !connection->busy) {
            error("more came than was asked for");
            return;
        }
        at += step(connection, data + at, (size_t)count - at);
    }
}

/* The window */

static void open_window(void) {
    window = true;
    window_begin = now();
    puts("begin");
    fflush(stdout);
}

static void close_window(void) {
    window = false;
    window_end = now();
    puts("end");
    fflush(stdout);
    if (!options.stream) over = true;
}

static int timer_in(double seconds) {
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    int64_t after = (int64_t)(seconds * 1e9) + 1;
    struct itimerspec when = {.it_value = {after / SECOND, after % SECOND}};
    if (timer < 0 || timerfd_settime(timer, 0, &when, NULL) < 0) fail("timerfd");
    return timer;
}

static void watch(int fd, void *what) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll_ctl");
}

static void run(void) {
    int begin = timer_in(options.warm), end = -1, limit = timer_in(options.limit);
    struct epoll_event events[256];
    if (options.requests && options.warm == 0) open_window();
    else watch(begin, &begin);
    watch(limit, &limit);
    for (long i = 0; i < options.connections; i++) ask(&connections[i]);
    while (open_connections > 0) {
        int count = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < count; i++) {
            void *what = events[i].data.ptr;
            if (what == &begin) {
                open_window();
                epoll_ctl(poller, EPOLL_CTL_DEL, begin, NULL);
                if (options.seconds > 0) watch(end = timer_in(options.seconds), &end);
            } else if (what == &end) {
                close_window();
                epoll_ctl(poller, EPOLL_CTL_DEL, end, NULL);
            } else if (what == &limit) {
                error("%ld answers were not complete after %g s", open_connections, options.limit);
                return;
            } else if (((struct connection *)what)->fd >= 0) receive(what);
        }
    }
    if (window) close_window();
}

/* The report */

static int compare(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static void report(const char *name, struct samples *samples) {
    size_t size = samples->size;
    if (size == 0) return;
    qsort(samples->values, size, sizeof(double), compare);
    printf(", \"%s\": {\"n\": %zu, \"p50\": %.2f, \"p99\": %.2f, \"max\": %.2f}", name, size,
           samples->values[size / 2], samples->values[size * 99 / 100], samples->values[size - 1]);
}

/* Options */

static void read_question(const char *file) {
    static char body[65536];
    FILE *from = fopen(file, "rb");
    if (from == NULL) fail(file);
    size_t size = fread(body, 1, sizeof body, from);
    fclose(from);
    question = malloc(size + sizeof headers + 512);
    if (question == NULL) fail("malloc");
    int head = sprintf(question, "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: */*\r\n"
                       "content-type: application/json\r\n%scontent-length: %zu\r\n\r\n", headers, size);
    memcpy(question + head, body, size);
    question_size = (size_t)head + size;
}

static void option(const char *name, const char *value) {
    if (strcmp(name, "--to") == 0) options.to = value;
    else if (strcmp(name, "--connections") == 0) options.connections = atol(value);
    else if (strcmp(name, "--warm") == 0) options.warm = atof(value);
    else if (strcmp(name, "--seconds") == 0) options.seconds = atof(value);
    else if (strcmp(name, "--requests") == 0) options.requests = atol(value);
    else if (strcmp(name, "--count") == 0) options.count = atol(value);
    else if (strcmp(name, "--size") == 0) options.size = atol(value);
    else if (strcmp(name, "--limit") == 0) options.limit = atof(value);
    else if (strcmp(name, "--header") == 0) {
        strncat(headers, value, sizeof headers - strlen(headers) - 3);
        strcat(headers, "\r\n");
    } else if (strcmp(name, "--body") != 0) {
        fprintf(stderr, "driver: there is no option %s\n", name);
        exit(2);
    }
}

static void read_options(int argc, char **argv) {
    const char *body = NULL;
    if (argc < 2) exit(2);
    options.stream = strcmp(argv[1], "stream") == 0;
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--loose") == 0) {
            options.loose = true;
            continue;
        }
        if (i + 1 == argc) exit(2);
        if (strcmp(argv[i], "--body") == 0) body = argv[i + 1];
        option(argv[i], argv[i + 1]);
        i++;
    }
    if (options.stream && options.requests == 0) options.requests = 1;
    if (options.to == NULL || body == NULL) {
        fprintf(stderr, "driver: --to and --body are needed\n");
        exit(2);
    }
    read_question(body);
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    poller = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc((size_t)options.connections, sizeof *connections);
    if (connections == NULL) fail("calloc");
    for (long i = 0; i < options.connections; i++) open_one(&connections[i]);
    run();
    double seconds = (double)((window_end ? window_end : now()) - window_begin) / 1e9;
    printf("{\"answers\": %ld, \"window_answers\": %ld, \"window_events\": %ld, \"seconds\": %.6f, \"errors\": %ld, "
           "\"reconnects\": %ld, \"first_error\": \"%s\"", finished, window_answers, window_events, seconds, errors,
           reconnects, first_error);
    report("latency", &latencies);
    report("first", &firsts);
    puts("}");
    return errors ? 1 : 0;
}
