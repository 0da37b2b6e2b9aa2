//! Devices by name.

use crate::config::ConfigError;
use burn::tensor::Device;

/// The devices this build can use.
pub fn device_names() -> Vec<&'static str> {
    vec!["cpu"]
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
