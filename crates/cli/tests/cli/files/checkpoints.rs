//! Checkpoints of other programs.

use super::*;
use crate::support::TINY;
use ddpm_ip::torch::{TorchFile, write_state_dict};
use std::fmt::Write as _;
use std::io::Write;

/// A tiny run's parameters, by name and shape, with the values.
fn parameters(place: &Place) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    place.train(&["--steps", "1"]).exits(0);
    place.run(&["convert", "run", "plain.pt"]).exits(0);
    let mut file = TorchFile::open(&place.path("plain.pt")).unwrap();
    let named = file.parameters().unwrap();
    named.into_iter().map(|(name, tensor)| (name, tensor.shape().to_vec(), file.floats(&tensor).unwrap())).collect()
}

/// Writes parameters as `torch.save` does, each by every name that `names` gives it, with its values multiplied.
fn save(
    place: &Place,
    file: &str,
    parameters: &[(String, Vec<usize>, Vec<f32>)],
    names: impl Fn(&str) -> Vec<(String, f32)>,
) {
    let mut entries = Vec::new();
    let mut values = Vec::new();
    for (name, shape, held) in parameters {
        for (name, factor) in names(name) {
            entries.push((name, shape.clone()));
            values.push(held.iter().map(|v| v * factor).collect::<Vec<_>>());
        }
    }
    write_state_dict(fs::File::create(place.path(file)).unwrap(), &entries, |i| &values[i]).unwrap();
}

const SAMPLE: [&str; 12] = [
    "--num-samples",
    "2",
    "--timestep-respacing",
    "2",
    "--diffusion-steps",
    "10",
    "--noise-schedule",
    "cosine",
    "--image-size",
    "8",
    "--overwrite",
    "--out",
];

fn drawn(place: &Place, checkpoint: &str, more: &[&str]) -> (Vec<u8>, String) {
    let out = "drawn.npz";
    let sample = [&["sample", "--checkpoint", checkpoint], &SAMPLE[..], &[out], more].concat();
    let said = place.run(&sample).exits(0).err();
    (Npz::open(&place.path(out)).unwrap().bytes("arr_0").unwrap().values, said)
}

#[test]
fn networks_that_other_programs_wrapped() {
    let place = Place::new();
    let parameters = parameters(&place);
    let (expected, _) = drawn(&place, "plain.pt", &[]);
    for (file, prefix) in [
        ("compiled.pt", "_orig_mod."),
        ("ddp-compiled.pt", "module._orig_mod."),
        ("compiled-ddp.pt", "_orig_mod.module."),
        ("lightning.ckpt", "model."),
        ("fsdp.bin", "_fsdp_wrapped_module."),
        ("fabric.ckpt", "_forward_module."),
    ] {
        save(&place, file, &parameters, |name| vec![(format!("{prefix}{name}"), 1.0)]);
        let (images, said) = drawn(&place, file, &[]);
        assert!(images == expected, "{file}");
        assert!(!said.contains("several networks"), "{said}");
        assert!(told(&place, file).contains("From names and shapes:"), "{}", told(&place, file));
    }
    let tensors = serialized(&parameters, "model._orig_mod.");
    write(&place, "other.safetensors", &tensors);
    assert!(drawn(&place, "other.safetensors", &[]).0 == expected);
}

