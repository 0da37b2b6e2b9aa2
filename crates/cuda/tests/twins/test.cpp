// Every kernel against plain loops in f64. run.sh builds it in several ways.
#include "all.hpp"
#include <algorithm>
#include <array>
#include <chrono>
#include <random>
#include <string>
#include <type_traits>

// Threads of the processor take long: with SMALL only kernels with barriers or shuffles, at the sizes that suffice.
#ifdef SMALL
constexpr bool small = true;
#else
constexpr bool small = false;
#endif

// A kernel's instance for the type E of the function around.
#define OF(name) \
    ([] { \
        if constexpr (std::is_same_v<E, float>) return f32_types::name##_f32; \
        else if constexpr (std::is_same_v<E, bf16>) return bf16_types::name##_bf16; \
        else return f16_types::name##_f16; \
    }())

template <class E> constexpr double half_ulp = std::is_same_v<E, float> ? 0x1p-24 : std::is_same_v<E, bf16> ? 0x1p-8 : 0x1p-11;
template <class E> const char* type_name() { return std::is_same_v<E, float> ? "f32" : std::is_same_v<E, bf16> ? "bf16" : "f16"; }

static std::mt19937 generator(1);
static int checks = 0, failures = 0;

static float normal() { return std::normal_distribution<float>()(generator); }
static float number(float x) { return x; }
template <class E> double number(E x) { return widen(x); }

// An array that begins `off` values after a multiple of 64 bytes and ends where its memory does, so that the sanitizer sees the next value.
template <class T> struct Array {
    size_t size;
    std::unique_ptr<T, decltype(&std::free)> memory;
    T* data;
    explicit Array(size_t size, size_t off = 0) : size(size), memory(nullptr, &std::free), data(nullptr) {
        void* at = nullptr;
        if (posix_memalign(&at, 64, (size + off) * sizeof(T) + (size + off == 0))) std::abort();
        memory.reset((T*)at);
        data = memory.get() + off;
        std::memset((void*)data, 0xff, size * sizeof(T));  // NaN
    }
    T& operator[](size_t i) { return data[i]; }
    operator T*() { return data; }
};
template <class T> Array<T> random_array(size_t size, float mean = 0, float deviation = 1, size_t off = 0) {
    Array<T> a(size, off);
    for (size_t i = 0; i < size; i++) a[i] = narrow<T>(mean + deviation * normal());
    return a;
}

static std::string where;  // what is being checked

// `magnitude` is that of what was added up: f32 arithmetic errs by parts of it.
template <class E> void check(const char* what, size_t i, E got, double expected, double magnitude, double tolerance = 1e-6) {
    checks++;
    const double g = number(got), allowed = std::abs(expected) * half_ulp<E> * 1.01 + magnitude * tolerance +
                                            (std::is_same_v<E, f16> ? 0x1p-25 : 0);  // f16's denormals
    if (std::isnan(expected) ? std::isnan(g) : g == expected || std::abs(g - expected) <= allowed) return;
    if (failures++ < 20) std::printf("%s, %s of %s, %zu: %.9g instead of %.9g, allowed %.2g\n", where.c_str(), what, type_name<E>(), i, g, expected, allowed);
}

// Philox4x32-10, written apart from the kernel.
static std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, uint32_t k0, uint32_t k1) {
    for (int r = 0; r < 10; r++) {
        uint64_t a = uint64_t(0xD2511F53) * c[0], b = uint64_t(0xCD9E8D57) * c[2];
        c = {uint32_t(b >> 32) ^ c[1] ^ k0, uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ k1, uint32_t(a)};
        k0 += 0x9E3779B9, k1 += 0xBB67AE85;
    }
    return c;
}

