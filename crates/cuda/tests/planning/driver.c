/* A driver without a device, which accepts every module: cuDNN plans with it, and compiles its run-time engines; nothing runs.
   cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o FOLDER/libcuda.so.1 driver.c, then LD_LIBRARY_PATH=FOLDER. */
#include <stddef.h>
#define NOTHING(name) int name(void) { return 100; } /* CUDA_ERROR_NO_DEVICE */
#define HANDLE(name) int name(void **out) { *out = (void *)64; return 0; }
#define FINE(name) int name(void) { return 0; }
#define ZERO(name) int name(int *out) { *out = 0; return 0; }
NOTHING(cuInit) NOTHING(cuDeviceGet) NOTHING(cuDeviceGetCount) NOTHING(cuCtxGetCurrent) NOTHING(cuCtxGetLimit)
NOTHING(cuStreamGetCtx) NOTHING(cuLaunchKernel) NOTHING(cuLaunchKernelEx) NOTHING(cuLaunchCooperativeKernel)
NOTHING(cuLinkCreate) NOTHING(cuLinkAddData) NOTHING(cuLinkComplete) NOTHING(cuLinkDestroy)
HANDLE(cuLibraryLoadData) HANDLE(cuLibraryLoadFromFile) HANDLE(cuLibraryGetKernel) HANDLE(cuKernelGetFunction)
HANDLE(cuModuleLoadData) HANDLE(cuModuleGetFunction)
FINE(cuCtxPopCurrent) FINE(cuCtxPushCurrent) FINE(cuLibraryUnload) FINE(cuModuleUnload) FINE(cuKernelSetAttribute)
FINE(cuFuncSetAttribute) FINE(cuTensorMapEncodeIm2col) FINE(cuTensorMapEncodeTiled)
ZERO(cuKernelGetAttribute) ZERO(cuFuncGetAttribute)
int cuOccupancyMaxPotentialClusterSize(int *out) { *out = 8; return 0; }
int cuDriverGetVersion(int *out) { *out = 13000; return 0; }
int cuGetErrorString(int error, const char **text) { (void)error; *text = "no device"; return 0; }
int cuGetErrorName(int error, const char **text) { (void)error; *text = "CUDA_ERROR_NO_DEVICE"; return 0; }
