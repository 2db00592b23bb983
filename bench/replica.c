/* An engine that costs next to nothing, in vLLM's place:
 *
 *     replica --port P [--host H] [--idle S] [anything else]
 *
 * GET /health, /v1/models, /metrics; POST …/completions answers as the prompt in it commands:
 *     size N           a plain answer of N bytes (700 without)
 *     rate R count C   with "stream": C events, R a second; R = 0: at once
 * All streams of one rate send their event at the same moments, those of other replicas on this machine too, as the
 * requests of one batch do. Connections that are idle for S seconds are closed, as uvicorn does. One process, one thread.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

enum { MOST_RATES = 16, MOST_REQUEST = 1 << 20 };
#define SECOND 1000000000LL

struct buffer {
    char *data;
    size_t size, room;
};

struct connection {
    int fd;
    struct buffer in, out;
    size_t sent;
    bool full; /* the socket takes no more for now */
    int rate; /* index into rates, -1 while no stream is under way */
    long left, number;
    struct connection *next, *previous; /* of the same rate */
    struct connection *older, *younger; /* of all */
    int64_t since; /* it has been idle */
};

struct rate {
    long per_second;
    int timer;
    struct connection *first;
};

static int poller;
static struct rate rates[MOST_RATES];
static int rate_count;
static struct connection *youngest;
static int64_t most_idle; /* nanoseconds, 0 for ever */
static long running, answered;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static char *grow(struct buffer *buffer, size_t more) {
    while (buffer->size + more > buffer->room) {
        buffer->room = buffer->room ? 2 * buffer->room : 4096;
        buffer->data = realloc(buffer->data, buffer->room);
        if (buffer->data == NULL) fail("realloc");
    }
    return buffer->data + buffer->size;
}

static void append(struct buffer *buffer, const char *data, size_t size) {
    memcpy(grow(buffer, size), data, size);
    buffer->size += size;
}

static void watch(struct connection *connection, bool writing, int how) {
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = connection};
    if (epoll_ctl(poller, how, connection->fd, &event) < 0) fail("epoll_ctl");
}

/* Returns false when the client is gone. */
static bool flush(struct connection *connection) {
    struct buffer *out = &connection->out;
    while (connection->sent < out->size) {
        ssize_t count = send(connection->fd, out->data + connection->sent, out->size - connection->sent, MSG_NOSIGNAL);
        if (count < 0 && errno != EAGAIN) return false;
        if (count < 0) {
            if (!connection->full) watch(connection, true, EPOLL_CTL_MOD);
            return connection->full = true;
        }
        connection->sent += (size_t)count;
    }
    if (connection->full) watch(connection, false, EPOLL_CTL_MOD);
    connection->full = false;
    out->size = connection->sent = 0;
    return true;
}

static void leave(struct connection *connection) {
    if (connection->rate < 0) return;
    if (connection->previous) connection->previous->next = connection->next;
    else rates[connection->rate].first = connection->next;
    if (connection->next) connection->next->previous = connection->previous;
    connection->rate = -1;
    running--;
}

static void drop(struct connection *connection) {
    leave(connection);
    if (connection->younger) connection->younger->older = connection->older;
    else youngest = connection->older;
    if (connection->older) connection->older->younger = connection->younger;
    close(connection->fd);
    free(connection->in.data);
    free(connection->out.data);
    free(connection);
}

static void arm(struct rate *rate, bool on) {
    int64_t step = SECOND / rate->per_second, next = (now() / step + 1) * step; /* the same moments in all processes */
    struct itimerspec when = {{0, 0}, {0, 0}};
    if (on) {
        when.it_interval = (struct timespec){step / SECOND, step % SECOND};
        when.it_value = (struct timespec){next / SECOND, next % SECOND};
    }
    if (timerfd_settime(rate->timer, TFD_TIMER_ABSTIME, &when, NULL) < 0) fail("timerfd_settime");
}

static int rate_of(long per_second) {
    for (int i = 0; i < rate_count; i++)
        if (rates[i].per_second == per_second) return i;
    if (rate_count == MOST_RATES) {
        fprintf(stderr, "replica: more than %d different rates\n", MOST_RATES);
        exit(1);
    }
    struct rate *rate = &rates[rate_count];
    rate->per_second = per_second;
    rate->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = rate};
    if (rate->timer < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, rate->timer, &event) < 0) fail("timerfd");
    return rate_count++;
}

