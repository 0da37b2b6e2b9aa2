//! `ddpm-ip sample`: images from a checkpoint.

use crate::args::{self, Settings};
use crate::output::{complain_all, print};
use crate::sink::Sinks;
use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use ddpm_ip::config::Layers;
use ddpm_ip::{Error, Outcome, checkpoint, sample};
use std::path::{Path, PathBuf};

const SETTINGS: Settings = Settings(&["model", "diffusion", "perturbation", "sample"]);

pub(crate) fn command() -> Command {
    Command::new("sample")
        .about("Draw images from a checkpoint")
        .long_about(
            "Draw images from a checkpoint into samples_NxHxWxC.npz (`arr_0` uint8 NHWC, `arr_1` labels).\n\n\
             Settings come from the checkpoint's own configuration, then --config, --set and flags. Image i depends on \
             --seed and i alone. An interrupted call goes on when it is repeated.",
        )
        .arg(
            args::path(
                "checkpoint",
                "PATH",
                "run directory (its newest checkpoint), checkpoint folder or .safetensors file",
            )
            .required(true)
            .visible_alias("model-path"),
        )
        .arg(args::path("out", "PATH", "the npz to write, or a folder for it"))
        .arg(args::path("grid", "PNG", "also write a picture of the first images, 256 at most"))
        .arg(
            Arg::new("classes")
                .long("classes")
                .value_name("LIST")
                .value_delimiter(',')
                .value_parser(value_parser!(u32))
                .help("classes to draw, in turn, as in 0,1,2; at random if not given"),
        )
        .arg(args::path(
            "initial-noise",
            "NPZ",
            "follow given chains: initial_noise [N,C,H,W], step_noise [steps,N,C,H,W]",
        ))
        .arg(args::switch("quiet", "no progress"))
        .arg(args::switch("json", "report as JSON"))
        .arg(args::device_arg())
        .args(SETTINGS.args())
        .args_override_self(true)
}

/// The settings that a checkpoint carries.
pub(super) fn base(path: &Path) -> anyhow::Result<Layers> {
    let mut layers = Layers::default();
    let file = checkpoint::resolve(path)?;
    if let Some(config) = checkpoint::config_of(&file)? {
        let table = config.to_toml().parse().map_err(|_| Error::file(&file, "carries a damaged configuration"))?;
        layers.add(table)?;
    }
    Ok(layers)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let path = |id: &str| matches.get_one::<PathBuf>(id).cloned();
    let checkpoint = path("checkpoint").context("--checkpoint is missing")?;
    let device = args::device(matches)?;
    let (config, notices) = SETTINGS.resolve(base(&checkpoint)?, matches)?;
    let quiet = matches.get_flag("quiet");
    if !quiet {
        complain_all(&notices);
    }
    let job = sample::Job {
        checkpoint,
        config,
        out: path("out"),
        grid: path("grid"),
        classes: matches.get_many::<u32>("classes").map(|c| c.copied().collect()),
        initial_noise: path("initial-noise"),
    };
    let mut sinks = Sinks::new(quiet, None);
    let outcome = sample::run(&job, &device, crate::interrupt::flag()?, &mut |e| sinks.receive(&e));
    sinks.finish();
    let (outcome, out) = (outcome?, job.out_path());
    let finished = outcome == Outcome::Finished;
    if matches.get_flag("json") {
        let report = serde_json::json!({
            "outcome": if finished { "finished" } else { "interrupted" },
            "images": job.config.sample.num_samples, "out": out, "grid": job.grid,
        });
        print(&report.to_string())?;
    } else if finished {
        let grid = job.grid.map_or(String::new(), |g| format!(" and {}", g.display()));
        print(&format!("wrote {} images to {}{grid}", job.config.sample.num_samples, out.display()))?;
    } else {
        print("stopped; what is finished is kept, and the same command goes on from there")?;
    }
    Ok(outcome)
}
