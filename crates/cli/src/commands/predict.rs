//! `ddpm-ip predict`: one network call on given input.

use super::sample::own_settings;
use crate::args::{self, Settings};
use crate::output::{complain_all, print};
use clap::{ArgMatches, Command};
use ddpm_ip::Outcome;
use ddpm_ip::config::{ConfigError, Layers};
use std::path::PathBuf;

const SETTINGS: Settings = Settings(&["model", "diffusion", "classifier", "sample.network"]);

pub(crate) fn command() -> Command {
    Command::new("predict")
        .about("Call the network once on given arrays")
        .long_about(
            "Call the network once on the arrays of an npz: `x` [N,C,H,W], `t` [N] (timesteps as the network sees them) and, for \
             a network with classes, `y` [N], for super-resolution also `low_res`. Writes the array `out`. Use this command \
             to check a port of a model.",
        )
        .arg(
            args::path(
                "checkpoint",
                "FILE",
                "run directory (its newest checkpoint), checkpoint folder, .safetensors or PyTorch file",
            )
            .required(true)
            .visible_alias("model-path"),
        )
        .arg(args::path("input", "IN.npz", "npz with the input arrays").required(true))
        .arg(args::path("output", "OUT.npz", "npz to write").required(true))
        .arg(args::switch("json", "print the report as JSON"))
        .args(args::device_args())
        .args(SETTINGS.args())
        .args_override_self(true)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let path = |id: &str| matches.get_one::<PathBuf>(id).cloned().unwrap_or_default();
    let (checkpoint, input, output) = (path("checkpoint"), path("input"), path("output"));
    if input == output {
        return Err(ConfigError(format!("--output {} is the input file: name another file", output.display())).into());
    }
    let mut layers = Layers::default();
    layers.add(own_settings(&checkpoint, matches, &layers)?)?;
    let (config, notices) = SETTINGS.resolve(layers, matches)?;
    complain_all(&notices);
    let shape = ddpm_ip::predict::predict(&checkpoint, &config, &input, &output, args::device(matches)?)?;
    print(&if matches.get_flag("json") {
        serde_json::json!({ "output": output.display().to_string(), "shape": shape }).to_string()
    } else {
        format!("wrote `out` {shape:?} to {}", output.display())
    })?;
    Ok(Outcome::Finished)
}
