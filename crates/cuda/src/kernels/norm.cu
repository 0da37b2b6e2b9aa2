// Group normalisation with feature-wise scale and shift, SiLU and dropout, forward and backward. Channels are a multiple of 32.
// A thread has 8 neighbouring channels. Statistics are those of chunks of pixels, merged by whoever needs them.

// Dropout of one image, drawn again wherever it is needed.
struct Dropout {
    float keep;
    unsigned threshold, key0, key1, layer, low, high;

    Dropout(const Position* where, int image, float keep, unsigned threshold, unsigned layer) : keep(keep), threshold(threshold), layer(layer) {
        if (keep == 0) return;
        unsigned long long index = where->position + image;
        key0 = (unsigned)where->seed, key1 = (unsigned)(where->seed >> 32);
        low = (unsigned)index, high = 7u << 24 | ((unsigned)(index >> 32) & 0xffffff);
    }

    void draw(unsigned block, unsigned (&c)[4]) const {
        c[0] = block, c[1] = layer, c[2] = low, c[3] = high;
        philox(c, key0, key1);
    }

    // Times the factors of the values of an image from `i` on, a multiple of 4.
    void apply(unsigned i, float (&v)[4]) const {
        if (keep == 0) return;
        unsigned word[4];
        draw(i / 4, word);
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] *= word[j] < threshold ? 0.0f : keep;
    }
};

// Values are computed by fours, as the generator gives them, which takes fewer registers than by eights.
template <class E> Vector<E, 4> half(const Vector<E, 8>& v, int which) {
    Vector<E, 4> half;
    constexpr int words = sizeof(half) / 4;
#pragma unroll
    for (int j = 0; j < words; j++) half.word[j] = v.word[which * words + j];
    return half;
}

// From x straight to the activation's input: x·slope + offset.
inline void affine(float mean, float rstd, const float* weight, const float* bias, const float* film /*of the image*/, int c, int channel,
                   float& slope, float& offset) {
    float a = weight[channel], b = bias[channel];
    if (film) {
        float scale = 1.0f + film[channel];
        a *= scale, b = fmaf(b, scale, film[c + channel]);
    }
    slope = a * rstd, offset = fmaf(-mean, slope, b);
}

// launch: grid (chunks, n), block 256, no dynamic shared memory
template <class E>
void norm_sums(const E* __restrict__ x, float* __restrict__ partial, int pixels, int c, int chunk) {
    alignas(16) __shared__ float sums[2][THREADS * 8];
    const int first = blockIdx.x * chunk, count = least(chunk, pixels - first);
    x += ((long long)blockIdx.y * pixels + first) * c;
    partial += ((long long)blockIdx.y * gridDim.x + blockIdx.x) * 2 * c;
    for (int from = 0; from < c / 8; from += THREADS) {
        Lanes at(c / 8, from);
        if (at.active) {
            // Deviations from a value of the channel, so that large means lose nothing.
            float k[8], s[8] = {}, ss[8] = {};
            load<8>(x + 8 * at.column, k);
#pragma unroll 4
            for (int p = at.lane; p < count; p += at.lanes) {
                float v[8];
                load<8>(x + (long long)p * c + 8 * at.column, v);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    float d = v[j] - k[j];
                    s[j] += d, ss[j] = fmaf(d, d, ss[j]);
                }
            }
            store<8>(&sums[0][threadIdx.x * 8], s);
            store<8>(&sums[1][threadIdx.x * 8], ss);
        }
        __syncthreads();
        for (int i = threadIdx.x; i < at.side * 8; i += THREADS) {
            float s = 0, ss = 0;
#pragma unroll 8
            for (int lane = 0; lane < at.lanes; lane++) s += sums[0][lane * at.side * 8 + i], ss += sums[1][lane * at.side * 8 + i];
            const int channel = from * 8 + i;
            float mean = s / count, squares = fmaf(-s, mean, ss);
            partial[channel] = widen(x[channel]) + mean;
            partial[c + channel] = squares < 0 ? 0 : squares;
        }
        __syncthreads();
    }
}

