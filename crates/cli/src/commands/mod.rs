//! The commands, a file each, and the command line that they make.

mod bench;
mod bias;
mod check;
mod compare;
mod completions;
mod convert;
mod ema;
mod evaluate;
mod info;
#[cfg(test)]
mod mutated;
mod nll;
mod predict;
mod prepare;
mod presets;
mod report;
mod sample;
mod train;
mod watch;
mod weights;

use crate::args;
use anyhow::Context;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command};
use ddpm_ip::config::ConfigError;
use ddpm_ip::{Device, Outcome};
use std::ffi::OsString;
use std::sync::OnceLock;

const AFTER_HELP: &str = "Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 diverged, 130 interrupted.\n\n\
    Environment variables:\n  \
    OPENAI_LOGDIR      folder that training, sampling, nll and bias write to without --out\n  \
    OPENAI_LOG_FORMAT  logs of a training run: some of stdout,log,csv,json,tensorboard\n  \
    RAYON_NUM_THREADS  number of CPU threads\n  \
    DDPM_IP_ISA        instruction set: portable, avx2, avx512, avx512-bf16, amx-bf16; on ARM neon\n  \
    DDPM_IP_CACHE      folder for cached features and downloaded weights\n  \
    DDPM_IP_PORT       port on which the first of several processes listens for the others [default: a free one]\n  \
    DDPM_IP_SILENCE    seconds after which a process that does not answer ends all [default: 30]\n\n\
    \"The reference\" in these texts is the PyTorch implementation of the paper, github.com/forever208/DDPM-IP.";

/// All commands.
pub(crate) fn all() -> Vec<Command> {
    let train = train::KINDS.iter().map(train::command);
    let sample = sample::KINDS.iter().map(sample::command);
    let others = [
        nll::command(),
        bias::command(),
        evaluate::evaluate_command(),
        evaluate::statistics_command(),
        weights::command(),
        predict::command(),
        prepare::command(),
        convert::command(),
        ema::command(),
        info::command(),
        report::command(),
        compare::command(),
        watch::command(),
        presets::command(),
        bench::command(),
        check::command(),
        completions::command(),
    ];
    train.chain(sample).chain(others).collect()
}

/// The whole command line.
fn command() -> Command {
    Command::new("ddpm-ip")
        .version(clap::crate_version!())
        .about("Train and sample diffusion models with input perturbation (DDPM-IP, ICML 2023)")
        .after_help(AFTER_HELP)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(all())
}

/// The command line of the process, as it was typed.
static WORDS: OnceLock<Vec<OsString>> = OnceLock::new();

/// The words of the process's command line, without the program's name.
pub(crate) fn words() -> Vec<String> {
    let words = WORDS.get().map_or(&[][..], Vec::as_slice);
    words.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Reads the process's command line; ends the program on a mistake, `--help` or `--version`.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> ArgMatches {
    let words = WORDS.get_or_init(|| words.into_iter().collect());
    let mut command = command();
    command.try_get_matches_from_mut(words.iter().cloned().map(kebab_case)).unwrap_or_else(|error| {
        // One of several processes says it.
        if !crate::ranks::speaks() {
            std::process::exit(0);
        }
        if let Some(message) = unknown_flag(&command, words, &error) {
            crate::output::complain(&format!("error: {message}"));
            std::process::exit(crate::USAGE.into());
        }
        error.exit()
    })
}

/// Reads a host's command line.
///
/// # Errors
/// Mistakes, in the program's words.
pub(crate) fn read(words: impl IntoIterator<Item = OsString>) -> anyhow::Result<ArgMatches> {
    let words: Vec<OsString> = words.into_iter().collect();
    let mut command = command();
    command.try_get_matches_from_mut(words.iter().cloned().map(kebab_case)).map_err(|error| {
        unknown_flag(&command, &words, &error)
            .map_or_else(|| crate::host::refused(&error), |message| ConfigError(message).into())
    })
}

/// What `sample` would draw, for a host that draws it into memory: `own` are the settings that the checkpoint carries, where
/// they are known. Also remarks on its flags.
///
/// # Errors
/// Mistakes in the words, and what they name that cannot be read.
pub fn sampling(
    words: impl IntoIterator<Item = OsString>,
    own: Option<toml::Table>,
) -> anyhow::Result<(ddpm_ip::sample::Job, Vec<String>, Device)> {
    let matches = read(words)?;
    let (name, matches) = matches.subcommand().context("no command")?;
    let kind = sample::KINDS.iter().find(|kind| kind.name == name).context("not a command that draws images")?;
    let (job, remarks) = sample::job(kind, matches, own)?;
    Ok((job, remarks, args::device(matches)?))
}

/// What `evaluate` would compare, for a host that compares images of its own.
///
/// # Errors
/// Mistakes in the words.
pub fn evaluation(words: impl IntoIterator<Item = OsString>) -> anyhow::Result<(ddpm_ip::evaluate::Job, Device)> {
    let matches = read(words)?;
    let matches = matches.subcommand_matches("evaluate").context("not `evaluate`")?;
    Ok((evaluate::job(matches)?, args::device(matches)?))
}

/// What is said of a flag that there is none of, if that is the mistake.
fn unknown_flag(command: &Command, words: &[OsString], error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(written)) = error.get(ContextKind::InvalidArg) else { return None };
    if error.kind() != ErrorKind::UnknownArgument || !written.starts_with('-') {
        return None;
    }
    let name = words.get(1)?;
    let command = command.find_subcommand(name)?;
    Some(args::advice(command, written))
}

