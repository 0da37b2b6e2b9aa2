//! The command line: what exists, and how it becomes a configuration.

mod reference;
mod settings;

pub(crate) use settings::{Settings, given};

use crate::sink::LogFormats;
use clap::{Arg, ArgAction, ArgMatches, Command};
use ddpm_ip::config::ConfigError;
use std::ffi::OsString;
use std::path::PathBuf;

const AFTER_HELP: &str = "Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 diverged, 130 interrupted.\n\
    Environment: OPENAI_LOGDIR is where training, sampling and nll write without --out; OPENAI_LOG_FORMAT says how \
    training logs (some of stdout, log, csv, json, tensorboard); RAYON_NUM_THREADS sets the number of threads; \
    DDPM_IP_ISA forces an instruction set (portable, avx2, avx512, avx512-bf16).";

/// The whole command line.
pub(crate) fn command() -> Command {
    Command::new("ddpm-ip")
        .version(clap::crate_version!())
        .about("Train and sample diffusion models with input perturbation (DDPM-IP, ICML 2023)")
        .after_help(AFTER_HELP)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(crate::commands::all())
}

/// Reads the command line; ends the program on a mistake, `--help` or `--version`.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> ArgMatches {
    command().get_matches_from(arguments.into_iter().map(kebab_case))
}

/// Flags may be spelled with underscores, as the reference's are.
fn kebab_case(argument: OsString) -> OsString {
    match argument.to_str().filter(|a| a.starts_with("--")) {
        Some(flag) => {
            let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
            (name.replace('_', "-") + value).into()
        }
        None => argument,
    }
}

/// A flag without a value.
pub(crate) fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// A flag with a path.
pub(crate) fn path(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).value_parser(clap::value_parser!(PathBuf)).help(help)
}

/// The folder that the reference's scripts write to, `OPENAI_LOGDIR`.
pub(crate) fn log_dir() -> Option<PathBuf> {
    std::env::var_os("OPENAI_LOGDIR").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// How training logs: as the reference's `OPENAI_LOG_FORMAT` says, if it is set.
pub(crate) fn log_formats() -> Result<LogFormats, ConfigError> {
    std::env::var("OPENAI_LOG_FORMAT").map_or_else(|_| Ok(LogFormats::default()), |text| LogFormats::parse(&text))
}

/// `--device`.
pub(crate) fn device_arg() -> Arg {
    let names = ddpm_ip::device_names();
    Arg::new("device").long("device").default_value("cpu").help(format!("where to compute: {}", names.join(", ")))
}

/// The device asked for.
pub(crate) fn device(matches: &ArgMatches) -> Result<ddpm_ip::Device, ConfigError> {
    ddpm_ip::device(matches.get_one::<String>("device").map_or("cpu", String::as_str))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }

    #[test]
    fn underscores_in_flags_become_dashes_and_values_stay() {
        for (given, expected) in
            [("--image_size", "--image-size"), ("--data_dir=a_b", "--data-dir=a_b"), ("a_b", "a_b"), ("--", "--")]
        {
            assert_eq!(super::kebab_case(given.into()), expected);
        }
    }
}
