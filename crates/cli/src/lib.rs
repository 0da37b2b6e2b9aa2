//! The ddpm-ip program as a library: [`main`] is the program, and [`host`] runs its commands within another one.

mod args;
mod commands;
mod curve;
pub mod host;
mod interrupt;
pub mod memory;
#[cfg(feature = "mpi")]
mod mpi;
mod output;
mod ranks;
mod sink;
mod watch;

pub use commands::{evaluation, sampling};

use ddpm_ip::Error;
use ddpm_ip::data::DataError;
use std::ffi::OsString;

/// Usage or configuration is wrong.
const USAGE: u8 = 2;
/// Training diverged.
const DIVERGED: u8 = 3;

/// Runs a command line, the program's name first, in a terminal. The result is the exit code: 0 done, 1 failed, 2 usage or
/// configuration, 3 diverged, 130 interrupted. A mistake in the command line, `--help` and `--version` end the process.
pub fn main(words: impl IntoIterator<Item = OsString>) -> u8 {
    let matches = commands::parse(words);
    let run = || ddpm_ip::net::Device::guard(|| commands::run(&matches)).map_err(anyhow::Error::from)?;
    interrupt::save_flag();
    let joined = || ranks::join(matches.subcommand_name().unwrap_or_default());
    let result = ddpm_ip::instruction_set().map_err(anyhow::Error::from).and_then(|_| Ok(joined()?));
    let result = result.and_then(|works| if works { run() } else { Ok(ddpm_ip::Outcome::Finished) });
    let result = ranks::conclude(result);
    let code = exit_code_of(result);
    ranks::leave();
    // Launchers end all processes at once where one fails: the first has to have said why.
    if ranks::speaks() { code } else { 0 }
}

/// Says what went wrong, and gives the exit code.
fn exit_code_of(result: anyhow::Result<ddpm_ip::Outcome>) -> u8 {
    match result {
        Ok(ddpm_ip::Outcome::Finished) => 0,
        Ok(ddpm_ip::Outcome::Interrupted) => interrupt::EXIT_CODE,
        Err(error) if output::is_broken_pipe(&error) => 0,
        Err(error) => {
            output::complain(&format!("error: {error:#}"));
            exit_code(&error)
        }
    }
}

/// The exit code of an error.
fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::Diverged { .. }) => DIVERGED,
        Some(Error::Config(_)) => USAGE,
        Some(Error::Data(e)) if !matches!(e, DataError::BadImage { .. } | DataError::AllBad { .. }) => USAGE,
        None if error.is::<ddpm_ip::config::ConfigError>() => USAGE,
        _ => 1,
    }
}
