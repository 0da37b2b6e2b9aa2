// Products of small matrices in f32, for the layers of rows: the time embedding and what reads it.
//
// Such a product has a few dozen tiles, too few for a library's tiles to fill a GPU. So tiles are small here, and a block's warps share
// out the depth; their sums are added in order at the end. Much is read at a time, as nothing else hides how long that takes.

constexpr int SIDE = 32;            // of a tile
constexpr int DEPTH = 128;          // of what is in shared memory at a time
constexpr int PITCH = SIDE + 4;     // keeps four neighbours in one vector
constexpr int WARPS = THREADS / 32;
constexpr int OWN = DEPTH / WARPS;  // of a warp
constexpr int READS = DEPTH * SIDE / THREADS;

// The spots in a tile that a thread reads: neighbouring threads read neighbouring values.
struct Spot {
    int depth, side;
    Spot(int k, bool along_depth) : depth(along_depth ? k % DEPTH : k / SIDE), side(along_depth ? k / DEPTH : k % SIDE) {}
};

// d[m, n] = sum over k of a[m, k]*b[k, n], plus bias[n] and onto[m, n] where there are any. Strides are in values; d and onto have rows of n.
// launch: grid (ceil(n/32), ceil(m/32)), block 256
PLAIN void __launch_bounds__(THREADS)
product(const float* __restrict__ a, const float* __restrict__ b, const float* __restrict__ bias, const float* __restrict__ onto,
        float* __restrict__ d, int m, int n, int depth, int a_row, int a_depth, int b_depth, int b_column) {
    // The factors' tiles; in the end each warp's sums.
    alignas(16) __shared__ float memory[2 * DEPTH * PITCH];
    float *left = memory, *right = memory + DEPTH * PITCH;
    const int row = blockIdx.y * SIDE, column = blockIdx.x * SIDE, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // A thread has 4 rows and 8 columns of the tile.
    const int y = lane / 4 * 4, x = lane % 4 * 8;
    float own[4][8] = {};
    for (int from = 0; from < depth; from += DEPTH) {
        float of_a[READS], of_b[READS];
#pragma unroll
        for (int i = 0; i < READS; i++) {
            const Spot p(threadIdx.x + i * THREADS, a_depth == 1), q(threadIdx.x + i * THREADS, b_depth == 1);
            const bool in_a = row + p.side < m && from + p.depth < depth, in_b = column + q.side < n && from + q.depth < depth;
            of_a[i] = in_a ? a[(long long)(row + p.side) * a_row + (long long)(from + p.depth) * a_depth] : 0;
            of_b[i] = in_b ? b[(long long)(from + q.depth) * b_depth + (long long)(column + q.side) * b_column] : 0;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < READS; i++) {
            const Spot p(threadIdx.x + i * THREADS, a_depth == 1), q(threadIdx.x + i * THREADS, b_depth == 1);
            left[p.depth * PITCH + p.side] = of_a[i];
            right[q.depth * PITCH + q.side] = of_b[i];
        }
        __syncthreads();
#pragma unroll
        for (int k = warp * OWN; k < warp * OWN + OWN; k++) {
            float l[4], r[2][4];
            load<4>(left + k * PITCH + y, l);
            load<4>(right + k * PITCH + x, r[0]);
            load<4>(right + k * PITCH + x + 4, r[1]);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) own[i][j] = fmaf(l[i], r[j / 4][j % 4], own[i][j]);
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) memory[warp * SIDE * SIDE + (y + i) * SIDE + x + j] = own[i][j];
    __syncthreads();
    for (int k = threadIdx.x; k < SIDE * SIDE; k += THREADS) {
        const int i = row + k / SIDE, j = column + k % SIDE;
        if (i >= m || j >= n) continue;
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += memory[w * SIDE * SIDE + k];
        if (bias) sum += bias[j];
        if (onto) sum += onto[(long long)i * n + j];
        d[(long long)i * n + j] = sum;
    }
}
