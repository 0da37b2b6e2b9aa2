// libcuda.so.1 without a GPU: device memory is ordinary memory, a kernel is its twin compiled for the processor, a captured stream a list
// of calls that a graph runs again. A program that loads the driver at run time (cudarc) tests its own calls, whole, on any machine.
//   CUDA_ON_CPU_KERNELS=kernels.so          the twins (../twins/twins.cpp); default: kernels.so beside this library
//   CUDA_ON_CPU_FAIL=cuLaunchKernel:17:719  the 17th such call fails with 719 (launch failure); an error that breaks a context stays
//   CUDA_ON_CPU_MEMORY=bytes                how much each device has (default 1 GiB)
//   CUDA_ON_CPU_DEVICES=2                   how many devices there are (default 1, up to 8)
//   CUDA_ON_CPU_DRIVER=12080                the version the driver says it is (default 13000)
//   CUDA_ON_CPU_CALLS=file                  at its end the program writes there how often it made each call, a name and a number in a line
// Memory is handed out full of NaN, with a margin on both sides that is checked when something waits and when it is freed. Copies outside of an
// allocation, double frees, handles that are gone and calls that a capture forbids fail as on a device.
// Work waits in its stream until something waits for it: who reads a result, or reuses pinned memory, too early sees that here.
#include "driver.hpp"
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>
#include "../twins/twin.hpp"

namespace {
std::recursive_mutex lock;
int broken = 0;  // the sticky error of a broken context
bool begun = false;
std::map<std::string, int, std::less<>> calls;
struct Tell {  // goes before the counts do
    ~Tell() {
        const char* path = std::getenv("CUDA_ON_CPU_CALLS");
        FILE* file = path ? fopen(path, "w") : nullptr;
        if (!file) return;
        for (auto& [name, n] : calls) fprintf(file, "%s %d\n", name.c_str(), n);
        fclose(file);
    }
} tell;

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, NOT_SUPPORTED = 801 };
enum { CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_MERGE = 902, CAPTURE_UNMATCHED = 903, CAPTURE_UNJOINED = 904, CAPTURE_ISOLATION = 905, CAPTURE_IMPLICIT = 906, CAPTURED_EVENT = 907, CAPTURE_WRONG_THREAD = 908 };
enum { GLOBAL = 0, THREAD_LOCAL = 1 };  // modes of capture; 2 is relaxed

size_t number(const char* name, size_t otherwise) { const char* v = std::getenv(name); return v ? strtoull(v, nullptr, 10) : otherwise; }
int devices() { return int(std::min<size_t>(number("CUDA_ON_CPU_DEVICES", 1), 8)); }
const size_t room = number("CUDA_ON_CPU_MEMORY", size_t(1) << 30);
const unsigned MOST_SHARED = 232448, SHARED = 49152;

// Counts a call and gives the error that is planned for it.
int planned(const char* name) {
    auto it = calls.find(name);
    int n = it == calls.end() ? calls[name] = 1 : ++it->second;
    if (const char* plan = std::getenv("CUDA_ON_CPU_FAIL")) {
        char which[64];
        int at, code;
        if (sscanf(plan, "%63[^:]:%d:%d", which, &at, &code) == 3 && !strcmp(which, name) && n == at) {
            // of the driver's errors only those of a device that is lost break the context; libraries have numbers of their own
            if (!strncmp(name, "cu", 2) && name[2] >= 'A' && name[2] <= 'Z' && (code == 214 || code == 220 || code == 700 || code == 702 || (code >= 714 && code <= 719) || code == 999)) broken = code;
            return code;
        }
    }
    return 0;
}
int entered(const char* name) {
    int e = planned(name);
    return e ? e : broken;
}

