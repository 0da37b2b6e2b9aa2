"""NVRTC on all sources, a unit at a time as src/compile.rs has it, for each architecture: seconds, size, kernels. Fails if one
spills more than a few registers.

compile.py NVRTC.so [ARCHITECTURE...]"""
import ctypes, os, pathlib, re, sys, time
from concurrent.futures import ThreadPoolExecutor

rust = (pathlib.Path(__file__).parent / "../../src/compile.rs").resolve()
source = "".join((rust.parent / name).read_text() for name in re.findall(r'include_str!\("(.+)"\)', rust.read_text())).encode()
# (UNIT, HEAD): no type, f32, bf16, f16, and attention in bf16 and f16 by channels of a head
UNITS = ((1, 0), (2, 0), (3, 0), (4, 0), (5, 32), (5, 64), (6, 32), (6, 64))
# Bytes: what NVRTC 13.5 puts aside in some kernels is 4 to 16 a thread.
MOST_SPILLED = 32
nvrtc = ctypes.CDLL(sys.argv[1])


def compiled(arch, unit, head):
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None)
    options = [f"-arch=sm_{arch}", "--fmad=false", "-std=c++17", "-default-device", "--ptxas-options=-v", "-diag-suppress=177", f"-DUNIT={unit}", f"-DHEAD={head}"]
    began = time.time()
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options)))
    seconds = time.time() - began
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, text)
    log = text.value.decode()
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    found = re.findall(r"entry function '(\w+)'(?:.|\n)*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n.*?Used (\d+) registers", log)
    with_stack = [" ".join(f[:4]) for f in found if f[1:4] != ("0", "0", "0")]
    spills = any(int(f[2]) > MOST_SPILLED for f in found)
    return status, log, seconds, size.value, found, spills, with_stack, re.findall(r".*warning.*", log)


failed = False
with ThreadPoolExecutor(os.cpu_count()) as pool:
    for arch in sys.argv[2:] or ("80", "86", "89", "90", "100", "120"):
        made = list(pool.map(lambda unit: compiled(arch, *unit), UNITS))
        for (status, log, *_), unit in zip(made, UNITS):
            if status:
                sys.exit(f"sm_{arch}, unit {unit}: error {status}\n{log}")
        with_stack, warnings = (sum((m[i] for m in made), []) for i in (6, 7))
        seconds, size, kernels = sum(m[2] for m in made), sum(m[3] for m in made), sum(len(m[4]) for m in made)
        print(f"sm_{arch}: {seconds:.1f} s, {size} bytes, {kernels} kernels; with a stack (name, bytes, spilled, read back): {with_stack or 'none'}", *warnings, sep="\n  ", flush=True)
        failed |= any(m[5] or not m[4] for m in made)
sys.exit(failed)
