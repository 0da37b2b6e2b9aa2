//! `ddpm-ip completions`: a shell's completion script.

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;
use ddpm_ip::Outcome;

pub(crate) fn command() -> Command {
    Command::new("completions")
        .about("Print a completion script for a shell, such as bash or zsh")
        .arg(Arg::new("shell").value_name("SHELL").required(true).value_parser(value_parser!(Shell)))
}

/// `whole` is the command line to complete.
pub(crate) fn run(matches: &ArgMatches, mut whole: Command) -> anyhow::Result<Outcome> {
    if let Some(shell) = matches.get_one::<Shell>("shell") {
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut whole, "ddpm-ip", &mut script);
        // clap_complete 4.6.11 writes the hyphen of a program's name in two ways, so that bash knows no subcommand's flags.
        let script = String::from_utf8_lossy(&script).replace("ddpm__subcmd__ip", "ddpm__ip");
        crate::output::print(&script)?;
    }
    Ok(Outcome::Finished)
}
