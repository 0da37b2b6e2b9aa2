//! `ddpm-ip nll`: bits per dimension.

use super::sample::own_settings;
use crate::args::{self, Settings};
use crate::output::{complain_all, print};
use crate::sink::Sinks;
use anyhow::Context;
use clap::{ArgMatches, Command};
use ddpm_ip::config::Layers;
use ddpm_ip::{Outcome, nll};
use std::path::PathBuf;

const SETTINGS: Settings = Settings(&[
    "model",
    "diffusion",
    "perturbation",
    "data",
    "sample.network",
    "sample.timestep_respacing",
    "sample.clip_denoised",
    "sample.num_samples",
    "sample.batch_size",
    "sample.seed",
]);

pub(super) fn command() -> Command {
    Command::new("nll")
        .alias("image_nll")
        .about("Compute a bound on the negative log-likelihood of images, in bits per dimension")
        .long_about(
            "Compute the variational bound on the negative log-likelihood of images under a model, in bits per dimension. Also \
             write the means of its terms: vb_terms.npz, mse_terms.npz and xstart_mse_terms.npz (`arr_0`, from the noisiest \
             step to the first).\n\n\
             Images are taken in order and are not mirrored. The result depends on --seed, not on --batch-size. If a \
             command was interrupted, repeat it to resume; if it was finished, it finds its result done.",
        )
        .arg(args::checkpoint())
        .arg(args::path("out", "DIR", "folder for the terms [default: the current folder]"))
        .arg(args::untrained())
        .arg(args::switch("quiet", "show no progress"))
        .arg(args::switch("json", "print the report as JSON"))
        .args(args::device_args())
        .args(SETTINGS.args())
        .args_override_self(true)
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let path = |id: &str| matches.get_one::<PathBuf>(id).cloned();
    let checkpoint = path("checkpoint").context("--checkpoint is missing")?;
    let device = args::device(matches)?;
    let mut layers = Layers::default();
    layers.add(own_settings(&checkpoint, matches, &layers)?)?;
    // The reference's script has these for defaults, and at most 1000 images; a run's settings are for its samples.
    layers.set([("num_samples", "0"), ("sample.batch_size", "1"), ("sample.timestep_respacing", "")])?;
    let (config, mut notices) = SETTINGS.resolve(layers, matches)?;
    args::check_timesteps(matches, &config)?;
    notices.extend(args::training_only(matches, &config));
    let place = crate::ranks::place(device);
    let quiet = matches.get_flag("quiet") || !place.ranks.leads();
    if !quiet {
        complain_all(&notices);
    }
    let out = path("out").or_else(args::log_dir).unwrap_or_else(|| ".".into());
    let job = nll::Job { checkpoint, config, out };
    let mut sinks = Sinks::new(quiet, None);
    let result = nll::run(&job, place, &*crate::interrupt::flag()?, &mut |e| sinks.receive(&e));
    sinks.finish();
    let (outcome, report) = result?;
    let Some(report) = report else {
        print("stopped; what is finished is kept: repeat the command to resume")?;
        return Ok(outcome);
    };
    print(&if matches.get_flag("json") {
        serde_json::to_string(&report)?
    } else {
        let error = report.standard_error.map_or(String::new(), |e| format!(" ± {e:.4}"));
        format!(
            "{:.4}{error} bits/dim over {} images and {} steps: prior {:.4}, decoder {:.4}\nterms in {}",
            report.bits_per_dim,
            report.images,
            report.steps,
            report.prior_bits_per_dim,
            report.decoder_bits_per_dim,
            job.out.display()
        )
    })?;
    Ok(outcome)
}