// Mean and sum of squared deviations of some channels of an image, each of as many values.
struct Moments {
    float channels = 0, mean = 0, squares = 0;
    // Chan's formula.
    void merge(float more, float other_mean, float other_squares, float pixels) {
        float all = channels + more, d = other_mean - mean, part = all > 0 ? more / all : 0.0f;
        squares += other_squares + d * d * channels * part * pixels;
        mean = fmaf(d, part, mean);
        channels = all;
    }
};

// Threads that share a group; they are neighbours in a warp.
constexpr int SHARERS = 8;

// The mean and 1/√(variance + eps) of each group, into shared memory, from an image's partials.
inline void merge_moments(const float* __restrict__ partial, int pixels, int c, int groups, int chunk, float eps, float* means, float* rstds) {
    const int wide = c / groups, full = (pixels - 1) / chunk;
    const float last = (float)(pixels - full * chunk);
    // All threads of a warp go through as many turns, because they exchange values.
    for (int turn = 0; turn < groups; turn += THREADS / SHARERS) {
        const int group = turn + threadIdx.x / SHARERS;
        Moments all;
        if (group < groups) {
            for (int i = threadIdx.x % SHARERS; i < wide; i += SHARERS) {
                const float* at = partial + group * wide + i;
                const float k = at[0];
                float s = 0, ss = 0, squares = 0;
#pragma unroll 8
                for (int j = 0; j < full; j++) {
                    float d = at[(long long)j * 2 * c] - k;
                    squares += at[(long long)j * 2 * c + c];
                    s += d, ss = fmaf(d, d, ss);
                }
                at += (long long)full * 2 * c;
                float d = at[0] - k;
                s = fmaf((float)chunk, s, last * d), ss = fmaf((float)chunk, ss, last * d * d);
                float mean = s / pixels;
                all.merge(1, k + mean, squares + at[c] + fmaf(-s, mean, ss), (float)pixels);
            }
        }
        for (int mask = SHARERS / 2; mask; mask /= 2) {
            float channels = __shfl_xor_sync(0xffffffffu, all.channels, mask), mean = __shfl_xor_sync(0xffffffffu, all.mean, mask);
            all.merge(channels, mean, __shfl_xor_sync(0xffffffffu, all.squares, mask), (float)pixels);
        }
        if (group < groups && threadIdx.x % SHARERS == 0) {
            means[group] = all.mean;
            rstds[group] = 1.0f / sqrtf(all.squares / ((float)wide * pixels) + eps);
        }
    }
}

