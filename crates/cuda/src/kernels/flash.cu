// Attention that never writes its scores to memory. A block keeps a tile of queries (or of keys), walks the other side in tiles of 64, and
// multiplies with tensor cores. qkv is [N, T, 3C], C = heads*D; a head's queries begin at channel head*head_step, its keys and values
// part_step and 2*part_step further.
//
// A product's left side are fragments in registers: of 16 rows, a thread has those of lane/4 and lane/4 + 8, and of 8 columns the pair
// 2*(lane%4). A result has the same layout, so that weights become the left side of the next product without leaving the thread.

#ifndef CUDA_ON_CPU  // The twins' header has its own of these.
// An address in shared memory.
using SharedAt = unsigned;
inline SharedAt shared_at(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// Copies 16 bytes to shared memory in the background; zeros, and nothing is read, if `inside` is false.
inline void copy_async(SharedAt to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
// Waits for the thread's own copies.
inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// threadIdx.x, read where it is used: what is made of it takes no register from there to there, and registers are scarce here.
inline int thread_again() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// Four 8x8 matrices of 16-bit values; lane i gives the address of row i%8 of matrix i/8. A thread gets a pair of neighbours of each: of row
// lane/4, columns 2*(lane%4) and the next.
inline void load_matrices(unsigned (&r)[4], SharedAt at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}
// The same of the transposes.
inline void load_transposed(unsigned (&r)[4], SharedAt at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at));
}

// c += a*b: 16 rows, 8 columns, 16 products each.
template <class E> void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <> inline void multiply_add<bf16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> inline void multiply_add<f16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// Threads of a block.
constexpr int FLASH = 128;
// Rows of a tile that is walked over.
constexpr int WALKED = 64;
// How far an exponent of two may exceed the one that weights are relative to before that is raised. Weights of up to 256 are no less exact,
// and the sums so far need scaling only now and then.
constexpr float HEADROOM = 8;
// Less than every exponent, but no infinity: differences from it stay numbers.
constexpr float NOTHING = -1e30f;
constexpr float LN_2 = 0.693147181f;

// Tiles lie in shared memory as rows of D values. The 16-byte chunks of a row change places by its number, so that both a row and a column
// of chunks spread over all banks.
template <int D> constexpr int ROW = 2 * D;
template <int D> int swizzle(int row) { return D == 64 ? row & 7 : row >> 1 & 3; }

// Where a lane finds its row of the 16x16 values of a tile that begin at row 0 and channel 0, as four matrices. The swizzle makes a step of
// 16 channels an exclusive or with 32; a step of 16 rows is a sum.
template <int D> int offset_of(int row, int chunk) { return row * ROW<D> + ((chunk ^ swizzle<D>(row)) << 4); }
// Matrices 0 and 1 are below each other, 2 and 3 right of them: a left side, or, transposed, two right sides.
template <int D> int lane_downwards() {
    const unsigned thread = thread_again();
    return offset_of<D>(thread % 16, thread / 16 % 2);
}
// Matrices 0 and 1 are beside each other, 2 and 3 below them: two right sides. (Each must be two registers that follow each other.)
template <int D> int lane_rightwards() {
    const unsigned thread = thread_again();
    return offset_of<D>(thread % 8 + thread / 16 % 2 * 8, thread / 8 % 2);
}

// Fetches `ROWS` rows of a head into a tile. Rows from `t` on are zeros.
template <int D, int ROWS, class E> void fetch(SharedAt to, const E* from, int stride, int first, int t) {
    constexpr int chunks = D / 8, step = FLASH / chunks;
    const unsigned thread = thread_again();
    const int row = thread / chunks, chunk = thread % chunks;
    to += offset_of<D>(row, chunk);
#pragma unroll
    for (int i = 0; i < ROWS; i += step) {
        const int at = first + row + i;
        copy_async(to + i * ROW<D>, from + (at * stride + chunk * 8), at < t);
    }
}