using Step = std::function<void()>;
struct Stream;
struct Graph {
    std::vector<Step> steps{};
    int mode;
    std::thread::id thread;
    Stream* origin;
    bool open = true, spoilt = false;
    std::set<Stream*> unjoined{};  // streams that an event drew into the capture, with work that the origin does not wait for yet
};
struct Context { int device; size_t in_use = 0; std::shared_ptr<Stream> null; };
struct Stream {
    Context* context;
    bool blocking;  // waits for the null stream, and the null stream for it
    std::shared_ptr<Graph> capturing{};
    std::deque<Step> waiting{};
    unsigned long taken = 0, done = 0;
    void run_to(unsigned long n) {
        while (done < n) { Step step = std::move(waiting.front()); waiting.pop_front(); done++; step(); }
    }
    void run() { run_to(taken); }
};
using Clock = std::chrono::steady_clock;
struct Mark { std::shared_ptr<Stream> stream; unsigned long at; Clock::time_point time; };
struct Event { Context* context; bool timed; std::shared_ptr<Mark> mark{}; std::shared_ptr<Graph> graph{}; Stream* from = nullptr; };
struct Module { void* library; Context* context; };
struct Function { Twin* twin; Context* context; unsigned most_shared = SHARED; };
struct Memory { size_t size; Context* context; };

template <class T> struct Handles {
    std::map<void*, std::shared_ptr<T>> all;
    void* add(std::shared_ptr<T> t) { void* p = t.get(); all[p] = std::move(t); return p; }
    std::shared_ptr<T> find(void* p) const { auto it = all.find(p); return it == all.end() ? nullptr : it->second; }
    bool drop(void* p) { return all.erase(p); }
};
Context contexts[8];
thread_local Context* current = nullptr;
Handles<Stream> streams;
Handles<Event> events;
Handles<Module> modules;
Handles<Function> functions;
Handles<Graph> graphs;
using Recording = const std::vector<Step>;
Handles<std::vector<Step>> executables;
std::map<uintptr_t, Memory> live;
std::map<uintptr_t, Memory> pinned;

std::shared_ptr<Stream> of(void* s) {
    if (s && s != (void*)1) return streams.find(s);
    if (!current->null) current->null = std::make_shared<Stream>(Stream{current, true});
    return current->null;
}
template <class F> void each_stream(Context* c, F f) {
    if (c->null) f(c->null);
    for (auto& [_, s] : std::map(streams.all)) if (s->context == c) f(s);
}
bool is_null(const Stream& s) { return s.context->null.get() == &s; }

bool within(const std::map<uintptr_t, Memory>& where, uintptr_t p, size_t n) {
    auto it = where.upper_bound(p);
    return it != where.begin() && p + n <= std::prev(it)->first + std::prev(it)->second.size;
}
bool inside(uintptr_t p, size_t n) { return within(live, p, n); }
const size_t MARGIN = 256;
void check_margins(uintptr_t p, size_t n) {
    static const std::string clean(MARGIN, '\xa5');
    bool before = memcmp((char*)p - MARGIN, clean.data(), MARGIN), after = memcmp((char*)p + n, clean.data(), MARGIN);
    if (!before && !after) return;
    fprintf(stderr, "cuda on cpu: something wrote %s an allocation of %zu bytes\n", before ? "before" : "behind", n);
    memset((char*)p - MARGIN, 0xa5, MARGIN), memset((char*)p + n, 0xa5, MARGIN);
    broken = ILLEGAL_ADDRESS;
}
int take(uintptr_t* out, size_t n) {
    if (!n || !out) return INVALID_VALUE;
    if (current->in_use + n > room) return OUT_OF_MEMORY;
    char* p = (char*)std::aligned_alloc(256, (n + 255) / 256 * 256 + 2 * MARGIN);
    if (!p) return OUT_OF_MEMORY;
    memset(p, 0xa5, MARGIN), memset(p + MARGIN, 0xff, n), memset(p + MARGIN + n, 0xa5, MARGIN);
    *out = (uintptr_t)p + MARGIN;
    live[*out] = {n, current}, current->in_use += n;
    return 0;
}
int release(uintptr_t p) {
    auto it = live.find(p);
    if (it == live.end()) return INVALID_VALUE;
    check_margins(p, it->second.size);
    it->second.context->in_use -= it->second.size, live.erase(it), free((char*)p - MARGIN);
    return broken;
}
void all_done(Context* c) {
    each_stream(c, [](auto s) { s->run(); });
    for (auto& [p, m] : live) if (m.context == c) check_margins(p, m.size);
}

