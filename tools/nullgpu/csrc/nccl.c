/* libnccl: collectives, which are checked and compared between the ranks. Values are not reduced.
 *
 * The ranks of a job share the folder NULLGPU_EXCHANGE. Small messages and broadcasts arrive; of everything else only
 * kind and size are exchanged. Waiting for a message blocks the host, unlike NCCL, which blocks the stream. */
#define _GNU_SOURCE
#include "null.h"
#include <fcntl.h>
#include <nccl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#define NUM_CALLS 4096 /* that are compared; a rank may be so many ahead of another */
#define PATIENCE_SECONDS 300 /* of a busy machine */
#define MAX_POSTPONED 64

typedef struct {
    uint64_t number; /* from 1; written last */
    char what[48]; /* the operation with its type, count and root or reduction */
} Call;
typedef struct {
    char name[192]; /* the same on all its ranks, and in no other communicator */
    int rank, size, device;
    uint64_t num_calls, num_splits;
    uint64_t *num_sent, *num_received; /* by peer */
    Call* calls;                       /* [size][NUM_CALLS], shared by the ranks; NULL for one rank */
} Comm;

/* ---- files in the folder that the ranks share ---- */

static void path_of(char path[512], const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const char* folder = getenv("NULLGPU_EXCHANGE");
    int length = snprintf(path, 512, "%s/", folder ? folder : "/tmp");
    vsnprintf(path + length, 512 - length, format, arguments);
    va_end(arguments);
}

static void post(const char* path, const void* content, size_t bytes) {
    char aside[600];
    snprintf(aside, sizeof aside, "%s.%d", path, getpid());
    FILE* file = fopen(aside, "w");
    if (!file || fwrite(content, 1, bytes, file) != bytes || fclose(file) || rename(aside, path)) perror(path), abort();
}

/* Reads a file once it is there; OK, or a fault if it does not come. */
static int await(const char* path, void* content, size_t bytes) {
    for (long tries = 0; tries < PATIENCE_SECONDS * 2000l; tries++) {
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            ssize_t got = read(file, content, bytes);
            close(file);
            return got == (ssize_t)bytes ? OK : null_fault(BAD_VALUE, "%s holds %zd bytes, not %zu", path, got, bytes);
        }
        usleep(500);
    }
    return null_fault(BAD_VALUE, "nobody has sent %s", path);
}

/* ---- communicators ---- */

static Comm* make(const char* name, int size, int rank) {
    Comm* comm = calloc(1, sizeof *comm);
    snprintf(comm->name, sizeof comm->name, "%s", name);
    comm->size = size, comm->rank = rank, comm->device = null_device;
    comm->num_sent = calloc(size, sizeof(uint64_t)), comm->num_received = calloc(size, sizeof(uint64_t));
    if (size > 1) {
        char path[512];
        path_of(path, "%s.calls", name);
        size_t bytes = (size_t)size * NUM_CALLS * sizeof(Call);
        int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (file < 0 || ftruncate(file, bytes)) perror(path), abort();
        comm->calls = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
    }
    return comm;
}

ncclResult_t ncclGetVersion(int* version) { return *version = NCCL_VERSION_CODE, ncclSuccess; }
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    return getrandom(id, sizeof *id, 0) == sizeof *id ? ncclSuccess : ncclSystemError;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
    uint64_t number;
    char name[32];
    memcpy(&number, &id, sizeof number);
    snprintf(name, sizeof name, "%016lx", number);
    return *comm = (ncclComm_t)make(name, size, rank), ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int size, ncclUniqueId id, int rank) {
    return ncclCommInitRankConfig(comm, size, id, rank, NULL);
}
ncclResult_t ncclCommInitRankScalable(ncclComm_t* comm, int size, int rank, int count, ncclUniqueId* ids,
                                      ncclConfig_t* config) {
    return ncclCommInitRankConfig(comm, size, ids[0], rank, config);
}

ncclResult_t ncclCommSplit(ncclComm_t parent, int color, int key, ncclComm_t* made, ncclConfig_t* config) {
    Comm* comm = (Comm*)parent;
    int own[2] = {color, key}, size = 0, rank = 0;
    uint64_t number = comm->num_splits++;
    char path[512];
    path_of(path, "%s.split-%lu.%d", comm->name, number, comm->rank);
    post(path, own, sizeof own);
    for (int peer = 0; peer < comm->size; peer++) {
        int theirs[2];
        path_of(path, "%s.split-%lu.%d", comm->name, number, peer);
        if (await(path, theirs, sizeof theirs)) return ncclInternalError;
        if (theirs[0] != color) continue;
        size++;
        if (theirs[1] < key || (theirs[1] == key && peer < comm->rank)) rank++;
    }
    *made = NULL;
    if (color == NCCL_SPLIT_NOCOLOR) return ncclSuccess;
    char name[224];
    snprintf(name, sizeof name, "%s.%lu-%x", comm->name, number, color);
    return *made = (ncclComm_t)make(name, size, rank), ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t made) {
    Comm* comm = (Comm*)made;
    if (comm->calls) munmap(comm->calls, (size_t)comm->size * NUM_CALLS * sizeof(Call));
    free(comm->num_sent), free(comm->num_received), free(comm);
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) { return ncclCommDestroy(comm); }
ncclResult_t ncclCommCount(const ncclComm_t comm, int* count) { return *count = ((Comm*)comm)->size, ncclSuccess; }
ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) { return *rank = ((Comm*)comm)->rank, ncclSuccess; }
ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int* device) {
    return *device = ((Comm*)comm)->device, ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) { return *error = ncclSuccess, ncclSuccess; }
