// Attention's kernels against plain loops in f64 over the same rounded inputs. flash.sh builds it in several ways.
#include "all.hpp"
#include <random>
#include <type_traits>

static std::mt19937 generator(1);
static int failures = 0, checks = 0;

// Memory that ends where the array does, so that the sanitizer sees what is beyond; NaN at first.
template <class T> struct Array {
    size_t size;
    T* data;
    explicit Array(size_t size) : size(size), data((T*)std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64)) {
        const size_t bytes = size * sizeof(T), gap = (bytes + 63) / 64 * 64 - bytes;
        start = data, data = (T*)((char*)data + gap);  // only multiples of 16 occur
        std::memset((void*)data, 0xff, bytes);
    }
    ~Array() { std::free(start); }
    Array(const Array&) = delete;
    operator T*() { return data; }

private:
    T* start;
};

#define OF(name) \
    ([] { \
        if constexpr (std::is_same_v<E, bf16>) { \
            if constexpr (D == 32) return bf16_types::name##_32_bf16; \
            else return bf16_types::name##_64_bf16; \
        } else { \
            if constexpr (D == 32) return f16_types::name##_32_f16; \
            else return f16_types::name##_64_f16; \
        } \
    }())

// Relative root of the mean square, below `tolerance`; NaN never passes.
template <class F, class G> void check(const char* what, const char* of, size_t count, double tolerance, F got, G expected) {
    double error = 0, size = 0;
    for (size_t i = 0; i < count; i++) error += std::pow(got(i) - expected(i), 2), size += std::pow(expected(i), 2);
    checks++;
    const double relative = std::sqrt(error / size);
    // What is zero but for roundings is compared with nothing.
    if (relative < tolerance || (size < 1e-20 * count && error < 1e-10 * count)) return;
    failures++;
    std::printf("%s of %s: error %.3g, allowed %.3g\n", what, of, relative, tolerance);
}

