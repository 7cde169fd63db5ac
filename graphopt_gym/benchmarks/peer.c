/* The engine's step as a plain event loop with binary heaps: what `graphopt bench simulator` holds the engine against.
 *
 * Written from the words of graphopt_gym/simulator/engine.py, not from its code. It is compiled where it is used, and
 * returns the same numbers to the last bit.
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { FIFO, PRIORITY, STREAM };

/* A heap of ITEMs in an array; BEFORE(a, b) says whether *a comes before *b. */
#define HEAP(NAME, ITEM, BEFORE)                                                                                       \
    static inline void NAME##_push(ITEM *heap, int64_t *size, ITEM item)                                               \
    {                                                                                                                  \
        int64_t at = (*size)++;                                                                                        \
        while (at > 0) {                                                                                               \
            int64_t parent = (at - 1) / 2;                                                                             \
            if (!BEFORE(&item, &heap[parent]))                                                                         \
                break;                                                                                                 \
            heap[at] = heap[parent];                                                                                   \
            at = parent;                                                                                               \
        }                                                                                                              \
        heap[at] = item;                                                                                               \
    }                                                                                                                  \
    static inline ITEM NAME##_pop(ITEM *heap, int64_t *size)                                                           \
    {                                                                                                                  \
        ITEM top = heap[0];                                                                                            \
        int64_t count = --*size, at = 0;                                                                               \
        ITEM last = heap[count];                                                                                       \
        for (;;) {                                                                                                     \
            int64_t child = 2 * at + 1;                                                                                \
            if (child >= count)                                                                                        \
                break;                                                                                                 \
            if (child + 1 < count && BEFORE(&heap[child + 1], &heap[child]))                                           \
                child++;                                                                                               \
            if (!BEFORE(&heap[child], &last))                                                                          \
                break;                                                                                                 \
            heap[at] = heap[child];                                                                                    \
            at = child;                                                                                                \
        }                                                                                                              \
        heap[at] = last;                                                                                               \
        return top;                                                                                                    \
    }

typedef struct {
    double priority, ready;
    int32_t task;
} Ready; /* a task that waits for its device */

static inline bool ready_before(const Ready *a, const Ready *b)
{
    if (a->priority != b->priority)
        return a->priority > b->priority;
    if (a->ready != b->ready)
        return a->ready < b->ready;
    return a->task < b->task;
}

typedef struct {
    double request;
    int32_t tensor, target, first; /* first: of the readers there, a position in `reader` */
} Transfer;

static inline bool transfer_before(const Transfer *a, const Transfer *b)
{
    if (a->request != b->request)
        return a->request < b->request;
    if (a->tensor != b->tensor)
        return a->tensor < b->tensor;
    return a->target < b->target;
}

typedef struct {
    double time;
    int32_t who; /* a device, or a link as -1 - link */
} Event;

static inline bool event_before(const Event *a, const Event *b)
{
    return a->time < b->time;
}

HEAP(ready, Ready, ready_before)
HEAP(transfer, Transfer, transfer_before)
HEAP(event, Event, event_before)

typedef struct {
    Transfer *heap;
    int64_t size, room;
} Queue; /* of a link */

typedef struct {
    int64_t num_tasks, num_tensors, num_storages, num_reads, num_devices, num_links;
    const int32_t *device_type, *link_of;
    const double *link_latency_s, *link_bytes_per_s, *durations;
    const int32_t *sequence;
    const uint8_t *is_source;
    const int64_t *persistent_bytes;
    const int32_t *storage_ptr;
    const int64_t *storage_bytes;
    const int32_t *tensor_ptr;
    const int64_t *tensor_bytes;
    const int32_t *tensor_storage, *tensor_task, *reader_ptr, *reader, *input_ptr, *input_tensor, *read_of_input;
    const double *transfer_s;
} Problem; /* the columns of TaskGraph; read_of_input: where `reader` has what `input_tensor` says */

