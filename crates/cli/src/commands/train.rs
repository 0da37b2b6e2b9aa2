//! `ddpm-ip train`: a run, from the beginning or from where it stopped.

use super::evaluate::usual_settings;
use super::sample::settings_and_remark;
use crate::args::{self, Settings};
use crate::curve::curve;
use crate::output::{complain, complain_all, print};
use crate::sink::{RunFiles, Seen, Sinks};
use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use ddpm_ip::checkpoint::{self, Progress, Store};
use ddpm_ip::config::{Arch, Config, Layers, PRESETS, Preset};
use ddpm_ip::convolutions::{self, Choice};
use ddpm_ip::data::Fit;
use ddpm_ip::evaluate::EvaluationHook;
use ddpm_ip::file::quoted;
use ddpm_ip::memory;
use ddpm_ip::train::{Hook, RunOptions};
use ddpm_ip::words::{grouped, time};
use ddpm_ip::{Device, Event, Outcome};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What is trained by one of the commands.
pub(super) struct Kind {
    pub(super) name: &'static str,
    alias: &'static str,
    about: &'static str,
    pub(super) settings: Settings,
    /// What the reference's script of this kind has for defaults where they are not those of all; a preset goes before.
    defaults: &'static str,
    /// What makes it this kind, whatever a preset says.
    always: &'static str,
}

/// `train`, and the commands that train other networks.
pub(super) const KINDS: [Kind; 3] = [
    Kind {
        name: "train",
        alias: "image_train",
        about: "Train a diffusion model with input perturbation",
        settings: Settings(&["model", "diffusion", "perturbation", "data", "train", "evaluation", "sample.network"]),
        defaults: "",
        always: "",
    },
    Kind {
        name: "classifier-train",
        alias: "classifier_train",
        about: "Train a classifier on noised images, for classifier guidance",
        settings: Settings(&[
            "model.image_size",
            "model.in_channels",
            "classifier",
            "diffusion",
            "data",
            "train",
            "sample.network",
        ]),
        defaults: "[data]\nrandom_crop = true\n\
                   [train]\nsteps = 150000\nlr = 3e-4\nbatch_size = 4\nlog_interval = 10",
        always: "[model]\narch = 'classifier'\n[perturbation]\ngamma = 0\n[train]\nema_rate = []\ngrid_images = 0",
    },
    Kind {
        name: "super-res-train",
        alias: "super_res_train",
        about: "Train a super-resolution model",
        settings: Settings(&["model", "diffusion", "perturbation", "data", "train"]),
        defaults: "[model]\nimage_size = 256\nsmall_size = 64\n[train]\nlog_interval = 10",
        always: "[model]\narch = 'superres'",
    },
];

pub(super) fn command(kind: &Kind) -> Command {
    let presets: Vec<String> = PRESETS.iter().map(|p| format!("  {:14} {}", p.name, p.about)).collect();
    let (default, presets) = match kind.defaults {
        "" => (
            "Without --preset, --data-dir and --config, the preset is digits. With --data-dir or --config alone, \
             settings start",
            presets.join("\n"),
        ),
        _ => ("Without --preset, settings start", presets.join("\n")),
    };
    let command = Command::new(kind.name)
        .alias(kind.alias)
        .about(kind.about)
        .long_about(format!(
            "{}. If a run was stopped, repeat its command to resume it.\n\n\
             Later settings override earlier ones: preset < --config < --set < flag. {default} from the defaults of the \
             reference, github.com/forever208/DDPM-IP. Use --set sample.KEY=VALUE for the sampling settings of the \
             grids.\n\nPresets:\n{presets}",
            kind.about
        ));
    command
        .arg(Arg::new("preset").long("preset").value_name("NAME").help("preset to start from; `--help` lists them"))
        .arg(args::path(
            "out",
            "DIR",
            "run directory [default: in runs/, named after the preset, the --config file or the data]",
        ))
        .arg(args::switch(
            "dry-run",
            "check settings and data, show them and the memory they need, and stop; --device may then name a GPU that this \
             machine lacks (a100, h100, h200, b200, rtx3090, rtx4090, rtx5090), for which cuDNN plans",
        ))
        .arg(args::switch("ignore-memory-limit", "train even if the machine seems to have too little memory"))
        .arg(
            Arg::new("batch-size-per-rank")
                .long("batch-size-per-rank")
                .value_name("N")
                .value_parser(clap::value_parser!(usize))
                .conflicts_with("train.batch_size")
                .help("images of a step for each of several processes, in place of --batch-size for all of them"),
        )
        .arg(args::switch("quiet", "show no progress"))
        .arg(args::switch("json", "print the report as JSON"))
        .args(args::device_args())
        .args(kind.settings.args())
        .args_override_self(true)
}