// M*16 rows of a tile as the left side of products over its channels; `at`: downwards.
template <int D, int M> void fragments(unsigned (&to)[M][D / 16][4], SharedAt at, int offset) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int k = 0; k < D / 16; k++) load_matrices(to[m][k], (at ^ k * 32) + (offset + m * 16 * ROW<D>));
}

// c = a * (rows of a tile)ᵀ: products of rows over channels; `at`: rightwards. One load of the tile serves all M*16 rows of the left side.
template <class E, int D, int M, int COLUMNS>
void rows_by_rows(float (&c)[M][COLUMNS / 8][4], const unsigned (&a)[M][D / 16][4], SharedAt at, int offset) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) c[m][n][i] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++)
#pragma unroll
        for (int n = 0; n < COLUMNS / 16; n++) {
            unsigned b[4];
            load_matrices(b, (at ^ k * 32) + (offset + n * 16 * ROW<D>));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add<E>(c[m][2 * n], a[m][k], b[0], b[1]);
                multiply_add<E>(c[m][2 * n + 1], a[m][k], b[2], b[3]);
            }
        }
}

// sum += a * (rows of a tile): sums of the tile's rows, each by its weights, which are rounded here; `at`: downwards.
template <class E, int D, int M, int ROWS>
void weighted_rows(float (&sum)[M][D / 8][4], const float (&a)[M][ROWS / 8][4], SharedAt at, int offset) {
#pragma unroll
    for (int k = 0; k < ROWS / 16; k++) {
        unsigned left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) left[m][i] = pack<E>(a[m][2 * k + i / 2][i % 2 * 2], a[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            unsigned b[4];
            load_transposed(b, (at ^ d * 32) + (offset + k * 16 * ROW<D>));
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_add<E>(sum[m][2 * d], left[m], b[0], b[1]);
                multiply_add<E>(sum[m][2 * d + 1], left[m], b[2], b[3]);
            }
        }
    }
}

template <int A, int B> void clear(float (&v)[A][B][4]) {
#pragma unroll
    for (int a = 0; a < A; a++)
#pragma unroll
        for (int b = 0; b < B; b++)
#pragma unroll
            for (int i = 0; i < 4; i++) v[a][b][i] = 0;
}

// Scores of keys from `t` on become minus infinity.
template <int M, int N> void mask(float (&s)[M][N][4], int first, int t) {
    first += thread_again() % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (first + n * 8 + i % 2 >= t) s[m][n][i] = __uint_as_float(0xff800000u);
}

inline float sum_of_quad(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
inline float max_of_quad(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

// The largest exponents, scores times `factor`, of a thread's two rows of each 16, as far as it has their columns.
template <int M, int N> void largest_exponents(float (&largest)[M][2], const float (&s)[M][N][4], float factor) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            largest[m][r] = fmaxf(s[m][0][2 * r], s[m][0][2 * r + 1]);
#pragma unroll
            for (int n = 1; n < N; n++) largest[m][r] = fmaxf(largest[m][r], fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
            largest[m][r] *= factor;
        }
}

// Raises the exponent that a row's weights are relative to, where it has become too low. Then `scale(m, r, by)` must scale the row's sums.
template <int M, class F> void raise(float (&base)[M][2], const float (&exponent)[M][2], F scale) {
    bool low = false;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) low |= exponent[m][r] - base[m][r] > HEADROOM;
    // The warp decides as one: its threads must not part.
    if (!__any_sync(0xffffffffu, low)) return;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float next = fmaxf(base[m][r], exponent[m][r]);
            scale(m, r, exp2_fast(base[m][r] - next));
            base[m][r] = next;
        }
}

// Writes M*16 rows of results, each times its factor. They pass through `area`, the warp's own, so that 16 bytes are written at a time.
template <int D, int M, class E>
void write_rows(E* to, int stride, const float (&sum)[M][D / 8][4], const float (&factor)[M][2], char* area, int first, int t) {
    const int lane = thread_again() % 32;
    constexpr int chunks = D / 8;
    __syncwarp();  // what was written before has been read
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float pair[2] = {sum[m][n][2 * r] * factor[m][r], sum[m][n][2 * r + 1] * factor[m][r]};
                store(reinterpret_cast<E*>(area + offset_of<D>(lane / 4, n) + (m * 16 + r * 8) * ROW<D>) + lane % 4 * 2, pair);
            }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < M * 16; i += 32 / chunks) {
        const int row = i + lane / chunks, chunk = lane % chunks;
        const auto values = load<8>(reinterpret_cast<const E*>(area + offset_of<D>(row, chunk)));
        if (first + row < t) *reinterpret_cast<Vector<E, 8>*>(to + (long long)(first + row) * stride + chunk * 8) = values;
    }
}

