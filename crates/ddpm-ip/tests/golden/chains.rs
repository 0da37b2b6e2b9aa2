//! Sampling chains with all noise given.

use super::support::{assert_close, cases, folder, open, weighted};
use ddpm_ip::config::DiffusionConfig;
use ddpm_ip::diffusion::{Clip, Diffusion, Reverse, to_u8};
use ddpm_ip::sample::{Chain, GivenNoise, Model, Subjects};
use ddpm_math::{Corrections, Rule, Variance};

#[test]
fn golden_chains() {
    for case in cases("chains") {
        let name = case["file"].as_str().unwrap();
        let Some((network, parameters)) = weighted(case["network"].as_str().unwrap()) else { continue };
        let learned = case["learn_sigma"].as_bool().unwrap();
        let config = DiffusionConfig {
            diffusion_steps: case["diffusion_steps"].as_u64().unwrap() as usize,
            noise_schedule: case["noise_schedule"].as_str().unwrap().parse().unwrap(),
            variance: if learned { Variance::LearnedRange } else { Variance::FixedLarge },
            ..DiffusionConfig::default()
        };
        let respacing = case["timestep_respacing"].as_str().unwrap().parse().unwrap();
        let diffusion = Diffusion::new(&config, &respacing).unwrap();
        let ddim = case["sampler"] == "ddim";
        let reverse = Reverse {
            rule: if ddim { Rule::Ddim { eta: case["eta"].as_f64().unwrap_or(0.0) } } else { Rule::Ddpm },
            clip: if case["clip_denoised"].as_bool().unwrap() { Clip::Range } else { Clip::None },
            corrections: Corrections::default(),
        };
        let mut file = open(&case, "file");
        let shape = file.floats("initial_noise").unwrap().shape;
        let image_size = shape[2];
        let path = folder().join(name);
        let steps = diffusion.schedule.len();
        let noise = GivenNoise::read(&path, [shape[1], image_size, image_size], steps, true).unwrap();
        let chain = Chain {
            diffusion: &diffusion,
            network: &Model { network: &network, parameters: &parameters, size: [image_size; 2] },
            reverse: &reverse,
            guide: None,
            guidance: None,
            shape: [shape[1], image_size, image_size],
        };
        let images: Vec<u64> = (0..noise.images() as u64).collect();
        let (mut first, mut middle) = (Vec::new(), Vec::new());
        let last =
            chain.run(Subjects { images: &images, labels: None, low_res: None, draws: &noise }, |k, x_start, x| {
                if k == 1 {
                    first = x_start.to_vec();
                }
                if k == steps / 2 + 1 {
                    middle = x.to_vec();
                }
                true
            });
        let last = last.unwrap();
        let mut expected = |key: &str| file.floats(key).unwrap().values;
        assert_close(&format!("{name}: first x_start"), &first, &expected("first_pred_xstart"), 1e-3);
        assert_close(&format!("{name}: middle"), &middle, &expected("middle"), 1e-3);
        assert_close(&format!("{name}: final"), &last, &expected("final"), 1e-3);
        let bytes = file.bytes("final_u8").unwrap().values;
        let off = to_u8(&last, shape[1], image_size * image_size)
            .iter()
            .zip(&bytes)
            .map(|(a, b)| a.abs_diff(*b))
            .max()
            .unwrap();
        assert!(off <= 1, "{name}: bytes off by {off}");
    }
}