// Calls that wait or take memory are forbidden where this thread captures (unless relaxed), or any thread does in global mode.
int unsafe() {
    int e = 0;
    for (auto& [_, s] : streams.all)
        if (auto g = s->capturing; g && (g->mode == GLOBAL || (g->mode == THREAD_LOCAL && g->thread == std::this_thread::get_id()))) g->spoilt = true, e = CAPTURE_UNSUPPORTED;
    return e;
}
int spoil(Stream& s, int error) { s.capturing->spoilt = true; return error; }

int doing(const std::shared_ptr<Stream>& s, Step step) {
    if (!s || s->context != current) return INVALID_HANDLE;
    if (auto g = s->capturing) {
        if (g->spoilt) return CAPTURE_INVALIDATED;
        if (g->origin != s.get()) g->unjoined.insert(s.get());
        g->steps.push_back(std::move(step));
        return 0;
    }
    int e = 0;
    auto after = [&](const std::shared_ptr<Stream>& other) {
        if (other->done < other->taken) s->waiting.push_back([other, at = other->taken] { other->run_to(at); }), s->taken++;
    };
    if (is_null(*s)) each_stream(current, [&](auto other) {
        if (other == s || !other->blocking) return;
        if (other->capturing) e = spoil(*other, CAPTURE_IMPLICIT);
        else after(other);
    });
    else if (s->blocking && current->null) after(current->null);
    if (!e) s->waiting.push_back(std::move(step)), s->taken++;
    return e;
}
// A copy that a graph repeats finds its memory gone if that was freed meanwhile.
Step guarded(uintptr_t to, uintptr_t from, bool device_to, bool device_from, size_t n, Step step) {
    return [=] {
        if ((device_to && !inside(to, n)) || (device_from && !inside(from, n))) broken = ILLEGAL_ADDRESS;
        else step();
    };
}
int fill(uintptr_t to, size_t n, void* s, Step step) { return inside(to, n) ? doing(of(s), guarded(to, 0, true, false, n, std::move(step))) : INVALID_VALUE; }
int wait_for(const std::shared_ptr<Stream>& s) { s->run(); return broken; }
}  // namespace

// Every call holds the lock; INSIDE also asks for a context.
#define CALL(name, ...) extern "C" int name(__VA_ARGS__) { std::lock_guard hold(lock); if (int e = entered(#name)) return e; if (!begun && strcmp(#name, "cuInit") && strcmp(#name, "cuDriverGetVersion")) return NOT_INITIALIZED;
#define INSIDE(name, ...) CALL(name, __VA_ARGS__) if (!current) return INVALID_CONTEXT;
#define SAFE if (int e = unsafe()) return e;
#define END return broken; }

CALL(cuInit, unsigned) if (!begun) for (int i = 0; i < 8; i++) contexts[i].device = i; begun = true; if (!devices()) return 100; END
CALL(cuDriverGetVersion, int* v) *v = int(number("CUDA_ON_CPU_DRIVER", 13000)); END
CALL(cuDeviceGetCount, int* n) *n = devices(); END
CALL(cuDeviceGet, int* d, int i) if (i < 0 || i >= devices()) return INVALID_DEVICE; *d = i; END
CALL(cuDeviceGetName, char* s, int n, int d) snprintf(s, n, d ? "a processor in place of a GPU (%d)" : "a processor in place of a GPU", d); END
CALL(cuDeviceTotalMem_v2, size_t* n, int) *n = room; END
CALL(cuDeviceGetUuid_v2, void* u, int d) memset(u, 7 + d, 16); END
CALL(cuDeviceGetPCIBusId, char* s, int n, int d) snprintf(s, n, "0000:%02x:00.0", 0x3b + d); END
CALL(cuDeviceGetAttribute, int* v, int what, int d)
    static const std::map<int, int> known = {{1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535}, {8, int(SHARED)}, {9, 65536}, {10, 32}, {12, 65536}, {13, 1980000}, {16, 132}, {19, 1}, {31, 1},
        {36, 2619000}, {37, 5120}, {38, 52428800}, {39, 2048}, {40, 3}, {41, 1}, {75, 9}, {76, 0}, {78, 1}, {81, 233472}, {82, 65536}, {89, 1}, {97, int(MOST_SHARED)}, {106, 32}, {115, 1}};
    auto it = known.find(what);
    *v = what == 33 ? 0x3b + d : it == known.end() ? 0 : it->second;
