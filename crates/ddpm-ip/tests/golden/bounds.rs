//! Bits per dimension with all noise given.

use super::support::{assert_near, assert_relative, cases, open, weighted};
use ddpm_ip::config::DiffusionConfig;
use ddpm_ip::diffusion::Diffusion;
use ddpm_ip::nll::Bound;
use ddpm_math::Variance;

#[test]
fn golden_bounds() {
    for case in cases("bpd") {
        let (network, parameters) = weighted(case["network"].as_str().unwrap()).unwrap();
        let learned = case["learn_sigma"].as_bool().unwrap();
        let config = DiffusionConfig {
            noise_schedule: case["noise_schedule"].as_str().unwrap().parse().unwrap(),
            variance: if learned { Variance::LearnedRange } else { Variance::FixedLarge },
            ..DiffusionConfig::default()
        };
        let respacing = case["timestep_respacing"].as_str().unwrap().parse().unwrap();
        let diffusion = Diffusion::new(&config, &respacing).unwrap();
        let mut file = open(&case, "file");
        let x_start = file.floats("x_start").unwrap();
        let draws = file.floats("step_noise").unwrap();
        let (shape, steps) = (x_start.shape, diffusion.schedule.len());
        let per_step: usize = shape.iter().product();
        // The k-th draw is used at the k-th step taken, the noisiest first.
        let noise = |i: usize| {
            let from = (steps - 1 - i) * per_step;
            draws.values[from..from + per_step].to_vec()
        };
        let bound = Bound { diffusion: &diffusion, network: &network, parameters: &parameters, clip_denoised: true };
        let terms = bound.terms(&x_start.values, shape[0], [shape[2], shape[3]], None, noise, || true).unwrap();
        let mut expected = |key: &str| file.floats(key).unwrap().values;
        let (vb, xstart, mse) = (expected("vb"), expected("xstart_mse"), expected("mse"));
        let (prior, total) = (expected("prior_bpd"), expected("total_bpd"));
        for (n, terms) in terms.iter().enumerate() {
            let row = |all: &[f32]| all[n * steps..(n + 1) * steps].to_vec();
            for (name, actual, all) in
                [("vb", &terms.vb, &vb), ("xstart_mse", &terms.xstart_mse, &xstart), ("mse", &terms.mse, &mse)]
            {
                assert_near(&format!("image {n}: {name}"), actual, &row(all), 1e-5);
            }
            // The divergence of two almost equal Gaussians is a difference of numbers near 1 in f32.
            let off = f64::from(terms.prior - prior[n]).abs();
            assert!(off <= 1e-6, "image {n}: the prior is off by {off:e}");
            assert_relative(&format!("image {n}: total"), terms.total(), f64::from(total[n]), 1e-5);
        }
        assert!(bound.terms(&x_start.values, shape[0], [shape[2], shape[3]], None, noise, || false).is_none());
    }
}