/// Flags may be spelled with underscores, as the reference's are.
fn kebab_case(argument: OsString) -> OsString {
    match argument.to_str().filter(|a| a.starts_with("--")) {
        Some(flag) => {
            let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
            (name.replace('_', "-") + value).into()
        }
        None => argument,
    }
}

/// Runs the one that was asked for.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let Some((name, m)) = matches.subcommand() else { unreachable!("clap asks for a command") };
    crate::memory::advise(name);
    if let Some(kind) = train::KINDS.iter().find(|kind| kind.name == name) {
        return train::run(kind, m);
    }
    if let Some(kind) = sample::KINDS.iter().find(|kind| kind.name == name) {
        return sample::run(kind, m);
    }
    match name {
        "nll" => nll::run(m),
        "bias" => bias::run(m),
        "evaluate" => evaluate::evaluate(m),
        "statistics" => evaluate::statistics(m),
        "weights" => weights::run(m),
        "predict" => predict::run(m),
        "prepare" => prepare::run(m),
        "convert" => convert::run(m),
        "ema" => ema::run(m),
        "info" => info::run(m),
        "report" => report::run(m),
        "compare" => compare::run(m),
        "watch" => watch::run(m),
        "presets" => presets::run(m),
        "bench" => bench::run(m),
        "check" => check::run(m),
        "completions" => completions::run(m, command()),
        _ => unreachable!("clap asks for a known command"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }

    /// Flags of the reference's scripts at their defaults.
    const NETWORK: &str = "--image_size=64 --num_channels=128 --num_res_blocks=2 --num_heads=4 --num_heads_upsample=-1 \
        --num_head_channels=-1 --attention_resolutions=16,8 --channel_mult= --dropout=0.0 --class_cond=False \
        --use_checkpoint=False --use_scale_shift_norm=True --resblock_updown=False --use_fp16=False \
        --use_new_attention_order=False --input_pertub=0.0";
    const SUPER_RES: &str = "--num_channels=128 --num_res_blocks=2 --num_heads=4 --num_heads_upsample=-1 \
        --num_head_channels=-1 --attention_resolutions=16,8 --dropout=0.0 --class_cond=False --use_checkpoint=False \
        --use_scale_shift_norm=True --resblock_updown=False --use_fp16=False --large_size=256 --small_size=64";
    const CLASSIFIER: &str = "--image_size=64 --classifier_use_fp16=False --classifier_width=128 --classifier_depth=2 \
        --classifier_attention_resolutions=32,16,8 --classifier_use_scale_shift_norm=True \
        --classifier_resblock_updown=True --classifier_pool=attention";
    const DIFFUSION: &str = "--learn_sigma=False --diffusion_steps=1000 --noise_schedule=linear --timestep_respacing= \
        --use_kl=False --predict_xstart=False --rescale_timesteps=False --rescale_learned_sigmas=False";
    const TRAINING: &str = "--data_dir= --schedule_sampler=uniform --lr=1e-4 --weight_decay=0.0 --lr_anneal_steps=0 \
        --batch_size=1 --microbatch=-1 --ema_rate=0.9999 --log_interval=100 --save_interval=10000 \
        --resume_checkpoint= --use_fp16=False --fp16_scale_growth=1e-3";
    const SAMPLING: &str = "--clip_denoised=True --num_samples=10000 --batch_size=16 --use_ddim=False --model_path=x";

    #[test]
    fn every_flag_of_the_references_scripts_is_one_here() {
        let classifying = "--data_dir= --val_data_dir= --noised=True --iterations=150000 --lr=3e-4 --weight_decay=0.0 \
                           --anneal_lr=False --batch_size=4 --microbatch=-1 --schedule_sampler=uniform \
                           --resume_checkpoint= --log_interval=10 --eval_interval=5 --save_interval=10000";
        let bounding = "--data_dir= --clip_denoised=True --num_samples=1000 --batch_size=1 --model_path=x";
        for (script, flags) in [
            ("image_train", &[TRAINING, NETWORK, DIFFUSION][..]),
            ("image_sample", &[SAMPLING, NETWORK, DIFFUSION]),
            ("image_nll", &[bounding, NETWORK, DIFFUSION]),
            ("classifier_train", &[classifying, CLASSIFIER, DIFFUSION]),
            (
                "classifier_sample",
                &[SAMPLING, "--classifier_path=x --classifier_scale=1.0", NETWORK, CLASSIFIER, DIFFUSION],
            ),
            ("super_res_train", &[TRAINING, SUPER_RES, DIFFUSION]),
            ("super_res_sample", &[SAMPLING, "--base_samples=x", SUPER_RES, DIFFUSION]),
        ] {
            let words = ["ddpm-ip", script].into_iter().chain(flags.iter().flat_map(|f| f.split_whitespace()));
            let parsed = super::command().try_get_matches_from(words.map(|word| super::kebab_case(word.into())));
            assert!(parsed.is_ok(), "{script}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn underscores_in_flags_become_dashes_and_values_stay() {
        for (given, expected) in
            [("--image_size", "--image-size"), ("--data_dir=a_b", "--data-dir=a_b"), ("a_b", "a_b"), ("--", "--")]
        {
            assert_eq!(super::kebab_case(given.into()), expected);
        }
    }
}
