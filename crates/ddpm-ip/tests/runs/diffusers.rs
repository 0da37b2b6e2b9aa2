//! Networks that go to diffusers and come back.

use super::support::{assert_says, train, trained, with};
use ddpm_ip::checkpoint::{self, config_of, described, load_network, resolve, write_pipeline};
use ddpm_ip::config::{Config, Layers};
use ddpm_ip::convert::{convert, to_diffusers};
use ddpm_ip::net::network::{Network, Unet};
use ddpm_ip::net::{Layout, Parameters};
use std::fs;
use std::path::Path;
use std::sync::Arc;

fn layout(config: &Config) -> Arc<Layout> {
    Arc::clone(Unet::new(config.model.network(config.diffusion.variance).unwrap()).layout())
}

/// Parameters of which no two are the same.
fn parameters(config: &Config) -> Parameters {
    let layout = layout(config);
    let values = (0..layout.len()).map(|i| i as f32 * 1e-3 - 1.0).collect();
    Parameters::new(layout, values)
}

/// What a file's description makes of the defaults.
fn described_config(file: &Path) -> Config {
    let mut layers = Layers::default();
    layers.add(described(file, None).unwrap().unwrap()).unwrap();
    layers.resolve().unwrap()
}

const LEVELS: [(&str, &str); 3] =
    [("channel_mult", "1,2"), ("attention_resolutions", "8"), ("use_new_attention_order", "true")];

