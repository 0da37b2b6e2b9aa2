// libnccl.so.2 for tests: processes of one machine that send each other the memory of driver.cpp over sockets. What the real one does when
// a stream comes to it is done at once here, after what waits in the stream: a process whose stream runs only when something waits for
// it could otherwise keep others from going on. Refused as by the real one: memory outside of the device's, a rank that is not there, two
// ranks on one GPU, a capture.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>
#include "driver.hpp"

extern "C" int cuStreamSynchronize(void* stream);
extern "C" int cuCtxGetDevice(int* device);

namespace {
enum { UNHANDLED_CUDA = 1, SYSTEM = 2, INTERNAL = 3, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE = 6 };
thread_local std::string last;
int fail(int code, std::string why) { last = std::move(why); return code; }

struct Id { char bytes[128]; };
struct Comm { int rank, count; std::vector<int> peers; };
struct Part { bool send; char* at; size_t bytes; int peer; Comm* comm; void* stream; };
thread_local int depth = 0;
thread_local std::vector<Part> parts;

sockaddr_un place(const Id& id, int rank, socklen_t& length) {
    sockaddr_un at{};
    at.sun_family = AF_UNIX;
    // not in the file system
    int n = snprintf(at.sun_path + 1, sizeof at.sun_path - 1, "%.60s-%d", id.bytes, rank);
    length = offsetof(sockaddr_un, sun_path) + 1 + n;
    return at;
}
bool all(int socket, char* at, size_t bytes, bool send) {
    while (bytes) {
        ssize_t n = send ? ::send(socket, at, bytes, MSG_NOSIGNAL) : ::recv(socket, at, bytes, 0);
        if (n <= 0) return false;
        at += n, bytes -= n;
    }
    return true;
}
// All parts of a group: those to each process in order, and those from each; nobody waits with sending until it has received.
int run(const std::vector<Part>& group) {
    if (group.empty()) return 0;
    int capturing = 0;
    if (cuda_on_cpu_capturing(&capturing) || capturing) return fail(INVALID_USAGE, "a capture is not for this library");
    for (auto& p : group) {
        if (p.peer < 0 || p.peer >= p.comm->count || p.peer == p.comm->rank) return fail(INVALID_ARGUMENT, "there is no such peer");
        if (p.bytes && !cuda_on_cpu_inside(p.at, p.bytes)) return fail(INVALID_ARGUMENT, "memory that is not the device's");
        if (int e = cuStreamSynchronize(p.stream)) return fail(UNHANDLED_CUDA, "the stream gave " + std::to_string(e));
    }
    std::map<std::pair<int, bool>, std::vector<Part>> by_peer;
    for (auto& p : group) by_peer[{p.peer, p.send}].push_back(p);
    std::vector<std::thread> threads;
    std::vector<char> well(by_peer.size(), 1);
    size_t i = 0;
    for (auto& [_, list] : by_peer)
        threads.emplace_back([&list = list, &fine = well[i++]] { for (auto& p : list) fine = fine && all(p.comm->peers[p.peer], p.at, p.bytes, p.send); });
    for (auto& t : threads) t.join();
    for (char fine : well) if (!fine) return fail(REMOTE, "a peer is gone");
    return 0;
}
int add(Part part) {
    parts.push_back(part);
    if (depth) return 0;
    auto group = std::move(parts);
    parts.clear();
    return run(group);
}
}  // namespace