typedef struct {
    const Problem *p;
    const int32_t *placement;
    const double *priority;
    int order;
    double now;
    int32_t *waiting;      /* [tasks] inputs that are not there yet */
    Ready *ready;          /* [tasks] the heap of each device, one after the other */
    int32_t *stream;       /* [tasks] or, in a stream, the tasks of each device in captured order */
    int64_t *begin, *size; /* [devices + 1], [devices]: of these; in a stream: how many are started */
    int32_t *running;      /* [devices] a task, or -1 */
    Queue *queue;          /* [links] */
    Transfer *carried;     /* [links] */
    bool *carrying;        /* [links] */
    bool *device_listed, *link_listed;
    int32_t *devices, *links; /* those that may have something to start */
    int64_t num_devices, num_links;
    int64_t *memory;       /* [devices] */
    int32_t *storage_left; /* [storages] readers and transfers that hold it */
    int32_t *copy_of;      /* [reads] the first reader of the copy that it reads; -1: it reads the tensor itself */
    int32_t *copy_left;    /* [reads] readers that hold the copy */
    int32_t *next_reader;  /* [reads] of the same copy, or -1 */
    int32_t *sent, *last;  /* [devices] the tensor that was last sent there, and its last reader */
} State;

static inline void list_device(State *s, int32_t device)
{
    if (s->running[device] < 0 && !s->device_listed[device]) {
        s->device_listed[device] = true;
        s->devices[s->num_devices++] = device;
    }
}

static inline void list_link(State *s, int32_t link)
{
    if (!s->carrying[link] && !s->link_listed[link]) {
        s->link_listed[link] = true;
        s->links[s->num_links++] = link;
    }
}

static inline void has_input(State *s, int32_t task, int32_t device)
{
    if (--s->waiting[task] > 0)
        return;
    if (s->order != STREAM) {
        Ready item = {s->order == PRIORITY ? s->priority[task] : 0.0, s->now, task};
        ready_push(s->ready + s->begin[device], &s->size[device], item);
    }
    list_device(s, device);
}

static inline void let_go(State *s, int32_t storage, int32_t device)
{
    if (--s->storage_left[storage] == 0)
        s->memory[device] -= s->p->storage_bytes[storage];
}

static bool send(State *s, int32_t tensor, int32_t first, int32_t home, int32_t target)
{
    int32_t link = s->p->link_of[home * s->p->num_devices + target];
    Queue *queue = &s->queue[link];
    if (queue->size == queue->room) {
        int64_t room = queue->room ? 2 * queue->room : 16;
        Transfer *heap = realloc(queue->heap, room * sizeof *heap);
        if (!heap)
            return false;
        queue->heap = heap;
        queue->room = room;
    }
    transfer_push(queue->heap, &queue->size, (Transfer){s->now, tensor, target, first});
    list_link(s, link);
    return true;
}

static bool task_finishes(State *s, int32_t task)
{
    const Problem *p = s->p;
    int32_t home = s->placement[task];
    for (int32_t at = p->input_ptr[task]; at < p->input_ptr[task + 1]; at++) { /* let go of what it read */
        int32_t tensor = p->input_tensor[at], copy = s->copy_of[p->read_of_input[at]];
        if (copy < 0)
            let_go(s, p->tensor_storage[tensor], home);
        else if (--s->copy_left[copy] == 0)
            s->memory[home] -= p->tensor_bytes[tensor];
    }
    for (int32_t tensor = p->tensor_ptr[task]; tensor < p->tensor_ptr[task + 1]; tensor++) { /* hand out what it made */
        int32_t storage = p->tensor_storage[tensor];
        for (int32_t read = p->reader_ptr[tensor]; read < p->reader_ptr[tensor + 1]; read++) {
            int32_t target = s->placement[p->reader[read]];
            if (target == home) {
                s->copy_of[read] = -1;
                s->storage_left[storage]++;
                has_input(s, p->reader[read], home);
                continue;
            }
            s->next_reader[read] = -1;
            if (s->sent[target] == tensor) {
                s->copy_of[read] = s->copy_of[s->last[target]];
                s->copy_left[s->copy_of[read]]++;
                s->next_reader[s->last[target]] = read;
            } else {
                s->copy_of[read] = read;
                s->copy_left[read] = 1;
                s->storage_left[storage]++;
                s->sent[target] = tensor;
                if (!send(s, tensor, read, home, target))
                    return false;
            }
            s->last[target] = read;
        }
    }
    for (int32_t storage = p->storage_ptr[task]; storage < p->storage_ptr[task + 1]; storage++)
        if (s->storage_left[storage] == 0) /* nobody reads it */
            s->memory[home] -= p->storage_bytes[storage];
    return true;
}

