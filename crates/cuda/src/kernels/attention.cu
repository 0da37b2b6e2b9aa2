// Softmax along rows of scores, a warp a row. Rows of up to 1024 values stay in registers; longer ones are read twice.

constexpr float LOG2_E = 1.44269504f;
// Turns of a warp, each of 8 values a thread, that stay in registers.
constexpr int TURNS = 4;

inline float sum_of_warp(float v) {
    for (int mask = 16; mask; mask /= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
    return v;
}

inline float max_of_warp(float v) {
    for (int mask = 16; mask; mask /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, mask));
    return v;
}

// A thread's values of a turn of 256: 8 neighbours, or where a row is no whole vectors, every 32nd.
template <class E> void load_turn(const E* row, int turn, int t, bool vectors, float outside, float (&v)[8]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = outside;
    if (vectors) {
        const int at = turn * 256 + lane * 8;
        if (at < t) load<8>(row + at, v);
    } else {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int at = turn * 256 + j * 32 + lane;
            if (at < t) v[j] = widen(row[at]);
        }
    }
}
template <class E> void store_turn(E* row, int turn, int t, bool vectors, const float (&v)[8]) {
    const int lane = threadIdx.x % 32;
    if (vectors) {
        const int at = turn * 256 + lane * 8;
        if (at < t) store(row + at, v);
    } else {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int at = turn * 256 + j * 32 + lane;
            if (at < t) row[at] = narrow<E>(v[j]);
        }
    }
}

// launch: grid (any; ceil(rows/8) at most), block 256
template <class E>
void softmax(const float* __restrict__ scores, E* __restrict__ weights, long long rows, int t, float scale) {
    const int turns = (t + 255) / 256;
    const bool vectors = t % 8 == 0;
    const float infinity = __uint_as_float(0x7f800000u), factor = scale * LOG2_E;
    for (long long row = (long long)blockIdx.x * (THREADS / 32) + threadIdx.x / 32; row < rows; row += (long long)gridDim.x * (THREADS / 32)) {
        const float* in = scores + row * t;
        E* out = weights + row * t;
        float v[TURNS][8], max = -infinity, sum = 0;
        if (turns <= TURNS) {
#pragma unroll
            for (int k = 0; k < TURNS; k++)
                if (k < turns) load_turn(in, k, t, vectors, -infinity, v[k]);
            // NaN is passed over here, but makes its whole row NaN by the sum.
#pragma unroll
            for (int k = 0; k < TURNS; k++)
                if (k < turns) {
#pragma unroll
                    for (int j = 0; j < 8; j++) max = fmaxf(max, v[k][j]);
                }
            max = max_of_warp(max);
#pragma unroll
            for (int k = 0; k < TURNS; k++)
                if (k < turns) {
#pragma unroll
                    for (int j = 0; j < 8; j++) sum += v[k][j] = exp2_fast((v[k][j] - max) * factor);
                }
            const float norm = 1.0f / sum_of_warp(sum);
#pragma unroll
            for (int k = 0; k < TURNS; k++)
                if (k < turns) {
#pragma unroll
                    for (int j = 0; j < 8; j++) v[k][j] *= norm;
                    store_turn(out, k, t, vectors, v[k]);
                }
        } else {
            // The sum is relative to the largest value so far.
            for (int k = 0; k < turns; k++) {
                load_turn(in, k, t, vectors, -infinity, v[0]);
                float before = max;
#pragma unroll
                for (int j = 0; j < 8; j++) max = fmaxf(max, v[0][j]);
                // Where nothing was found yet, all differences would be of infinities.
                const float base = max == -infinity ? 0.0f : max;
                sum *= exp2_fast((before - base) * factor);
#pragma unroll
                for (int j = 0; j < 8; j++) sum += exp2_fast((v[0][j] - base) * factor);
            }
            const float of_row = max_of_warp(max);
            const float norm = 1.0f / sum_of_warp(max == -infinity ? sum : sum * exp2_fast((max - of_row) * factor));
            for (int k = 0; k < turns; k++) {
                load_turn(in, k, t, vectors, -infinity, v[0]);
#pragma unroll
                for (int j = 0; j < 8; j++) v[0][j] = exp2_fast((v[0][j] - of_row) * factor) * norm;
                store_turn(out, k, t, vectors, v[0]);
            }
        }
    }
}

// launch: grid (any; ceil(rows/8) at most), block 256
template <class E>
void softmax_grad(const E* __restrict__ weights, const float* __restrict__ dweights, E* __restrict__ dscores, long long rows, int t, float scale) {
    const int turns = (t + 255) / 256;
    const bool vectors = t % 8 == 0;
    for (long long row = (long long)blockIdx.x * (THREADS / 32) + threadIdx.x / 32; row < rows; row += (long long)gridDim.x * (THREADS / 32)) {
        const E* p = weights + row * t;
        const float* d = dweights + row * t;
        E* out = dscores + row * t;
        float a[TURNS][8], b[TURNS][8], dot = 0;
        if (turns <= TURNS) {
#pragma unroll
            for (int k = 0; k < TURNS; k++)
                if (k < turns) load_turn(p, k, t, vectors, 0, a[k]), load_turn(d, k, t, vectors, 0, b[k]);
#pragma unroll
            for (int k = 0; k < TURNS; k++)
                if (k < turns) {
#pragma unroll
                    for (int j = 0; j < 8; j++) dot = fmaf(a[k][j], b[k][j], dot);
                }
            dot = sum_of_warp(dot);
#pragma unroll
            for (int k = 0; k < TURNS; k++)
                if (k < turns) {
#pragma unroll
                    for (int j = 0; j < 8; j++) a[k][j] = a[k][j] * (b[k][j] - dot) * scale;
                    store_turn(out, k, t, vectors, a[k]);
                }
        } else {
            for (int k = 0; k < turns; k++) {
                load_turn(p, k, t, vectors, 0, a[0]), load_turn(d, k, t, vectors, 0, b[0]);
#pragma unroll
                for (int j = 0; j < 8; j++) dot = fmaf(a[0][j], b[0][j], dot);
            }
            dot = sum_of_warp(dot);
            for (int k = 0; k < turns; k++) {
                load_turn(p, k, t, vectors, 0, a[0]), load_turn(d, k, t, vectors, 0, b[0]);
#pragma unroll
                for (int j = 0; j < 8; j++) a[0][j] = a[0][j] * (b[0][j] - dot) * scale;
                store_turn(out, k, t, vectors, a[0]);
            }
        }
    }
}

KERNEL(softmax, (THREADS), (const float* __restrict__ scores, E* __restrict__ weights, long long rows, int t, float scale),
       (scores, weights, rows, t, scale))
KERNEL(softmax_grad, (THREADS),
       (const E* __restrict__ weights, const float* __restrict__ dweights, E* __restrict__ dscores, long long rows, int t, float scale),
       (weights, dweights, dscores, rows, t, scale))
