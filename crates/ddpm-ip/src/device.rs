//! Devices by name.

use crate::config::ConfigError;
use burn::tensor::Device;

/// The devices this build can use.
pub fn device_names() -> Vec<&'static str> {
    vec!["cpu"]
}

/// Settings of the process that make long work faster: for programs to call once, at their beginning.
pub fn prepare_process() {
    ddpm_kernels::keep_freed_memory();
}

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

/// The device of that name.
///
/// # Errors
/// A name that this build does not know.
pub fn device(name: &str) -> Result<Device, ConfigError> {
    match name {
        "cpu" => Ok(Device::flex()),
        _ => Err(ConfigError(format!("no device {name:?} in this build: known are {}", device_names().join(", ")))),
    }
}
