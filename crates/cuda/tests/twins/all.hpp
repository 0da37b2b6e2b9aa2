// The kernels' sources in the order in which NVRTC gets them.
#include "cuda_cpu.hpp"
#include "../../src/kernels/common.cuh"
#include "../../src/kernels/norm.cu"
#include "../../src/kernels/layout.cu"
#include "../../src/kernels/elementwise.cu"
#include "../../src/kernels/attention.cu"
#include "../../src/kernels/optim.cu"
