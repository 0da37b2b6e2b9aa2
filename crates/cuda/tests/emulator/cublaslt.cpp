// libcublasLt.so.13 for tests: matrix products on the memory of driver.cpp, in the order of its streams. Column-major as cuBLASLt's, transposes,
// strided batches, alpha and beta (C may be D), f32, f16 and bf16 with f32 sums, a bias over rows, the gradient of a bias (BGRADA, BGRADB).
// COMPUTE_32F is true f32, COMPUTE_32F_FAST_TF32 rounds its inputs. Heuristics may not be asked while a stream is capturing (the real one fails
// there, too). What the real one refuses is refused: mixed types, sizes that do not fit, memory outside of the device's.
#include <map>
#include <memory>
#include "driver.hpp"
#include "numbers.hpp"

namespace {
enum { NOT_INITIALIZED = 1, INVALID_VALUE = 7, MAPPING_ERROR = 11, EXECUTION_FAILED = 13, INTERNAL_ERROR = 14, NOT_SUPPORTED = 15 };
enum { NONE = 1, BIAS = 4, BGRADA = 256, BGRADB = 512 };
struct Bag { std::map<int, std::vector<char>> has; };
template <class T> T value(const Bag* b, int name, T otherwise) {
    auto it = b->has.find(name);
    if (it == b->has.end()) return otherwise;
    T v{};
    memcpy(&v, it->second.data(), std::min(it->second.size(), sizeof(T)));
    return v;
}
int put(void* bag, int name, const void* p, size_t n) {
    if (!bag || !p) return INVALID_VALUE;
    ((Bag*)bag)->has[name].assign((const char*)p, (const char*)p + n);
    return 0;
}
bool known(int cuda_type) { return cuda_type == 0 || cuda_type == 2 || cuda_type == 14; }
Type type_of(int cuda_type) { return cuda_type == 0 ? Type::f32 : cuda_type == 2 ? Type::f16 : Type::bf16; }
struct Layout {
    int type;
    int64_t rows, cols, ld, stride;
    int order, batch;
    explicit Layout(const Bag* b) : type(value(b, 0, 0)), rows(value<int64_t>(b, 2, 0)), cols(value<int64_t>(b, 3, 0)), ld(value<int64_t>(b, 4, 0)), stride(value<int64_t>(b, 6, 0)), order(value(b, 1, 0)), batch(value(b, 5, 1)) {}
    int64_t span() const { return (cols - 1) * ld + rows; }  // numbers from the first to the last of one matrix
    bool fits(const void* p) const { return uintptr_t(p) % size_of(type_of(type)) == 0 && cuda_on_cpu_inside(p, (stride * (batch - 1) + span()) * size_of(type_of(type))); }
};
struct Product {
    Layout a, b, c, d;
    bool ta, tb, tf32;
    int epilogue, bias_type;
    int64_t bias_stride;
    char* bias;
    float alpha = 1, beta = 0;
    const char *A = nullptr, *B = nullptr, *C = nullptr;
    char* D = nullptr;

