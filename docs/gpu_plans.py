"""Which engines cuDNN takes for the convolutions of presets, on kinds of GPUs that need not be there.

    python docs/gpu_plans.py PROGRAM OUT [PRESETS [CHIPS]]

Asks `train --dry-run --device CHIP` in bf16, f16 and f32 for each, writes a table, and fails where a convolution has no
deterministic engine. PRESETS and CHIPS are names with commas between; without them all are taken. cuDNN and a libcuda.so.1 have to
be found, see "Tested without a GPU" in docs/gpu.md. The digits stand in for each preset's images.
"""
import collections, json, os, pathlib, subprocess, sys, tempfile

PRESETS = "digits,fashion-mnist,cifar10,imagenet32,cifar10-ddim,lsun-tower64,celeba64,ffhq128"
CHIPS = "a100,rtx3090,rtx4090,h100,h200,b200,rtx5090"
# Images of a training step where a preset's whole batch would not fit.
MICROBATCH = {"imagenet32": 128, "lsun-tower64": 64, "celeba64": 64, "ffhq128": 32}
HEAD = """# Engines of cuDNN, planned without a GPU

These tables show which engines `ddpm-ip` uses for the convolutions of a training and a sampling step, as cuDNN {version} plans them
for each kind of GPU. `docs/gpu_plans.py` writes it. cuBLASLt computes matrix products (1x1 convolutions, attention), which are not
in the tables. Nothing was run, so this says nothing about speed.

All engines are deterministic, and those of f32 use neither tensor cores nor rounded operands. A convolution without such an engine
is reported. *Compiled* counts convolutions whose kernel is compiled at the start; the kernels of others are ready-made. *Copies*
counts those whose workspace holds a whole input or output: hidden copies in another layout, or transforms. *Workspace* is the
largest workspace of the training step and of the sampling step, in MiB. *Engines* are cuDNN's numbers, each with its count of
convolutions; w: by Winograd's transforms, c: compiled, p: without bias and residual, which our own kernel adds. Types and GPUs with
equal rows share a row.
"""


def asked(program, preset, chip, precision):
    words = [program, "train", "--preset", preset, "--data-dir", "digits", "--allow-upscale", "--dry-run", "--json"]
    words += ["--ignore-memory-limit", "--device", chip, "--precision", precision]
    if preset in MICROBATCH:
        words += ["--microbatch", str(MICROBATCH[preset])]
    ran = subprocess.run(words, capture_output=True, text=True)
    return json.loads(ran.stdout) if ran.returncode == 0 else ran.stderr.strip()


def cells(answer):
    training, sampling = answer["convolutions"]["training"], answer["convolutions"]["sampling"]
    both = training + sampling
    largest = [max(c["workspace"] for c in step) / 2**20 for step in (training, sampling)]
    marks = lambda c: "w" * c["winograd"] + "c" * c["compiled"] + "p" * (c["pass"] == "plain")
    engines = collections.Counter(f"{c['engine']}{marks(c)}" for c in both).most_common()
    counts = [len(both), sum(c["compiled"] for c in both), sum(c["copies"] for c in both)]
    return [*map(str, counts), f"{largest[0]:.1f}, {largest[1]:.1f}", " ".join(f"{name}×{n}" for name, n in engines)]


def table(program, preset, chips, versions, failed):
    rows = {}
    for precision in ("bf16", "f16", "f32"):
        same = {}
        for chip in chips:
            answer = asked(program, preset, chip, precision)
            if isinstance(answer, str):
                failed.append(f"{preset}, {chip}, {precision}: {answer}")
                row = ["none", "", "", "", " ".join(answer.split())]
            else:
                row = cells(answer)
                versions.add(answer["gpu"]["cudnn"])
            same.setdefault(tuple(row), []).append(chip)
        for row, of in same.items():
            rows.setdefault((", ".join(of), *row), []).append(precision)
    head = "| type | GPU | convolutions | compiled | copies | workspace | engines |\n| --- | --- | --- | --- | --- | --- | --- |"
    return "\n".join([head, *(f"| {', '.join(types)} | {' | '.join(row)} |" for row, types in rows.items())])


def main():
    program, out = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    presets, chips = [(sys.argv[3:] + [PRESETS, CHIPS][len(sys.argv) - 3 :])[i].split(",") for i in (0, 1)]
    versions, failed, sections = set(), [], {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for preset in presets:
            sections.setdefault(table(str(program), preset, chips, versions, failed), []).append(preset)
    text = [HEAD.format(version=", ".join(sorted(versions)))]
    for rows, names in sections.items():
        sizes = [f"{name}: {MICROBATCH[name]} images a training step" for name in names if name in MICROBATCH]
        text += [f"\n## {', '.join(names)}\n\n" + ("; ".join(sizes) + "\n\n" if sizes else "") + rows + "\n"]
    out.write_text("".join(text))
    sys.exit("\n".join(failed) or 0)


main()
