//! Devices by name.

use crate::config::ConfigError;
use ddpm_net::Device;

/// The devices this build can use.
pub fn device_names() -> Vec<&'static str> {
    Device::ALL.map(Device::name).to_vec()
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
    let known = Device::ALL.into_iter().find(|device| device.name() == name);
    let unknown = || format!("no device {name:?} in this build: known are {}", device_names().join(", "));
    known.ok_or_else(|| ConfigError(unknown()))
}
