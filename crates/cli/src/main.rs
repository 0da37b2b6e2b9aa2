//! The ddpm-ip program.

mod args;
mod commands;
mod interrupt;
mod memory;
mod output;
mod sink;

use ddpm_ip::Error;
use ddpm_ip::data::DataError;
use std::process::ExitCode;

#[global_allocator]
static MEMORY: memory::Speaking = memory::Speaking;

/// Usage or configuration is wrong.
const USAGE: u8 = 2;
/// Training diverged.
const DIVERGED: u8 = 3;

fn main() -> ExitCode {
    let matches = commands::parse(std::env::args_os());
    let run = || ddpm_ip::net::Device::guard(|| commands::run(&matches)).map_err(anyhow::Error::from)?;
    interrupt::save_flag();
    match ddpm_ip::instruction_set().map_err(anyhow::Error::from).and_then(|_| run()) {
        Ok(ddpm_ip::Outcome::Finished) => ExitCode::SUCCESS,
        Ok(ddpm_ip::Outcome::Interrupted) => interrupt::EXIT_CODE.into(),
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("error: {error:#}"));
            exit_code(&error).into()
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::Diverged { .. }) => DIVERGED,
        Some(Error::Config(_)) => USAGE,
        Some(Error::Data(e)) if !matches!(e, DataError::BadImage { .. } | DataError::AllBad { .. }) => USAGE,
        None if error.is::<ddpm_ip::config::ConfigError>() => USAGE,
        _ => 1,
    }
}
