// The network's weights in the type and layout of the convolutions, all of them at once: [O, I, taps] to [O, taps, I].

// A layer: where it lies among the parameters, where it goes in memory (in bytes), its sizes, and its first block.
struct Layer { long long from, to; int o, i, taps, first; };

// launch: a block for each unit of work: TILE values where there is one tap, else the taps of as many input channels as fit
template <class E>
void prepare(const float* __restrict__ parameters, char* __restrict__ memory, const Layer* __restrict__ layers, int count) {
    alignas(16) __shared__ float tile[TILE];
    int low = 0, high = count;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (layers[middle].first <= (int)blockIdx.x) low = middle;
        else high = middle;
    }
    const Layer layer = layers[low];
    const int unit = (int)blockIdx.x - layer.first, taps = layer.taps, i = layer.i;
    const float* in = parameters + layer.from;
    E* out = reinterpret_cast<E*>(memory + layer.to);
    if (taps == 1) {
        const long long from = (long long)unit * TILE, all = (long long)layer.o * i;
        for (long long k = from + threadIdx.x; k < least(from + TILE, all); k += THREADS) out[k] = narrow<E>(in[k]);
        return;
    }
    const int wide = TILE / taps / 8 * 8, tiles = (i + wide - 1) / wide;
    const int channel = unit / tiles, from = unit % tiles * wide, channels = least(wide, i - from), values = channels * taps;
    in += ((long long)channel * i + from) * taps;
    out += (long long)channel * taps * i + from;
    for (int k = threadIdx.x; k < values; k += THREADS) tile[k] = in[k];
    __syncthreads();
    if (i % CELL<E> == 0) {
        const unsigned cells = channels / CELL<E>;
        for (unsigned k = threadIdx.x; k < cells * taps; k += THREADS) {
            const unsigned tap = k / cells, at = k % cells * CELL<E>;
            float v[CELL<E>];
#pragma unroll
            for (int j = 0; j < CELL<E>; j++) v[j] = tile[(at + j) * taps + tap];
            store(out + (long long)tap * i + at, v);
        }
    } else {
        for (int k = threadIdx.x; k < values; k += THREADS)
            out[(long long)(k / channels) * i + k % channels] = narrow<E>(tile[k % channels * taps + k / channels]);
    }
}

KERNEL(prepare, (THREADS), (const float* parameters, char* memory, const Layer* layers, int count), (parameters, memory, layers, count))