// Which head of which image a block has, and which of its tiles of `ROWS` rows.
template <int D, int ROWS> struct Place {
    int head, first, stride;
    long long image;
    Place(int t, int heads) {
        const int tiles = (t + ROWS - 1) / ROWS;
        head = (int)blockIdx.x / tiles, first = (int)blockIdx.x % tiles * ROWS, stride = 3 * heads * D, image = blockIdx.y;
    }
    // The head's first value in [N, T, 3C], and in [N, T, C].
    long long wide(int t, int head_step) const { return image * t * stride + (long long)head * head_step; }
    long long narrow(int t) const { return image * t * (stride / 3) + head * D; }
};

// Two tiles of the walked side take turns in two slots of shared memory: one is fetched while the other is used. What the block keeps lies
// in the second slot, and beyond, until it is in registers.
template <class Fetch, class Keep, class Use> void walk_tiles(int t, Fetch fetch_tile, Keep keep, Use use) {
    const int tiles = (t + WALKED - 1) / WALKED;
    fetch_tile(0);
    wait_for_copies();
    __syncthreads();
    keep();
    for (int tile = 0; tile < tiles; tile++) {
        wait_for_copies();
        // This tile is there for all, and nobody uses the one before any more.
        __syncthreads();
        if (tile + 1 < tiles) fetch_tile(tile + 1);
        use(tile);
    }
}

// softmax(q kᵀ * scale) v.
template <class E, int D>
void flash_forward(const E* __restrict__ qkv, E* __restrict__ out, int t, int heads, int head_step, int part_step, float scale) {
    constexpr int M = 2, QUERIES = M * 64, SLOT = 2 * WALKED * ROW<D>, SLICE = D == 64 ? 32 : 64;
    alignas(128) __shared__ char memory[2 * SLOT];
    const Place<D, QUERIES> place(t, heads);
    const E* q = qkv + place.wide(t, head_step);
    const E *k = q + part_step, *v = k + part_step;
    const int warp = (int)threadIdx.x / 32 * M * 16, first = place.first + warp;
    const SharedAt slots = shared_at(memory);
    const float factor = scale * LOG2_E;

    unsigned left[M][D / 16][4];
    float sum[M][D / 8][4], base[M][2], weights[M][2];
    clear(sum);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) base[m][r] = NOTHING, weights[m][r] = 0;

    fetch<D, QUERIES>(slots + SLOT, q, place.stride, place.first, t);
    walk_tiles(
        t,
        [&](int tile) {
            const SharedAt to = slots + tile % 2 * SLOT;
            fetch<D, WALKED>(to, k, place.stride, tile * WALKED, t);
            fetch<D, WALKED>(to + SLOT / 2, v, place.stride, tile * WALKED, t);
        },
        [&] { fragments<D, M>(left, slots + lane_downwards<D>(), SLOT + warp * ROW<D>); },
        [&](int tile) {
            if (first >= t) return;
            const SharedAt slot = slots + tile % 2 * SLOT, below = slot + lane_downwards<D>(), beside = slot + lane_rightwards<D>();
#pragma unroll 1
            for (int slice = 0; slice < WALKED; slice += SLICE) {
                const int key = tile * WALKED + slice;
                if (key >= t) break;
                float s[M][SLICE / 8][4], now[M][2];
                rows_by_rows<E, D, M, SLICE>(s, left, beside, slice * ROW<D>);
                if (key + SLICE > t) mask(s, key, t);
                largest_exponents(now, s, factor);
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int r = 0; r < 2; r++) now[m][r] = max_of_quad(now[m][r]);
                raise(base, now, [&](int m, int r, float by) {
                    weights[m][r] *= by;
#pragma unroll
                    for (int n = 0; n < D / 8; n++) sum[m][n][2 * r] *= by, sum[m][n][2 * r + 1] *= by;
                });
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int n = 0; n < SLICE / 8; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++)
                            weights[m][i / 2] += s[m][n][i] = exp2_fast(fmaf(s[m][n][i], factor, -base[m][i / 2]));
                weighted_rows<E, D, M, SLICE>(sum, s, below, SLOT / 2 + slice * ROW<D>);
            }
        });
    if (first >= t) return;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) weights[m][r] = reciprocal_fast(sum_of_quad(weights[m][r]));
    // The slot of the last tile but one is free.
    char* area = memory + (t + WALKED - 1) / WALKED % 2 * SLOT + warp * ROW<D>;
    write_rows<D, M>(out + place.narrow(t), place.stride / 3, sum, weights, area, first, t);
}

