// What the kernels share. NVRTC compiles common.cuh, norm.cu, layout.cu, elementwise.cu, attention.cu and optim.cu as one text with
// -default-device; the twins for the processor include them in this order after cuda_cpu.hpp.

#ifndef CUDA_ON_CPU  // The twins' header has its own of these.
struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

#define DYNAMIC_SHARED(T, name) extern __shared__ T name[]

// 2^x to about an ulp. Denormals are zero, which keeps it to one instruction.
inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

inline float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two values of a 16-bit type in a word, rounded to nearest even. Beyond the range of f16 lies infinity.
template <class E> unsigned pack(float low, float high);
template <> inline unsigned pack<bf16>(float low, float high) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
template <> inline unsigned pack<f16>(float low, float high) {
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

inline float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
#endif

inline float widen(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
inline float widen(float x) { return x; }

// The nearest value of a type.
template <class E> E narrow(float x) { return {(unsigned short)pack<E>(x, 0)}; }
template <> inline float narrow<float>(float x) { return x; }

// Threads of a block, where a kernel says nothing else.
constexpr int THREADS = 256;

template <class T> T least(T a, T b) { return b < a ? b : a; }

// W neighbours as they lie in memory, moved 16 bytes at a time if there are as many; or one value.
template <class E, int W>
struct __attribute__((may_alias, aligned(W * sizeof(E) < 16 ? W * sizeof(E) : 16))) Vector { unsigned word[W * sizeof(E) / 4]; };
template <class E> struct Vector<E, 1> { E value; };

template <int W, class E> Vector<E, W> load(const E* at) { return *reinterpret_cast<const Vector<E, W>*>(at); }

template <int W> void unpack(Vector<float, W> from, float (&to)[W]) {
#pragma unroll
    for (int j = 0; j < W; j++) to[j] = __uint_as_float(from.word[j]);
}
template <class E, int W> void unpack(Vector<E, W> from, float (&to)[W]) {
#pragma unroll
    for (int j = 0; j < W; j += 2) {
        to[j] = widen(E{(unsigned short)from.word[j / 2]});
        to[j + 1] = widen(E{(unsigned short)(from.word[j / 2] >> 16)});
    }
}
template <class E> void unpack(Vector<E, 1> from, float (&to)[1]) { to[0] = widen(from.value); }
inline void unpack(Vector<float, 1> from, float (&to)[1]) { to[0] = from.value; }

template <int W> void store(float* at, const float (&v)[W]) {
    Vector<float, W> to;
    if constexpr (W == 1) to.value = v[0];
    else {
#pragma unroll
        for (int j = 0; j < W; j++) to.word[j] = __float_as_uint(v[j]);
    }
    *reinterpret_cast<Vector<float, W>*>(at) = to;
}
template <class E, int W> void store(E* at, const float (&v)[W]) {
    Vector<E, W> to;
    if constexpr (W == 1) to.value = narrow<E>(v[0]);
    else {
#pragma unroll
        for (int j = 0; j < W; j += 2) to.word[j / 2] = pack<E>(v[j], v[j + 1]);
    }
    *reinterpret_cast<Vector<E, W>*>(at) = to;
}

template <int W, class E> void load(const E* at, float (&v)[W]) { unpack(load<W>(at), v); }

// 1/(1 + e^-x).
inline float sigmoid(float x) { return reciprocal_fast(1.0f + exp2_fast(x * -1.44269504f)); }

inline float silu(float x) { return x * sigmoid(x); }

inline float silu_slope(float x) {
    float s = sigmoid(x);
    return s * fmaf(x, 1.0f - s, 1.0f);
}

// Where in a run the images of a batch stand.
struct Position { unsigned long long seed, position; };

// Philox4x32-10 of a counter, which becomes the four words that are drawn.
inline void philox(unsigned (&c)[4], unsigned k0, unsigned k1) {
#pragma unroll
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        const unsigned long long p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
        const unsigned c0 = (unsigned)(p1 >> 32) ^ c[1] ^ k0, c2 = (unsigned)(p0 >> 32) ^ c[3] ^ k1;
        c[0] = c0, c[1] = (unsigned)p1, c[2] = c2, c[3] = (unsigned)p0;
    }
}

// How a block goes over rows of `width` columns. A thread stays with its column, so that what belongs to a column stays in registers;
// neighbouring threads have neighbouring columns, then rows, so that a block reads whole stretches of memory. More columns than threads
// are done in turns of THREADS, which `from` counts.
struct Lanes {
    int side, lanes, lane, column;
    bool active;
    Lanes(int width, int from) {
        side = least(width - from, THREADS), lanes = THREADS / side, lane = (int)threadIdx.x / side;
        column = from + (int)threadIdx.x % side, active = lane < lanes;
    }
};

// f(row, column) for all rows and columns, by the whole grid (in x).
template <class F> void walk(long long rows, int width, F f) {
    for (int from = 0; from < width; from += THREADS) {
        Lanes at(width, from);
        if (!at.active) continue;
        for (long long row = (long long)blockIdx.x * at.lanes + at.lane; row < rows; row += (long long)gridDim.x * at.lanes) f(row, at.column);
    }
}

// f of every index below `count`, by the whole grid (in x).
template <class F> void each(long long count, F f) {
    for (long long i = (long long)blockIdx.x * THREADS + threadIdx.x; i < count; i += (long long)gridDim.x * THREADS) f(i);
}

// The three types of a kernel: KERNEL(name, (parameters with E), (arguments)) makes name_f32, name_bf16 and name_f16 of the template `name`.
// Each type is compiled when a GPU needs it: UNIT 2 has the kernels of f32, 3 of bf16, 4 of f16, 1 those without a type, 5 and 6 the
// attention of bf16 and f16 for HEAD channels a head; 0 has all. What another unit has is a template here that nobody uses, or nothing.
#ifndef UNIT
#define UNIT 0
#define HEAD 0
#endif
#if UNIT <= 1
#define PLAIN extern "C" __global__
#else
#define PLAIN template <int> __global__
#endif
#if UNIT == 0 || UNIT == 2
#define IN_F32(...) __VA_ARGS__
#else
#define IN_F32(...)
#endif
#if UNIT == 0 || UNIT == 3
#define IN_BF16(...) __VA_ARGS__
#else
#define IN_BF16(...)
#endif
#if UNIT == 0 || UNIT == 4
#define IN_F16(...) __VA_ARGS__
#else
#define IN_F16(...)
#endif
#define KERNEL_AS(name, type, suffix, bounds, parameters, arguments) \
    namespace suffix##_types { \
    using E = type; \
    extern "C" __global__ void __launch_bounds__ bounds name##_##suffix parameters { name<E> arguments; } \
    }
#define KERNEL(name, bounds, parameters, arguments) \
    IN_F32(KERNEL_AS(name, float, f32, bounds, parameters, arguments)) \
    IN_BF16(KERNEL_AS(name, bf16, bf16, bounds, parameters, arguments)) \
    IN_F16(KERNEL_AS(name, f16, f16, bounds, parameters, arguments))
