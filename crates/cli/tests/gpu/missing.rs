//! Machines that lack something: one message says what, and what installs it, before anything is written.

use super::machine::{libraries, on_gpu_with};
use super::support::{Place, TINY, names};
use std::path::Path;

/// Whether this machine has NVIDIA's driver.
pub(crate) fn has_driver() -> bool {
    Path::new("/proc/driver/nvidia").exists() || Path::new("/usr/lib/wsl/lib/libcuda.so.1").exists()
}

#[test]
fn without_a_driver_a_gpu_is_refused_and_auto_is_the_processor() {
    if has_driver() {
        return;
    }
    let place = Place::new();
    let train = |device| [&["train"], TINY, &["--steps", "1", "--device", device]].concat();
    for device in ["cuda", "cuda:0"] {
        place.run(&train(device)).complains(2, &["--device cuda", "libcuda.so.1", "sudo apt install nvidia-driver-"]);
    }
    assert!(place.is_empty());
    let ran = place.run(&train("auto")).exits(0);
    assert!(!ran.err().contains("computing in"), "{}", ran.err());
    assert!(place.read("run/config.toml").contains("precision = \"f32\""));
    let ran = place.run(&["info", "--devices"]).exits(0);
    assert!(ran.out().contains("cpu: ") && ran.out().contains("no GPU: the NVIDIA driver"), "{}", ran.out());
}

#[test]
fn a_library_that_is_missing_is_named_with_the_package_that_has_it() {
    for (file, parts) in [
        ("libcudnn.so.9", ["cuDNN is missing", "libcudnn.so.9", "pip install nvidia-cudnn-cu13"]),
        ("libcublasLt.so.13", ["cuBLASLt is missing", "libcublasLt.so.13", "pip install nvidia-cublas`"]),
        ("libnvrtc.so.13", ["NVRTC is missing", "libnvrtc.so.13", "pip install nvidia-cuda-nvrtc`"]),
    ] {
        let place = Place::new();
        let folder = place.path("libraries");
        std::fs::create_dir(&folder).unwrap();
        let (stem, _) = file.split_once(".so").unwrap();
        for name in names(Path::new(libraries())).iter().filter(|name| name.contains(".so") && !name.starts_with(stem))
        {
            std::fs::copy(Path::new(libraries()).join(name), folder.join(name)).unwrap();
        }
        // Nor in this machine's Python.
        let machine = [("LD_LIBRARY_PATH", folder.to_str().unwrap()), ("PATH", ""), ("VIRTUAL_ENV", ""), ("HOME", "")];
        let ran = place.run_with(&machine, &[&["train"], TINY, &["--device", "cuda"]].concat());
        ran.complains(2, &[&["--device cuda: "], &parts[..]].concat());
        assert_eq!(names(&place.path("")), ["libraries"]);
    }
}

#[test]
fn libraries_are_found_in_a_python_environment() {
    let place = Place::new();
    let [driver, packages] = ["driver", "venv/lib/python3.11/site-packages/nvidia"].map(|folder| place.path(folder));
    for (package, stem) in [
        ("", "libcuda."),
        ("", "kernels."),
        ("cudnn/lib", "libcudnn."),
        ("cu13/lib", "libcublasLt."),
        ("cu13/lib", "libnvrtc."),
    ] {
        let folder = if package.is_empty() { driver.clone() } else { packages.join(package) };
        std::fs::create_dir_all(&folder).unwrap();
        for name in names(Path::new(libraries())).iter().filter(|name| name.starts_with(stem)) {
            std::fs::copy(Path::new(libraries()).join(name), folder.join(name)).unwrap();
        }
    }
    let venv = place.path("venv");
    let machine =
        [("LD_LIBRARY_PATH", driver.to_str().unwrap()), ("PATH", ""), ("VIRTUAL_ENV", venv.to_str().unwrap())];
    let found = place.run_with(&machine, &["info", "--devices"]).exits(0).out();
    for file in ["cudnn/lib/libcudnn.so.9", "cu13/lib/libcublasLt.so.13", "cu13/lib/libnvrtc.so.13"] {
        assert!(found.contains(&packages.join(file).display().to_string()), "{found}");
    }
    place.run_with(&machine, &[&["train"], TINY, &["--steps", "1", "--device", "cuda"]].concat()).exits(0);
}

#[test]
fn a_driver_that_is_too_old_and_an_index_that_is_too_high_are_refused() {
    let place = Place::new();
    let train = [&["train"], TINY, &["--steps", "1"]].concat();
    on_gpu_with(&place, &[("CUDA_ON_CPU_DRIVER", "11080")], &train)
        .complains(2, &["the NVIDIA driver supports only CUDA 11", "525.60 or newer"]);
    let second = [&train[..], &["--device", "cuda:1"]].concat();
    let machine = |devices| [("LD_LIBRARY_PATH", libraries()), ("CUDA_ON_CPU_DEVICES", devices)];
    place.run_with(&machine("1"), &second).complains(2, &["no GPU cuda:1", "has one, cuda:0"]);
    place.run_with(&machine("0"), &second).complains(2, &["no GPU cuda:1", "has none"]);
    assert!(place.is_empty());
    // There it is.
    let ran = place.run_with(&machine("2"), &second).exits(0);
    assert!(ran.err().contains("computing in bf16 on cuda:1"), "{}", ran.err());
}

/// The older libraries serve an older driver.
#[test]
fn a_driver_of_cuda_12_trains() {
    let place = Place::new();
    let train = [&["train"], TINY, &["--steps", "1"]].concat();
    on_gpu_with(&place, &[("CUDA_ON_CPU_DRIVER", "12080")], &train).exits(0);
}

#[test]
fn too_little_memory_is_said_before_the_first_step_with_the_microbatch_that_fits() {
    let place = Place::new();
    let train = [&["train"], TINY, &["--steps", "1", "--batch-size", "64"]].concat();
    let memory = [("CUDA_ON_CPU_MEMORY", "22000000")];
    let message = on_gpu_with(&place, &memory, &train).exits(2).err();
    assert!(message.contains("a training step of 64 images") && message.contains("the GPU has "), "{message}");
    let fits = message.split_once("--microbatch ").and_then(|(_, rest)| rest.split_once(" fits")).unwrap().0;
    assert!(!place.path("run").exists());
    on_gpu_with(&place, &memory, &[&train[..], &["--microbatch", fits]].concat()).exits(0);
    on_gpu_with(&place, &[("CUDA_ON_CPU_MEMORY", "2000000")], &train).complains(2, &["no --microbatch fits"]);
    let all_the_same = [&train[..], &["--ignore-memory-limit", "--out", "other"]].concat();
    on_gpu_with(&place, &[("CUDA_ON_CPU_MEMORY", "5000000")], &all_the_same)
        .complains(1, &["the GPU has no memory for", "--microbatch", "nvidia-smi"]);
}

#[test]
fn the_machine_is_described() {
    let place = Place::new();
    let ran = place.run_with(&[("LD_LIBRARY_PATH", libraries())], &["info", "--devices"]).exits(0);
    let driver = "driver: supports CUDA up to 13.0";
    for part in ["cpu: ", "cuda:0: ", driver, "cuDNN 9.", "cuBLASLt 13.", "NVRTC 13.", libraries()] {
        assert!(ran.out().contains(part), "{part}: {}", ran.out());
    }
    let none = [("LD_LIBRARY_PATH", libraries()), ("CUDA_ON_CPU_DEVICES", "0")];
    let ran = place.run_with(&none, &["info", "--devices"]).exits(0);
    assert!(ran.out().contains("no GPU: the driver finds none"), "{}", ran.out());
}