// launch: grid (any, n), block 256, dynamic shared memory 8·groups bytes
template <class E>
void norm_apply(const E* __restrict__ x, const float* __restrict__ partial, const float* __restrict__ weight, const float* __restrict__ bias,
                const float* __restrict__ film, E* __restrict__ y, float* __restrict__ statistics, const Position* __restrict__ where,
                int pixels, int c, int groups, int chunk, float eps, int act, float keep, unsigned threshold, unsigned layer) {
    DYNAMIC_SHARED(float, dynamic);
    alignas(16) __shared__ float slopes[THREADS * 8], offsets[THREADS * 8];
    constexpr int BATCH = 8 / sizeof(E);  // vectors that are on their way at a time
    const int image = blockIdx.y, chunks = (pixels + chunk - 1) / chunk, wide = c / groups;
    const int share = (pixels + gridDim.x - 1) / gridDim.x, first = blockIdx.x * share, end = least(pixels, first + share);
    float *means = dynamic, *rstds = dynamic + groups;
    merge_moments(partial + (long long)image * chunks * 2 * c, pixels, c, groups, chunk, eps, means, rstds);
    __syncthreads();
    const Dropout dropout(where, image, keep, threshold, layer);
    if (film) film += (long long)image * 2 * c;
    statistics += (long long)image * 2 * c;
    x += (long long)image * pixels * c, y += (long long)image * pixels * c;
    for (int from = 0; from < c / 8; from += THREADS) {
        const Lanes at(c / 8, from);
        for (int i = threadIdx.x; i < at.side * 8; i += THREADS) {
            const int channel = from * 8 + i;
            const float mean = means[channel / wide], rstd = rstds[channel / wide];
            affine(mean, rstd, weight, bias, film, c, channel, slopes[i], offsets[i]);
            if (blockIdx.x == 0) statistics[channel] = mean, statistics[c + channel] = rstd;
        }
        __syncthreads();
        if (at.active) {
            float slope[8], offset[8];
            load<8>(slopes + (at.column - from) * 8, slope);
            load<8>(offsets + (at.column - from) * 8, offset);
            for (int p = first + at.lane; p < end; p += BATCH * at.lanes) {
                Vector<E, 8> in[BATCH];
#pragma unroll
                for (int b = 0; b < BATCH; b++)
                    if (p + b * at.lanes < end) in[b] = load<8>(x + (long long)(p + b * at.lanes) * c + 8 * at.column);
#pragma unroll
                for (int b = 0; b < BATCH; b++) {
                    if (p + b * at.lanes >= end) break;
                    const long long i = (long long)(p + b * at.lanes) * c + 8 * at.column;
                    float out[8];
#pragma unroll
                    for (int h = 0; h < 8; h += 4) {
                        float v[4];
                        unpack(half<E>(in[b], h / 4), v);
#pragma unroll
                        for (int j = 0; j < 4; j++) v[j] = fmaf(v[j], slope[h + j], offset[h + j]);
                        if (act) {
#pragma unroll
                            for (int j = 0; j < 4; j++) v[j] = silu(v[j]);
                        }
                        dropout.apply((unsigned)i + h, v);
#pragma unroll
                        for (int j = 0; j < 4; j++) out[h + j] = v[j];
                    }
                    store(y + i, out);
                }
            }
        }
        __syncthreads();
    }
}

// launch: grid (chunks, n), block 256, no dynamic shared memory
template <class E>
void norm_grad_sums(const E* __restrict__ grad, const E* __restrict__ x, const float* __restrict__ statistics, const float* __restrict__ weight,
                    const float* __restrict__ bias, const float* __restrict__ film, float* __restrict__ partial,
                    const Position* __restrict__ where, int pixels, int c, int chunk, int act, float keep, unsigned threshold, unsigned layer) {
    alignas(16) __shared__ float slopes[THREADS * 8], offsets[THREADS * 8], means[THREADS * 8];
    constexpr int BATCH = 4 / sizeof(E);
    const int image = blockIdx.y, first = blockIdx.x * chunk, end = least(pixels, first + chunk);
    const Dropout dropout(where, image, keep, threshold, layer);
    partial += ((long long)image * gridDim.x + blockIdx.x) * 2 * c;
    if (film) film += (long long)image * 2 * c;
    statistics += (long long)image * 2 * c;
    grad += (long long)image * pixels * c, x += (long long)image * pixels * c;
    for (int from = 0; from < c / 8; from += THREADS) {
        const Lanes at(c / 8, from);
        for (int i = threadIdx.x; i < at.side * 8; i += THREADS) {
            const int channel = from * 8 + i;
            means[i] = statistics[channel];
            affine(means[i], statistics[c + channel], weight, bias, film, c, channel, slopes[i], offsets[i]);
        }
        __syncthreads();
        // Of du, and of du·(x - mean).
        float s[8] = {}, sx[8] = {};
        if (at.active) {
            float slope[8], offset[8], mean[8];
            load<8>(slopes + (at.column - from) * 8, slope);
            load<8>(offsets + (at.column - from) * 8, offset);
            load<8>(means + (at.column - from) * 8, mean);
            for (int p = first + at.lane; p < end; p += BATCH * at.lanes) {
                Vector<E, 8> in[BATCH], of[BATCH];
#pragma unroll
                for (int b = 0; b < BATCH; b++) {
                    if (p + b * at.lanes >= end) break;
                    const long long i = (long long)(p + b * at.lanes) * c + 8 * at.column;
                    in[b] = load<8>(x + i), of[b] = load<8>(grad + i);
                }
#pragma unroll
                for (int b = 0; b < BATCH; b++) {
                    if (p + b * at.lanes >= end) break;
                    const unsigned i = (unsigned)((p + b * at.lanes) * c + 8 * at.column);
#pragma unroll
                    for (int h = 0; h < 8; h += 4) {
                        float v[4], g[4];
                        unpack(half<E>(in[b], h / 4), v), unpack(half<E>(of[b], h / 4), g);
                        dropout.apply(i + h, g);
                        if (act) {
#pragma unroll
                            for (int j = 0; j < 4; j++) g[j] *= silu_slope(fmaf(v[j], slope[h + j], offset[h + j]));
                        }
#pragma unroll
                        for (int j = 0; j < 4; j++) s[h + j] += g[j], sx[h + j] = fmaf(g[j], v[j] - mean[h + j], sx[h + j]);
                    }
                }
            }
        }
        // The memory of slopes and offsets serves for the lanes' sums.
        __syncthreads();
        if (at.active) store<8>(slopes + threadIdx.x * 8, s), store<8>(offsets + threadIdx.x * 8, sx);
        __syncthreads();
        for (int i = threadIdx.x; i < at.side * 8; i += THREADS) {
            float s = 0, sx = 0;
#pragma unroll 8
            for (int lane = 0; lane < at.lanes; lane++) s += slopes[lane * at.side * 8 + i], sx += offsets[lane * at.side * 8 + i];
            partial[from * 8 + i] = s;
            partial[c + from * 8 + i] = sx * statistics[c + from * 8 + i];
        }
        __syncthreads();
    }
}

