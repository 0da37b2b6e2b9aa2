//! `ddpm-ip weights`: weights of feature networks from the network.

use crate::args;
use crate::output::print;
use crate::sink::Sinks;
use anyhow::Context;
use clap::{Arg, ArgMatches, Command, builder::PossibleValuesParser};
use ddpm_ip::config::ConfigError;
use ddpm_ip::weights::{self, Fetched, INCEPTION};
use ddpm_ip::{Event, Outcome};
use std::path::PathBuf;

pub(super) fn command() -> Command {
    let fetch = Command::new("fetch")
        .about("Download the weights of a feature network")
        .long_about(format!(
            "Download the weights of a feature network into the folder where `evaluate` looks for them, and check them by the \
             hash in their name. If a download was interrupted, repeat the command to resume.\n\n\
             inception is {} ({} MB). On a machine without internet access, copy that file into the folder, or give its path \
             with `evaluate --features inception:PATH`.",
            INCEPTION.url,
            INCEPTION.bytes.div_ceil(1_000_000)
        ))
        .arg(
            Arg::new("network")
                .value_name("NETWORK")
                .required(true)
                .value_parser(PossibleValuesParser::new(["inception"]))
                .help("network whose weights to download"),
        )
        .arg(args::path(
            "cache",
            "DIR",
            "folder for cached features and downloaded weights [default: DDPM_IP_CACHE, or ~/.cache/ddpm-ip]",
        ))
        .arg(args::switch("quiet", "show no progress"));
    Command::new("weights")
        .about("Download the weights of the feature network that `evaluate` uses")
        .subcommand_required(true)
        .subcommand(fetch)
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let (_, matches) = matches.subcommand().context("clap asks for a command")?;
    let folder = matches.get_one::<PathBuf>("cache").cloned().or_else(args::cache_dir);
    let folder = folder
        .ok_or_else(|| ConfigError("there is no home folder to download to: name a folder with --cache DIR".into()))?;
    let to = folder.join("weights").join(INCEPTION.name);
    let mut sinks = Sinks::new(matches.get_flag("quiet"), None);
    let mut progress = |done, total| sinks.receive(&Event::Fetching { done, total });
    let fetched = weights::fetch(INCEPTION.url, &to, &mut progress, &*crate::interrupt::flag()?);
    sinks.finish();
    let fetched = fetched?;
    print(&match fetched {
        Fetched::Finished => format!("the weights of inception are in {}", to.display()),
        Fetched::AlreadyThere => format!("the weights of inception are already in {}", to.display()),
        Fetched::Interrupted => "stopped; what was downloaded is kept: repeat the command to resume".into(),
    })?;
    Ok(if fetched == Fetched::Interrupted { Outcome::Interrupted } else { Outcome::Finished })
}
