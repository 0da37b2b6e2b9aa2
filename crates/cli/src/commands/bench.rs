//! `ddpm-ip bench`: how fast this machine is.

use crate::args::{self, Settings};
use crate::output::{complain_all, print};
use crate::sink::Sinks;
use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use ddpm_ip::Outcome;
use ddpm_ip::bench::{self, Report, Speed};
use ddpm_ip::config::{ConfigError, Key, Layers, PRESETS, Preset};
use ddpm_ip::evaluate::{self, BenchReport};
use std::fmt::Write;
use std::path::{Path, PathBuf};

const SETTINGS: Settings = Settings(&["model", "diffusion", "perturbation", "train"]);

/// Images per step unless said otherwise.
const BATCH_SIZE: i64 = 16;

/// Images that go through Inception together unless said otherwise.
const EVALUATED_TOGETHER: usize = 32;

pub(crate) fn command() -> Command {
    Command::new("bench")
        .about("Time training and sampling steps, kernel by kernel")
        .long_about(
            "Time training and sampling steps on images of noise, kernel by kernel. Arithmetic is compared with the rate that \
             this machine reaches from its registers. Kernels that only move memory are compared with the rate at which it \
             copies memory; a rate above 100 % comes from caches.\n\n\
             A training step is everything except reading images. A sampling step is one network call without gradients, and \
             its update. Operations are counted for the direct algorithms; Winograd convolution needs 2.25 times fewer.\n\n\
             Save a report with --json > FILE, and compare a later one with it by --compare FILE.",
        )
        .arg(Arg::new("preset").long("preset").value_name("NAME").help("preset whose network is timed [default: digits]"))
        .arg(
            Arg::new("repeats")
                .long("repeats")
                .value_name("N")
                .default_value("5")
                .value_parser(value_parser!(u16).range(1..=999))
                .help("steps to time, after one warm-up step"),
        )
        .arg(
            Arg::new("only")
                .long("only")
                .value_name("TASK")
                .value_parser(["train", "sample", "evaluate"])
                .action(ArgAction::Set)
                .help("time only this; evaluate (features and distances) is not timed otherwise"),
        )
        .arg(args::path("compare", "FILE", "compare with this report of an earlier `bench --json`"))
        .arg(args::switch("quiet", "show no progress"))
        .arg(args::switch("json", "print the report as JSON"))
        .args(args::device_args())
        .args(SETTINGS.args())
        .args_override_self(true)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    if matches.get_one::<String>("only").is_some_and(|only| only == "evaluate") {
        return run_evaluation(matches);
    }
    let preset = match matches.get_one::<String>("preset") {
        Some(name) => Some(Preset::find(name)?),
        None if matches.contains_id("config") => None,
        None => PRESETS.first(),
    };
    let mut layers = Layers::default();
    if let Some(preset) = preset {
        layers.add(preset.table())?;
    }
    layers.set([("train.batch_size", BATCH_SIZE.to_string().as_str())])?;
    let (config, notices) = SETTINGS.resolve(layers, matches)?;
    let earlier = matches.get_one::<PathBuf>("compare").map(|path| read(path)).transpose()?;
    let device = args::device(matches)?;
    let quiet = matches.get_flag("quiet");
    if !quiet {
        complain_all(&notices);
    }
    let only = matches.get_one::<String>("only").map(String::as_str);
    let job = bench::Job {
        config: &config,
        repeats: usize::from(matches.get_one::<u16>("repeats").copied().unwrap_or(5)),
        train: only != Some("sample"),
        sample: only != Some("train"),
    };
    let mut sinks = Sinks::new(quiet, None);
    let measured = bench::run(job, device, &*crate::interrupt::flag()?, &mut |e| sinks.receive(&e));
    sinks.finish();
    let (outcome, mut report) = measured?;
    if outcome == Outcome::Interrupted {
        return Ok(outcome);
    }
    report.preset = preset.map(|p| p.name.to_string());
    print(&if matches.get_flag("json") {
        serde_json::to_string(&report)?
    } else {
        table(&report, earlier.as_ref()).trim_end().to_string()
    })?;
    Ok(outcome)
}

/// Times what `evaluate` computes.
fn run_evaluation(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let settings = SETTINGS.keys().into_iter().filter(|key| args::given(matches, &key.path()).is_some());
    let others = ["preset", "compare", "config", "set"].into_iter().filter(|id| matches.contains_id(id));
    let mut given = settings.map(Key::flag).filter(|flag| flag != "batch-size").chain(others.map(str::to_string));
    if let Some(flag) = given.next() {
        return Err(ConfigError(format!("--{flag} does nothing with --only evaluate: leave it out")).into());
    }
    let batch_size = match args::given(matches, "train.batch_size") {
        None => EVALUATED_TOGETHER,
        Some(text) => text
            .parse()
            .ok()
            .filter(|size| (1..=4096).contains(size))
            .ok_or_else(|| ConfigError(format!("--batch-size {text} is not a number of images from 1 to 4096")))?,
    };
    let device = args::device(matches)?;
    let repeats = usize::from(matches.get_one::<u16>("repeats").copied().unwrap_or(5));
    let mut sinks = Sinks::new(matches.get_flag("quiet"), None);
    let measured =
        evaluate::bench(repeats, batch_size, device, &*crate::interrupt::flag()?, &mut |e| sinks.receive(&e));
    sinks.finish();
    let (outcome, report) = measured?;
    let Some(report) = report else { return Ok(outcome) };
    print(&if matches.get_flag("json") { serde_json::to_string(&report)? } else { evaluation_table(&report) })?;
    Ok(outcome)
}

