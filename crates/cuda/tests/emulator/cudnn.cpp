// libcudnn.so.9 for tests: the backend API's convolutions, pointwise operations and reductions on the memory of driver.cpp, in the order of its
// streams. A descriptor is a bag of attributes; finalising a plan makes a list of operations of it that needs no descriptor any more. What the
// real one would refuse is refused where that is simple. Sums are f32 in a fixed order, results rounded to the tensor's type.
//   CUDNN_ON_CPU_ENGINES=3      how many engine configurations heuristics of mode A offer; the last is marked nondeterministic
//   CUDNN_ON_CPU_REFUSE=0,2     plans of these engines fail when they are finalised
// As on an H100, mode A computes f32 with tensor cores (note 0, inputs are rounded to TF32), mode FALLBACK has true f32 (its first engine wants a
// workspace of four results). The nondeterministic ones really give other last bits from run to run. A fusion other than convolution [+ residual] [+ bias] is
// marked as compiled at run time.
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include "driver.hpp"
#include "numbers.hpp"

namespace {
enum Kind { POINTWISE = 0, CONV = 1, ENGINE = 2, CFG = 3, HEUR = 4, PLAN = 5, FWD = 10, WGRAD = 11, DGRAD = 12, OP_PW = 13, GRAPH = 15, PACK = 16, TENSOR = 17, REDUCTION = 21, OP_RED = 22, DEVICE = 38 };
enum { T_HANDLE = 0, T_TYPE = 1, T_BOOL = 2, T_I64 = 3, T_F32 = 4, T_F64 = 5, T_PTR = 6, T_CONV = 7, T_HEUR = 8, T_NOTE = 11, T_PW = 14, T_DESC = 15, T_RED = 18, T_BEHAVIOUR = 19, T_I32 = 23, T_CHAR = 24 };
enum { NOT_INITIALIZED = 1001, BAD_PARAM = 2000, MISALIGNED = 2003, NOT_FINALIZED = 2004, OUT_OF_BOUND = 2005, SHAPE_MISMATCH = 2008, DUPLICATED = 2009, ATTRIBUTE_TYPE = 2010, DESCRIPTOR_TYPE = 2012, NOT_SUPPORTED = 3000, PATTERN = 3001, EXECUTION_FAILED = 5000 };
enum { FALLBACK = 2 };  // a mode of heuristics
enum { TENSOR_CORE = 0, NONDETERMINISTIC = 4 };

size_t bytes_of(int type) { switch (type) { case T_BOOL: case T_CHAR: return 1; case T_I64: case T_F64: case T_PTR: case T_DESC: case T_HANDLE: return 8; default: return 4; } }
// Which attribute of which descriptor has which type: wrong pairs are a caller's mistake.
struct Known { int from, to, kind, type; };
const Known KNOWN[] = {{0, 0, POINTWISE, T_PW}, {1, 1, POINTWISE, T_TYPE}, {3, 8, POINTWISE, T_F64}, {100, 100, CONV, T_TYPE}, {101, 101, CONV, T_CONV}, {102, 106, CONV, T_I64},
    {200, 200, HEUR, T_HEUR}, {201, 202, HEUR, T_DESC}, {203, 203, HEUR, T_I32}, {204, 204, HEUR, T_DESC}, {300, 302, CFG, T_DESC}, {303, 303, CFG, T_I64}, {400, 400, PLAN, T_HANDLE}, {401, 401, PLAN, T_DESC}, {402, 402, PLAN, T_I64}, {407, 407, PLAN, T_DESC},
    {700, 701, FWD, T_F32}, {702, 705, FWD, T_DESC}, {706, 707, DGRAD, T_F32}, {708, 711, DGRAD, T_DESC}, {712, 713, WGRAD, T_F32}, {714, 717, WGRAD, T_DESC}, {750, 753, OP_PW, T_DESC}, {754, 755, OP_PW, T_F32},
    {800, 800, GRAPH, T_HANDLE}, {801, 801, GRAPH, T_DESC}, {802, 802, GRAPH, T_I64}, {900, 900, TENSOR, T_I64}, {901, 901, TENSOR, T_TYPE}, {902, 903, TENSOR, T_I64}, {906, 906, TENSOR, T_I64}, {907, 908, TENSOR, T_BOOL},
    {1000, 1000, PACK, T_I64}, {1001, 1001, PACK, T_PTR}, {1003, 1003, PACK, T_PTR}, {1300, 1300, ENGINE, T_DESC}, {1301, 1301, ENGINE, T_I64}, {1302, 1302, ENGINE, T_DESC}, {1303, 1303, ENGINE, T_NOTE}, {1305, 1305, ENGINE, T_BEHAVIOUR}, {1306, 1306, ENGINE, T_I32}, {1307, 1307, ENGINE, T_DESC},
    {1600, 1600, REDUCTION, T_RED}, {1601, 1601, REDUCTION, T_TYPE}, {1602, 1602, REDUCTION, T_BOOL}, {1610, 1612, OP_RED, T_DESC}, {2700, 2700, DEVICE, T_I32}, {2701, 2701, DEVICE, T_HANDLE}, {2702, 2702, DEVICE, T_CHAR}};
int expected(int kind, int name) {
    for (auto& k : KNOWN) if (k.kind == kind && name >= k.from && name <= k.to) return k.type;
    return -1;
}

thread_local std::string last;
int fail(int status, const std::string& why) { last = why; return status; }

struct Plan;
struct Data;
using Ref = std::shared_ptr<Data>;
struct Data {
    int kind;
    bool done = false;
    struct Value { int type; std::vector<char> bytes; };
    std::map<int, Value> has{};
    std::map<int, std::vector<Ref>> refs{};
    std::shared_ptr<const Plan> plan{};
    bool set(int name) const { return has.count(name) || refs.count(name); }
    template <class T> std::vector<T> all(int name) const {
        auto it = has.find(name);
        if (it == has.end()) return {};
        std::vector<T> v(it->second.bytes.size() / sizeof(T));
        memcpy(v.data(), it->second.bytes.data(), v.size() * sizeof(T));
        return v;
    }
    template <class T> T one(int name, T otherwise) const { auto v = all<T>(name); return v.empty() ? otherwise : v[0]; }
    float real(int name, float otherwise) const { auto it = has.find(name); return it != has.end() && it->second.type == T_F64 ? float(one<double>(name, otherwise)) : one<float>(name, otherwise); }
    Ref child(int name) const { auto it = refs.find(name); return it == refs.end() || it->second.empty() ? nullptr : it->second[0]; }
    std::vector<Ref> children(int name) const { auto it = refs.find(name); return it == refs.end() ? std::vector<Ref>() : it->second; }
};
struct Descriptor { Ref d; };  // what the caller holds; the data lives on in whatever was made of it
std::mutex lock;
std::set<Descriptor*> alive;
Descriptor* valid(void* p) { std::lock_guard hold(lock); auto it = alive.find((Descriptor*)p); return it == alive.end() ? nullptr : *it; }

using Four = std::array<int64_t, 4>;
struct Tensor {
    Four n{1, 1, 1, 1}, s{};
    Type type;
    int64_t uid, alignment;
    bool is_virtual;
    explicit Tensor(const Data& d) : uid(d.one<int64_t>(906, -1)), alignment(d.one<int64_t>(900, 1)), is_virtual(d.one<char>(907, 0)) {
        int t = d.one<int>(901, 0);
        type = t == 0 ? Type::f32 : t == 2 ? Type::f16 : Type::bf16;
        auto dims = d.all<int64_t>(902), strides = d.all<int64_t>(903);
        for (size_t i = 0; i < 4; i++) n[i] = dims[i], s[i] = strides[i];
    }
    bool operator==(const Tensor&) const = default;
    int64_t count() const { return n[0] * n[1] * n[2] * n[3]; }
    int64_t span() const { return 1 + (n[0] - 1) * s[0] + (n[1] - 1) * s[1] + (n[2] - 1) * s[2] + (n[3] - 1) * s[3]; }
    size_t bytes() const { return span() * size_of(type); }
    bool dense() const { return span() == count(); }
    // f(memory's position, position in a packed array, length) for each run of channels; all at once where nothing lies between
    template <class F> void rows(F f) const {
        if (dense()) return f(0, 0, count());
        int64_t to = 0;
        for (int64_t a = 0; a < n[0]; a++) for (int64_t h = 0; h < n[2]; h++) for (int64_t w = 0; w < n[3]; w++, to += n[1]) f(a * s[0] + h * s[2] + w * s[3], to, n[1]);
    }
};

struct Op {
    int kind, mode = 0;
    int x = -1, w = -1, y = -1;  // tensors by number, as the descriptor names them; w: weights or the second operand
    std::array<int64_t, 2> stride{}, pre{}, dilation{};
    float alpha = 1, beta = 0, alpha2 = 1, swish = 1;
    int to() const { return kind == DGRAD ? x : kind == WGRAD ? w : y; }
    std::vector<int> from() const {
        if (kind == FWD) return {x, w};
        if (kind == DGRAD) return {w, y};
        if (kind == WGRAD) return {x, y};
        return w < 0 ? std::vector{x} : std::vector{x, w};
    }
};
struct Engines { int fast, all; bool f32, ready; int64_t result; };
struct Plan {
    std::vector<Tensor> tensors;
    std::vector<Op> ops;
    std::vector<bool> read_later;  // of each operation: is its result read by another?
    int64_t workspace = 0;
    bool tf32 = false, loose = false;
};

int fast_engines() { const char* n = std::getenv("CUDNN_ON_CPU_ENGINES"); return n ? std::max(0, atoi(n)) : 3; }
bool refused(int64_t index) {
    const char* list = std::getenv("CUDNN_ON_CPU_REFUSE");
    return list && ("," + std::string(list) + ",").find("," + std::to_string(index) + ",") != std::string::npos;
}

// One run of a plan: tensors as packed f32 arrays, channels last.
struct Run {
    std::shared_ptr<const Plan> plan;
    std::vector<char*> memory;
    char* workspace;
    long block = 256;
    std::vector<std::vector<float>> values{};