template <class E, int D> void attention(int n, int t, int heads, bool heads_first, float size) {
    const int c = heads * D, head_step = heads_first ? 3 * D : D, part_step = heads_first ? D : c;
    const float scale = 1 / std::sqrt(float(D));
    const bool half = std::is_same_v<E, f16>;
    char where[100];
    std::snprintf(where, sizeof where, "%s, D %d, n %d, t %d, heads %d, %s, size %g", half ? "f16" : "bf16", D, n, t, heads,
                  heads_first ? "heads first" : "qkv first", size);
    const size_t wide = size_t(n) * t * 3 * c, narrow_size = size_t(n) * t * c, row_count = size_t(n) * heads * t * 2;
    Array<E> qkv(wide), grad(narrow_size), out(narrow_size), dqkv(wide);
    Array<float> rows(row_count);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < wide; i++) qkv[i] = narrow<E>(size * normal(generator));
    for (size_t i = 0; i < narrow_size; i++) grad[i] = narrow<E>(normal(generator));
    auto launch = [&](int tile, auto kernel) { cuda_cpu::launch({unsigned(heads * ((t + tile - 1) / tile)), unsigned(n)}, 128, 0, kernel); };
    auto all = [&] {
        launch(128, [&] { OF(attention)(qkv, out, t, heads, head_step, part_step, scale); });
        launch(128, [&] { OF(attention_rows)(grad, qkv, rows, t, heads, head_step, part_step, scale); });
        launch(D == 32 ? 128 : 64, [&] { OF(attention_keys)(grad, qkv, rows, dqkv, t, heads, head_step, part_step, scale); });
        launch(128, [&] { OF(attention_queries)(grad, qkv, rows, dqkv, t, heads, head_step, part_step, scale); });
    };
    all();

    std::vector<double> want(narrow_size), dwant(wide), rows_want(row_count);
    std::vector<double> s(size_t(t) * t), dp(size_t(t) * t);
    for (int image = 0; image < n; image++)
        for (int head = 0; head < heads; head++) {
            auto at = [&](int part, int row, int d) { return (size_t(image) * t + row) * 3 * c + head * head_step + part * part_step + d; };
            auto o = [&](int row, int d) { return (size_t(image) * t + row) * c + head * D + d; };
            for (int i = 0; i < t; i++) {
                double max = -INFINITY, total = 0, dot = 0;
                for (int j = 0; j < t; j++) {
                    double a = 0, b = 0;
                    for (int d = 0; d < D; d++) {
                        a += double(widen(qkv[at(0, i, d)])) * widen(qkv[at(1, j, d)]);
                        b += double(widen(grad[o(i, d)])) * widen(qkv[at(2, j, d)]);
                    }
                    s[size_t(i) * t + j] = a * scale, dp[size_t(i) * t + j] = b;
                    max = std::max(max, a * scale);
                }
                for (int j = 0; j < t; j++) total += std::exp(s[size_t(i) * t + j] - max);
                for (int j = 0; j < t; j++) {
                    double& p = s[size_t(i) * t + j];
                    p = std::exp(p - max) / total, dot += p * dp[size_t(i) * t + j];
                }
                double* r = &rows_want[((size_t(image) * heads + head) * t + i) * 2];
                r[0] = max + std::log(total), r[1] = dot;
                for (int j = 0; j < t; j++) {
                    const double p = s[size_t(i) * t + j], ds = scale * p * (dp[size_t(i) * t + j] - dot);
                    for (int d = 0; d < D; d++) {
                        want[o(i, d)] += p * widen(qkv[at(2, j, d)]);
                        dwant[at(0, i, d)] += ds * widen(qkv[at(1, j, d)]);
                        dwant[at(1, j, d)] += ds * widen(qkv[at(0, i, d)]);
                        dwant[at(2, j, d)] += p * widen(grad[o(i, d)]);
                    }
                }
            }
        }
    const double tolerance = half ? 6e-4 : 4e-3;
    check("the output", where, narrow_size, tolerance, [&](size_t i) { return widen(out[i]); }, [&](size_t i) { return want[i]; });
    for (size_t i = 0; i < narrow_size; i++) failures += !(widen(out[i]) - want[i] < 1 && want[i] - widen(out[i]) < 1);
    for (size_t part = 0; part < 2; part++)
        check(part ? "the sum of P*dP" : "the logarithm", where, row_count / 2, 2e-5, [&](size_t i) { return rows[2 * i + part]; },
              [&](size_t i) { return rows_want[2 * i + part]; });
    for (int part = 0; part < 3; part++) {
        // The values of a part, wherever the order of channels puts them.
        std::vector<size_t> places;
        for (size_t row = 0; row < size_t(n) * t; row++)
            for (int head = 0; head < heads; head++)
                for (int d = 0; d < D; d++) places.push_back(row * 3 * c + head * head_step + part * part_step + d);
        const char* names[] = {"the queries' gradient", "the keys' gradient", "the values' gradient"};
        check(names[part], where, places.size(), tolerance, [&](size_t i) { return widen(dqkv[places[i]]); },
              [&](size_t i) { return dwant[places[i]]; });
    }
    const std::vector<E> first(out.data, out + narrow_size), dfirst(dqkv.data, dqkv + wide);
    all();
    checks++;
    if (std::memcmp(first.data(), out, narrow_size * 2) || std::memcmp(dfirst.data(), dqkv, wide * 2)) failures++, std::printf("%s: other bits\n", where);
}

template <class E, int D> void all_sizes() {
#ifdef SMALL
    for (int t : {65, 130}) attention<E, D>(1, t, 1, true, 1);
#elif defined(FEW)
    for (int t : {1, 49, 64, 100}) attention<E, D>(2, t, 2, t % 2, 1);
#else
    for (int t : {1, 5, 16, 49, 64, 65, 100, 256})
        for (int heads : {1, 2, 3})
            for (bool heads_first : {true, false})
                if (t <= 100 || heads == 3 - heads_first) attention<E, D>(t == 256 ? 1 : 2, t, heads, heads_first, 1);
    // Weights of nearly one, and scores of which the largest come late.
    attention<E, D>(1, 300, 1, true, 3);
#endif
}

int main() {
    all_sizes<bf16, 32>(), all_sizes<bf16, 64>();
#ifndef SMALL
    all_sizes<f16, 32>(), all_sizes<f16, 64>();
#endif
    std::printf("attention: %d checks, %d failures\n", checks, failures);
    return failures > 0;
}
