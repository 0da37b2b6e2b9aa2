//! `ddpm-ip sample`: images from a checkpoint.

use crate::args::{self, Settings};
use crate::output::{complain_all, print};
use crate::sink::Sinks;
use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use ddpm_ip::config::{Arch, CORRECTION_FORMS, Config, ConfigError, Layers};
use ddpm_ip::sample::{GuideJob, Order, SmallImages};
use ddpm_ip::{Event, Outcome, checkpoint, sample};
use std::path::{Path, PathBuf};

pub(super) const SETTINGS: Settings = Settings(&["model", "diffusion", "perturbation", "sample", "classifier"]);

/// `sample`, and the names of the reference's other sampling scripts: the same command, with the defaults of each where
/// the checkpoint carries no settings.
pub(super) struct Kind {
    pub(super) name: &'static str,
    alias: &'static str,
    about: &'static str,
    defaults: &'static str,
}

pub(super) const KINDS: [Kind; 3] = [
    Kind { name: "sample", alias: "image_sample", about: "Draw images from a checkpoint", defaults: "" },
    Kind {
        name: "classifier-sample",
        alias: "classifier_sample",
        about: "Draw images with classifier guidance",
        defaults: "",
    },
    Kind {
        name: "super-res-sample",
        alias: "super_res_sample",
        about: "Enlarge images with a super-resolution model",
        defaults: "[model]\narch = 'superres'\nimage_size = 256\nsmall_size = 64",
    },
];

pub(super) fn command(kind: &Kind) -> Command {
    Command::new(kind.name)
        .alias(kind.alias)
        .about(kind.about)
        .long_about(format!(
            "{} into samples_NxHxWxC.npz (`arr_0` uint8 NHWC, `arr_1` labels).\n\n\
             Settings come from the checkpoint; --config, --set and flags override them, in this order. Image i depends \
             only on --seed and on i. If a command was interrupted, repeat it to resume; if it was finished, it finds its \
             file done. A file that another command wrote is replaced only with --overwrite, \
             or by more images of the same kind.\n\n\
             Corrections of exposure bias for --correct: {}. docs/exposure-bias.md explains them.",
            kind.about,
            CORRECTION_FORMS.join(", ")
        ))
        .arg(args::checkpoint())
        .arg(args::path("out", "PATH", "the npz to write, or a folder for it [default: the current folder]"))
        .arg(args::path("grid", "PNG", "also write a picture of the first images, at most 256"))
        .arg(
            Arg::new("classes")
                .long("classes")
                .value_name("LIST")
                .value_delimiter(',')
                .help("classes to draw in turn, by number or name, as in 0,1,2 or cat,dog [default: random]"),
        )
        .arg(
            args::path("classifier-path", "PATH", "classifier that guides the images to their classes")
                .required(kind.name == "classifier-sample"),
        )
        .arg(args::path(
            "guide-with",
            "PATH",
            "autoguidance: weaker network (earlier, smaller, another EMA) that --guidance-scale guides away from",
        ))
        .arg(args::path(
            "base-samples",
            "PATH",
            "images to enlarge: an npz of samples, a PNG or anything that --data-dir takes; without --num-samples, each once",
        ))
        .arg(args::path(
            "initial-noise",
            "NPZ",
            "use this noise instead of random noise: initial_noise [N,C,H,W], step_noise [steps,N,C,H,W]",
        ))
        .arg(args::switch("overwrite", "replace the files of --out and --grid if they exist"))
        .arg(args::untrained())
        .arg(args::switch("quiet", "show no progress"))
        .arg(args::switch("json", "print the report as JSON"))
        .args(args::device_args())
        .args(SETTINGS.args())
        .args_override_self(true)
}

/// The settings that a checkpoint carries or, where it carries none, those that its names and shapes tell; those `below`
/// say the size of the images if no flag does. Says which of several networks is taken.
pub(super) fn own_settings(path: &Path, matches: &ArgMatches, below: &Layers) -> anyhow::Result<toml::Table> {
    let network = args::given(matches, "sample.network").unwrap_or_default();
    let (own, remark) = settings_and_remark(path, network, matches, below)?;
    if !matches.try_get_one("quiet").is_ok_and(|quiet| quiet == Some(&true)) {
        complain_all(remark.as_slice());
    }
    Ok(own)
}

/// As [`own_settings`] of a network by its name, with what is to be said of it.
pub(super) fn settings_and_remark(
    path: &Path,
    network: &str,
    matches: &ArgMatches,
    below: &Layers,
) -> anyhow::Result<(toml::Table, Option<String>)> {
    let given = args::given(matches, "model.image_size").and_then(|size| size.parse().ok());
    let size = given.map_or_else(|| below.resolve().map(|config| config.model.image_size), Ok)?;
    Ok(checkpoint::settings_of(path, network, size)?)
}

/// The classifier asked for, with its own settings and the flags.
fn guide(matches: &ArgMatches, config: &Config) -> anyhow::Result<Option<GuideJob>> {
    let Some(checkpoint) = matches.get_one::<PathBuf>("classifier-path").cloned() else { return Ok(None) };
    let mut layers = Layers::default();
    // The network's, where the classifier does not say otherwise.
    let (size, channels) = (config.model.image_size.to_string(), config.model.in_channels.to_string());
    layers.set([("image_size", size.as_str()), ("in_channels", channels.as_str())])?;
    let (own, _) = settings_and_remark(&checkpoint, "", matches, &layers)?;
    let arch = own.get("model").and_then(|model| model.get("arch")?.as_str());
    if let Some(arch) = arch.filter(|arch| *arch != "classifier") {
        let message =
            format!("--classifier-path {} is not a classifier but a network of --arch {arch}", checkpoint.display());
        return Err(ConfigError(message).into());
    }
    layers.add(own)?;
    let (config, _) = Settings(&["classifier"]).resolve(layers, matches)?;
    Ok(Some(GuideJob { checkpoint, config }))
}