static void known_answers() {
    where = "philox";
    auto is = [](std::array<uint32_t, 4> c, uint32_t k0, uint32_t k1, std::array<uint32_t, 4> expected) {
        Position position{k0 | uint64_t(k1) << 32, 0};
        Dropout dropout(&position, 0, 1, 0, c[1]);
        dropout.low = c[2], dropout.high = c[3];
        unsigned words[4];
        dropout.draw(c[0], words);
        for (int i = 0; i < 4; i++) check<float>("the test's", i, philox(c, k0, k1)[i] == expected[i], 1, 0), check<float>("the kernel's", i, words[i] == expected[i], 1, 0);
    };
    is({0, 0, 0, 0}, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    is({~0u, ~0u, ~0u, ~0u}, ~0u, ~0u, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    is({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

struct NormCase { int n, pixels, c, groups, chunk, blocks; bool film, silu, dropout, onto; float mean; };

template <class E> void norm(NormCase s) {
    const int n = s.n, pixels = s.pixels, c = s.c, groups = s.groups, wide = c / groups, chunks = (pixels + s.chunk - 1) / s.chunk;
    where = "norm n " + std::to_string(n) + " pixels " + std::to_string(pixels) + " c " + std::to_string(c) + " groups " + std::to_string(groups) + " chunk " +
            std::to_string(s.chunk) + (s.film ? " film" : "") + (s.silu ? " silu" : "") + (s.dropout ? " dropout" : "") + (s.onto ? " onto" : "");
    const size_t size = size_t(n) * pixels * c;
    auto x = random_array<E>(size, s.mean), grad = random_array<E>(size), onto = random_array<E>(size);
    auto weight = random_array<float>(c, 1, 0.3f, 1), bias = random_array<float>(c, 0, 0.5f, 3), film = random_array<float>(size_t(n) * 2 * c, 0, 0.5f);
    Array<E> y(size), dx(size);
    Array<float> partial(size_t(n) * chunks * 2 * c), grad_partial(size_t(n) * chunks * 2 * c), statistics(size_t(n) * 2 * c), dfilm(size_t(n) * 2 * c);
    Array<float> dweight(c, 1), dbias(c, 1);
    const double probability = 0.3;
    const float eps = 1e-5f, keep = s.dropout ? float(1 / (1 - probability)) : 0;
    const unsigned threshold = unsigned(probability * ~0u), layer = 5;
    const Position position{0x0123456789abcdefull, (1ull << 40) + (1ull << 32) - 1};  // the index carries within the batch
    const float* modulation = s.film ? film.data : nullptr;
    const E* more = s.onto ? onto.data : nullptr;
    const unsigned un = n, shared = 8 * groups, blocks = s.blocks;
    cuda_cpu::launch({unsigned(chunks), un}, 256, 0, [&] { OF(norm_sums)(x, partial, pixels, c, s.chunk); });
    cuda_cpu::launch({blocks, un}, 256, shared, [&] {
        OF(norm_apply)(x, partial, weight, bias, modulation, y, statistics, &position, pixels, c, groups, s.chunk, eps, s.silu, keep, threshold, layer);
    });
    cuda_cpu::launch({unsigned(chunks), un}, 256, 0, [&] {
        OF(norm_grad_sums)(grad, x, statistics, weight, bias, modulation, grad_partial, &position, pixels, c, s.chunk, s.silu, keep, threshold, layer);
    });
    cuda_cpu::launch({blocks, un}, 256, shared, [&] {
        OF(norm_grad_apply)(grad, x, statistics, weight, bias, modulation, grad_partial, more, dx, &position, pixels, c, groups, s.chunk, s.silu, keep, threshold, layer);
    });
    cuda_cpu::launch({unsigned(c + 255) / 256, un}, 256, 0, [&] { norm_grad_film(grad_partial, weight, bias, dfilm, c, chunks); });
    cuda_cpu::launch({unsigned(c + 7) / 8}, 512, 0, [&] { norm_grad_parameters(grad_partial, modulation, dweight, dbias, n, c, chunks); });

    std::vector<double> all_dweight(c), all_dbias(c), large_dweight(c), large_dbias(c);
    for (int i = 0; i < n; i++) {
        const size_t image = size_t(i) * pixels * c;
        std::vector<double> mean(groups), rstd(groups);
        for (int g = 0; g < groups; g++) {
            double sum = 0, squares = 0;
            for (int p = 0; p < pixels; p++)
                for (int k = g * wide; k < (g + 1) * wide; k++) sum += number(x[image + size_t(p) * c + k]);
            mean[g] = sum / (double(pixels) * wide);
            for (int p = 0; p < pixels; p++)
                for (int k = g * wide; k < (g + 1) * wide; k++) squares += std::pow(number(x[image + size_t(p) * c + k]) - mean[g], 2);
            rstd[g] = 1 / std::sqrt(squares / (double(pixels) * wide) + eps);
        }
        std::vector<double> du(size_t(pixels) * c), a(c), b(c), A(c), B(c), large_A(c), large_B(c);
        std::vector<double> m1(groups), m2(groups), large(groups);
        for (int k = 0; k < c; k++) {
            const double scale = s.film ? 1 + double(film[size_t(i) * 2 * c + k]) : 1, shift = s.film ? film[size_t(i) * 2 * c + c + k] : 0;
            a[k] = weight[k] * scale, b[k] = bias[k] * scale + shift;
        }
        // Rounding of mean·slope in f32 counts with the means' size, and with 1/std where all pixels are nearly the same.
        auto size_of = [&](int k) { return std::abs(a[k]) * rstd[k / wide] * (std::abs(mean[k / wide]) + 4 / rstd[k / wide]) + std::abs(b[k]); };
        for (int p = 0; p < pixels; p++)
            for (int k = 0; k < c; k++) {
                const size_t at = size_t(p) * c + k;
                const double xhat = (number(x[image + at]) - mean[k / wide]) * rstd[k / wide], u = xhat * a[k] + b[k], sigmoid = 1 / (1 + std::exp(-u));
                double factor = 1;
                if (s.dropout) {
                    const uint64_t index = position.position + i;
                    const auto words = philox({uint32_t(at / 4), layer, uint32_t(index), 7u << 24 | (uint32_t(index >> 32) & 0xffffff)}, uint32_t(position.seed), uint32_t(position.seed >> 32));
                    factor = words[at % 4] < threshold ? 0 : keep;
                }
                check<E>("y", image + at, y[image + at], factor * (s.silu ? u * sigmoid : u), factor * size_of(k));
                du[at] = number(grad[image + at]) * factor * (s.silu ? sigmoid * (1 + u * (1 - sigmoid)) : 1);
                A[k] += du[at], B[k] += du[at] * xhat;
                // How far an error of u moves du.
                const double moved = std::abs(number(grad[image + at])) * factor * (s.silu ? size_of(k) : 0) + std::abs(du[at]);
                large_A[k] += moved, large_B[k] += moved * (std::abs(xhat) + std::abs(mean[k / wide]) * rstd[k / wide] + 1);
            }
        for (int k = 0; k < c; k++) {
            const size_t at = size_t(i) * 2 * c + k;
            check<float>("mean", at, statistics[at], mean[k / wide], std::abs(mean[k / wide]) + 1);
            // Where a chunk's first pixel is far off, deviations from it lose some bits.
            check<float>("rstd", at, statistics[at + c], rstd[k / wide], rstd[k / wide] * (3 + std::pow(mean[k / wide] * rstd[k / wide], 2) * 0.01));
            check<float>("dscale", at, dfilm[at], weight[k] * B[k] + bias[k] * A[k], std::abs(weight[k]) * large_B[k] + std::abs(bias[k]) * large_A[k]);
            check<float>("dshift", at, dfilm[at + c], A[k], large_A[k]);
            const double scale = s.film ? 1 + double(film[at]) : 1;
            all_dweight[k] += scale * B[k], all_dbias[k] += scale * A[k];
            large_dweight[k] += std::abs(scale) * large_B[k], large_dbias[k] += std::abs(scale) * large_A[k];
            m1[k / wide] += a[k] * A[k] / (double(wide) * pixels), m2[k / wide] += a[k] * B[k] / (double(wide) * pixels);
            large[k / wide] += std::abs(a[k]) * (large_A[k] + large_B[k]) / (double(wide) * pixels);
        }
        for (int p = 0; p < pixels; p++)
            for (int k = 0; k < c; k++) {
                const int g = k / wide;
                const size_t at = size_t(p) * c + k;
                const double xhat = (number(x[image + at]) - mean[g]) * rstd[g], o = s.onto ? number(onto[image + at]) : 0;
                const double moved = std::abs(number(grad[image + at])) * (s.dropout ? keep : 1) * (s.silu ? size_of(k) : 1) + std::abs(du[at]);
                check<E>("dx", image + at, dx[image + at], rstd[g] * (a[k] * du[at] - m1[g] - xhat * m2[g]) + o,
                         rstd[g] * (std::abs(a[k]) * moved + large[g] + (std::abs(xhat) + std::abs(mean[g]) * rstd[g]) * large[g]) + std::abs(o));
            }
    }
    for (int k = 0; k < c; k++) check<float>("dweight", k, dweight[k], all_dweight[k], large_dweight[k]), check<float>("dbias", k, dbias[k], all_dbias[k], large_dbias[k]);
}

static void norms() {
    auto all = [](NormCase s) { norm<float>(s), norm<bf16>(s), norm<f16>(s); };
    if (small) return norm<bf16>({2, 6, 32, 32, 4, 2, true, true, true, true, 0.5f});
    int turn = 0;
    for (int c : {32, 96, 192, 256})
        for (int pixels : {1, 16, 49, 64})
            for (int flags = 0; flags < 16; flags++, turn++)
                all({1 + turn % 3, pixels, c, turn % 5 == 4 ? 8 : 32, std::array{pixels, 7, 16}[turn % 3], 1 + turn % 4, bool(flags & 1), bool(flags & 2), bool(flags & 4), bool(flags & 8), turn % 7 == 6 ? 20.0f : 0.3f});
    // More groups than a block takes at a time, more channels than its threads hold, the widest.
    all({2, 9, 96, 96, 4, 2, true, true, true, true, 0.3f});
    all({2, 6, 2304, 32, 4, 2, true, true, true, true, 0.3f});
    all({1, 5, 4096, 32, 2, 3, true, true, true, true, 0.3f});
    all({1, 300, 64, 1, 33, 5, false, true, true, false, 0.3f});
}

// The arrays of a call of a kernel that only moves values are compared to the bit.
template <class E> E round_to(double x) { return narrow<E>(float(x)); }
template <class E> void same(const char* what, size_t i, E got, E expected) {
    checks++;
    if (std::memcmp(&got, &expected, sizeof(E)) == 0) return;
    if (failures++ < 20) std::printf("%s, %s of %s, %zu: %.9g instead of %.9g\n", where.c_str(), what, type_name<E>(), i, double(number(got)), double(number(expected)));
}

template <class E> void weights() {
    for (auto [o, i, taps, off] : {std::array{3, 32, 9, 0}, {2, 5, 9, 1}, {5, 7, 1, 1}, {4, 24, 1, 0}, {1, 600, 9, 0}, {2, 301, 9, 1}, {2, 10, 7, 2}, {1, 40, 49, 0}, {1, 12, 288, 0}, {3, 12, 9, 3}}) {
        if (small && i != 5 && i != 32) continue;
        where = "weights " + std::to_string(o) + " " + std::to_string(i) + " " + std::to_string(taps);
        const size_t size = size_t(o) * i * taps;
        auto w = random_array<float>(size, 0, 1, off);
        Array<E> in(size);
        Array<float> out(size, off);
        for (unsigned blocks : {1u, unsigned(size + 2047) / 2048}) {
            // Two layers in the table, so that blocks have to find theirs: a bias of one value, whose place is behind the weights.
            const int units = taps == 1 ? (o * i + TILE - 1) / TILE : o * ((i + TILE / taps / 8 * 8 - 1) / (TILE / taps / 8 * 8));
            Array<E> made(size + 1);
            const Layer table[2] = {{0, 0, o, i, taps, 0}, {0, (long long)(size * sizeof(E)), 1, 1, 1, units}};
            cuda_cpu::launch({unsigned(units + 1)}, 256, 0, [&] { OF(prepare)(w, reinterpret_cast<char*>(made.data), table, 2); });
            std::copy(made.data, made.data + size, in.data);
            same<E>("the layer behind", 0, made[size], round_to<E>(w[0]));
            for (int a = 0; a < o; a++)
                for (int b = 0; b < i; b++)
                    for (int t = 0; t < taps; t++) same<E>("in", 0, in[(size_t(a) * taps + t) * i + b], round_to<E>(w[(size_t(a) * i + b) * taps + t]));
            cuda_cpu::launch({blocks}, 256, 0, [&] { OF(weights_out)(in, out, o, i, taps); });
            for (size_t k = 0; k < size; k++) same<float>("out", k, out[k], number(round_to<E>(w[k])));
        }
    }
}

template <class E> void moves() {
    for (int n : {1, 3})
        for (auto [ci, p, c, at] : {std::array{3, 49, 8, 0}, {6, 64, 7, 1}, {1, 1, 1, 0}, {2, 300, 32, 30}}) {
            where = "planes " + std::to_string(ci) + " of " + std::to_string(p);
            auto planes = random_array<float>(size_t(n) * ci * p);
            auto pixels = random_array<E>(size_t(n) * p * c);
            std::vector<E> before(pixels.data, pixels.data + pixels.size);
            cuda_cpu::launch({unsigned(n * p + 255) / 256}, 256, 0, [&] { OF(enter)(planes, pixels, n, ci, p, c, at); });
            for (int i = 0; i < n; i++)
                for (int q = 0; q < p; q++)
                    for (int k = 0; k < c; k++) {
                        const size_t to = (size_t(i) * p + q) * c + k;
                        const bool in = k >= at && k < at + ci;
                        same<E>("pixels", to, pixels[to], in ? round_to<E>(planes[(size_t(i) * ci + k - at) * p + q]) : before[to]);
                    }
            Array<float> back(size_t(n) * ci * p);
            cuda_cpu::launch({2}, 256, 0, [&] { OF(leave)(pixels, back, n, ci, p, c); });
            for (int i = 0; i < n; i++)
                for (int k = 0; k < ci; k++)
                    for (int q = 0; q < p; q++) same<float>("planes", 0, back[(size_t(i) * ci + k) * p + q], number(pixels[(size_t(i) * p + q) * c + k]));
        }
    for (auto [rows, c, out_c, at] : {std::array{7, 16, 48, 8}, {70, 3, 7, 2}, {5, 8, 12, 4}, {3, 2304, 2312, 8}, {2, 700, 701, 1}, {1, 1, 1, 0}}) {
        where = "place " + std::to_string(c) + " in " + std::to_string(out_c);
        auto x = random_array<E>(size_t(rows) * c), out = random_array<E>(size_t(rows) * out_c);
        std::vector<E> before(out.data, out.data + out.size);
        cuda_cpu::launch({3}, 256, 0, [&] { OF(place)(x, out, rows, c, out_c, at); });
        for (int r = 0; r < rows; r++)
            for (int k = 0; k < out_c; k++) {
                const size_t to = size_t(r) * out_c + k;
                same<E>("place", to, out[to], k >= at && k < at + c ? x[size_t(r) * c + k - at] : before[to]);
            }
        Array<E> taken(size_t(rows) * c);
        cuda_cpu::launch({2}, 256, 0, [&] { OF(take)(out, taken, rows, out_c, at, c); });
        for (size_t k = 0; k < taken.size; k++) same<E>("take", k, taken[k], x[k]);
    }
    for (auto [n, h, w, c] : {std::array{1, 1, 1, 8}, {2, 3, 5, 24}, {3, 4, 4, 96}, {1, 2, 3, 2304}}) {
        where = "resample " + std::to_string(h) + "x" + std::to_string(w) + " c " + std::to_string(c);
        auto x = random_array<E>(size_t(n) * h * w * c), wide = random_array<E>(size_t(4) * n * h * w * c);
        Array<E> up(wide.size), down(x.size);
        cuda_cpu::launch({2}, 256, 0, [&] { OF(up)(x, up, n, h, w, c, 0.3f); });
        cuda_cpu::launch({2}, 256, 0, [&] { OF(down)(wide, down, n, h, w, c, 0.25f); });
        for (int i = 0; i < n; i++)
            for (int r = 0; r < 2 * h; r++)
                for (int s = 0; s < 2 * w; s++)
                    for (int k = 0; k < c; k++)
                        same<E>("up", 0, up[((size_t(i) * 2 * h + r) * 2 * w + s) * c + k], narrow<E>(float(number(x[((size_t(i) * h + r / 2) * w + s / 2) * c + k])) * 0.3f));
        for (int i = 0; i < n; i++)
            for (int r = 0; r < h; r++)
                for (int s = 0; s < w; s++)
                    for (int k = 0; k < c; k++) {
                        auto at = [&](int a, int b) { return float(number(wide[((size_t(i) * 2 * h + 2 * r + a) * 2 * w + 2 * s + b) * c + k])); };
                        same<E>("down", 0, down[((size_t(i) * h + r) * w + s) * c + k], narrow<E>((at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) * 0.25f));
                    }
    }
}

template <class E> void elementwise() {
    const float odd[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-40f, 88.0f, -88.0f, 100.0f, -100.0f, 65519.0f, 65520.0f, 3e38f, -3e38f};
    for (long long len : {1ll, 7ll, 8ll, 100ll, 4096ll, 9001ll}) {
        where = "elementwise " + std::to_string(len);
        auto x = random_array<E>(len, 0, 4), g = random_array<E>(len);
        for (size_t i = 0; i < std::size(odd) && (long long)(i * 2) < len; i++) x[i * 2] = narrow<E>(odd[i]);
        Array<E> y(len);
        Array<float> wide(len);
        const unsigned blocks = unsigned(len % 3) + 1;
        cuda_cpu::launch({blocks}, 256, 0, [&] { OF(silu)(x, y, len); });
        for (long long i = 0; i < len; i++) {
            const double v = number(x[i]), s = 1 / (1 + std::exp(-v));
            if (v == -INFINITY) check<E>("silu", i, y[i], NAN, 0);
            else check<E>("silu", i, y[i], v * s, std::abs(v * s) * (2 + std::abs(v) / 4) + 1e-30);
        }
        cuda_cpu::launch({blocks}, 256, 0, [&] { OF(silu_grad)(g, x, y, len); });
        for (long long i = 0; i < len; i++) {
            const double v = number(x[i]), s = 1 / (1 + std::exp(-v)), a = number(g[i]);
            if (std::isfinite(v)) check<E>("silu_grad", i, y[i], a * s * (1 + v * (1 - s)), std::abs(a) * (s * (1 + std::abs(v))) * 2 + 1e-30);
            else if (std::isnan(v)) check<E>("silu_grad", i, y[i], NAN, 0);
        }
        cuda_cpu::launch({blocks}, 256, 0, [&] { OF(relu)(x, y, len); });
        for (long long i = 0; i < len; i++) check<E>("relu", i, y[i], number(x[i]) < 0 ? 0 : number(x[i]), 0);
        cuda_cpu::launch({blocks}, 256, 0, [&] { OF(relu_grad)(g, x, y, len); });
        for (long long i = 0; i < len; i++) same<E>("relu_grad", i, y[i], number(x[i]) <= 0 ? narrow<E>(0) : g[i]);
        cuda_cpu::launch({blocks}, 256, 0, [&] { OF(to_f32)(x, wide, len); });
        cuda_cpu::launch({blocks}, 256, 0, [&] { OF(from_f32)(wide, y, len); });
        for (long long i = 0; i < len; i++) check<float>("to_f32", i, wide[i], number(x[i]), 0), check<E>("from_f32", i, y[i], number(x[i]), 0);
        // In place.
        std::vector<E> before(g.data, g.data + len);
        cuda_cpu::launch({blocks}, 256, 0, [&] { OF(add)(x, g, g, len); });
        for (long long i = 0; i < len; i++) {
            const float sum = float(number(x[i])) + float(number(before[i]));
            std::isnan(sum) ? check<E>("add", i, g[i], NAN, 0) : same<E>("add", i, g[i], narrow<E>(sum));
        }
    }
}

template <class E> void sums() {
    for (auto [n, p, c] : {std::array{1, 1, 8}, {2, 49, 96}, {3, 16, 3}, {2, 70, 200}, {1, 3, 2304}, {2, 2, 300}}) {
        if (small && p != 16 && p != 1) continue;
        where = "rows n " + std::to_string(n) + " p " + std::to_string(p) + " c " + std::to_string(c);
        auto x = random_array<E>(size_t(n) * p * c), more = random_array<E>(size_t(n) * p * c);
        auto rows = random_array<float>(size_t(n) * c), bias = random_array<float>(c, 0, 1, 1);
        Array<E> y(x.size);
        Array<float> sums(size_t(n) * c);
        const unsigned un = n;
        cuda_cpu::launch({2, un}, 256, 0, [&] { OF(add_rows)(x, rows, y, n, p, c); });
        for (size_t i = 0; i < x.size; i++) same<E>("add_rows", i, y[i], narrow<E>(float(number(x[i])) + rows[i / (size_t(p) * c) * c + i % c]));
        cuda_cpu::launch({1, un}, 256, 0, [&] { OF(spread_rows)(rows, y, n, p, c, 0.2f); });
        for (size_t i = 0; i < x.size; i++) same<E>("spread_rows", i, y[i], narrow<E>(rows[i / (size_t(p) * c) * c + i % c] * 0.2f));
        cuda_cpu::launch({unsigned(c + 63) / 64, un}, 256, 0, [&] { OF(sum_pixels)(x, sums, n, p, c, 0.2f); });
        for (int i = 0; i < n; i++)
            for (int k = 0; k < c; k++) {
                double sum = 0, large = 0;
                for (int q = 0; q < p; q++) sum += number(x[(size_t(i) * p + q) * c + k]), large += std::abs(number(x[(size_t(i) * p + q) * c + k]));
                check<float>("sum_pixels", size_t(i) * c + k, sums[size_t(i) * c + k], sum * 0.2f, large * 0.2);
            }
        const int all = n * p;
        for (int chunk : {1, 7, all}) {
            const int chunks = (all + chunk - 1) / chunk;
            Array<float> partial(size_t(chunks) * c), out(c, 1);
            cuda_cpu::launch({unsigned(chunks)}, 256, 0, [&] { OF(column_sums)(x, partial, all, c, chunk); });
            cuda_cpu::launch({unsigned(c + 7) / 8}, 512, 0, [&] { column_sums_finish(partial, out, chunks, c); });
            for (int k = 0; k < c; k++) {
                double sum = 0, large = 0;
                for (int r = 0; r < all; r++) sum += number(x[size_t(r) * c + k]), large += std::abs(number(x[size_t(r) * c + k]));
                check<float>("column_sums", k, out[k], sum, large);
            }
        }
        for (int flags = 0; flags < 4; flags++) {
            for (size_t i = 0; i < y.size; i++) y[i] = x[i];
            cuda_cpu::launch({2}, 256, 0, [&] { OF(bias_residual)(y, bias, flags & 1 ? more.data : nullptr, y, all, c, flags & 2); });
            for (size_t i = 0; i < x.size; i++) {
                float v = float(number(x[i])) + bias[i % c];
                if (flags & 1) v += float(number(more[i]));
                same<E>("bias_residual", i, y[i], narrow<E>(flags & 2 && v < 0 ? 0 : v));
            }
        }
    }
}

template <class E> void pools() {
    for (auto [n, h, w, c] : {std::array{2, 7, 5, 8}, {1, 4, 6, 3}, {1, 3, 3, 16}, {1, 9, 9, 2056}})
        for (int flags = 0; flags < 8; flags++) {
            const int stride = 1 + flags % 2, padding = flags / 2 % 2, maximum = flags / 4 == 0;
            if (c > 2000 && flags % 4 != 2) continue;
            const int oh = (h + 2 * padding - 3) / stride + 1, ow = (w + 2 * padding - 3) / stride + 1;
            where = "pool " + std::to_string(flags);
            auto x = random_array<E>(size_t(n) * h * w * c);
            if (x.size > 40) x[37] = narrow<E>(NAN);
            Array<E> y(size_t(n) * oh * ow * c);
            cuda_cpu::launch({2}, 256, 0, [&] { OF(pool)(x, y, n, h, w, c, oh, ow, stride, padding, maximum); });
            for (int i = 0; i < n; i++)
                for (int r = 0; r < oh; r++)
                    for (int s = 0; s < ow; s++)
                        for (int k = 0; k < c; k++) {
                            double sum = 0, largest = -INFINITY;
                            int count = 0;
                            for (int a = r * stride - padding; a < r * stride - padding + 3; a++)
                                for (int b = s * stride - padding; b < s * stride - padding + 3; b++)
                                    if (a >= 0 && a < h && b >= 0 && b < w) {
                                        const double v = number(x[((size_t(i) * h + a) * w + b) * c + k]);
                                        sum += v, count++, largest = std::isnan(v) || std::isnan(largest) ? NAN : std::max(largest, v);
                                    }
                            check<E>("pool", 0, y[((size_t(i) * oh + r) * ow + s) * c + k], maximum ? largest : sum / count, maximum ? 0 : 9);
                        }
        }
}

static void small_ones() {
    using E = float;
    for (auto [n, c, classes] : {std::array{1, 8, 3}, {5, 300, 4}, {3, 33, 10}}) {
        if (small) break;
        where = "embed";
        auto rows = random_array<float>(size_t(n) * c), table = random_array<float>(size_t(classes) * c, 0, 1, 1);
        Array<unsigned> labels(n);
        for (int i = 0; i < n; i++) labels[i] = i % 3 == 1 ? NO_CLASS : generator() % classes;
        Array<float> out(rows.size), grad(table.size, 1);
        cuda_cpu::launch({2}, 256, 0, [&] { embed(rows, table, labels, out, n, c); });
        cuda_cpu::launch({2}, 256, 0, [&] { embed_grad(rows, labels, grad, n, c, classes); });
        std::vector<float> sums(table.size);
        for (int i = 0; i < n; i++)
            for (int k = 0; k < c; k++) {
                const float row = rows[size_t(i) * c + k];
                const bool has_class = labels[i] != NO_CLASS;
                same<E>("embed", 0, out[size_t(i) * c + k], has_class ? row + table[size_t(labels[i]) * c + k] : row);
                if (has_class) sums[size_t(labels[i]) * c + k] += row;
            }
        for (size_t i = 0; i < sums.size(); i++) same<E>("embed_grad", i, grad[i], sums[i]);
    }
    for (auto [n, p, c] : {std::array{1, 1, 8}, {2, 49, 96}, {3, 16, 37}, {2, 64, 300}}) {
        if (small && c != 37) continue;
        where = "tokens n " + std::to_string(n) + " p " + std::to_string(p) + " c " + std::to_string(c);
        const int t = p + 1;
        const unsigned un = n;
        auto x = random_array<float>(size_t(n) * p * c), positions = random_array<float>(size_t(c) * t, 0, 1, 1), grad = random_array<float>(size_t(n) * t * c);
        auto head = random_array<float>(size_t(n) * c);
        Array<float> out(grad.size), dx(x.size), dpositions(positions.size, 1), first(head.size), spread(grad.size);
        cuda_cpu::launch({unsigned(c + 31) / 32, un}, 256, 0, [&] { tokens(x, positions, out, n, p, c); });
        cuda_cpu::launch({2, un}, 256, 0, [&] { tokens_grad(grad, dx, n, p, c); });
        cuda_cpu::launch({2}, 256, 0, [&] { positions_grad(grad, dpositions, n, p, c); });
        cuda_cpu::launch({2}, 256, 0, [&] { first_token(grad, first, n, t, c); });
        cuda_cpu::launch({2}, 256, 0, [&] { first_token_grad(head, spread, n, t, c); });
        for (int k = 0; k < c; k++) {
            for (int q = 0; q < t; q++) {
                float all = 0;
                for (int i = 0; i < n; i++) all += grad[(size_t(i) * t + q) * c + k];
                same<E>("positions_grad", 0, dpositions[size_t(k) * t + q], all);
            }
            for (int i = 0; i < n; i++) {
                double mean = 0;
                for (int q = 0; q < p; q++) mean += x[(size_t(i) * p + q) * c + k] / double(p);
                check<E>("tokens", 0, out[size_t(i) * t * c + k], mean + positions[size_t(k) * t], 3);
                same<E>("first_token", 0, first[size_t(i) * c + k], grad[size_t(i) * t * c + k]);
                for (int q = 0; q < t; q++) same<E>("first_token_grad", 0, spread[(size_t(i) * t + q) * c + k], q ? 0 : head[size_t(i) * c + k]);
                for (int q = 0; q < p; q++) {
                    same<E>("tokens", 1, out[(size_t(i) * t + q + 1) * c + k], x[(size_t(i) * p + q) * c + k] + positions[size_t(k) * t + q + 1]);
                    same<E>("tokens_grad", 0, dx[(size_t(i) * p + q) * c + k], grad[(size_t(i) * t + q + 1) * c + k] + grad[size_t(i) * t * c + k] / p);
                }
            }
        }
    }
}

template <class E> void attention() {
    for (int t : {1, 16, 49, 64, 256, 257, 1000, 1024, 1025, 1032, 4096}) {
        const int rows = t > 1000 ? 3 : 19;
        if (small && t != 16 && t != 1025) continue;
        where = "softmax " + std::to_string(t);
        const float scale = 0.6f;
        auto scores = random_array<float>(size_t(rows) * t, 3, 4), d = random_array<float>(size_t(rows) * t);
        scores[size_t(t) * 2 - 1] = NAN;
        for (int k = 0; k + 1 < t; k++) scores[size_t(t) * 2 + k] = -INFINITY;
        Array<E> p(scores.size), ds(scores.size);
        cuda_cpu::launch({2}, 256, 0, [&] { OF(softmax)(scores, p, rows, t, scale); });
        for (int r = 0; r < rows; r++) {
            double max = -INFINITY, sum = 0;
            for (int k = 0; k < t; k++) max = std::max(max, double(scores[size_t(r) * t + k]));
            for (int k = 0; k < t; k++) sum += std::exp((scores[size_t(r) * t + k] - max) * scale);
            for (int k = 0; k < t; k++) {
                const double e = r == 1 ? NAN : std::exp((scores[size_t(r) * t + k] - max) * scale) / sum;
                check<E>("weight", size_t(r) * t + k, p[size_t(r) * t + k], e, std::isfinite(e) ? e * (2 + std::abs(std::log(e + 1e-30)) / 4) : 0);
            }
        }
        for (int k = 0; k < t; k++) p[size_t(t) + k] = narrow<E>(1.0f / t);
        cuda_cpu::launch({1}, 256, 0, [&] { OF(softmax_grad)(p, d, ds, rows, t, scale); });
        for (int r = 0; r < rows; r++) {
            double dot = 0, large = 0;
            for (int k = 0; k < t; k++) dot += number(p[size_t(r) * t + k]) * d[size_t(r) * t + k], large += std::abs(number(p[size_t(r) * t + k]) * d[size_t(r) * t + k]);
            for (int k = 0; k < t; k++) {
                const double w = number(p[size_t(r) * t + k]);
                check<E>("grad", size_t(r) * t + k, ds[size_t(r) * t + k], scale * w * (d[size_t(r) * t + k] - dot), scale * w * (std::abs(d[size_t(r) * t + k]) + large));
            }
        }
    }
}

static void optimizers() {
    using E = float;
    for (long long len : {1ll, 3ll, 4ll, 1027ll, 70000ll}) {
        if (small) break;
        where = "adamw " + std::to_string(len);
        auto param = random_array<float>(len), grad = random_array<float>(len), m = random_array<float>(len, 0, 0.1f), v = random_array<float>(len, 1, 0.1f);
        auto first = random_array<float>(len), second = random_array<float>(len), sum = random_array<float>(len);
        const float scale = 0.7f;
        Update u{0.1f, 0.999f, 0.001f, 0.9999f, 3e-4f, 0.3f, 1e-8f, 2, {0.99f, 0.9f}, {0.01f, 0.1f}, {first, second}};
        std::vector<float> p(param.data, param + len), a(m.data, m + len), b(v.data, v + len), e(first.data, first + len), f(second.data, second + len), s(sum.data, sum + len);
        cuda_cpu::launch({3}, 256, 0, [&] { adamw(param, grad, m, v, u, &scale, len); });
        cuda_cpu::launch({2}, 256, 0, [&] { accumulate(sum, grad, len); });
        for (long long i = 0; i < len; i++) {
            const float g = grad[i] * scale;
            a[i] += u.one_minus_beta1 * (g - a[i]);
            b[i] = b[i] * u.beta2 + u.one_minus_beta2 * g * g;
            p[i] = p[i] * u.decay - u.step_size * a[i] / (std::sqrt(b[i]) / u.sqrt_correction2 + u.eps);
            same<E>("param", i, param[i], p[i]), same<E>("m", i, m[i], a[i]), same<E>("v", i, v[i], b[i]);
            same<E>("average", i, first[i], e[i] * u.rate[0] + p[i] * u.rest[0]), same<E>("average", i, second[i], f[i] * u.rate[1] + p[i] * u.rest[1]);
            same<E>("accumulate", i, sum[i], s[i] + grad[i]);
        }
        where = "adamw without effect " + std::to_string(len);
        const float none = NAN;
        cuda_cpu::launch({3}, 256, 0, [&] { adamw(param, grad, m, v, u, &none, len); });
        for (long long i = 0; i < len; i++) same<E>("param", i, param[i], p[i]), same<E>("m", i, m[i], a[i]), same<E>("v", i, v[i], b[i]);
    }
    where = "clip";
    for (double squares : {0.0, 2.25, 1e30, HUGE_VAL, double(NAN)}) {
        for (double scale : {1.0, 3.7}) {
            for (double most : {0.0, 1.0}) {
                double norm = 0;
                float factor = 0;
                cuda_cpu::launch({1}, 1, 0, [&] { clip(&squares, scale, most, &norm, &factor); });
                const double expected = std::sqrt(squares) / scale, cut = most > 0 ? std::min(most / (expected + 1e-6), 1.0) : 1.0;
                checks++, failures += std::isfinite(expected) ? norm != expected || factor != float(cut / scale) : !std::isnan(factor);
            }
        }
    }
    for (long long len : {1ll, 32ll, 1111ll, 65536ll, 65536ll * 3 + 1077}) {
        if (small && len != 1111) continue;
        where = "sum_squares " + std::to_string(len);
        auto x = random_array<float>(len, 0, 1, 1);
        const int chunks = int((len + 65535) / 65536);
        Array<double> partial(chunks), out(1);
        cuda_cpu::launch({unsigned(chunks)}, 32, 0, [&] { sum_squares(x, partial, len); });
        cuda_cpu::launch({1}, 256, 0, [&] { sum_partials(partial, out, chunks); });
        double all = 0;
        for (int chunk = 0; chunk < chunks; chunk++) {
            const long long from = chunk * 65536ll, to = std::min(len, from + 65536), whole = from + (to - from) / 32 * 32;
            double lanes[32] = {}, sum = 0, rest = 0;
            for (long long i = from; i < whole; i++) lanes[i % 32] += double(x[i]) * double(x[i]);
            for (double lane : lanes) sum += lane;
            for (long long i = whole; i < to; i++) rest += double(x[i]) * double(x[i]);
            checks++, failures += partial[chunk] != sum + rest;
            all += sum + rest;
        }
        checks++;
        if (out[0] != all) failures++, std::printf("%s: %.17g instead of %.17g\n", where.c_str(), out[0], all);
    }
    // More partial sums than a block fetches at a time.
    auto values = random_array<float>(2500);
    Array<double> partial(2500), out(1);
    double all = 0;
    for (int i = 0; i < 2500; i++) partial[i] = values[i] / 3.0, all += partial[i];
    cuda_cpu::launch({1}, 256, 0, [&] { sum_partials(partial, out, 2500); });
    checks++, failures += out[0] != all;
}

template <class E> void conversions() {
    if constexpr (!std::is_same_v<E, float>) {
        where = "conversion";
        for (unsigned i = 0; i < 65536; i++) {
            const E e{(unsigned short)i};
            const float x = widen(e);
            if (x == x) same<E>("there and back", i, narrow<E>(x), e);
            else check<E>("NaN", i, narrow<E>(x), NAN, 0);
            // Between neighbours the nearest, of two the even one.
            const E next{(unsigned short)(i + 1)};
            if (x == x && std::isfinite(widen(next)) && (i & 0x7fff) != 0x7fff) {
                const float middle = float((double(x) + widen(next)) / 2);
                same<E>("tie", i, narrow<E>(middle), i % 2 ? next : e);
                same<E>("below", i, narrow<E>(std::nextafter(middle, x)), e);
                same<E>("above", i, narrow<E>(std::nextafter(middle, widen(next))), next);
            }
        }
    }
}

int main() {
    const auto began = std::chrono::steady_clock::now();
    norms(), small_ones(), optimizers();
    weights<bf16>(), sums<bf16>(), attention<bf16>();
    if (!small) {
        known_answers();
        conversions<bf16>(), conversions<f16>();
        weights<float>(), sums<float>(), attention<float>();
        weights<f16>(), sums<f16>(), attention<f16>();
        moves<float>(), elementwise<float>(), pools<float>();
        moves<bf16>(), elementwise<bf16>(), pools<bf16>();
        moves<f16>(), elementwise<f16>(), pools<f16>();
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    std::printf("%d checks, %d failures, %.1f s\n", checks, failures, seconds);
    return failures > 0;
}