    Product(const Bag* desc, const Bag* a, const Bag* b, const Bag* c, const Bag* d)
        : a(a), b(b), c(c), d(d), ta(value(desc, 3, 0) == 1), tb(value(desc, 4, 0) == 1), tf32(value(desc, 0, 68) == 77), epilogue(value(desc, 7, NONE)),
          bias_type(value(desc, 26, -1)), bias_stride(value<int64_t>(desc, 10, 0)), bias(value<char*>(desc, 8, nullptr)) {
        if (bias_type == -1) bias_type = this->d.type;
    }
    int64_t bias_length() const { return epilogue == BGRADB ? d.cols : d.rows; }
    // 0, or why cuBLASLt does not do this
    int refused(const Bag* desc) const {
        int compute = value(desc, 0, 68), ta_ = value(desc, 3, 0), tb_ = value(desc, 4, 0);
        if (ta_ < 0 || ta_ > 1 || tb_ < 0 || tb_ > 1) return NOT_SUPPORTED;
        if ((compute != 68 && compute != 69 && compute != 77) || value(desc, 1, 0) != 0 || value(desc, 2, 0) != 0) return NOT_SUPPORTED;
        if (epilogue != NONE && epilogue != BIAS && epilogue != BGRADA && epilogue != BGRADB) return NOT_SUPPORTED;
        if (!known(a.type) || b.type != a.type || c.type != d.type || (d.type != a.type && d.type != 0) || !known(bias_type)) return NOT_SUPPORTED;
        for (const Layout* l : {&a, &b, &c, &d}) {
            if (l->order) return NOT_SUPPORTED;  // column-major only
            if (l->rows < 1 || l->cols < 1 || l->ld < l->rows || l->batch != d.batch || l->batch < 1) return INVALID_VALUE;
        }
        if (d.batch > 1 && d.stride < d.span()) return INVALID_VALUE;
        if ((ta ? a.cols : a.rows) != d.rows || (tb ? b.rows : b.cols) != d.cols || (ta ? a.rows : a.cols) != (tb ? b.cols : b.rows) || c.rows != d.rows || c.cols != d.cols) return INVALID_VALUE;
        return 0;
    }
    bool fits() const {
        return a.fits(A) && b.fits(B) && d.fits(D) && (beta == 0 || c.fits(C)) &&
               (epilogue == NONE || (bias && cuda_on_cpu_inside(bias, (bias_stride * (d.batch - 1) + bias_length()) * size_of(type_of(bias_type)))));
    }
    void run() const {
        long m = d.rows, n = d.cols, k = ta ? a.rows : a.cols;
        // dᵀ = op(b)ᵀ op(a)ᵀ: row j of the product is column j of d
        std::vector<float> av(a.span()), bv(b.span()), sum(m * n), column(m), offset(m);
        Matrix left{bv.data(), tb ? 1 : b.ld, tb ? b.ld : 1}, right{av.data(), ta ? 1 : a.ld, ta ? a.ld : 1};
        for (long z = 0; z < d.batch; z++) {
            widen(A + z * a.stride * size_of(type_of(a.type)), type_of(a.type), a.span(), av.data());
            widen(B + z * b.stride * size_of(type_of(b.type)), type_of(b.type), b.span(), bv.data());
            char* extra = bias ? bias + z * bias_stride * size_of(type_of(bias_type)) : nullptr;
            if (epilogue == BGRADA || epilogue == BGRADB) {
                bool of_b = epilogue == BGRADB;
                std::vector<float> g(bias_length());
                for (long i = 0; i < long(g.size()); i++)
                    for (long l = 0; l < k; l++) g[i] += of_b ? bv[i * left.row + l * left.col] : av[l * right.row + i * right.col];
                narrow(g.data(), type_of(bias_type), g.size(), extra);
            }
            if (tf32 && a.type == 0) round_to_tf32(av.data(), av.size()), round_to_tf32(bv.data(), bv.size());
            std::fill(sum.begin(), sum.end(), 0.0f);
            multiply(n, m, k, left, right, sum.data());
            if (epilogue == BIAS) widen(extra, type_of(bias_type), m, offset.data());
            for (long j = 0; j < n; j++) {
                float* s = sum.data() + j * m;
                for (long i = 0; i < m; i++) s[i] *= alpha;
                if (beta != 0) {
                    widen(C + (z * c.stride + j * c.ld) * size_of(type_of(c.type)), type_of(c.type), m, column.data());
                    for (long i = 0; i < m; i++) s[i] += beta * column[i];
                }
                if (epilogue == BIAS) for (long i = 0; i < m; i++) s[i] += offset[i];
                narrow(s, type_of(d.type), m, D + (z * d.stride + j * d.ld) * size_of(type_of(d.type)));
            }
        }
    }
};
const uint64_t ALGORITHM = 0x616c676f726974;  // what heuristics give; a product without it is somebody's uninitialised memory
}  // namespace

