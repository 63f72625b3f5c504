/* What the stub libraries share: devices, their memory, and the faults that they find. */
#ifndef NULL_H
#define NULL_H
#include <stddef.h>
#include <stdint.h>

/* `Counters` of counters.py has the same fields. */
typedef struct {
    uint64_t launches;         /* kernels, and operations of cuBLAS and cuDNN */
    uint64_t synchronizations; /* calls in which the host waits for the device */
    uint64_t pageable_copies;  /* asynchronous copies from or to host memory that is not pinned: the host waits too */
    uint64_t device_bytes;     /* reserved on all devices of this process */
    uint64_t pinned_bytes;
    uint64_t streams;
    uint64_t events;
    uint64_t modules;
    uint64_t collectives;
    uint64_t attention_plans; /* that cuDNN has built */
    uint64_t faults;
    uint64_t forbids_waiting; /* set from outside: a wait of the host is a fault now */
} Counters;
extern Counters null_counters;

typedef struct {
    int device;
    int stuck; /* behind a collective that never ends */
} Stream;
typedef struct {
    double milliseconds; /* when it was recorded; 0 before */
    int stuck;
} Event;

enum { OK = 0, BAD_VALUE = 1, NO_MEMORY = 2, BAD_LAUNCH = 9, BAD_DEVICE = 101, BAD_HANDLE = 400, NOT_READY = 600,
       FORBIDDEN = 800 };
enum { HOST = 0, PINNED = 1, DEVICE = 2 }; /* kinds of memory, as in cudaMemoryType */

extern __thread int null_device; /* the current one */
int null_device_count(void);
size_t null_total_memory(void);
int null_attribute(int attribute); /* a CUdevice_attribute of an H100 */
const char* null_device_name(void);

/* Reports a fault and returns `error`; `null_last_fault` keeps the text for messages of this thread. */
int null_fault(int error, const char* format, ...) __attribute__((format(printf, 2, 3)));
extern __thread char null_last_fault[256];
/* What is called for each function of a library that has no code here. */
int null_without_effect(const char* name);

int null_reserve(void** pointer, size_t bytes); /* device memory: address space that nobody can read or write */
int null_pin(void** pointer, size_t bytes);
void null_note(void* pointer, size_t bytes, int kind, int is_part); /* memory that is reserved elsewhere */
size_t null_forget(void* pointer); /* returns its bytes, 0 if it is not known */
int null_release(void* pointer, int kind);
int null_kind(const void* pointer, int* device); /* HOST, PINNED or DEVICE, and whose it is */
/* OK if `bytes` from here on are memory of the current device. */
int null_check(const void* pointer, size_t bytes, const char* what);

/* Values on a device are zero, but for what was copied there since the last launch, if it was small. */
void null_put(void* target, const void* values, size_t bytes);
void null_get(void* target, const void* source, size_t bytes);
#define NULL_SMALL 65536

Stream* null_stream(void* handle); /* the default stream of the current device for NULL */
void* null_make_stream(void);
void* null_make_event(void);
void null_drop(void* handle, uint64_t* counter);
int null_record(Event* event, void* stream);
int null_wait(const char* what, int stuck); /* the host waits; for ever, if for something that is stuck */

typedef struct { unsigned x, y, z; } Size;
int null_launch(const char* name, const void* function, Size grid, Size block, size_t shared, void* stream);
void null_allow_shared(const void* function, int bytes); /* dynamic shared memory beyond 48 KiB, as a kernel may ask */
#endif
