/* NVIDIA's management library as far as MegaInfer asks it, with two or three GPUs of FAKE_GPUS.

   GPU 0 and 1 reach each other, GPU 2 nobody. Its first call fails where FAILS is defined. */

#include <stdio.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } Memory;

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, MISMATCH = 18 };

static int open_sessions, gpus[FAKE_GPUS];

static int number(void *gpu) { return (int)((int *)gpu - gpus); }

static int told(char *text, unsigned size, const char *format, int of) {
    if (!open_sessions) return UNINITIALIZED;
    return (unsigned)snprintf(text, size, format, of) < size ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlInit_v2(void) {
#ifdef FAILS
    return MISMATCH;
#endif
    open_sessions++;
    return SUCCESS;
}

int nvmlShutdown(void) { open_sessions--; return SUCCESS; }

int fake_open_sessions(void) { return open_sessions; }

const char *nvmlErrorString(int code) {
    return code == MISMATCH ? "Driver/library version mismatch" : "Some error";
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) { return told(text, size, "580.%d", 65); }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = FAKE_GPUS; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) {
    if (index >= FAKE_GPUS) return INVALID_ARGUMENT;
    *gpu = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *gpu, char *text, unsigned size) {
    return told(text, size, "GPU-%08d-feed", number(gpu));
}

int nvmlDeviceGetName(void *gpu, char *text, unsigned size) {
    return told(text, size, "NVIDIA Fake %d", number(gpu));
}

int nvmlDeviceGetMemoryInfo(void *gpu, Memory *memory) {
    memory->total = 1ull << 37;
    memory->free = memory->total - ((unsigned long long)number(gpu) << 33);
    memory->used = memory->total - memory->free;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(void *gpu, int *major, int *minor) {
    *major = number(gpu) == 2 ? 7 : 9;
    *minor = number(gpu) == 2 ? 5 : 0;
    return SUCCESS;
}

int nvmlDeviceGetP2PStatus(void *gpu, void *other, int wish, int *status) {
    if (wish < 0 || wish > 1) return INVALID_ARGUMENT;
    *status = number(gpu) == 2 || number(other) == 2 ? 4 : 0;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(void *gpu, unsigned *current, unsigned *pending) {
    if (number(gpu) != 1) return NOT_SUPPORTED;
    *current = 1;
    *pending = 0;
    return SUCCESS;
}
