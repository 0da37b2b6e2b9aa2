"""NVRTC on all sources as one text, for each architecture: seconds, size, and each kernel's registers. Fails if one spills.

compile.py NVRTC.so [ARCHITECTURE...]"""
import ctypes, pathlib, re, sys, time

SOURCES = ("common.cuh", "norm.cu", "layout.cu", "elementwise.cu", "attention.cu", "flash.cu", "optim.cu", "prepare.cu", "rows.cu", "diffusion.cu")
kernels = pathlib.Path(__file__).parent / "../../src/kernels"
source = "".join((kernels / name).read_text() for name in SOURCES).encode()
nvrtc = ctypes.CDLL(sys.argv[1])
failed = False
for arch in sys.argv[2:] or ("80", "86", "89", "90", "100", "120"):
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None)
    options = [f"-arch=sm_{arch}", "--fmad=false", "-std=c++17", "-default-device", "--ptxas-options=-v"]
    began = time.time()
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options)))
    seconds = time.time() - began
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, text)
    log = text.value.decode()
    if status:
        sys.exit(log)
    warnings = re.findall(r".*warning.*", log)
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    found = re.findall(r"entry function '(\w+)'(?:.|\n)*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n.*?Used (\d+) registers", log)
    spilled = [f for f in found if f[1:4] != ("0", "0", "0")]
    print(f"sm_{arch}: {seconds:.1f} s, cubin {size.value} bytes, {len(found)} kernels, with a stack: {spilled or 'none'}", *warnings, sep="\n  ")
    if arch == (sys.argv[2:] or ["90"])[0]:
        print("  registers:", ", ".join(f"{name} {registers}" for name, *_, registers in found))
    failed |= bool(spilled) or not found
sys.exit(failed)
