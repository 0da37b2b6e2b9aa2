use super::settings::{MOST_SETTINGS, Settings};
use super::*;

/// What `google/ddpm-cifar10-32` says.
fn cifar10() -> Value {
    json!({
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": null,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": false,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": false,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    })
}

/// What diffusers' script of unconditional training makes.
fn unconditional() -> Value {
    json!({
        "_class_name": "UNet2DModel",
        "sample_size": [64, 64],
        "block_out_channels": [128, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    })
}

fn read(json: &Value) -> Result<Unet> {
    let Value::Object(map) = json.clone() else { panic!("an object") };
    Unet::from_settings(&Settings { path: Path::new("config.json"), map })
}

fn process(json: &Value) -> Result<Process> {
    let Value::Object(map) = json.clone() else { panic!("an object") };
    Process::from_settings(&Settings { path: Path::new("scheduler_config.json"), map })
}

fn with(mut json: Value, key: &str, value: Value) -> Value {
    json[key] = value;
    json
}

#[test]
fn networks_are_read_as_they_were_written() {
    let ddim = read(&cifar10()).unwrap();
    assert_eq!((ddim.reference, ddim.image_size, ddim.head_channels), (Reference::Ddim, Some(32), None));
    assert_eq!(ddim.attention, [false, true, false, false]);
    let adm = read(&unconditional()).unwrap();
    assert_eq!((adm.reference, adm.image_size, adm.head_channels), (Reference::Adm, Some(64), Some(8)));
    assert_eq!((adm.res_blocks, adm.in_channels, adm.scale_shift, adm.classes), (2, 3, false, None));
    let residual = Unet {
        scale_shift: true,
        residual_resampling: true,
        classes: Some(10),
        out_channels: 6,
        dropout: 0.25,
        ..adm.clone()
    };
    for unet in [ddim, adm, residual] {
        assert_eq!(read(&unet.to_json()).unwrap(), unet);
    }
}

#[test]
fn what_is_not_supported_is_refused_with_key_value_and_what_is() {
    let both = [cifar10(), unconditional()];
    for (which, key, value, words) in [
        (0, "_class_name", json!("UNet2DConditionModel"), "UNet2DModel"),
        (0, "freq_shift", json!(0), "with `flip_sin_to_cos` false 1 is"),
        (0, "norm_eps", json!(1e-5), "1e-6 with"),
        (0, "downsample_padding", json!(1), "0 with"),
        (0, "attention_head_dim", json!(8), "null with"),
        (0, "resnet_time_scale_shift", json!("scale_shift"), "default"),
        (0, "num_class_embeds", json!(10), "null with"),
        (0, "out_channels", json!(6), "3, as many as"),
        (0, "center_input_sample", json!(true), "false is"),
        (0, "time_embedding_type", json!("fourier"), "positional"),
        (0, "act_fn", json!("relu"), "\"silu\" or \"swish\""),
        (0, "norm_num_groups", json!(16), "32 is"),
        (0, "mid_block_type", json!(null), "UNetMidBlock2D"),
        (0, "block_out_channels", json!([100, 200, 200, 200]), "multiples of 32"),
        (0, "block_out_channels", json!("wide"), "multiples of 32"),
        (0, "block_out_channels", json!([]), "multiples of 32"),
        (0, "layers_per_block", json!(1_000_000_000_000u64), "from 1 to 256"),
        (0, "sample_size", json!([32, 48]), "whole number"),
        (0, "up_block_types", json!(["UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"]), "at the levels of"),
        (0, "down_block_types", json!(["DownBlock2D"]), "4, as many as"),
        (0, "down_block_types", json!(["SkipDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]), "AttnDown"),
        (0, "downsample_type", json!("resnet"), "supported"),
        (1, "norm_eps", json!(1e-6), "1e-5 with"),
        (1, "downsample_padding", json!(0), "1 with"),
        (1, "attention_head_dim", json!(24), "a divisor"),
        (1, "resnet_time_scale_shift", json!("scale_shift"), "`attn_norm_num_groups` is null"),
        (1, "resnet_time_scale_shift", json!("spatial"), "scale_shift"),
        (1, "out_channels", json!(4), "twice as many"),
        (1, "class_embed_type", json!("timestep"), "null is"),
        (1, "add_attention", json!(false), "true is"),
        (1, "dropout", json!(1.5), "probability"),
        (1, "upsample_type", json!("shuffle"), "\"conv\" or \"resnet\""),
    ] {
        let error = read(&with(both[which].clone(), key, value.clone())).expect_err(key).to_string();
        assert!(error.contains("is not supported") && error.contains(words), "{key} {value}: {error}");
    }
    let newer = with(cifar10(), "key_of_another_program", json!(1));
    assert!(read(&newer).is_ok());
}

#[test]
fn processes_are_read_as_they_were_written_and_others_refused() {
    let google = json!({
        "_class_name": "DDPMScheduler", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
        "clip_sample": true, "num_train_timesteps": 1000, "tensor_format": "pt", "trained_betas": null,
        "variance_type": "fixed_large",
    });
    let read = process(&google).unwrap();
    assert_eq!(read.variance, Some(ProcessVariance::FixedLarge));
    let ddim = process(&with(google.clone(), "_class_name", json!("DDIMScheduler"))).unwrap();
    assert_eq!((ddim.variance, ddim.clip), (None, Some(true)));
    let other = Process {
        steps: 4000,
        cosine: true,
        predicts_image: true,
        variance: Some(ProcessVariance::LearnedRange),
        clip: Some(false),
        ..read.clone()
    };
    for one in [read, other] {
        assert_eq!(process(&one.to_json()).unwrap(), one);
    }
    for (key, value, words) in [
        ("_class_name", json!("EDMEulerScheduler"), "DDPMScheduler"),
        ("beta_schedule", json!("scaled_linear"), "squaredcos_cap_v2"),
        ("beta_end", json!(0.012), "0.02 with"),
        ("num_train_timesteps", json!(2000), "`beta_start` is 0.0001"),
        ("num_train_timesteps", json!(0), "whole number"),
        ("trained_betas", json!([0.1]), "null is"),
        ("prediction_type", json!("v_prediction"), "\"epsilon\" or \"sample\""),
        ("variance_type", json!("learned"), "learned_range"),
        ("rescale_betas_zero_snr", json!(true), "false is"),
        ("thresholding", json!(true), "false is"),
        ("clip_sample_range", json!(2.0), "1 is"),
        ("clip_sample", json!("yes"), "true or false"),
    ] {
        let error = process(&with(google.clone(), key, value)).expect_err(key).to_string();
        assert!(error.contains("is not supported") && error.contains(words), "{key}: {error}");
    }
}

#[test]
fn names_are_one_to_one_and_older_ones_are_read() {
    for json in [cifar10(), unconditional(), with(unconditional(), "num_class_embeds", json!(10))] {
        let unet = read(&json).unwrap();
        let names = unet.names();
        let distinct = |names: Vec<&String>| {
            let all = names.len();
            names.into_iter().collect::<std::collections::BTreeSet<_>>().len() == all
        };
        assert!(distinct(names.iter().map(|n| &n.reference).collect()));
        assert!(distinct(names.iter().flat_map(|n| &n.own).collect()));
        let older = |name: &str| {
            let name = name.replace(".to_q.", ".query.").replace(".to_k.", ".key.");
            name.replace(".to_v.", ".value.").replace(".to_out.0.", ".proj_attn.")
        };
        let own = || names.iter().flat_map(|n| n.own.clone());
        let file: Vec<_> = own().map(|name| (older(&name), name)).collect();
        let renamed = unet.rename(Path::new("x"), file.clone()).unwrap();
        assert!(renamed.iter().all(|(entry, tensors)| entry.own == *tensors));
        let fails = |file: Vec<(String, String)>| unet.rename(Path::new("x"), file).unwrap_err().to_string();
        assert!(fails(file[1..].to_vec()).contains(&format!("no tensor `{}`", own().next().unwrap())));
        let more = |name: &str| [file.clone(), vec![(name.into(), String::new())]].concat();
        assert!(fails(more("extra.weight")).contains("`extra.weight`, for which"));
        assert!(fails(more("mid_block.attentions.0.to_q.weight")).contains("twice"));
    }
}

#[test]
fn folders_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    };
    assert_eq!(weights_in(folder.path()), None);
    write("p/unet/config.json", &cifar10().to_string());
    let torch = write("p/unet/diffusion_pytorch_model.bin", "");
    assert_eq!(weights_in(&folder.path().join("p")), Some(torch.clone()));
    let weights = write("p/unet/diffusion_pytorch_model.safetensors", "");
    assert_eq!(weights_in(&folder.path().join("p")), Some(weights.clone()));
    assert_eq!(weights_in(&folder.path().join("p/unet")), Some(weights.clone()));
    assert!(unet_of(&weights).unwrap().is_some() && process_of(&weights).unwrap().is_none());
    write("p/unet_ema/config.json", &cifar10().to_string());
    let average = write("p/unet_ema/diffusion_pytorch_model.safetensors", "");
    assert_eq!(weights_in(&folder.path().join("p")), Some(average));
    write("p/scheduler/scheduler_config.json", "{\"_class_name\": \"DDPMScheduler\"}");
    assert_eq!(process_of(&weights).unwrap().unwrap().variance, Some(ProcessVariance::FixedSmall));
    // On the hub all lie in one folder.
    write("p/unet/scheduler_config.json", "{\"_class_name\": \"PNDMScheduler\"}");
    assert_eq!(process_of(&weights).unwrap().unwrap().variance, None);
    // A config.json of other programs says nothing, and a damaged one is named where it is diffusers'.
    write("p/unet/config.json", "{\"hidden\": 3}");
    assert_eq!(unet_of(&weights).unwrap(), None);
    write("p/unet/config.json", "{\"_class_name\":");
    assert_eq!(unet_of(&folder.path().join("p/unet/model.pt")).unwrap(), None);
    assert!(unet_of(&weights).unwrap_err().to_string().contains("is not valid JSON"));
    let long = write("long/config.json", &" ".repeat((MOST_SETTINGS + 2) as usize));
    assert!(Unet::read(&long).unwrap_err().to_string().contains("too large"));
}