END
CALL(cuDevicePrimaryCtxRetain, void** c, int d) if (d < 0 || d >= devices()) return INVALID_DEVICE; *c = &contexts[d]; END
CALL(cuDevicePrimaryCtxRelease_v2, int) END
CALL(cuCtxSetCurrent, void* c) if (c && ((Context*)c < contexts || (Context*)c >= contexts + 8)) return INVALID_CONTEXT; current = (Context*)c; END
CALL(cuCtxGetCurrent, void** c) *c = current; END
INSIDE(cuCtxGetDevice, int* d) *d = current->device; END
INSIDE(cuCtxSynchronize) bool any = false; each_stream(current, [&](auto s) { if (s->capturing) any = true, s->capturing->spoilt = true; }); if (any) return CAPTURE_UNSUPPORTED; all_done(current); END
CALL(cuDeviceCanAccessPeer, int* v, int a, int b) *v = a != b; END
INSIDE(cuCtxEnablePeerAccess, void*, unsigned) END

INSIDE(cuMemGetInfo_v2, size_t* free_, size_t* total) *free_ = room - current->in_use, *total = room; END
INSIDE(cuMemAlloc_v2, uintptr_t* p, size_t n) SAFE return take(p, n); END
INSIDE(cuMemAllocAsync, uintptr_t* p, size_t n, void* s) auto t = of(s); if (!t) return INVALID_HANDLE; if (t->capturing) return spoil(*t, CAPTURE_UNSUPPORTED); return take(p, n); END
CALL(cuMemFree_v2, uintptr_t p) if (!p) return 0; SAFE auto it = live.find(p); if (it == live.end()) return INVALID_VALUE; all_done(it->second.context); return release(p); END
INSIDE(cuMemFreeAsync, uintptr_t p, void* s) auto t = of(s); if (!t) return INVALID_HANDLE; if (t->capturing) return spoil(*t, CAPTURE_UNSUPPORTED); if (!live.count(p)) return INVALID_VALUE; return doing(t, [=] { release(p); }); END
INSIDE(cuMemHostAlloc, void** p, size_t n, unsigned) SAFE if (!n) return INVALID_VALUE; *p = std::aligned_alloc(4096, (n + 4095) / 4096 * 4096); memset(*p, 0xff, n), pinned[(uintptr_t)*p] = {n, current}; END
CALL(cuMemFreeHost, void* p) SAFE auto it = pinned.find((uintptr_t)p); if (it == pinned.end()) return INVALID_VALUE; for (auto& c : contexts) all_done(&c); pinned.erase(it), free(p); END

INSIDE(cuMemcpyHtoDAsync_v2, uintptr_t to, const void* from, size_t n, void* s)
    auto t = of(s);
    if (!t) return INVALID_HANDLE;
    if (!n) return 0;
    if (!inside(to, n) || !from) return INVALID_VALUE;
    if (within(pinned, (uintptr_t)from, n)) return doing(t, guarded(to, 0, true, false, n, [=] {
        if (within(pinned, (uintptr_t)from, n)) memcpy((void*)to, from, n); else broken = ILLEGAL_ADDRESS;
    }));
    if (t->capturing) return spoil(*t, CAPTURE_UNSUPPORTED);
    auto copy = std::make_shared<std::string>((const char*)from, n);  // ordinary memory is staged before the call returns
    return doing(t, guarded(to, 0, true, false, n, [to, copy] { memcpy((void*)to, copy->data(), copy->size()); }));
