// What moves values: between planes and pixels, between the layouts of weights, between numbers of channels, sizes and types.

// launch: grid (any; ceil(n·p/256) at most), block 256
template <class E>
void enter(const float* __restrict__ planes, E* __restrict__ pixels, int n, int ci, int p, int c, int at) {
    each((long long)n * p, [&](long long i) {
        const long long image = i / p, pixel = i % p;
        for (int k = 0; k < ci; k++) pixels[i * c + at + k] = narrow<E>(planes[(image * ci + k) * p + pixel]);
    });
}

// launch: grid (any; ceil(n·p/256) at most), block 256
template <class E>
void leave(const E* __restrict__ pixels, float* __restrict__ planes, int n, int ci, int p, int c) {
    each((long long)n * p, [&](long long i) {
        const long long image = i / p, pixel = i % p;
        for (int k = 0; k < ci; k++) planes[(image * ci + k) * p + pixel] = widen(pixels[i * c + k]);
    });
}

// Weights of an output channel change their layout in shared memory, TILE values at a time: whole taps of some input channels. A kernel has
// at most TILE / 8 taps.
constexpr int TILE = 2304;

// Four bytes of E: pairs of 16-bit values, which fill a warp's 128 bytes.
template <class E> constexpr int CELL = 4 / sizeof(E);

// f(output channel, first input channel, input channels) of every tile, by the whole grid.
template <class F> void each_tile(int o, int i, int taps, F f) {
    // A multiple of 8 keeps tiles aligned where the weights are.
    const int wide = TILE / taps / 8 * 8, tiles = (i + wide - 1) / wide;
    for (long long tile = blockIdx.x; tile < (long long)o * tiles; tile += gridDim.x) {
        const int from = (int)(tile % tiles) * wide;
        f((int)(tile / tiles), from, least(wide, i - from));
    }
}

// W neighbours at a time, then the rest one by one: f(index, number of neighbours as a type) by the whole grid.
template <int W> struct Count { static constexpr int value = W; };
template <int W, class F> void each_vector(long long len, F f) {
    each(len / W, [&](long long i) { f(i * W, Count<W>()); });
    if constexpr (W > 1) {
        if (blockIdx.x == 0 && threadIdx.x < len % W) f(len / W * W + threadIdx.x, Count<1>());
    }
}

template <int W, class A, class B> void convert(const A* from, B* to) {
    float v[W];
    load<W>(from, v);
    store(to, v);
}

// launch: grid (any; ceil(o·i·taps/2048) at most), block 256
template <class E>
void weights_out(const E* __restrict__ w, float* __restrict__ out, int o, int i, int taps) {
    alignas(16) __shared__ float tile[TILE];
    each_tile(o, i, taps, [&](int channel, int from, int count) {
        const E* in = w + (long long)channel * taps * i + from;
        const int values = count * taps;
        if (i % CELL<E> == 0) {
            const unsigned cells = count / CELL<E>;
            for (unsigned k = threadIdx.x; k < cells * taps; k += THREADS) {
                const unsigned tap = k / cells, at = k % cells * CELL<E>;
                float v[CELL<E>];
                load<CELL<E>>(in + (long long)tap * i + at, v);
#pragma unroll
                for (int j = 0; j < CELL<E>; j++) tile[(at + j) * taps + tap] = v[j];
            }
        } else {
            for (unsigned k = threadIdx.x; k < (unsigned)values; k += THREADS)
                tile[k % count * taps + k / count] = widen(in[(long long)(k / count) * i + k % count]);
        }
        __syncthreads();
        float* to = out + ((long long)channel * i + from) * taps;
        if ((unsigned long long)to % 16 == 0) {
            for (int k = threadIdx.x; k < values / 4; k += THREADS) {
                float v[4];
                load<4>(tile + 4 * k, v);
                store(to + 4 * k, v);
            }
            for (int k = values / 4 * 4 + threadIdx.x; k < values; k += THREADS) to[k] = tile[k];
        } else {
            for (int k = threadIdx.x; k < values; k += THREADS) to[k] = tile[k];
        }
        __syncthreads();
    });
}

// `count` values of rows that lie `stride` apart.
template <class E>
void copy_rows(const E* __restrict__ x, int stride, E* __restrict__ out, int out_stride, long long rows, int count, bool whole_vectors) {
    if (whole_vectors)
        walk(rows, count / 8, [&](long long row, int column) {
            *reinterpret_cast<Vector<E, 8>*>(out + row * out_stride + 8 * column) = load<8>(x + row * stride + 8 * column);
        });
    else walk(rows, count, [&](long long row, int column) { out[row * out_stride + column] = x[row * stride + column]; });
}