/// The weaker network asked for, with its own settings; its activations have the type of the network's.
fn weaker(matches: &ArgMatches, config: &Config) -> anyhow::Result<Option<GuideJob>> {
    let Some(checkpoint) = matches.get_one::<PathBuf>("guide-with").cloned() else { return Ok(None) };
    let mut layers = Layers::default();
    let size = config.model.image_size.to_string();
    layers.set([("image_size", size.as_str())])?;
    // The network's process, where the file does not say otherwise.
    let mut process: toml::Table = config.to_toml().parse().context("a configuration that was written")?;
    process.retain(|section, _| section == "diffusion");
    layers.add(process)?;
    // --network is for the checkpoint.
    let (own, _) = settings_and_remark(&checkpoint, "", matches, &layers)?;
    layers.add(own)?;
    let mut own = layers.resolve()?;
    if own.model.arch == Arch::Classifier {
        let message = format!("--guide-with {} is a classifier: give it as --classifier-path", checkpoint.display());
        return Err(ConfigError(message).into());
    }
    own.model.precision = config.model.precision;
    own.model.auto_precision = config.model.auto_precision;
    Ok(Some(GuideJob { checkpoint, config: own }))
}

/// What is to be drawn, and remarks on it. `own` are the checkpoint's own settings, where they are known.
pub(super) fn job(
    kind: &Kind,
    matches: &ArgMatches,
    own: Option<toml::Table>,
) -> anyhow::Result<(sample::Job, Vec<String>)> {
    let path = |id: &str| matches.get_one::<PathBuf>(id).cloned();
    let checkpoint = path("checkpoint").context("--checkpoint is missing")?;
    let mut layers = Layers::default();
    layers.add(kind.defaults.parse().context("the defaults of a command")?)?;
    layers.add(own.map_or_else(|| own_settings(&checkpoint, matches, &layers), Ok)?)?;
    let base_samples = path("base-samples");
    if base_samples.is_some() {
        // As many as there are, unless somebody says how many.
        layers.set([("num_samples", "0")])?;
    }
    let (mut config, mut notices) = SETTINGS.resolve(layers, matches)?;
    if let Some(base) = base_samples.as_deref().filter(|_| config.sample.num_samples == 0) {
        config.sample.num_samples = SmallImages::count(base)?;
    }
    args::check_timesteps(matches, &config)?;
    notices.extend(args::training_only(matches, &config));
    if path("classifier-path").is_none() && args::given(matches, "sample.classifier_scale").is_some() {
        notices.push("--classifier-scale does nothing without --classifier-path".into());
    }
    let classifier = guide(matches, &config)?;
    let of_guide = classifier.as_ref().filter(|_| !config.model.class_cond).map(|guide| &guide.config);
    let known = &of_guide.unwrap_or(&config).classes;
    let classes = matches.get_many::<String>("classes");
    let classes = classes.map(|words| words.map(|word| known.find(word.trim())).collect::<Result<Vec<_>, _>>());
    let classes = classes.transpose()?;
    for (word, class) in matches.get_many::<String>("classes").into_iter().flatten().zip(classes.iter().flatten()) {
        if word.trim().parse().is_ok_and(|number: u32| number != *class) {
            notices.push(format!("--classes {word} means the class with that name, which is number {class}"));
        }
    }
    let guide_with = weaker(matches, &config)?;
    let order = Order { classes, initial_noise: path("initial-noise"), classifier, guide_with, base_samples };
    let job = sample::Job {
        checkpoint,
        config,
        order,
        out: path("out").or_else(args::log_dir),
        grid: path("grid"),
        overwrite: matches.get_flag("overwrite"),
    };
    Ok((job, notices))
}

pub(super) fn run(kind: &Kind, matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let device = args::device(matches)?;
    let (job, notices) = job(kind, matches, None)?;
    let place = crate::ranks::place(device);
    let quiet = matches.get_flag("quiet") || !place.ranks.leads();
    if !quiet {
        complain_all(&notices);
    }
    let mut sinks = Sinks::new(quiet, None);
    let (mut found, mut steps) = (false, None);
    let outcome = sample::run(&job, place, &*crate::interrupt::flag()?, &mut |e| {
        match &e {
            Event::Found(_) => found = true,
            Event::Sampling { steps: of_each, .. } => steps = Some(*of_each),
            _ => {}
        }
        sinks.receive(&e);
    });
    sinks.finish();
    let (outcome, out) = (outcome?, job.out_path());
    let finished = outcome == Outcome::Finished;
    if matches.get_flag("json") {
        let origin = checkpoint::Origin::of(&checkpoint::resolve(&job.checkpoint)?);
        let report = serde_json::json!({
            "outcome": if finished { "finished" } else { "interrupted" },
            "images": job.config.sample.num_samples, "out": out.display().to_string(),
            "grid": job.grid.as_ref().map(|path| path.display().to_string()),
            "checkpoint": origin.file.display().to_string(), "step": origin.step, "average": origin.average,
            "sampler": job.config.sample.sampler.name(), "steps": steps, "seed": job.config.sample.seed,
            "found": found,
        });
        print(&report.to_string())?;
    } else if finished {
        let grid = job.grid.map_or(String::new(), |g| format!(" and {}", g.display()));
        let images = job.config.sample.num_samples;
        print(&if found {
            format!("these {images} images are in {} already{grid}", out.display())
        } else {
            format!("wrote {images} images to {}{grid}", out.display())
        })?;
    } else {
        print("stopped; what is finished is kept: repeat the command to resume")?;
    }
    Ok(outcome)
}
