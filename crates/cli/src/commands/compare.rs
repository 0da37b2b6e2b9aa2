//! `ddpm-ip compare`: variants trained, sampled, measured and shown on a page.

use super::evaluate::usual_settings;
use crate::args;
use crate::output::{complain, print};
use crate::sink::{RunFiles, Sinks};
use clap::{Arg, ArgMatches, Command, value_parser};
use ddpm_ip::compare::{Job, Plan, run as compare};
use ddpm_ip::config::ConfigError;
use ddpm_ip::{Event, Outcome};
use std::path::PathBuf;

const PLAN: &str = "A plan is a TOML file:\n\n  \
    preset = \"digits\"                 # and config = \"FILE\", both optional\n  \
    seeds = [0, 1, 2]                  # of training, for every variant\n  \
    real = \"HELD-OUT IMAGES\"           # optional: their distance stands beside those of samples\n  \
    [settings]                         # for all variants, by section\n  \
    train.steps = 2000\n  \
    [[variant]]\n  \
    name = \"baseline\"\n  \
    settings.perturbation.gamma = 0\n  \
    [[variant]]\n  \
    name = \"ip\"                        # may have seeds of its own\n  \
    settings.perturbation.gamma = 0.1\n  \
    [[variant]]\n  \
    name = \"mine\"\n  \
    run = \"runs/mine\"                  # a run that is there already\n  \
    [[sample]]                         # each variant is drawn from in each of these ways\n  \
    sampler = \"ddim\"\n  \
    steps = [10, 20, 100]\n  \
    images = 1000\n  \
    settings.sample.eta = 0.5          # optional\n  \
    [bias]                             # optional: instruments for exposure bias\n  \
    sampler = \"ddim\"\n  \
    steps = 20\n  \
    images = 256";

pub(super) fn command() -> Command {
    Command::new("compare")
        .about("Train, sample and measure the variants of a plan, and write one page about them")
        .long_about(
            "Train the variants of a plan that are not trained yet, draw from each in several ways, measure how close the samples \
             are to real images, and write one HTML page: distances by steps with intervals over seeds, exposure bias, samples \
             from the same noise side by side, and what `report` shows. The same command resumes an interrupted comparison and \
             adds what a plan has more than before.",
        )
        .after_help(PLAN)
        .arg(
            Arg::new("plan")
                .value_name("PLAN")
                .help("a TOML file, see below; or run directories, to be sampled by ddim in 10, 20 and 50 steps, by ddpm in 50")
                .required(true)
                .num_args(1..)
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(args::path("out", "DIR", "folder for runs, samples, results and the page [default: the plan's name without .toml]"))
        .arg(args::switch("quiet", "show no progress"))
        .args(args::device_args())
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let given: Vec<PathBuf> = matches.get_many("plan").into_iter().flatten().cloned().collect();
    let out = matches.get_one::<PathBuf>("out").cloned();
    let job = match &given[..] {
        [path] if !path.is_dir() => {
            let out = out.unwrap_or_else(|| path.with_extension(""));
            if out == *path {
                return Err(
                    ConfigError(format!("{}: end the plan's name in .toml, or give --out", path.display())).into()
                );
            }
            let base = path.parent().unwrap_or(path).to_path_buf();
            Job { plan: Plan::read(path)?, base, out, settings: usual_settings() }
        }
        runs => {
            if let Some(file) = runs.iter().find(|path| path.is_file()) {
                let message = format!("{} is a file: give one plan, or run directories", file.display());
                return Err(ConfigError(message).into());
            }
            let out = out.unwrap_or_else(|| PathBuf::from("comparison"));
            Job { plan: Plan::of_runs(runs)?, base: PathBuf::new(), out, settings: usual_settings() }
        }
    };
    let (device, formats) = (args::device(matches)?, args::log_formats()?);
    let quiet = matches.get_flag("quiet");
    let mut sinks = Sinks::new(quiet, None);
    let stop = &*crate::interrupt::flag()?;
    let outcome = compare(&job, device, stop, &mut |event| {
        if let Event::Enters(run) = &event {
            sinks.log_to(RunFiles::new(run, formats.clone()));
        }
        sinks.receive(&event);
    });
    sinks.finish();
    let outcome = outcome?;
    print(&format!("wrote {}", job.out.join("index.html").display()))?;
    if let (Outcome::Interrupted, false) = (outcome, quiet) {
        complain("interrupted: the same command resumes it");
    }
    Ok(outcome)
}
