//! Devices by name.

use crate::config::ConfigError;
use ddpm_net::{Chip, Device, Gpu, gpu};
use std::path::Path;

/// What decides the bits of a GPU's results: its kind, its libraries, and whether engines were timed; nothing of the
/// processor.
pub(crate) fn engines(device: Device) -> Option<String> {
    let Device::Cuda(gpu) = device else { return None };
    let timed = if gpu.is_tuned() { ", engines timed" } else { "" };
    Some(format!("{} ({}{timed})", gpu.description().name, versions()))
}

/// What is said when work goes on with other [`engines`] than before.
pub(crate) fn chosen_anew(before: &str) -> String {
    format!(
        "this was started on {before}: cuDNN engines are chosen again, so results agree with the earlier ones only \
         within rounding"
    )
}

fn versions() -> String {
    let libraries = gpu::libraries().unwrap_or_default();
    let libraries: Vec<String> = libraries.iter().map(|l| format!("{} {}", l.name, l.version)).collect();
    libraries.join(", ")
}

/// A GPU in words, with the libraries that serve it; nothing of the processor.
pub(crate) fn describe(device: Device) -> Option<String> {
    let Device::Cuda(gpu) = device else { return None };
    let about = gpu.description();
    let (index, name, gib) = (about.index, &about.name, about.memory as f64 / f64::from(1 << 30));
    Some(format!("cuda:{index}, {name} ({gib:.0} GiB; {})", versions()))
}

/// Where something is computed, in words: a GPU, or the CPU with its threads and instruction set.
pub(crate) fn place(device: Device) -> String {
    if let Some(gpu) = engines(device) {
        return gpu;
    }
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = name.map_or("CPU", |(_, name)| name.trim());
    let isa = instruction_set().unwrap_or_default();
    format!("{} threads of {name} ({isa})", rayon::current_num_threads())
}

/// What this machine can compute on, in lines of text: the processor, each GPU with its memory, the driver, and the
/// libraries with version and path; or what is missing, with what installs it.
///
/// # Errors
/// If `DDPM_IP_ISA` asks for an instruction set that this machine does not have.
pub fn devices() -> Result<Vec<String>, ConfigError> {
    let mut lines = vec![format!("cpu: {} threads, {}", rayon::current_num_threads(), instruction_set()?)];
    let found = match gpu::gpus() {
        Ok(found) => found,
        Err(e) => {
            lines.push(format!("no GPU: {e}"));
            return Ok(lines);
        }
    };
    if found.is_empty() {
        lines.push("no GPU: the driver finds none".into());
    }
    for about in &found {
        let [major, minor] = about.capability;
        lines.push(format!(
            "cuda:{}: {}, {:.1} GiB, compute capability {major}.{minor}, {} multiprocessors",
            about.index,
            about.name,
            about.memory as f64 / f64::from(1 << 30),
            about.multiprocessors
        ));
    }
    if let Ok(([major, minor], path)) = gpu::driver_version() {
        let least = "at least 525.60 for CUDA 12, 580.65 for CUDA 13";
        lines.push(format!("driver: supports CUDA up to {major}.{minor} ({least}), {}", path.display()));
    }
    match gpu::libraries() {
        Ok(all) => lines.extend(all.iter().map(|l| format!("{} {}, {}", l.name, l.version, l.path.display()))),
        Err(e) => lines.push(e.to_string()),
    }
    Ok(lines)
}

/// The instruction set that the CPU kernels use, as in `DDPM_IP_ISA`.
///
/// # Errors
/// If `DDPM_IP_ISA` asks for one that this machine does not have.
pub fn instruction_set() -> Result<&'static str, ConfigError> {
    ddpm_kernels::Isa::selected().map(ddpm_kernels::Isa::name).map_err(|e| ConfigError(e.to_string()))
}

/// Whether the CPU kernels use the tiles of AMX.
pub fn has_tiles() -> bool {
    ddpm_kernels::profile::has_tiles()
}

/// The instruction sets that `DDPM_IP_ISA` may name on this machine, the fastest last.
pub fn instruction_sets() -> Vec<&'static str> {
    ddpm_kernels::Isa::available().map(ddpm_kernels::Isa::name).collect()
}

/// The device of that name: `cpu`, `cuda` or `cuda:0` and so on, `auto`, which is the first GPU where one can be used, or a kind
/// of GPU ([`Chip::names`]), on which memory and engines are known and nothing runs. Compiled kernels are kept in the folder `cache`.
///
/// # Errors
/// An unknown name, or what is missing for a GPU.
pub fn device(name: &str, cache: Option<&Path>) -> Result<Device, ConfigError> {
    let gpu =
        |index| Gpu::get(index, cache).map(Device::Cuda).map_err(|e| ConfigError(format!("--device {name}: {e}")));
    match name.split_once(':') {
        None if name == "cpu" => Ok(Device::Cpu),
        None if name == "cuda" => gpu(0),
        None if name == "auto" => Ok(gpu(0).unwrap_or_default()),
        Some(("cuda", index)) if index.parse::<usize>().is_ok() => gpu(index.parse().unwrap_or_default()),
        _ => {
            let unknown = || {
                let chips: Vec<&str> = Chip::names().collect();
                let chips = chips.join(", ");
                format!(
                    "there is no device {name:?}: use auto, cpu, cuda, cuda:0, cuda:1, …; for train --dry-run also \
                     {chips}"
                )
            };
            let chip = Chip::get(name).ok_or_else(|| ConfigError(unknown()))?;
            chip.map(Device::Chip).map_err(|e| ConfigError(format!("--device {name}: {e}")))
        }
    }
}