static void add_event(struct connection *connection) {
    char *begin = grow(&connection->out, EVENT_SIZE + 16);
    int size = sprintf(begin, "%zx\r\n%s%0*lld#%0*ld%s\r\n", EVENT_SIZE, EVENT_HEAD, STAMP_DIGITS, (long long)now(),
                       COUNT_DIGITS, connection->number++, EVENT_TAIL);
    connection->out.size += (size_t)size;
    connection->left--;
}

static void add_end(struct connection *connection) {
    char *begin = grow(&connection->out, sizeof STREAM_END + 32);
    int size = sprintf(begin, "%zx\r\n%s\r\n0\r\n\r\n", sizeof STREAM_END - 1, STREAM_END);
    connection->out.size += (size_t)size;
    answered++;
}

static void tick(struct rate *rate) {
    uint64_t times;
    if (read(rate->timer, &times, sizeof times) < 0) return;
    for (struct connection *connection = rate->first, *next; connection; connection = next) {
        next = connection->next;
        add_event(connection);
        if (connection->left <= 0) {
            leave(connection);
            add_end(connection);
        }
        if (!flush(connection)) drop(connection);
    }
    if (rate->first == NULL) arm(rate, false);
}

static void begin_stream(struct connection *connection, long per_second, long count) {
    static const char head[] =
        "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        "transfer-encoding: chunked\r\n\r\n";
    append(&connection->out, head, sizeof head - 1);
    connection->left = count;
    connection->number = 0;
    if (per_second == 0) {
        while (connection->left > 0) add_event(connection);
        add_end(connection);
        return;
    }
    connection->rate = rate_of(per_second);
    struct rate *rate = &rates[connection->rate];
    if (rate->first == NULL) arm(rate, true);
    else rate->first->previous = connection;
    connection->next = rate->first;
    connection->previous = NULL;
    rate->first = connection;
    running++;
}

static void answer(struct connection *connection, const char *status, const char *kind, const char *body, size_t size) {
    char *head = grow(&connection->out, 256 + size);
    int length = sprintf(head, "HTTP/1.1 %s\r\nserver: uvicorn\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n", status,
                         kind, size);
    connection->out.size += (size_t)length;
    append(&connection->out, body, size);
}

static void answer_plain(struct connection *connection, long size) {
    const size_t fixed = sizeof PLAIN_HEAD - 1 + sizeof PLAIN_TAIL - 1;
    size_t whole = (size_t)size < fixed ? fixed : (size_t)size;
    char *body = malloc(whole), *place = body;
    if (body == NULL) fail("malloc");
    memcpy(place, PLAIN_HEAD, sizeof PLAIN_HEAD - 1);
    place += sizeof PLAIN_HEAD - 1;
    for (size_t i = 0; i < whole - fixed; i++) *place++ = filling((long)i);
    memcpy(place, PLAIN_TAIL, sizeof PLAIN_TAIL - 1);
    answer(connection, "200 OK", "application/json", body, whole);
    free(body);
    answered++;
}

static void complete(struct connection *connection, const char *body) {
    long per_second = 0, count = 1, size = PLAIN_SIZE;
    const char *stream = strstr(body, "\"stream\""), *told;
    if (stream) stream += strspn(stream + 8, ": ") + 8;
    if ((told = strstr(body, "rate "))) sscanf(told, "rate %ld count %ld", &per_second, &count);
    if ((told = strstr(body, "size "))) sscanf(told, "size %ld", &size);
    if (stream && strncmp(stream, "true", 4) == 0) begin_stream(connection, per_second, count);
    else answer_plain(connection, size);
}

static void say(struct connection *connection, const char *request, const char *body) {
    static const char models[] =
        "{\"object\":\"list\",\"data\":[{\"id\":\"" MODEL "\",\"object\":\"model\",\"created\":1795274373,"
        "\"owned_by\":\"vllm\",\"root\":\"" MODEL "\",\"parent\":null,\"max_model_len\":2048}]}";
    char numbers[300];
    if (strncmp(request, "POST ", 5) == 0 && strstr(request, "/completions ")) complete(connection, body);
    else if (strncmp(request, "GET /health", 11) == 0) answer(connection, "200 OK", "text/plain", "", 0);
    else if (strncmp(request, "GET /v1/models", 14) == 0)
        answer(connection, "200 OK", "application/json", models, sizeof models - 1);
    else if (strncmp(request, "GET /metrics", 12) == 0) {
        int size = sprintf(numbers, "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running %ld.0\n"
                           "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting 0.0\n"
                           "# TYPE vllm:request_success_total counter\nvllm:request_success_total %ld.0\n", running, answered);
        answer(connection, "200 OK", "text/plain; version=0.0.4; charset=utf-8", numbers, (size_t)size);
    } else answer(connection, "404 Not Found", "application/json", "{\"detail\":\"Not Found\"}", 22);
}