/// Settings of a call, and remarks on them.
fn resolve(kind: &Kind, preset: Option<&Preset>, matches: &ArgMatches) -> anyhow::Result<(Config, Vec<String>)> {
    let mut layers = Layers::default();
    layers.add(kind.defaults.parse().context("the defaults of a command")?)?;
    if let Some(preset) = preset {
        layers.add(preset.table())?;
    }
    layers.add(kind.always.parse().context("the settings of a command")?)?;
    // What a run begins from has a network, and a process for which it was trained.
    for begin in ["train.init_from", "train.resume_checkpoint"] {
        if let Some(path) = args::given(matches, begin).filter(|path| !path.is_empty()) {
            let network = args::given(matches, "sample.network").unwrap_or_default();
            // What a run began from may be gone when it goes on; its own checkpoint has the settings.
            let run = matches.get_one::<PathBuf>("out").filter(|_| !Path::new(path).exists());
            let own = run.and_then(|run| newest(run).ok()).map(|(checkpoint, _)| checkpoint);
            let from = own.as_deref().unwrap_or(Path::new(path));
            let (mut own, _) = settings_and_remark(from, network, matches, &layers)?;
            let goes_on = begin == "train.resume_checkpoint" && own.contains_key("train");
            if !goes_on {
                own.retain(|section, _| ["model", "classifier", "diffusion"].contains(&section));
            }
            layers.add(own)?;
            if goes_on {
                // A run of ours goes on as it was, but for where it began.
                layers.set([("init_from", ""), ("resume_checkpoint", "")])?;
            }
        }
    }
    let (mut config, notices) = kind.settings.resolve(layers, matches)?;
    if let Some(per_rank) = matches.get_one::<usize>("batch-size-per-rank") {
        config.train.batch_size = per_rank * crate::ranks::ranks().count();
    }
    if config.data.fit == Fit::Pad && args::given(matches, "data.random_crop").is_none() {
        config.data.random_crop = false;
    }
    Ok((config, notices))
}

pub(super) fn run(kind: &Kind, matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let preset = match matches.get_one::<String>("preset") {
        Some(name) => Some(Preset::find(name)?),
        None if !kind.defaults.is_empty() => None,
        None if matches.contains_id("config") || matches.contains_id("data.data_dir") => None,
        None => PRESETS.first(),
    };
    let (config, mut notices) = resolve(kind, preset, matches)?;
    let dry = matches.get_flag("dry-run");
    let device = if dry { args::device_or_chip(matches)? } else { args::device(matches)? };
    let out = match matches.get_one::<PathBuf>("out").cloned().or_else(args::log_dir) {
        Some(out) => out,
        None => Path::new("runs").join(run_name(kind, preset, matches, &config)),
    };
    let formats = args::log_formats()?;
    notices.extend(begins_anew(kind, matches, &out));
    if dry {
        let mut config = ddpm_ip::train::resolve(&config)?;
        config.settle(device, None);
        notices.extend(ddpm_ip::train::remarks(&config)?);
        complain_all(&notices);
        dry_run(&config, &out, device, matches.get_flag("json"))?;
        if device != Device::Cpu
            && !matches.get_flag("ignore-memory-limit")
            && let Some(remark) = ddpm_ip::train::check_memory(&config, device)?
        {
            complain(&remark);
        }
        return Ok(Outcome::Finished);
    }
    let ranks = crate::ranks::ranks();
    let leads = ranks.leads();
    let save = crate::interrupt::save_flag();
    let options = RunOptions { device, ignore_memory_limit: matches.get_flag("ignore-memory-limit"), save, ranks };
    if !leads {
        let mut own = |event| {
            if let Event::Warning(text) = event {
                crate::ranks::say(&text);
            }
        };
        let stop = crate::interrupt::flag()?;
        return Ok(ddpm_ip::train::train(&config, &out, options, Vec::new(), &stop, &mut own)?);
    }
    let quiet = matches.get_flag("quiet") || !formats.terminal;
    let mut sinks = Sinks::new(quiet, Some(RunFiles::new(&out, formats)));
    for notice in notices {
        sinks.receive(&Event::Notice(notice));
    }
    let stop = &*crate::interrupt::flag()?;
    let mut emit = |e| sinks.receive(&e);
    let evaluation = usual_settings();
    let hook = EvaluationHook::new(&config, &out, &evaluation, device, stop, &mut emit);
    let outcome = hook.and_then(|hook| {
        let hooks = hook.into_iter().map(|hook| Box::new(hook) as Box<dyn Hook>).collect();
        ddpm_ip::train::train(&config, &out, options, hooks, stop, &mut emit)
    });
    let seen = sinks.finish();
    let outcome = outcome?;
    print(&if matches.get_flag("json") {
        report(outcome, &out, &seen)?.to_string()
    } else {
        summary(outcome, &out, &seen, &config)?
    })?;
    if let (Outcome::Interrupted, false) = (outcome, quiet) {
        complain("interrupted: repeat the command to resume");
    }
    Ok(outcome)
}

