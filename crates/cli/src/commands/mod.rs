//! The commands, a file each.

mod bench;
mod completions;
mod info;
mod predict;
mod sample;
mod train;

use clap::{ArgMatches, Command};
use ddpm_ip::Outcome;

/// All commands.
pub(crate) fn all() -> [Command; 6] {
    [train::command(), sample::command(), predict::command(), info::command(), bench::command(), completions::command()]
}

/// Runs the one that was asked for.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    match matches.subcommand() {
        Some(("train", m)) => train::run(m),
        Some(("sample", m)) => sample::run(m),
        Some(("predict", m)) => predict::run(m),
        Some(("info", m)) => info::run(m),
        Some(("bench", m)) => bench::run(m),
        Some(("completions", m)) => completions::run(m),
        _ => unreachable!("clap asks for a known command"),
    }
}

/// The program as the user called it.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "ddpm-ip".into())
}
