// Runs CUDA kernels without a GPU, blocks one after another, for tests: a block's threads are threads of the processor (for the thread
// sanitizer) or, with CUDA_CPU_FIBERS, fibers of one thread that change places at barriers and shuffles alone (for whole runs; a barrier
// that not all reach is reported). The kernels, which include no header of NVIDIA's, are compiled by NVRTC as they are, and here after this.
#pragma once
#define CUDA_ON_CPU
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

struct dim3 { unsigned x = 1, y = 1, z = 1; };
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static                                    // one block at a time, so one copy serves
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(cuda_cpu::block->dynamic.data())

namespace cuda_cpu {
#ifdef CUDA_CPU_FIBERS
// Keeps the callee-saved registers on the stack that is left, takes them from the one that is entered (System V, x86-64; ucontext's own
// switch makes a system call, which is fifty times slower).
__attribute__((naked, noinline)) static void swap_stacks(void** /*left*/, void* /*entered*/) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi);"
        "movq %rsi, %rsp; popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
struct Fibers {
    void *home, *all[1024];
    std::vector<char> stacks;
    bool finished[1024];
    int now = -1;
    bool moved = false;
    std::function<void()> body;
};
inline thread_local Fibers fibers;
inline void yield() { swap_stacks(&fibers.all[fibers.now], fibers.home); }
inline void begin() {
    fibers.body();
    fibers.finished[fibers.now] = fibers.moved = true;
    yield();
}
struct Barrier {
    int n, arrived = 0;
    unsigned generation = 0;
    explicit Barrier(int n) : n(n) {}
    void arrive_and_wait() {
        unsigned mine = generation;
        if (++arrived == n) arrived = 0, generation++, fibers.moved = true;
        else while (generation == mine) yield();
    }
};
#else
using Barrier = std::barrier<>;
#endif
struct Warp {
    Barrier barrier;
    unsigned slot[32];
    explicit Warp(int n) : barrier(n) {}
};
struct Block {
    Barrier barrier;
    std::vector<std::unique_ptr<Warp>> warps;
    std::vector<char> dynamic;
    Block(int n, size_t bytes) : barrier(n), dynamic(bytes) {
        for (int from = 0; from < n; from += 32) warps.push_back(std::make_unique<Warp>(n - from < 32 ? n - from : 32));
    }
};
inline thread_local Block* block;

inline void enter(Block& b, int threads, unsigned thread, dim3 at, dim3 grid) {
    block = &b, threadIdx = {thread, 0, 0}, blockIdx = at, blockDim = {unsigned(threads), 1, 1}, gridDim = grid;
}

template <class F>
void each_block(dim3 grid, F f) {
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) f(dim3{x, y, z});
}

// When a block ends, its barriers are as they were, so that one serves all.
template <class Kernel>
void launch(dim3 grid, int threads, size_t shared_bytes, Kernel kernel) {
    Block b(threads, shared_bytes);
#ifdef CUDA_CPU_FIBERS
    const size_t stack = 64 << 10;
    fibers.stacks.resize(stack * threads);
    fibers.body = [&] { kernel(); };
    each_block(grid, [&](dim3 at) {
        for (int i = 0; i < threads; i++) {
            auto top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(fibers.stacks.data()) + stack * (i + 1)) & ~uintptr_t(15));
            *--top = nullptr;
            *--top = reinterpret_cast<void*>(begin);
            fibers.all[i] = top - 6;
            fibers.finished[i] = false;
        }
        for (int left = threads; left;) {
            fibers.moved = false;
            for (int i = 0; i < threads; i++) {
                if (fibers.finished[i]) continue;
                enter(b, threads, fibers.now = i, at, grid);
                swap_stacks(&fibers.home, fibers.all[i]);
                left -= fibers.finished[i];
            }
            if (!fibers.moved) { std::fprintf(stderr, "a barrier or shuffle that not all threads reach\n"); std::abort(); }
        }
    });
#else
    std::vector<std::thread> all;
    for (int i = 0; i < threads; i++)
        all.emplace_back([&, i] {
            each_block(grid, [&](dim3 at) {
                enter(b, threads, i, at, grid);
                kernel();
                b.barrier.arrive_and_wait();
            });
        });
    for (auto& t : all) t.join();
#endif
}
}  // namespace cuda_cpu

inline void __syncthreads() {
#ifdef PLANTED_RACE
    // Every thread passes by its first barrier in a block.
    static thread_local bool first = true;
    if (first) { first = false; return; }
#endif
    cuda_cpu::block->barrier.arrive_and_wait();
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    static_assert(sizeof(T) == 4);
    auto& warp = *cuda_cpu::block->warps[threadIdx.x / 32];
    std::memcpy(&warp.slot[threadIdx.x % 32], &value, 4);
    warp.barrier.arrive_and_wait();
    T other;
    std::memcpy(&other, &warp.slot[(threadIdx.x % 32) ^ mask], 4);
    warp.barrier.arrive_and_wait();
    return other;
}

inline float __uint_as_float(unsigned x) { float f; std::memcpy(&f, &x, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned x; std::memcpy(&x, &f, 4); return x; }

// What common.cuh has instructions for.
struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };
inline float exp2_fast(float x) { return std::exp2(x); }
inline float reciprocal_fast(float x) { return 1 / x; }

namespace cuda_cpu {
inline unsigned bits(float x, bf16*) {
    unsigned u = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
inline unsigned bits(float x, f16*) {
    unsigned u = __float_as_uint(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;                          // from 65520 on, infinity is as near
    if (magnitude < 0x38800000) return sign | unsigned(std::nearbyint(std::ldexp(std::fabs(x), 24)));  // multiples of 2^-24
    magnitude -= 0x38000000;
    return sign | (magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13;
}
inline float value(unsigned short h) {
    unsigned exponent = h >> 10 & 31, fraction = h & 1023;
    float x = exponent == 31 ? (fraction ? NAN : INFINITY)
              : exponent     ? std::ldexp(float(1024 + fraction), int(exponent) - 25)
                             : std::ldexp(float(fraction), -24);
    return h & 0x8000 ? -x : x;
}
}  // namespace cuda_cpu

template <class E> unsigned pack(float low, float high) {
    return cuda_cpu::bits(low, (E*)nullptr) | cuda_cpu::bits(high, (E*)nullptr) << 16;
}
inline float widen(f16 x) { return cuda_cpu::value(x.bits); }

inline void sincospi(double x, double* sine, double* cosine) { *sine = std::sin(M_PI * x), *cosine = std::cos(M_PI * x); }