#[test]
fn every_network_that_fits_comes_back_bit_for_bit() {
    let ddim: &[(&str, &str)] =
        &[("arch", "ddim"), ("dropout", "0.1"), ("noise_schedule", "linear"), ("diffusion_steps", "1000")];
    let residual: &[(&str, &str)] = &[
        ("resblock_updown", "true"),
        ("num_head_channels", "16"),
        ("class_cond", "true"),
        ("num_classes", "4"),
        ("variance", "learned-range"),
        ("num_res_blocks", "2"),
    ];
    let plain: &[(&str, &str)] = &[
        ("use_scale_shift_norm", "false"),
        ("num_heads", "1"),
        ("variance", "fixed-small"),
        ("prediction", "x-start"),
        ("clip_denoised", "false"),
    ];
    for more in [ddim, residual, plain] {
        let config = with(&[&LEVELS, more].concat());
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("pipeline");
        let ours = parameters(&config);
        assert_eq!(write_pipeline(&at, &ours, &config).unwrap().len(), 4);
        let file = resolve(&at).unwrap();
        assert_eq!(resolve(&at.join("unet")).unwrap(), file);
        let own = described_config(&file);
        let same =
            |config: &Config| (config.model.network(config.diffusion.variance).unwrap(), config.diffusion.clone());
        let (mut expected, found) = (same(&config), same(&own));
        // One head by its number, or by the channels that it then has.
        (expected.0.heads, expected.0.heads_up) = (found.0.heads, found.0.heads_up);
        // Families differ in what they know of the order of heads.
        expected.0.head_order = found.0.head_order;
        assert_eq!(found, expected);
        assert_eq!(own.sample.clip_denoised, config.sample.clip_denoised);
        let theirs = load_network(&file, &layout(&own), &own).unwrap();
        assert!(theirs.iter().zip(ours.iter()).all(|(a, b)| a == b), "{more:?}");
        assert_says(write_pipeline(&at, &ours, &config), &["exists"]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}

#[test]
fn heads_in_turn_become_parts_in_turn() {
    let settings = [&LEVELS[..2], &[("num_head_channels", "16"), ("use_new_attention_order", "false")]].concat();
    let config = with(&settings);
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("pipeline");
    let ours = parameters(&config);
    write_pipeline(&at, &ours, &config).unwrap();
    let file = resolve(&at).unwrap();
    let own = described_config(&file);
    let theirs = load_network(&file, &layout(&own), &own).unwrap();
    for ((spec, a), (_, b)) in ours.iter().zip(theirs.iter()) {
        if !spec.name.contains("qkv") {
            assert_eq!(a, b, "{}", spec.name);
            continue;
        }
        let row = spec.len() / spec.shape[0];
        let heads = spec.shape[0] / 3 / 16;
        for part in 0..3 {
            for head in 0..heads {
                let from = &a[(head * 3 + part) * 16 * row..][..16 * row];
                assert_eq!(from, &b[(part * heads + head) * 16 * row..][..16 * row], "{}", spec.name);
            }
        }
    }
    // The order that the description has is the only one in which its weights are right.
    assert_says(load_network(&file, &layout(&config), &config), &["--use-new-attention-order true (not false)"]);
    let other = with(&[&LEVELS[..], &[("num_head_channels", "32")]].concat());
    assert_says(load_network(&file, &layout(&other), &other), &["--num-head-channels 16 (not 32)"]);
    let larger = with(&[&LEVELS[..], &[("num_head_channels", "16"), ("image_size", "16")]].concat());
    assert_says(load_network(&file, &layout(&larger), &larger), &["made with --image-size 8 (not 16)"]);
}

#[test]
fn what_diffusers_has_no_place_for_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (settings, words) in [
        (&[("conv_resample", "false")][..], "--conv-resample false"),
        (&[("num_heads", "2")], "heads of [16, 32] channels"),
        (&[("num_head_channels", "16"), ("channel_mult", "2,2")], "64 of the first level"),
        (&[("num_head_channels", "16"), ("prediction", "previous-x")], "--prediction previous-x"),
        (&[("num_head_channels", "16"), ("variance", "learned")], "--variance learned"),
        (&[("num_head_channels", "16"), ("rescale_timesteps", "true")], "--rescale-timesteps"),
        (&[("num_head_channels", "16"), ("diffusion.timestep_respacing", "10")], "timestep_respacing"),
    ] {
        let config = with(&[&LEVELS[..], settings].concat());
        assert_says(write_pipeline(&folder.path().join("p"), &parameters(&config), &config), &["no place for", words]);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_run_gives_its_average_and_a_run_begins_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let settings = [("class_cond", "true"), ("num_heads", "1"), ("use_new_attention_order", "true")];
    let run = trained(&with(&settings), &path("run"));
    let config = config_of(&run.join("model.safetensors")).unwrap().unwrap();
    let mut said = Vec::new();
    to_diffusers(&path("run"), &path("pipeline"), &config, &mut |event| said.push(format!("{event:?}"))).unwrap();
    assert!(said.iter().any(|text| text.contains("no classes")), "{said:?}");
    convert(&path("pipeline"), &path("back.safetensors"), &config, &mut |_| {}).unwrap();
    let read = |file: &Path| checkpoint::load(file, &layout(&config), "").unwrap();
    assert!(read(&path("back.safetensors")).values() == read(&run.join("ema_0.9.safetensors")).values());
    assert_says(convert(&path("pipeline"), &path("folder"), &config, &mut |_| {}), &["end OUT in .safetensors"]);

    let pipeline = path("pipeline").to_string_lossy().into_owned();
    let next = |heads: &str| {
        let mut config = with(
            &[&settings[..], &[("init_from", pipeline.as_str()), ("num_heads", heads), ("steps", "1"), ("lr", "1e-9")]]
                .concat(),
        );
        config.train.ema_rate = vec![0.0];
        train(&config, &path(&format!("next{heads}"))).0
    };
    next("1").unwrap();
    assert_says(next("2"), &["--num-heads 1 (not 2)"]);
    let report = ddpm_ip::info::describe(&pipeline, &config).unwrap().to_string();
    for words in
        ["UNet2DModel of diffusers", "num_classes = 10", "noise_schedule = \"cosine\"", "input_blocks.0.0.weight"]
    {
        assert!(report.contains(words), "{words}: {report}");
    }
}

#[test]
fn contradictions_of_the_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = with(&[&LEVELS[..], &[("num_heads", "1")]].concat());
    let at = folder.path().join("pipeline");
    write_pipeline(&at, &parameters(&config), &config).unwrap();
    let file = resolve(&at).unwrap();
    let change = |name: &str, from: &str, to: &str| {
        let path = at.join(name);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).unwrap();
    };
    change("scheduler/scheduler_config.json", "fixed_large", "learned_range");
    assert_says(described(&file, None), &["1 channels of output for images of 1", "learned_range"]);
    change("scheduler/scheduler_config.json", "learned_range", "fixed_large");
    change("unet/config.json", "\"layers_per_block\": 1", "\"layers_per_block\": 2");
    assert_says(checkpoint::list(&file, ""), &["has no tensor `down_blocks.0.resnets.1."]);
    change("unet/config.json", "\"freq_shift\": 0", "\"freq_shift\": 1");
    assert_says(checkpoint::list(&file, ""), &["`freq_shift` is 1", "0 is"]);
    fs::remove_file(at.join("unet/config.json")).unwrap();
    assert_says(checkpoint::list(&file, ""), &["names of diffusers", "config.json is needed"]);
}