/// Shows what a run would be and take.
fn dry_run(config: &Config, out: &Path, device: Device, json: bool) -> anyhow::Result<()> {
    let parameters = ddpm_ip::train::parameter_count(config)?;
    let [training, data] = ddpm_ip::train::memory(config, device)?;
    let samples = config.model.arch != Arch::Classifier;
    let sampling = samples.then(|| memory::of_sampling(config, device)).transpose()?;
    let on_chip = match device {
        Device::Chip(chip) => {
            let sampling = if samples { convolutions::of_sampling(config, device)? } else { Vec::new() };
            Some((chip, convolutions::of_training(config, device)?, sampling))
        }
        _ => None,
    };
    if json {
        let memory = serde_json::json!({ "training": training, "data": data, "sampling": sampling });
        let run = out.display().to_string();
        let mut all = serde_json::json!({ "run": run, "parameters": parameters, "memory": memory, "config": config });
        if let Some([savings, bytes]) = savings(config, parameters) {
            all["posthoc_ema"] = serde_json::json!({ "savings": savings, "bytes_each": bytes });
        }
        if let Some((chip, training, sampling)) = on_chip {
            let gpu = serde_json::json!({ "name": chip.full_name(), "bytes": chip.memory(), "cudnn": chip.cudnn() });
            all["gpu"] = gpu;
            all["convolutions"] = serde_json::json!({ "training": training, "sampling": sampling });
        }
        return print(&all.to_string());
    }
    let mut text = format!("# would train {parameters} parameters into {}\n", out.display());
    if let Some((chip, training, sampling)) = &on_chip {
        let gib = chip.memory() >> 30;
        let _ = writeln!(text, "# on {} ({gib} GiB), as cuDNN {} plans for it", chip.full_name(), chip.cudnn());
        text += &engines("a training step", training);
        text += &engines("a sampling step", sampling);
    }
    let micro = config.train.microbatch_size();
    let beside = if device == Device::Cpu { "the images beside it" } else { "the images beside it, in main memory" };
    let steps = [
        (format!("a training step of {micro} images at once"), Some(&training)),
        (beside.into(), Some(&data)),
        (format!("a sampling step of {} images", config.sample.batch_size), sampling.as_ref()),
    ];
    for (what, memory) in steps {
        let Some(memory) = memory else { continue };
        let mib = |bytes: usize| format!("{:9.1} MiB", bytes as f64 / f64::from(1 << 20));
        let _ = writeln!(text, "#\n# memory of {what}");
        for part in &memory.parts {
            let _ = writeln!(text, "#   {:40} {}", part.name, mib(part.bytes));
        }
        let _ = writeln!(text, "#   {:40} {}", "all", mib(memory.total()));
    }
    if let Some([savings, bytes]) = savings(config, parameters) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (interval, each) = (config.train.posthoc_ema_interval, mib(bytes));
        let all = match savings {
            0 => String::new(),
            n => format!(", {n} times: {:.1} MiB on disk", mib(n * bytes)),
        };
        let _ = writeln!(text, "#\n# EMAs of --posthoc-ema: {each:.1} MiB into ema/ every {interval} steps{all}");
    }
    print(&format!("{text}\n{}", config.to_toml().trim_end()))
}

/// How often a run saves its averages by power functions, 0 if its end is not known, and the bytes of each time; none if it
/// keeps none.
fn savings(config: &Config, parameters: usize) -> Option<[u64; 2]> {
    let train = &config.train;
    let bytes = 2 * (train.posthoc_ema.len() * parameters) as u64;
    (bytes > 0).then(|| [train.last_step().map_or(0, |last| last.div_ceil(train.posthoc_ema_interval)), bytes])
}

/// A line about the engines of a step's convolutions.
fn engines(step: &str, choices: &[Choice]) -> String {
    let Some(largest) = choices.iter().map(|choice| choice.workspace).max() else { return String::new() };
    let count = |which: fn(&Choice) -> bool| choices.iter().filter(|choice| which(choice)).count();
    format!(
        "#   {step} has {} convolutions of cuDNN's: {} compiled for it, {} with copies of their operands; the largest \
         workspace is {:.1} MiB\n",
        choices.len(),
        count(|choice| choice.compiled),
        count(|choice| choice.copies),
        largest as f64 / f64::from(1 << 20)
    )
}

