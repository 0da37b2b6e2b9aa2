// What is done value by value, and sums over pixels or rows. Widths are any, fast where they are multiples of 8.

// f of each value. Two vectors are on their way at a time. y may be the memory of x.
template <class E, class F> void map(const E* x, E* y, long long len, F f) {
    const long long vectors = len / 8, step = (long long)gridDim.x * THREADS;
    auto finish = [&](long long i, Vector<E, 8> in) {
        float v[8];
        unpack(in, v);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = f(v[j]);
        store(y + 8 * i, v);
    };
    for (long long i = (long long)blockIdx.x * THREADS + threadIdx.x; i < vectors; i += 2 * step) {
        const bool two = i + step < vectors;
        Vector<E, 8> first = load<8>(x + 8 * i), second = first;
        if (two) second = load<8>(x + 8 * (i + step));
        finish(i, first);
        if (two) finish(i + step, second);
    }
    const long long rest = vectors * 8 + threadIdx.x;
    if (blockIdx.x == 0 && rest < len) y[rest] = narrow<E>(f(widen(x[rest])));
}

// f of each pair of values. y may be the memory of a or b.
template <class E, class F> void map(const E* a, const E* b, E* y, long long len, F f) {
    const long long vectors = len / 8, step = (long long)gridDim.x * THREADS;
    auto finish = [&](long long i, Vector<E, 8> a, Vector<E, 8> b) {
        float v[8], w[8];
        unpack(a, v), unpack(b, w);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = f(v[j], w[j]);
        store(y + 8 * i, v);
    };
    for (long long i = (long long)blockIdx.x * THREADS + threadIdx.x; i < vectors; i += 2 * step) {
        const bool two = i + step < vectors;
        Vector<E, 8> a0 = load<8>(a + 8 * i), b0 = load<8>(b + 8 * i), a1 = a0, b1 = b0;
        if (two) a1 = load<8>(a + 8 * (i + step)), b1 = load<8>(b + 8 * (i + step));
        finish(i, a0, b0);
        if (two) finish(i + step, a1, b1);
    }
    const long long rest = vectors * 8 + threadIdx.x;
    if (blockIdx.x == 0 && rest < len) y[rest] = narrow<E>(f(widen(a[rest]), widen(b[rest])));
}

// launch of the five: grid (any; ceil(len/4096) at most), block 256
struct Silu { float operator()(float x) const { return ::silu(x); } };
struct SiluGrad { float operator()(float grad, float x) const { return grad * silu_slope(x); } };
// Comparisons with NaN are false: it stays.
struct Relu { float operator()(float x) const { return x < 0 ? 0 : x; } };
struct ReluGrad { float operator()(float grad, float x) const { return x <= 0 ? 0 : grad; } };
struct Sum { float operator()(float a, float b) const { return a + b; } };

// A kernel for widths of whole vectors, or else value by value.
#define BY_WIDTH(c, call8, call1) \
    if ((c) % 8 == 0) call8; \
    else call1

// launch: grid (any; ceil(p·c/4096) at most, n), block 256
template <int W, class E>
void add_rows(const E* x, const float* __restrict__ rows, E* y, int p, int c) {
    const long long start = (long long)blockIdx.y * p * c;
    walk(p, c / W, [&](long long pixel, int column) {
        float v[W], row[W];
        load<W>(x + start + pixel * c + W * column, v);
        load<W>(rows + (long long)blockIdx.y * c + W * column, row);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] += row[j];
        store(y + start + pixel * c + W * column, v);
    });
}
template <class E>
void add_rows(const E* x, const float* rows, E* y, int, int p, int c) {
    BY_WIDTH(c, (add_rows<8>(x, rows, y, p, c)), (add_rows<1>(x, rows, y, p, c)));
}

// launch: grid (any; ceil(p·c/4096) at most, n), block 256
template <int W, class E>
void spread_rows(const float* __restrict__ rows, E* __restrict__ y, int p, int c, float scale) {
    const long long start = (long long)blockIdx.y * p * c;
    walk(p, c / W, [&](long long pixel, int column) {
        float v[W];
        load<W>(rows + (long long)blockIdx.y * c + W * column, v);
#pragma unroll
        for (int j = 0; j < W; j++) v[j] *= scale;
        store(y + start + pixel * c + W * column, v);
    });
}
template <class E>
void spread_rows(const float* rows, E* y, int, int p, int c, float scale) {
    BY_WIDTH(c, (spread_rows<8>(rows, y, p, c, scale)), (spread_rows<1>(rows, y, p, c, scale)));
}

