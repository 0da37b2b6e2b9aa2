//! `ddpm-ip info`: what a checkpoint, a data set or a run is.

use crate::args::{self, Settings};
use crate::output::{complain, complain_all, print};
use anyhow::Context;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, value_parser};
use ddpm_ip::config::{ConfigError, Layers};
use ddpm_ip::{Outcome, checkpoint, info};
use std::path::{Path, PathBuf};

const SETTINGS: Settings = Settings(&["model", "data", "sample.network"]);

pub(crate) fn command() -> Command {
    Command::new("info")
        .about("Describe a checkpoint, a data set, a run or this machine's devices")
        .arg(Arg::new("what").value_name("WHAT").required_unless_present("devices").help(
            "a .safetensors or PyTorch file, a checkpoint folder, a run directory, or anything that --data-dir takes: \
             digits, a folder, .npz, IDX",
        ))
        .arg(args::switch("verify", "check all files of a run's checkpoints against their checksums"))
        .arg(args::path("contact-sheet", "PNG", "write a picture of the data set's first images"))
        .arg(
            Arg::new("images")
                .long("images")
                .value_name("N")
                .default_value("100")
                .value_parser(value_parser!(u16).range(1..))
                .help("images on the contact sheet"),
        )
        .arg(args::switch("devices", "list what this machine can compute on: CPU, GPUs, driver and libraries"))
        .arg(args::switch("json", "print the report as JSON"))
        .args(SETTINGS.args())
        .args_override_self(true)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    if matches.get_flag("devices") {
        let lines = ddpm_ip::devices()?;
        print(&if matches.get_flag("json") { serde_json::to_string_pretty(&lines)? } else { lines.join("\n") })?;
        return Ok(Outcome::Finished);
    }
    let what = matches.get_one::<String>("what").context("WHAT is missing")?;
    if matches.get_flag("verify") {
        return verify(Path::new(what), matches.get_flag("json"));
    }
    let mut base = Layers::default();
    // The images' own.
    base.set([("image_size", "0"), ("in_channels", "0")])?;
    let (config, notices) = SETTINGS.resolve(base, matches)?;
    complain_all(&notices);
    let report = info::describe(what, &config)?;
    print(&if matches.get_flag("json") { serde_json::to_string_pretty(&report)? } else { report.to_string() })?;
    if let Some(out) = matches.get_one::<PathBuf>("contact-sheet") {
        let count: usize = matches.get_one::<u16>("images").map_or(100, |&n| n.into());
        let is_given = matches.value_source("images") == Some(ValueSource::CommandLine);
        if let info::Report::Data { images, .. } = &report
            && is_given
            && count > *images
        {
            let message = format!("--images is {count}, but {what} has {images}: use at most {images}");
            return Err(ConfigError(message).into());
        }
        info::contact_sheet(what, &config, out, count)?;
        complain(&format!("wrote {}", out.display()));
    }
    Ok(Outcome::Finished)
}

/// Says of each file of a run, a checkpoint folder or of one file whether it is as it was written.
fn verify(path: &Path, json: bool) -> anyhow::Result<Outcome> {
    let found = checkpoint::verify(path)?;
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    print(&if json { serde_json::to_string_pretty(&found)? } else { lines.join("\n") })?;
    let damaged = found.iter().filter(|file| file.problem.is_some()).count();
    anyhow::ensure!(
        damaged == 0,
        "{damaged} of {} files are damaged: replace them by copies, or use other checkpoints",
        found.len()
    );
    Ok(Outcome::Finished)
}
