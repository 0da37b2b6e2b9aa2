//! Devices by name.

use crate::config::ConfigError;
use ddpm_net::{Device, Gpu};
use std::path::Path;


/// The instruction set that the CPU kernels use, as in `DDPM_IP_ISA`.
///
/// # Errors
/// If `DDPM_IP_ISA` asks for one that this machine does not have.
pub fn instruction_set() -> Result<&'static str, ConfigError> {
    ddpm_kernels::Isa::selected().map(ddpm_kernels::Isa::name).map_err(|e| ConfigError(e.to_string()))
}

/// The instruction sets that `DDPM_IP_ISA` may name on this machine, the fastest last.
pub fn instruction_sets() -> Vec<&'static str> {
    ddpm_kernels::Isa::available().map(ddpm_kernels::Isa::name).collect()
}

/// The device of that name: `cpu`, `cuda` or `cuda:0` and so on, or `auto`, which is the first GPU where one can be used.
/// Compiled kernels are kept in the folder `cache`.
///
/// # Errors
/// An unknown name, or what is missing for a GPU.
pub fn device(name: &str, cache: Option<&Path>) -> Result<Device, ConfigError> {
    let gpu = |index| Gpu::get(index, cache).map(Device::Cuda).map_err(|e| ConfigError(format!("--device {name}: {e}")));
    match name.split_once(':') {
        None if name == "cpu" => Ok(Device::Cpu),
        None if name == "cuda" => gpu(0),
        None if name == "auto" => Ok(gpu(0).unwrap_or_default()),
        Some(("cuda", index)) if index.parse::<usize>().is_ok() => gpu(index.parse().unwrap_or_default()),
        _ => Err(ConfigError(format!("no device {name:?}: known are auto, cpu, cuda and cuda:0, cuda:1, …"))),
    }
}
