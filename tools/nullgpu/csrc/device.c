/* The devices: their memory, what is launched on them, and what the host waits for. No kernel runs. */
#define _GNU_SOURCE
#include "null.h"
#include <cuda.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MAX_RANGES 65536
#define MAX_KERNELS 4096
#define MAX_DEVICES 64
#define MAX_VALUES 64

Counters null_counters;
__thread int null_device = 0;
__thread char null_last_fault[256] = "";
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static double setting(const char* name, double otherwise) {
    const char* text = getenv(name);
    return text && *text ? atof(text) : otherwise;
}

int null_device_count(void) { return (int)setting("NULLGPU_COUNT", 1); }
size_t null_total_memory(void) { return (size_t)(setting("NULLGPU_MEMORY_GIB", 79.2) * (1ul << 30)); }
const char* null_device_name(void) {
    const char* name = getenv("NULLGPU_NAME");
    return name ? name : "NVIDIA H100 80GB HBM3";
}

int null_fault(int error, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(null_last_fault, sizeof null_last_fault, format, arguments);
    va_end(arguments);
    __sync_fetch_and_add(&null_counters.faults, 1);
    char line[320];
    int length = snprintf(line, sizeof line, "null GPU: process %d: %s\n", getpid(), null_last_fault);
    const char* path = getenv("NULLGPU_FAULTS"); /* one write per line: several processes append */
    int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644) : dup(2);
    if (file >= 0) {
        if (write(file, line, length) != length) perror("NULLGPU_FAULTS");
        close(file);
    }
    return error;
}

int null_without_effect(const char* name) {
    if (getenv("NULLGPU_LOG")) fprintf(stderr, "null GPU: %s has no effect\n", name);
    return OK;
}

int null_attribute(int attribute) {
    static const int values[] = {
        [CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK] = 1024,
        [CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X] = 1024,
        [CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y] = 1024,
        [CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z] = 64,
        [CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X] = 2147483647,
        [CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y] = 65535,
        [CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z] = 65535,
        [CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK] = 49152,
        [CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY] = 65536,
        [CU_DEVICE_ATTRIBUTE_WARP_SIZE] = 32,
        [CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK] = 65536,
        [CU_DEVICE_ATTRIBUTE_CLOCK_RATE] = 1980000,
        [CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT] = 512,
        [CU_DEVICE_ATTRIBUTE_GPU_OVERLAP] = 1,
        [CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT] = 132,
        [CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY] = 1,
        [CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS] = 1,
        [CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE] = 2619000,
        [CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH] = 5120,
        [CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE] = 52428800,
        [CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR] = 2048,
        [CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT] = 3,
        [CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING] = 1,
        [CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR] = 9,
        [CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR] = 0,
        [CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED] = 1,
        [CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR] = 233472,
        [CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR] = 65536,
        [CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY] = 1,
        [CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH] = 1,
        [CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN] = 232448,
        [CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED] = 1,
        [CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR] = 32,
        [CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK] = 1024,
        [CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED] = 1,
    };
    return attribute >= 0 && attribute < (int)(sizeof values / sizeof *values) ? values[attribute] : 0;
}

/* ---- memory ---- */

typedef struct {
    char* base; /* NULL: a free entry */
    size_t bytes;
    int kind, device;
    int is_part; /* of an expandable segment: an allocation may extend into the next part */
} Range;
static Range ranges[MAX_RANGES];
static int num_ranges = 0;
static size_t used[MAX_DEVICES];

static Range* range_of(const void* pointer) {
    const char* p = pointer;
    for (int i = 0; i < num_ranges; i++)
        if (ranges[i].base && p >= ranges[i].base && p < ranges[i].base + ranges[i].bytes) return &ranges[i];
    return NULL;
}

static uint64_t* bytes_of(int kind) { return kind == DEVICE ? &null_counters.device_bytes : &null_counters.pinned_bytes; }

void null_note(void* pointer, size_t bytes, int kind, int is_part) {
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < num_ranges && ranges[i].base) i++;
    if (i == MAX_RANGES) abort();
    if (i == num_ranges) num_ranges++;
    ranges[i] = (Range){pointer, bytes, kind, null_device, is_part};
    *bytes_of(kind) += bytes;
    if (kind == DEVICE) used[null_device] += bytes;
    pthread_mutex_unlock(&lock);
}

size_t null_forget(void* pointer) {
    size_t bytes = 0;
    pthread_mutex_lock(&lock);
    Range* range = range_of(pointer);
    if (range && range->base == pointer) {
        bytes = range->bytes;
        *bytes_of(range->kind) -= bytes;
        if (range->kind == DEVICE) used[range->device] -= bytes;
        range->base = NULL;
    }
    pthread_mutex_unlock(&lock);
    return bytes;
}

static int map(void** pointer, size_t bytes, int kind) {
    int access = kind == DEVICE ? PROT_NONE : PROT_READ | PROT_WRITE;
    *pointer = mmap(NULL, bytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*pointer == MAP_FAILED) {
        *pointer = NULL;
        return NO_MEMORY;
    }
    null_note(*pointer, bytes, kind, 0);
    return OK;
}

int null_reserve(void** pointer, size_t bytes) {
    bytes = ((bytes ? bytes : 1) + 511) / 512 * 512; /* the alignment of cudaMalloc */
    *pointer = NULL;
    if (used[null_device] + bytes > null_total_memory()) return NO_MEMORY;
    return map(pointer, bytes, DEVICE);
}

int null_pin(void** pointer, size_t bytes) { return map(pointer, bytes ? bytes : 1, PINNED); }

