/* libcuda: the functions of the driver that do something. Triton and torch's expandable segments call it. */
#define _GNU_SOURCE
#include "null.h"
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define GRANULARITY (2ul << 20)

CUresult cuDriverGetVersion(int* version) { return *version = CUDA_VERSION, OK; }
CUresult cuGetErrorString(CUresult error, const char** text) { return *text = null_last_fault, OK; }
CUresult cuGetErrorName(CUresult error, const char** text) { return *text = "nullError", OK; }

/* ---- devices; the context of device n is n + 1 ---- */

CUresult cuDeviceGetCount(int* count) { return *count = null_device_count(), OK; }
CUresult cuDeviceGet(CUdevice* device, int ordinal) { return *device = ordinal, OK; }
CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    return snprintf(name, length, "%s", null_device_name()), OK;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    return *value = null_attribute(attribute), OK;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
    return *flags = 0, *active = 1, OK;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    return *context = (CUcontext)(uintptr_t)(device + 1), OK;
}
CUresult cuCtxGetCurrent(CUcontext* context) { return cuDevicePrimaryCtxRetain(context, null_device); }
CUresult cuCtxSetCurrent(CUcontext context) {
    if (context) null_device = (int)(uintptr_t)context - 1;
    return OK;
}
CUresult cuCtxGetDevice(CUdevice* device) { return *device = null_device, OK; }
CUresult cuCtxSynchronize(void) { return null_wait("cuCtxSynchronize", null_stream(NULL)->stuck); }
CUresult cuStreamSynchronize(CUstream stream) {
    return null_wait("cuStreamSynchronize", null_stream(stream)->stuck);
}
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) { return *status = 0, OK; }

/* ---- memory ---- */

CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr pointer) {
    int device, kind = null_kind((void*)pointer, &device);
    if (kind == HOST) return BAD_VALUE; /* no fault: this is how a caller finds out */
    /* Triton asks this for each pointer before a launch, and only then. */
    if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER && null_check((void*)pointer, 0, "an argument of a kernel"))
        return BAD_VALUE;
    if (attribute == CU_POINTER_ATTRIBUTE_MEMORY_TYPE) {
        *(unsigned*)data = kind == DEVICE ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
    } else if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) {
        *(int*)data = device;
    } else {
        *(CUdeviceptr*)data = pointer;
    }
    return OK;
}

/* Expandable segments: address space is reserved, and parts of it get memory. A handle is the number of its bytes. */
CUresult cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp* prop,
                                       CUmemAllocationGranularity_flags option) {
    return *bytes = GRANULARITY, OK;
}
CUresult cuMemAddressReserve(CUdeviceptr* pointer, size_t bytes, size_t alignment, CUdeviceptr hint,
                             unsigned long long flags) {
    void* space = mmap(NULL, bytes + GRANULARITY, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED) return NO_MEMORY;
    return *pointer = ((uintptr_t)space + GRANULARITY - 1) / GRANULARITY * GRANULARITY, OK;
}
CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* prop,
                     unsigned long long flags) {
    if (null_counters.device_bytes + bytes > null_total_memory()) return NO_MEMORY;
    return *handle = bytes, OK;
}
CUresult cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
    return null_note((void*)pointer, bytes, DEVICE, 1), OK;
}
CUresult cuMemUnmap(CUdeviceptr pointer, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        size_t part = null_forget((void*)(pointer + done));
        if (!part) return null_fault(BAD_VALUE, "memory is unmapped that was not mapped");
        done += part;
    }
    return OK;
}

/* ---- kernels; a function is its name ---- */

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    __sync_fetch_and_add(&null_counters.modules, 1);
    return *module = calloc(1, 8), OK;
}
CUresult cuModuleLoad(CUmodule* module, const char* path) { return cuModuleLoadData(module, path); }
CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned count, CUjit_option* options, void** values) {
    return cuModuleLoadData(module, image);
}
CUresult cuModuleUnload(CUmodule module) { return null_drop(module, &null_counters.modules), OK; }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    return *function = (CUfunction)strdup(name), OK;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : 0;
    return OK;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    /* No fault: Triton tries an attribute of newer drivers, and sets the limit of shared memory if there is none. */
    if (attribute >= CU_FUNC_ATTRIBUTE_MAX) return BAD_VALUE;
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) null_allow_shared(function, value);
    return OK;
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function, int size, size_t shared) {
    return *blocks = 2, OK;
}
CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction function, const CUlaunchConfig* config) {
    return *clusters = 1, OK;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction function, void** args, void** extra) {
    Size grid = {c->gridDimX, c->gridDimY, c->gridDimZ}, block = {c->blockDimX, c->blockDimY, c->blockDimZ};
    return null_launch((const char*)function, function, grid, block, c->sharedMemBytes, c->hStream);
}
CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, CUstream stream, void** args, void** extra) {
    return null_launch((const char*)function, function, (Size){gx, gy, gz}, (Size){bx, by, bz}, shared, stream);
}
