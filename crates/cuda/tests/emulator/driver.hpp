// What the libraries ask of driver.cpp beyond CUDA's own calls. They are linked to it, so that one list of work, one memory and one plan of
// failures serve them all.
#pragma once
#include <cstddef>

extern "C" {
// Counts the call. The status that CUDA_ON_CPU_FAIL plans for it, or `lost` where the context is broken: a library has no status of the driver's.
int cuda_on_cpu_call(const char* name, int lost);
int cuda_on_cpu_capturing(int* yes);  // is any stream capturing?
int cuda_on_cpu_unsafe();             // 900, and the capture is spoilt, where a capture forbids calls that wait or take memory
int cuda_on_cpu_inside(const void* p, size_t bytes);  // 1 if that is device memory
int cuda_on_cpu_enqueue(void* stream, void (*work)(void*), void* data, void (*drop)(void*));  // drop: when neither stream nor graph needs it
}
