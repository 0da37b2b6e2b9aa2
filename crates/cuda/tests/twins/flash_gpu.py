"""Attention's kernels on a GPU, against PyTorch in f64, then timed beside PyTorch's own. Needs PyTorch for CUDA.

flash_gpu.py [variants]: with `variants`, other choices of tiles and registers are timed as well."""
import concurrent.futures, ctypes, pathlib, sys, torch

kernels = pathlib.Path(__file__).parent / "../../src/kernels"
SOURCE = "".join((kernels / name).read_text() for name in ("common.cuh", "attention.cu", "flash.cu"))
# Changes of the source, by name. Each `old` must be there.
VARIANTS = {
    "as it is": [],
    "2 blocks": [("CROWD = 3", "CROWD = 2")],
    "no headroom": [("HEADROOM = 8", "HEADROOM = 0")],
    "slices unrolled": [("#pragma unroll 1\n", "#pragma unroll\n")],
    "slices of 32": [("SLICE = D == 64 ? 32 : 64", "SLICE = 32"), ("FLASH_FORWARD(32, 3)", "FLASH_FORWARD(32, 4)"), ("SLICE = D == 64 ? 32 : 16", "SLICE = 32"),
                     ("flash_keys, 32, CROWD", "flash_keys, 32, 2")],
    "slices of 64 and 16": [("SLICE = D == 64 ? 32 : 64", "SLICE = 64"), ("FLASH_FORWARD(64, CROWD)", "FLASH_FORWARD(64, 2)"),
                            ("SLICE = D == 64 ? 32 : 16", "SLICE = 16")],
}


def compile(changes):
    from torch.cuda import get_device_capability
    import glob, os, site

    source = SOURCE
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    found = [f for folder in site.getsitepackages() for f in glob.glob(folder + "/nvidia/*/lib/libnvrtc.so.1[0-9]")]
    nvrtc = ctypes.CDLL(found[0] if found else "libnvrtc.so.13")
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    options = [b"-arch=sm_%d%d" % get_device_capability(), b"--fmad=false", b"-std=c++17", b"-default-device"]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if status:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise SystemExit(log.value.decode())
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    return cubin.raw


driver = ctypes.CDLL("libcuda.so.1")


def ok(status):
    assert status == 0, f"the driver says {status}"


class Kernels:
    def __init__(self, cubin):
        self.module = ctypes.c_void_p()
        ok(driver.cuModuleLoadData(ctypes.byref(self.module), cubin))
        self.found = {}

    def launch(self, name, grid, *args):
        if name not in self.found:
            function = ctypes.c_void_p()
            ok(driver.cuModuleGetFunction(ctypes.byref(function), self.module, name.encode()))
            self.found[name] = function
        values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else ctypes.c_float(a) if isinstance(a, float) else ctypes.c_int(a) for a in args]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        ok(driver.cuLaunchKernel(self.found[name], *grid, 1, 128, 1, 1, 0, stream, pointers, None))


