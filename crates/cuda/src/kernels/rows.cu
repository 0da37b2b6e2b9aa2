// Products of small matrices in f32, for the layers of rows: the time embedding and what reads it.
//
// Such a product has a few dozen tiles, too few for a library's tiles to fill a GPU. So tiles are small here, and a block's warps share
// out the depth; their sums are added in order at the end.

constexpr int SIDE = 32;       // of a tile
constexpr int DEPTH = 64;      // of what is in shared memory at a time
constexpr int WARPS = THREADS / 32;
constexpr int OWN = DEPTH / WARPS;  // of a warp

// d[m, n] = sum over k of a[m, k]·b[k, n], plus bias[n] and onto[m, n] where there are any. Strides are in values; d and onto have rows of n.
// launch: grid (ceil(n/32), ceil(m/32)), block 256
PLAIN void __launch_bounds__(THREADS)
product(const float* __restrict__ a, const float* __restrict__ b, const float* __restrict__ bias, const float* __restrict__ onto,
        float* __restrict__ d, int m, int n, int depth, int a_row, int a_depth, int b_depth, int b_column) {
    // The factors' tiles; in the end each warp's sums.
    __shared__ float memory[WARPS * SIDE * SIDE];
    auto left = reinterpret_cast<float (*)[SIDE + 1]>(memory), right = left + DEPTH;
    auto sums = reinterpret_cast<float (*)[SIDE * SIDE]>(memory);
    const int row = blockIdx.y * SIDE, column = blockIdx.x * SIDE, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // A thread has 4 rows and 8 columns of the tile, a distance apart.
    const int y = lane / 4, x = lane % 4;
    float own[4][8] = {};
    for (int from = 0; from < depth; from += DEPTH) {
        for (int k = threadIdx.x; k < DEPTH * SIDE; k += THREADS) {
            // Neighbouring threads read neighbouring values.
            const int a_k = a_depth == 1 ? k % DEPTH : k / SIDE, a_i = a_depth == 1 ? k / DEPTH : k % SIDE;
            const int b_k = b_depth == 1 ? k % DEPTH : k / SIDE, b_j = b_depth == 1 ? k / DEPTH : k % SIDE;
            const bool in_a = row + a_i < m && from + a_k < depth, in_b = column + b_j < n && from + b_k < depth;
            left[a_k][a_i] = in_a ? a[(long long)(row + a_i) * a_row + (long long)(from + a_k) * a_depth] : 0;
            right[b_k][b_j] = in_b ? b[(long long)(from + b_k) * b_depth + (long long)(column + b_j) * b_column] : 0;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < OWN; k++) {
            float l[4], r[8];
#pragma unroll
            for (int i = 0; i < 4; i++) l[i] = left[warp * OWN + k][y + 8 * i];
#pragma unroll
            for (int j = 0; j < 8; j++) r[j] = right[warp * OWN + k][x + 4 * j];
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) own[i][j] = fmaf(l[i], r[j], own[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sums[warp][(y + 8 * i) * SIDE + x + 4 * j] = own[i][j];
    __syncthreads();
    for (int k = threadIdx.x; k < SIDE * SIDE; k += THREADS) {
        const int i = row + k / SIDE, j = column + k % SIDE;
        if (i >= m || j >= n) continue;
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += sums[w][k];
        if (bias) sum += bias[j];
        if (onto) sum += onto[(long long)i * n + j];
        d[(long long)i * n + j] = sum;
    }
}