/* Takes one whole request off the front of what has come. Returns false when there is none yet. */
static bool take(struct connection *connection) {
    struct buffer *in = &connection->in;
    *grow(in, 1) = 0;
    char *end = in->size ? strstr(in->data, "\r\n\r\n") : NULL;
    if (end == NULL || connection->rate >= 0) return false;
    *end = 0;
    char *length = strcasestr(in->data, "\r\ncontent-length:");
    bool chunked = strcasestr(in->data, "\r\ntransfer-encoding:") != NULL;
    *end = '\r';
    char *body = end + 4, *after;
    if (chunked) { /* only looked at for what it commands, so its framing does no harm */
        after = strstr(body, "\r\n0\r\n\r\n");
        if (after == NULL) return false;
        after += 7;
    } else {
        after = body + (length ? strtol(length + 17, NULL, 10) : 0);
        if (after > in->data + in->size) return false;
    }
    char kept = *after, *line = strstr(in->data, "\r\n");
    *after = 0;
    *line = 0;
    say(connection, in->data, body);
    *after = kept;
    in->size -= (size_t)(after - in->data);
    memmove(in->data, after, in->size);
    return true;
}

static void receive(struct connection *connection) {
    char *place = grow(&connection->in, 65536);
    ssize_t count = recv(connection->fd, place, 65536, 0);
    if (count <= 0) {
        if (count == 0 || errno != EAGAIN) drop(connection);
        return;
    }
    connection->in.size += (size_t)count;
    connection->since = now();
    while (take(connection)) continue;
    if (connection->in.size > MOST_REQUEST || !flush(connection)) drop(connection);
}

static void greet(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
    if (fd < 0) return;
    struct connection *connection = calloc(1, sizeof *connection);
    if (connection == NULL) fail("calloc");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    connection->fd = fd;
    connection->rate = -1;
    connection->since = now();
    connection->older = youngest;
    if (youngest) youngest->younger = connection;
    youngest = connection;
    watch(connection, false, EPOLL_CTL_ADD);
}

static void sweep(void) {
    for (struct connection *connection = youngest, *older; connection; connection = older) {
        older = connection->older;
        if (connection->rate >= 0 || connection->out.size) connection->since = now();
        else if (now() - connection->since > most_idle) drop(connection);
    }
}

static int listening(const char *host, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) fail("--host");
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 4096) < 0) fail("bind");
    return fd;
}

int main(int argc, char **argv) {
    const char *host = "127.0.0.1";
    int port = 0;
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--host") == 0) host = argv[i + 1];
        if (strcmp(argv[i], "--port") == 0) port = atoi(argv[i + 1]);
        if (strcmp(argv[i], "--idle") == 0) most_idle = atol(argv[i + 1]) * SECOND;
    }
    if (port == 0) {
        fprintf(stderr, "replica: --port is missing\n");
        return 2;
    }
    poller = epoll_create1(EPOLL_CLOEXEC);
    int listener = listening(host, port);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listener}, events[256];
    if (epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event) < 0) fail("epoll_ctl");
    for (;;) {
        int count = epoll_wait(poller, events, 256, most_idle ? 1000 : -1);
        bool ticked = false;
        for (int i = 0; i < count; i++) {
            void *what = events[i].data.ptr;
            if (what == &listener) greet(listener);
            else if (what >= (void *)rates && what < (void *)(rates + MOST_RATES)) ticked = true;
            else if (events[i].events & (EPOLLERR | EPOLLHUP)) drop(what);
            else if (events[i].events & EPOLLOUT) {
                if (!flush(what)) drop(what);
            } else receive(what);
        }
        /* Last, because it may drop connections that stand in `events`. */
        for (int i = 0; ticked && i < rate_count; i++) tick(&rates[i]);
        if (most_idle) sweep();
    }
}