    std::vector<float>& get(int i) {
        auto& v = values[i];
        const Tensor& t = plan->tensors[i];
        if (v.empty()) {
            v.resize(t.count());
            t.rows([&](int64_t from, int64_t to, int64_t n) { widen(memory[i] + from * size_of(t.type), t.type, n, v.data() + to); });
        }
        return v;
    }
    void put(int i, std::vector<float> v, bool read_later) {
        const Tensor& t = plan->tensors[i];
        if (!t.is_virtual) t.rows([&](int64_t to, int64_t from, int64_t n) { narrow(v.data() + from, t.type, n, memory[i] + to * size_of(t.type)); });
        if (read_later && t.type != Type::f32) {
            std::vector<uint16_t> rounded(v.size());
            narrow(v.data(), t.type, v.size(), rounded.data()), widen(rounded.data(), t.type, v.size(), v.data());
        }
        values[i] = read_later ? std::move(v) : std::vector<float>();
    }

    // Convolutions are matrix products of patches: a row for each output pixel, its columns the window's taps and channels.
    struct Window { int64_t h, w, c, p, q, r, s; const Op& op; };
    template <class F> static void each_tap(const Window& o, int64_t images, F f) {  // f(position in the image array or -1, position among patches)
        int64_t at = 0;
        for (int64_t n = 0; n < images; n++) for (int64_t p = 0; p < o.p; p++) for (int64_t q = 0; q < o.q; q++)
            for (int64_t r = 0; r < o.r; r++) for (int64_t s = 0; s < o.s; s++, at += o.c) {
                int64_t y = p * o.op.stride[0] + r * o.op.dilation[0] - o.op.pre[0], x = q * o.op.stride[1] + s * o.op.dilation[1] - o.op.pre[1];
                f(y < 0 || x < 0 || y >= o.h || x >= o.w ? -1 : ((n * o.h + y) * o.w + x) * o.c, at);
            }
    }
    void convolution(const Op& op, bool read_later) {
        const Tensor &X = plan->tensors[op.x], &W = plan->tensors[op.w], &Y = plan->tensors[op.y];
        Window o{X.n[2], X.n[3], X.n[1], Y.n[2], Y.n[3], W.n[2], W.n[3], op};
        long n = X.n[0], k = W.n[0], taps = o.r * o.s * o.c, pixels = o.p * o.q, size = o.h * o.w * o.c;
        auto input = [&](int i) -> std::vector<float>& {
            auto& v = get(i);
            if (plan->tf32 && plan->tensors[i].type == Type::f32) round_to_tf32(v.data(), v.size());
            return v;
        };
        std::vector<float> old;
        if (op.beta != 0) old = get(op.to());
        std::vector<float> out(plan->tensors[op.to()].count()), patches;
        bool plain = o.r == 1 && o.s == 1 && o.p == o.h && o.q == o.w && op.stride[0] == 1 && op.stride[1] == 1 && !op.pre[0] && !op.pre[1];
        long together = std::clamp<long>((4 << 20) / (pixels * taps), 1, n);  // images, so that their patches stay small
        for (long from = 0; from < n; from += together) {
            long images = std::min(together, n - from), rows = images * pixels;
            auto gather = [&] {
                const float* x = input(op.x).data() + from * size;
                if (plain) return x;
                patches.resize(rows * taps);
                each_tap(o, images, [&](int64_t a, int64_t b) { if (a < 0) std::fill_n(&patches[b], o.c, 0.0f); else memcpy(&patches[b], x + a, o.c * 4); });
                return (const float*)patches.data();
            };
            if (op.kind == FWD) {
                const float* left = gather();
                multiply(rows, k, taps, {left, taps, 1}, {input(op.w).data(), 1, taps}, out.data() + from * pixels * k, block);
            } else if (op.kind == DGRAD) {
                patches.assign(rows * taps, 0);
                multiply(rows, taps, k, {input(op.y).data() + from * pixels * k, k, 1}, {input(op.w).data(), taps, 1}, patches.data(), block);
                float* dx = out.data() + from * size;
                each_tap(o, images, [&](int64_t a, int64_t b) { if (a >= 0) for (int64_t c = 0; c < o.c; c++) dx[a + c] += patches[b + c]; });
            } else {
                const float* right = gather();
                multiply(k, taps, rows, {input(op.y).data() + from * pixels * k, 1, k}, {right, taps, 1}, out.data(), block);
            }
        }
        if (op.alpha != 1) for (auto& v : out) v *= op.alpha;
        for (size_t i = 0; i < old.size(); i++) out[i] += op.beta * old[i];
        put(op.to(), std::move(out), read_later);
    }
    // f(y's position, x's position, b's position) for each number of y, where x and b may repeat along dimensions of size one
    template <class F> static void broadcast(const Tensor& y, const Tensor& x, const Tensor& b, F f) {
        auto steps = [&](const Tensor& t) { return Four{t.n[0] == 1 ? 0 : t.n[1] * t.n[2] * t.n[3], t.n[1] == 1 ? 0 : 1, t.n[2] == 1 ? 0 : t.n[1] * t.n[3], t.n[3] == 1 ? 0 : t.n[1]}; };
        Four sx = steps(x), sb = steps(b);
        int64_t i = 0;
        for (int64_t n = 0; n < y.n[0]; n++) for (int64_t p = 0; p < y.n[2]; p++) for (int64_t q = 0; q < y.n[3]; q++)
            for (int64_t c = 0, ix = n * sx[0] + p * sx[2] + q * sx[3], ib = n * sb[0] + p * sb[2] + q * sb[3]; c < y.n[1]; c++, ix += sx[1], ib += sb[1]) f(i++, ix, ib);
    }
    void pointwise(const Op& op, bool read_later) {
        const Tensor &X = plan->tensors[op.x], &Y = plan->tensors[op.y], &B = op.w < 0 ? X : plan->tensors[op.w];
        const float *x = get(op.x).data(), *b = op.w < 0 ? x : get(op.w).data();
        std::vector<float> y(Y.count());
        auto each = [&](auto f) { broadcast(Y, X, B, [&](int64_t i, int64_t ix, int64_t ib) { y[i] = f(op.alpha * x[ix], op.alpha2 * b[ib]); }); };
        switch (op.mode) {
            case 0: each([](float v, float w) { return v + w; }); break;
            case 1: each([](float v, float w) { return v * w; }); break;
            case 2: each([](float v, float w) { return std::min(v, w); }); break;
            case 3: each([](float v, float w) { return std::max(v, w); }); break;
            case 9: each([](float v, float w) { return v - w; }); break;
            case 21: each([](float v, float) { return v; }); break;
            case 100: each([](float v, float) { return v < 0 ? 0 : v; }); break;
            case 102: each([](float v, float) { return 1 / (1 + std::exp(-v)); }); break;
            case 106: each([&](float v, float) { return v / (1 + std::exp(-op.swish * v)); }); break;
        }
        put(op.y, std::move(y), read_later);
    }
    void reduce(const Op& op, bool read_later) {
        const Tensor &X = plan->tensors[op.x], &Y = plan->tensors[op.y];
        const float* x = get(op.x).data();
        std::vector<float> sum(Y.count());
        broadcast(X, X, Y, [&](int64_t, int64_t ix, int64_t iy) { sum[iy] += x[ix]; });
        put(op.y, std::move(sum), read_later);
    }
    void all() {
        values.assign(plan->tensors.size(), {});
        static std::atomic<int> runs = 0;
        block = plan->loose && runs++ % 2 ? 48 : 256;
        if (plan->workspace) memset(workspace, 0xff, plan->workspace);
        for (size_t i = 0; i < plan->ops.size(); i++) {
            const Op& op = plan->ops[i];
            bool later = plan->read_later[i];
            if (op.kind == OP_PW) pointwise(op, later);
            else if (op.kind == OP_RED) reduce(op, later);
            else convolution(op, later);
        }
        values.clear();
    }
};

bool broadcasts(const Tensor& from, const Tensor& to) { for (int i = 0; i < 4; i++) if (from.n[i] != 1 && from.n[i] != to.n[i]) return false; return true; }

// The operation of a finalised descriptor; its tensors get numbers in `plan`, one for each uid. 0, or a status.
int add_operation(const Data& d, Plan& plan) {
    int status = 0;
    auto tensor = [&](int name) {
        Ref t = d.child(name);
        if (!t) return -1;
        Tensor made(*t);
        for (size_t i = 0; i < plan.tensors.size(); i++)
            if (plan.tensors[i].uid == made.uid) { if (!(plan.tensors[i] == made)) status = fail(DUPLICATED, "two tensors with one uid"); return int(i); }
        plan.tensors.push_back(made);
        return int(plan.tensors.size() - 1);
    };
    Op op{d.kind};
    if (d.kind == OP_PW) {
        Ref pw = d.child(750);
        op.mode = pw->one<int>(0, -1), op.swish = pw->real(8, 1);
        op.x = tensor(751), op.w = tensor(752), op.y = tensor(753), op.alpha = d.real(754, 1), op.alpha2 = d.real(755, 1);
    } else if (d.kind == OP_RED) op.x = tensor(1610), op.y = tensor(1611);
    else {
        int at = d.kind == FWD ? 700 : d.kind == DGRAD ? 706 : 712;
        op.alpha = d.real(at, 1), op.beta = d.real(at + 1, 0);
        Ref conv = d.child(at + 2);
        auto two = [&](int name) { auto v = conv->all<int64_t>(name); return std::array<int64_t, 2>{v[0], v[1]}; };
        op.dilation = two(102), op.stride = two(103), op.pre = two(105);
        op.w = tensor(at + 3);
        if (d.kind == WGRAD) op.x = tensor(716), op.y = tensor(717); else op.x = tensor(at + 4), op.y = tensor(at + 5);
    }
    plan.ops.push_back(op);
    return status;
}
int check_operation(const Data& d) {
    int at = d.kind == FWD ? 700 : d.kind == DGRAD ? 706 : 712;
    std::vector<std::pair<int, int>> wanted = d.kind == OP_PW ? std::vector<std::pair<int, int>>{{750, POINTWISE}, {751, TENSOR}, {753, TENSOR}}
        : d.kind == OP_RED ? std::vector<std::pair<int, int>>{{1610, TENSOR}, {1611, TENSOR}, {1612, REDUCTION}}
        : std::vector<std::pair<int, int>>{{at + 2, CONV}, {at + 3, TENSOR}, {at + 4, TENSOR}, {at + 5, TENSOR}};
    if (d.refs.count(752)) wanted.push_back({752, TENSOR});
    for (auto [name, kind] : wanted) {
        Ref c = d.child(name);
        if (!c) return fail(BAD_PARAM, "an operation without attribute " + std::to_string(name));
        if (c->kind != kind) return fail(DESCRIPTOR_TYPE, "attribute " + std::to_string(name) + " is another kind of descriptor");
    }
    Plan plan;
    if (int e = add_operation(d, plan)) return e;
    const Op& op = plan.ops[0];
    const Tensor &X = plan.tensors[op.x], &Y = plan.tensors[op.y];
    if (d.kind == OP_RED) return broadcasts(Y, X) ? 0 : fail(SHAPE_MISMATCH, "a sum's result does not fit");
    if (d.kind == OP_PW) {
        bool two = op.mode <= 9;
        if (two != (op.w >= 0)) return fail(BAD_PARAM, "pointwise: one operand too many or too few");
        return broadcasts(X, Y) && (!two || broadcasts(plan.tensors[op.w], Y)) ? 0 : fail(SHAPE_MISMATCH, "pointwise: shapes do not fit");
    }
    const Tensor& W = plan.tensors[op.w];
    auto post = d.child(at + 2)->all<int64_t>(104);
    bool fits = X.n[0] == Y.n[0] && Y.n[1] == W.n[0] && X.n[1] == W.n[1];
    for (int i = 0; i < 2; i++) {
        int64_t room = X.n[2 + i] + op.pre[i] + post[i] - op.dilation[i] * (W.n[2 + i] - 1) - 1;
        fits &= room >= 0 && Y.n[2 + i] == room / op.stride[i] + 1;
    }
    return fits ? 0 : fail(SHAPE_MISMATCH, "convolution: shapes, strides and paddings do not fit");
}
int plan_of(const Data& graph, Plan& plan) {
    int convolutions = 0;
    std::set<int> made, used;
    for (auto& d : graph.children(801)) {
        if (int e = add_operation(*d, plan)) return e;
        const Op& op = plan.ops.back();
        convolutions += op.kind == FWD || op.kind == DGRAD || op.kind == WGRAD;
        for (int i : op.from()) {
            if (plan.tensors[i].is_virtual && !made.count(i)) return fail(BAD_PARAM, "graph: a virtual tensor is read before it is made");
            used.insert(i);
        }
        if (used.count(op.to()) || !made.insert(op.to()).second) return fail(BAD_PARAM, "graph: a tensor is written twice or after it is read");
        if (plan.tensors[op.to()].is_virtual && op.beta != 0) return fail(BAD_PARAM, "graph: beta with a virtual result");
    }
    if (convolutions > 1 || (convolutions && plan.ops[0].kind > DGRAD)) return fail(PATTERN, "graph: one convolution, and that first");
    if (plan.ops[0].kind == WGRAD && plan.ops.size() > 1) return fail(PATTERN, "graph: nothing is fused with a weight gradient");
    for (size_t i = 0; i < plan.ops.size(); i++) {
        bool later = false;
        for (size_t j = i + 1; j < plan.ops.size(); j++) for (int from : plan.ops[j].from()) later |= from == plan.ops[i].to();
        if (plan.tensors[plan.ops[i].to()].is_virtual && !later) return fail(BAD_PARAM, "graph: a virtual tensor that nothing reads");
        plan.read_later.push_back(later);
    }
    return 0;
}
// Engines 0 to fast - 1 belong to mode A, the others to mode FALLBACK.
Engines engines_of(const Plan& plan) {
    bool f32 = true, ready = plan.ops[0].kind <= DGRAD;
    for (int i : plan.ops[0].from()) f32 &= plan.tensors[i].type == Type::f32;
    int adds = 0;
    for (size_t i = 1; i < plan.ops.size(); i++) {
        const Op& op = plan.ops[i];
        bool add = op.kind == OP_PW && op.mode == 0 && op.w >= 0;
        bool bias = add && plan.tensors[op.w].count() == plan.tensors[op.w].n[1];
        bool is_last = i + 1 == plan.ops.size();
        ready &= plan.ops[0].kind == FWD && ((add && (bias ? is_last : i == 1)) || (op.kind == OP_PW && (op.mode == 100 || op.mode == 21) && is_last));
        adds += add;
    }
    if (plan.ops[0].kind == WGRAD && !f32 && plan.tensors[plan.ops[0].w].type == Type::f32) ready = false;
    int fast = fast_engines();
    return {fast, fast + (f32 ? 3 : 1), f32, ready && adds <= 2, plan.tensors[plan.ops.back().to()].count() * 4};
}
bool is_loose(const Engines& e, int64_t i) { return i < e.fast ? e.fast > 1 && i == e.fast - 1 : e.f32 && i == e.fast + 1; }
int64_t workspace_of(const Plan& plan, const Engines& e, int64_t i) {
    int64_t n = e.f32 && i == e.fast ? 4 * e.result : 0;
    for (auto& t : plan.tensors) if (!t.is_virtual && !t.dense()) n += t.count() * size_of(t.type);  // the real one packs it first
    return (n + 255) / 256 * 256;
}

int finalize(Data& d) {
    auto needs = [&](std::initializer_list<int> names) { for (int n : names) if (!d.set(n)) return false; return true; };
    auto with_graph = [&](const Ref& graph, auto f) {
        Plan plan;
        if (!graph || graph->kind != GRAPH) return fail(DESCRIPTOR_TYPE, "an operation graph is missing");
        if (int e = plan_of(*graph, plan)) return e;
        return int(f(plan, engines_of(plan)));
    };
    switch (d.kind) {
        case TENSOR: {
            if (!needs({900, 901, 902, 903, 906})) return fail(BAD_PARAM, "tensor: alignment, type, dimensions, strides or uid missing");
            int type = d.one<int>(901, -1);
            if (type != 0 && type != 2 && type != 9) return fail(NOT_SUPPORTED, "tensor: f32, f16 or bf16");
            if (d.all<int64_t>(902).size() != 4 || d.all<int64_t>(903).size() != 4) return fail(NOT_SUPPORTED, "tensor: four dimensions");
            if (d.one<char>(908, 0)) return fail(NOT_SUPPORTED, "tensor: by value");
            Tensor t(d);
            for (auto n : t.n) if (n < 1) return fail(BAD_PARAM, "tensor: an empty dimension");
            int64_t align = t.alignment;
            if (align < int64_t(size_of(t.type)) || (align & (align - 1))) return fail(BAD_PARAM, "tensor: alignment");
            bool last_channels = (t.n[1] == 1 || t.s[1] == 1) && (t.n[3] == 1 || t.s[3] >= t.n[1]) && (t.n[2] == 1 || t.s[2] >= t.n[3] * t.n[1]) && (t.n[0] == 1 || t.s[0] >= t.n[2] * t.n[3] * t.n[1]);
            return last_channels ? 0 : fail(NOT_SUPPORTED, "tensor: channels last");
        }
        case CONV: {
            if (!needs({100, 101, 102, 103, 104, 105, 106})) return fail(BAD_PARAM, "convolution: attribute missing");
            if (d.one<int64_t>(106, 0) != 2 || d.one<int>(101, -1) != 1 || d.one<int>(100, -1) != 0) return fail(NOT_SUPPORTED, "convolution: two dimensions, cross-correlation, f32 sums");
            for (int name : {102, 103, 104, 105}) {
                auto v = d.all<int64_t>(name);
                if (v.size() != 2) return fail(BAD_PARAM, "convolution: two numbers each");
                for (auto n : v) if (n < (name < 104 ? 1 : 0)) return fail(BAD_PARAM, "convolution: a stride, dilation or padding");
            }
            return 0;
        }
        case POINTWISE: {
            static const std::set<int> modes{0, 1, 2, 3, 9, 21, 100, 102, 106};
            if (!needs({0, 1})) return fail(BAD_PARAM, "pointwise: mode or precision missing");
            return modes.count(d.one<int>(0, -1)) ? 0 : fail(NOT_SUPPORTED, "pointwise: this mode");
        }
        case REDUCTION: return !needs({1600, 1601}) ? fail(BAD_PARAM, "reduction: operator or type missing") : d.one<int>(1600, -1) ? fail(NOT_SUPPORTED, "reduction: sums only") : 0;
        case FWD: case DGRAD: case WGRAD: case OP_PW: case OP_RED: return check_operation(d);
        case GRAPH: {
            Plan plan;
            if (d.children(801).empty()) return fail(BAD_PARAM, "graph: no operations");
            for (auto& op : d.children(801)) if (op->kind != FWD && op->kind != DGRAD && op->kind != WGRAD && op->kind != OP_PW && op->kind != OP_RED) return fail(DESCRIPTOR_TYPE, "graph: not an operation");
            return plan_of(d, plan);
        }
        case HEUR: return needs({200, 201}) ? 0 : fail(BAD_PARAM, "heuristics: mode or graph missing");
        case ENGINE:
            if (!needs({1300, 1301})) return fail(BAD_PARAM, "engine: graph or index missing");
            return with_graph(d.child(1300), [&](const Plan&, const Engines& e) { int64_t i = d.one<int64_t>(1301, -1); return i >= 0 && i < e.all ? 0 : fail(NOT_SUPPORTED, "engine: no such index"); });
        case CFG: return d.child(300) && d.child(300)->kind == ENGINE ? 0 : fail(BAD_PARAM, "engine configuration: engine missing");
        case PACK:
            if (!needs({1000, 1001})) return fail(BAD_PARAM, "variant pack: ids or pointers missing");
            return d.all<int64_t>(1000).size() == d.all<void*>(1001).size() ? 0 : fail(BAD_PARAM, "variant pack: ids and pointers differ in number");
        case PLAN: {
            if (int e = cuda_on_cpu_call("cudnnBackendFinalize", EXECUTION_FAILED)) return e;
            if (!d.child(401) || d.child(401)->kind != CFG) return fail(BAD_PARAM, "plan: engine configuration missing");
            Ref engine = d.child(401)->child(300), graph = engine->child(1300);
            if (!needs({400}) && !needs({407}) && !graph->set(800)) return fail(BAD_PARAM, "plan: neither handle nor device");
            int64_t index = engine->one<int64_t>(1301, 0);
            if (refused(index)) return fail(NOT_SUPPORTED, "plan: refused by CUDNN_ON_CPU_REFUSE");
            return with_graph(graph, [&](Plan& plan, const Engines& e) {
                plan.workspace = workspace_of(plan, e, index), plan.tf32 = index < e.fast, plan.loose = is_loose(e, index);
                d.plan = std::make_shared<Plan>(plan);
                return 0;
            });
        }
        default: return 0;
    }
}
struct Handle { void* stream = nullptr; };
}  // namespace