class Case:
    def __init__(self, n, t, heads, d, kind, heads_first=True, size=1.0):
        self.n, self.t, self.heads, self.d, self.kind, c = n, t, heads, d, kind, heads * d
        self.steps = (3 * d, d) if heads_first else (d, c)
        self.qkv = (size * torch.randn(n, t, 3 * c, device="cuda")).to(kind)
        self.grad = torch.randn(n, t, c, device="cuda").to(kind)
        self.out, self.dqkv = torch.full_like(self.grad, torch.nan), torch.full_like(self.qkv, torch.nan)
        self.rows = torch.full((n, heads, t, 2), torch.nan, device="cuda")
        self.heads_first = heads_first

    def parts(self, qkv):
        shape = (self.n, self.t, self.heads, 3, self.d) if self.heads_first else (self.n, self.t, 3, self.heads, self.d)
        at = 3 if self.heads_first else 2
        return [p.transpose(1, 2) for p in qkv.view(shape).unbind(at)]

    def run(self, kernels, which):
        suffix = f"_{self.d}_" + ("bf16" if self.kind == torch.bfloat16 else "f16")
        tile = 64 if which == "keys" and self.d == 64 else 128
        grid = (self.heads * -(-self.t // tile), self.n)
        rest = (self.t, self.heads, *self.steps, self.d**-0.5)
        if which == "forward":
            kernels.launch("attention" + suffix, grid, self.qkv, self.out, *rest)
        elif which == "rows":
            kernels.launch("attention_rows" + suffix, grid, self.grad, self.qkv, self.rows, *rest)
        else:
            kernels.launch(f"attention_{which}{suffix}", grid, self.grad, self.qkv, self.rows, self.dqkv, *rest)


WHICH = ("forward", "rows", "keys", "queries")


def check(kernels):
    failures = 0
    for kind, tolerance in ((torch.bfloat16, 4e-3), (torch.float16, 6e-4)):
        for d in (32, 64):
            for t in (1, 5, 16, 49, 64, 65, 100, 256, 1000, 1024):
                for heads, first in ((1, True), (3, False), (2, True)):
                    case = Case(2, t, heads, d, kind, first, 2.0 if t == 1000 else 1.0)
                    for which in WHICH:
                        case.run(kernels, which)
                    qkv = case.qkv.double().requires_grad_()
                    q, k, v = case.parts(qkv)
                    out = ((q @ k.transpose(-1, -2) * d**-0.5).softmax(-1) @ v).transpose(1, 2).reshape(case.grad.shape)
                    out.backward(case.grad.double())
                    pairs = [(case.out.double(), out)] + list(zip(case.parts(case.dqkv.double()), case.parts(qkv.grad)))
                    for what, (got, wanted) in zip(("out", "dq", "dk", "dv"), pairs):
                        error = float((got - wanted).norm() / wanted.norm().clamp_min(1e-2 * wanted.numel() ** 0.5))  # a single key: no gradient of scores
                        if not error < tolerance:
                            failures += 1
                            print(f"{what}: error {error:.3g} ({kind}, d {d}, t {t}, heads {heads}, heads first {first})")
                    before = case.out.clone(), case.dqkv.clone(), case.rows.clone()
                    for which in WHICH:
                        case.run(kernels, which)
                    if not all(torch.equal(a, b) for a, b in zip(before, (case.out, case.dqkv, case.rows))):
                        failures += 1
                        print(f"other bits ({kind}, d {d}, t {t})")
    print("checked:", failures, "failures")
    return failures


def milliseconds(f, count=20):
    for _ in range(3):
        f()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            f()
    times = []
    for _ in range(5):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        graph.replay()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b) / count)
    return sorted(times)[2]


def main():
    torch.manual_seed(1)
    torch.zeros(1, device="cuda")
    print(torch.cuda.get_device_name())
    names = list(VARIANTS) if "variants" in sys.argv else ["as it is"]
    # NVRTC lets go of Python's lock.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        cubins = list(pool.map(compile, (VARIANTS[name] for name in names)))
    loaded = [Kernels(cubin) for cubin in cubins]
    failures = check(loaded[0])
    print("microseconds: forward, rows, keys, queries (TFLOP/s)")
    for n, t, heads, d in ((128, 256, 8, 32), (128, 64, 8, 32), (64, 1024, 6, 64), (64, 256, 9, 64), (64, 64, 12, 64)):
        case = Case(n, t, heads, d, torch.bfloat16)
        flop = 2 * n * heads * t * t * d
        for name, kernels in zip(names, loaded):
            times = [milliseconds(lambda: case.run(kernels, which)) for which in WHICH]
            text = ", ".join(f"{1e3 * time:.1f} ({products * flop / time / 1e9:.0f})" for time, products in zip(times, (2, 2, 4, 3)))
            print(f"n {n} t {t} heads {heads} d {d}: {text}; all {1e3 * sum(times):.1f}  [{name}]")
        q, k, v = (p.contiguous().requires_grad_() for p in case.parts(case.qkv))
        grad = torch.randn_like(q)

        def attend():
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

        def both():
            torch.autograd.grad(attend(), (q, k, v), grad)

        try:
            print(f"    PyTorch: forward {1e3 * milliseconds(attend):.1f}, forward and backward {1e3 * milliseconds(both):.1f}")
        except RuntimeError as error:
            print("    PyTorch:", str(error).splitlines()[0])
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