/// What is said where a run's own settings begin another run.
fn begins_anew(kind: &Kind, matches: &ArgMatches, out: &Path) -> Option<String> {
    let file = matches.get_many::<PathBuf>("config")?.next_back()?;
    let run = file.parent().filter(|run| file.ends_with("config.toml") && run.join("checkpoints").is_dir())?;
    let same = run.canonicalize().ok() == out.canonicalize().ok();
    let run = if run == Path::new("") { Path::new(".") } else { run };
    (!same && Store::new(out).newest().ok()?.is_none()).then(|| {
        format!(
            "this starts a new run in {}; to resume the run that has these settings, use `ddpm-ip {} --config {} --out {}`",
            out.display(),
            kind.name,
            quoted(&file.display().to_string()),
            quoted(&run.display().to_string())
        )
    })
}

/// What the run directory is called if nobody says.
fn run_name(kind: &Kind, preset: Option<&Preset>, matches: &ArgMatches, config: &Config) -> String {
    let stem = |path: &Path| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let file = matches.get_many::<PathBuf>("config").and_then(Iterator::last);
    let name = preset.map(|p| p.name.to_string());
    let name = name
        .or_else(|| file.and_then(|f| stem(f)))
        .or_else(|| stem(Path::new(&config.data.data_dir)))
        .unwrap_or_else(|| "run".into());
    match kind.name.strip_suffix("-train") {
        Some(what) => format!("{name}-{what}"),
        None => name,
    }
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
        "run": out.display().to_string(),
        "step": progress.step,
        "images": progress.images,
        "elapsed_secs": progress.elapsed_secs,
        "loss": seen.loss,
        "images_per_sec": seen.images_per_sec,
        "best": seen.best.map(|(step, fid)| serde_json::json!({ "step": step, "fid": fid })),
        "grid": seen.grid.as_ref().map(|path| path.display().to_string()),
        "checkpoint": checkpoint.display().to_string(),
    }))
}

/// What was done, where it lies, and what to type next.
fn summary(outcome: Outcome, out: &Path, seen: &Seen, config: &Config) -> anyhow::Result<String> {
    let by_steps = config.train.lr_anneal_steps == 0 && config.train.steps > 0;
    let (checkpoint, progress) = newest(out)?;
    let Progress { step, images, elapsed_secs, .. } = progress;
    let all = [grouped(step as f64), grouped(images as f64), time(elapsed_secs)];
    let mut lines = vec![format!("{} steps, {} images in {} of training\n", all[0], all[1], all[2])];
    if let Some(curve) = loss_curve(out) {
        lines.extend(curve);
        lines.push(String::new());
    }
    let mut place = |what: &str, path: &Path| lines.push(format!("  {what:12} {}", path.display()));
    if let Some(grid) = &seen.grid {
        place("samples", grid);
    }
    place("checkpoint", &checkpoint);
    if seen.best.is_some() {
        place("best", &out.join("checkpoints/best"));
    }
    if out.join("progress.csv").exists() {
        place("logs", &out.join("progress.csv"));
    }
    place("settings", &out.join("config.toml"));
    let (program, run) = (program(), quoted(&out.display().to_string()));
    lines.push("\nnext:".into());
    match config.model.arch {
        Arch::Adm | Arch::Ddim => {
            // Named by the step, so that what an earlier call drew is not in the way.
            let place = |name: String| quoted(&out.join(name).display().to_string());
            let (npz, grid) = (place(format!("samples_{step:06}.npz")), place(format!("grid_{step:06}.png")));
            lines.push(format!("  {program} sample --checkpoint {run} --num-samples 100 --out {npz} --grid {grid}"));
        }
        Arch::Superres => lines.push(format!(
            "  {program} super-res-sample --checkpoint {run} --base-samples SAMPLES.npz --num-samples 100 --grid grid.png"
        )),
        Arch::Classifier => {
            lines.push(format!("  {program} classifier-sample --checkpoint RUN --classifier-path {run} --grid grid.png"));
        }
    }
    if outcome == Outcome::Finished && by_steps {
        lines.push(format!("  {program} {} --steps {}", without_steps(words().skip(1)).join(" "), 2 * step));
    }
    lines.push(format!("  {program} info {run}"));
    Ok(lines.join("\n"))
}

/// The run's loss as a small picture, if its log holds a curve.
fn loss_curve(out: &Path) -> Option<Vec<String>> {
    let history = ddpm_ip::train::history(out).ok()?;
    let column = |names: &[&str]| history.iter().find(|(name, _)| names.contains(&name.as_str())).map(|(_, v)| v);
    let (steps, losses) = column(&["step"]).zip(column(&["loss", "train_loss"]))?;
    curve("loss", &steps.iter().copied().zip(losses.iter().copied()).collect::<Vec<_>>())
}

/// The program as the user called it.
pub(super) fn program() -> String {
    words().next().unwrap_or_else(|| "ddpm-ip".into())
}

/// The command line, for people.
fn words() -> impl Iterator<Item = String> {
    super::WORDS.get().into_iter().flatten().map(|word| word.to_string_lossy().into_owned())
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
