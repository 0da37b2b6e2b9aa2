//! `ddpm-ip bias`: the instruments for exposure bias.

use super::sample::own_settings;
use crate::args::{self, Settings};
use crate::output::{complain_all, print};
use crate::sink::Sinks;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use ddpm_ip::config::Layers;
use ddpm_ip::data::Dataset;
use ddpm_ip::evaluate::Choice;
use ddpm_ip::{Outcome, bias};
use std::path::PathBuf;

/// The images that are measured where nobody says how many, if there are as many.
const MOST_BY_DEFAULT: usize = 512;

const SETTINGS: Settings = Settings(&[
    "model",
    "diffusion",
    "data",
    "sample.network",
    "sample.sampler",
    "sample.timestep_respacing",
    "sample.spacing",
    "sample.rounded_timesteps",
    "sample.eta",
    "sample.churn",
    "sample.churn_min",
    "sample.churn_max",
    "sample.clip_denoised",
    "sample.dynamic_threshold",
    "sample.correct",
    "sample.num_samples",
    "sample.batch_size",
    "sample.seed",
]);

pub(super) fn command() -> Command {
    Command::new("bias")
        .about("Measure exposure bias: how inputs in sampling differ from inputs in training")
        .long_about(
            "Measure exposure bias: how the network's inputs in sampling differ from its inputs in training.\n\n\
             The network is called at each timestep on noised images of the data, and on sampling chains that start from \
             them. Each instrument is a curve over the timesteps, with error bars over the images: the prediction error ν, \
             and whether it is normally distributed; the variance of the sampled x_t against that of a perfect sampler; the \
             norm of ε in training and in sampling, and the timestep whose noised images give the sampled norm; the energy \
             of Haar bands; the gradient of the network by its input; and the distance of each chain's end from the image where \
             it started. The command writes bias.json, bias.npz and bias.svg, and prints its findings in words.\n\n\
             Settings come from each checkpoint, except for 20 steps, 512 images and batches of 64; flags override them. An \
             image costs about 28 network calls per step.",
        )
        .arg(
            args::path(
                "checkpoint",
                "PATH",
                "run directories, checkpoint folders, .safetensors or PyTorch files; their curves share one plot",
            )
            .required(true)
            .num_args(1..)
            .action(ArgAction::Append)
            .visible_alias("model-path"),
        )
        .arg(args::path("out", "DIR", "folder for bias.json, bias.npz and bias.svg [default: the current folder]"))
        .arg(
            Arg::new("short-chains")
                .long("short-chains")
                .value_name("N")
                .value_parser(value_parser!(u32))
                .help("steps of the short chains that start a little above each timestep [default: 2]"),
        )
        .arg(args::switch("frechet", "also measure the Frechet distance of chains, by the timestep where they start"))
        .arg(
            Arg::new("features")
                .long("features")
                .value_name("NETWORK")
                .requires("frechet")
                .help("feature network for --frechet, as in `evaluate` [default: the one that fits the images]"),
        )
        .arg(args::untrained())
        .arg(args::switch("quiet", "show no progress"))
        .arg(args::switch("json", "print the report as JSON"))
        .args(args::device_args())
        .args(SETTINGS.args())
        .args_override_self(true)
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let device = args::device(matches)?;
    let quiet = matches.get_flag("quiet");
    let mut checkpoints = Vec::new();
    for path in matches.get_many::<PathBuf>("checkpoint").into_iter().flatten() {
        let mut layers = Layers::default();
        layers.add(own_settings(path, matches, &layers)?)?;
        // A run's settings are for its samples.
        layers.set([("num_samples", "0"), ("sample.batch_size", "64"), ("sample.timestep_respacing", "20")])?;
        let (mut config, notices) = SETTINGS.resolve(layers, matches)?;
        args::check_timesteps(matches, &config)?;
        if config.sample.num_samples == 0 {
            let data = &config.data.data_dir;
            let there = if data.is_empty() { MOST_BY_DEFAULT } else { Dataset::count_and_shape(data)?.0 };
            config.sample.num_samples = there.min(MOST_BY_DEFAULT);
        }
        if !quiet {
            complain_all(&notices);
        }
        checkpoints.push((path.clone(), config));
    }
    let features = if matches.get_flag("frechet") {
        let choice = matches.get_one::<String>("features").map(|text| text.parse::<Choice>()).transpose()?;
        Some((choice, args::cache_dir().unwrap_or_default().join("weights")))
    } else {
        None
    };
    let out = matches.get_one::<PathBuf>("out").cloned().or_else(args::log_dir).unwrap_or_else(|| ".".into());
    let short = matches.get_one::<u32>("short-chains").map(|&n| n as usize);
    let job = bias::Job { checkpoints, out, short, features };
    let mut sinks = Sinks::new(quiet, None);
    let result = bias::run(&job, device, &*crate::interrupt::flag()?, &mut |e| sinks.receive(&e));
    sinks.finish();
    let (outcome, report) = result?;
    let Some(report) = report else {
        print("stopped; nothing was written")?;
        return Ok(outcome);
    };
    print(&if matches.get_flag("json") {
        serde_json::to_string(&report)?
    } else {
        format!("{}\n\ncurves in {}", report.words(), job.out.join("bias.svg").display())
    })?;
    Ok(outcome)
}