fn evaluation_table(report: &BenchReport) -> String {
    let mut text = format!("batch {} · {} threads, {}\n", report.batch_size, report.threads, report.isa);
    let peaks = [ddpm_ip::bench::peak_flop_per_sec(), ddpm_ip::bench::peak_bytes_per_sec()];
    section(&mut text, "FID-Inception on 32x32 images", &report.inception, None, peaks);
    let lists = [
        ("Fréchet distance of 2048 columns", &report.frechet_secs),
        ("precision and recall, 10 000 rows of 2048 columns against as many", &report.precision_recall_secs),
    ];
    for (what, secs) in lists {
        let (least, most) = range(secs);
        let median = bench::median(secs);
        let _ = writeln!(text, "\n{what}: {median:.3} s (median of {}; {least:.3} to {most:.3})", secs.len());
    }
    text.trim_end().to_string()
}

fn read(path: &Path) -> anyhow::Result<Report> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the report {}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| {
        let message = format!("{} is not a report of `ddpm-ip bench --json`: {e}", path.display());
        ConfigError(message).into()
    })
}

/// The report for people, beside an earlier one if there is one.
fn table(report: &Report, earlier: Option<&Report>) -> String {
    let mut text = format!(
        "{} · {} parameters, {}x{} · batch {} · {}{}\n{} · {:.0} GFLOP/s {}, {:.1} GB/s of memory\n",
        report.preset.as_deref().unwrap_or("network"),
        report.parameters,
        report.image_size,
        report.image_size,
        report.batch_size,
        precision(report),
        if report.use_checkpoint { ", blocks computed again" } else { "" },
        report.device.clone().unwrap_or_else(|| format!("{} threads, {}", report.threads, report.isa)),
        report.peak_flop_per_sec / 1e9,
        if report.device.is_some() { "in large products" } else { "from registers" },
        report.peak_bytes_per_sec / 1e9,
    );
    if let Some(earlier) = earlier {
        let _ = writeln!(
            text,
            "compared with version {}, {}, batch {}, {}, {} threads, {}",
            earlier.version,
            earlier.preset.as_deref().unwrap_or("a network"),
            earlier.batch_size,
            precision(earlier),
            earlier.threads,
            earlier.isa
        );
    }
    let parts = [
        ("training", &report.train, earlier.and_then(|e| e.train.as_ref())),
        ("sampling", &report.sample, earlier.and_then(|e| e.sample.as_ref())),
    ];
    for (what, speed, before) in parts {
        if let Some(speed) = speed {
            section(&mut text, what, speed, before, [report.peak_flop_per_sec, report.peak_bytes_per_sec]);
        }
    }
    if let Some(bytes) = report.peak_memory_bytes {
        let before = earlier.and_then(|e| e.peak_memory_bytes);
        let change = before.map_or(String::new(), |b| format!(" ({:.2} times)", bytes as f64 / b as f64));
        let _ = writeln!(text, "\npeak memory {:.0} MiB{change}", bytes as f64 / f64::from(1 << 20));
    }
    text
}

fn precision(report: &Report) -> String {
    serde_json::to_value(report.precision).map_or(String::new(), |v| v.as_str().unwrap_or_default().to_string())
}

/// The least and the most.
fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, 0.0), |(least, most), &v| (least.min(v), most.max(v)))
}

fn section(text: &mut String, what: &str, speed: &Speed, before: Option<&Speed>, [peak, bandwidth]: [f64; 2]) {
    let (least, most) = range(&speed.images_per_sec);
    let change = |now: f64, before: f64| format!("  {:5.2} times", now / before);
    let _ = writeln!(
        text,
        "\n{what}: {:.4} images/s (median of {}; {least:.4} to {most:.4}), {:.0} GFLOP/s, {:.0} % of that rate{}",
        speed.median(),
        speed.images_per_sec.len(),
        speed.step_flop / speed.step_secs / 1e9,
        100.0 * speed.step_flop / speed.step_secs / peak,
        before.map_or(String::new(), |b| change(speed.median(), b.median())),
    );
    if let Some([graphs, kernels]) = speed.started {
        let _ =
            writeln!(text, "  in a step {graphs:.0} recorded graph(s) and {kernels:.0} kernel(s) beside are started");
    }
    let width = speed.kernels.iter().map(|k| k.kernel.chars().count()).max().unwrap_or(0).max(14);
    let _ = writeln!(
        text,
        "  {:width$}  {:>6}  {:>9}  {:>6}  {:>8}  {:>6}  {:>6}",
        "kernel", "calls", "ms", "share", "GFLOP/s", "GB/s", "rate"
    );
    let step = speed.profiled_step_secs;
    let mut rest = step;
    for k in &speed.kernels {
        rest -= k.secs;
        let rates = if k.flop_per_sec > 0.0 {
            format!("{:8.0}  {:>6}  {:4.0} %", k.flop_per_sec / 1e9, "", 100.0 * k.flop_per_sec / peak)
        } else {
            format!("{:>8}  {:6.1}  {:4.0} %", "", k.bytes_per_sec / 1e9, 100.0 * k.bytes_per_sec / bandwidth)
        };
        let then = before.and_then(|b| b.kernels.iter().find(|other| other.kernel == k.kernel));
        let _ = writeln!(
            text,
            "  {:width$}  {:6.0}  {:9.3}  {:4.1} %  {rates}{}",
            k.kernel,
            k.calls,
            k.secs * 1e3,
            100.0 * k.secs / step,
            then.map_or(String::new(), |t| change(t.secs, k.secs)),
        );
    }
    let share = 100.0 * rest / step;
    let _ = writeln!(text, "  {:width$}  {:6}  {:9.3}  {share:4.1} %", "everything else", "", rest * 1e3);
}