// Blocks that share a multiprocessor's registers. With 168 for a thread the kernels just do without spills; from sm_100 on they need a few more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int CROWD = 2;
#else
constexpr int CROWD = 3;
#endif

// KERNEL for a number of channels of a head, and 16-bit types alone.
#define FLASH_AS(name, body, d, type, suffix, blocks, parameters, arguments) \
    namespace suffix##_types { \
    using E = type; \
    extern "C" __global__ void __launch_bounds__(FLASH, blocks) name##_##d##_##suffix parameters { body<E, d> arguments; } \
    }
#if UNIT == 0 || UNIT == 5
#define FLASH_BF16(...) __VA_ARGS__
#else
#define FLASH_BF16(...)
#endif
#if UNIT == 0 || UNIT == 6
#define FLASH_F16(...) __VA_ARGS__
#else
#define FLASH_F16(...)
#endif
#if HEAD != 64
#define HEAD_32(...) __VA_ARGS__
#else
#define HEAD_32(...)
#endif
#if HEAD != 32
#define HEAD_64(...) __VA_ARGS__
#else
#define HEAD_64(...)
#endif
#define FLASH_KERNEL(name, body, d, blocks, parameters, arguments) \
    FLASH_BF16(HEAD_##d(FLASH_AS(name, body, d, bf16, bf16, blocks, parameters, arguments))) \
    FLASH_F16(HEAD_##d(FLASH_AS(name, body, d, f16, f16, blocks, parameters, arguments)))

// launch: grid (heads * ceil(t/128), n), block 128
#define FLASH_FORWARD(d, blocks) \
    FLASH_KERNEL(attention, flash_forward, d, blocks, \
                 (const E* __restrict__ qkv, E* __restrict__ out, int t, int heads, int head_step, int part_step, float scale), \
                 (qkv, out, t, heads, head_step, part_step, scale))
FLASH_FORWARD(32, 3)
FLASH_FORWARD(64, CROWD)

// What the backward pass needs of each query: the logarithm of the sum of its exponentials, and the sum of P*dP.
template <class E, int D>
void flash_rows(const E* __restrict__ grad, const E* __restrict__ qkv, float* __restrict__ rows, int t, int heads, int head_step, int part_step,
                float scale) {
    constexpr int M = 2, QUERIES = M * 64, SLOT = 2 * WALKED * ROW<D>, SLICE = 32;
    alignas(128) __shared__ char memory[3 * SLOT];
    const Place<D, QUERIES> place(t, heads);
    const E* q = qkv + place.wide(t, head_step);
    const E *k = q + part_step, *v = k + part_step;
    const int lane = threadIdx.x % 32, warp = (int)threadIdx.x / 32 * M * 16, first = place.first + warp;
    const SharedAt slots = shared_at(memory);
    const float factor = scale * LOG2_E;

    unsigned left[M][D / 16][4], left_grad[M][D / 16][4];
    // Each thread goes by its own columns until the end.
    float base[M][2], weights[M][2], dot[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) base[m][r] = NOTHING, weights[m][r] = dot[m][r] = 0;

    fetch<D, QUERIES>(slots + SLOT, q, place.stride, place.first, t);
    fetch<D, QUERIES>(slots + 2 * SLOT, grad + place.narrow(t), place.stride / 3, place.first, t);
    walk_tiles(
        t,
        [&](int tile) {
            const SharedAt to = slots + tile % 2 * SLOT;
            fetch<D, WALKED>(to, k, place.stride, tile * WALKED, t);
            fetch<D, WALKED>(to + SLOT / 2, v, place.stride, tile * WALKED, t);
        },
        [&] {
            fragments<D, M>(left, slots + lane_downwards<D>(), SLOT + warp * ROW<D>);
            fragments<D, M>(left_grad, slots + lane_downwards<D>(), 2 * SLOT + warp * ROW<D>);
        },
        [&](int tile) {
            if (first >= t) return;
            const SharedAt beside = slots + tile % 2 * SLOT + lane_rightwards<D>();
#pragma unroll 1
            for (int slice = 0; slice < WALKED; slice += SLICE) {
                const int key = tile * WALKED + slice;
                if (key >= t) break;
                float s[M][SLICE / 8][4], dp[M][SLICE / 8][4], now[M][2];
                rows_by_rows<E, D, M, SLICE>(s, left, beside, slice * ROW<D>);
                rows_by_rows<E, D, M, SLICE>(dp, left_grad, beside, SLOT / 2 + slice * ROW<D>);
                if (key + SLICE > t) mask(s, key, t);
                largest_exponents(now, s, factor);
                raise(base, now, [&](int m, int r, float by) { weights[m][r] *= by, dot[m][r] *= by; });
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int n = 0; n < SLICE / 8; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            const float p = exp2_fast(fmaf(s[m][n][i], factor, -base[m][i / 2]));
                            weights[m][i / 2] += p;
                            dot[m][i / 2] = fmaf(p, dp[m][n][i], dot[m][i / 2]);
                        }
            }
        });
    if (first >= t) return;
    rows += (((place.image * heads + place.head) * t) + first) * 2;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float of_row = max_of_quad(base[m][r]), by = exp2_fast(base[m][r] - of_row);
            const float sum = sum_of_quad(weights[m][r] * by), sum_of_products = sum_of_quad(dot[m][r] * by);
            const int row = m * 16 + r * 8 + lane / 4;
            const float pair[2] = {fmaf(of_row, LN_2, logf(sum)), sum_of_products * reciprocal_fast(sum)};
            if (lane % 4 == 0 && first + row < t) store(rows + row * 2, pair);
        }
}

