/* What replica.c says and driver.c expects: the two must agree to the byte, so that a wrong byte in between is seen. */

#define MODEL "bench"
#define STAMP_DIGITS 19 /* nanoseconds of CLOCK_MONOTONIC, the same clock for all processes of a machine */
#define COUNT_DIGITS 6

/* An event: head, stamp, '#', number, tail. 206 bytes, about what vLLM sends for a token. */
#define EVENT_HEAD \
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1795274373,\"model\":\"" MODEL \
    "\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"@"
#define EVENT_TAIL " \"},\"logprobs\":null,\"finish_reason\":null}]}\n\n"
#define EVENT_SIZE (sizeof EVENT_HEAD - 1 + STAMP_DIGITS + 1 + COUNT_DIGITS + sizeof EVENT_TAIL - 1)

#define STREAM_END \
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1795274373,\"model\":\"" MODEL \
    "\",\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"

/* A plain answer: head, filling up to the size that was asked for, tail. */
#define PLAIN_HEAD \
    "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1795274373,\"model\":\"" MODEL \
    "\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"@"
#define PLAIN_TAIL \
    "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}]," \
    "\"usage\":{\"prompt_tokens\":9,\"total_tokens\":109,\"completion_tokens\":100}}"
#define PLAIN_SIZE 700
#define FILLING "Wir sehen in die Ferne und zaehlen. " /* ASCII without anything that JSON would escape */

static inline char filling(long place) { return FILLING[place % (long)(sizeof FILLING - 1)]; }
