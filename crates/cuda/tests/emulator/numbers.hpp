// Arrays of f32, f16 and bf16 to f32 arrays and back, and the product of two f32 matrices, for cuDNN's and cuBLASLt's stand-ins.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

enum class Type { f32, f16, bf16 };
inline size_t size_of(Type t) { return t == Type::f32 ? 4 : 2; }

inline void widen(const void* from, Type type, long n, float* to) {
    if (type == Type::f32) memcpy(to, from, n * 4);
    else if (type == Type::f16) { auto p = (const _Float16*)from; for (long i = 0; i < n; i++) to[i] = float(p[i]); }
    else { auto p = (const uint16_t*)from; for (long i = 0; i < n; i++) { uint32_t u = uint32_t(p[i]) << 16; memcpy(to + i, &u, 4); } }
}
inline void narrow(const float* from, Type type, long n, void* to) {
    if (type == Type::f32) memcpy(to, from, n * 4);
    else if (type == Type::f16) { auto p = (_Float16*)to; for (long i = 0; i < n; i++) p[i] = _Float16(from[i]); }
    else {
        auto p = (uint16_t*)to;
        for (long i = 0; i < n; i++) {
            uint32_t u;
            memcpy(&u, from + i, 4);
            p[i] = (u & 0x7fffffff) > 0x7f800000 ? 0x7fff : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
        }
    }
}
// What tensor cores keep of an f32 number: ten bits after the point.
inline void round_to_tf32(float* p, long n) {
    for (long i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, p + i, 4);
        if ((u & 0x7f800000) != 0x7f800000) u = (u + 0xfff + (u >> 13 & 1)) & ~0x1fffu;
        memcpy(p + i, &u, 4);
    }
}

struct Matrix { const float* at; long row, col; };  // element (i, j) is at[i * row + j * col]

// out[m, n] += a[m, k] b[k, n], row by row. Each element's sum runs over blocks of k in order, so it does not depend on m and n.
inline void multiply(long m, long n, long k, Matrix a, Matrix b, float* out, long block = 256) {
#ifdef __AVX512F__
    constexpr int L = 16;
#else
    constexpr int L = 8;
#endif
    constexpr int R = 6, W = 2 * L;  // a tile of R rows and W columns stays in registers
    typedef float V __attribute__((vector_size(L * 4)));
    std::vector<V> packed(block * ((n + W - 1) / W) * 2);
    std::vector<float> rows(block * R);
    for (long k0 = 0; k0 < k; k0 += block) {
        long kb = std::min(block, k - k0);
        for (long j0 = 0; j0 < n; j0 += W) {
            float* to = (float*)packed.data() + j0 * kb;
            long w = std::min<long>(W, n - j0);
            for (long l = 0; l < kb; l++, to += W) {
                const float* from = b.at + (k0 + l) * b.row + j0 * b.col;
                for (long j = 0; j < w; j++) to[j] = from[j * b.col];
                for (long j = w; j < W; j++) to[j] = 0;
            }
        }
        for (long i0 = 0; i0 < m; i0 += R) {
            long h = std::min<long>(R, m - i0);
            for (long i = 0; i < R; i++)
                for (long l = 0; l < kb; l++) rows[l * R + i] = i < h ? a.at[(i0 + i) * a.row + (k0 + l) * a.col] : 0;
            for (long j0 = 0; j0 < n; j0 += W) {
                V sum[R][2] = {};
                const V* right = packed.data() + j0 * kb / L;
                const float* left = rows.data();
                for (long l = 0; l < kb; l++, right += 2, left += R)
                    for (int i = 0; i < R; i++) sum[i][0] += left[i] * right[0], sum[i][1] += left[i] * right[1];
                long w = std::min<long>(W, n - j0);
                for (long i = 0; i < h; i++) {
                    const float* s = (const float*)sum[i];
                    for (long j = 0; j < w; j++) out[(i0 + i) * n + j0 + j] += s[j];
                }
            }
        }
    }
}
