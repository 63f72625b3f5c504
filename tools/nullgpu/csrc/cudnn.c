/* libcudnn: graphs of operations. Any graph is supported, by one engine without a workspace. */
#include "null.h"
#include <cudnn.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    cudnnBackendDescriptorType_t type;
} Descriptor;
typedef struct {
    void* stream;
} Handle;

size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
size_t cudnnGetCudartVersion(void) { return CUDART_VERSION; }
cudnnStatus_t cudnnGetProperty(libraryPropertyType type, int* value) {
    static const int parts[] = {CUDNN_MAJOR, CUDNN_MINOR, CUDNN_PATCHLEVEL};
    return *value = parts[type], CUDNN_STATUS_SUCCESS;
}
const char* cudnnGetErrorString(cudnnStatus_t status) { return status ? null_last_fault : "no error"; }
void cudnnGetLastErrorString(char* text, size_t length) { strncpy(text, null_last_fault, length); }
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
    return *handle = calloc(1, sizeof(Handle)), CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) { return free(handle), CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
    return ((Handle*)handle)->stream = stream, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t* stream) {
    return *stream = ((Handle*)handle)->stream, CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* made) {
    Descriptor* descriptor = calloc(1, sizeof *descriptor);
    descriptor->type = type;
    return *made = descriptor, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t made) { return free(made), CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t made) {
    if (((Descriptor*)made)->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)
        __sync_fetch_and_add(&null_counters.attention_plans, 1);
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t made, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void* values) {
    if (name == CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS)
        for (int64_t i = 0; i < count; i++) {
            const void* pointer = ((void* const*)values)[i];
            /* Scalars are on the host. */
            if (pointer && null_kind(pointer, NULL) == DEVICE && null_check(pointer, 0, "a tensor of cuDNN"))
                return CUDNN_STATUS_BAD_PARAM;
        }
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t made, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted, int64_t* count, void* values) {
    int has_one = name == CUDNN_ATTR_ENGINEHEUR_RESULTS || type != CUDNN_TYPE_BACKEND_DESCRIPTOR;
    /* Notes on behaviour and numerics: there are none. */
    if (type == CUDNN_TYPE_BEHAVIOR_NOTE || type == CUDNN_TYPE_NUMERICAL_NOTE) has_one = 0;
    if (count) *count = has_one;
    /* Sizes of work space and shared memory. */
    if (values && wanted > 0 && type == CUDNN_TYPE_INT64) *(int64_t*)values = 0;
    if (values && wanted > 0 && type == CUDNN_TYPE_INT32) *(int32_t*)values = 0;
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack) {
    static const char name[] = "cudnnBackendExecute";
    static const Size one = {1, 1, 1};
    int error = null_launch(name, name, one, one, 0, ((Handle*)handle)->stream);
    return error ? CUDNN_STATUS_EXECUTION_FAILED : CUDNN_STATUS_SUCCESS;
}