END
INSIDE(cuMemcpyDtoHAsync_v2, void* to, uintptr_t from, size_t n, void* s)
    auto t = of(s);
    if (!t) return INVALID_HANDLE;
    if (!n) return 0;
    if (!inside(from, n) || !to) return INVALID_VALUE;
    bool fixed = within(pinned, (uintptr_t)to, n);
    if (t->capturing && !fixed) return spoil(*t, CAPTURE_UNSUPPORTED);
    if (int e = doing(t, guarded(0, from, false, true, n, [=] { if (!fixed || within(pinned, (uintptr_t)to, n)) memcpy(to, (void*)from, n); else broken = ILLEGAL_ADDRESS; }))) return e;
    if (!fixed) return wait_for(t);
END
INSIDE(cuMemcpyDtoDAsync_v2, uintptr_t to, uintptr_t from, size_t n, void* s)
    if (!n) return 0;
    if (!inside(to, n) || !inside(from, n)) return INVALID_VALUE;
    return doing(of(s), guarded(to, from, true, true, n, [=] { memmove((void*)to, (void*)from, n); }));
END
INSIDE(cuMemcpyPeerAsync, uintptr_t to, void*, uintptr_t from, void*, size_t n, void* s)
    if (!n) return 0;
    if (!inside(to, n) || !inside(from, n)) return INVALID_VALUE;
    return doing(of(s), guarded(to, from, true, true, n, [=] { memmove((void*)to, (void*)from, n); }));
END
// The calls without a stream follow the null stream, and so do not wait for a stream that was made non-blocking.
INSIDE(cuMemcpyHtoD_v2, uintptr_t to, const void* from, size_t n) SAFE if (!n) return 0; if (!inside(to, n)) return INVALID_VALUE; if (int e = doing(of(nullptr), [=] { memcpy((void*)to, from, n); })) return e; return wait_for(of(nullptr)); END
INSIDE(cuMemcpyDtoH_v2, void* to, uintptr_t from, size_t n) SAFE if (!n) return 0; if (!inside(from, n)) return INVALID_VALUE; if (int e = doing(of(nullptr), [=] { memcpy(to, (void*)from, n); })) return e; return wait_for(of(nullptr)); END
INSIDE(cuMemcpyDtoD_v2, uintptr_t to, uintptr_t from, size_t n) SAFE if (!n) return 0; if (!inside(to, n) || !inside(from, n)) return INVALID_VALUE; return doing(of(nullptr), [=] { memmove((void*)to, (void*)from, n); }); END
INSIDE(cuMemsetD8Async, uintptr_t to, unsigned char v, size_t n, void* s) return fill(to, n, s, [=] { memset((void*)to, v, n); }); END
INSIDE(cuMemsetD32Async, uintptr_t to, unsigned v, size_t n, void* s) if (to % 4) return INVALID_VALUE; return fill(to, n * 4, s, [=] { std::fill_n((unsigned*)to, n, v); }); END
INSIDE(cuMemsetD8_v2, uintptr_t to, unsigned char v, size_t n) SAFE return fill(to, n, nullptr, [=] { memset((void*)to, v, n); }); END

INSIDE(cuStreamCreate, void** s, unsigned flags) *s = streams.add(std::make_shared<Stream>(Stream{current, !(flags & 1)})); END
INSIDE(cuStreamCreateWithPriority, void** s, unsigned flags, int) *s = streams.add(std::make_shared<Stream>(Stream{current, !(flags & 1)})); END
CALL(cuStreamDestroy_v2, void* s) auto t = streams.find(s); if (!t) return INVALID_HANDLE; if (t->capturing) t->capturing->spoilt = true; t->run(); streams.drop(s); END
INSIDE(cuStreamSynchronize, void* s) auto t = of(s); if (!t) return INVALID_HANDLE; if (t->capturing) return spoil(*t, CAPTURE_UNSUPPORTED); SAFE
    if (is_null(*t)) doing(t, [] {});
    t->run();
    for (auto& [p, m] : live) check_margins(p, m.size);
