/* libnvidia-ml: torch's expandable segments ask it whether GPUs share memory through a fabric of switches. */
#include "null.h"

#define NOT_SUPPORTED 3

typedef struct { /* the beginning of nvmlGpuFabricInfoV_t; the CUDA wheels lack nvml.h */
    unsigned version;
    unsigned char cluster[16];
    int status;
    unsigned clique;
    unsigned char state; /* 0: there is no fabric */
} Fabric;

int nvmlInit_v2(void) { return OK; }
int nvmlInit(void) { return OK; }
int nvmlDeviceGetCount_v2(unsigned* count) { return *count = null_device_count(), OK; }
int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** handle) { return *handle = (void*)1, OK; }
int nvmlDeviceGetGpuFabricInfoV(void* handle, Fabric* info) { return info->state = 0, OK; }
int nvmlDeviceGetComputeRunningProcesses(void* handle, unsigned* count, void* found) { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemoteDeviceType(void* handle, unsigned link, int* type) { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void* handle, unsigned link, void* info) { return NOT_SUPPORTED; }
int nvmlSystemGetCudaDriverVersion_v2(int* version) { return NOT_SUPPORTED; }