// An image's sums of du and du·x̂ of a channel, over its chunks in order.
inline void sum_chunks(const float* __restrict__ at, int c, int chunks, float& s, float& sx) {
    s = sx = 0;
#pragma unroll 8
    for (int j = 0; j < chunks; j++) s += at[(long long)j * 2 * c], sx += at[(long long)j * 2 * c + c];
}

// launch: grid (any, n), block 256, dynamic shared memory 8·groups bytes
template <class E>
void norm_grad_apply(const E* __restrict__ grad, const E* __restrict__ x, const float* __restrict__ statistics, const float* __restrict__ weight,
                     const float* __restrict__ bias, const float* __restrict__ film, const float* __restrict__ partial,
                     const E* __restrict__ onto, E* __restrict__ dx, const Position* __restrict__ where, int pixels, int c, int groups, int chunk,
                     int act, float keep, unsigned threshold, unsigned layer) {
    DYNAMIC_SHARED(float, dynamic);
    alignas(16) __shared__ float slopes[THREADS * 8], offsets[THREADS * 8], factors[THREADS * 8], constants[THREADS * 8];
    const int image = blockIdx.y, chunks = (pixels + chunk - 1) / chunk, wide = c / groups;
    const int share = (pixels + gridDim.x - 1) / gridDim.x, first = blockIdx.x * share, end = least(pixels, first + share);
    float *m1 = dynamic, *m2 = dynamic + groups;
    const Dropout dropout(where, image, keep, threshold, layer);
    partial += (long long)image * chunks * 2 * c;
    if (film) film += (long long)image * 2 * c;
    statistics += (long long)image * 2 * c;
    const long long start = (long long)image * pixels * c;
    grad += start, x += start, dx += start;
    if (onto) onto += start;
    // The means over each group of a·du and a·du·x̂.
    for (int turn = 0; turn < groups; turn += THREADS / SHARERS) {
        const int group = turn + threadIdx.x / SHARERS;
        float s = 0, sx = 0;
        if (group < groups) {
            for (int i = threadIdx.x % SHARERS; i < wide; i += SHARERS) {
                const int channel = group * wide + i;
                float own, own_x, a = weight[channel];
                if (film) a *= 1.0f + film[channel];
                sum_chunks(partial + channel, c, chunks, own, own_x);
                s = fmaf(a, own, s), sx = fmaf(a, own_x, sx);
            }
        }
        for (int mask = SHARERS / 2; mask; mask /= 2) s += __shfl_xor_sync(0xffffffffu, s, mask), sx += __shfl_xor_sync(0xffffffffu, sx, mask);
        if (group < groups && threadIdx.x % SHARERS == 0) m1[group] = s / ((float)wide * pixels), m2[group] = sx / ((float)wide * pixels);
    }
    __syncthreads();
    for (int from = 0; from < c / 8; from += THREADS) {
        const Lanes at(c / 8, from);
        for (int i = threadIdx.x; i < at.side * 8; i += THREADS) {
            const int channel = from * 8 + i;
            const float mean = statistics[channel], rstd = statistics[c + channel];
            affine(mean, rstd, weight, bias, film, c, channel, slopes[i], offsets[i]);
            // dx = slope·du - rstd·(m1 + x̂·m2) = slope·du + x·factor + constant.
            const float factor = -rstd * rstd * m2[channel / wide];
            factors[i] = factor, constants[i] = fmaf(-mean, factor, -rstd * m1[channel / wide]);
        }
        __syncthreads();
        if (at.active) {
            float slope[8], offset[8], factor[8], constant[8];
            load<8>(slopes + (at.column - from) * 8, slope);
            load<8>(offsets + (at.column - from) * 8, offset);
            load<8>(factors + (at.column - from) * 8, factor);
            load<8>(constants + (at.column - from) * 8, constant);
            // One pixel at a time: more registers would cost more warps than they are worth.
            for (int p = first + at.lane; p < end; p += at.lanes) {
                const long long i = (long long)p * c + 8 * at.column;
                Vector<E, 8> in = load<8>(x + i), of = load<8>(grad + i), more;
                if (onto) more = load<8>(onto + i);
                float out[8];
#pragma unroll
                for (int h = 0; h < 8; h += 4) {
                    float v[4], g[4];
                    unpack(half<E>(in, h / 4), v), unpack(half<E>(of, h / 4), g);
                    dropout.apply((unsigned)i + h, g);
                    if (act) {
#pragma unroll
                        for (int j = 0; j < 4; j++) g[j] *= silu_slope(fmaf(v[j], slope[h + j], offset[h + j]));
                    }
#pragma unroll
                    for (int j = 0; j < 4; j++) v[j] = fmaf(slope[h + j], g[j], fmaf(v[j], factor[h + j], constant[h + j]));
                    if (onto) {
                        unpack(half<E>(more, h / 4), g);
#pragma unroll
                        for (int j = 0; j < 4; j++) v[j] += g[j];
                    }
#pragma unroll
                    for (int j = 0; j < 4; j++) out[h + j] = v[j];
                }
                store(dx + i, out);
            }
        }
        __syncthreads();
    }
}