// launch: grid (any; ceil(rows·c/2048) at most), block 256
template <class E>
void place(const E* __restrict__ x, E* __restrict__ out, long long rows, int c, int out_c, int at) {
    copy_rows(x, c, out + at, out_c, rows, c, (c | out_c | at) % 8 == 0);
}

// launch: grid (any; ceil(rows·count/2048) at most), block 256
template <class E>
void take(const E* __restrict__ x, E* __restrict__ out, long long rows, int c, int from, int count) {
    copy_rows(x + from, c, out, count, rows, count, (c | from | count) % 8 == 0);
}

// launch: grid (any; ceil(n·h·w·c/2048) at most), block 256
template <class E>
void up(const E* __restrict__ x, E* __restrict__ out, int n, int h, int w, int c, float scale) {
    walk((long long)n * h * w, c / 8, [&](long long pixel, int column) {
        float v[8];
        load<8>(x + pixel * c + 8 * column, v);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] *= scale;
        // The line of pixels is that of the image above, so images need no index of their own.
        const unsigned line = (unsigned)pixel / w, at = (unsigned)pixel % w;
        E* to = out + ((long long)line * 4 * w + 2 * at) * c + 8 * column;
        store(to, v), store(to + c, v), store(to + 2ll * w * c, v), store(to + (2ll * w + 1) * c, v);
    });
}

// launch: grid (any; ceil(n·h·w·c/2048) at most), block 256
template <class E>
void down(const E* __restrict__ x, E* __restrict__ out, int n, int h, int w, int c, float scale) {
    walk((long long)n * h * w, c / 8, [&](long long pixel, int column) {
        const unsigned line = (unsigned)pixel / w, at = (unsigned)pixel % w;
        const E* from = x + ((long long)line * 4 * w + 2 * at) * c + 8 * column;
        const Vector<E, 8> in[4] = {load<8>(from), load<8>(from + c), load<8>(from + 2ll * w * c), load<8>(from + (2ll * w + 1) * c)};
        float v[8], next[8];
        unpack(in[0], v);
#pragma unroll
        for (int k = 1; k < 4; k++) {
            unpack(in[k], next);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] += next[j];
        }
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] *= scale;
        store(out + pixel * c + 8 * column, v);
    });
}

// launch: grid (any; ceil(len/2048) at most), block 256
template <class E>
void to_f32(const E* __restrict__ x, float* __restrict__ y, long long len) {
    each_vector<8>(len, [&](long long i, auto neighbours) { convert<neighbours.value>(x + i, y + i); });
}

// launch: grid (any; ceil(len/2048) at most), block 256
template <class E>
void from_f32(const float* __restrict__ x, E* __restrict__ y, long long len) {
    each_vector<8>(len, [&](long long i, auto neighbours) { convert<neighbours.value>(x + i, y + i); });
}

KERNEL(enter, (THREADS), (const float* __restrict__ planes, E* __restrict__ pixels, int n, int ci, int p, int c, int at),
       (planes, pixels, n, ci, p, c, at))
KERNEL(leave, (THREADS), (const E* __restrict__ pixels, float* __restrict__ planes, int n, int ci, int p, int c), (pixels, planes, n, ci, p, c))
KERNEL(weights_out, (THREADS), (const E* __restrict__ w, float* __restrict__ out, int o, int i, int taps), (w, out, o, i, taps))
KERNEL(place, (THREADS), (const E* __restrict__ x, E* __restrict__ out, long long rows, int c, int out_c, int at), (x, out, rows, c, out_c, at))
KERNEL(take, (THREADS), (const E* __restrict__ x, E* __restrict__ out, long long rows, int c, int from, int count), (x, out, rows, c, from, count))
KERNEL(up, (THREADS), (const E* __restrict__ x, E* __restrict__ out, int n, int h, int w, int c, float scale), (x, out, n, h, w, c, scale))
KERNEL(down, (THREADS), (const E* __restrict__ x, E* __restrict__ out, int n, int h, int w, int c, float scale), (x, out, n, h, w, c, scale))
KERNEL(to_f32, (THREADS), (const E* __restrict__ x, float* __restrict__ y, long long len), (x, y, len))
KERNEL(from_f32, (THREADS), (const float* __restrict__ x, E* __restrict__ y, long long len), (x, y, len))
