//! A GPU that fails in the midst of a run: one message, and what was saved before is whole.

use super::machine::{assert_same, on_cpu, on_gpu_with};
use super::support::{Place, TINY, names};

/// Three steps, each of which is saved.
fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train"], TINY, &["--precision", "f32", "--save-interval", "1", "--steps", "3", "--out", out], more].concat()
}

/// An error and what the message calls it.
type Failure = (&'static str, &'static str);
const LAUNCH: Failure = ("719", "CUDA_ERROR_LAUNCH_FAILED");
const MEMORY_ERROR: Failure = ("214", "CUDA_ERROR_ECC_UNCORRECTABLE");
const OUT_OF_MEMORY: Failure = ("2", "CUDA_ERROR_OUT_OF_MEMORY");

/// Lets a call fail when it is made for the first time, after two thirds of all times and for the last time. `saved`
/// checkpoints are there then.
#[track_caller]
fn fails(call: &str, failures: [Failure; 3], saved: [usize; 3]) {
    let place = Place::new();
    on_gpu_with(&place, &[("CUDA_ON_CPU_CALLS", "calls")], &train("good", &[])).exits(0);
    let calls = place.read("calls");
    let count =
        calls.lines().find_map(|line| line.strip_prefix(&format!("{call} "))).unwrap().parse::<usize>().unwrap();
    for (((code, name), saved), n) in failures.into_iter().zip(saved).zip([1, (2 * count).div_ceil(3), count]) {
        let plan = format!("{call}:{n}:{code}");
        let run = plan.replace(':', "-");
        // Kernels are compiled anew.
        std::fs::remove_dir_all(place.path("cache")).unwrap();
        let message = on_gpu_with(&place, &[("CUDA_ON_CPU_FAIL", &plan)], &train(&run, &[])).exits(1).err();
        for part in ["error: ", &format!("{call} gave {name}")] {
            assert_eq!(message.matches(part).count(), 1, "{plan} says {part:?} once: {message}");
        }
        assert!(!message.contains("panicked") && !message.contains("backtrace"), "{plan}: {message}");
        let folder = place.path(&format!("{run}/checkpoints"));
        let steps = if folder.exists() { names(&folder) } else { Vec::new() };
        assert_eq!(steps.len(), saved, "{plan} left {steps:?}");
        for step in &steps {
            assert_same(&folder.join(step), &place.path(&format!("good/checkpoints/{step}")));
        }
        let log = on_cpu(&place, &train(&run, &["--steps", "4"])).exits(0).err();
        assert_eq!(log.contains(&format!("resuming at step {saved} ")), saved > 0, "{plan}: {log}");
    }
}

#[test]
fn of_a_kernel() {
    fails("cuLaunchKernel", [LAUNCH, OUT_OF_MEMORY, MEMORY_ERROR], [0, 1, 2]);
}

#[test]
fn of_recorded_work() {
    fails("cuGraphLaunch", [OUT_OF_MEMORY, LAUNCH, MEMORY_ERROR], [1, 2, 2]);
}

#[test]
fn of_memory() {
    fails("cuMemAlloc_v2", [LAUNCH, MEMORY_ERROR, LAUNCH], [0, 0, 0]);
}

#[test]
fn of_a_copy_to_the_gpu() {
    fails("cuMemcpyHtoDAsync_v2", [MEMORY_ERROR, OUT_OF_MEMORY, LAUNCH], [0, 1, 2]);
}

#[test]
fn of_a_copy_from_the_gpu() {
    fails("cuMemcpyDtoHAsync_v2", [OUT_OF_MEMORY, MEMORY_ERROR, LAUNCH], [0, 1, 2]);
}

#[test]
fn of_waiting() {
    fails("cuStreamSynchronize", [LAUNCH, LAUNCH, MEMORY_ERROR], [0, 1, 2]);
}

#[test]
fn of_loading_kernels() {
    fails("cuModuleLoadData", [OUT_OF_MEMORY, ("209", "CUDA_ERROR_NO_BINARY_FOR_GPU"), LAUNCH], [0, 0, 0]);
}

#[test]
fn of_cudnn() {
    fails("cudnnBackendExecute", [("5000", "5000"), ("5003", "5003"), ("4000", "4000")], [0, 1, 1]);
}

#[test]
fn of_cublas() {
    fails("cublasLtMatmul", [("13", "13"), ("14", "14"), ("7", "7")], [0, 1, 1]);
}

#[test]
fn of_compiling() {
    fails("nvrtcCompileProgram", [("6", "6"), ("1", "1"), ("11", "11")], [0, 0, 0]);
}

/// Once the GPU is full, what nobody uses is given back.
#[test]
fn of_memory_that_can_be_made_free_changes_nothing() {
    let place = Place::new();
    for (run, plan) in [("good", "none:1:2"), ("short", "cuMemAlloc_v2:8:2")] {
        on_gpu_with(&place, &[("CUDA_ON_CPU_FAIL", plan)], &train(run, &[])).exits(0);
    }
    assert_same(&place.path("short/checkpoints/step_000003"), &place.path("good/checkpoints/step_000003"));
}

#[test]
fn of_the_driver_at_the_start_is_told_before_anything_is_written() {
    for call in ["cuInit", "cuDevicePrimaryCtxRetain", "cuStreamCreate", "cudnnCreate", "cublasLtCreate"] {
        let place = Place::new();
        let (plan, error) = (format!("{call}:1:1"), format!("{call} gave "));
        on_gpu_with(&place, &[("CUDA_ON_CPU_FAIL", &plan)], &train("run", &[]))
            .complains(2, &["--device cuda:0", &error]);
        assert!(place.is_empty(), "{call}");
    }
}