// The gradients of keys and values. Scores are made transposed, keys by queries, as the weights are then the left side of both results.
template <class E, int D>
void flash_keys(const E* __restrict__ grad, const E* __restrict__ qkv, const float* __restrict__ rows, E* __restrict__ dqkv, int t, int heads,
                int head_step, int part_step, float scale) {
    constexpr int M = D == 64 ? 1 : 2, KEYS = M * 64, SLOT = 2 * WALKED * ROW<D>, SLICE = D == 64 ? 32 : 16;
    alignas(128) __shared__ char memory[(1 + M) * SLOT];
    // Of each query of a tile, what its scores and its dP are reduced by, in the units of the exponent and of dS.
    alignas(16) __shared__ float reduce[2][2 * WALKED];
    const Place<D, KEYS> place(t, heads);
    const long long wide = place.wide(t, head_step);
    const E* q = qkv + wide;
    const E *k = q + part_step, *v = k + part_step, *out_grad = grad + place.narrow(t);
    const int warp = (int)threadIdx.x / 32 * M * 16, first = place.first + warp;
    const SharedAt slots = shared_at(memory);
    const float factor = scale * LOG2_E;

    unsigned left[M][D / 16][4], left_value[M][D / 16][4];
    float dk[M][D / 8][4], dv[M][D / 8][4];
    clear(dk), clear(dv);

    rows += (place.image * heads + place.head) * t * 2;
    auto row_value = [&](int tile) {
        const int thread = thread_again(), at = tile * WALKED * 2 + thread;
        // The weights of queries that there are not become zero.
        if (at >= 2 * t) return thread % 2 ? 0.0f : __uint_as_float(0x7f800000u);
        return rows[at] * (thread % 2 ? scale : LOG2_E);
    };
    reduce[0][threadIdx.x] = row_value(0);
    fetch<D, KEYS>(slots + SLOT, k, place.stride, place.first, t);
    fetch<D, KEYS>(slots + SLOT + KEYS * ROW<D>, v, place.stride, place.first, t);
    walk_tiles(
        t,
        [&](int tile) {
            const SharedAt to = slots + tile % 2 * SLOT;
            fetch<D, WALKED>(to, q, place.stride, tile * WALKED, t);
            fetch<D, WALKED>(to + SLOT / 2, out_grad, place.stride / 3, tile * WALKED, t);
        },
        [&] {
            fragments<D, M>(left, slots + lane_downwards<D>(), SLOT + warp * ROW<D>);
            fragments<D, M>(left_value, slots + lane_downwards<D>(), SLOT + (KEYS + warp) * ROW<D>);
        },
        [&](int tile) {
            const float next = row_value(tile + 1);
            if (first < t) {
                const SharedAt slot = slots + tile % 2 * SLOT, below = slot + lane_downwards<D>(), beside = slot + lane_rightwards<D>();
#pragma unroll
                for (int slice = 0; slice < WALKED; slice += SLICE) {
                    if (tile * WALKED + slice >= t) break;
                    const int column = thread_again() % 4 * 2;
                    float p[M][SLICE / 8][4], ds[M][SLICE / 8][4];
                    rows_by_rows<E, D, M, SLICE>(p, left, beside, slice * ROW<D>);
                    rows_by_rows<E, D, M, SLICE>(ds, left_value, beside, SLOT / 2 + slice * ROW<D>);
#pragma unroll
                    for (int n = 0; n < SLICE / 8; n++) {
                        float by[4];
                        load(&reduce[tile % 2][(slice + n * 8 + column) * 2], by);
#pragma unroll
                        for (int m = 0; m < M; m++)
#pragma unroll
                            for (int i = 0; i < 4; i++) {
                                p[m][n][i] = exp2_fast(fmaf(p[m][n][i], factor, -by[i % 2 * 2]));
                                ds[m][n][i] = p[m][n][i] * fmaf(ds[m][n][i], scale, -by[i % 2 * 2 + 1]);
                            }
                    }
                    weighted_rows<E, D, M, SLICE>(dv, p, below, SLOT / 2 + slice * ROW<D>);
                    weighted_rows<E, D, M, SLICE>(dk, ds, below, slice * ROW<D>);
                }
            }
            reduce[(tile + 1) % 2][thread_again()] = next;
        });
    if (first >= t) return;
    float one[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) one[m][0] = one[m][1] = 1;
    char* area = memory + (t + WALKED - 1) / WALKED % 2 * SLOT + warp * ROW<D>;
    write_rows<D, M>(dqkv + wide + part_step, place.stride, dk, one, area, first, t);
    write_rows<D, M>(dqkv + wide + 2 * part_step, place.stride, dv, one, area, first, t);
}

