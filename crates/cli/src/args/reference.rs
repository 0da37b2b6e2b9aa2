//! Flags of the reference's scripts that say in another way what a setting here says.

use super::{given, truth};
use clap::{Arg, ArgMatches};
use ddpm_ip::config::{self, Config, ConfigError, LossKind, Precision, Prediction, SamplerKind, Variance};

/// Flag, the section it belongs to, what it means here.
const SWITCHES: &[(&str, &str, &str)] = &[
    ("learn-sigma", "diffusion", "same as --variance learned-range"),
    ("sigma-small", "diffusion", "same as --variance fixed-small"),
    ("predict-xstart", "diffusion", "same as --prediction x-start"),
    ("use-kl", "diffusion", "same as --loss rescaled-kl"),
    ("rescale-learned-sigmas", "diffusion", "same as --loss rescaled-mse"),
    ("use-ddim", "sample", "same as --sampler ddim"),
    ("use-fp16", "model", "same as --precision bf16"),
    ("classifier-use-fp16", "classifier", "same as --classifier-precision bf16"),
    ("anneal-lr", "train", "same as --lr-anneal-steps with the number of --steps"),
];

const HEADING: &str = "Flags of the reference implementation";

/// The flags that go with these sections.
pub(super) fn args(sections: &[&str]) -> Vec<Arg> {
    let here = |(_, section, _): &&(&str, &str, &str)| sections.contains(section);
    let switches = SWITCHES.iter().filter(here).map(|(flag, _, help)| truth((*flag).into(), (*flag).into(), help));
    switches.map(|arg| arg.help_heading(HEADING)).collect()
}

/// Applies what was written to `config`; returns remarks.
pub(super) fn apply(sections: &[&str], matches: &ArgMatches, config: &mut Config) -> Result<Vec<String>, ConfigError> {
    let value = |flag: &str| {
        let known = SWITCHES.iter().any(|(f, section, _)| *f == flag && sections.contains(section));
        if known { given(matches, flag) } else { None }
    };
    let switch = |flag: &str| -> Result<Option<bool>, ConfigError> {
        let Some(text) = value(flag) else { return Ok(None) };
        let wrong = || ConfigError(format!("--{flag} {text:?}: write true or false"));
        config::boolean(text).map(Some).ok_or_else(wrong)
    };
    let diffusion = &mut config.diffusion;
    // What is already as the flags say stays as it is: `learned` is a learned sigma too, `kl` a bound.
    let now = diffusion.variance;
    let (learned, is_small) = (now.is_learned(), now == Variance::FixedSmall);
    let (learn, small) = (switch("learn-sigma")?.unwrap_or(learned), switch("sigma-small")?.unwrap_or(is_small));
    if learn != learned || (!learn && small != is_small) {
        diffusion.variance = Variance::from_flags(learn, small);
    }
    let is_xstart = diffusion.prediction == Prediction::XStart;
    let xstart = switch("predict-xstart")?.unwrap_or(is_xstart);
    if xstart != is_xstart {
        diffusion.prediction = Prediction::from_flags(xstart);
    }
    let now = diffusion.loss;
    let (is_vb, rescaled) = (now.is_vb(), now == LossKind::RescaledMse);
    let (kl, rescale) = (switch("use-kl")?.unwrap_or(is_vb), switch("rescale-learned-sigmas")?.unwrap_or(rescaled));
    if kl != is_vb || (!kl && rescale != rescaled) {
        diffusion.loss = LossKind::from_flags(kl, rescale);
    }
    if let Some(ddim) = switch("use-ddim")? {
        config.sample.sampler = if ddim { SamplerKind::Ddim } else { SamplerKind::Ddpm };
    }
    let mut notices = Vec::new();
    if switch("use-fp16")? == Some(true) && config.model.precision == Precision::F32 {
        config.model.precision = Precision::Bf16;
        config.model.auto_precision = false;
        notices.push("--use-fp16 means --precision bf16 here, which needs no loss scale".to_string());
    }
    if switch("classifier-use-fp16")? == Some(true) && config.classifier.precision == Precision::F32 {
        config.classifier.precision = Precision::Bf16;
        config.classifier.auto_precision = false;
        notices.push("--classifier-use-fp16 means --classifier-precision bf16 here".to_string());
    }
    if switch("anneal-lr")? == Some(true) {
        if config.train.steps == 0 {
            return Err(ConfigError("--anneal-lr lowers the learning rate until the last step: give --steps".into()));
        }
        config.train.lr_anneal_steps = config.train.steps;
    }
    Ok(notices)
}