extern "C" {
size_t cublasLtGetVersion() { return 130000; }
size_t cublasLtGetCudartVersion() { return 13000; }
const char* cublasLtGetStatusName(int s) { return s ? "CUBLAS_STATUS refused by the processor's cublasLt" : "CUBLAS_STATUS_SUCCESS"; }
const char* cublasLtGetStatusString(int s) { return cublasLtGetStatusName(s); }
int cublasLtCreate(void** h) {
    if (int e = cuda_on_cpu_call("cublasLtCreate", EXECUTION_FAILED)) return e;
    if (cuda_on_cpu_unsafe()) return NOT_INITIALIZED;
    *h = new char;
    return 0;
}
int cublasLtDestroy(void* h) { delete (char*)h; return 0; }
int cublasLtMatrixLayoutCreate(void** out, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    Bag* b = new Bag;
    put(b, 0, &type, 4), put(b, 2, &rows, 8), put(b, 3, &cols, 8), put(b, 4, &ld, 8);
    *out = b;
    return 0;
}
int cublasLtMatrixLayoutSetAttribute(void* l, int name, const void* p, size_t n) { return put(l, name, p, n); }
int cublasLtMatrixLayoutDestroy(void* l) { delete (Bag*)l; return 0; }
int cublasLtMatmulDescCreate(void** out, int compute, int scale) {
    Bag* b = new Bag;
    put(b, 0, &compute, 4), put(b, 1, &scale, 4);
    *out = b;
    return 0;
}
int cublasLtMatmulDescSetAttribute(void* d, int name, const void* p, size_t n) { return put(d, name, p, n); }
int cublasLtMatmulDescDestroy(void* d) { delete (Bag*)d; return 0; }
int cublasLtMatmulPreferenceCreate(void** out) { *out = new Bag; return 0; }
int cublasLtMatmulPreferenceSetAttribute(void* p, int name, const void* v, size_t n) { return put(p, name, v, n); }
int cublasLtMatmulPreferenceDestroy(void* p) { delete (Bag*)p; return 0; }

struct Result { uint64_t algo[8]; size_t workspace; int state; float waves; int reserved[4]; };
int cublasLtMatmulAlgoGetHeuristic(void* h, void* desc, void* a, void* b, void* c, void* d, void* preference, int wanted, Result* out, int* found) {
    if (int e = cuda_on_cpu_call("cublasLtMatmulAlgoGetHeuristic", EXECUTION_FAILED)) return e;
    if (!h || !desc || !a || !b || !c || !d || !preference || wanted < 1 || !out || !found) return INVALID_VALUE;
    int capturing = 0;
    if (!cuda_on_cpu_capturing(&capturing) && capturing) return INTERNAL_ERROR;
    *found = 0;
    if (int e = Product((Bag*)desc, (Bag*)a, (Bag*)b, (Bag*)c, (Bag*)d).refused((Bag*)desc)) return e;
    memset(out, 0, sizeof *out);
    out->algo[0] = ALGORITHM, out->waves = 1, *found = 1;
    return 0;
}
int cublasLtMatmul(void* h, void* desc, const void* alpha, const void* a, void* al, const void* b, void* bl, const void* beta, const void* c, void* cl, void* d, void* dl, const uint64_t* algo, void*, size_t, void* stream) {
    if (int e = cuda_on_cpu_call("cublasLtMatmul", EXECUTION_FAILED)) return e;
    if (!h || !desc || !alpha || !beta || !al || !bl || !cl || !dl) return INVALID_VALUE;
    int capturing = 0;
    cuda_on_cpu_capturing(&capturing);
    if (!algo && capturing) return INTERNAL_ERROR;  // it would ask heuristics
    if (algo && algo[0] != ALGORITHM) return INVALID_VALUE;
    auto product = std::make_unique<Product>((Bag*)desc, (Bag*)al, (Bag*)bl, (Bag*)cl, (Bag*)dl);
    if (int e = product->refused((Bag*)desc)) return e;
    product->alpha = *(const float*)alpha, product->beta = *(const float*)beta;
    product->A = (const char*)a, product->B = (const char*)b, product->C = (const char*)c, product->D = (char*)d;
    if (!product->fits()) return INVALID_VALUE;
    int e = cuda_on_cpu_enqueue(stream, [](void* p) { ((Product*)p)->run(); }, product.release(), [](void* p) { delete (Product*)p; });
    return e ? EXECUTION_FAILED : 0;
}
}