int null_release(void* pointer, int kind) {
    if (!pointer) return OK;
    size_t bytes = null_forget(pointer);
    if (!bytes) return null_fault(BAD_VALUE, "%p is freed, but was not allocated", pointer);
    munmap(pointer, bytes);
    return OK;
}

int null_kind(const void* pointer, int* device) {
    pthread_mutex_lock(&lock);
    Range* range = range_of(pointer);
    int kind = range ? range->kind : HOST;
    if (device) *device = kind == DEVICE ? range->device : -1;
    pthread_mutex_unlock(&lock);
    return kind;
}

int null_check(const void* pointer, size_t bytes, const char* what) {
    const char* end = (const char*)pointer + bytes;
    pthread_mutex_lock(&lock);
    Range* range = range_of(pointer);
    Range found = range ? *range : (Range){0};
    const char* reached = found.base + found.bytes;
    while (found.is_part && reached < end && (range = range_of(reached)) && range->is_part)
        reached = range->base + range->bytes;
    pthread_mutex_unlock(&lock);
    if (found.kind != DEVICE) return null_fault(BAD_VALUE, "%s is a host pointer, not one of the device", what);
    if (found.device != null_device)
        return null_fault(BAD_VALUE, "%s is memory of device %d, but device %d is current", what, found.device, null_device);
    if (reached < end) return null_fault(BAD_VALUE, "%s: %zu bytes go beyond the end of the allocation", what, bytes);
    return OK;
}

/* ---- small values that the host has copied to a device since the last launch ---- */

typedef struct {
    const char* place;
    size_t bytes;
    char* values;
} Known;
static Known known[MAX_VALUES];
static int num_known = 0; /* in the order in which they were copied */

static void forget_oldest(int count) {
    for (int i = 0; i < count; i++) free(known[i].values);
    num_known -= count;
    memmove(known, known + count, num_known * sizeof *known);
}

void null_put(void* target, const void* values, size_t bytes) {
    if (!bytes || bytes > NULL_SMALL) return;
    pthread_mutex_lock(&lock);
    if (num_known == MAX_VALUES) forget_oldest(1);
    char* copy = malloc(bytes);
    memcpy(copy, values, bytes);
    known[num_known++] = (Known){target, bytes, copy};
    pthread_mutex_unlock(&lock);
}

void null_get(void* target, const void* source, size_t bytes) {
    const char *start = source, *end = start + bytes;
    memset(target, 0, bytes);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_known; i++) { /* later copies replace earlier ones */
        const char *from = known[i].place, *to = from + known[i].bytes;
        const char *first = from > start ? from : start, *last = to < end ? to : end;
        if (first < last) memcpy((char*)target + (first - start), known[i].values + (first - from), last - first);
    }
    pthread_mutex_unlock(&lock);
}

/* ---- streams, events and what the host waits for ---- */

static Stream default_streams[MAX_DEVICES];

Stream* null_stream(void* handle) {
    if ((uintptr_t)handle > 2) return handle; /* 1 and 2 are the default stream too: legacy and per thread */
    default_streams[null_device].device = null_device;
    return &default_streams[null_device];
}

void* null_make_stream(void) {
    Stream* stream = calloc(1, sizeof *stream);
    stream->device = null_device;
    __sync_fetch_and_add(&null_counters.streams, 1);
    return stream;
}

void* null_make_event(void) {
    __sync_fetch_and_add(&null_counters.events, 1);
    return calloc(1, sizeof(Event));
}

void null_drop(void* handle, uint64_t* counter) {
    free(handle);
    __sync_fetch_and_sub(counter, 1);
}

int null_record(Event* event, void* stream) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->milliseconds = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
    event->stuck = null_stream(stream)->stuck;
    return OK;
}

int null_wait(const char* what, int stuck) {
    __sync_fetch_and_add(&null_counters.synchronizations, 1);
    while (stuck) sleep(1);
    if (null_counters.forbids_waiting) return null_fault(FORBIDDEN, "the host waits for the device in %s", what);
    return OK;
}

/* ---- launches ---- */

static struct {
    const void* function;
    int bytes;
} allowed[MAX_KERNELS];
static int num_allowed = 0;

void null_allow_shared(const void* function, int bytes) {
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < num_allowed && allowed[i].function != function) i++;
    if (i == MAX_KERNELS) abort();
    if (i == num_allowed) num_allowed++;
    allowed[i].function = function;
    allowed[i].bytes = bytes;
    pthread_mutex_unlock(&lock);
}

static size_t allowed_shared(const void* function) {
    size_t bytes = null_attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK);
    for (int i = 0; i < num_allowed; i++)
        if (allowed[i].function == function && (size_t)allowed[i].bytes > bytes) bytes = allowed[i].bytes;
    return bytes;
}

int null_launch(const char* name, const void* function, Size grid, Size block, size_t shared, void* stream) {
    __sync_fetch_and_add(&null_counters.launches, 1);
    pthread_mutex_lock(&lock);
    forget_oldest(num_known);
    size_t most = allowed_shared(function);
    pthread_mutex_unlock(&lock);
    int fits = grid.x && grid.y && grid.z && grid.x <= 2147483647u && grid.y <= 65535 && grid.z <= 65535 && block.x &&
               block.y && block.z && block.z <= 64 && (uint64_t)block.x * block.y * block.z <= 1024 && shared <= most;
    if (!fits)
        return null_fault(BAD_LAUNCH, "invalid launch of %s: grid %u %u %u, block %u %u %u, shared memory %zu of %zu", name,
                          grid.x, grid.y, grid.z, block.x, block.y, block.z, shared, most);
    int device = null_stream(stream)->device;
    if (device != null_device)
        return null_fault(BAD_HANDLE, "%s is launched on a stream of device %d, but device %d is current", name, device,
                          null_device);
    return OK;
}