// The gradient of queries.
template <class E, int D>
void flash_queries(const E* __restrict__ grad, const E* __restrict__ qkv, const float* __restrict__ rows, E* __restrict__ dqkv, int t, int heads,
                   int head_step, int part_step, float scale) {
    constexpr int M = 2, QUERIES = M * 64, SLOT = 2 * WALKED * ROW<D>, SLICE = 32;
    alignas(128) __shared__ char memory[3 * SLOT];
    const Place<D, QUERIES> place(t, heads);
    const long long wide = place.wide(t, head_step);
    const E* q = qkv + wide;
    const E *k = q + part_step, *v = k + part_step;
    const int lane = threadIdx.x % 32, warp = (int)threadIdx.x / 32 * M * 16, first = place.first + warp;
    const SharedAt slots = shared_at(memory);
    const float factor = scale * LOG2_E;

    unsigned left[M][D / 16][4], left_grad[M][D / 16][4];
    float dq[M][D / 8][4], by[M][2], dot[M][2];
    clear(dq);
    rows += ((place.image * heads + place.head) * t + first) * 2;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = m * 16 + r * 8 + lane / 4;
            const bool inside = first + row < t;
            by[m][r] = inside ? rows[row * 2] * LOG2_E : 0, dot[m][r] = inside ? rows[row * 2 + 1] * scale : 0;
        }

    fetch<D, QUERIES>(slots + SLOT, q, place.stride, place.first, t);
    fetch<D, QUERIES>(slots + 2 * SLOT, grad + place.narrow(t), place.stride / 3, place.first, t);
    walk_tiles(
        t,
        [&](int tile) {
            const SharedAt to = slots + tile % 2 * SLOT;
            fetch<D, WALKED>(to, k, place.stride, tile * WALKED, t);
            fetch<D, WALKED>(to + SLOT / 2, v, place.stride, tile * WALKED, t);
        },
        [&] {
            fragments<D, M>(left, slots + lane_downwards<D>(), SLOT + warp * ROW<D>);
            fragments<D, M>(left_grad, slots + lane_downwards<D>(), 2 * SLOT + warp * ROW<D>);
        },
        [&](int tile) {
            if (first >= t) return;
            const SharedAt slot = slots + tile % 2 * SLOT, below = slot + lane_downwards<D>(), beside = slot + lane_rightwards<D>();
#pragma unroll 1
            for (int slice = 0; slice < WALKED; slice += SLICE) {
                const int key = tile * WALKED + slice;
                if (key >= t) break;
                float p[M][SLICE / 8][4], ds[M][SLICE / 8][4];
                rows_by_rows<E, D, M, SLICE>(p, left, beside, slice * ROW<D>);
                rows_by_rows<E, D, M, SLICE>(ds, left_grad, beside, SLOT / 2 + slice * ROW<D>);
                if (key + SLICE > t) mask(p, key, t);
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int n = 0; n < SLICE / 8; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++)
                            ds[m][n][i] = exp2_fast(fmaf(p[m][n][i], factor, -by[m][i / 2])) * fmaf(ds[m][n][i], scale, -dot[m][i / 2]);
                weighted_rows<E, D, M, SLICE>(dq, ds, below, slice * ROW<D>);
            }
        });
    if (first >= t) return;
    float one[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) one[m][0] = one[m][1] = 1;
    char* area = memory + (t + WALKED - 1) / WALKED % 2 * SLOT + warp * ROW<D>;
    write_rows<D, M>(dqkv + wide, place.stride, dq, one, area, first, t);
}