// A block's sums over `rows` rows of `width` columns, times `scale`; rows lie `c` apart.
template <int W, class E>
void sum_columns(const E* __restrict__ x, int rows, int c, int width, float* __restrict__ out, float scale) {
    alignas(16) __shared__ float sums[THREADS * W];
    for (int from = 0; from < width / W; from += THREADS) {
        const Lanes at(width / W, from);
        float s[W] = {};
        if (at.active) {
#pragma unroll 4
            for (int row = at.lane; row < rows; row += at.lanes) {
                float v[W];
                load<W>(x + (long long)row * c + W * at.column, v);
#pragma unroll
                for (int j = 0; j < W; j++) s[j] += v[j];
            }
            store(sums + threadIdx.x * W, s);
        }
        __syncthreads();
        for (int i = threadIdx.x; i < at.side * W; i += THREADS) {
            float all = 0;
#pragma unroll 8
            for (int lane = 0; lane < at.lanes; lane++) all += sums[lane * at.side * W + i];
            out[from * W + i] = all * scale;
        }
        __syncthreads();
    }
}

// Channels of a block of sum_pixels.
constexpr int SLICE = 64;

// launch: grid (ceil(c/64), n), block 256
template <class E>
void sum_pixels(const E* x, float* rows, int, int p, int c, float scale) {
    const int from = blockIdx.x * SLICE, width = least(SLICE, c - from);
    x += (long long)blockIdx.y * p * c + from, rows += (long long)blockIdx.y * c + from;
    BY_WIDTH(c, (sum_columns<8>(x, p, c, width, rows, scale)), (sum_columns<1>(x, p, c, width, rows, scale)));
}

// launch: grid (chunks), block 256
template <class E>
void column_sums(const E* x, float* partial, int rows, int c, int chunk) {
    const int first = blockIdx.x * chunk, count = least(chunk, rows - first);
    x += (long long)first * c, partial += (long long)blockIdx.x * c;
    BY_WIDTH(c, (sum_columns<8>(x, count, c, c, partial, 1)), (sum_columns<1>(x, count, c, c, partial, 1)));
}

// launch: grid (ceil(c/8)), block 512
PLAIN void __launch_bounds__(ROW_THREADS)
column_sums_finish(const float* __restrict__ partial, float* __restrict__ out, int chunks, int c) {
    float* const outs[1] = {out};
    sum_rows(chunks, c, outs, [&](int row, int channel, float (&sum)[1]) { sum[0] += partial[(long long)row * c + channel]; });
}

// launch: grid (any; ceil(rows·c/4096) at most), block 256. y may be the memory of x or the residual.
template <int W, class E>
void bias_residual(const E* x, const float* __restrict__ bias, const E* residual, E* y, int rows, int c, int relu) {
    for (int from = 0; from < c / W; from += THREADS) {
        const Lanes at(c / W, from);
        if (!at.active) continue;
        // A parameter may begin anywhere in the vector of all, so it is read value by value.
        float own[W];
#pragma unroll
        for (int j = 0; j < W; j++) own[j] = bias[W * at.column + j];
        constexpr int BATCH = 2;
        const int step = gridDim.x * at.lanes;
        for (long long row = (long long)blockIdx.x * at.lanes + at.lane; row < rows; row += BATCH * step) {
            Vector<E, W> in[BATCH], more[BATCH];
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                if (row + b * step >= rows) break;
                const long long i = (row + b * step) * c + W * at.column;
                in[b] = load<W>(x + i);
                if (residual) more[b] = load<W>(residual + i);
            }
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                if (row + b * step >= rows) break;
                float v[W], r[W];
                unpack(in[b], v);
#pragma unroll
                for (int j = 0; j < W; j++) v[j] += own[j];
                if (residual) {
                    unpack(more[b], r);
#pragma unroll
                    for (int j = 0; j < W; j++) v[j] += r[j];
                }
                if (relu) {
#pragma unroll
                    for (int j = 0; j < W; j++) v[j] = v[j] < 0 ? 0 : v[j];
                }
                store(y + (row + b * step) * c + W * at.column, v);
            }
        }
    }
}
template <class E>
void bias_residual(const E* x, const float* bias, const E* residual, E* y, int rows, int c, int relu) {
    BY_WIDTH(c, (bias_residual<8>(x, bias, residual, y, rows, c, relu)), (bias_residual<1>(x, bias, residual, y, rows, c, relu)));
}