const char* ncclGetErrorString(ncclResult_t error) { return error ? null_last_fault : "no error"; }
const char* ncclGetLastError(ncclComm_t comm) { return null_last_fault; }

/* ---- collectives ---- */

static size_t size_of(ncclDataType_t type) {
    switch (type) {
        case ncclInt8: case ncclUint8: case ncclFloat8e4m3: case ncclFloat8e5m2: return 1;
        case ncclFloat16: case ncclBfloat16: return 2;
        case ncclInt32: case ncclUint32: case ncclFloat32: return 4;
        default: return 8;
    }
}

static int begin(Comm* comm, const void* read, size_t read_bytes, const void* written, size_t written_bytes, void* stream) {
    static uint64_t patience = 0; /* the collective that never ends; 0: none */
    const char* hangs = getenv("NULLGPU_HANG_AT");
    if (hangs && !patience) patience = strtoull(hangs, NULL, 10);
    uint64_t number = __sync_add_and_fetch(&null_counters.collectives, 1);
    if (patience && number >= patience) null_stream(stream)->stuck = 1;
    if (comm->device != null_device)
        return null_fault(BAD_VALUE, "a collective of device %d, but device %d is current", comm->device, null_device);
    if (read && read_bytes && null_check(read, read_bytes, "what a collective sends")) return BAD_VALUE;
    if (written && written_bytes) return null_check(written, written_bytes, "what a collective receives");
    return OK;
}

/* Compares this rank's call with those that the others have made; the last one to come finds a difference. */
static int compare(Comm* comm, const char* operation, size_t count, ncclDataType_t type, int detail) {
    if (!comm->calls) return OK;
    uint64_t number = ++comm->num_calls;
    Call* own = &comm->calls[comm->rank * NUM_CALLS + number % NUM_CALLS];
    snprintf(own->what, sizeof own->what, "%s of %zu x type %d (%d)", operation, count, type, detail);
    __atomic_store_n(&own->number, number, __ATOMIC_SEQ_CST);
    for (int peer = 0; peer < comm->size; peer++) {
        Call* other = &comm->calls[peer * NUM_CALLS + number % NUM_CALLS];
        if (__atomic_load_n(&other->number, __ATOMIC_SEQ_CST) == number && strcmp(other->what, own->what))
            return null_fault(BAD_VALUE, "collective %lu of a group: rank %d has %s, rank %d has %s", number, comm->rank,
                              own->what, peer, other->what);
    }
    return OK;
}

static void copy(void* target, const void* source, size_t bytes) {
    if (bytes > NULL_SMALL || target == source) return;
    char* values = malloc(bytes);
    null_get(values, source, bytes);
    null_put(target, values, bytes);
    free(values);
}

#define CHECKED(call) if (call) return ncclInvalidArgument

ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t made, cudaStream_t stream) {
    Comm* comm = (Comm*)made;
    size_t bytes = count * size_of(type);
    CHECKED(begin(comm, send, bytes, receive, bytes, stream) || compare(comm, "all-reduce", count, type, op));
    return copy(receive, send, bytes), ncclSuccess;
}
ncclResult_t ncclReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t made, cudaStream_t stream) {
    Comm* comm = (Comm*)made;
    size_t bytes = count * size_of(type);
    void* written = comm->rank == root ? receive : NULL;
    CHECKED(begin(comm, send, bytes, written, bytes, stream) || compare(comm, "reduce", count, type, root));
    if (written) copy(receive, send, bytes);
    return ncclSuccess;
}
ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type, ncclComm_t made,
                           cudaStream_t stream) {
    Comm* comm = (Comm*)made;
    size_t bytes = count * size_of(type);
    CHECKED(begin(comm, send, bytes, receive, bytes * comm->size, stream) || compare(comm, "all-gather", count, type, 0));
    return copy((char*)receive + comm->rank * bytes, send, bytes), ncclSuccess;
}
ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t made, cudaStream_t stream) {
    Comm* comm = (Comm*)made;
    size_t bytes = count * size_of(type);
    CHECKED(begin(comm, send, bytes * comm->size, receive, bytes, stream) ||
            compare(comm, "reduce-scatter", count, type, op));
    return copy(receive, (const char*)send + comm->rank * bytes, bytes), ncclSuccess;
}
ncclResult_t ncclAlltoAll(const void* send, void* receive, size_t count, ncclDataType_t type, ncclComm_t made,
                          cudaStream_t stream) {
    Comm* comm = (Comm*)made;
    size_t bytes = count * size_of(type) * comm->size;
    CHECKED(begin(comm, send, bytes, receive, bytes, stream) || compare(comm, "all-to-all", count, type, 0));
    return ncclSuccess;
}

