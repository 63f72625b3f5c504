/* libcudart: the functions of the CUDA runtime that do something. */
#define _GNU_SOURCE
#include "null.h"
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#undef cudaGetDeviceProperties

static __thread int last_error = OK;
static int kept(int error) { return error ? (last_error = error) : OK; }

/* ---- devices and errors ---- */

cudaError_t cudaGetDeviceCount(int* count) { return *count = null_device_count(), OK; }
cudaError_t cudaGetDevice(int* device) { return *device = null_device, OK; }
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= null_device_count())
        return kept(null_fault(BAD_DEVICE, "there is no device %d; there are %d", device, null_device_count()));
    return null_device = device, OK;
}
cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attribute, int device) {
    return *value = null_attribute(attribute), OK;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
    return snprintf(text, length, "0000:%02x:00.0", device + 1), OK;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) { return *can = 1, OK; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return OK;
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, OK; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, OK; }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* p, int device) {
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", null_device_name());
    p->uuid.bytes[0] = device + 1;
    p->pciBusID = device + 1;
    p->totalGlobalMem = null_total_memory();
    p->sharedMemPerBlock = null_attribute(cudaDevAttrMaxSharedMemoryPerBlock);
    p->sharedMemPerBlockOptin = null_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    p->sharedMemPerMultiprocessor = null_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    p->reservedSharedMemPerBlock = null_attribute(cudaDevAttrReservedSharedMemoryPerBlock);
    p->regsPerBlock = p->regsPerMultiprocessor = null_attribute(cudaDevAttrMaxRegistersPerBlock);
    p->warpSize = null_attribute(cudaDevAttrWarpSize);
    p->maxThreadsPerBlock = null_attribute(cudaDevAttrMaxThreadsPerBlock);
    p->maxThreadsPerMultiProcessor = null_attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
    p->maxBlocksPerMultiProcessor = null_attribute(cudaDevAttrMaxBlocksPerMultiprocessor);
    for (int axis = 0; axis < 3; axis++) {
        p->maxThreadsDim[axis] = null_attribute(cudaDevAttrMaxBlockDimX + axis);
        p->maxGridSize[axis] = null_attribute(cudaDevAttrMaxGridDimX + axis);
    }
    p->major = null_attribute(cudaDevAttrComputeCapabilityMajor);
    p->minor = null_attribute(cudaDevAttrComputeCapabilityMinor);
    p->multiProcessorCount = null_attribute(cudaDevAttrMultiProcessorCount);
    p->l2CacheSize = null_attribute(cudaDevAttrL2CacheSize);
    p->memoryBusWidth = null_attribute(cudaDevAttrGlobalMemoryBusWidth);
    p->unifiedAddressing = p->managedMemory = p->canMapHostMemory = p->concurrentKernels = 1;
    return OK;
}

const char* cudaGetErrorName(cudaError_t error) { return error == NO_MEMORY ? "cudaErrorMemoryAllocation" : "nullError"; }
const char* cudaGetErrorString(cudaError_t error) {
    if (error == OK) return "no error";
    return error == NO_MEMORY ? "out of memory" : error == NOT_READY ? "device not ready" : null_last_fault;
}
cudaError_t cudaGetLastError(void) {
    int error = last_error;
    return last_error = OK, error;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }

/* ---- memory ---- */

cudaError_t cudaMalloc(void** pointer, size_t bytes) { return kept(null_reserve(pointer, bytes)); }
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFree(void* pointer) { return kept(null_release(pointer, DEVICE)); }
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) { return cudaFree(pointer); }
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned flags) { return kept(null_pin(pointer, bytes)); }
cudaError_t cudaMallocHost(void** pointer, size_t bytes) { return kept(null_pin(pointer, bytes)); }
cudaError_t cudaFreeHost(void* pointer) { return kept(null_release(pointer, PINNED)); }
cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned flags) {
    return null_note(pointer, bytes, PINNED, 0), OK;
}
cudaError_t cudaHostUnregister(void* pointer) { return null_forget(pointer), OK; }
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
    *total = null_total_memory();
    *free_bytes = *total - null_counters.device_bytes;
    return OK;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* attributes, const void* pointer) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = null_kind(pointer, &attributes->device);
    if (attributes->type == DEVICE) attributes->devicePointer = (void*)pointer;
    if (attributes->type == PINNED) attributes->hostPointer = (void*)pointer;
    return OK;
}