extern "C" {
size_t cudnnGetVersion() { return 92800; }
size_t cudnnGetCudartVersion() {  // built for the driver's major version
    const char* driver = std::getenv("CUDA_ON_CPU_DRIVER");
    return driver ? size_t(atoi(driver)) / 1000 * 1000 : 13000;
}
const char* cudnnGetErrorString(int s) { return s ? "CUDNN_STATUS refused by the processor's cuDNN" : "CUDNN_STATUS_SUCCESS"; }
void cudnnGetLastErrorString(char* to, size_t n) { if (n) snprintf(to, n, "%s", last.c_str()); }
int cudnnCreate(void** h) {
    if (int e = cuda_on_cpu_call("cudnnCreate", EXECUTION_FAILED)) return e;
    if (cuda_on_cpu_unsafe()) return fail(NOT_INITIALIZED, "a handle made in a capture");
    *h = new Handle;
    return 0;
}
int cudnnDestroy(void* h) { delete (Handle*)h; return 0; }
int cudnnSetStream(void* h, void* s) { ((Handle*)h)->stream = s; return 0; }
int cudnnGetStream(void* h, void** s) { *s = ((Handle*)h)->stream; return 0; }

int cudnnBackendCreateDescriptor(int kind, void** out) {
    static const std::set<int> kinds{POINTWISE, CONV, ENGINE, CFG, HEUR, PLAN, FWD, WGRAD, DGRAD, OP_PW, GRAPH, PACK, TENSOR, REDUCTION, OP_RED, DEVICE};
    if (!kinds.count(kind)) return fail(NOT_SUPPORTED, "this kind of descriptor");
    auto* made = new Descriptor{std::make_shared<Data>(Data{kind})};
    std::lock_guard hold(lock);
    alive.insert(made), *out = made;
    return 0;
}
int cudnnBackendDestroyDescriptor(void* p) {
    std::lock_guard hold(lock);
    if (!alive.erase((Descriptor*)p)) return fail(BAD_PARAM, "a descriptor destroyed twice");
    delete (Descriptor*)p;
    return 0;
}
int cudnnBackendSetAttribute(void* p, int name, int type, int64_t count, const void* values) {
    Descriptor* held = valid(p);
    if (!held) return fail(BAD_PARAM, "a descriptor that is gone");
    Data& d = *held->d;
    if (d.done) return fail(BAD_PARAM, "an attribute set after finalising");
    if (count < 0 || (count && !values)) return fail(BAD_PARAM, "no values");
    int want = expected(d.kind, name);
    if (want < 0) return fail(BAD_PARAM, "no attribute " + std::to_string(name) + " of descriptors of kind " + std::to_string(d.kind));
    if (want != type && !((want == T_F32 || want == T_F64) && (type == T_F32 || type == T_F64))) return fail(ATTRIBUTE_TYPE, "attribute " + std::to_string(name) + " has another type");
    if (type != T_DESC) {
        d.has[name] = {type, std::vector<char>((const char*)values, (const char*)values + count * bytes_of(type))};
        return 0;
    }
    std::vector<Ref> refs;
    for (int64_t i = 0; i < count; i++) {
        Descriptor* c = valid(((void* const*)values)[i]);
        if (!c) return fail(BAD_PARAM, "a descriptor that is gone, as a value");
        if (!c->d->done) return fail(NOT_FINALIZED, "a descriptor that is not finalised, as a value");
        refs.push_back(c->d);
    }
    d.refs[name] = refs;
    return 0;
}
int cudnnBackendFinalize(void* p) {
    Descriptor* held = valid(p);
    if (!held) return fail(BAD_PARAM, "a descriptor that is gone");
    if (int e = finalize(*held->d)) return e;
    held->d->done = true;
    return 0;
}
int cudnnBackendGetAttribute(void* p, int name, int type, int64_t room, int64_t* count, void* out) {
    Descriptor* held = valid(p);
    if (!held) return fail(BAD_PARAM, "a descriptor that is gone");
    Data& d = *held->d;
    if (!d.done) return fail(NOT_FINALIZED, "an attribute read before finalising");
    if (expected(d.kind, name) >= 0 && expected(d.kind, name) != type && type != T_F64) return fail(ATTRIBUTE_TYPE, "attribute " + std::to_string(name) + " has another type");
    int64_t ignored = 0, &n = count ? *count : ignored;
    auto give = [&](const std::vector<Ref>& all) {  // the caller's descriptors become the ones asked for
        n = int64_t(all.size());
        if (!out) return 0;
        n = std::min(n, room);
        for (int64_t i = 0; i < n; i++) {
            Descriptor* to = valid(((void**)out)[i]);
            if (!to || to->d->kind != all[i]->kind) return fail(BAD_PARAM, "no descriptor of that kind to fill");
            to->d = all[i];
        }
        return 0;
    };
    auto give_notes = [&](const std::vector<int>& all) {
        n = int64_t(all.size());
        for (int64_t i = 0; out && i < std::min(n, room); i++) ((int*)out)[i] = all[i];
        return 0;
    };
    auto give_number = [&](int64_t v) { n = 1; if (out && room > 0) *(int64_t*)out = v; return 0; };
    Plan plan;
    Ref graph = d.kind == GRAPH ? held->d : d.kind == HEUR ? d.child(201) : d.kind == ENGINE ? d.child(1300) : d.kind == CFG ? d.child(300)->child(1300) : nullptr;
    Engines engines{};
    if (graph) {
        if (int e = plan_of(*graph, plan)) return e;
        engines = engines_of(plan);
    }
    int64_t index = d.kind == ENGINE ? d.one<int64_t>(1301, 0) : d.kind == CFG ? d.child(300)->one<int64_t>(1301, 0) : 0;
    if (d.kind == HEUR && name == 202) {
        bool slow = d.one<int>(200, 0) == FALLBACK;
        std::vector<Ref> configs;
        for (int64_t i = slow ? engines.fast : 0; i < (slow ? engines.all : engines.fast); i++) {
            auto engine = std::make_shared<Data>(Data{ENGINE, true}), config = std::make_shared<Data>(Data{CFG, true});
            engine->refs[1300] = {graph};
            engine->has[1301] = {T_I64, std::vector<char>((char*)&i, (char*)&i + 8)};
            config->refs[300] = {engine};
            configs.push_back(config);
        }
        return give(configs);
    }
    if (d.kind == ENGINE && name == 1303) {
        std::vector<int> notes;
        if (index < engines.fast) notes.push_back(TENSOR_CORE);
        if (is_loose(engines, index)) notes.push_back(NONDETERMINISTIC);
        return give_notes(notes);
    }
    if (d.kind == ENGINE && name == 1305) return give_notes(engines.ready ? std::vector<int>{} : std::vector<int>{0});
    if ((d.kind == ENGINE && name == 1302) || (d.kind == CFG && name == 302)) return give({});
    if (d.kind == GRAPH && name == 802) return give_number(engines.all);
    if (d.kind == CFG && name == 303) return give_number(workspace_of(plan, engines, index));
    if (d.kind == PLAN && name == 402) return give_number(d.plan->workspace);
    if (d.refs.count(name)) return give(d.refs[name]);
    auto it = d.has.find(name);
    if (it == d.has.end()) return fail(NOT_SUPPORTED, "no attribute " + std::to_string(name) + " here");
    n = int64_t(it->second.bytes.size() / bytes_of(type));
    if (out) memcpy(out, it->second.bytes.data(), size_t(std::min(n, room)) * bytes_of(type));
    return 0;
}
int cudnnBackendExecute(void* h, void* plan_, void* pack_) {
    if (int e = cuda_on_cpu_call("cudnnBackendExecute", EXECUTION_FAILED)) return e;
    Descriptor *plan = valid(plan_), *pack = valid(pack_);
    if (!h || !plan || !pack) return fail(BAD_PARAM, "a descriptor or handle that is gone");
    if (plan->d->kind != PLAN || pack->d->kind != PACK) return fail(DESCRIPTOR_TYPE, "not a plan and a variant pack");
    if (!plan->d->done || !pack->d->done) return fail(NOT_FINALIZED, "plan or variant pack not finalised");
    auto run = std::make_unique<Run>(Run{plan->d->plan, {}, pack->d->one<char*>(1003, nullptr)});
    auto uids = pack->d->all<int64_t>(1000);
    auto pointers = pack->d->all<char*>(1001);
    for (auto& t : run->plan->tensors) {
        char* at = nullptr;
        for (size_t i = 0; i < uids.size(); i++) if (uids[i] == t.uid) at = pointers[i];
        run->memory.push_back(at);
        if (t.is_virtual) continue;
        std::string name = "tensor " + std::to_string(t.uid);
        if (!at) return fail(BAD_PARAM, name + " has no pointer");
        if (uintptr_t(at) % t.alignment) return fail(MISALIGNED, name + " is not aligned as it says");
        if (!cuda_on_cpu_inside(at, t.bytes())) return fail(OUT_OF_BOUND, name + " lies outside of the device's memory");
    }
    if (run->plan->workspace && !cuda_on_cpu_inside(run->workspace, run->plan->workspace)) return fail(BAD_PARAM, "the workspace is missing or too small");
    int e = cuda_on_cpu_enqueue(((Handle*)h)->stream, [](void* r) { ((Run*)r)->all(); }, run.release(), [](void* r) { delete (Run*)r; });
    return e ? fail(EXECUTION_FAILED, "the driver refused: " + std::to_string(e)) : 0;
}
}