static void transfer_finishes(State *s, const Transfer *transfer)
{
    const Problem *p = s->p;
    let_go(s, p->tensor_storage[transfer->tensor], s->placement[p->tensor_task[transfer->tensor]]);
    for (int32_t read = transfer->first; read >= 0; read = s->next_reader[read])
        has_input(s, p->reader[read], transfer->target);
}

/* The next task of a device, or -1. */
static inline int32_t next_task(State *s, int32_t device)
{
    if (s->order == STREAM) {
        int64_t at = s->begin[device] + s->size[device];
        if (at == s->begin[device + 1] || s->waiting[s->stream[at]] > 0)
            return -1;
        s->size[device]++;
        return s->stream[at];
    }
    if (s->size[device] == 0)
        return -1;
    return ready_pop(s->ready + s->begin[device], &s->size[device]).task;
}

/* Returns how many tasks finished; -1 where memory ran out. */
int64_t run(const Problem *p, int order, const int32_t *placement, const double *priority, double *makespan,
            int64_t *peak_bytes, double *peak_time_s, double *busy_s)
{
    int64_t devices = p->num_devices, links = p->num_links, tasks = p->num_tasks, done = 0, num_events = 0;
    State state = {
        .p = p, .placement = placement, .priority = priority, .order = order,
        .waiting = malloc((tasks + 1) * sizeof(int32_t)),
        .ready = malloc((order == STREAM ? 1 : tasks + 1) * sizeof(Ready)),
        .stream = malloc((order == STREAM ? tasks + 1 : 1) * sizeof(int32_t)),
        .begin = calloc(devices + 1, sizeof(int64_t)),
        .size = calloc(devices, sizeof(int64_t)),
        .running = malloc(devices * sizeof(int32_t)),
        .queue = calloc(links + 1, sizeof(Queue)),
        .carried = malloc((links + 1) * sizeof(Transfer)),
        .carrying = calloc(links + 1, sizeof(bool)),
        .device_listed = calloc(devices, sizeof(bool)),
        .link_listed = calloc(links + 1, sizeof(bool)),
        .devices = malloc(devices * sizeof(int32_t)),
        .links = malloc((links + 1) * sizeof(int32_t)),
        .memory = calloc(devices, sizeof(int64_t)),
        .storage_left = calloc(p->num_storages + 1, sizeof(int32_t)),
        .copy_of = malloc((p->num_reads + 1) * sizeof(int32_t)),
        .copy_left = malloc((p->num_reads + 1) * sizeof(int32_t)),
        .next_reader = malloc((p->num_reads + 1) * sizeof(int32_t)),
        .sent = malloc(devices * sizeof(int32_t)),
        .last = malloc(devices * sizeof(int32_t)),
    };
    State *s = &state;
    Event *events = malloc((devices + links + 1) * sizeof(Event));
    bool enough = s->waiting && s->ready && s->stream && s->begin && s->size && s->running && s->queue && s->carried &&
                  s->carrying && s->device_listed && s->link_listed && s->devices && s->links && s->memory &&
                  s->storage_left && s->copy_of && s->copy_left && s->next_reader && s->sent && s->last && events;
    if (!enough)
        goto end;

    *makespan = 0.0;
    memset(peak_time_s, 0, devices * sizeof *peak_time_s);
    memset(busy_s, 0, devices * sizeof *busy_s);
    memset(s->running, -1, devices * sizeof *s->running);
    memset(s->sent, -1, devices * sizeof *s->sent);
    for (int32_t task = 0; task < tasks; task++) {
        s->begin[placement[task] + 1]++;
        s->memory[placement[task]] += p->persistent_bytes[task];
        s->waiting[task] = p->input_ptr[task + 1] - p->input_ptr[task];
    }
    for (int64_t device = 0; device < devices; device++)
        s->begin[device + 1] += s->begin[device];
    if (order == STREAM) {
        for (int64_t at = 0; at < tasks; at++) {
            int32_t task = p->sequence[at], device = placement[task];
            if (!p->is_source[task])
                s->stream[s->begin[device] + s->size[device]++] = task;
        }
        for (int64_t device = 0; device < devices; device++) { /* less sources: the end is marked by a task that waits */
            if (s->begin[device] + s->size[device] < s->begin[device + 1]) {
                s->stream[s->begin[device] + s->size[device]] = tasks;
                s->waiting[tasks] = 1;
            }
            s->size[device] = 0;
        }
    }
    for (int32_t task = 0; task < tasks; task++) {
        if (p->is_source[task]) {
            for (int32_t storage = p->storage_ptr[task]; storage < p->storage_ptr[task + 1]; storage++)
                s->memory[placement[task]] += p->storage_bytes[storage];
            done++;
            if (!task_finishes(s, task)) {
                enough = false;
                goto end;
            }
        } else if (p->input_ptr[task] == p->input_ptr[task + 1]) {
            s->waiting[task] = 1;
            has_input(s, task, placement[task]);
        }
    }
    memcpy(peak_bytes, s->memory, devices * sizeof *peak_bytes);

    for (;;) {
        while (s->num_devices > 0) { /* start what can start */
            int32_t device = s->devices[--s->num_devices], task = next_task(s, device);
            s->device_listed[device] = false;
            if (task < 0)
                continue;
            double takes = p->durations[p->device_type[device] * tasks + task], ends = s->now + takes;
            s->running[device] = task;
            busy_s[device] += takes;
            if (ends > *makespan)
                *makespan = ends;
            for (int32_t storage = p->storage_ptr[task]; storage < p->storage_ptr[task + 1]; storage++)
                s->memory[device] += p->storage_bytes[storage];
            if (s->memory[device] > peak_bytes[device]) {
                peak_bytes[device] = s->memory[device];
                peak_time_s[device] = s->now;
            }
            event_push(events, &num_events, (Event){ends, device});
        }
        while (s->num_links > 0) {
            int32_t link = s->links[--s->num_links];
            s->link_listed[link] = false;
            if (s->queue[link].size == 0)
                continue;
            Transfer transfer = transfer_pop(s->queue[link].heap, &s->queue[link].size);
            double takes = p->transfer_s[transfer.tensor];
            if (takes < 0)
                takes = p->link_latency_s[link] + p->tensor_bytes[transfer.tensor] / p->link_bytes_per_s[link];
            s->carried[link] = transfer;
            s->carrying[link] = true;
            s->memory[transfer.target] += p->tensor_bytes[transfer.tensor];
            if (s->memory[transfer.target] > peak_bytes[transfer.target]) {
                peak_bytes[transfer.target] = s->memory[transfer.target];
                peak_time_s[transfer.target] = s->now;
            }
            event_push(events, &num_events, (Event){s->now + takes, -1 - link});
        }
        if (num_events == 0)
            break;
        s->now = events[0].time;
        while (num_events > 0 && events[0].time == s->now) { /* take in all that finishes at this instant */
            int32_t who = event_pop(events, &num_events).who;
            if (who >= 0) {
                int32_t task = s->running[who];
                s->running[who] = -1;
                list_device(s, who);
                done++;
                if (!task_finishes(s, task)) {
                    enough = false;
                    goto end;
                }
            } else {
                int32_t link = -1 - who;
                s->carrying[link] = false;
                list_link(s, link);
                transfer_finishes(s, &s->carried[link]);
            }
        }
    }

end:
    for (int64_t link = 0; s->queue && link < links; link++)
        free(s->queue[link].heap);
    free(s->waiting);
    free(s->ready);
    free(s->stream);
    free(s->begin);
    free(s->size);
    free(s->running);
    free(s->queue);
    free(s->carried);
    free(s->carrying);
    free(s->device_listed);
    free(s->link_listed);
    free(s->devices);
    free(s->links);
    free(s->memory);
    free(s->storage_left);
    free(s->copy_of);
    free(s->copy_left);
    free(s->next_reader);
    free(s->sent);
    free(s->last);
    free(events);
    return enough ? done : -1;
}
