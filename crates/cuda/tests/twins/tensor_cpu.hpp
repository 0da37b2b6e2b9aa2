// The instructions of flash.cu for the processor: tensor cores and their loads warp by warp, each lane computing what it would get, and copies
// in the background, which happen when they are waited for, so that a missing wait is seen.
#pragma once

namespace cuda_cpu {
struct Copy { void* to; const void* from; };
inline std::vector<Copy> copies[1024];  // of a block's threads

// What the lanes of each warp show each other. Blocks run one after another, so that one copy serves all.
struct Lanes { float a[32][8], b[32][4]; uintptr_t row[32]; };
inline Lanes shown[32];

inline Warp& warp() { return *block->warps[threadIdx.x / 32]; }

inline unsigned short half_at(uintptr_t row, unsigned column) {
    unsigned short value;
    std::memcpy(&value, reinterpret_cast<const char*>(row) + 2 * column, 2);
    return value;
}
inline void matrices(unsigned (&r)[4], uintptr_t at, bool transposed) {
    auto& lanes = shown[threadIdx.x / 32];
    const unsigned lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    if (at % 16) std::fprintf(stderr, "a matrix's row that is not aligned\n"), std::abort();
    lanes.row[lane] = at;
    warp().barrier.arrive_and_wait();
    for (unsigned j = 0; j < 4; j++) {
        const uintptr_t* of = lanes.row + 8 * j;
        const unsigned low = transposed ? half_at(of[column], row) : half_at(of[row], column);
        const unsigned high = transposed ? half_at(of[column + 1], row) : half_at(of[row], column + 1);
        r[j] = low | high << 16;
    }
    warp().barrier.arrive_and_wait();
}
template <class E> float half_of(unsigned word, int i) { return widen(E{(unsigned short)(word >> 16 * i)}); }
}  // namespace cuda_cpu

using SharedAt = uintptr_t;
inline SharedAt shared_at(const void* p) { return reinterpret_cast<uintptr_t>(p); }

inline void copy_async(SharedAt to, const void* from, bool inside) {
    if ((to | (inside ? reinterpret_cast<uintptr_t>(from) : 0)) % 16) std::fprintf(stderr, "a copy that is not aligned\n"), std::abort();
    cuda_cpu::copies[threadIdx.x].push_back({reinterpret_cast<void*>(to), inside ? from : nullptr});
}
inline void wait_for_copies() {
    for (auto copy : cuda_cpu::copies[threadIdx.x]) {
        if (copy.from) std::memcpy(copy.to, copy.from, 16);
        else std::memset(copy.to, 0, 16);
    }
    cuda_cpu::copies[threadIdx.x].clear();
}

inline int thread_again() { return threadIdx.x; }

inline void load_matrices(unsigned (&r)[4], SharedAt at) { cuda_cpu::matrices(r, at, false); }
inline void load_transposed(unsigned (&r)[4], SharedAt at) { cuda_cpu::matrices(r, at, true); }

// a: rows lane/4 and 8 below, columns 2*(lane%4), the next, and 8 right of them; b: those rows of column lane/4.
template <class E> void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    auto& lanes = cuda_cpu::shown[threadIdx.x / 32];
    const unsigned lane = threadIdx.x % 32;
    for (int i = 0; i < 8; i++) lanes.a[lane][i] = cuda_cpu::half_of<E>(a[i / 2], i % 2);
    for (int i = 0; i < 4; i++) lanes.b[lane][i] = cuda_cpu::half_of<E>(i < 2 ? b0 : b1, i % 2);
    cuda_cpu::warp().barrier.arrive_and_wait();
    for (unsigned i = 0; i < 4; i++) {
        const unsigned below = i / 2, column = lane % 4 * 2 + i % 2;
        double sum = c[i];
        for (unsigned k = 0; k < 16; k++) {
            const float left = lanes.a[lane / 4 * 4 + k % 8 / 2][k / 8 * 4 + below * 2 + k % 2];
            sum += double(left) * lanes.b[column * 4 + k % 8 / 2][k / 8 * 2 + k % 2];
        }
        c[i] = float(sum);
    }
    cuda_cpu::warp().barrier.arrive_and_wait();
}

inline void __syncwarp() { cuda_cpu::warp().barrier.arrive_and_wait(); }

inline bool __any_sync(unsigned, bool value) {
    unsigned any = value;
    for (int mask = 16; mask; mask /= 2) any |= __shfl_xor_sync(0xffffffffu, any, mask);
    return any;
}