// launch: grid (heads * ceil(t/128), n), block 128
#define FLASH_ROWS(d, blocks) \
    FLASH_KERNEL(attention_rows, flash_rows, d, blocks, \
                 (const E* __restrict__ grad, const E* __restrict__ qkv, float* __restrict__ rows, int t, int heads, int head_step, int part_step, \
                  float scale), \
                 (grad, qkv, rows, t, heads, head_step, part_step, scale))
#define FLASH_GRADIENT(name, body, d, blocks) \
    FLASH_KERNEL(name, body, d, blocks, \
                 (const E* __restrict__ grad, const E* __restrict__ qkv, const float* __restrict__ rows, E* __restrict__ dqkv, int t, int heads, \
                  int head_step, int part_step, float scale), \
                 (grad, qkv, rows, dqkv, t, heads, head_step, part_step, scale))
FLASH_ROWS(32, 3)
FLASH_ROWS(64, CROWD)
// launch: D 32: grid (heads * ceil(t/128), n), D 64: grid (heads * ceil(t/64), n), block 128
FLASH_GRADIENT(attention_keys, flash_keys, 32, CROWD)
FLASH_GRADIENT(attention_keys, flash_keys, 64, CROWD)
// launch: grid (heads * ceil(t/128), n), block 128
FLASH_GRADIENT(attention_queries, flash_queries, 32, 3)
FLASH_GRADIENT(attention_queries, flash_queries, 64, 2)