// launch: grid (ceil(c/256), n), block 256
PLAIN void __launch_bounds__(THREADS)
norm_grad_film(const float* __restrict__ partial, const float* __restrict__ weight, const float* __restrict__ bias, float* __restrict__ film_grad,
               int c, int chunks) {
    const int channel = blockIdx.x * THREADS + threadIdx.x, image = blockIdx.y;
    if (channel >= c) return;
    float s, sx;
    sum_chunks(partial + (long long)image * chunks * 2 * c + channel, c, chunks, s, sx);
    film_grad += (long long)image * 2 * c;
    film_grad[channel] = weight[channel] * sx + bias[channel] * s;
    film_grad[c + channel] = s;
}

// A block of ROW_THREADS sums rows for 8 channels: add(row, channel, sums) into K sums, then all lanes in a fixed order.
constexpr int ROW_THREADS = 512;
template <int K, class F> void sum_rows(int rows, int c, float* const (&out)[K], F add) {
    __shared__ float of_warp[K][ROW_THREADS / 32][8];
    const int channel = blockIdx.x * 8 + threadIdx.x % 8;
    float sum[K] = {};
    if (channel < c)
#pragma unroll 4
        for (int row = threadIdx.x / 8; row < rows; row += ROW_THREADS / 8) add(row, channel, sum);
    for (int k = 0; k < K; k++) {
        sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], 8);
        sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], 16);
        if (threadIdx.x % 32 < 8) of_warp[k][threadIdx.x / 32][threadIdx.x % 8] = sum[k];
    }
    __syncthreads();
    if (threadIdx.x >= 8 || channel >= c) return;
    for (int k = 0; k < K; k++) {
        float all = 0;
        for (int warp = 0; warp < ROW_THREADS / 32; warp++) all += of_warp[k][warp][threadIdx.x];
        out[k][channel] = all;
    }
}

