// Over whole vectors of parameters, with the bits of the processor's kernels: operation by operation, sums in the same order.

struct Update {
    float one_minus_beta1, beta2, one_minus_beta2, decay, step_size, sqrt_correction2, eps;
    int averages;
    float rate[8], rest[8];
    float* average[8];
};

template <int W>
void update(const Update& u, float grad_scale, float* param, const float* grad, float* m, float* v, long long i) {
    float p[W], g[W], first[W], second[W];
    load<W>(param + i, p), load<W>(grad + i, g), load<W>(m + i, first), load<W>(v + i, second);
#pragma unroll
    for (int j = 0; j < W; j++) {
        g[j] *= grad_scale;
        first[j] += u.one_minus_beta1 * (g[j] - first[j]);
        second[j] = second[j] * u.beta2 + u.one_minus_beta2 * g[j] * g[j];
        p[j] = p[j] * u.decay - u.step_size * first[j] / (sqrtf(second[j]) / u.sqrt_correction2 + u.eps);
    }
    store(param + i, p), store(m + i, first), store(v + i, second);
    for (int k = 0; k < u.averages; k++) {
        load<W>(u.average[k] + i, g);
#pragma unroll
        for (int j = 0; j < W; j++) g[j] = g[j] * u.rate[k] + p[j] * u.rest[k];
        store(u.average[k] + i, g);
    }
}

// launch: grid (any; ceil(len/1024) at most), block 256
PLAIN void __launch_bounds__(THREADS)
adamw(float* __restrict__ param, const float* __restrict__ grad, float* __restrict__ m, float* __restrict__ v, const __grid_constant__ Update u,
      const float* __restrict__ grad_scale, long long len) {
    const float scale = *grad_scale;
    // A gradient that is not finite changes nothing.
    if (scale != scale) return;
    each(len / 4, [&](long long i) { update<4>(u, scale, param, grad, m, v, 4 * i); });
    if (blockIdx.x == 0 && threadIdx.x < len % 4) update<1>(u, scale, param, grad, m, v, len / 4 * 4 + threadIdx.x);
}

// Values of a partial sum.
constexpr int CHUNK = 1 << 16;

// launch: grid (ceil(len/65536)), block 32
PLAIN void __launch_bounds__(32)
sum_squares(const float* __restrict__ x, double* __restrict__ partial, long long len) {
    __shared__ double lanes[32];
    constexpr int BATCH = 32;
    x += (long long)blockIdx.x * CHUNK;
    const int count = (int)least<long long>(CHUNK, len - (long long)blockIdx.x * CHUNK), whole = count / 32;
    double sum = 0;
    int k = 0;
    // The square of an f32 is exact in f64, so that fma rounds as a multiplication and an addition do.
    for (; k + BATCH <= whole; k += BATCH) {
        float v[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; j++) v[j] = x[(k + j) * 32 + threadIdx.x];
#pragma unroll
        for (int j = 0; j < BATCH; j++) sum = fma((double)v[j], (double)v[j], sum);
    }
    for (; k < whole; k++) {
        const double v = x[k * 32 + threadIdx.x];
        sum = fma(v, v, sum);
    }
    lanes[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    double all = 0, rest = 0;
    for (int lane = 0; lane < 32; lane++) all += lanes[lane];
    for (int i = whole * 32; i < count; i++) rest += (double)x[i] * (double)x[i];
    partial[blockIdx.x] = all + rest;
}

// launch: grid (1), block 256
PLAIN void __launch_bounds__(THREADS)
sum_partials(const double* __restrict__ partial, double* __restrict__ out, int count) {
    // All threads fetch, one adds: the order is that of the values.
    __shared__ double values[4 * THREADS];
    double sum = 0;
    for (int from = 0; from < count; from += 4 * THREADS) {
        for (int i = threadIdx.x; i < 4 * THREADS && from + i < count; i += THREADS) values[i] = partial[from + i];
        __syncthreads();
        if (threadIdx.x == 0) {
            const int here = least(4 * THREADS, count - from);
#pragma unroll 8
            for (int i = 0; i < here; i++) sum += values[i];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) *out = sum;
}

// From the sum of a gradient's squares its norm, and what it is multiplied by: NaN where the norm is not finite. The gradient is
// `scale` times too large, and cut to `max_norm` where that is not 0, as the processor does it.
// launch: grid (1), block 1
PLAIN void __launch_bounds__(1)
clip(const double* __restrict__ squares, double scale, double max_norm, double* __restrict__ norm, float* __restrict__ grad_scale) {
    *norm = sqrt(*squares) / scale;
    const double cut = max_norm > 0 ? least(max_norm / (*norm + 1e-6), 1.0) : 1.0;
    const bool is_finite = *norm - *norm == 0;
    *grad_scale = is_finite ? (float)(cut / scale) : __uint_as_float(0x7fc00000u);
}

// launch: grid (any; ceil(len/1024) at most), block 256
PLAIN void __launch_bounds__(THREADS)
accumulate(float* __restrict__ sum, const float* __restrict__ x, long long len) {
    each(len / 4, [&](long long i) {
        float a[4], b[4];
        load<4>(sum + 4 * i, a), load<4>(x + 4 * i, b);
#pragma unroll
        for (int j = 0; j < 4; j++) a[j] += b[j];
        store(sum + 4 * i, a);
    });
    const long long rest = len / 4 * 4 + threadIdx.x;
    if (blockIdx.x == 0 && rest < len) sum[rest] += x[rest];
}