#define CALL(name, ...) extern "C" int name(__VA_ARGS__) { if (int e = cuda_on_cpu_call(#name, UNHANDLED_CUDA)) return fail(e, "planned"); 
CALL(ncclGetVersion, int* version) *version = 22907; return 0; }
extern "C" const char* ncclGetErrorString(int code) {
    static const char* const texts[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error", "invalid argument", "invalid usage", "remote process exited or there was a network error"};
    return code >= 0 && code < 7 ? texts[code] : "unknown result code";
}
extern "C" const char* ncclGetLastError(void*) { return last.c_str(); }
CALL(ncclGetUniqueId, Id* id)
    std::random_device random;
    memset(id, 0, sizeof *id);
    for (int i = 0; i < 4; i++) snprintf(id->bytes + 8 * i, 9, "%08x", random());
    return 0;
}
CALL(ncclCommInitRank, void** out, int count, Id id, int rank)
    if (rank < 0 || rank >= count) return fail(INVALID_ARGUMENT, "there is no such rank");
    int device = -1;
    if (cuCtxGetDevice(&device)) return fail(INVALID_USAGE, "no context");
    auto comm = new Comm{rank, count, std::vector<int>(count, -1)};
    int listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t length;
    auto own = place(id, rank, length);
    if (bind(listening, (sockaddr*)&own, length) || listen(listening, count)) return fail(SYSTEM, "cannot listen");
    auto meet = [&](int peer, int socket) {
        int theirs[2], mine[2] = {rank, device};
        if (!all(socket, (char*)mine, sizeof mine, true) || !all(socket, (char*)theirs, sizeof theirs, false)) return fail(REMOTE, "a peer is gone");
        peer = peer < 0 ? theirs[0] : peer;
        comm->peers[peer] = socket;
        return theirs[1] == device ? fail(INVALID_USAGE, "Duplicate GPU detected : rank " + std::to_string(rank) + " and rank " + std::to_string(peer) + " both on CUDA device " + std::to_string(device)) : 0;
    };
    int wrong = 0;
    for (int peer = 0; peer < rank; peer++) {
        int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        auto at = place(id, peer, length);
        while (connect(s, (sockaddr*)&at, length)) usleep(2000);
        if (int e = meet(peer, s)) wrong = e;
    }
    for (int peer = rank + 1; peer < count; peer++)
        if (int e = meet(-1, accept4(listening, nullptr, nullptr, SOCK_CLOEXEC))) wrong = e;
    close(listening);
    *out = comm;
    return wrong;
}
CALL(ncclGroupStart) depth++; return 0; }
CALL(ncclGroupEnd)
    if (!depth) return fail(INVALID_USAGE, "no group began");
    if (--depth) return 0;
    auto group = std::move(parts);
    parts.clear();
    return run(group);
}
namespace {
int move(bool send, char* at, size_t count, int type, int peer, void* comm, void* stream) {
    if (type != 7) return fail(INVALID_ARGUMENT, "only f32");
    return add({send, at, 4 * count, peer, (Comm*)comm, stream});
}
}  // namespace
CALL(ncclSend, char* at, size_t count, int type, int peer, void* comm, void* stream) return move(true, at, count, type, peer, comm, stream); }
CALL(ncclRecv, char* at, size_t count, int type, int peer, void* comm, void* stream) return move(false, at, count, type, peer, comm, stream); }
// Every rank has what all others have, and adds it up from the last rank to the first: not the order of the program's own sums.
CALL(ncclAllReduce, float* from, float* to, size_t count, int type, int op, void* c, void* stream)
    auto comm = (Comm*)c;
    if (type != 7 || op != 0) return fail(INVALID_ARGUMENT, "only sums of f32");
    if (!cuda_on_cpu_inside(from, 4 * count) || !cuda_on_cpu_inside(to, 4 * count)) return fail(INVALID_ARGUMENT, "memory that is not the device's");
    if (int e = cuStreamSynchronize(stream)) return fail(UNHANDLED_CUDA, "the stream gave " + std::to_string(e));
    std::vector<std::vector<float>> all_values(comm->count, std::vector<float>(from, from + count));
    std::vector<std::thread> threads;
    std::vector<char> well(2 * comm->count, 1);
    std::vector<float> mine = all_values[comm->rank];
    for (int peer = 0; peer < comm->count; peer++) {
        if (peer == comm->rank) continue;
        threads.emplace_back([&, peer] { well[2 * peer] = all(comm->peers[peer], (char*)mine.data(), 4 * count, true); });
        threads.emplace_back([&, peer] { well[2 * peer + 1] = all(comm->peers[peer], (char*)all_values[peer].data(), 4 * count, false); });
    }
    for (auto& t : threads) t.join();
    for (char fine : well) if (!fine) return fail(REMOTE, "a peer is gone");
    for (size_t i = 0; i < count; i++) {
        float sum = 0;
        for (int rank = comm->count; rank--;) sum += all_values[rank][i];
        to[i] = sum;
    }
    return 0;
}
