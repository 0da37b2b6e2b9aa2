"""What several GPUs may be expected to reach: the tables of docs/clusters.md.   python3 docs/scaling.py

A step takes b/r + t. The first term is b images on a GPU that trains r images/s. t is the sum of the gradient (P parameters in f32): the k
GPUs of a machine send each other 4·P/k bytes each, then GPUs at the same place of m machines send each other 4·P/(k·m) bytes, and the
same way back. Each message costs a time of its own. Nothing overlaps with the backward pass, as on GPUs.
"""

COUNTS = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
# Parameters; images/s of one H200 and the batch at which it was measured (docs/gpu.md).
NETWORKS = {"cifar10": (57_094_662, 5319, 128), "lsun-tower64": (295_136_454, 555, 64), "ffhq128": (542_811_398, 179, 32)}
# GPUs of a machine, bytes/s of a GPU within it and to others, seconds a message: four fifths of what the links are sold as.
LINKS = {
    "NVLink (450 GB/s), InfiniBand (8 × 400 Gb/s)": (8, 360e9, 40e9, 5e-6),
    "NVLink, 100 Gb/s for the machine": (8, 360e9, 10e9 / 8, 20e-6),
    "PCIe 4.0 (32 GB/s), 10 Gb/s for the machine": (8, 25e9, 1e9 / 8, 50e-6),
    "one GPU a machine, 10 Gb/s": (1, 25e9, 1e9, 50e-6),
}


def summing(n, parameters, machine, inside, outside, message):
    """Seconds for the sum of a gradient over n GPUs."""
    near = min(n, machine)
    far = n // near
    near_bytes, far_bytes = (near - 1) * 4 * parameters / near, (far - 1) * 4 * parameters / n
    return 2 * (near_bytes / inside + far_bytes / outside + (near - 1 + far - 1) * message)


def efficiency(n, images, network, link):
    """Images/s of n GPUs with so many images each, as a share of n times one."""
    parameters, rate, _ = NETWORKS[network]
    compute = images / rate
    return compute / (compute + summing(n, parameters, *LINKS[link]))


if __name__ == "__main__":
    print("| network, images per GPU | links | " + " | ".join(map(str, COUNTS)) + " |")
    print("| --- " * (2 + len(COUNTS)) + "|")
    for network, (_, _, batch) in NETWORKS.items():
        for link in LINKS:
            shares = (f"{100 * efficiency(n, batch, network, link):.0f}" for n in COUNTS)
            print(f"| {network}, {batch} | {link} | " + " | ".join(shares) + " |")
    print()
    print("| cifar10, batch 1 024 in all | " + " | ".join(map(str, COUNTS)) + " |")
    print("| --- " * (1 + len(COUNTS)) + "|")
    for link in LINKS:
        reached = (n * 5319 * efficiency(n, 1024 / n, "cifar10", link) for n in COUNTS)
        print(f"| {link}: images/s | " + " | ".join(f"{value:,.0f}".replace(",", " ") for value in reached) + " |")