// The label of an image without a class: no row of the table is its.
constexpr unsigned NO_CLASS = 0xffffffff;

// launch: grid (any; ceil(n·c/256) at most), block 256
PLAIN void __launch_bounds__(THREADS)
embed(const float* __restrict__ rows, const float* __restrict__ table, const unsigned* __restrict__ labels, float* __restrict__ out, int n, int c) {
    each((long long)n * c, [&](long long i) {
        unsigned label = labels[i / c];
        out[i] = label == NO_CLASS ? rows[i] : rows[i] + table[(long long)label * c + i % c];
    });
}

// launch: grid (any; ceil(classes·c/256) at most), block 256
PLAIN void __launch_bounds__(THREADS)
embed_grad(const float* __restrict__ grad, const unsigned* __restrict__ labels, float* __restrict__ table_grad, int n, int c, int classes) {
    each((long long)classes * c, [&](long long i) {
        float sum = 0;
        for (int image = 0; image < n; image++)
            if (labels[image] == i / c) sum += grad[(long long)image * c + i % c];
        table_grad[i] = sum;
    });
}

// A block has TOKEN_CHANNELS channels; its lanes share the tokens.
constexpr int TOKEN_CHANNELS = 32;

// launch: grid (ceil(c/32), n), block 256
PLAIN void __launch_bounds__(THREADS)
tokens(const float* __restrict__ x, const float* __restrict__ positions, float* __restrict__ out, int, int p, int c) {
    __shared__ float sums[THREADS];
    const int channel = blockIdx.x * TOKEN_CHANNELS + threadIdx.x % TOKEN_CHANNELS, lane = threadIdx.x / TOKEN_CHANNELS;
    const int lanes = THREADS / TOKEN_CHANNELS;
    x += (long long)blockIdx.y * p * c, out += (long long)blockIdx.y * (p + 1) * c;
    const float* position = positions + (long long)channel * (p + 1);
    float sum = 0;
    if (channel < c)
        for (int pixel = lane; pixel < p; pixel += lanes) {
            const float v = x[(long long)pixel * c + channel];
            sum += v;
            out[(long long)(pixel + 1) * c + channel] = v + position[pixel + 1];
        }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (lane > 0 || channel >= c) return;
    for (int other = 1; other < lanes; other++) sum += sums[other * TOKEN_CHANNELS + threadIdx.x];
    out[channel] = sum / p + position[0];
}

// launch: grid (any; ceil(p·c/256) at most, n), block 256
PLAIN void __launch_bounds__(THREADS)
tokens_grad(const float* __restrict__ grad, float* __restrict__ dx, int, int p, int c) {
    grad += (long long)blockIdx.y * (p + 1) * c, dx += (long long)blockIdx.y * p * c;
    walk(p, c, [&](long long pixel, int channel) { dx[pixel * c + channel] = grad[(pixel + 1) * c + channel] + grad[channel] / p; });
}

// launch: grid (any; ceil((p + 1)·c/256) at most), block 256
PLAIN void __launch_bounds__(THREADS)
positions_grad(const float* __restrict__ grad, float* __restrict__ positions, int n, int p, int c) {
    walk(p + 1, c, [&](long long token, int channel) {
        float sum = 0;
#pragma unroll 8
        for (int image = 0; image < n; image++) sum += grad[((long long)image * (p + 1) + token) * c + channel];
        positions[(long long)channel * (p + 1) + token] = sum;
    });
}

// launch: grid (any; ceil(n·c/256) at most), block 256
PLAIN void __launch_bounds__(THREADS)
first_token(const float* __restrict__ x, float* __restrict__ out, int n, int t, int c) {
    walk(n, c, [&](long long image, int channel) { out[image * c + channel] = x[image * t * c + channel]; });
}

// launch: grid (any; ceil(n·t·c/256) at most), block 256
PLAIN void __launch_bounds__(THREADS)
first_token_grad(const float* __restrict__ grad, float* __restrict__ out, int n, int t, int c) {
    walk((long long)n * t, c, [&](long long token, int channel) {
        const unsigned image = (unsigned)token / t;
        out[token * c + channel] = token == (long long)image * t ? grad[(long long)image * c + channel] : 0;
    });
}