/* ---- messages ---- */

typedef struct {
    size_t bytes;
    char values[NULL_SMALL];
} Message;

static int put_message(Comm* comm, int peer, const void* values, size_t bytes) {
    Message message = {bytes};
    char path[512];
    size_t kept = bytes <= NULL_SMALL ? bytes : 0;
    if (kept) null_get(message.values, values, kept);
    path_of(path, "%s.%d-%d.%lu", comm->name, comm->rank, peer, comm->num_sent[peer]++);
    post(path, &message, offsetof(Message, values) + kept);
    return OK;
}

static int take_message(Comm* comm, int peer, void* target, size_t bytes) {
    Message message;
    char path[512];
    size_t kept = bytes <= NULL_SMALL ? bytes : 0;
    path_of(path, "%s.%d-%d.%lu", comm->name, peer, comm->rank, comm->num_received[peer]++);
    if (await(path, &message, offsetof(Message, values))) return BAD_VALUE;
    if (message.bytes != bytes)
        return null_fault(BAD_VALUE, "rank %d sends %zu bytes, rank %d receives %zu", peer, message.bytes, comm->rank,
                          bytes);
    if (kept && await(path, &message, offsetof(Message, values) + kept)) return BAD_VALUE;
    null_put(target, message.values, kept);
    unlink(path);
    return OK;
}

/* In a group, messages are received at its end: all of its sends come first. */
static __thread int depth = 0, num_postponed = 0;
static __thread struct {
    Comm* comm;
    int peer;
    void* target;
    size_t bytes;
} postponed[MAX_POSTPONED];

ncclResult_t ncclGroupStart(void) { return depth++, ncclSuccess; }
ncclResult_t ncclGroupEnd(void) {
    if (--depth) return ncclSuccess;
    int count = num_postponed;
    num_postponed = 0;
    for (int i = 0; i < count; i++)
        CHECKED(take_message(postponed[i].comm, postponed[i].peer, postponed[i].target, postponed[i].bytes));
    return ncclSuccess;
}

ncclResult_t ncclSend(const void* send, size_t count, ncclDataType_t type, int peer, ncclComm_t made,
                      cudaStream_t stream) {
    Comm* comm = (Comm*)made;
    size_t bytes = count * size_of(type);
    CHECKED(begin(comm, send, bytes, NULL, 0, stream) || put_message(comm, peer, send, bytes));
    return ncclSuccess;
}
ncclResult_t ncclRecv(void* receive, size_t count, ncclDataType_t type, int peer, ncclComm_t made,
                      cudaStream_t stream) {
    Comm* comm = (Comm*)made;
    size_t bytes = count * size_of(type);
    CHECKED(begin(comm, NULL, 0, receive, bytes, stream));
    if (!depth) {
        CHECKED(take_message(comm, peer, receive, bytes));
        return ncclSuccess;
    }
    if (num_postponed == MAX_POSTPONED) abort();
    postponed[num_postponed].comm = comm, postponed[num_postponed].peer = peer;
    postponed[num_postponed].target = receive, postponed[num_postponed++].bytes = bytes;
    return ncclSuccess;
}
ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t made, cudaStream_t stream) {
    Comm* comm = (Comm*)made;
    size_t bytes = count * size_of(type);
    int is_root = comm->rank == root;
    CHECKED(begin(comm, is_root ? send : NULL, bytes, receive, bytes, stream) ||
            compare(comm, "broadcast", count, type, root));
    if (is_root) copy(receive, send, bytes);
    if (bytes > NULL_SMALL) return ncclSuccess;
    for (int peer = 0; is_root && peer < comm->size; peer++)
        if (peer != root) put_message(comm, peer, send, bytes);
    CHECKED(!is_root && take_message(comm, root, receive, bytes));
    return ncclSuccess;
}
ncclResult_t ncclBcast(void* buffer, size_t count, ncclDataType_t type, int root, ncclComm_t comm, cudaStream_t stream) {
    return ncclBroadcast(buffer, buffer, count, type, root, comm, stream);
}
