//! Files that PyTorch wrote, through the network.

use super::support::{assert_near, folder, json};
use ddpm_ip::checkpoint;
use ddpm_ip::config::{Config, Layers};
use ddpm_ip::info::infer;
use ddpm_ip::net::network::{Network, Unet};
use ddpm_ip::net::{Device, Engine, Feed};
use ddpm_ip::npz::Npz;
use std::path::Path;

/// The output of a file's network, built from what names and shapes tell and some settings, for a case's input.
fn output(file: &Path, settings: &[(&str, &str)], image_size: usize, case: &mut Npz) -> Vec<f32> {
    let mut layers = Layers::default();
    layers.add(infer(&checkpoint::list(file, "").unwrap().0).unwrap().settings(Some(image_size))).unwrap();
    layers.set(settings.iter().copied()).unwrap();
    let config: Config = layers.resolve().unwrap();
    let network = Unet::new(config.model.network(config.diffusion.variance).unwrap());
    let parameters = checkpoint::load(file, network.layout(), "").unwrap();
    let x = case.floats("x").unwrap();
    let t = case.floats("t").unwrap().values;
    Engine::new(network, Device::Cpu).forward(&parameters, Feed::new(&x.values, [x.shape[2], x.shape[3]], &t))
}

#[test]
fn golden_torch_files() {
    let arguments = json("variant.json");
    let size = arguments["image_size"].as_u64().unwrap() as usize;
    let heads = arguments["num_head_channels"].to_string();
    let settings = [("num_head_channels", heads.as_str()), ("use_new_attention_order", "true")];
    let mut case = Npz::open(&folder().join("variant.npz")).unwrap();
    let expected = case.floats("out").unwrap().values;
    for (name, tolerance) in [("zip", 1e-5), ("legacy", 1e-5), ("wrapped", 1e-5), ("half", 2e-3)] {
        let file = folder().join(format!("variant_{name}.pt"));
        assert_near(name, &output(&file, &settings, size, &mut case), &expected, tolerance);
    }
}

#[test]
fn golden_ddim_checkpoint() {
    let size = json("ddim_model.json")["image_size"].as_u64().unwrap() as usize;
    let mut case = Npz::open(&folder().join("ddim_model.npz")).unwrap();
    let expected = case.floats("out").unwrap().values;
    // The last entry of the list is the average, which the case was made with.
    assert_near("ddim", &output(&folder().join("ddim_ckpt.pth"), &[], size, &mut case), &expected, 1e-5);
}
