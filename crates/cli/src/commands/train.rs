//! `ddpm-ip train`: a run, from the beginning or from where it stopped.

use super::program;
use crate::args::{self, Settings};
use crate::output::{complain, print};
use crate::sink::{RunFiles, Seen, Sinks};
use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use ddpm_ip::checkpoint::{self, Progress, Store};
use ddpm_ip::config::{Config, Layers, NetworkConfig, PRESETS, Preset};
use ddpm_ip::model::Unet;
use ddpm_ip::{Event, Outcome};
use std::path::{Path, PathBuf};

const SETTINGS: Settings = Settings(&["model", "diffusion", "perturbation", "data", "train"]);

pub(crate) fn command() -> Command {
    let presets: Vec<String> = PRESETS.iter().map(|p| format!("  {:14} {}", p.name, p.about)).collect();
    Command::new("train")
        .about("Train a diffusion model with input perturbation")
        .long_about(format!(
            "Train a diffusion model with input perturbation. The same command again resumes a run that was stopped.\n\n\
             Settings: preset < --config < --set < flag. Without --data-dir and --config the preset is digits; with them \
             settings begin at the reference's defaults. Sampling settings of the grids: --set sample.KEY=VALUE.\n\n\
             Presets:\n{}",
            presets.join("\n")
        ))
        .arg(Arg::new("preset").long("preset").value_name("NAME").help("recipe to begin from (see --help)"))
        .arg(args::path("out", "DIR", "run directory [default: runs/ and the name of the preset, --config file or data]"))
        .arg(args::switch("dry-run", "check settings and data, show them and stop"))
        .arg(args::switch("quiet", "no progress"))
        .arg(args::switch("json", "report as JSON"))
        .arg(args::device_arg())
        .args(SETTINGS.args())
        .args_override_self(true)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let preset = match matches.get_one::<String>("preset") {
        Some(name) => Some(Preset::find(name)?),
        None if matches.contains_id("config") || matches.contains_id("data.data_dir") => None,
        None => PRESETS.first(),
    };
    let mut layers = Layers::default();
    if let Some(preset) = preset {
        layers.add(preset.table())?;
    }
    let (config, notices) = SETTINGS.resolve(layers, matches)?;
    let device = args::device(matches)?;
    let out = match matches.get_one::<PathBuf>("out") {
        Some(out) => out.clone(),
        None => Path::new("runs").join(run_name(preset, matches, &config)),
    };
    if matches.get_flag("dry-run") {
        let config = ddpm_ip::train::resolve(&config)?;
        let parameters = Unet::new(NetworkConfig::new(&config.model, config.diffusion.variance)?).parameter_count();
        if matches.get_flag("json") {
            print(&serde_json::json!({ "run": out, "parameters": parameters, "config": config }).to_string())?;
            return Ok(Outcome::Finished);
        }
        print(&format!(
            "# would train {parameters} parameters into {}\n\n{}",
            out.display(),
            config.to_toml().trim_end()
        ))?;
        return Ok(Outcome::Finished);
    }
    let mut sinks = Sinks::new(matches.get_flag("quiet"), Some(RunFiles::new(&out)));
    for notice in notices {
        sinks.receive(&Event::Notice(notice));
    }
    let outcome = ddpm_ip::train::train(&config, &out, &device, Vec::new(), crate::interrupt::flag()?, &mut |e| {
        sinks.receive(&e);
    });
    let seen = sinks.finish();
    let outcome = outcome?;
    print(&if matches.get_flag("json") {
        report(outcome, &out, &seen)?.to_string()
    } else {
        summary(outcome, &out, &seen, config.train.lr_anneal_steps == 0 && config.train.steps > 0)?
    })?;
    if let (Outcome::Interrupted, false) = (outcome, matches.get_flag("quiet")) {
        complain("interrupted: the same command goes on from there");
    }
    Ok(outcome)
}

/// What the run directory is called if nobody says.
fn run_name(preset: Option<&Preset>, matches: &ArgMatches, config: &Config) -> String {
    let stem = |path: &Path| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let file = matches.get_many::<PathBuf>("config").and_then(Iterator::last);
    let name = preset.map(|p| p.name.to_string());
    name.or_else(|| file.and_then(|f| stem(f)))
        .or_else(|| stem(Path::new(&config.data.data_dir)))
        .unwrap_or_else(|| "run".into())
}

/// The run's newest checkpoint and how far it had come.
fn newest(out: &Path) -> anyhow::Result<(PathBuf, Progress)> {
    let (_, path) = Store::new(out).newest()?.context("the run directory has no checkpoint")?;
    let progress = checkpoint::progress(&path)?;
    Ok((path, progress))
}

fn report(outcome: Outcome, out: &Path, seen: &Seen) -> anyhow::Result<serde_json::Value> {
    let (checkpoint, progress) = newest(out)?;
    Ok(serde_json::json!({
        "outcome": if outcome == Outcome::Finished { "finished" } else { "interrupted" },
        "run": out,
        "step": progress.step,
        "images": progress.images,
        "elapsed_secs": progress.elapsed_secs,
        "loss": seen.loss,
        "images_per_sec": seen.images_per_sec,
        "grid": seen.grid,
        "checkpoint": checkpoint,
    }))
}

/// What was done, where it lies, and what to type next.
fn summary(outcome: Outcome, out: &Path, seen: &Seen, by_steps: bool) -> anyhow::Result<String> {
    let (checkpoint, progress) = newest(out)?;
    let Progress { step, images, elapsed_secs, .. } = progress;
    let mut lines = vec![format!("{step} steps, {images} images in {elapsed_secs:.0} s of training\n")];
    let mut place = |what: &str, path: &Path| lines.push(format!("  {what:12} {}", path.display()));
    if let Some(grid) = &seen.grid {
        place("samples", grid);
    }
    place("checkpoint", &checkpoint);
    place("logs", &out.join("progress.csv"));
    place("settings", &out.join("config.toml"));
    let (program, run) = (program(), quoted(&out.display().to_string()));
    lines.push("\nnext:".into());
    lines.push(format!("  {program} sample --checkpoint {run} --num-samples 100 --grid grid.png"));
    if outcome == Outcome::Finished && by_steps {
        lines.push(format!("  {program} {} --steps {}", without_steps(std::env::args().skip(1)).join(" "), 2 * step));
    }
    lines.push(format!("  {program} info {run}"));
    Ok(lines.join("\n"))
}

/// The command line as typed, without `--steps N`.
fn without_steps(mut words: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if word == "--steps" {
            words.next();
        } else if !word.starts_with("--steps=") {
            kept.push(quoted(&word));
        }
    }
    kept
}

/// As a shell wants it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