/// A safetensors file as other programs write it.
fn serialized(parameters: &[(String, Vec<usize>, Vec<f32>)], prefix: &str) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in parameters {
        let begin = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let info = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(format!("{prefix}{name}"), info);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

#[test]
fn several_networks_in_one_file() {
    let place = Place::new();
    let parameters = parameters(&place);
    let (expected, _) = drawn(&place, "plain.pt", &[]);
    save(&place, "both.pt", &parameters, |name| {
        vec![(format!("online_model.{name}"), 30.0), (format!("ema_model.{name}"), 1.0)]
    });
    let (images, said) = drawn(&place, "both.pt", &[]);
    assert!(images == expected);
    let taken = "both.pt holds several networks: `ema_model` is used; --network chooses another (`online_model`)";
    assert!(said.contains(taken), "{said}");
    assert!(told(&place, "both.pt").contains(taken));
    let (online, said) = drawn(&place, "both.pt", &["--network", "online_model"]);
    assert!(online != expected);
    assert!(said.contains("`online_model` is used"), "{said}");
    let nope = [&["sample", "--checkpoint", "both.pt", "--network", "x"], &SAMPLE[..], &["x.npz"]].concat();
    place.run(&nope).complains(1, &["has no network `x`: it holds ema_model, online_model"]);
    let own = [&["sample", "--checkpoint", "run", "--network", "x"], &SAMPLE[..], &["x.npz"]].concat();
    place.run(&own).complains(2, &["only one network: leave --network out"]);
    let begun = ["--init-from", "both.pt", "--network", "online_model", "--steps", "1"];
    let train = [&["train"], &TINY[..TINY.len() - 2], &begun, &["--out", "begun"]].concat();
    let said = place.run(&train).exits(0).err();
    assert!(said.contains("`online_model` is used"), "{said}");
    // What it began from is no matter for its own checkpoints.
    drawn(&place, "begun", &[]);
}

/// A file as `torch.save` writes it of dictionaries in each other. `wrap` makes its pickle with a function that gives the
/// dictionary of the network, with a prefix before each name and its values multiplied.
fn save_nested(
    place: &Place,
    file: &str,
    parameters: &[(String, Vec<usize>, Vec<f32>)],
    wrap: impl Fn(&mut dyn FnMut(&str, f32) -> String) -> String,
) {
    let mut storages: Vec<Vec<u8>> = Vec::new();
    let mut network = |prefix: &str, factor: f32| {
        let mut text = "ccollections\nOrderedDict\n(tR".to_string();
        for (name, shape, values) in parameters {
            let ints =
                |list: &[usize]| list.iter().flat_map(|n| ["I".into(), n.to_string(), "\n".into()]).collect::<String>();
            let strides: Vec<usize> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
            let (key, count) = (storages.len(), values.len());
            write!(
                text,
                "V{prefix}{name}\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV{key}\nVcpu\nI{count}\n\
                 tQI0\n({}t({}tI00\nccollections\nOrderedDict\n(tRtRs",
                ints(shape),
                ints(&strides)
            )
            .unwrap();
            storages.push(values.iter().flat_map(|v| (v * factor).to_le_bytes()).collect());
        }
        text
    };
    let pickle = wrap(&mut network) + ".";
    let mut zip = zip::ZipWriter::new(fs::File::create(place.path(file)).unwrap());
    let entries = storages.iter().enumerate().map(|(key, bytes)| (format!("archive/data/{key}"), bytes.as_slice()));
    for (name, bytes) in std::iter::once(("archive/data.pkl".into(), pickle.as_bytes())).chain(entries) {
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// An optimizer's state.
const OPTIMIZER: &str = "}Vstate\n}sVparam_groups\n](}Vlr\nF0.1\nses";

#[test]
fn dictionaries_in_each_other() {
    let place = Place::new();
    let parameters = parameters(&place);
    let (expected, _) = drawn(&place, "plain.pt", &[]);
    save_nested(&place, "lightning.ckpt", &parameters, |network| {
        let network = network("model.", 1.0);
        format!(
            "}}Vepoch\nI3\nsVpytorch-lightning_version\nV2.0\nsVstate_dict\n{network}sVloops\n}}sVoptimizer_states\n\
             ]({OPTIMIZER}esVhyper_parameters\n}}Vlr\nF0.1\nss"
        )
    });
    save_nested(&place, "trainer.pt", &parameters, |network| {
        let (plain, online, average) =
            (network("model.", 30.0), network("online_model.model.", 30.0), network("ema_model.model.", 1.0));
        // One dictionary of both: the second's entries go on where the first's end.
        let average = average.trim_start_matches("ccollections\nOrderedDict\n(tR");
        format!("}}Vstep\nI5\nsVmodel\n{plain}sVopt\n{OPTIMIZER}sVema\n{online}{average}sVscaler\nNs")
    });
    save_nested(&place, "list.pth", &parameters, |network| {
        format!("]({}{OPTIMIZER}I1\nI1000\n{}e", network("module.", 30.0), network("module.", 1.0))
    });
    for file in ["lightning.ckpt", "trainer.pt", "list.pth"] {
        let (images, said) = drawn(&place, file, &[]);
        assert!(images == expected, "{file}: {said}");
    }
    let (online, said) = drawn(&place, "trainer.pt", &["--network", "ema.online_model.model"]);
    assert!(online != expected && said.contains("`ema.online_model.model` is used"), "{said}");
}

#[test]
fn the_name_of_a_network_is_for_the_checkpoint_and_not_for_its_guide() {
    let place = Place::new();
    let parameters = parameters(&place);
    save(&place, "both.pt", &parameters, |name| {
        vec![(format!("online_model.{name}"), 30.0), (format!("ema_model.{name}"), 1.0)]
    });
    save(&place, "average.pt", &parameters, |name| vec![(name.into(), 1.0)]);
    let online = ["--network", "online_model"];
    let guided = |guide: &str, scale: &str| {
        drawn(&place, "both.pt", &[&online[..], &["--guide-with", guide, "--guidance-scale", scale]].concat())
    };
    // The guide has one network, or is the average of two.
    let (images, said) = guided("average.pt", "3");
    assert!(said.contains("`online_model` is used"), "{said}");
    assert!(guided("both.pt", "3").0 == images);
    assert!(drawn(&place, "both.pt", &online).0 != images);
}

#[test]
fn checkpoints_of_networks_that_are_not_known() {
    let place = Place::new();
    let sample = |file: &str| place.run(&[&["sample", "--checkpoint", file], &SAMPLE[..], &["x.npz"]].concat());
    let other = [("conv1.weight".to_string(), vec![2, 3], vec![0.0; 6]), ("fc.bias".into(), vec![2], vec![0.0; 2])];
    write(&place, "other.safetensors", &serialized(&other, ""));
    sample("other.safetensors").complains(1, &["its 2 tensors, such as `conv1.weight`", "match no known network"]);
    write(&place, "none.safetensors", &serialized(&[], ""));
    sample("none.safetensors").complains(1, &["its 0 tensors match no known network"]);
    save(&place, "whole.pt", &other, |name| vec![(name.into(), 1.0)]);
    let whole = fs::read(place.path("whole.pt")).unwrap();
    write(&place, "cut.pt", &whole[..whole.len() / 2]);
    sample("cut.pt").complains(1, &["cut.pt: is a zip archive as PyTorch writes them, damaged or cut off"]);
    write(&place, "short.pt", b"hello");
    sample("short.pt").complains(1, &["short.pt: not a complete safetensors file (it is too short)"]);
}

#[test]
fn numbers_of_twice_the_width() {
    let place = Place::new();
    let parameters = parameters(&place);
    let (expected, _) = drawn(&place, "plain.pt", &[]);
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in &parameters {
        let begin = data.len();
        data.extend(values.iter().flat_map(|v| f64::from(*v).to_le_bytes()));
        let info = serde_json::json!({"dtype": "F64", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name.clone(), info);
    }
    let header = serde_json::Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    write(&place, "double.safetensors", &file);
    assert!(drawn(&place, "double.safetensors", &[]).0 == expected);
}

#[test]
fn a_tensor_that_is_missing_or_too_many() {
    let place = Place::new();
    let parameters = parameters(&place);
    save(&place, "other.pt", &parameters, |name| vec![(name.replace("time_embed.2.bias", "time_emb.2.bias"), 1.0)]);
    let sample = [&["sample", "--checkpoint", "other.pt"], &SAMPLE[..], &["x.npz"]].concat();
    place.run(&sample).complains(1, &["no tensor `time_embed.2.bias`", "the nearest that it has is `time_emb.2.bias`"]);
    save(&place, "more.pt", &parameters, |name| {
        let extra = (name == "out.2.bias").then(|| ("out.2.bais".to_string(), 1.0));
        std::iter::once((name.to_string(), 1.0)).chain(extra).collect()
    });
    let sample = [&["sample", "--checkpoint", "more.pt"], &SAMPLE[..], &["x.npz"]].concat();
    place.run(&sample).complains(1, &["no place for its tensor `out.2.bais`", "the network's nearest is `out.2.bias`"]);
}

#[test]
fn checkpoints_of_other_programs_in_folders() {
    let place = Place::new();
    for (file, parts) in [
        ("dcp/__0_0.distcp", &["torch.distributed.checkpoint", "dcp_to_torch dcp model.pt"][..]),
        ("zero/zero_to_fp32.py", &["DeepSpeed's", "python zero/zero_to_fp32.py zero model.pt"]),
        ("shards/model.safetensors.index.json", &["in shards", "glob.glob('shards/*.safetensors')", "save_file"]),
        ("accelerate/pytorch_model.bin", &["name one of its files: accelerate/pytorch_model.bin"]),
        ("nothing/README.md", &["name a run directory"]),
    ] {
        write(&place, file, b"");
        let folder = file.split('/').next().unwrap();
        let sample = [&["sample", "--checkpoint", folder], &SAMPLE[..], &["x.npz"]].concat();
        place.run(&sample).complains(1, &[&[folder, "holds no checkpoint"], parts].concat());
    }
    for (file, bytes, part) in [
        ("a.safetensors", &b""[..], "a.safetensors: is empty"),
        ("b.safetensors", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("c.pt", b"<!doctype html>", "a web page"),
        ("d.safetensors.index.json", b"{}", "the index of shards"),
        ("e.gguf", b"GGUF\x03\0\0\0", "a GGUF file: use the .safetensors or .pt"),
    ] {
        write(&place, file, bytes);
        place.run(&[&["sample", "--checkpoint", file], &SAMPLE[..], &["x.npz"]].concat()).complains(1, &[part]);
    }
}

#[test]
fn a_flipped_bit_in_a_checkpoint() {
    let place = Place::new();
    place.train(&["--steps", "1"]).exits(0);
    let verified = place.run(&["info", "run", "--verify"]).exits(0).out();
    for file in ["model", "ema_0.995", "state"] {
        assert!(verified.contains(&format!("ok       run/checkpoints/step_000001/{file}.safetensors")), "{verified}");
    }
    let file = place.path("run/checkpoints/step_000001/ema_0.995.safetensors");
    let whole = fs::read(&file).unwrap();
    let mut bytes = whole.clone();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    fs::write(&file, &bytes).unwrap();
    // The last tensor by name.
    let damage = ["ema_0.995.safetensors: `time_embed.2.weight` is damaged", "its checksum does not match"];
    place.run(&[&["sample", "--checkpoint", "run"], &SAMPLE[..], &["x.npz"]].concat()).complains(1, &damage);
    let ran = place.run(&["info", "run", "--verify"]).exits(1);
    assert!(ran.out().contains("DAMAGED") && ran.out().contains(damage[0]), "{}", ran.out());
    assert!(ran.err().contains("1 of 3 files are damaged"), "{}", ran.err());
    let json = place.run(&["info", "run/checkpoints/step_000001", "--verify", "--json"]).exits(1).out();
    assert!(json.contains("\"problem\"") && json.contains("time_embed.2.weight"), "{json}");
    // In the header, where the settings are.
    let mut bytes = whole.clone();
    let at = whole.windows(7).position(|w| w == b"dropout").unwrap();
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    place.run(&["info", "run"]).complains(1, &["ema_0.995.safetensors", "its header is damaged", "step_ folder"]);
    // Written before there were checksums, or by another program.
    write(&place, "other.safetensors", &serialized(&parameters(&Place::new()), ""));
    drawn(&place, "other.safetensors", &[]);
    let verified = place.run(&["info", "other.safetensors", "--verify"]).exits(0).out();
    assert!(verified.contains("unknown  other.safetensors: it carries no checksums"), "{verified}");
}
