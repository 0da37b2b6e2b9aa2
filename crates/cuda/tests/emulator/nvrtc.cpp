// libnvrtc.so.13 for tests: takes any source and gives bytes that stand for a cubin. driver.cpp has the kernels' twins and does not read them.
// A source with an #error line outside of comments is refused, so that a failing compilation can be tried.
#include <cstdio>
#include <cstring>
#include <string>
#include "driver.hpp"

namespace {
struct Program { std::string source, log, cubin; bool compiled = false; };
const int ARCHS[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};
const char PTX[] = "// stands for PTX";
enum { INVALID_INPUT = 3, INVALID_PROGRAM = 4, INVALID_OPTION = 5, COMPILATION = 6 };
Program* of(void* p) { return (Program*)p; }
int give(const std::string& s, char* out) { if (!out) return INVALID_INPUT; memcpy(out, s.c_str(), s.size()); return 0; }
}  // namespace

extern "C" {
int nvrtcVersion(int* major, int* minor) { *major = 13, *minor = 0; return 0; }
int nvrtcGetNumSupportedArchs(int* n) { *n = sizeof ARCHS / sizeof *ARCHS; return 0; }
int nvrtcGetSupportedArchs(int* to) { memcpy(to, ARCHS, sizeof ARCHS); return 0; }
const char* nvrtcGetErrorString(int e) {
    static const char* names[] = {"NVRTC_SUCCESS", "NVRTC_ERROR_OUT_OF_MEMORY", "NVRTC_ERROR_PROGRAM_CREATION_FAILURE", "NVRTC_ERROR_INVALID_INPUT", "NVRTC_ERROR_INVALID_PROGRAM", "NVRTC_ERROR_INVALID_OPTION", "NVRTC_ERROR_COMPILATION"};
    return e >= 0 && e < 7 ? names[e] : "NVRTC_ERROR unknown";
}
int nvrtcCreateProgram(void** out, const char* source, const char*, int, const char* const*, const char* const*) {
    if (int e = cuda_on_cpu_call("nvrtcCreateProgram", 0)) return e;
    if (!out || !source) return INVALID_INPUT;
    *out = new Program{source, {}, {}};
    return 0;
}
int nvrtcDestroyProgram(void** p) { if (!p || !*p) return INVALID_PROGRAM; delete of(*p); *p = nullptr; return 0; }
int nvrtcCompileProgram(void* p, int n, const char* const* options) {
    if (int e = cuda_on_cpu_call("nvrtcCompileProgram", 0)) { of(p)->log = "refused by CUDA_ON_CPU_FAIL"; return e; }
    std::string arch;
    for (int i = 0; i < n; i++) {
        std::string o = options[i];
        if (o.empty() || o[0] != '-') { of(p)->log = "nvrtc: error: unrecognized option " + o; return INVALID_OPTION; }
        for (const char* key : {"-arch=", "--gpu-architecture="})
            if (o.rfind(key, 0) == 0) arch = o.substr(strlen(key));
    }
    if (arch.rfind("sm_", 0) == 0 || arch.rfind("compute_", 0) == 0) {
        int number = 0;
        sscanf(arch.c_str() + arch.find('_') + 1, "%d", &number);
        bool known = false;
        for (int a : ARCHS) known |= a == number;
        if (!known) { of(p)->log = "nvrtc: error: invalid value for --gpu-architecture: " + arch; return INVALID_OPTION; }
    }
    for (size_t at = 0; (at = of(p)->source.find("#error", at)) != std::string::npos; at++)
        if (at == 0 || of(p)->source[at - 1] == '\n') { of(p)->log = "error: #error directive"; return COMPILATION; }
    of(p)->compiled = true;
    // a real architecture gives a cubin, a virtual one (the default) only PTX
    of(p)->cubin = arch.rfind("sm_", 0) == 0 ? "\177ELF stands for a cubin for " + arch + ", " + std::to_string(std::hash<std::string>()(of(p)->source)) : "";
    return 0;
}
int nvrtcGetCUBINSize(void* p, size_t* n) { if (!of(p)->compiled) return INVALID_PROGRAM; *n = of(p)->cubin.size(); return 0; }
int nvrtcGetCUBIN(void* p, char* out) { if (of(p)->cubin.empty()) return INVALID_PROGRAM; return give(of(p)->cubin, out); }
int nvrtcGetPTXSize(void* p, size_t* n) { if (!of(p)->compiled) return INVALID_PROGRAM; *n = sizeof PTX; return 0; }
int nvrtcGetPTX(void* p, char* out) { if (!of(p)->compiled) return INVALID_PROGRAM; memcpy(out, PTX, sizeof PTX); return 0; }
int nvrtcGetProgramLogSize(void* p, size_t* n) { *n = of(p)->log.size() + 1; return 0; }
int nvrtcGetProgramLog(void* p, char* out) { memcpy(out, of(p)->log.c_str(), of(p)->log.size() + 1); return 0; }
}
