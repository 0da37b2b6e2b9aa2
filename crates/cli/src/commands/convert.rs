//! `ddpm-ip convert`: from one kind of checkpoint to another.

use super::sample::own_settings;
use crate::args::{self, Settings};
use crate::output::{complain, complain_all, print};
use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use ddpm_ip::config::Layers;
use ddpm_ip::convert::{convert, to_diffusers};
use ddpm_ip::{Event, Outcome};
use std::path::PathBuf;

const SETTINGS: Settings =
    Settings(&["model", "classifier", "diffusion", "perturbation", "data", "train", "sample.network"]);

pub(super) fn command() -> Command {
    let path = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).value_name(value).required(true).value_parser(value_parser!(PathBuf)).help(help)
    };
    Command::new("convert")
        .about("Convert checkpoints from and to PyTorch's and diffusers'")
        .long_about(
            "Convert checkpoints from and to PyTorch's. By the ending of OUT:\n\n  \
             .pt, .pth      the parameters, as torch.load reads them, with the reference's names\n  \
             .safetensors   the parameters, with their settings\n  \
             a folder       from a run or checkpoint folder: the reference's model*.pt, ema_*.pt and opt*.pt;\n                 \
             from the reference's model*.pt: a run directory that goes on from it and the files beside it\n\n\
             With --to diffusers OUT is a folder that diffusers' DDPMPipeline.from_pretrained loads, with the parameters that \
             `sample` would take: a run's first average. IN may be such a folder, too.\n\n\
             PyTorch's files carry no settings: what names and shapes do not tell (`info` says what) is given by flags, and \
             kept in what is written.",
        )
        .arg(path("input", "IN", "run directory, checkpoint folder, folder of diffusers, .safetensors or PyTorch file"))
        .arg(path("output", "OUT", "file or folder to write"))
        .arg(
            Arg::new("to")
                .long("to")
                .value_name("KIND")
                .value_parser(["diffusers"])
                .help("write a pipeline of diffusers, whatever OUT ends in"),
        )
        .arg(args::switch("json", "report as JSON"))
        .args(SETTINGS.args())
        .args_override_self(true)
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let path = |id: &str| matches.get_one::<PathBuf>(id).cloned().with_context(|| format!("{id} is missing"));
    let (input, output) = (path("input")?, path("output")?);
    let convert = if matches.contains_id("to") { to_diffusers } else { convert };
    let mut layers = Layers::default();
    layers.add(own_settings(&input, matches, &layers)?)?;
    let (config, notices) = SETTINGS.resolve(layers, matches)?;
    complain_all(&notices);
    let written = convert(&input, &output, &config, &mut |event| {
        if let Event::Warning(text) = event {
            complain(&text);
        }
    })?;
    print(&if matches.get_flag("json") {
        let written: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
        serde_json::json!({ "written": written }).to_string()
    } else {
        written.iter().map(|path| format!("wrote {}", path.display())).collect::<Vec<_>>().join("\n")
    })?;
    Ok(Outcome::Finished)
}
