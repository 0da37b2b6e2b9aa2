//! `ddpm-ip ema`: averages of other lengths than a run has kept.

use super::evaluate::usual_settings;
use crate::args::{self, Settings};
use crate::output::{complain_all, print};
use crate::sink::Sinks;
use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use ddpm_ip::Outcome;
use ddpm_ip::config::{ConfigError, Layers};
use ddpm_ip::file::quoted;
use ddpm_ip::posthoc::{self, Point, Savings, SweepJob};
use std::path::PathBuf;

const SETTINGS: Settings = Settings(&["sample"]);

pub(super) fn command() -> Command {
    Command::new("ema")
        .about("Make EMAs of any length after training (post-hoc EMA)")
        .long_about(
            "Make EMAs of any length from the snapshots that `train --posthoc-ema` has saved (EDM2, arXiv 2312.02696).\n\n\
             The length of an EMA is the standard deviation of its weighting over training time, as a share of the training \
             (EDM2's sigma_rel): 0.05 to 0.15 is usual. --length writes RUN/ema/length_L_step_N.safetensors, which every \
             command takes as a checkpoint. --sweep draws images with several lengths from the same noise, compares them with \
             real images, and writes RUN/ema/sweep.jsonl and sweep.svg. If a sweep was interrupted, repeat it to resume.",
        )
        .arg(
            Arg::new("run")
                .value_name("RUN")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("run directory that was trained with --posthoc-ema"),
        )
        .arg(
            Arg::new("length")
                .long("length")
                .value_name("LIST")
                .value_delimiter(',')
                .allow_negative_numbers(true)
                .value_parser(value_parser!(f64))
                .required_unless_present("sweep")
                .help("lengths to make, as in 0.1 or 0.05,0.1 [default of --sweep: 0.02 to 0.25, as far as they can be made]"),
        )
        .arg(
            Arg::new("step")
                .long("step")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("training step at which the EMA ends, one of those with snapshots [default: the last]"),
        )
        .arg(args::path("out", "FILE", "the .safetensors file to write, for a single --length").conflicts_with("sweep"))
        .arg(args::switch("sweep", "compare lengths by images drawn with each (--num-samples of them, 1000 if not given)"))
        .arg(
            Arg::new("data-dir")
                .long("data-dir")
                .value_name("TEXT")
                .requires("sweep")
                .help("real images or their statistics, as in `evaluate` [default: the training images]"),
        )
        .arg(
            Arg::new("features")
                .long("features")
                .value_name("NETWORK")
                .requires("sweep")
                .help("feature network, as in `evaluate` [default: the one that fits the images]"),
        )
        .arg(args::switch("quiet", "show no progress"))
        .arg(args::switch("json", "print the report as JSON"))
        .args(args::device_args())
        .args(SETTINGS.args())
        .args_override_self(true)
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let run = matches.get_one::<PathBuf>("run").cloned().context("RUN is missing")?;
    let lengths: Vec<f64> = matches.get_many::<f64>("length").into_iter().flatten().copied().collect();
    let step = matches.get_one::<u64>("step").copied();
    if matches.get_flag("sweep") { sweep(matches, run, lengths, step) } else { make(matches, &run, &lengths, step) }
}