// launch: grid (ceil(c/8)), block 512
PLAIN void __launch_bounds__(ROW_THREADS)
norm_grad_parameters(const float* __restrict__ partial, const float* __restrict__ film, float* __restrict__ dweight, float* __restrict__ dbias,
                     int n, int c, int chunks) {
    float* const out[2] = {dbias, dweight};
    sum_rows(n * chunks, c, out, [&](int row, int channel, float (&sum)[2]) {
        const float* at = partial + (long long)row * 2 * c + channel;
        const float scale = film ? 1.0f + film[(long long)(row / chunks) * 2 * c + channel] : 1.0f;
        sum[0] = fmaf(scale, at[0], sum[0]), sum[1] = fmaf(scale, at[c], sum[1]);
    });
}

// Blocks of a multiprocessor, which limit the registers, as far as nothing spills.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define APPLY_BLOCKS 2
#define GRAD_SUMS_BLOCKS 2
#else
#define APPLY_BLOCKS 4
#define GRAD_SUMS_BLOCKS 3
#endif
KERNEL(norm_sums, (THREADS, 4),
       (const E* __restrict__ x, float* __restrict__ partial, int pixels, int c, int chunk),
       (x, partial, pixels, c, chunk))
KERNEL(norm_apply, (THREADS, APPLY_BLOCKS),
       (const E* __restrict__ x, const float* __restrict__ partial, const float* __restrict__ weight, const float* __restrict__ bias,
        const float* __restrict__ film, E* __restrict__ y, float* __restrict__ statistics, const Position* __restrict__ where,
        int pixels, int c, int groups, int chunk, float eps, int silu, float keep, unsigned threshold, unsigned layer),
       (x, partial, weight, bias, film, y, statistics, where, pixels, c, groups, chunk, eps, silu, keep, threshold, layer))
KERNEL(norm_grad_sums, (THREADS, GRAD_SUMS_BLOCKS),
       (const E* __restrict__ grad, const E* __restrict__ x, const float* __restrict__ statistics, const float* __restrict__ weight,
        const float* __restrict__ bias, const float* __restrict__ film, float* __restrict__ partial, const Position* __restrict__ where,
        int pixels, int c, int chunk, int silu, float keep, unsigned threshold, unsigned layer),
       (grad, x, statistics, weight, bias, film, partial, where, pixels, c, chunk, silu, keep, threshold, layer))
KERNEL(norm_grad_apply, (THREADS, 3),
       (const E* __restrict__ grad, const E* __restrict__ x, const float* __restrict__ statistics, const float* __restrict__ weight,
        const float* __restrict__ bias, const float* __restrict__ film, const float* __restrict__ partial, const E* __restrict__ onto,
        E* __restrict__ dx, const Position* __restrict__ where, int pixels, int c, int groups, int chunk, int silu, float keep,
        unsigned threshold, unsigned layer),
       (grad, x, statistics, weight, bias, film, partial, onto, dx, where, pixels, c, groups, chunk, silu, keep, threshold, layer))
