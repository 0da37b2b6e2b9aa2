//! `ddpm-ip report`: runs as a page.

use crate::args;
use crate::output::print;
use clap::{Arg, ArgMatches, Command, value_parser};
use ddpm_ip::{Outcome, report};
use std::path::{Path, PathBuf};

pub(super) fn command() -> Command {
    Command::new("report")
        .about("Write one HTML page that shows how runs went")
        .long_about(
            "Write one HTML page that shows how runs went: loss by quarter of t, norm of the gradient, speed, sample grids \
             over time, distances, curves of `bias` (from bias.json in the run directory or in a folder in it), settings that \
             differ from the nearest preset, machines and versions. The page is one file and needs no network. A run may be \
             training meanwhile.",
        )
        .arg(
            Arg::new("runs")
                .value_name("RUN")
                .help("run directories")
                .required(true)
                .num_args(1..)
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(args::path("out", "FILE", "the page [default: report.html in the run directory; with several runs, here]"))
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let runs: Vec<PathBuf> = matches.get_many("runs").into_iter().flatten().cloned().collect();
    let out = matches.get_one::<PathBuf>("out").cloned().unwrap_or_else(|| match &runs[..] {
        [run] => run.join("report.html"),
        _ => Path::new("report.html").to_path_buf(),
    });
    report::write(&runs, &out)?;
    print(&format!("wrote {}", out.display()))?;
    Ok(Outcome::Finished)
}