/// Writes averages.
fn make(matches: &ArgMatches, run: &std::path::Path, lengths: &[f64], step: Option<u64>) -> anyhow::Result<Outcome> {
    let (savings, out) = (Savings::new(run), matches.get_one::<PathBuf>("out"));
    if let Some(out) = out {
        let refuse = |message: String| Err(ConfigError(message).into());
        if lengths.len() > 1 {
            return refuse("--out names one file: give one --length, or leave --out out".into());
        }
        if out.extension().is_none_or(|ending| ending != "safetensors") {
            return refuse(format!("--out {}: end it in .safetensors", out.display()));
        }
        if out.exists() {
            return refuse(format!("--out {} exists: choose another file", out.display()));
        }
    }
    let mut made = Vec::new();
    // All of them can be made before the first is written.
    for &length in lengths {
        savings.check(length, step)?;
    }
    for &length in lengths {
        let average = savings.average(length, step)?;
        let path = out.cloned().unwrap_or_else(|| savings.path(&average));
        savings.write(&average, &path)?;
        made.push((average, path));
    }
    if matches.get_flag("json") {
        let entry = |(average, path): &(posthoc::Average, PathBuf)| {
            serde_json::json!({
                "length": average.length, "step": average.step, "profile_error": average.error,
                "out": path.display().to_string(),
            })
        };
        print(&serde_json::json!({ "averages": made.iter().map(entry).collect::<Vec<_>>() }).to_string())?;
        return Ok(Outcome::Finished);
    }
    let mut lines: Vec<String> = made
        .iter()
        .map(|(average, path)| {
            let missed = 100.0 * average.error;
            let (length, step, path) = (average.length, average.step, path.display());
            format!("length {length} at step {step}, {missed:.2} % of its profile missed: {path}")
        })
        .collect();
    if let Some((_, path)) = made.first() {
        let path = quoted(&path.display().to_string());
        let program = super::train::program();
        lines.push(format!("\nnext:\n  {program} sample --checkpoint {path} --num-samples 100 --grid grid.png"));
    }
    print(&lines.join("\n"))?;
    Ok(Outcome::Finished)
}

/// Compares lengths.
fn sweep(matches: &ArgMatches, run: PathBuf, lengths: Vec<f64>, step: Option<u64>) -> anyhow::Result<Outcome> {
    let device = args::device(matches)?;
    let mut layers = Layers::default();
    let own = Savings::new(&run).config()?;
    layers.add(own.to_toml().parse().context("the run's settings")?)?;
    // A run's number of samples is for its files.
    layers.set([("num_samples", "1000")])?;
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    for (key, flag) in [("evaluation.reference", "data-dir"), ("evaluation.features", "features")] {
        layers.set(text(flag).map(|value| (key, value)))?;
    }
    let (config, notices) = SETTINGS.resolve(layers, matches)?;
    let quiet = matches.get_flag("quiet");
    if !quiet {
        complain_all(&notices);
    }
    let job = SweepJob { run, lengths, step, config, settings: usual_settings() };
    let mut sinks = Sinks::new(quiet, None);
    let result = posthoc::sweep(&job, device, &*crate::interrupt::flag()?, &mut |e| sinks.receive(&e));
    sinks.finish();
    let (outcome, points) = result?;
    if matches.get_flag("json") {
        let finished = outcome == Outcome::Finished;
        let outcome = if finished { "finished" } else { "interrupted" };
        print(&serde_json::json!({ "outcome": outcome, "points": points }).to_string())?;
    } else if outcome == Outcome::Finished {
        print(&table(&points, &job))?;
    } else {
        print("stopped; the lengths measured so far are kept: repeat the command to resume")?;
    }
    Ok(outcome)
}

fn table(points: &[Point], job: &SweepJob) -> String {
    let best = points.iter().min_by(|a, b| a.fid.total_cmp(&b.fid)).map(|best| best.length);
    let mut lines = vec!["length   profile missed   distance".to_string()];
    lines.extend(points.iter().map(|point| {
        let mark = if Some(point.length) == best { "  nearest" } else { "" };
        format!("{:<8} {:>12.2} %   {:>8.4}{mark}", point.length, 100.0 * point.error, point.fid)
    }));
    if let Some(point) = points.first() {
        let Point { images, reference, features, step, .. } = point;
        lines.push(format!(
            "\n{images} images of step {step} each, against {reference} by {features}. A difference may be chance: try other \
             seeds (--seed).\ncurve in {}",
            job.run.join("ema/sweep.svg").display()
        ));
    }
    lines.join("\n")
}