END
INSIDE(cuStreamQuery, void* s) auto t = of(s); if (!t) return INVALID_HANDLE; if (t->capturing) return spoil(*t, CAPTURE_UNSUPPORTED); SAFE if (t->done < t->taken) return NOT_READY; END
INSIDE(cuStreamWaitEvent, void* s, void* e, unsigned)
    auto t = of(s);
    auto v = events.find(e);
    if (!t || !v) return INVALID_HANDLE;
    if (v->graph) {  // draws the stream into the event's capture, or joins it
        if (!v->graph->open) return CAPTURED_EVENT;
        if (t->capturing && t->capturing != v->graph) return spoil(*t, CAPTURE_MERGE);
        if (is_null(*t)) return CAPTURE_IMPLICIT;
        v->graph->unjoined.erase(v->from);
        t->capturing = v->graph;
        if (v->graph->origin != t.get()) v->graph->unjoined.insert(t.get());
        return 0;
    }
    if (!v->mark) return 0;
    if (t->capturing) return spoil(*t, CAPTURE_ISOLATION);
    return doing(t, [m = v->mark] { m->stream->run_to(m->at); });
END

INSIDE(cuEventCreate, void** e, unsigned flags) *e = events.add(std::make_shared<Event>(Event{current, !(flags & 2)})); END
INSIDE(cuEventRecord, void* e, void* s)
    auto t = of(s);
    auto v = events.find(e);
    if (!t || !v || v->context != t->context) return INVALID_HANDLE;
    v->graph = t->capturing, v->from = t.get(), v->mark = nullptr;
    if (t->capturing) return 0;
    auto mark = std::make_shared<Mark>(Mark{t, 0, {}});
    if (int e = doing(t, [mark] { mark->time = Clock::now(); })) return e;
    mark->at = t->taken, v->mark = mark;
END
CALL(cuEventSynchronize, void* e) auto v = events.find(e); if (!v) return INVALID_HANDLE; if (v->graph) return CAPTURED_EVENT; SAFE if (v->mark) v->mark->stream->run_to(v->mark->at); END
CALL(cuEventQuery, void* e) auto v = events.find(e); if (!v) return INVALID_HANDLE; if (v->graph) return CAPTURED_EVENT; SAFE if (v->mark && v->mark->stream->done < v->mark->at) return NOT_READY; END
CALL(cuEventDestroy_v2, void* e) if (!events.drop(e)) return INVALID_HANDLE; END
CALL(cuEventElapsedTime_v2, float* ms, void* from, void* to)
    auto a = events.find(from), b = events.find(to);
    if (!a || !b || !a->timed || !b->timed || !a->mark || !b->mark) return INVALID_HANDLE;
    for (auto& v : {a, b}) if (v->mark->stream->done < v->mark->at) return NOT_READY;
    *ms = std::chrono::duration<float, std::milli>(b->mark->time - a->mark->time).count();
END
extern "C" int cuEventElapsedTime(float* ms, void* from, void* to) { return cuEventElapsedTime_v2(ms, from, to); }

INSIDE(cuModuleLoadData, void** m, const void* image)
    SAFE
    if (!image) return INVALID_VALUE;
    std::string path;
    if (const char* p = std::getenv("CUDA_ON_CPU_KERNELS")) path = p;
    else { Dl_info here; dladdr((void*)entered, &here); path = here.dli_fname; path = path.substr(0, path.rfind('/') + 1) + "kernels.so"; }
    void* library = dlopen(path.c_str(), RTLD_NOW);
    if (!library) { fprintf(stderr, "cuda on cpu: no twins: %s\n", dlerror()); return 300; }
    *m = modules.add(std::make_shared<Module>(Module{library, current}));
