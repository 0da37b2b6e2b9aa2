//! `ddpm-ip convert`: from one kind of checkpoint to another.

use super::sample::own_settings;
use crate::args::{self, Settings};
use crate::output::{complain, complain_all, print};
use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use ddpm_ip::config::Layers;
use ddpm_ip::convert::{convert, to_diffusers, to_half};
use ddpm_ip::{Event, Outcome};
use std::path::PathBuf;

const SETTINGS: Settings =
    Settings(&["model", "classifier", "diffusion", "perturbation", "data", "train", "sample.network"]);

pub(super) fn command() -> Command {
    let path = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).value_name(value).required(true).value_parser(value_parser!(PathBuf)).help(help)
    };
    Command::new("convert")
        .about("Convert checkpoints to and from PyTorch and diffusers")
        .long_about(
            "Convert checkpoints to and from PyTorch and diffusers. The ending of OUT says what is written:\n\n  \
             .pt, .pth      the parameters for torch.load, with the reference's names\n  \
             .safetensors   the parameters and their settings\n  \
             a folder       from a run or checkpoint folder: the reference's model*.pt, ema_*.pt and opt*.pt;\n                 \
             from the reference's model*.pt: a run directory that resumes from it and the files beside it\n\n\
             With --to diffusers, OUT is a folder for diffusers' DDPMPipeline.from_pretrained. It holds the parameters that \
             `sample` would use: the first EMA of a run. IN may be such a folder, too. With --to f16, OUT is a .safetensors of \
             these parameters in half precision, at half the size.\n\n\
             PyTorch files carry no settings. Most follow from the names and shapes of the tensors; give the others, which \
             `info` lists, by flags. They are saved in OUT.",
        )
        .arg(path("input", "IN", "run directory, checkpoint folder, folder of diffusers, .safetensors or PyTorch file"))
        .arg(path("output", "OUT", "file or folder to write"))
        .arg(
            Arg::new("to")
                .long("to")
                .value_name("KIND")
                .value_parser(["diffusers", "f16"])
                .help("write a pipeline for diffusers, or the parameters in half precision"),
        )
        .arg(args::switch("json", "print the report as JSON"))
        .args(SETTINGS.args())
        .args_override_self(true)
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let path = |id: &str| matches.get_one::<PathBuf>(id).cloned().with_context(|| format!("{id} is missing"));
    let (input, output) = (path("input")?, path("output")?);
    let convert = match matches.get_one::<String>("to").map(String::as_str) {
        Some("f16") => to_half,
        Some(_) => to_diffusers,
        None => convert,
    };
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
