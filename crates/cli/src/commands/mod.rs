//! The commands, a file each.

mod bench;
mod completions;
mod convert;
mod evaluate;
mod info;
mod nll;
mod predict;
mod prepare;
mod presets;
mod sample;
mod train;
mod weights;

use clap::{ArgMatches, Command};
use ddpm_ip::Outcome;

/// All commands.
pub(crate) fn all() -> Vec<Command> {
    let train = train::KINDS.iter().map(train::command);
    let sample = sample::KINDS.iter().map(sample::command);
    let others = [
        nll::command(),
        evaluate::evaluate_command(),
        evaluate::statistics_command(),
        weights::command(),
        predict::command(),
        prepare::command(),
        convert::command(),
        info::command(),
        presets::command(),
        bench::command(),
        completions::command(),
    ];
    train.chain(sample).chain(others).collect()
}

/// Runs the one that was asked for.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let Some((name, m)) = matches.subcommand() else { unreachable!("clap asks for a command") };
    if let Some(kind) = train::KINDS.iter().find(|kind| kind.name == name) {
        return train::run(kind, m);
    }
    if let Some(kind) = sample::KINDS.iter().find(|kind| kind.name == name) {
        return sample::run(kind, m);
    }
    match name {
        "nll" => nll::run(m),
        "evaluate" => evaluate::evaluate(m),
        "statistics" => evaluate::statistics(m),
        "weights" => weights::run(m),
        "predict" => predict::run(m),
        "prepare" => prepare::run(m),
        "convert" => convert::run(m),
        "info" => info::run(m),
        "presets" => presets::run(m),
        "bench" => bench::run(m),
        "completions" => completions::run(m),
        _ => unreachable!("clap asks for a known command"),
    }
}

/// The program as the user called it.
fn program() -> String {
    words().next().unwrap_or_else(|| "ddpm-ip".into())
}

/// The command line, for people.
fn words() -> impl Iterator<Item = String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned())
}
