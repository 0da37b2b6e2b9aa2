//! The network of ermongroup/ddim and its chains.

use super::support::{assert_close, assert_near, cases, folder, json, open, weights};
use ddpm_ip::config::{Arch, Config, DiffusionConfig};
use ddpm_ip::diffusion::{Clip, Diffusion, Reverse};
use ddpm_ip::net::network::{Network, Unet};
use ddpm_ip::net::{Device, Engine, Feed, Parameters};
use ddpm_ip::sample::{Chain, GivenNoise, Model, Subjects};
use ddpm_math::{Corrections, Rule};

#[test]
fn golden_ddim() {
    for case in cases("ddim") {
        let arguments = json(case["config"].as_str().unwrap());
        let number = |key: &str| arguments[key].as_u64().unwrap() as usize;
        let list = |key: &str| arguments[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize);
        let mut config = Config::default();
        config.model.arch = Arch::Ddim;
        config.model.image_size = number("image_size");
        config.model.in_channels = number("in_channels");
        config.model.num_channels = number("ch");
        config.model.num_res_blocks = number("num_res_blocks");
        config.model.channel_mult = list("ch_mult").map(|m| m as f64).collect();
        config.model.attention_resolutions = list("attn_resolutions").collect();
        config.model.conv_resample = arguments["resamp_with_conv"].as_bool().unwrap();
        let network = Unet::new(config.model.network(config.diffusion.variance).unwrap());
        assert_eq!(network.parameter_count(), number("parameters"));
        let parameters =
            Parameters::from_values(network.layout(), &weights(network.specs(), case["salt"].as_str().unwrap()));
        let network = Engine::new(network, Device::Cpu);

        let mut file = open(&case, "file");
        let x = file.floats("x").unwrap();
        let t = file.floats("t").unwrap().values;
        let out = network.forward(&parameters, Feed::new(&x.values, [x.shape[2], x.shape[3]], &t));
        assert_near("out", &out, &file.floats("out").unwrap().values, 1e-5);

        let timesteps = file.integers("timesteps").unwrap().values;
        let respacing = format!("uniform{}", timesteps.len()).parse().unwrap();
        let diffusion = Diffusion::new(&DiffusionConfig::default(), &respacing).unwrap();
        let kept: Vec<i64> = diffusion.schedule.times.iter().map(|&t| t as i64).collect();
        assert_eq!(kept, timesteps);
        let size = config.model.image_size;
        let path = folder().join(case["file"].as_str().unwrap());
        let noise = GivenNoise::read(&path, [config.model.in_channels, size, size], kept.len(), true).unwrap();
        for eta in [0.0, 0.5] {
            let chain = Chain {
                diffusion: &diffusion,
                network: &Model { network: &network, parameters: &parameters, size: [size; 2] },
                reverse: &Reverse { rule: Rule::Ddim { eta }, clip: Clip::None, corrections: Corrections::default() },
                guide: None,
                guidance: None,
                shape: [config.model.in_channels, size, size],
            };
            let images: Vec<u64> = (0..noise.images() as u64).collect();
            let last = chain
                .run(Subjects { images: &images, labels: None, low_res: None, draws: &noise }, |_, _, _| true)
                .unwrap();
            let expected = file.floats(&format!("final_eta{eta:?}")).unwrap().values;
            // Nothing is clipped: the images of this network of random weights are large.
            let scale = expected.iter().fold(1.0, |a: f32, v| a.max(v.abs()));
            assert_close(&format!("final at eta {eta}"), &last, &expected, 1e-3 * scale);
        }
    }
}