END
CALL(cuModuleUnload, void* m) if (!modules.drop(m)) return INVALID_HANDLE; END  // the twins stay loaded: work that waits may need them
INSIDE(cuModuleGetFunction, void** f, void* m, const char* name)
    auto module = modules.find(m);
    if (!module || module->context != current) return INVALID_HANDLE;
    auto find = (Twin * (*)(const char*)) dlsym(module->library, "twin");
    Twin* twin = find ? find(name) : nullptr;
    if (!twin) { fprintf(stderr, "cuda on cpu: no twin of the kernel %s\n", name); return NOT_FOUND; }
    *f = functions.add(std::make_shared<Function>(Function{twin, current}));
END
INSIDE(cuFuncGetAttribute, int* v, int what, void* f) auto g = functions.find(f); if (!g) return INVALID_HANDLE; *v = what == 0 ? 1024 : what == 4 ? 32 : what == 8 ? int(g->most_shared) : what == 5 || what == 6 ? 90 : 0; END
INSIDE(cuFuncSetAttribute, void* f, int what, int v)
    auto g = functions.find(f);
    if (!g) return INVALID_HANDLE;
    if (what == 8) { if (v < 0 || unsigned(v) > MOST_SHARED) return INVALID_VALUE; g->most_shared = v; }
END
INSIDE(cuOccupancyMaxActiveBlocksPerMultiprocessor, int* n, void* f, int threads, size_t) if (!functions.find(f) || threads < 1 || threads > 1024) return INVALID_VALUE; *n = std::min(32, 2048 / threads); END
INSIDE(cuLaunchKernel, void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* s, void** params, void** extra)
    auto g = functions.find(f);
    if (!g || g->context != current) return INVALID_HANDLE;
    if (!gx || !gy || !gz || gx > 2147483647u || gy > 65535 || gz > 65535) return INVALID_VALUE;
    if (!bx || !by || !bz || bx > 1024 || by > 1024 || bz > 64 || size_t(bx) * by * bz > 1024 || shared > g->most_shared || extra) return INVALID_VALUE;
    if (by != 1 || bz != 1) return NOT_SUPPORTED;  // the twins' blocks are rows of threads
    return doing(of(s), g->twin->bind(params, gx, gy, gz, bx, shared));  // arguments are copied now, as on a device
END
INSIDE(cuLaunchHostFunc, void* s, void (*f)(void*), void* data) if (!f) return INVALID_VALUE; return doing(of(s), [=] { f(data); }); END

INSIDE(cuStreamBeginCapture_v2, void* s, int mode)
    auto t = of(s);
    if (!t) return INVALID_HANDLE;
    if (mode < 0 || mode > 2) return INVALID_VALUE;
    if (is_null(*t)) return CAPTURE_UNSUPPORTED;
    if (t->capturing) return ILLEGAL_STATE;
    t->capturing = std::make_shared<Graph>(Graph{.mode = mode, .thread = std::this_thread::get_id(), .origin = t.get()});
END
INSIDE(cuStreamEndCapture, void* s, void** out)
    auto t = of(s);
    if (!t) return INVALID_HANDLE;
    *out = nullptr;
    auto g = t->capturing;
    if (!g) return ILLEGAL_STATE;
    if (g->mode != 2 && g->thread != std::this_thread::get_id()) return CAPTURE_WRONG_THREAD;
    if (g->origin != t.get()) { g->spoilt = true; return CAPTURE_UNMATCHED; }
    for (auto& [_, other] : streams.all) if (other->capturing == g) other->capturing = nullptr;
    g->open = false;
    if (g->spoilt) return CAPTURE_INVALIDATED;
    if (!g->unjoined.empty()) return CAPTURE_UNJOINED;
    *out = graphs.add(g);
