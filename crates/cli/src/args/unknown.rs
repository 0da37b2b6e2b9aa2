//! Flags that there are none of: what other programs' are called here, and the nearest of ours.

use clap::Command;

/// Flags of diffusers, k-diffusion, denoising-diffusion-pytorch and their like, and what says the same here. Where there are
/// several, the first that a command has is meant; text without dashes is advice.
const NAMES: &[(&str, &[&str])] = &[
    ("adam-beta1", &["--adam-betas"]),
    ("adam-beta2", &["--adam-betas"]),
    ("adam-epsilon", &["--adam-eps"]),
    ("adam-weight-decay", &["--weight-decay"]),
    ("beta-schedule", &["--noise-schedule"]),
    ("center-crop", &["--random-crop false"]),
    ("checkpointing", &["--use-checkpoint"]),
    ("checkpointing-steps", &["--save-interval"]),
    ("checkpoints-total-limit", &["--keep-checkpoints"]),
    ("ckpt", &["--checkpoint", "--resume-checkpoint"]),
    ("ckpt-path", &["--checkpoint", "--resume-checkpoint"]),
    ("dataset-name", &["--data-dir"]),
    ("dataset", &["--data-dir"]),
    ("data", &["--data-dir"]),
    ("data-path", &["--data-dir"]),
    ("dataloader-num-workers", &["--workers"]),
    ("ddim-steps", &["--timestep-respacing"]),
    ("ddpm-beta-schedule", &["--noise-schedule"]),
    ("ddpm-num-inference-steps", &["--grid-steps", "--timestep-respacing"]),
    ("ddpm-num-steps", &["--diffusion-steps"]),
    ("demo-every", &["--grid-interval"]),
    ("demo-steps", &["--grid-steps"]),
    ("dim", &["--num-channels"]),
    ("dim-mults", &["--channel-mult"]),
    ("ema-decay", &["--ema-rate"]),
    ("ema-max-decay", &["--ema-rate"]),
    ("end-step", &["--steps"]),
    ("epochs", &["--steps"]),
    ("eval-batch-size", &["--set sample.batch_size"]),
    ("evaluate-every", &["--evaluation-interval"]),
    ("evaluate-n", &["--evaluation-images"]),
    ("evaluate-with", &["--evaluation-features"]),
    ("fp16", &["--precision"]),
    ("global-batch-size", &["--batch-size"]),
    ("gpu", &["--device"]),
    ("grad-accum-steps", &["--microbatch (images per forward pass)"]),
    ("gradient-accumulate-every", &["--microbatch (images per forward pass)"]),
    ("gradient-accumulation-steps", &["--microbatch (images per forward pass)"]),
    ("gradient-checkpointing", &["--use-checkpoint"]),
    ("gradient-clip-val", &["--grad-clip"]),
    ("guidance-scale", &["--classifier-scale"]),
    ("learning-rate", &["--lr"]),
    ("logging-dir", &["--out"]),
    ("logging-steps", &["--log-interval"]),
    ("max-epochs", &["--steps"]),
    ("max-grad-norm", &["--grad-clip"]),
    ("max-steps", &["--steps"]),
    ("max-train-steps", &["--steps"]),
    ("mixed-precision", &["--precision"]),
    ("model", &["--checkpoint"]),
    ("n", &["--num-samples"]),
    ("n-samples", &["--num-samples"]),
    ("n-to-sample", &["--num-samples"]),
    ("name", &["--out"]),
    ("num-epochs", &["--steps"]),
    ("num-images", &["--num-samples"]),
    ("num-inference-steps", &["--timestep-respacing", "--grid-steps"]),
    ("num-sampling-steps", &["--timestep-respacing"]),
    ("num-steps", &["--steps", "--timestep-respacing"]),
    ("num-timesteps", &["--diffusion-steps"]),
    ("num-train-epochs", &["--steps"]),
    ("num-train-timesteps", &["--diffusion-steps"]),
    ("num-workers", &["--workers"]),
    ("objective", &["--prediction"]),
    ("out-dir", &["--out"]),
    ("outdir", &["--out"]),
    ("output", &["--out"]),
    ("output-dir", &["--out"]),
    ("pred-type", &["--prediction"]),
    ("prediction-type", &["--prediction"]),
    ("prefix", &["--out"]),
    ("resolution", &["--image-size"]),
    ("result-dir", &["--out"]),
    ("results-dir", &["--out"]),
    ("results-folder", &["--out"]),
    ("resume", &["--resume-checkpoint"]),
    ("resume-from-checkpoint", &["--resume-checkpoint"]),
    ("sample-n", &["--grid-images", "--num-samples"]),
    ("sampling-timesteps", &["--timestep-respacing"]),
    ("save-and-sample-every", &["--save-interval and --grid-interval"]),
    ("save-every", &["--save-interval"]),
    ("scheduler", &["--sampler", "--noise-schedule"]),
    ("steps", &["--timestep-respacing"]),
    ("timesteps", &["--diffusion-steps"]),
    ("train-batch-size", &["--batch-size"]),
    ("train-data-dir", &["--data-dir"]),
    ("train-lr", &["--lr"]),
    ("train-num-steps", &["--steps"]),
    ("use-ema", &["--ema-rate"]),
    ("warmup-steps", &["--lr-warmup-steps"]),
];

/// How alike two names are that may be one misspelled.
const ALIKE: f64 = 0.75;

/// What is said of a flag that `command` has not, as it was written.
pub(crate) fn advice(command: &Command, written: &str) -> String {
    let name = written.trim_start_matches('-');
    let flags: Vec<String> = command.get_arguments().flat_map(names).collect();
    let has = |text: &&&str| {
        let flag = text.trim_start_matches('-').split(' ').next().unwrap_or_default();
        flags.iter().any(|known| known == flag)
    };
    let elsewhere = NAMES.iter().find(|(theirs, _)| *theirs == name).and_then(|(_, ours)| ours.iter().find(has));
    let nearest = || {
        let likeness = |flag: &String| strsim::normalized_damerau_levenshtein(flag, name);
        let best = flags.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
        (likeness(best) >= ALIKE).then(|| format!("did you mean --{best}?"))
    };
    let help = || format!("`ddpm-ip {} --help` lists all flags", command.get_name());
    match elsewhere {
        Some(ours) => format!("{written} is {ours} here"),
        None => format!("there is no flag {written}: {}", nearest().unwrap_or_else(help)),
    }
}

/// The names of a flag, without dashes.
fn names(arg: &clap::Arg) -> Vec<String> {
    let aliases = arg.get_all_aliases().unwrap_or_default();
    arg.get_long().into_iter().chain(aliases).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_programs_names_stand_for_is_there() {
        let commands = crate::commands::all();
        let flags: Vec<String> = commands.iter().flat_map(|c| c.get_arguments().flat_map(names)).collect();
        for (theirs, ours) in NAMES {
            for flag in ours.iter().flat_map(|text| text.split(' ')).filter_map(|word| word.strip_prefix("--")) {
                assert!(flags.iter().any(|known| known == flag), "{theirs}: --{flag}");
            }
        }
    }
}
