//! `ddpm-ip presets`: the recipes that come with the program.

use crate::args;
use crate::output::print;
use clap::{ArgMatches, Command};
use ddpm_ip::Outcome;
use ddpm_ip::config::{PRESETS, Preset};
use ddpm_ip::train;

pub(super) fn command() -> Command {
    Command::new("presets")
        .about("List the recipes that come with the program")
        .long_about(
            "List the recipes that come with the program, for `train --preset NAME`. Each is listed with its number of \
             parameters, and the memory of weights, gradient, AdamW's moments and EMAs; activations need more, in proportion \
             to the batch. The FIDs are those of the paper from 50 000 samples, with input perturbation against without. \
             `--gamma 0` trains the baseline without it.",
        )
        .arg(args::switch("json", "print the report as JSON"))
}

/// Bytes of weights, gradient, two moments and the averages.
fn state_bytes(preset: &Preset, parameters: usize) -> usize {
    4 * parameters * (4 + preset.config().train.ema_rate.len())
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let mut lines = Vec::new();
    let mut reports = Vec::new();
    for preset in PRESETS {
        let mut config = preset.config();
        if config.model.class_cond {
            // The data say how many; those of the presets with classes have ten.
            config.model.num_classes = 10;
        }
        let parameters = train::parameter_count(&config)?;
        let bytes = state_bytes(preset, parameters);
        let mib = bytes.div_ceil(1 << 20);
        lines.push(format!("{:14} {}", preset.name, preset.about));
        lines.push(format!("{:14} {parameters} parameters, {mib} MiB besides activations", ""));
        lines.extend(preset.published.map(|fid| format!("{:14} FID {fid}", "")));
        reports.push(serde_json::json!({
            "name": preset.name, "about": preset.about, "parameters": parameters, "state_bytes": bytes,
            "published_fid": preset.published, "config": config,
        }));
    }
    print(&if matches.get_flag("json") { serde_json::to_string(&reports)? } else { lines.join("\n") })?;
    Ok(Outcome::Finished)
}