/* Checks and makes a copy; says whether the host's side is memory that is not pinned. */
static int copied(void* target, const void* source, size_t bytes, enum cudaMemcpyKind kind, int* is_pageable) {
    int to = null_kind(target, NULL) == DEVICE, from = null_kind(source, NULL) == DEVICE;
    *is_pageable = (!to && null_kind(target, NULL) == HOST) || (!from && null_kind(source, NULL) == HOST);
    if (!bytes) return *is_pageable = 0, OK;
    int wants_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    int wants_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyDefault && (to != wants_to || from != wants_from))
        return null_fault(BAD_VALUE, "a copy of kind %d goes from %s to %s memory", kind, from ? "device" : "host",
                          to ? "device" : "host");
    char* values = bytes <= NULL_SMALL ? malloc(bytes) : NULL;
    if (!to && !from) memmove(target, source, bytes);
    if (!to && from) null_get(target, source, bytes);
    if (to && !from && values) null_put(target, source, bytes);
    if (to && from && values) null_get(values, source, bytes), null_put(target, values, bytes);
    free(values);
    return OK;
}
cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, enum cudaMemcpyKind kind) {
    int is_pageable, error = copied(target, source, bytes, kind, &is_pageable);
    return kept(error ? error : null_wait("cudaMemcpy", null_stream(NULL)->stuck));
}
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s) {
    int is_pageable, error = copied(target, source, bytes, kind, &is_pageable);
    if (error || !is_pageable) return kept(error);
    __sync_fetch_and_add(&null_counters.pageable_copies, 1);
    if (null_counters.forbids_waiting)
        return kept(null_fault(FORBIDDEN, "an asynchronous copy of %zu bytes: its host memory is not pinned", bytes));
    return OK;
}
cudaError_t cudaMemcpyPeerAsync(void* target, int to, const void* source, int from, size_t bytes, cudaStream_t stream) {
    return cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, stream);
}
cudaError_t cudaMemset(void* target, int value, size_t bytes) {
    if (!bytes) return OK;
    int error = null_check(target, bytes, "the target of cudaMemset");
    if (error || bytes > NULL_SMALL) return kept(error);
    char* values = malloc(bytes);
    null_put(target, memset(values, value, bytes), bytes);
    free(values);
    return OK;
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
    return cudaMemset(target, value, bytes);
}

/* ---- streams and events ---- */

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = null_make_stream(), OK; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int p) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return null_drop(stream, &null_counters.streams), OK; }
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) { return *priority = 0, OK; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus* status) { return *status = 0, OK; }
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                     size_t* count) {
    return *status = 0, OK;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return null_stream(stream)->stuck ? NOT_READY : OK; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    return null_stream(stream)->stuck |= ((Event*)event)->stuck, OK;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return kept(null_wait("cudaStreamSynchronize", null_stream(stream)->stuck));
}
cudaError_t cudaDeviceSynchronize(void) { return kept(null_wait("cudaDeviceSynchronize", null_stream(NULL)->stuck)); }
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t call, void* data, unsigned flags) {
    return call(stream, OK, data), OK;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void* data) { return call(data), OK; }

cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = null_make_event(), OK; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return null_drop(event, &null_counters.events), OK; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return null_record((Event*)event, stream); }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    return null_record((Event*)event, stream);
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return ((Event*)event)->stuck ? NOT_READY : OK; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    return kept(null_wait("cudaEventSynchronize", ((Event*)event)->stuck));
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    Event *first = (Event*)start, *second = (Event*)end;
    if (!first->milliseconds || !second->milliseconds)
        return kept(null_fault(BAD_HANDLE, "the time between events of which one was never recorded"));
    return *milliseconds = second->milliseconds - first->milliseconds, OK;
}

/* ---- kernels ---- */

static const char* name_of(const void* kernel) {
    Dl_info info;
    return dladdr(kernel, &info) && info.dli_sname ? info.dli_sname : "a kernel";
}
static Size size(dim3 d) { return (Size){d.x, d.y, d.z}; }

cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** args, size_t shared, cudaStream_t stream) {
    return kept(null_launch(name_of(kernel), kernel, size(grid), size(block), shared, stream));
}
cudaError_t __cudaLaunchKernel(void* kernel, dim3 grid, dim3 block, void** args, size_t shared, cudaStream_t stream) {
    return cudaLaunchKernel(kernel, grid, block, args, shared, stream);
}
cudaError_t cudaLaunchCooperativeKernel(const void* kernel, dim3 grid, dim3 block, void** args, size_t shared,
                                        cudaStream_t stream) {
    return cudaLaunchKernel(kernel, grid, block, args, shared, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** args) {
    return cudaLaunchKernel(kernel, config->gridDim, config->blockDim, args, config->dynamicSmemBytes, config->stream);
}
cudaError_t cudaFuncSetAttribute(const void* kernel, enum cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) null_allow_shared(kernel, value);
    return OK;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* attributes, const void* kernel) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->ptxVersion = attributes->binaryVersion = 90;
    return OK;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int size, size_t shared) {
    return *blocks = 2, OK;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* kernel, int size,
                                                                   size_t shared, unsigned flags) {
    return *blocks = 2, OK;
}

/* What compiled code calls for `kernel<<<...>>>(...)`. */
static __thread struct {
    dim3 grid, block;
    size_t shared;
    void* stream;
} pushed;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
    pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
    return OK;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared, *(void**)stream = pushed.stream;
    return OK;
}
cudaError_t __cudaGetKernel(void** kernel, const void* function) { return *kernel = (void*)function, OK; }
void** __cudaRegisterFatBinary(void* binary) { return calloc(1, 64); }

cudaError_t cudaGetSymbolAddress(void** pointer, const void* symbol) { return kept(null_reserve(pointer, 4096)); }
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult* result) {
    static void* driver = NULL;
    if (!driver) driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    *function = driver ? dlsym(driver, name) : NULL;
    if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return OK;
}