END
INSIDE(cuStreamIsCapturing, void* s, int* v) auto t = of(s); if (!t) return INVALID_HANDLE; *v = !t->capturing ? 0 : t->capturing->spoilt ? 2 : 1; END
CALL(cuGraphGetNodes, void* g, void**, size_t* n) auto graph = graphs.find(g); if (!graph) return INVALID_HANDLE; *n = graph->steps.size(); END
INSIDE(cuGraphInstantiateWithFlags, void** e, void* g, unsigned long long) SAFE auto graph = graphs.find(g); if (!graph) return INVALID_HANDLE; *e = executables.add(std::make_shared<std::vector<Step>>(graph->steps)); END
INSIDE(cuGraphUpload, void* e, void* s) if (!executables.find(e) || !of(s)) return INVALID_HANDLE; END
INSIDE(cuGraphLaunch, void* e, void* s) std::shared_ptr<Recording> steps = executables.find(e); if (!steps) return INVALID_HANDLE; return doing(of(s), [steps] { for (auto& step : *steps) step(); }); END
CALL(cuGraphExecDestroy, void* e) if (!executables.drop(e)) return INVALID_HANDLE; END
CALL(cuGraphDestroy, void* g) if (!graphs.drop(g)) return INVALID_HANDLE; END

extern "C" int cuGetExportTable(const void** table, const void*) { *table = nullptr; return NOT_FOUND; }  // NVRTC asks for the driver's own compiler
static const std::map<int, const char*> NAMES = {{0, "CUDA_SUCCESS"}, {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {3, "CUDA_ERROR_NOT_INITIALIZED"}, {100, "CUDA_ERROR_NO_DEVICE"}, {101, "CUDA_ERROR_INVALID_DEVICE"},
    {200, "CUDA_ERROR_INVALID_IMAGE"}, {201, "CUDA_ERROR_INVALID_CONTEXT"}, {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"}, {214, "CUDA_ERROR_ECC_UNCORRECTABLE"}, {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"}, {300, "CUDA_ERROR_INVALID_SOURCE"},
    {400, "CUDA_ERROR_INVALID_HANDLE"}, {401, "CUDA_ERROR_ILLEGAL_STATE"}, {500, "CUDA_ERROR_NOT_FOUND"}, {600, "CUDA_ERROR_NOT_READY"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT"}, {719, "CUDA_ERROR_LAUNCH_FAILED"}, {801, "CUDA_ERROR_NOT_SUPPORTED"}, {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}, {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
    {902, "CUDA_ERROR_STREAM_CAPTURE_MERGE"}, {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED"}, {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"}, {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"}, {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"},
    {907, "CUDA_ERROR_CAPTURED_EVENT"}, {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"}, {999, "CUDA_ERROR_UNKNOWN"}};
extern "C" int cuGetErrorName(int e, const char** s) { auto it = NAMES.find(e); *s = it == NAMES.end() ? nullptr : it->second; return *s ? 0 : INVALID_VALUE; }
extern "C" int cuGetErrorString(int e, const char** s) { return cuGetErrorName(e, s); }

// driver.hpp
extern "C" int cuda_on_cpu_call(const char* name, int lost) { std::lock_guard hold(lock); int e = planned(name); return e ? e : broken ? lost : 0; }
extern "C" int cuda_on_cpu_calls(const char* name) { std::lock_guard hold(lock); auto it = calls.find(name); return it == calls.end() ? 0 : it->second; }  // for tests: how often was it called
extern "C" int cuda_on_cpu_capturing(int* v) { std::lock_guard hold(lock); *v = 0; for (auto& [_, s] : streams.all) *v |= s->capturing != nullptr; return 0; }
extern "C" int cuda_on_cpu_unsafe() { std::lock_guard hold(lock); return unsafe(); }
extern "C" int cuda_on_cpu_inside(const void* p, size_t n) { std::lock_guard hold(lock); return p && inside((uintptr_t)p, n); }
extern "C" int cuda_on_cpu_enqueue(void* s, void (*work)(void*), void* data, void (*drop)(void*)) {
    std::lock_guard hold(lock);
    std::shared_ptr<void> owned(data, drop);
    if (broken) return broken;
    if (!current) return INVALID_CONTEXT;
    return doing(of(s), [work, owned] { work(owned.get()); });
}