// Windows of 3x3 pixels every `stride` from `padding` before the border on; what lies outside adds nothing.
// launch: grid (any; ceil(n·oh·ow·c/2048) at most), block 256
template <int W, class E>
void pool(const E* __restrict__ x, E* __restrict__ y, int n, int h, int w, int c, int oh, int ow, int stride, int padding, int maximum) {
    walk((long long)n * oh * ow, c / W, [&](long long pixel, int column) {
        const unsigned line = (unsigned)pixel / ow, image = line / oh;
        const int top = (int)(line % oh) * stride - padding, left = (int)((unsigned)pixel % ow) * stride - padding;
        float sum[W];
        int count = 0;
#pragma unroll
        for (int j = 0; j < W; j++) sum[j] = maximum ? -__uint_as_float(0x7f800000u) : 0.0f;
        for (int k = 0; k < 9; k++) {
            const int row = top + k / 3, at = left + k % 3;
            if (row < 0 || row >= h || at < 0 || at >= w) continue;
            float v[W];
            load<W>(x + (((long long)image * h + row) * w + at) * c + W * column, v);
            count++;
            // Comparisons with NaN are false: it takes the place of anything, and nothing takes its.
#pragma unroll
            for (int j = 0; j < W; j++) sum[j] = !maximum ? sum[j] + v[j] : sum[j] >= v[j] || sum[j] != sum[j] ? sum[j] : v[j];
        }
        const float divisor = maximum ? 1.0f : (float)count;
#pragma unroll
        for (int j = 0; j < W; j++) sum[j] /= divisor;
        store(y + pixel * c + W * column, sum);
    });
}
template <class E>
void pool(const E* x, E* y, int n, int h, int w, int c, int oh, int ow, int stride, int padding, int maximum) {
    BY_WIDTH(c, (pool<8>(x, y, n, h, w, c, oh, ow, stride, padding, maximum)),
             (pool<1>(x, y, n, h, w, c, oh, ow, stride, padding, maximum)));
}

template <class E> void silu(const E* x, E* y, long long len) { map(x, y, len, Silu()); }
template <class E> void silu_grad(const E* grad, const E* x, E* dx, long long len) { map(grad, x, dx, len, SiluGrad()); }
template <class E> void relu(const E* x, E* y, long long len) { map(x, y, len, Relu()); }
template <class E> void relu_grad(const E* grad, const E* x, E* dx, long long len) { map(grad, x, dx, len, ReluGrad()); }
template <class E> void add(const E* a, const E* b, E* y, long long len) { map(a, b, y, len, Sum()); }

KERNEL(silu, (THREADS), (const E* x, E* y, long long len), (x, y, len))
KERNEL(silu_grad, (THREADS), (const E* grad, const E* x, E* dx, long long len), (grad, x, dx, len))
KERNEL(relu, (THREADS), (const E* x, E* y, long long len), (x, y, len))
KERNEL(relu_grad, (THREADS), (const E* grad, const E* x, E* dx, long long len), (grad, x, dx, len))
KERNEL(add, (THREADS), (const E* a, const E* b, E* y, long long len), (a, b, y, len))
KERNEL(add_rows, (THREADS), (const E* x, const float* __restrict__ rows, E* y, int n, int p, int c), (x, rows, y, n, p, c))
KERNEL(sum_pixels, (THREADS), (const E* __restrict__ x, float* __restrict__ rows, int n, int p, int c, float scale), (x, rows, n, p, c, scale))
KERNEL(spread_rows, (THREADS), (const float* __restrict__ rows, E* __restrict__ y, int n, int p, int c, float scale), (rows, y, n, p, c, scale))
KERNEL(column_sums, (THREADS), (const E* __restrict__ x, float* __restrict__ partial, int rows, int c, int chunk), (x, partial, rows, c, chunk))
KERNEL(bias_residual, (THREADS), (const E* x, const float* __restrict__ bias, const E* residual, E* y, int rows, int c, int relu),
       (x, bias, residual, y, rows, c, relu))
KERNEL(pool, (THREADS, 4),
       (const E* __restrict__ x, E* __restrict__ y, int n, int h, int w, int c, int oh, int ow, int stride, int padding, int maximum),
       (x, y, n, h, w, c, oh, ow, stride, padding, maximum))
